/* SPDX-License-Identifier: MIT
 *
 * Guest writes.  The one invariant: a sector that a guest can see changes only by being written, in
 * place, with the new bytes, or by one mapping entry that switches to bytes that are durable. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "batch.h"
#include "bitmap.h"
#include "layout.h"
#include "map.h"
#include "refcount.h"
#include "write.h"

enum { BATCH_DATA_BYTES = 8 << 20 }; /* at most this much new data waits for one barrier */

struct part {
    struct batch_table *table;
    uint32_t idx;         /* of the entry */
    uint32_t in_off;      /* of the range in its cluster */
    uint64_t cluster_off; /* guest offset of that cluster */
    size_t length;
    const uint8_t *src; /* NULL: zeros */
    struct qcow2_l2_entry entry;
};

static int write_data(struct image *img, uint64_t host_off, const uint8_t *src, size_t length)
{
    int ret = image_check_flushed(img);
    if (ret < 0)
        return ret;
    enum region hit = layout_overlap(img, REGION_NONE, host_off, length);
    if (hit != REGION_NONE)
        return image_fail(img, -EUCLEAN,
            "guest data at 0x%" PRIx64 " lies over %s; run qcheck --repair", host_off,
            layout_name(hit));
    img->unflushed = true;
    ret = io_write(img->io, host_off, src, length);
    if (ret < 0)
        return image_fail(
            img, ret, "cannot write data at 0x%" PRIx64 ": %s", host_off, strerror(-ret));
    if (img->file_size < host_off + length)
        img->file_size = host_off + length;
    return 0;
}

/* Bytes [from, to) of the part's cluster as they will be: old content, new range over it. */
static int merge(
    struct image *img, const struct part *part, uint32_t from, uint32_t to, uint8_t *cluster)
{
    int ret = 0;
    if (part->in_off > from || part->in_off + part->length < to)
        ret =
            map_read_entry(img, &part->entry, part->cluster_off + from, cluster + from, to - from);
    if (ret < 0)
        return ret;
    if (part->src)
        memcpy(cluster + part->in_off, part->src, part->length);
    else
        memset(cluster + part->in_off, 0, part->length);
    return 0;
}

static bool visible_whole(const struct qcow2_geometry *geo, const struct part *part)
{
    if (part->entry.kind != QCOW2_L2_NORMAL)
        return false;
    uint32_t bits = geo->extended_l2 ? map_subclusters(geo, part->in_off, part->length) : 0;
    return ((uint32_t)part->entry.bitmap & bits) == bits;
}

/* Puts the part where no entry shows it yet, and stages the entry that will. */
static int write_new(struct batch *batch, const struct part *part, bool ours)
{
    struct image *img = batch->img;
    const struct qcow2_geometry *geo = &img->geo;
    uint32_t from = 0, to = geo->cluster_size;
    uint64_t host_off = part->entry.host_off, bitmap = 0;
    if (geo->extended_l2) {
        uint32_t bits = map_subclusters(geo, part->in_off, part->length);
        uint32_t sub = geo->cluster_size / QCOW2_SUBCLUSTERS;
        bitmap = part->entry.bitmap | bits;
        if (part->entry.kind == QCOW2_L2_COMPRESSED)
            bitmap = QCOW2_SUBCLUSTER_ALLOC;
        bitmap &= ~((uint64_t)bits << 32);
        if (ours || (uint32_t)part->entry.bitmap == 0) { /* nothing else to carry over */
            from = part->in_off / sub * sub;
            to = (uint32_t)div_up(part->in_off + part->length, sub) * sub;
        }
        if (part->entry.kind == QCOW2_L2_COMPRESSED)
            from = 0, to = geo->cluster_size;
    }
    uint8_t *cluster = malloc(geo->cluster_size);
    int ret = cluster ? 0 : image_no_memory(img);
    if (ret == 0)
        ret = merge(img, part, from, to, cluster);
    if (ret == 0 && !ours)
        ret = refcount_alloc(img, 1, &host_off);
    if (ret == 0)
        ret = write_data(img, host_off + from, cluster + from, to - from);
    if (ret == 0 && !ours)
        ret = batch_drop(batch, &part->entry);
    if (ret == 0)
        ret = batch_set(batch, part->table, part->idx, host_off | QCOW2_ENTRY_COPIED, bitmap);
    batch->needs_barrier = true;
    free(cluster);
    return ret;
}

static int write_part(struct batch *batch, struct part *part)
{
    struct image *img = batch->img;
    bool ours = false;
    int ret = map_entry(img, part->table->bytes, part->idx, &part->entry);
    if (ret == 0 && part->entry.kind != QCOW2_L2_COMPRESSED && part->entry.host_off)
        ret = batch_is_ours(img, part->entry.raw, &ours);
    if (ret < 0)
        return ret;
    if (!ours || !visible_whole(&img->geo, part) || !part->src)
        return write_new(batch, part, ours && !visible_whole(&img->geo, part));
    return write_data(img, part->entry.host_off + part->in_off, part->src, part->length);
}

/* As much of the range as one batch takes; *done tells how much. */
static int write_some(
    struct image *img, uint64_t guest_off, const uint8_t *src, uint64_t length, uint64_t *done)
{
    const struct qcow2_geometry *geo = &img->geo;
    struct batch batch = {.img = img};
    int ret = 0;
    *done = 0;
    while (*done < length && *done < BATCH_DATA_BYTES) {
        uint64_t at = guest_off + *done, left = length - *done;
        uint64_t room = geo->cluster_size - at % geo->cluster_size;
        struct part part = {
            .idx = (uint32_t)(at % geo->l2_span >> geo->cluster_bits),
            .in_off = (uint32_t)(at % geo->cluster_size),
            .cluster_off = at - at % geo->cluster_size,
            .length = (size_t)(left < room ? left : room),
            .src = src ? src + *done : NULL,
        };
        ret = batch_table(&batch, (uint32_t)(at / geo->l2_span), &part.table);
        if (ret == -EAGAIN) {
            ret = 0;
            break;
        }
        if (ret == 0)
            ret = write_part(&batch, &part);
        if (ret < 0)
            break;
        *done += part.length;
    }
    if (ret == 0)
        return batch_commit(&batch);
    batch_abort(&batch);
    return ret;
}

/* Also beyond the disk's end, as far as the L1 reaches: for resize. */
int write_range(struct image *img, uint64_t guest_off, const uint8_t *src, uint64_t length)
{
    int ret = 0;
    while (ret == 0 && length > 0) {
        uint64_t done;
        ret = write_some(img, guest_off, src, length, &done);
        guest_off += done, length -= done;
        src = src ? src + done : NULL;
    }
    return ret;
}

int write_begin(struct image *img, uint64_t guest_off, uint64_t length)
{
    uint64_t end;
    int ret = image_begin(img, true);
    if (ret == 0 && (!range_end(guest_off, length, &end) || end > img->header.size_bytes))
        ret = image_fail(img, -ERANGE, "the range passes the end of the disk");
    if (ret < 0)
        return ret;
    ret = bitmap_mark(img, guest_off, length);
    if (ret == 0)
        ret = image_lazy_begin(img);
    return image_end(img, ret);
}

/* 0. write_begin()
 * 1. per 8 MiB: data, in place or in new clusters; then as batch_commit() */
int image_write(struct image *img, uint64_t guest_off, const void *buf, size_t length)
{
    int ret = write_begin(img, guest_off, length);
    return ret < 0 ? ret : image_end(img, write_range(img, guest_off, buf, length));
}
