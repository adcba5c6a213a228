/* SPDX-License-Identifier: MIT */
#include "survey.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An image that has more is sampled from its start: tables of one kind, arrays in all. */
enum { MAX_TABLES = 4096, MAX_ARRAYS = 16384, MAX_DIRECTORY = 64 << 20 };

__attribute__((format(printf, 3, 4))) static int add(
    struct survey *s, struct survey_array array, const char *format, ...)
{
    if (s->array_count == MAX_ARRAYS)
        return 0;
    if ((s->array_count & (s->array_count + 1)) == 0) { /* full: 0, 1, 3, 7, ... */
        size_t room = 2 * s->array_count + 1;
        struct survey_array *more = realloc(s->arrays, room * sizeof(*more));
        if (!more)
            return -ENOMEM;
        s->arrays = more;
    }
    va_list args;
    va_start(args, format);
    vsnprintf(array.label, sizeof(array.label), format, args);
    va_end(args);
    s->arrays[s->array_count++] = array;
    return 0;
}

struct field {
    unsigned off, width, traits;
    const char *name;
};

/* Fields of one record at host_off. */
static int add_fields(struct survey *s, enum survey_place place, uint64_t host_off,
    const struct field *fields, size_t count, const char *owner)
{
    int err = 0;
    for (size_t i = 0; i < count && err == 0; i++) {
        struct survey_array array = {.place = place,
            .traits = fields[i].traits,
            .host_off = host_off + fields[i].off,
            .count = 1,
            .width = fields[i].width,
            .stride = fields[i].width};
        err = add(s, array, "%s %s", owner, fields[i].name);
    }
    return err;
}

#define LENGTH_OF(array) (sizeof(array) / sizeof((array)[0]))

static int survey_header(struct survey *s)
{
    static const struct field fields[] = {
        {0, 4, SURVEY_COUNT, "magic"},
        {QCOW2_HDR_VERSION, 4, SURVEY_COUNT, "version"},
        {QCOW2_HDR_BACKING_OFF, 8, SURVEY_COUNT, "backing_off"},
        {QCOW2_HDR_BACKING_LEN, 4, SURVEY_COUNT, "backing_len"},
        {QCOW2_HDR_CLUSTER_BITS, 4, SURVEY_COUNT, "cluster_bits"},
        {QCOW2_HDR_SIZE, 8, SURVEY_COUNT, "size"},
        {QCOW2_HDR_CRYPT_METHOD, 4, SURVEY_COUNT, "crypt_method"},
        {QCOW2_HDR_L1_SIZE, 4, SURVEY_COUNT, "l1_size"},
        {QCOW2_HDR_L1_OFF, 8, SURVEY_OFFSET, "l1_off"},
        {QCOW2_HDR_REFTABLE_OFF, 8, SURVEY_OFFSET, "reftable_off"},
        {QCOW2_HDR_REFTABLE_CLUSTERS, 4, SURVEY_COUNT, "reftable_clusters"},
        {QCOW2_HDR_SNAPSHOT_COUNT, 4, SURVEY_COUNT, "snapshot_count"},
        {QCOW2_HDR_SNAPSHOTS_OFF, 8, SURVEY_OFFSET, "snapshots_off"},
        {QCOW2_HDR_INCOMPATIBLE, 8, SURVEY_FLAGS, "incompatible"},
        {QCOW2_HDR_COMPATIBLE, 8, SURVEY_FLAGS, "compatible"},
        {QCOW2_HDR_AUTOCLEAR, 8, SURVEY_FLAGS, "autoclear"},
        {QCOW2_HDR_REFCOUNT_ORDER, 4, SURVEY_COUNT, "refcount_order"},
        {QCOW2_HDR_LENGTH, 4, SURVEY_COUNT, "header_length"},
        {QCOW2_HDR_COMPRESSION, 1, SURVEY_COUNT, "compression"},
    };
    size_t count = LENGTH_OF(fields);
    while (count > 0 && fields[count - 1].off >= s->header.header_length)
        count--;
    return add_fields(s, SURVEY_HEADER, 0, fields, count, "header");
}

/* ---- L1 and L2 ------------------------------------------------------------------------------- */

static bool known(const struct survey *s, enum survey_place place, uint64_t host_off)
{
    for (size_t i = 0; i < s->array_count; i++) {
        if (s->arrays[i].place == place && s->arrays[i].host_off == host_off)
            return true;
    }
    return false;
}

static int survey_l2(struct survey *s, enum survey_place place, uint64_t host_off)
{
    if (known(s, SURVEY_L2, host_off) || known(s, place, host_off))
        return 0;
    struct survey_array array = {.place = place,
        .traits = SURVEY_OFFSET | SURVEY_ENTRY | SURVEY_IS_TABLE,
        .host_off = host_off,
        .count = s->geo.l2_entries,
        .width = 8,
        .stride = s->geo.l2_entry_size};
    int err = add(s, array, "%sL2 0x%" PRIx64, place == SURVEY_L2 ? "" : "snapshot ", host_off);
    if (err || !s->geo.extended_l2)
        return err;
    array.host_off += 8;
    array.traits = SURVEY_SUBBITS;
    return add(s, array, "subclusters of L2 0x%" PRIx64, host_off);
}

static int survey_l1(
    struct survey *s, struct io *io, enum survey_place place, uint64_t host_off, uint32_t count)
{
    struct survey_array array = {.place = place,
        .traits = SURVEY_OFFSET | SURVEY_ENTRY | SURVEY_IS_TABLE,
        .host_off = host_off,
        .count = count,
        .width = 8,
        .stride = 8};
    int err = add(s, array, "%sL1 0x%" PRIx64, place == SURVEY_L1 ? "" : "snapshot ", host_off);
    enum survey_place child = place == SURVEY_L1 ? SURVEY_L2 : SURVEY_SNAPSHOT_L2;
    for (uint32_t i = 0; i < count && i < MAX_TABLES && err == 0; i++) {
        uint8_t entry[8];
        err = io_read_padded(io, host_off + UINT64_C(8) * i, entry, sizeof(entry));
        uint64_t l2_off = err ? 0 : load_be64(entry) & QCOW2_OFFSET_MASK;
        if (l2_off)
            err = survey_l2(s, child, l2_off);
    }
    return err;
}

/* ---- refcounts ------------------------------------------------------------------------------- */

static int survey_refcounts(struct survey *s, struct io *io)
{
    uint64_t bytes = (uint64_t)s->header.reftable_clusters << s->geo.cluster_bits;
    struct survey_array table = {.place = SURVEY_REFTABLE,
        .traits = SURVEY_OFFSET | SURVEY_IS_TABLE,
        .host_off = s->header.reftable_off,
        .count = bytes / 8,
        .width = 8,
        .stride = 8};
    int err = add(s, table, "refcount table");
    for (uint64_t i = 0; i < table.count && i < MAX_TABLES && err == 0; i++) {
        uint8_t entry[8];
        err = io_read_padded(io, table.host_off + 8 * i, entry, sizeof(entry));
        uint64_t block_off = err ? 0 : load_be64(entry) & QCOW2_REFTABLE_MASK;
        if (block_off == 0)
            continue;
        uint64_t first = i << s->geo.refblock_bits;
        struct survey_array block = {.place = SURVEY_REFCOUNT,
            .traits = SURVEY_STORED | SURVEY_IS_TABLE,
            .host_off = block_off,
            .count = s->geo.refblock_entries};
        err = add(s, block, "refcounts from cluster %" PRIu64, first);
    }
    return err;
}

/* ---- snapshots ---------------------------------------------------------------------------------
 */

static int survey_snapshot(
    struct survey *s, struct io *io, uint64_t host_off, unsigned idx, uint64_t *length)
{
    static const struct field fields[] = {
        {0, 8, SURVEY_OFFSET, "l1_off"},
        {8, 4, SURVEY_COUNT, "l1_size"},
        {12, 2, SURVEY_COUNT, "id_len"},
        {14, 2, SURVEY_COUNT, "name_len"},
        {32, 4, SURVEY_COUNT, "vm_state_size32"},
        {36, 4, SURVEY_COUNT, "extra_len"},
        {40, 8, SURVEY_COUNT, "vm_state_size"},
        {48, 8, SURVEY_COUNT, "disk_size"},
    };
    uint8_t head[QCOW2_SNAPSHOT_HEAD_BYTES];
    struct qcow2_snapshot snapshot;
    int err = io_read_padded(io, host_off, head, sizeof(head));
    if (err)
        return err;
    qcow2_snapshot_decode(head, sizeof(head), &snapshot);
    *length = snapshot.record_len;
    char owner[24];
    snprintf(owner, sizeof(owner), "snapshot %u", idx);
    size_t count = LENGTH_OF(fields) - (snapshot.extra_len < 16 ? 2 : 0);
    err = add_fields(s, SURVEY_SNAPSHOT, host_off, fields, count, owner);
    if (err)
        return err;
    return survey_l1(s, io, SURVEY_SNAPSHOT_L1, snapshot.l1_off, snapshot.l1_size);
}

static int survey_snapshots(struct survey *s, struct io *io)
{
    uint64_t host_off = s->header.snapshots_off;
    int err = 0;
    for (unsigned i = 0; i < s->header.snapshot_count && i < MAX_TABLES && err == 0; i++) {
        uint64_t length = 0;
        err = survey_snapshot(s, io, host_off, i, &length);
        host_off += length;
    }
    return err;
}

/* ---- bitmaps and extensions --------------------------------------------------------------------
 */

static int survey_bitmap(struct survey *s, const uint8_t *record, size_t room, uint64_t host_off,
    unsigned idx, uint64_t *length)
{
    static const struct field fields[] = {
        {0, 8, SURVEY_OFFSET, "table_off"},
        {8, 4, SURVEY_COUNT, "table_size"},
        {12, 4, SURVEY_FLAGS, "flags"},
        {16, 1, SURVEY_COUNT, "type"},
        {17, 1, SURVEY_COUNT, "granularity_bits"},
        {18, 2, SURVEY_COUNT, "name_len"},
        {20, 4, SURVEY_COUNT, "extra_len"},
        {24, 1, SURVEY_FLAGS, "name"},
    };
    struct qcow2_bitmap bitmap;
    if (qcow2_bitmap_decode(record, room, &bitmap) < 0)
        return 0;
    *length = bitmap.record_len;
    char owner[24];
    snprintf(owner, sizeof(owner), "bitmap %u", idx);
    int err = add_fields(s, SURVEY_BITMAP, host_off, fields, LENGTH_OF(fields), owner);
    if (err)
        return err;
    struct survey_array table = {.place = SURVEY_BITMAP_TABLE,
        .traits = SURVEY_OFFSET | SURVEY_IS_TABLE,
        .host_off = bitmap.table_off,
        .count = bitmap.table_size,
        .width = 8,
        .stride = 8};
    return add(s, table, "bitmap %u table", idx);
}

static int survey_bitmaps(struct survey *s, struct io *io, const struct qcow2_ext *ext)
{
    static const struct field fields[] = {
        {0, 4, SURVEY_COUNT, "count"},
        {4, 4, SURVEY_FLAGS, "reserved"},
        {8, 8, SURVEY_COUNT, "directory_size"},
        {16, 8, SURVEY_OFFSET, "directory_off"},
    };
    struct qcow2_bitmaps_ext bitmaps;
    qcow2_bitmaps_ext_decode(ext->data, &bitmaps);
    int err = add_fields(
        s, SURVEY_BITMAP, ext->head_off + 8, fields, LENGTH_OF(fields), "bitmaps extension");
    if (err || bitmaps.directory_size > s->file_bytes || bitmaps.directory_size > MAX_DIRECTORY)
        return err;
    size_t size = (size_t)bitmaps.directory_size, pos = 0;
    uint8_t *directory = malloc(size + 1);
    if (!directory)
        return -ENOMEM;
    err = io_read_padded(io, bitmaps.directory_off, directory, size);
    uint64_t length = 1; /* 0: what comes is no record */
    for (unsigned i = 0; i < bitmaps.bitmap_count && err == 0 && length > 0; i++) {
        length = 0;
        err =
            survey_bitmap(s, directory + pos, size - pos, bitmaps.directory_off + pos, i, &length);
        pos += (size_t)length;
    }
    free(directory);
    return err;
}

static int survey_extension(struct survey *s, struct io *io, const struct qcow2_ext *ext)
{
    static const struct field head[] = {
        {0, 4, SURVEY_COUNT, "type"}, {4, 4, SURVEY_COUNT, "length"}};
    static const struct field crypto[] = {
        {8, 8, SURVEY_OFFSET, "header offset"}, {16, 8, SURVEY_COUNT, "header length"}};
    char owner[32];
    snprintf(owner, sizeof(owner), "extension 0x%" PRIx32, ext->type);
    int err = add_fields(s, SURVEY_EXTENSION, ext->head_off, head, LENGTH_OF(head), owner);
    if (err == 0 && ext->type == QCOW2_EXT_CRYPTO)
        err = add_fields(s, SURVEY_EXTENSION, ext->head_off, crypto, LENGTH_OF(crypto), "LUKS");
    if (err == 0 && ext->type == QCOW2_EXT_BITMAPS && ext->length == QCOW2_BITMAPS_EXT_BYTES)
        err = survey_bitmaps(s, io, ext);
    return err;
}

static int survey_extensions(struct survey *s, struct io *io)
{
    size_t end = s->geo.cluster_size, pos = s->header.header_length;
    uint8_t *cluster = malloc(end);
    if (!cluster)
        return -ENOMEM;
    int err = io_read_padded(io, 0, cluster, end);
    if (s->header.backing_off && s->header.backing_off < end)
        end = (size_t)s->header.backing_off;
    struct qcow2_ext ext;
    while (err == 0 && qcow2_ext_next(cluster, end, &pos, &ext) == 1)
        err = survey_extension(s, io, &ext);
    free(cluster);
    return err;
}

/* ---- public
 * --------------------------------------------------------------------------------------
 */

static int survey_image(struct survey *s, struct io *io)
{
    uint8_t head[512];
    int err = io_size(io, &s->file_bytes);
    if (err == 0)
        err = io_read_padded(io, 0, head, sizeof(head));
    if (err)
        return err;
    err = qcow2_header_decode(head, sizeof(head), &s->header);
    if (err || s->header.magic != QCOW2_MAGIC)
        return -EINVAL;
    err = qcow2_geometry_init(&s->header, &s->geo);
    if (err == 0)
        err = survey_header(s);
    if (err == 0)
        err = survey_l1(s, io, SURVEY_L1, s->header.l1_off, s->header.l1_size);
    if (err == 0)
        err = survey_refcounts(s, io);
    if (err == 0)
        err = survey_snapshots(s, io);
    if (err == 0)
        err = survey_extensions(s, io);
    return err;
}

int survey_open(struct io *io, struct survey **out)
{
    struct survey *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    int err = survey_image(s, io);
    if (err) {
        survey_close(s);
        return err;
    }
    *out = s;
    return 0;
}

void survey_close(struct survey *survey)
{
    if (survey)
        free(survey->arrays);
    free(survey);
}

/* ---- values -----------------------------------------------------------------------------------
 */

/* Refcounts narrower than a byte share one: *idx is the index inside the bytes at the result. */
static uint64_t refcount_off(const struct survey *s, const struct survey_value *v, uint64_t *idx)
{
    unsigned order = s->geo.refcount_order;
    unsigned per_byte = order < 3 ? 8u >> order : 1;
    *idx = v->idx % per_byte;
    return v->array->host_off + (order < 3 ? v->idx / per_byte : v->idx << (order - 3));
}

uint64_t survey_value_off(const struct survey *survey, const struct survey_value *v)
{
    uint64_t unused;
    if (v->array->traits & SURVEY_STORED)
        return refcount_off(survey, v, &unused);
    return v->array->host_off + v->idx * v->array->stride;
}

int survey_read(const struct survey *survey, struct io *io, struct survey_value *v)
{
    uint8_t bytes[8] = {0};
    unsigned order = survey->geo.refcount_order;
    bool stored = v->array->traits & SURVEY_STORED;
    v->bits = stored ? 1u << order : 8 * v->array->width;
    size_t length = v->bits < 8 ? 1 : v->bits / 8;
    uint8_t *start = stored ? bytes : bytes + 8 - length;
    int err = io_read_padded(io, survey_value_off(survey, v), start, length);
    if (err)
        return err;
    uint64_t idx;
    if (stored)
        refcount_off(survey, v, &idx);
    v->value = stored ? qcow2_refcount_get(bytes, order, idx) : load_be64(bytes);
    return 0;
}

int survey_write(
    const struct survey *survey, struct io *io, const struct survey_value *v, uint64_t value)
{
    uint8_t bytes[8] = {0};
    size_t length = v->bits < 8 ? 1 : v->bits / 8;
    if (!(v->array->traits & SURVEY_STORED)) {
        store_be64(bytes, value);
        return io_write(io, survey_value_off(survey, v), bytes + 8 - length, length);
    }
    uint64_t idx, host_off = refcount_off(survey, v, &idx);
    int err = io_read_padded(io, host_off, bytes, length);
    qcow2_refcount_set(bytes, survey->geo.refcount_order, idx, value);
    return err ? err : io_write(io, host_off, bytes, length);
}
