/* SPDX-License-Identifier: MIT
 *
 * See batch.h. */
#include "batch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "layout.h"
#include "map.h"
#include "refcount.h"

int batch_is_ours(struct image *img, uint64_t entry, bool *ours)
{
    uint64_t count = 0;
    int ret = 0;
    if (entry & QCOW2_ENTRY_COPIED)
        ret = refcount_get(img, cluster_of(&img->geo, entry & QCOW2_OFFSET_MASK), &count);
    *ours = count == 1;
    return ret;
}

/* A table counted for several owners is copied: what is below it is shared as well, and has no
 * COPIED.  Where only the table's count was too high the flags that are right stay. */
static int keep_right_copied(struct image *img, uint8_t *l2)
{
    int ret = 0;
    for (uint32_t i = 0; ret == 0 && i < img->geo.l2_entries; i++) {
        uint8_t *entry = l2 + (size_t)i * img->geo.l2_entry_size;
        uint64_t raw = load_be64(entry);
        bool ours = false;
        if (raw & QCOW2_ENTRY_COPIED)
            ret = batch_is_ours(img, raw, &ours);
        if (!ours)
            store_be64(entry, raw & ~QCOW2_ENTRY_COPIED);
    }
    return ret;
}

int batch_table(struct batch *batch, uint32_t l1_idx, struct batch_table **out)
{
    struct image *img = batch->img;
    for (unsigned i = 0; i < batch->count; i++) {
        if (batch->tables[i].l1_idx == l1_idx) {
            *out = &batch->tables[i];
            return 0;
        }
    }
    if (batch->count == BATCH_TABLES)
        return -EAGAIN;
    uint64_t l1_entry = img->l1[l1_idx];
    struct batch_table table = {.l1_idx = l1_idx, .first = UINT32_MAX};
    table.bytes = calloc(1, img->geo.cluster_size);
    if (!table.bytes)
        return image_no_memory(img);
    if (l1_entry & QCOW2_OFFSET_MASK) {
        bool ours = false;
        int ret = map_read_l2(img, l1_entry, table.bytes);
        if (ret == 0)
            ret = batch_is_ours(img, l1_entry, &ours);
        if (ret == 0 && !ours)
            ret = keep_right_copied(img, table.bytes);
        if (ret < 0) {
            free(table.bytes);
            return ret;
        }
        if (ours)
            table.host_off = l1_entry & QCOW2_OFFSET_MASK;
    }
    batch->tables[batch->count] = table;
    *out = &batch->tables[batch->count++];
    return 0;
}

int batch_set(
    struct batch *batch, struct batch_table *table, uint32_t idx, uint64_t raw, uint64_t bitmap)
{
    const struct qcow2_geometry *geo = &batch->img->geo;
    if (table->host_off == 0) {
        int ret = refcount_alloc(batch->img, 1, &table->host_off);
        if (ret < 0)
            return ret;
        table->fresh = true;
        batch->needs_barrier = true;
    }
    uint8_t *entry = table->bytes + (size_t)idx * geo->l2_entry_size;
    store_be64(entry, raw);
    if (geo->extended_l2)
        store_be64(entry + 8, bitmap);
    table->first = idx < table->first ? idx : table->first;
    table->last = idx > table->last ? idx : table->last;
    return 0;
}

int batch_drop(struct batch *batch, const struct qcow2_l2_entry *entry)
{
    struct cluster_run run = map_entry_clusters(&batch->img->geo, entry);
    if (run.count == 0)
        return 0;
    int ret = runs_add(&batch->drops, run.first, run.count);
    return ret < 0 ? image_no_memory(batch->img) : 0;
}

void batch_abort(struct batch *batch)
{
    for (unsigned i = 0; i < batch->count; i++)
        free(batch->tables[i].bytes);
    free(batch->drops.list);
    *batch = (struct batch){.img = batch->img};
}

static int write_fresh(struct batch *batch)
{
    struct image *img = batch->img;
    int ret = 0;
    for (unsigned i = 0; ret == 0 && i < batch->count; i++) {
        const struct batch_table *table = &batch->tables[i];
        if (table->fresh)
            ret = image_write_meta(
                img, REGION_NONE, table->host_off, table->bytes, img->geo.cluster_size);
    }
    return ret;
}

static int write_in_place(struct image *img, const struct batch_table *table)
{
    size_t size = img->geo.l2_entry_size;
    if (table->first > table->last)
        return 0;
    return image_write_meta(img, REGION_L2, table->host_off + table->first * size,
        table->bytes + table->first * size, (table->last - table->first + 1) * size);
}

static int write_l1_entry(struct batch *batch, const struct batch_table *table)
{
    struct image *img = batch->img;
    uint64_t raw = table->host_off | QCOW2_ENTRY_COPIED;
    uint64_t old_off = img->l1[table->l1_idx] & QCOW2_OFFSET_MASK;
    uint8_t field[8];
    store_be64(field, raw);
    int ret = image_write_meta(
        img, REGION_L1, img->header.l1_off + table->l1_idx * UINT64_C(8), field, sizeof(field));
    if (ret < 0) {
        img->stale = true; /* which one is it? */
        return ret;
    }
    img->l1[table->l1_idx] = raw;
    if (old_off)
        image_drop(img, cluster_of(&img->geo, old_off), 1);
    return 0;
}

/* The data of new clusters was written before.
 * 1. refcounts of new clusters, L2 tables in new clusters
 *    -- barrier: data, tables and counts are durable before anything can point to them (not
 *       needed, and left out, when nothing new is pointed to)
 * 2. entries of L2 tables in place; L1 entries of the new ones
 * What 2. stops pointing to is dropped: lowered after the next barrier.
 *
 * With lazy refcounts (dirty bit set, durably) the counts go with 2. instead, but before it: no
 * error may leave something mapped that this process takes for free. */
int batch_commit(struct batch *batch)
{
    struct image *img = batch->img;
    bool lazy = image_is_lazy(img);
    int ret = lazy ? 0 : refcount_write(img);
    if (ret == 0)
        ret = write_fresh(batch);
    if (ret == 0 && batch->needs_barrier)
        ret = image_barrier(img);
    if (ret == 0 && lazy)
        ret = refcount_write(img);
    for (unsigned i = 0; ret == 0 && i < batch->count; i++) {
        const struct batch_table *table = &batch->tables[i];
        ret = table->fresh ? write_l1_entry(batch, table) : write_in_place(img, table);
    }
    for (size_t i = 0; ret == 0 && i < batch->drops.count; i++)
        image_drop(img, batch->drops.list[i].first, batch->drops.list[i].count);
    batch_abort(batch);
    return ret;
}
