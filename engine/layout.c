/* SPDX-License-Identifier: MIT
 *
 * See layout.h.  Nothing is remembered from call to call: the answer comes from the tables
 * themselves, so it cannot be out of date; a walk costs one comparison per refcount block and per
 * L2 table. */
#include "layout.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "refcount.h"

static int walk_tables(const struct image *img, layout_visit *visit, void *arg)
{
    const struct qcow2_geometry *geo = &img->geo;
    for (uint64_t i = 0; i < img->refs.table_len; i++) {
        uint64_t host_off = img->refs.table[i] & QCOW2_REFTABLE_MASK;
        int ret = host_off ? visit(arg, REGION_REFBLOCK, host_off, geo->cluster_size) : 0;
        if (ret != 0)
            return ret;
    }
    return 0;
}

static int walk_snapshots(const struct image *img, layout_visit *visit, void *arg)
{
    const struct snapshot_table *snaps = &img->snaps;
    int ret = 0;
    if (snaps->count > 0)
        ret = visit(arg, REGION_SNAPSHOT_TABLE, img->header.snapshots_off, snaps->length);
    for (uint32_t i = 0; ret == 0 && i < snaps->count; i++) {
        const struct qcow2_snapshot *snap = &snaps->list[i];
        ret = visit(arg, REGION_SNAPSHOT_L1, snap->l1_off, snap->l1_size * UINT64_C(8));
    }
    return ret;
}

static int walk_bitmaps(const struct image *img, layout_visit *visit, void *arg)
{
    const struct bitmaps *bitmaps = &img->bitmaps;
    int ret = 0;
    if (bitmaps->count > 0)
        ret = visit(
            arg, REGION_BITMAP_DIRECTORY, bitmaps->ext.directory_off, bitmaps->ext.directory_size);
    for (uint32_t i = 0; ret == 0 && i < bitmaps->count; i++) {
        const struct qcow2_bitmap *entry = &bitmaps->list[i].entry;
        ret = visit(arg, REGION_BITMAP_TABLE, entry->table_off, entry->table_size * UINT64_C(8));
    }
    return ret;
}

static int walk_l2(const struct image *img, layout_visit *visit, void *arg)
{
    for (uint32_t i = 0; i < img->header.l1_size; i++) {
        uint64_t host_off = img->l1[i] & QCOW2_OFFSET_MASK;
        int ret = host_off ? visit(arg, REGION_L2, host_off, img->geo.cluster_size) : 0;
        if (ret != 0)
            return ret;
    }
    return 0;
}

/* All that an index leaves out. */
static int walk_fixed(const struct image *img, layout_visit *visit, void *arg)
{
    const struct qcow2_header *h = &img->header;
    uint64_t reftable_bytes = (uint64_t)h->reftable_clusters << h->cluster_bits;
    int ret = visit(arg, REGION_HEADER, 0, img->geo.cluster_size);
    if (ret == 0)
        ret = visit(arg, REGION_REFTABLE, h->reftable_off, reftable_bytes);
    if (ret == 0 && h->l1_size > 0)
        ret = visit(arg, REGION_L1, h->l1_off, h->l1_size * UINT64_C(8));
    if (ret == 0)
        ret = walk_snapshots(img, visit, arg);
    if (ret == 0)
        ret = walk_bitmaps(img, visit, arg);
    return ret;
}

int layout_walk(const struct image *img, bool with_l2, layout_visit *visit, void *arg)
{
    int ret = walk_fixed(img, visit, arg);
    if (ret == 0)
        ret = walk_tables(img, visit, arg);
    if (ret == 0 && with_l2)
        ret = walk_l2(img, visit, arg);
    return ret;
}

struct overlap {
    enum region own;
    uint64_t host_off, length;
};

static int find_overlap(void *arg, enum region region, uint64_t host_off, uint64_t length)
{
    const struct overlap *o = arg;
    if (region == o->own || !ranges_overlap(host_off, length, o->host_off, o->length))
        return 0;
    return (int)region;
}

/* ---- the index: offsets in order, their last bits the region ------------------------------- */

static int count_one(void *arg, enum region region, uint64_t host_off, uint64_t length)
{
    (void)region, (void)host_off, (void)length;
    ++*(size_t *)arg;
    return 0;
}

static int note_one(void *arg, enum region region, uint64_t host_off, uint64_t length)
{
    struct image *img = arg;
    (void)length;
    img->layout_index[img->layout_count++] = (host_off & QCOW2_OFFSET_MASK) | region;
    return 0;
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

void layout_index_build(struct image *img)
{
    size_t count = 0;
    (void)walk_tables(img, count_one, &count);
    (void)walk_l2(img, count_one, &count);
    img->layout_count = 0;
    img->layout_index = malloc(count * sizeof(*img->layout_index) + 1);
    if (!img->layout_index)
        return;
    (void)walk_tables(img, note_one, img);
    (void)walk_l2(img, note_one, img);
    qsort(img->layout_index, count, sizeof(*img->layout_index), ascending);
}

void layout_index_drop(struct image *img)
{
    free(img->layout_index);
    img->layout_index = NULL;
}

static enum region index_overlap(const struct image *img, const struct overlap *o)
{
    uint64_t size = img->geo.cluster_size, from = o->host_off < size ? 0 : o->host_off - size;
    size_t low = 0, high = img->layout_count;
    while (low < high) { /* the first that begins behind `from` or there */
        size_t middle = low + (high - low) / 2;
        if ((img->layout_index[middle] & QCOW2_OFFSET_MASK) < from)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < img->layout_count; low++) {
        uint64_t host_off = img->layout_index[low] & QCOW2_OFFSET_MASK;
        enum region region = (enum region)(img->layout_index[low] & 0xff);
        if (host_off > o->host_off && host_off - o->host_off >= o->length)
            break;
        if (region != o->own && ranges_overlap(host_off, size, o->host_off, o->length))
            return region;
    }
    return REGION_NONE;
}

enum region layout_overlap(
    const struct image *img, enum region own, uint64_t host_off, uint64_t length)
{
    struct overlap o = {own, host_off, length};
    if (!img->layout_index)
        return (enum region)layout_walk(img, true, find_overlap, &o);
    enum region hit = (enum region)walk_fixed(img, find_overlap, &o);
    return hit != REGION_NONE ? hit : index_overlap(img, &o);
}

enum region layout_overlap_fixed(const struct image *img, uint64_t host_off, uint64_t length)
{
    struct overlap o = {REGION_NONE, host_off, length};
    return (enum region)layout_walk(img, false, find_overlap, &o);
}

const char *layout_name(enum region region)
{
    static const char *const names[] = {
        [REGION_NONE] = "nothing",
        [REGION_HEADER] = "the header",
        [REGION_REFTABLE] = "the refcount table",
        [REGION_REFBLOCK] = "a refcount block",
        [REGION_L1] = "the L1 table",
        [REGION_SNAPSHOT_TABLE] = "the snapshot table",
        [REGION_SNAPSHOT_L1] = "the L1 table of a snapshot",
        [REGION_BITMAP_DIRECTORY] = "the bitmap directory",
        [REGION_BITMAP_TABLE] = "a bitmap table",
        [REGION_L2] = "an L2 table",
    };
    return names[region];
}

static int check_counted(void *arg, enum region region, uint64_t host_off, uint64_t length)
{
    struct image *img = arg;
    uint64_t first = cluster_of(&img->geo, host_off);
    uint64_t last = cluster_of(&img->geo, host_off + length - 1);
    for (uint64_t i = first; length > 0 && i <= last; i++) {
        if (refcount_staged_free(img, i))
            return image_fail(img, -EUCLEAN,
                "%s at 0x%" PRIx64 " shares a cluster with what is being freed; run qcheck",
                layout_name(region), host_off);
    }
    return 0;
}

int layout_check_counted(struct image *img)
{
    return layout_walk(img, true, check_counted, img);
}

int layout_check_range(struct image *img, const char *what, uint64_t host_off, uint64_t length)
{
    uint64_t end, file_end = clusters_for(&img->geo, img->file_size) << img->geo.cluster_bits;
    if (!cluster_aligned(&img->geo, host_off) || host_off == 0)
        return image_fail(
            img, -EUCLEAN, "%s has the bad offset 0x%" PRIx64 "; run qcheck", what, host_off);
    if (!range_end(host_off, length, &end) || end > file_end)
        return image_fail(img, -EUCLEAN,
            "%s at 0x%" PRIx64 " passes the end of the file; run qcheck", what, host_off);
    return 0;
}
