/* SPDX-License-Identifier: MIT
 *
 * New refcount blocks, and a larger refcount table.
 *
 * New blocks lie at the start of the range they cover, the new table right behind them, so all
 * these clusters are counted by the new blocks themselves: nothing else has to be written for them,
 * and a block's own count is there as soon as the block can be reached. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "layout.h"
#include "refcount.h"

struct growth {
    uint64_t idx, blocks;           /* new blocks: indexes [idx, idx + blocks) */
    uint64_t table_clusters;        /* of the new table behind them; 0: the old one has room */
    uint64_t host_off;              /* of the first new block */
    uint8_t *bytes;                 /* blocks, then table, as they go to the device */
    uint64_t *table;                /* the new table in memory */
    struct refblock *loaded_blocks; /* and its blocks */
};

/* How many blocks, and how large a table, so that `count` clusters in a row stay free. */
static int plan(struct image *img, uint64_t count, struct growth *g)
{
    const struct qcow2_geometry *geo = &img->geo;
    const struct refcounts *refs = &img->refs;
    uint64_t per_block = geo->refblock_entries, absent = 0;
    g->blocks = count > 0 ? div_up(count, per_block - 1) : 1;
    while (absent < g->blocks && g->idx + absent < refs->table_len &&
           refs->table[g->idx + absent] == 0)
        absent++;
    if (g->idx + absent < refs->table_len) { /* there is room in the table, or a block behind */
        g->blocks = absent < g->blocks ? absent : g->blocks;
        return 0;
    }
    if (g->idx + g->blocks <= refs->table_len)
        return 0;
    for (;;) {
        uint64_t len = refs->table_len + refs->table_len / 2;
        len = len < g->idx + g->blocks ? g->idx + g->blocks : len;
        g->table_clusters = clusters_for(geo, len * 8);
        uint64_t blocks = div_up(count + g->table_clusters, per_block - 1);
        if (blocks <= g->blocks)
            break;
        g->blocks = blocks;
    }
    if (g->table_clusters << geo->cluster_bits > QCOW2_MAX_REFTABLE_BYTES)
        return image_fail(img, -EFBIG, "the refcount table cannot grow further: image too large");
    return 0;
}

static void count_own_clusters(const struct qcow2_geometry *geo, struct growth *g)
{
    for (uint64_t i = 0; i < g->blocks + g->table_clusters; i++) {
        uint8_t *block = g->bytes + ((i >> geo->refblock_bits) << geo->cluster_bits);
        qcow2_refcount_set(block, geo->refcount_order, i & (geo->refblock_entries - 1), 1);
    }
}

/* The table as it will be, in memory and behind the blocks in g->bytes. */
static int make_table(struct image *img, struct growth *g)
{
    const struct qcow2_geometry *geo = &img->geo;
    const struct refcounts *refs = &img->refs;
    uint64_t len = (g->table_clusters << geo->cluster_bits) / 8;
    g->table = calloc(len, sizeof(*g->table));
    g->loaded_blocks = calloc(len, sizeof(*g->loaded_blocks));
    if (!g->table || !g->loaded_blocks)
        return image_no_memory(img);
    memcpy(g->table, refs->table, refs->table_len * sizeof(*g->table));
    memcpy(g->loaded_blocks, refs->blocks, refs->table_len * sizeof(*refs->blocks));
    for (uint64_t i = 0; i < g->blocks; i++)
        g->table[g->idx + i] = g->host_off + (i << geo->cluster_bits);
    uint8_t *dst = g->bytes + (g->blocks << geo->cluster_bits);
    for (uint64_t i = 0; i < len; i++)
        store_be64(dst + i * 8, g->table[i]);
    return 0;
}

/* The new blocks become reachable in the table that is there. */
static int link_blocks(struct image *img, const struct growth *g)
{
    struct refcounts *refs = &img->refs;
    uint8_t *entries = malloc((size_t)g->blocks * 8);
    if (!entries)
        return image_no_memory(img);
    for (uint64_t i = 0; i < g->blocks; i++)
        store_be64(entries + i * 8, g->host_off + (i << img->geo.cluster_bits));
    int ret = image_write_meta(img, REGION_REFTABLE, img->header.reftable_off + g->idx * 8, entries,
        (size_t)g->blocks * 8);
    free(entries);
    if (ret < 0) {
        img->stale = true; /* which entries are there? */
        return ret;
    }
    for (uint64_t i = 0; i < g->blocks; i++)
        refs->table[g->idx + i] = g->host_off + (i << img->geo.cluster_bits);
    return 0;
}

/* The new table replaces the old one by one write of header bytes 48..59. */
static int switch_table(struct image *img, struct growth *g)
{
    struct qcow2_header *h = &img->header;
    uint64_t table_off = g->host_off + (g->blocks << img->geo.cluster_bits);
    uint8_t fields[12];
    store_be64(fields, table_off);
    store_be32(fields + 8, (uint32_t)g->table_clusters);
    int ret = image_write_header(img, QCOW2_HDR_REFTABLE_OFF, fields, sizeof(fields));
    /* Durable before the old table can be given up, and before counts go to blocks that only the
     * new table reaches. */
    if (ret == 0)
        ret = image_barrier(img);
    if (ret < 0) {
        img->stale = true; /* which table is it? */
        return ret;
    }
    struct refcounts *refs = &img->refs;
    uint64_t old_off = h->reftable_off, old_clusters = h->reftable_clusters;
    h->reftable_off = table_off;
    h->reftable_clusters = (uint32_t)g->table_clusters;
    free(refs->table);
    free(refs->blocks);
    refs->table = g->table;
    refs->blocks = g->loaded_blocks;
    refs->table_len = (g->table_clusters << img->geo.cluster_bits) / 8;
    g->table = NULL;
    g->loaded_blocks = NULL;
    image_drop(img, cluster_of(&img->geo, old_off), old_clusters);
    img->dropped_durable = img->dropped.count;
    return 0;
}

/* 1. new blocks (and the new table behind them) into clusters that no block covered
 *    -- barrier: a block is complete, its own count too, before a table can point to it
 * 2. the table entries; or header 48..59 -- barrier -- and the old table is given up
 * The entries of 2. become durable with the caller's barrier, as the counts in the new blocks do:
 * the caller needs one before anything may refer to the clusters it takes. */
int refcount_cover(struct image *img, uint64_t idx, uint64_t count)
{
    const struct qcow2_geometry *geo = &img->geo;
    struct growth g = {.idx = idx, .host_off = idx << geo->refblock_bits << geo->cluster_bits};
    int ret = plan(img, count, &g);
    if (ret < 0)
        return ret;
    uint64_t length = (g.blocks + g.table_clusters) << geo->cluster_bits;
    enum region hit = layout_overlap(img, REGION_NONE, g.host_off, length);
    if (hit != REGION_NONE)
        return image_fail(img, -EUCLEAN,
            "%s stands where no refcount block counts it, near 0x%" PRIx64 "; run qcheck --repair",
            layout_name(hit), g.host_off);
    g.bytes = calloc(1, length + 1);
    if (!g.bytes)
        return image_no_memory(img);
    count_own_clusters(geo, &g);
    if (g.table_clusters > 0)
        ret = make_table(img, &g);
    if (ret == 0)
        ret = image_write_meta(img, REGION_NONE, g.host_off, g.bytes, length);
    if (ret == 0)
        ret = image_barrier(img);
    if (ret == 0)
        ret = g.table_clusters > 0 ? switch_table(img, &g) : link_blocks(img, &g);
    free(g.bytes);
    free(g.table);
    free(g.loaded_blocks);
    return ret;
}
