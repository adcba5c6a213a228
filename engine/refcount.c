/* SPDX-License-Identifier: MIT
 *
 * See refcount.h.  Growth of blocks and table is in refgrow.c. */
#include "refcount.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "layout.h"

enum {
    KEEP_BLOCK_BYTES = 4 << 20, /* loaded blocks that may stay between two calls */
    MANY_BLOCKS = 64,           /* from here on an index of the layout pays */
    FREED_RUNS_MAX = 1 << 16,   /* more are freed all the same, but not discarded */
};

int refcount_load(struct image *img)
{
    const struct qcow2_header *h = &img->header;
    uint64_t bytes = (uint64_t)h->reftable_clusters << h->cluster_bits;
    if (bytes == 0 || bytes > QCOW2_MAX_REFTABLE_BYTES)
        return image_fail(img, -EUCLEAN, "the refcount table has %" PRIu32 " clusters; run qcheck",
            h->reftable_clusters);
    int ret = layout_check_range(img, "the refcount table", h->reftable_off, bytes);
    uint64_t *table = NULL;
    if (ret == 0)
        ret = image_read_words(img, h->reftable_off, bytes / 8, &table);
    if (ret < 0)
        return ret;
    struct refblock *blocks = calloc(bytes / 8, sizeof(*blocks));
    if (!blocks) {
        free(table);
        return image_no_memory(img);
    }
    img->refs = (struct refcounts){.table = table, .table_len = bytes / 8, .blocks = blocks};
    return 0;
}

void refcount_release(struct image *img)
{
    struct refcounts *refs = &img->refs;
    for (uint64_t i = 0; refs->loaded > 0 && i < refs->table_len; i++) {
        refs->loaded -= refs->blocks[i].bytes != NULL;
        free(refs->blocks[i].bytes);
    }
    free(refs->table);
    free(refs->blocks);
    free(refs->freed.list);
    *refs = (struct refcounts){0};
}

static void unload(struct refcounts *refs, uint64_t idx)
{
    struct refblock *block = &refs->blocks[idx];
    refs->loaded -= block->bytes != NULL;
    free(block->bytes);
    block->bytes = NULL;
    block->staged = false;
}

/* Blocks that say nothing but what the device says can be read again. */
static void unload_unchanged(struct image *img)
{
    struct refcounts *refs = &img->refs;
    if (refs->loaded << img->geo.cluster_bits < img->refblock_bytes)
        return;
    for (uint64_t i = 0; i < refs->table_len; i++) {
        if (!refs->blocks[i].staged)
            unload(refs, i);
    }
}

/* The block `idx`, loaded; until the next one is; NULL where the table has none. */
static int load_block(struct image *img, uint64_t idx, struct refblock **out)
{
    struct refcounts *refs = &img->refs;
    *out = NULL;
    if (idx >= refs->table_len || refs->table[idx] == 0)
        return 0;
    struct refblock *block = &refs->blocks[idx];
    *out = block;
    if (block->bytes)
        return 0;
    uint64_t entry = refs->table[idx], host_off = entry & QCOW2_REFTABLE_MASK;
    if (entry & QCOW2_REFTABLE_RSVD)
        return image_fail(img, -EUCLEAN,
            "refcount table entry %" PRIu64 " has reserved bits set; run qcheck", idx);
    int ret = layout_check_range(img, "a refcount block", host_off, img->geo.cluster_size);
    if (ret < 0)
        return ret;
    unload_unchanged(img);
    uint8_t *bytes = malloc(img->geo.cluster_size);
    if (!bytes)
        return image_no_memory(img);
    ret = io_read_padded(img->io, host_off, bytes, img->geo.cluster_size);
    if (ret < 0) {
        free(bytes);
        return image_fail(img, ret, "cannot read the refcount block at 0x%" PRIx64 ": %s", host_off,
            strerror(-ret));
    }
    block->bytes = bytes;
    refs->loaded++;
    return 0;
}

int refcount_get(struct image *img, uint64_t cluster, uint64_t *count)
{
    const struct qcow2_geometry *geo = &img->geo;
    struct refblock *block;
    int ret = load_block(img, cluster >> geo->refblock_bits, &block);
    if (ret < 0)
        return ret;
    uint64_t idx = cluster & (geo->refblock_entries - 1);
    *count = block ? qcow2_refcount_get(block->bytes, geo->refcount_order, idx) : 0;
    return 0;
}

int refcount_ones(struct image *img, uint64_t first, uint64_t count, uint64_t *same, bool *one)
{
    const struct qcow2_geometry *geo = &img->geo;
    uint64_t idx = first & (geo->refblock_entries - 1), room = geo->refblock_entries - idx, i = 1;
    struct refblock *block;
    int ret = load_block(img, first >> geo->refblock_bits, &block);
    if (ret < 0)
        return ret;
    count = count < room ? count : room;
    *same = count;
    *one = block && qcow2_refcount_get(block->bytes, geo->refcount_order, idx) == 1;
    if (!block)
        return 0;
    if (geo->refcount_order == 4) {
        for (; i < count && (load_be16(block->bytes + (idx + i) * 2) == 1) == *one; i++)
            ;
    } else {
        while (i < count &&
               (qcow2_refcount_get(block->bytes, geo->refcount_order, idx + i) == 1) == *one)
            i++;
    }
    *same = i;
    return 0;
}

bool refcount_staged_free(const struct image *img, uint64_t cluster)
{
    const struct qcow2_geometry *geo = &img->geo;
    uint64_t idx = cluster >> geo->refblock_bits;
    if (idx >= img->refs.table_len || !img->refs.blocks[idx].bytes)
        return false;
    return qcow2_refcount_get(img->refs.blocks[idx].bytes, geo->refcount_order,
               cluster & (geo->refblock_entries - 1)) == 0;
}

static int bad_count(struct image *img, uint64_t cluster, int err)
{
    uint64_t host_off = cluster << img->geo.cluster_bits;
    if (err == -EOVERFLOW)
        return image_fail(img, err,
            "the refcount of the cluster at 0x%" PRIx64 " does not fit %u bits: too many snapshots",
            host_off, 1u << img->geo.refcount_order);
    return image_fail(img, err,
        "the cluster at 0x%" PRIx64 " is in use but its refcount is 0; run qcheck --repair",
        host_off);
}

static void note_freed(struct refcounts *refs, uint64_t cluster)
{
    if (refs->freed.count < FREED_RUNS_MAX)
        (void)runs_add(&refs->freed, cluster, 1); /* out of memory: freed, not discarded */
    if (cluster < refs->free_hint)
        refs->free_hint = cluster;
}

/* The usual width, as far as nothing needs a second look: no overflow, nothing in use at 0, nothing
 * that becomes free.  Returns how many were done. */
static uint64_t add_plain16(uint8_t *counts, uint64_t count, int delta)
{
    for (uint64_t i = 0; i < count; i++) {
        unsigned value = load_be16(counts + i * 2);
        if (value == 0 || value == UINT16_MAX || (int)value + delta == 0)
            return i;
        store_be16(counts + i * 2, (uint16_t)((int)value + delta));
    }
    return count;
}

static int add_in_block(struct image *img, struct refblock *block, uint64_t cluster, uint64_t count,
    int delta, uint64_t *done)
{
    const struct qcow2_geometry *geo = &img->geo;
    unsigned order = geo->refcount_order;
    uint64_t idx = cluster & (geo->refblock_entries - 1);
    block->staged = true;
    uint64_t plain = order == 4 ? add_plain16(block->bytes + idx * 2, count, delta) : 0;
    *done += plain;
    for (uint64_t i = plain; i < count; i++, ++*done) {
        uint64_t value = qcow2_refcount_get(block->bytes, order, idx + i);
        if (value == 0 || (delta > 0 && value == geo->refcount_max))
            return bad_count(img, cluster + i, value == 0 ? -EUCLEAN : -EOVERFLOW);
        value = delta > 0 ? value + 1 : value - 1;
        qcow2_refcount_set(block->bytes, order, idx + i, value);
        if (value == 0)
            note_freed(&img->refs, cluster + i);
    }
    return 0;
}

/* Makes room for one more block: what is staged goes to the device.  Blocks that a failed write
 * left half-written stay. */
static int make_room(struct image *img)
{
    struct refcounts *refs = &img->refs;
    if (refs->loaded << img->geo.cluster_bits < img->refblock_bytes)
        return 0;
    return refcount_write(img); /* they are unchanged then, and go when the next one is read */
}

static int add_piece(
    struct image *img, uint64_t first, uint64_t count, int delta, bool spill, uint64_t *done)
{
    struct refcounts *refs = &img->refs;
    uint64_t idx = first >> img->geo.refblock_bits;
    struct refblock *block = idx < refs->table_len ? &refs->blocks[idx] : NULL;
    if (refs->undoing && (!block || !block->attempted)) {
        *done += count;
        return 0;
    }
    int ret = spill && block && !block->bytes ? make_room(img) : 0;
    if (ret == 0)
        ret = load_block(img, idx, &block);
    if (ret < 0)
        return ret;
    return block ? add_in_block(img, block, first, count, delta, done)
                 : bad_count(img, first, -EUCLEAN);
}

static int add(
    struct image *img, uint64_t first, uint64_t count, int delta, bool spill, uint64_t *done)
{
    int ret = 0;
    while (ret == 0 && count > 0) {
        uint64_t entries = img->geo.refblock_entries;
        uint64_t room = entries - (first & (entries - 1)), piece = count < room ? count : room;
        ret = add_piece(img, first, piece, delta, spill, done);
        first += piece, count -= piece;
    }
    return ret;
}

int refcount_add(struct image *img, uint64_t first, uint64_t count, int delta)
{
    uint64_t done = 0;
    return add(img, first, count, delta, false, &done);
}

int refcount_add_tree(struct image *img, uint64_t first, uint64_t count, int delta, uint64_t *done)
{
    return add(img, first, count, delta, true, done);
}

static int stage_new(struct image *img, uint64_t first, uint64_t count)
{
    const struct qcow2_geometry *geo = &img->geo;
    for (uint64_t i = first; i < first + count; i++) {
        struct refblock *block;
        int ret = load_block(img, i >> geo->refblock_bits, &block);
        if (ret < 0 || !block) /* it was there when the cluster was found free */
            return ret < 0 ? ret : bad_count(img, i, -EUCLEAN);
        qcow2_refcount_set(block->bytes, geo->refcount_order, i & (geo->refblock_entries - 1), 1);
        block->staged = true;
    }
    return 0;
}

int refcount_alloc(struct image *img, uint64_t count, uint64_t *host_off)
{
    const struct qcow2_geometry *geo = &img->geo;
    uint64_t at = img->refs.free_hint, run = 0, lowest_free = UINT64_MAX;
    uint64_t limit = UINT64_C(1) << (56 - geo->cluster_bits); /* what an entry can point to */
    while (run < count) {
        struct refblock *block;
        uint64_t idx = at >> geo->refblock_bits;
        if (at >= limit)
            return image_fail(img, -EFBIG, "no free cluster below the format's limit");
        int ret = load_block(img, idx, &block);
        if (ret == 0 && !block) {
            ret = refcount_cover(img, idx, count);
            run = 0;
        } else if (ret == 0) {
            uint64_t entry = at & (geo->refblock_entries - 1);
            bool is_free = qcow2_refcount_get(block->bytes, geo->refcount_order, entry) == 0;
            if (is_free && lowest_free == UINT64_MAX)
                lowest_free = at;
            run = is_free ? run + 1 : 0;
            at++;
        }
        if (ret < 0)
            return ret;
    }
    uint64_t first = at - count;
    enum region hit =
        layout_overlap(img, REGION_NONE, first << geo->cluster_bits, count << geo->cluster_bits);
    if (hit != REGION_NONE)
        return image_fail(img, -EUCLEAN,
            "%s stands on a cluster counted as free near 0x%" PRIx64 "; run qcheck --repair",
            layout_name(hit), first << geo->cluster_bits);
    int ret = stage_new(img, first, count);
    if (ret < 0)
        return ret;
    img->refs.free_hint = lowest_free == first ? at : lowest_free;
    *host_off = first << geo->cluster_bits;
    return 0;
}

static int write_staged(struct image *img)
{
    struct refcounts *refs = &img->refs;
    int ret = 0;
    for (uint64_t i = 0; ret == 0 && i < refs->table_len; i++) {
        struct refblock *block = &refs->blocks[i];
        if (!block->staged)
            continue;
        block->attempted = true;
        ret = image_write_meta(img, REGION_REFBLOCK, refs->table[i] & QCOW2_REFTABLE_MASK,
            block->bytes, img->geo.cluster_size);
        block->staged = ret < 0; /* half written: still to be forgotten */
    }
    return ret;
}

int refcount_write(struct image *img)
{
    struct refcounts *refs = &img->refs;
    bool many = refs->loaded >= MANY_BLOCKS;
    int ret = refs->freed.count > 0 ? layout_check_counted(img) : 0;
    if (many)
        layout_index_build(img);
    if (ret == 0)
        ret = write_staged(img);
    if (many)
        layout_index_drop(img);
    if (ret < 0)
        return ret;
    for (size_t i = 0; i < refs->freed.count; i++) {
        struct cluster_run run = refs->freed.list[i];
        (void)io_discard(
            img->io, run.first << img->geo.cluster_bits, run.count << img->geo.cluster_bits);
    }
    refs->freed.count = 0;
    return 0;
}

void refcount_forget(struct image *img)
{
    struct refcounts *refs = &img->refs;
    for (uint64_t i = 0; i < refs->table_len; i++) {
        if (refs->blocks[i].staged)
            unload(refs, i);
    }
    refs->freed.count = 0;
    refs->free_hint = 0;
}

bool refcount_undo(struct image *img)
{
    struct refcounts *refs = &img->refs;
    for (uint64_t i = 0; i < refs->table_len; i++) {
        if (refs->blocks[i].attempted)
            refs->undoing = true;
        else if (refs->blocks[i].staged)
            unload(refs, i);
    }
    refs->freed.count = 0;
    return refs->undoing;
}

void refcount_trim(struct image *img)
{
    struct refcounts *refs = &img->refs;
    bool all = refs->loaded << img->geo.cluster_bits > KEEP_BLOCK_BYTES;
    refs->undoing = false;
    for (uint64_t i = 0; i < refs->table_len; i++) {
        refs->blocks[i].attempted = false;
        if (all && !refs->blocks[i].staged)
            unload(refs, i);
    }
}
