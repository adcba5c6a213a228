/* SPDX-License-Identifier: MIT
 *
 * The snapshot table: read, searched, written anew, switched.
 *
 * Records are carried from table to table as the bytes they are, so unknown extra data survives. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "layout.h"
#include "refcount.h"
#include "snapshot.h"

static int check_record(struct image *img, const struct qcow2_snapshot *snap, uint32_t idx)
{
    uint64_t l1_bytes = snap->l1_size * UINT64_C(8);
    if (snap->extra_len > QCOW2_MAX_SNAPSHOT_EXTRA || l1_bytes > QCOW2_MAX_L1_BYTES)
        return image_fail(img, -EUCLEAN,
            "snapshot %" PRIu32 " has an impossible length; run qcheck --repair", idx);
    return l1_bytes ? layout_check_range(img, "the L1 table of a snapshot", snap->l1_off, l1_bytes)
                    : 0;
}

/* Decodes the records in the first `have` bytes; -ENODATA if they go on behind. */
static int parse_table(struct image *img, struct snapshot_table *snaps, uint64_t have)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < snaps->count; i++) {
        struct qcow2_snapshot *snap = &snaps->list[i];
        if (qcow2_snapshot_decode(snaps->bytes + at, (size_t)(have - at), snap) < 0 ||
            snap->record_len > have - at)
            return -ENODATA;
        int ret = check_record(img, snap, i);
        if (ret < 0)
            return ret;
        at += snap->record_len;
    }
    snaps->length = at;
    return 0;
}

/* The table does not say how long it is: read twice as much until the last record ends. */
static int read_table(struct image *img, struct snapshot_table *snaps)
{
    uint64_t have = 4096;
    for (;;) {
        free(snaps->bytes);
        snaps->bytes = malloc((size_t)have);
        if (!snaps->bytes)
            return image_no_memory(img);
        int ret = io_read_padded(img->io, img->header.snapshots_off, snaps->bytes, (size_t)have);
        if (ret < 0)
            return image_fail(img, ret, "cannot read the snapshot table: %s", strerror(-ret));
        ret = parse_table(img, snaps, have);
        if (ret != -ENODATA)
            return ret;
        if (have >= QCOW2_MAX_SNAPSHOT_TABLE_BYTES || have > img->file_size)
            return image_fail(
                img, -EUCLEAN, "the snapshot table does not end; run qcheck --repair");
        have *= 2;
    }
}

int snapshot_load(struct image *img)
{
    struct snapshot_table snaps = {.count = img->header.snapshot_count};
    if (snaps.count == 0)
        return 0;
    int ret = layout_check_range(img, "the snapshot table", img->header.snapshots_off,
        snaps.count * (uint64_t)QCOW2_SNAPSHOT_HEAD_BYTES);
    if (ret < 0)
        return ret;
    snaps.list = calloc(snaps.count, sizeof(*snaps.list));
    ret = snaps.list ? read_table(img, &snaps) : image_no_memory(img);
    if (ret < 0) {
        free(snaps.list);
        free(snaps.bytes);
        return ret;
    }
    img->snaps = snaps;
    return 0;
}

void snapshot_release(struct image *img)
{
    free(img->snaps.list);
    free(img->snaps.bytes);
    img->snaps = (struct snapshot_table){0};
}

const struct qcow2_snapshot *snapshot_list(const struct image *img, uint32_t *count)
{
    *count = img->snaps.count;
    return img->snaps.list;
}

static bool is(const uint8_t *bytes, size_t length, const char *text)
{
    return strlen(text) == length && memcmp(bytes, text, length) == 0;
}

int snapshot_find(struct image *img, const char *id_or_name, uint32_t *idx)
{
    const struct snapshot_table *snaps = &img->snaps;
    uint32_t named = 0;
    int ret = image_begin(img, false);
    if (ret < 0)
        return ret;
    for (uint32_t i = 0; i < snaps->count; i++) {
        if (is(snaps->list[i].id, snaps->list[i].id_len, id_or_name)) {
            *idx = i;
            return 0;
        }
    }
    for (uint32_t i = snaps->count; i-- > 0;) {
        if (is(snaps->list[i].name, snaps->list[i].name_len, id_or_name)) {
            *idx = i;
            named++;
        }
    }
    if (named == 1)
        return 0;
    if (named > 1)
        return image_fail(
            img, -ENOTUNIQ, "%" PRIu32 " snapshots are named '%s'; use the ID", named, id_or_name);
    return image_fail(img, -ENOENT, "no snapshot has the ID or name '%s'", id_or_name);
}

/* ---- writing ------------------------------------------------------------------------------- */

/* The new table's bytes, padded to clusters. */
static int build_table(struct image *img, uint32_t without, const struct qcow2_snapshot *added,
    uint8_t **out, uint64_t *length)
{
    const struct snapshot_table *snaps = &img->snaps;
    uint64_t total = snaps->length + (added ? qcow2_snapshot_length(added) : 0);
    if (total > QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
        return image_fail(img, -EFBIG, "the snapshot table would pass 64 MiB");
    uint8_t *bytes = calloc(1, (size_t)(clusters_for(&img->geo, total) << img->geo.cluster_bits));
    if (!bytes)
        return image_no_memory(img);
    uint64_t from = 0, to = 0;
    for (uint32_t i = 0; i < snaps->count; i++) {
        uint64_t record = snaps->list[i].record_len;
        if (i != without) {
            memcpy(bytes + to, snaps->bytes + from, (size_t)record);
            to += record;
        }
        from += record;
    }
    if (added) {
        qcow2_snapshot_encode(added, bytes + to);
        to += qcow2_snapshot_length(added);
    }
    *out = bytes;
    *length = to;
    return 0;
}

int snapshot_table_write(
    struct image *img, uint32_t without, const struct qcow2_snapshot *added, struct new_table *out)
{
    struct new_table table = {
        .count = img->snaps.count + (added != NULL) - (without < img->snaps.count)};
    uint8_t *bytes = NULL;
    uint64_t length = 0;
    if (table.count == 0) {
        *out = table;
        return 0;
    }
    int ret = build_table(img, without, added, &bytes, &length);
    if (ret < 0)
        return ret;
    table.clusters = clusters_for(&img->geo, length);
    ret = refcount_alloc(img, table.clusters, &table.host_off);
    if (ret == 0)
        *out = table; /* also when writing fails: to be given back */
    if (ret == 0)
        ret = image_write_meta(img, REGION_NONE, table.host_off, bytes,
            (size_t)(table.clusters << img->geo.cluster_bits));
    free(bytes);
    return ret;
}

int snapshot_table_switch(struct image *img, const struct new_table *table, struct cluster_run *old)
{
    uint8_t fields[12];
    store_be32(fields, table->count);
    store_be64(fields + 4, table->host_off);
    *old = (struct cluster_run){cluster_of(&img->geo, img->header.snapshots_off),
        clusters_for(&img->geo, img->snaps.length)};
    int ret = image_write_header(img, QCOW2_HDR_SNAPSHOT_COUNT, fields, sizeof(fields));
    if (ret == 0)
        ret = image_barrier(img); /* commit */
    if (ret < 0) {
        img->stale = true; /* which table is it? */
        return ret;
    }
    img->header.snapshot_count = table->count;
    img->header.snapshots_off = table->host_off;
    snapshot_release(img);
    ret = snapshot_load(img);
    img->stale |= ret < 0;
    return ret;
}
