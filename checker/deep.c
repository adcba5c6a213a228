/* SPDX-License-Identifier: MIT
 *
 * --deep: every compressed cluster decodes to exactly one cluster.
 *
 * The clusters of a table are decoded by the whole crew, a slice of them at a time; what came out
 * is looked at in the order of the entries.  Ranges that snapshots share are decoded once.
 *
 * Invariant: which ranges are decoded, and what is said of them, does not depend on how many
 * decode.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "walk.h"

enum {
    SLICE_BYTES = 32 << 20, /* decoded between two looks at the stop flag */
    SLOTS_MIN = 1 << 16,
    UNREAD = 1, /* a result beside those of codec_decode() */
};

/* A range of compressed data; ranges that are the same have one. */
struct range {
    uint64_t raw; /* descriptor; 0: a free slot */
    int result;
};

struct decoder {
    struct codec *codec;
    uint8_t *packed, *plain;
};

struct deep {
    struct walk *walk;
    struct decoder *decoders; /* one a worker */
    struct range *ranges;     /* open hash table; forgotten when half full */
    size_t slot_count, used;
    size_t *slots; /* of the compressed entries of a table, in order */
    uint32_t *entries;
    struct range **fresh; /* those of them not decoded yet */
    uint64_t budget;      /* bytes of compressed data that may still be decoded */
};

/* ---- decoding ---- */

static int decoder_open(const struct walk *walk, struct decoder *decoder)
{
    if (decoder->codec)
        return 0;
    /* The descriptor's count of sectors may make a range of almost two clusters and a sector. */
    size_t size = walk->geo.cluster_size, most = size * 2 + QCOW2_SECTOR_BYTES;
    if (!decoder->packed)
        decoder->packed = malloc(most);
    if (!decoder->plain)
        decoder->plain = malloc(size);
    if (!decoder->packed || !decoder->plain)
        return -ENOMEM;
    return codec_open((enum qcow2_compression)walk->header.compression, &decoder->codec);
}

static void decode_raw(const struct qcow2_geometry *geo, uint64_t raw, struct qcow2_l2_entry *e)
{
    uint8_t bytes[16] = {0};
    store_be64(bytes, raw);
    qcow2_l2_decode(geo, bytes, e);
}

/* A slice of the ranges; a job each. */
struct slice {
    struct deep *deep;
    struct range **ranges;
};

static void decode_range(void *arg, size_t index, unsigned worker)
{
    const struct slice *slice = arg;
    const struct walk *walk = slice->deep->walk;
    struct decoder *decoder = &slice->deep->decoders[worker];
    struct range *range = slice->ranges[index];
    struct qcow2_l2_entry e;
    decode_raw(&walk->geo, range->raw, &e);
    range->result = decoder_open(walk, decoder);
    if (range->result == 0 && io_read_padded(walk->io, e.host_off, decoder->packed, e.length) < 0)
        range->result = UNREAD;
    if (range->result == 0)
        range->result = codec_decode(
            decoder->codec, decoder->packed, e.length, decoder->plain, walk->geo.cluster_size);
}

static int decode_ranges(struct deep *deep, size_t count)
{
    struct walk *walk = deep->walk;
    size_t most = SLICE_BYTES / walk->geo.cluster_size;
    struct crew *crew = walk->io->concurrent_reads ? walk->crew : NULL;
    int ret = 0;
    for (size_t first = 0, n; ret == 0 && first < count; first += n) {
        n = count - first < most ? count - first : most;
        struct slice slice = {deep, deep->fresh + first};
        struct crew_task task = {.job = decode_range, .arg = &slice, .count = n};
        if (n > 1)
            crew_grow(crew, walk->options->threads - 1);
        crew_start(crew, &task);
        crew_wait(crew, &task);
        ret = walk_pause(walk, 0);
    }
    return ret;
}

/* ---- what is to be decoded ---- */

static size_t range_slot(const struct deep *deep, uint64_t raw)
{
    size_t mask = deep->slot_count - 1;
    size_t i = (size_t)(raw * UINT64_C(0x9e3779b97f4a7c15) >> 32) & mask;
    while (deep->ranges[i].raw != 0 && deep->ranges[i].raw != raw)
        i = (i + 1) & mask;
    return i;
}

static void forget_ranges(struct deep *deep)
{
    memset(deep->ranges, 0, deep->slot_count * sizeof(*deep->ranges));
    deep->used = 0;
}

/* Finds the compressed entries of a table; *fresh of their ranges are new.  False: there is more to
 * decode than the file can hold, which can only be if ranges overlap. */
static bool collect(struct deep *deep, const uint8_t *bytes, size_t *count, size_t *fresh)
{
    const struct walk *walk = deep->walk;
    const struct qcow2_geometry *geo = &walk->geo;
    *count = *fresh = 0;
    for (uint32_t i = 0; i < geo->l2_entries; i++) {
        struct qcow2_l2_entry e;
        qcow2_l2_decode(geo, bytes + (size_t)i * geo->l2_entry_size, &e);
        if (e.kind != QCOW2_L2_COMPRESSED || e.bitmap ||
            check_outside(&walk->view, e.host_off, e.length))
            continue;
        uint64_t raw = e.raw & ~QCOW2_ENTRY_COPIED;
        size_t slot = range_slot(deep, raw);
        if (deep->ranges[slot].raw == 0) {
            if (deep->budget < e.length)
                return false;
            deep->budget -= e.length;
            deep->ranges[slot].raw = raw;
            deep->fresh[(*fresh)++] = &deep->ranges[slot];
            deep->used++;
        }
        deep->slots[*count] = slot;
        deep->entries[(*count)++] = i;
    }
    return true;
}

/* ---- what came out ---- */

static void show_range(
    struct deep *deep, const struct table *table, uint32_t idx, const struct range *range)
{
    struct walk *walk = deep->walk;
    const struct qcow2_geometry *geo = &walk->geo;
    struct qcow2_l2_entry e;
    decode_raw(geo, range->raw, &e);
    if (range->result == UNREAD) { /* once more, piece by piece, to say which are unreadable */
        bool complete = true;
        walk_read(walk, e.host_off, deep->decoders[0].packed, e.length, &complete);
        return;
    }
    struct subject subject = {
        .kind = OBJECT_COMPRESSED,
        .tree = table->tree,
        .has_host = true,
        .host_off = e.host_off,
        .length = e.length,
        .has_table = true,
        .table_off = table->host_off,
        .index = idx,
        .guest_off = ((uint64_t)table->l1_idx << geo->l2_bits | idx) << geo->cluster_bits,
        .guest_len = geo->cluster_size,
        .weight = table->refs,
        .compressed.result = range->result,
    };
    walk_show(walk, &subject);
}

static bool deep_place(const struct walk *walk, const void *arg, size_t item, uint64_t *host_off)
{
    const struct table *table = &walk->tables.items[item];
    (void)arg;
    *host_off = table->host_off;
    return table->has_compressed && !table->skip && !table->empty;
}

static int deep_use(
    struct walk *walk, void *arg, size_t item, size_t n, const struct io_read_req *read)
{
    struct deep *deep = arg;
    const struct table *table = &walk->tables.items[item];
    size_t count, fresh;
    (void)n;
    if (read->length == 0)
        return 0;
    if (read->result < 0)
        walk_read_again(walk, read->host_off, read->buf, read->length);
    if (deep->used + walk->geo.l2_entries > deep->slot_count / 2)
        forget_ranges(deep);
    if (!collect(deep, read->buf, &count, &fresh)) {
        report_problem(
            walk->report, "more compressed data than the file can hold: not all of it was decoded");
        deep->budget = 0;
    }
    int ret = decode_ranges(deep, fresh);
    for (size_t i = 0; ret == 0 && i < count; i++) {
        const struct range *range = &deep->ranges[deep->slots[i]];
        if (range->result == -ENOMEM)
            ret = -ENOMEM;
        else if (range->result != 0)
            show_range(deep, table, deep->entries[i], range);
    }
    return ret;
}

/* ---- all of it ---- */

/* Sound ranges share at most their last sector, so small ones add up to some times what the file
 * holds, but not to any number of times. */
static int set_budget(struct deep *deep)
{
    enum { TIMES = 32, AT_LEAST = 64 << 20 };
    struct walk *walk = deep->walk;
    uint64_t start, end, data_bytes = 0;
    int ret = 0;
    for (uint64_t at = 0; ret == 0 && at < walk->file_size; at = end) {
        ret = io_extents(walk->io, at, &start, &end);
        if (ret == 0 && start >= end)
            break;
        data_bytes += end - start;
    }
    deep->budget =
        data_bytes < UINT64_MAX / TIMES - AT_LEAST ? data_bytes * TIMES + AT_LEAST : UINT64_MAX;
    return ret;
}

static void deep_close(struct deep *deep)
{
    for (unsigned i = 0; deep->decoders && i < crew_workers(deep->walk->crew); i++) {
        codec_close(deep->decoders[i].codec);
        free(deep->decoders[i].packed);
        free(deep->decoders[i].plain);
    }
    free(deep->decoders);
    free(deep->ranges);
    free(deep->slots);
    free(deep->entries);
    free(deep->fresh);
}

static int deep_open(struct walk *walk, struct deep *deep)
{
    size_t entries = walk->geo.l2_entries;
    *deep = (struct deep){.walk = walk,
        .slot_count = entries * 4 > SLOTS_MIN ? entries * 4 : SLOTS_MIN,
        .decoders = calloc(crew_workers(walk->crew), sizeof(*deep->decoders))};
    deep->ranges = calloc(deep->slot_count, sizeof(*deep->ranges));
    deep->slots = calloc(entries, sizeof(*deep->slots));
    deep->entries = calloc(entries, sizeof(*deep->entries));
    deep->fresh = calloc(entries, sizeof(struct range *));
    if (!deep->decoders || !deep->ranges || !deep->slots || !deep->entries || !deep->fresh)
        return -ENOMEM;
    int ret = decoder_open(walk, &deep->decoders[0]);
    return ret < 0 ? ret : set_budget(deep);
}

int walk_deep(struct walk *walk)
{
    struct deep deep;
    bool any = false;
    for (size_t i = 0; i < walk->tables.count; i++)
        any |= walk->tables.items[i].has_compressed;
    if (!walk->options->deep || !any || walk->geo.data_file ||
        walk->header.compression > QCOW2_ZSTD)
        return 0;
    int ret = deep_open(walk, &deep);
    if (ret == 0) {
        struct stream stream = {
            .count = walk->tables.count, .arg = &deep, .place = deep_place, .use = deep_use};
        ret = walk_stream(walk, &stream);
    }
    deep_close(&deep);
    return ret;
}
