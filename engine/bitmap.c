/* SPDX-License-Identifier: MIT
 *
 * See bitmap.h.  Tables and bits are read where they are needed and written at once. */
#include "bitmap.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "layout.h"
#include "refcount.h"

enum { MAX_DIRECTORY_BYTES = 64 << 20 };

static bool records_changes(const struct qcow2_bitmap *entry)
{
    return (entry->flags & QCOW2_BITMAP_AUTO) && !(entry->flags & QCOW2_BITMAP_IN_USE) &&
           entry->type == QCOW2_BITMAP_TYPE_DIRTY;
}

static int check_entry(struct image *img, const struct qcow2_bitmap *entry)
{
    int ret = 0;
    if (entry->table_size > QCOW2_MAX_BITMAP_TABLE_ENTRIES)
        return image_fail(img, -EUCLEAN, "a bitmap table is too large; run qcheck");
    if (entry->table_size > 0)
        ret = layout_check_range(
            img, "a bitmap table", entry->table_off, entry->table_size * UINT64_C(8));
    if (ret < 0 || !records_changes(entry))
        return ret;
    if (entry->extra_len > 0 && !(entry->flags & QCOW2_BITMAP_EXTRA_OK))
        return image_fail(img, -ENOTSUP,
            "a bitmap that must record changes has extra data of unknown meaning; remove it first");
    if (entry->granularity_bits < QCOW2_MIN_BITMAP_GRANULARITY_BITS ||
        entry->granularity_bits > QCOW2_MAX_BITMAP_GRANULARITY_BITS ||
        clusters_for(&img->geo, qcow2_bitmap_bytes(img->header.size_bytes,
                                    entry->granularity_bits)) != entry->table_size)
        return image_fail(img, -EUCLEAN, "a bitmap does not fit the disk; run qcheck");
    return 0;
}

static int read_directory(struct image *img, const uint8_t *bytes, uint64_t length)
{
    struct bitmaps *bitmaps = &img->bitmaps;
    uint32_t count = bitmaps->ext.bitmap_count;
    uint64_t tables = 0, room = clusters_for(&img->geo, img->file_size) << img->geo.cluster_bits;
    bitmaps->list = calloc(count, sizeof(*bitmaps->list));
    if (!bitmaps->list)
        return image_no_memory(img);
    for (uint64_t at = 0; bitmaps->count < count;) {
        struct qcow2_bitmap *entry = &bitmaps->list[bitmaps->count].entry;
        if (qcow2_bitmap_decode(bytes + at, (size_t)(length - at), entry) < 0)
            return image_fail(img, -EUCLEAN, "the bitmap directory is cut short; run qcheck");
        entry->name = NULL;
        at += entry->record_len;
        bitmaps->count++;
        int ret = check_entry(img, entry);
        if (ret < 0)
            return ret;
        tables += entry->table_size * UINT64_C(8);
        if (tables > room) /* each would be written, one over the other */
            return image_fail(img, -EUCLEAN, "bitmap tables lie on each other; run qcheck");
    }
    return 0;
}

int bitmap_load(struct image *img)
{
    struct bitmaps *bitmaps = &img->bitmaps;
    const struct qcow2_bitmaps_ext *ext = &bitmaps->ext;
    /* Without the autoclear bit the extension means nothing; readers do not need it. */
    if (!(img->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS) || !(img->flags & IMAGE_WRITE) ||
        ext->bitmap_count == 0)
        return 0;
    if (ext->bitmap_count > QCOW2_MAX_BITMAPS || ext->directory_size > MAX_DIRECTORY_BYTES)
        return image_fail(img, -EUCLEAN, "the bitmap directory is too large; run qcheck");
    int ret =
        layout_check_range(img, "the bitmap directory", ext->directory_off, ext->directory_size);
    if (ret < 0)
        return ret;
    uint8_t *bytes = malloc((size_t)ext->directory_size + 1);
    if (!bytes)
        return image_no_memory(img);
    ret = io_read_padded(img->io, ext->directory_off, bytes, (size_t)ext->directory_size);
    if (ret < 0)
        image_fail(img, ret, "cannot read the bitmap directory: %s", strerror(-ret));
    else
        ret = read_directory(img, bytes, ext->directory_size);
    free(bytes);
    return ret;
}

void bitmap_release(struct image *img)
{
    free(img->bitmaps.list);
    img->bitmaps = (struct bitmaps){0};
}

/* ---- setting bits -------------------------------------------------------------------------- */

/* Sets bits [first, last] in `bytes`; tells whether one was clear. */
static bool set_bits(uint8_t *bytes, uint64_t first, uint64_t last)
{
    bool changed = false;
    for (uint64_t bit = first; bit <= last; bit++) {
        uint8_t mask = (uint8_t)(1u << (bit % 8));
        changed |= !(bytes[bit / 8] & mask);
        bytes[bit / 8] |= mask;
    }
    return changed;
}

/* One entry of a bitmap table, and the bits under it that must be set. */
struct piece {
    uint64_t entry_off, entry;
    uint64_t first_bit, last_bit;
    uint8_t *bytes; /* a cluster */
};

/* 1. a new cluster with the bits, and its refcount -- barrier -- 2. the entry that points to it */
static int add_bits(struct image *img, const struct piece *p)
{
    uint64_t host_off;
    uint8_t field[8];
    memset(p->bytes, 0, img->geo.cluster_size);
    set_bits(p->bytes, p->first_bit, p->last_bit);
    int ret = refcount_alloc(img, 1, &host_off);
    if (ret == 0)
        ret = image_write_meta(img, REGION_NONE, host_off, p->bytes, img->geo.cluster_size);
    if (ret == 0)
        ret = refcount_write(img);
    if (ret == 0) /* counted and complete before something points to it */
        ret = image_barrier(img);
    if (ret < 0)
        return ret;
    store_be64(field, host_off);
    return image_write_meta(img, REGION_BITMAP_TABLE, p->entry_off, field, sizeof(field));
}

static int mark_piece(struct image *img, const struct piece *p)
{
    uint64_t host_off = p->entry & QCOW2_OFFSET_MASK;
    if (p->entry & QCOW2_BITMAP_RESERVED || (host_off && (p->entry & 1)))
        return image_fail(img, -EUCLEAN, "a bitmap table has reserved bits set; run qcheck");
    if (host_off == 0)
        return p->entry & 1 ? 0 : add_bits(img, p);
    int ret = layout_check_range(img, "a bitmap cluster", host_off, img->geo.cluster_size);
    if (ret == 0)
        ret = io_read_padded(img->io, host_off, p->bytes, img->geo.cluster_size);
    if (ret < 0)
        return image_fail(img, ret, "cannot read bitmap data: %s", strerror(-ret));
    if (!set_bits(p->bytes, p->first_bit, p->last_bit))
        return 0;
    uint64_t from = p->first_bit / 8, to = p->last_bit / 8 + 1;
    return image_write_meta(
        img, REGION_NONE, host_off + from, p->bytes + from, (size_t)(to - from));
}

static int mark_bitmap(struct image *img, const struct qcow2_bitmap *entry, uint64_t guest_off,
    uint64_t length, uint8_t *scratch)
{
    uint64_t per_cluster = (uint64_t)img->geo.cluster_size * 8;
    uint64_t bit = guest_off >> entry->granularity_bits;
    uint64_t last = (guest_off + length - 1) >> entry->granularity_bits;
    while (bit <= last) {
        uint64_t idx = bit / per_cluster, end = (idx + 1) * per_cluster - 1;
        end = end < last ? end : last;
        uint8_t field[8];
        if (idx >= entry->table_size)
            return image_fail(img, -EUCLEAN, "a bitmap does not fit the disk; run qcheck");
        struct piece p = {.entry_off = entry->table_off + idx * 8,
            .first_bit = bit % per_cluster,
            .last_bit = end % per_cluster,
            .bytes = scratch};
        int ret = io_read_padded(img->io, p.entry_off, field, sizeof(field));
        if (ret < 0)
            return image_fail(img, ret, "cannot read a bitmap table: %s", strerror(-ret));
        p.entry = load_be64(field);
        ret = mark_piece(img, &p);
        if (ret < 0)
            return ret;
        bit = end + 1;
    }
    return 0;
}

/* 1. missing bits, with barriers of their own where a cluster is added
 *    -- barrier: the bits are durable before the change they stand for can be */
int bitmap_mark(struct image *img, uint64_t guest_off, uint64_t length)
{
    bool unflushed = img->unflushed;
    uint8_t *scratch = NULL;
    int ret = 0;
    if (length == 0)
        return 0;
    img->unflushed = false; /* to see whether something is written below */
    for (uint32_t i = 0; ret == 0 && i < img->bitmaps.count; i++) {
        const struct qcow2_bitmap *entry = &img->bitmaps.list[i].entry;
        if (!records_changes(entry))
            continue;
        scratch = scratch ? scratch : malloc(img->geo.cluster_size);
        ret = scratch ? mark_bitmap(img, entry, guest_off, length, scratch) : image_no_memory(img);
    }
    free(scratch);
    if (ret == 0 && img->unflushed)
        ret = image_barrier(img);
    else
        img->unflushed |= unflushed;
    return ret;
}

/* Every entry of the table becomes "all ones"; what the entries pointed to is dropped. */
static int fill_bitmap(struct image *img, const struct qcow2_bitmap *entry)
{
    uint64_t *table;
    int ret = image_read_words(img, entry->table_off, entry->table_size, &table);
    if (ret < 0)
        return ret;
    uint8_t *ones = calloc(entry->table_size + UINT64_C(1), 8);
    if (!ones) {
        free(table);
        return image_no_memory(img);
    }
    for (uint32_t i = 0; i < entry->table_size; i++)
        store_be64(ones + i * UINT64_C(8), 1);
    ret = image_write_meta(
        img, REGION_BITMAP_TABLE, entry->table_off, ones, (size_t)entry->table_size * 8);
    for (uint32_t i = 0; ret == 0 && i < entry->table_size; i++) {
        uint64_t host_off = table[i] & QCOW2_OFFSET_MASK;
        if (host_off && cluster_aligned(&img->geo, host_off))
            image_drop(img, cluster_of(&img->geo, host_off), 1);
    }
    free(table);
    free(ones);
    return ret;
}

/* 1. all tables -- barrier: durable before the change; also lets go of the old bits */
int bitmap_mark_all(struct image *img)
{
    int ret = 0;
    bool any = false;
    for (uint32_t i = 0; ret == 0 && i < img->bitmaps.count; i++) {
        const struct qcow2_bitmap *entry = &img->bitmaps.list[i].entry;
        if (!records_changes(entry) || entry->table_size == 0)
            continue;
        any = true;
        ret = fill_bitmap(img, entry);
    }
    return ret == 0 && any ? image_barrier(img) : ret;
}

int bitmap_check_resize(struct image *img, uint64_t size_bytes)
{
    if (img->bitmaps.count == 0 || size_bytes == img->header.size_bytes)
        return 0;
    return image_fail(
        img, -ENOTSUP, "the disk cannot change its size while it has bitmaps; remove them first");
}
