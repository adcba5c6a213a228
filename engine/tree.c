/* SPDX-License-Identifier: MIT
 *
 * See tree.h.  These loops see every cluster of an image: neighbours are counted together. */
#include "tree.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "layout.h"
#include "map.h"
#include "refcount.h"

/* Each index has a table of its own: more of them than clusters are one again and again, and would
 * be read that often. */
static int check_tables(struct image *img, const struct tree *tree)
{
    uint64_t tables = 0;
    for (uint32_t i = 0; i < tree->l1_size; i++)
        tables += (tree->l1[i] & QCOW2_OFFSET_MASK) != 0;
    return tables <= clusters_for(&img->geo, img->file_size)
               ? 0
               : image_fail(
                     img, -EUCLEAN, "an L1 table names more tables than there are; run qcheck");
}

int tree_init(struct image *img, const uint64_t *l1, uint32_t l1_size, struct tree *tree)
{
    *tree = (struct tree){
        .l1 = l1, .l1_size = l1_size, .copied = calloc(1, l1_size / 8 + 1), .limit = UINT64_MAX};
    return tree->copied ? check_tables(img, tree) : image_no_memory(img);
}

void tree_release(struct tree *tree)
{
    free(tree->copied);
    tree->copied = NULL;
}

/* Both trees hold this L2 table at this place: what one gains the other loses.  COPIED there would
 * be a lie, then nothing is skipped and the lie is mended. */
static bool shared(const struct tree *tree, uint32_t idx)
{
    const struct tree *other = tree->other;
    return other && idx < other->l1_size && !(tree->l1[idx] & QCOW2_ENTRY_COPIED) &&
           !(other->l1[idx] & QCOW2_ENTRY_COPIED) && tree->l1[idx] == other->l1[idx];
}

/* A walk over a tree: neighbours wait in `run` to be counted together. */
struct walk {
    struct image *img;
    struct tree *tree;
    int delta;
    struct cluster_run run;
    uint8_t *l2, *other; /* a table, and the other tree's at the same index */
    bool has_other;
};

static int run_end(struct walk *walk)
{
    struct tree *tree = walk->tree;
    uint64_t left = tree->limit - tree->done, count = walk->run.count;
    count = count < left ? count : left;
    walk->run.count = 0;
    return count > 0
               ? refcount_add_tree(walk->img, walk->run.first, count, walk->delta, &tree->done)
               : 0;
}

static int run_extend(struct walk *walk, uint64_t first, uint64_t count)
{
    struct cluster_run *run = &walk->run;
    if (run->count > 0 && run->first + run->count == first) {
        run->count += count;
        return 0;
    }
    int ret = run_end(walk);
    *run = (struct cluster_run){first, count};
    return ret;
}

/* The other tree holds the same reference at the same place.  COPIED does not count: it is cleared
 * in one tree between its walk and that of the other. */
static bool entry_shared(const struct walk *walk, size_t at, uint64_t raw)
{
    return walk->has_other && ((load_be64(walk->other + at) ^ raw) & ~QCOW2_ENTRY_COPIED) == 0;
}

/* The entry's clusters.  What nearly all entries are, a plain cluster in the file, is seen without
 * decoding; all else goes the long way, which also finds what is wrong. */
static int add_entry(struct walk *walk, uint32_t idx, uint64_t raw)
{
    struct image *img = walk->img;
    const struct qcow2_geometry *geo = &img->geo;
    uint64_t host_off = raw & ~QCOW2_ENTRY_COPIED;
    bool skip = entry_shared(walk, (size_t)idx * geo->l2_entry_size, raw);
    if (!geo->extended_l2 && host_off && cluster_aligned(geo, host_off) &&
        host_off < img->file_size)
        return skip ? 0 : run_extend(walk, cluster_of(geo, host_off), 1);
    struct qcow2_l2_entry entry;
    int ret = map_entry(img, walk->l2, idx, &entry);
    if (ret < 0 || skip)
        return ret;
    struct cluster_run clusters = map_entry_clusters(geo, &entry);
    return clusters.count ? run_extend(walk, clusters.first, clusters.count) : 0;
}

/* How many entries from `idx` on are plain clusters in the file, each the neighbour of the one
 * before; 0 where entries have to be looked at one by one. */
static uint32_t plain_run(const struct walk *walk, uint32_t idx, uint64_t raw, bool *copied)
{
    const struct qcow2_geometry *geo = &walk->img->geo;
    uint64_t host_off = raw & ~QCOW2_ENTRY_COPIED, end = walk->img->file_size, any = 0;
    uint32_t i = idx;
    if (geo->extended_l2 || walk->has_other || host_off == 0 || !cluster_aligned(geo, host_off))
        return 0;
    while (host_off < end) {
        any |= raw;
        if (++i == geo->l2_entries)
            break;
        raw = load_be64(walk->l2 + (size_t)i * 8);
        host_off += geo->cluster_size;
        if ((raw & ~QCOW2_ENTRY_COPIED) != host_off)
            break;
    }
    *copied |= any >> 63;
    return i - idx;
}

static int add_table(struct walk *walk, bool *copied)
{
    const struct qcow2_geometry *geo = &walk->img->geo;
    for (uint32_t i = 0; i < geo->l2_entries; i++) {
        uint64_t raw = load_be64(walk->l2 + (size_t)i * geo->l2_entry_size);
        if (raw == 0 && !geo->extended_l2)
            continue;
        *copied |= raw >> 63;
        uint32_t same = plain_run(walk, i, raw, copied);
        int ret = same > 0 ? run_extend(walk, cluster_of(geo, raw & QCOW2_OFFSET_MASK), same)
                           : add_entry(walk, i, raw);
        if (ret < 0)
            return ret;
        i += same > 0 ? same - 1 : 0;
    }
    return 0;
}

static int read_other(struct walk *walk, uint32_t idx)
{
    const struct tree *other = walk->tree->other;
    walk->has_other = other && idx < other->l1_size && other->l1[idx] & QCOW2_OFFSET_MASK;
    return walk->has_other ? map_read_l2(walk->img, other->l1[idx], walk->other) : 0;
}

/* What hangs on one L1 index. */
static int add_below(struct walk *walk, uint32_t idx)
{
    struct tree *tree = walk->tree;
    bool copied = false;
    int ret = map_read_l2(walk->img, tree->l1[idx], walk->l2);
    if (ret == 0)
        ret = read_other(walk, idx);
    if (ret == 0)
        ret = run_extend(walk, cluster_of(&walk->img->geo, tree->l1[idx] & QCOW2_OFFSET_MASK), 1);
    if (ret == 0)
        ret = add_table(walk, &copied);
    if (copied)
        tree->copied[idx / 8] |= (uint8_t)(1u << (idx % 8));
    return ret;
}

int tree_add(struct image *img, struct tree *tree, int delta)
{
    struct walk walk = {.img = img, .tree = tree, .delta = delta};
    walk.l2 = malloc(img->geo.cluster_size);
    walk.other = tree->other ? malloc(img->geo.cluster_size) : NULL;
    int ret = walk.l2 && (walk.other || !tree->other) ? 0 : image_no_memory(img);
    tree->done = 0;
    for (uint32_t i = 0; ret == 0 && i < tree->l1_size && tree->done < tree->limit; i++) {
        if (tree->l1[i] & QCOW2_OFFSET_MASK && !shared(tree, i))
            ret = add_below(&walk, i);
    }
    if (ret == 0)
        ret = run_end(&walk);
    free(walk.l2);
    free(walk.other);
    return ret;
}

int tree_clear_copied(struct image *img, const struct tree *tree)
{
    const struct qcow2_geometry *geo = &img->geo;
    uint8_t *l2 = malloc(geo->cluster_size);
    int ret = l2 ? 0 : image_no_memory(img);
    layout_index_build(img);
    for (uint32_t i = 0; ret == 0 && i < tree->l1_size; i++) {
        if (!(tree->copied[i / 8] >> (i % 8) & 1))
            continue;
        ret = map_read_l2(img, tree->l1[i], l2);
        if (ret < 0)
            break;
        for (uint32_t j = 0; j < geo->l2_entries; j++)
            l2[(size_t)j * geo->l2_entry_size] &= 0x7f;
        ret = image_write_meta(
            img, REGION_L2, tree->l1[i] & QCOW2_OFFSET_MASK, l2, geo->cluster_size);
    }
    layout_index_drop(img);
    free(l2);
    return ret;
}

/* ---- setting COPIED ------------------------------------------------------------------------ */

/* The cluster an entry may get COPIED for; 0 for none. */
static uint64_t plain_cluster(const struct qcow2_geometry *geo, const uint8_t *entry)
{
    uint64_t raw = load_be64(entry);
    return raw & (QCOW2_ENTRY_COPIED | QCOW2_ENTRY_COMPRESSED)
               ? 0
               : cluster_of(geo, raw & QCOW2_OFFSET_MASK);
}

/* Entries [from, to) point to the neighbours from `cluster` on. */
static int set_in_run(
    struct image *img, uint8_t *l2, uint32_t from, uint32_t to, uint64_t cluster, bool *changed)
{
    size_t size = img->geo.l2_entry_size;
    while (from < to) {
        uint64_t same;
        bool one;
        int ret = refcount_ones(img, cluster, to - from, &same, &one);
        if (ret < 0)
            return ret;
        cluster += same;
        for (uint32_t end = from + (uint32_t)same; from < end; from++)
            l2[from * size] |= one ? 0x80 : 0;
        *changed |= one;
    }
    return 0;
}

static int set_in_table(struct image *img, uint8_t *l2, bool *changed)
{
    const struct qcow2_geometry *geo = &img->geo;
    size_t size = geo->l2_entry_size;
    int ret = 0;
    *changed = false;
    for (uint32_t i = 0, next; ret == 0 && i < geo->l2_entries; i = next) {
        uint64_t first = plain_cluster(geo, l2 + i * size);
        next = i + 1;
        if (first == 0)
            continue;
        while (next < geo->l2_entries && plain_cluster(geo, l2 + next * size) == first + next - i)
            next++;
        ret = set_in_run(img, l2, i, next, first, changed);
    }
    return ret;
}

/* One L1 index: the table's entries, then, if the table is ours alone, the L1 entry. */
static int set_below(struct image *img, uint32_t idx, uint8_t *l2, bool *l1_changed)
{
    uint64_t host_off = img->l1[idx] & QCOW2_OFFSET_MASK, count;
    bool changed;
    int ret = refcount_get(img, cluster_of(&img->geo, host_off), &count);
    if (ret < 0 || count != 1) /* shared: then all below it is, too */
        return ret;
    ret = map_read_l2(img, img->l1[idx], l2);
    if (ret == 0)
        ret = set_in_table(img, l2, &changed);
    if (ret == 0 && changed)
        ret = image_write_meta(img, REGION_L2, host_off, l2, img->geo.cluster_size);
    if (ret == 0 && !(img->l1[idx] & QCOW2_ENTRY_COPIED)) {
        img->l1[idx] |= QCOW2_ENTRY_COPIED;
        *l1_changed = true;
    }
    return ret;
}

static int write_active_l1(struct image *img)
{
    size_t bytes = img->header.l1_size * (size_t)8;
    uint8_t *table = malloc(bytes);
    if (!table)
        return image_no_memory(img);
    for (uint32_t i = 0; i < img->header.l1_size; i++)
        store_be64(table + i * (size_t)8, img->l1[i]);
    int ret = image_write_meta(img, REGION_L1, img->header.l1_off, table, bytes);
    free(table);
    return ret;
}

int tree_set_copied(struct image *img, const struct tree *gone)
{
    bool l1_changed = false;
    uint8_t *l2 = malloc(img->geo.cluster_size);
    int ret = l2 ? 0 : image_no_memory(img);
    layout_index_build(img);
    for (uint32_t i = 0; ret == 0 && i < img->header.l1_size && i < gone->l1_size; i++) {
        if (img->l1[i] & QCOW2_OFFSET_MASK && gone->l1[i] & QCOW2_OFFSET_MASK)
            ret = set_below(img, i, l2, &l1_changed);
    }
    layout_index_drop(img);
    free(l2);
    if (ret == 0 && l1_changed)
        ret = write_active_l1(img);
    img->stale |= ret < 0; /* the L1 in memory may be ahead */
    return ret;
}

int tree_clear_copied_l1(struct image *img)
{
    bool changed = false;
    for (uint32_t i = 0; i < img->header.l1_size; i++) {
        changed |= img->l1[i] >> 63;
        img->l1[i] &= ~QCOW2_ENTRY_COPIED;
    }
    return changed ? write_active_l1(img) : 0;
}

int tree_write_l1(struct image *img, const uint64_t *l1, uint32_t l1_size, uint64_t *host_off)
{
    uint64_t clusters = clusters_for(&img->geo, l1_size * UINT64_C(8));
    size_t bytes = (size_t)(clusters << img->geo.cluster_bits);
    *host_off = 0;
    if (l1_size == 0)
        return 0;
    uint8_t *table = calloc(1, bytes);
    if (!table)
        return image_no_memory(img);
    for (uint32_t i = 0; i < l1_size; i++)
        store_be64(table + i * (size_t)8, l1[i] & QCOW2_OFFSET_MASK);
    int ret = refcount_alloc(img, clusters, host_off);
    if (ret == 0)
        ret = image_write_meta(img, REGION_NONE, *host_off, table, bytes);
    free(table);
    return ret;
}
