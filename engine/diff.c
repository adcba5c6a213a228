/* SPDX-License-Identifier: MIT
 *
 * See diff.h. */
#include "diff.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "map.h"

/* ---- diff ---------------------------------------------------------------------------------- */

struct side {
    const struct view *view;
    uint8_t *l2, *data;
};

struct diff {
    struct image *img;
    struct side a, b;
    diff_range *range;
    void *arg;
    uint64_t from, to; /* found, not yet told: the next one may continue it */
};

static int tell(struct diff *d, uint64_t from, uint64_t to)
{
    if (from == d->to && d->from < d->to) {
        d->to = to;
        return 0;
    }
    int ret = d->from < d->to ? d->range(d->arg, d->from, d->to - d->from) : 0;
    d->from = from;
    d->to = to;
    return ret;
}

static uint64_t l1_entry(const struct view *view, uint64_t idx)
{
    return idx < view->l1_size ? view->l1[idx] & QCOW2_OFFSET_MASK : 0;
}

/* The side's L2 table, zeros if there is none. */
static int load_l2(struct diff *d, struct side *side, uint64_t l1_idx)
{
    uint64_t entry = l1_entry(side->view, l1_idx);
    if (entry)
        return map_read_l2(d->img, side->view->l1[l1_idx], side->l2);
    memset(side->l2, 0, d->img->geo.cluster_size);
    return 0;
}

static int load_data(struct diff *d, struct side *side, uint32_t idx, uint64_t guest_off)
{
    struct qcow2_l2_entry entry;
    int ret = map_entry(d->img, side->l2, idx, &entry);
    return ret < 0
               ? ret
               : map_read_entry(d->img, &entry, guest_off, side->data, d->img->geo.cluster_size);
}

static bool same_entry(const struct qcow2_geometry *geo, const struct diff *d, uint32_t idx)
{
    size_t at = (size_t)idx * geo->l2_entry_size;
    uint64_t a = load_be64(d->a.l2 + at), b = load_be64(d->b.l2 + at);
    if ((a ^ b) & ~QCOW2_ENTRY_COPIED)
        return false;
    return !geo->extended_l2 || load_be64(d->a.l2 + at + 8) == load_be64(d->b.l2 + at + 8);
}

static int compare_cluster(struct diff *d, uint64_t guest_off, uint32_t idx, uint64_t end)
{
    int ret = load_data(d, &d->a, idx, guest_off);
    if (ret == 0)
        ret = load_data(d, &d->b, idx, guest_off);
    uint64_t left = end - guest_off, size = d->img->geo.cluster_size;
    size = left < size ? left : size;
    for (uint64_t at = 0; ret == 0 && at < size; at += QCOW2_SECTOR_BYTES) {
        size_t piece = size - at < QCOW2_SECTOR_BYTES ? (size_t)(size - at) : QCOW2_SECTOR_BYTES;
        if (memcmp(d->a.data + at, d->b.data + at, piece) != 0)
            ret = tell(d, guest_off + at, guest_off + at + piece);
    }
    return ret;
}

static int compare_tables(struct diff *d, uint64_t l1_idx, uint64_t end)
{
    const struct qcow2_geometry *geo = &d->img->geo;
    int ret = load_l2(d, &d->a, l1_idx);
    if (ret == 0)
        ret = load_l2(d, &d->b, l1_idx);
    uint64_t guest_off = l1_idx * geo->l2_span;
    for (uint32_t i = 0; ret == 0 && i < geo->l2_entries && guest_off < end; i++) {
        if (!same_entry(geo, d, i))
            ret = compare_cluster(d, guest_off, i, end);
        guest_off += geo->cluster_size;
    }
    return ret;
}

int diff_views(
    struct image *img, const struct view *a, const struct view *b, diff_range *range, void *arg)
{
    size_t size = img->geo.cluster_size;
    uint8_t *buf = malloc(4 * size);
    if (!buf)
        return image_no_memory(img);
    struct diff d = {
        img, {a, buf, buf + size}, {b, buf + 2 * size, buf + 3 * size}, range, arg, 0, 0};
    uint64_t shorter = a->size_bytes < b->size_bytes ? a->size_bytes : b->size_bytes;
    uint64_t longer = a->size_bytes + b->size_bytes - shorter;
    int ret = image_begin(img, false);
    for (uint64_t i = 0; ret == 0 && i < l1_entries_for(&img->geo, shorter); i++) {
        if (l1_entry(a, i) != l1_entry(b, i))
            ret = compare_tables(&d, i, shorter);
    }
    if (ret == 0 && shorter < longer)
        ret = tell(&d, shorter, longer);
    if (ret == 0 && d.from < d.to)
        ret = range(arg, d.from, d.to - d.from);
    free(buf);
    return ret;
}

/* ---- export -------------------------------------------------------------------------------- */

enum { COPY_BYTES = 1 << 20, HOLE_BYTES = 4096 };

/* Pages of zeros stay holes. */
static int write_sparse(struct io *out, uint64_t guest_off, const uint8_t *buf, size_t length)
{
    static const uint8_t zeros[HOLE_BYTES];
    size_t data = 0; /* start of the data not yet written */
    for (size_t at = 0; at < length; at += HOLE_BYTES) {
        size_t piece = length - at < HOLE_BYTES ? length - at : HOLE_BYTES;
        if (memcmp(buf + at, zeros, piece) != 0)
            continue;
        int ret = io_write(out, guest_off + data, buf + data, at - data);
        if (ret < 0)
            return ret;
        data = at + piece;
    }
    return io_write(out, guest_off + data, buf + data, length - data);
}

static int copy_range(struct image *img, const struct view *view, struct io *out, uint64_t at,
    uint64_t end, uint8_t *buf)
{
    while (at < end) {
        size_t piece = end - at < COPY_BYTES ? (size_t)(end - at) : COPY_BYTES;
        int ret = map_read(img, view, at, buf, piece);
        if (ret < 0)
            return ret;
        ret = write_sparse(out, at, buf, piece);
        if (ret < 0)
            return image_fail(img, ret, "cannot write the export: %s", strerror(-ret));
        at += piece;
    }
    return 0;
}

int export_raw(struct image *img, const struct view *view, struct io *out)
{
    uint8_t *buf = malloc(COPY_BYTES);
    int ret = buf ? image_begin(img, false) : image_no_memory(img);
    uint64_t at = 0, start, end;
    while (ret == 0 && at < view->size_bytes) {
        ret = map_next_data(img, view, at, &start, &end);
        if (ret == 0)
            ret = copy_range(img, view, out, start, end, buf);
        at = end;
    }
    free(buf);
    if (ret < 0)
        return ret;
    ret = io_resize(out, view->size_bytes);
    if (ret == 0)
        ret = io_flush(out);
    return ret < 0 ? image_fail(img, ret, "cannot write the export: %s", strerror(-ret)) : 0;
}
