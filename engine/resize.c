/* SPDX-License-Identifier: MIT
 *
 * Discard, and changing the size of the virtual disk. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "backing.h"
#include "batch.h"
#include "bitmap.h"
#include "layout.h"
#include "map.h"
#include "refcount.h"
#include "tree.h"
#include "write.h"

/* ---- discard ------------------------------------------------------------------------------- */

/* The subclusters (bits) to discard; all of them for a whole cluster. */
static int discard_entry(
    struct batch *batch, struct batch_table *table, uint32_t idx, uint32_t subclusters)
{
    struct image *img = batch->img;
    bool backing = img->header.backing_off != 0;
    struct qcow2_l2_entry entry;
    int ret = map_entry(img, table->bytes, idx, &entry);
    if (ret < 0 || (entry.raw == 0 && entry.bitmap == 0 && !backing))
        return ret;
    uint64_t raw = 0, bitmap = 0;
    if (img->geo.extended_l2) {
        uint64_t zero = (uint64_t)subclusters << 32;
        if (entry.kind == QCOW2_L2_COMPRESSED && subclusters != UINT32_MAX)
            return 0; /* half a compressed cluster gives up nothing */
        bitmap = (entry.bitmap & ~(uint64_t)subclusters & ~zero) | (backing ? zero : 0);
        if (entry.kind == QCOW2_L2_COMPRESSED)
            bitmap = backing ? zero : 0;
        else if ((uint32_t)bitmap != 0)
            raw = entry.raw;
    } else if (backing) {
        if (img->geo.version < 3)
            return 0; /* no way to say "zeros" over a backing file */
        raw = QCOW2_ENTRY_ZERO;
    }
    if (raw == entry.raw && bitmap == entry.bitmap)
        return 0;
    if (raw != entry.raw)
        ret = batch_drop(batch, &entry);
    return ret < 0 ? ret : batch_set(batch, table, idx, raw, bitmap);
}

/* As much of the range as one batch takes. */
static int discard_some(struct image *img, uint64_t from, uint64_t to, uint64_t *next)
{
    const struct qcow2_geometry *geo = &img->geo;
    struct batch batch = {.img = img};
    uint64_t at = from;
    int ret = 0;
    while (ret == 0 && at < to) {
        uint32_t l1_idx = (uint32_t)(at / geo->l2_span);
        struct batch_table *table;
        if (!(img->l1[l1_idx] & QCOW2_OFFSET_MASK) && !img->header.backing_off) {
            at = (l1_idx + UINT64_C(1)) * geo->l2_span;
            continue;
        }
        ret = batch_table(&batch, l1_idx, &table);
        if (ret < 0)
            break;
        uint32_t in_off = (uint32_t)(at % geo->cluster_size);
        uint64_t room = geo->cluster_size - in_off;
        uint32_t piece = (uint32_t)(to - at < room ? to - at : room);
        uint32_t bits = geo->extended_l2 ? map_subclusters(geo, in_off, piece) : UINT32_MAX;
        ret =
            discard_entry(&batch, table, (uint32_t)(at % geo->l2_span >> geo->cluster_bits), bits);
        at += piece;
    }
    *next = at < to ? at : to;
    if (ret == 0 || ret == -EAGAIN)
        return batch_commit(&batch);
    batch_abort(&batch);
    return ret;
}

int discard_range(struct image *img, uint64_t guest_off, uint64_t length)
{
    uint64_t unit = img->geo.cluster_size / (img->geo.extended_l2 ? QCOW2_SUBCLUSTERS : 1);
    uint64_t end = guest_off + length, at = div_up(guest_off, unit) * unit;
    end = end == img->header.size_bytes ? div_up(end, unit) * unit : end / unit * unit;
    uint64_t reach = img->header.l1_size * img->geo.l2_span;
    end = end < reach ? end : reach;
    int ret = 0;
    while (ret == 0 && at < end)
        ret = discard_some(img, at, end, &at);
    return ret;
}

/* 0. write_begin()
 * 1. as batch_commit(): entries become unallocated; what they pointed to is lowered, and offered
 *    to the host, only after the next barrier */
int image_discard(struct image *img, uint64_t guest_off, uint64_t length)
{
    int ret = write_begin(img, guest_off, length);
    return ret < 0 ? ret : image_end(img, discard_range(img, guest_off, length));
}

/* ---- resize -------------------------------------------------------------------------------- */

/* What is new reads as zeros: so nothing of a backing file may show there. */
static int check_backing(struct image *img, uint64_t size_bytes)
{
    if (!img->header.backing_off || size_bytes <= img->header.size_bytes)
        return 0;
    if (!img->backing)
        return image_fail(img, -ENOTSUP, "the backing file is not open: the disk cannot grow");
    if (backing_size(img->backing) > img->header.size_bytes)
        return image_fail(img, -ENOTSUP,
            "the disk cannot grow: its backing file is longer than it and would show");
    return 0;
}

static int check_resize(struct image *img, uint64_t size_bytes)
{
    if (size_bytes % QCOW2_SECTOR_BYTES)
        return image_fail(img, -EINVAL, "the size of a disk is a multiple of 512 bytes");
    if (size_bytes > INT64_MAX - img->geo.l2_span ||
        l1_entries_for(&img->geo, size_bytes) * 8 > QCOW2_MAX_L1_BYTES)
        return image_fail(img, -EFBIG, "the L1 table for that size would pass 32 MiB");
    for (uint32_t i = 0; i < img->snaps.count; i++) {
        if (!img->snaps.list[i].has_disk_size)
            return image_fail(img, -ENOTSUP,
                "a snapshot does not record its disk size and would change it; delete it first");
    }
    int ret = check_backing(img, size_bytes);
    return ret < 0 ? ret : bitmap_check_resize(img, size_bytes);
}

/* Zeros in the rest of the disk's last cluster, if it is mapped. */
static int clear_last_cluster(struct image *img)
{
    const struct qcow2_geometry *geo = &img->geo;
    uint64_t end = img->header.size_bytes, left = div_up(end, geo->cluster_size);
    struct qcow2_l2_entry entry = {0};
    left = left * geo->cluster_size - end;
    if (left == 0 || !(img->l1[end / geo->l2_span] & QCOW2_OFFSET_MASK))
        return 0;
    uint8_t *l2 = malloc(geo->cluster_size);
    int ret = l2 ? map_read_l2(img, img->l1[end / geo->l2_span], l2) : image_no_memory(img);
    if (ret == 0)
        ret = map_entry(img, l2, (uint32_t)(end % geo->l2_span >> geo->cluster_bits), &entry);
    free(l2);
    if (ret == 0 && (entry.kind == QCOW2_L2_NORMAL || entry.kind == QCOW2_L2_COMPRESSED))
        ret = write_range(img, end, NULL, left);
    return ret;
}

/* Zeros the L1 entries behind the disk's end; what hung on them becomes *gone. */
static int cut_l1(struct image *img, struct tree *gone, uint64_t **gone_l1)
{
    uint32_t size = img->header.l1_size;
    uint64_t first = l1_entries_for(&img->geo, img->header.size_bytes);
    uint64_t *l1 = calloc(size + UINT64_C(1), sizeof(*l1));
    uint8_t *zeros = calloc(size + UINT64_C(1), 8);
    int ret = l1 && zeros ? tree_init(img, l1, size, gone) : image_no_memory(img);
    bool any = false;
    for (uint64_t i = first; ret == 0 && i < size; i++) {
        l1[i] = img->l1[i];
        any |= l1[i] != 0;
    }
    if (ret == 0 && any) {
        ret = image_write_meta(
            img, REGION_L1, img->header.l1_off + first * 8, zeros, (size_t)(size - first) * 8);
        img->stale |= ret < 0; /* which ones are there? */
        if (ret == 0)
            memset(img->l1 + first, 0, (size_t)(size - first) * sizeof(*img->l1));
    }
    free(zeros);
    *gone_l1 = l1;
    return ret;
}

/* What lies behind the disk's end (VM state, the rest of the last cluster) must not come to light
 * when it grows: unmapped, and zeros in the last cluster's rest.  `gone` is to be released after
 * the next barrier. */
static int clear_behind_end(struct image *img, struct tree *gone, uint64_t **gone_l1)
{
    uint64_t unit = img->geo.cluster_size, span = img->geo.l2_span;
    uint64_t aligned = div_up(img->header.size_bytes, unit) * unit;
    uint64_t span_end = div_up(aligned, span) * span;
    int ret = clear_last_cluster(img);
    if (ret == 0 && aligned < span_end)
        ret = discard_range(img, aligned, span_end - aligned);
    return ret == 0 ? cut_l1(img, gone, gone_l1) : ret;
}

/* Header 24..47: size, encryption, L1 size and place, in one write. */
static int switch_size(struct image *img, uint64_t size_bytes, uint32_t l1_size, uint64_t l1_off)
{
    uint8_t fields[24];
    store_be64(fields, size_bytes);
    store_be32(fields + 8, img->header.crypt_method);
    store_be32(fields + 12, l1_size);
    store_be64(fields + 16, l1_off);
    int ret = image_write_header(img, QCOW2_HDR_SIZE, fields, sizeof(fields));
    if (ret == 0)
        ret = image_barrier(img); /* commit */
    if (ret < 0)
        img->stale = true; /* which size is it? */
    return ret;
}

/* A copy of the L1's first `keep` entries, of `l1_size` entries. */
static int copy_l1(struct image *img, uint64_t keep, uint32_t l1_size, uint64_t **l1)
{
    *l1 = calloc(l1_size + UINT64_C(1), sizeof(**l1));
    if (!*l1)
        return image_no_memory(img);
    if (keep > 0)
        memcpy(*l1, img->l1, (size_t)keep * sizeof(**l1));
    return 0;
}

/* Writes it to new clusters. */
static int write_l1(struct image *img, const uint64_t *l1, uint32_t l1_size, uint64_t *l1_off)
{
    uint64_t clusters = clusters_for(&img->geo, l1_size * UINT64_C(8));
    size_t bytes = (size_t)(clusters << img->geo.cluster_bits);
    uint8_t *table = calloc(1, bytes);
    int ret = table ? refcount_alloc(img, clusters, l1_off) : image_no_memory(img);
    for (uint32_t i = 0; ret == 0 && i < l1_size; i++)
        store_be64(table + i * UINT64_C(8), l1[i]);
    if (ret == 0)
        ret = image_write_meta(img, REGION_NONE, *l1_off, table, bytes);
    free(table);
    return ret;
}

/* The header has the new size and place; so has memory now, and the old L1 is given up.  Returns
 * the old one, for the caller to free. */
static uint64_t *take_l1(struct image *img, uint64_t *l1, uint32_t l1_size, uint64_t l1_off)
{
    uint64_t *old = img->l1;
    struct qcow2_header *h = &img->header;
    image_drop(
        img, cluster_of(&img->geo, h->l1_off), clusters_for(&img->geo, h->l1_size * UINT64_C(8)));
    img->dropped_durable = img->dropped.count;
    img->l1 = l1;
    h->l1_size = l1_size;
    h->l1_off = l1_off;
    return old;
}

/* 1. what is behind the end is cleared (zeros, unmapped)
 * 2. if the L1 is too short: a longer copy in new clusters, refcounts
 *    -- barrier: all that is durable before the new size can show it
 * 3. header 24..47 -- barrier, commit */
static int grow(struct image *img, uint64_t size_bytes, struct tree *gone, uint64_t **gone_l1)
{
    uint64_t need = l1_entries_for(&img->geo, size_bytes), *l1 = NULL;
    uint64_t l1_off = img->header.l1_off;
    uint32_t l1_size = img->header.l1_size;
    int ret = clear_behind_end(img, gone, gone_l1);
    if (ret == 0 && need > l1_size) {
        l1_size = (uint32_t)need;
        ret = copy_l1(img, img->header.l1_size, l1_size, &l1);
        if (ret == 0)
            ret = write_l1(img, l1, l1_size, &l1_off);
    }
    if (ret == 0)
        ret = refcount_write(img);
    if (ret == 0 && img->unflushed)
        ret = image_barrier(img);
    if (ret == 0)
        ret = switch_size(img, size_bytes, l1_size, l1_off);
    if (ret < 0) {
        free(l1);
        return ret;
    }
    img->header.size_bytes = size_bytes;
    if (l1)
        free(take_l1(img, l1, l1_size, l1_off));
    return 0;
}

/* An L2 table of which the new end leaves only the first entries: its shorter copy, in a new
 * cluster, in `batch`, and the L1 entry for it.  Left alone if nothing is mapped in the rest. */
static int cut_l2(struct image *img, uint64_t end, struct batch *batch, uint64_t *l1_entry)
{
    struct batch_table *table;
    int ret = batch_table(batch, (uint32_t)(end / img->geo.l2_span), &table);
    if (ret == 0)
        table->host_off = 0; /* a copy, also if it is ours alone */
    for (uint64_t i = end % img->geo.l2_span >> img->geo.cluster_bits;
         ret == 0 && i < img->geo.l2_entries; i++) {
        struct qcow2_l2_entry entry;
        ret = map_entry(img, table->bytes, (uint32_t)i, &entry);
        if (ret == 0 && (entry.raw != 0 || entry.bitmap != 0)) {
            ret = batch_drop(batch, &entry);
            if (ret == 0)
                ret = batch_set(batch, table, (uint32_t)i, 0, 0);
        }
    }
    if (ret < 0 || !table->fresh)
        return ret;
    *l1_entry = table->host_off | QCOW2_ENTRY_COPIED;
    return image_write_meta(img, REGION_NONE, table->host_off, table->bytes, img->geo.cluster_size);
}

/* The L1 without what is behind the new end, in new clusters; the old one stays if nothing is. */
static int cut_tree(
    struct image *img, uint64_t end, struct batch *batch, uint64_t **l1, uint64_t *l1_off)
{
    uint32_t size = img->header.l1_size;
    uint64_t keep = l1_entries_for(&img->geo, end), edge = end / img->geo.l2_span;
    uint64_t *copy;
    int ret = copy_l1(img, keep, size, &copy);
    if (ret == 0 && edge < keep && copy[edge] & QCOW2_OFFSET_MASK)
        ret = cut_l2(img, end, batch, &copy[edge]);
    bool changed = ret == 0 && size > 0 && memcmp(copy, img->l1, size * sizeof(*copy)) != 0;
    if (changed)
        ret = write_l1(img, copy, size, l1_off);
    if (ret == 0)
        ret = refcount_write(img);
    if (changed)
        *l1 = copy;
    else
        free(copy);
    return ret;
}

/* Both durable: what the old tree had and the new one has not.  Whole tables become `gone`. */
static int drop_cut(struct image *img, const struct batch *batch, uint64_t *old, struct tree *gone)
{
    uint64_t keep = l1_entries_for(&img->geo, img->header.size_bytes);
    for (unsigned i = 0; i < batch->count; i++) {
        const struct batch_table *table = &batch->tables[i];
        if (table->fresh)
            image_drop(img, cluster_of(&img->geo, old[table->l1_idx] & QCOW2_OFFSET_MASK), 1);
    }
    for (size_t i = 0; i < batch->drops.count; i++)
        image_drop(img, batch->drops.list[i].first, batch->drops.list[i].count);
    img->dropped_durable = img->dropped.count;
    memset(old, 0, (size_t)keep * sizeof(*old));
    return tree_init(img, old, img->header.l1_size, gone);
}

/* 1. if something is mapped behind the new end: an L1 without it in new clusters, a shorter copy of
 *    the L2 table that lies across the end, counts
 *    -- barrier: durable before the header points there
 * 2. header 24..47: size and L1 -- barrier, commit; what is gone is given up
 * 3. zeros in the rest of the last cluster: not every program does that when it makes the disk
 *    larger again -- barrier, as the caller frees next */
static int shrink(struct image *img, uint64_t size_bytes, struct tree *gone, uint64_t **gone_l1)
{
    struct batch batch = {.img = img};
    uint64_t *l1 = NULL, l1_off = img->header.l1_off;
    uint64_t end = div_up(size_bytes, img->geo.cluster_size) * img->geo.cluster_size;
    int ret = cut_tree(img, end, &batch, &l1, &l1_off);
    if (ret == 0 && img->unflushed)
        ret = image_barrier(img);
    if (ret == 0)
        ret = switch_size(img, size_bytes, img->header.l1_size, l1_off);
    if (ret < 0) {
        free(l1);
        batch_abort(&batch);
        return ret;
    }
    img->header.size_bytes = size_bytes;
    if (l1) {
        *gone_l1 = take_l1(img, l1, img->header.l1_size, l1_off);
        ret = drop_cut(img, &batch, *gone_l1, gone);
    }
    batch_abort(&batch);
    if (ret == 0)
        ret = clear_last_cluster(img);
    return ret == 0 && img->unflushed ? image_barrier(img) : ret;
}

int image_resize(struct image *img, uint64_t size_bytes)
{
    int ret = image_begin(img, true);
    if (ret == 0)
        ret = check_resize(img, size_bytes);
    if (ret < 0 || size_bytes == img->header.size_bytes)
        return ret;
    struct tree gone = {0};
    uint64_t *gone_l1 = NULL;
    bool growing = size_bytes > img->header.size_bytes;
    ret = image_lazy_begin(img);
    if (ret == 0)
        ret = growing ? grow(img, size_bytes, &gone, &gone_l1)
                      : shrink(img, size_bytes, &gone, &gone_l1);
    /* Last: counts -1 on what hung behind the end. */
    if (ret == 0)
        ret = tree_add(img, &gone, -1);
    if (ret == 0)
        ret = refcount_write(img);
    tree_release(&gone);
    free(gone_l1);
    return image_end(img, ret);
}
