/* SPDX-License-Identifier: MIT
 *
 * See map.h.  Nothing here writes. */
#include "map.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "backing.h"
#include "codec.h"
#include "layout.h"
#include "snapshot.h"

int map_read_l2(struct image *img, uint64_t l1_entry, uint8_t *bytes)
{
    uint64_t host_off = l1_entry & QCOW2_OFFSET_MASK;
    uint32_t cluster_size = img->geo.cluster_size;
    if (l1_entry & QCOW2_L1_RESERVED)
        return image_fail(
            img, -EUCLEAN, "L1 entry 0x%016" PRIx64 " has reserved bits set; run qcheck", l1_entry);
    int ret = layout_check_range(img, "an L2 table", host_off, cluster_size);
    if (ret < 0)
        return ret;
    enum region hit = layout_overlap_fixed(img, host_off, cluster_size);
    if (hit != REGION_NONE)
        return image_fail(img, -EUCLEAN, "an L1 entry points to %s at 0x%" PRIx64 "; run qcheck",
            layout_name(hit), host_off);
    ret = io_read_padded(img->io, host_off, bytes, cluster_size);
    if (ret < 0)
        return image_fail(
            img, ret, "cannot read the L2 table at 0x%" PRIx64 ": %s", host_off, strerror(-ret));
    return 0;
}

static int bad_entry(struct image *img, const struct qcow2_l2_entry *entry, const char *what)
{
    return image_fail(img, -EUCLEAN, "L2 entry 0x%016" PRIx64 " %s; run qcheck", entry->raw, what);
}

static int check_bitmap(struct image *img, const struct qcow2_l2_entry *entry)
{
    uint32_t allocated = (uint32_t)entry->bitmap, zero = (uint32_t)(entry->bitmap >> 32);
    if (allocated & zero)
        return bad_entry(img, entry, "has subclusters both allocated and zero");
    if (entry->kind == QCOW2_L2_COMPRESSED && entry->bitmap)
        return bad_entry(img, entry, "is compressed and has subclusters");
    if (allocated && entry->kind == QCOW2_L2_UNALLOCATED)
        return bad_entry(img, entry, "has allocated subclusters but no cluster");
    return 0;
}

int map_entry(struct image *img, const uint8_t *l2, uint32_t idx, struct qcow2_l2_entry *entry)
{
    const struct qcow2_geometry *geo = &img->geo;
    qcow2_l2_decode(geo, l2 + (size_t)idx * geo->l2_entry_size, entry);
    if (entry->raw == 0 && entry->bitmap == 0)
        return 0;
    if (entry->kind == QCOW2_L2_COMPRESSED) {
        if (entry->copied)
            return bad_entry(img, entry, "is compressed and has the COPIED flag");
        if (entry->host_off >= img->file_size || entry->host_off < geo->cluster_size)
            return bad_entry(img, entry, "points outside the file");
    } else {
        if (entry->raw & (QCOW2_L2_RESERVED | (geo->extended_l2 ? QCOW2_ENTRY_ZERO : 0)))
            return bad_entry(img, entry, "has reserved bits set");
        if (!cluster_aligned(geo, entry->host_off))
            return bad_entry(img, entry, "is not aligned");
        if (entry->host_off >= img->file_size)
            return bad_entry(img, entry, "points outside the file");
    }
    return geo->extended_l2 ? check_bitmap(img, entry) : 0;
}

struct cluster_run map_entry_clusters(
    const struct qcow2_geometry *geo, const struct qcow2_l2_entry *entry)
{
    uint64_t first = cluster_of(geo, entry->host_off);
    if (entry->kind == QCOW2_L2_COMPRESSED)
        return (struct cluster_run){
            first, cluster_of(geo, entry->host_off + entry->length - 1) - first + 1};
    return (struct cluster_run){first, entry->host_off ? 1 : 0};
}

uint32_t map_subclusters(const struct qcow2_geometry *geo, uint32_t in_off, size_t length)
{
    uint32_t bytes = geo->cluster_size / QCOW2_SUBCLUSTERS;
    unsigned first = in_off / bytes, last = (unsigned)((in_off + length - 1) / bytes);
    return (UINT32_MAX >> (31 - (last - first))) << first;
}

/* ---- reading ------------------------------------------------------------------------------- */

static int read_host(struct image *img, uint64_t host_off, uint8_t *buf, size_t length)
{
    int ret = io_read_padded(img->io, host_off, buf, length);
    return ret < 0 ? image_fail(img, ret, "cannot read data at 0x%" PRIx64 ": %s", host_off,
                         strerror(-ret))
                   : 0;
}

static int read_unallocated(struct image *img, uint64_t guest_off, uint8_t *buf, size_t length)
{
    struct image_error why;
    if (!img->header.backing_off) {
        memset(buf, 0, length);
        return 0;
    }
    if (!img->backing)
        return image_fail(img, -ENOTSUP, "this data is in the backing file, which is not open");
    int ret = backing_read(img->backing, guest_off, buf, length, &why);
    return ret < 0 ? image_fail(img, ret, "cannot read the backing file %s", why.text) : 0;
}

static int read_compressed(struct image *img, const struct qcow2_l2_entry *entry, uint32_t in_off,
    uint8_t *buf, size_t length)
{
    size_t cluster_size = img->geo.cluster_size;
    uint8_t *packed = malloc(entry->length), *plain = malloc(cluster_size);
    int ret = packed && plain ? 0 : image_no_memory(img);
    if (ret == 0 && !img->codec) {
        ret = codec_open((enum qcow2_compression)img->header.compression, &img->codec);
        if (ret < 0)
            image_fail(img, ret, "cannot decompress: %s", strerror(-ret));
    }
    if (ret == 0)
        ret = read_host(img, entry->host_off, packed, entry->length);
    if (ret == 0) {
        ret = codec_decode(img->codec, packed, entry->length, plain, cluster_size);
        if (ret < 0)
            image_fail(img, ret, "the compressed cluster at 0x%" PRIx64 " cannot be decoded",
                entry->host_off);
    }
    if (ret == 0)
        memcpy(buf, plain + in_off, length);
    free(packed);
    free(plain);
    return ret;
}

static int read_subclusters(struct image *img, const struct qcow2_l2_entry *entry,
    uint64_t guest_off, uint8_t *buf, size_t length)
{
    uint32_t bytes = img->geo.cluster_size / QCOW2_SUBCLUSTERS;
    while (length > 0) {
        uint32_t in_off = (uint32_t)(guest_off % img->geo.cluster_size);
        uint32_t bit = UINT32_C(1) << in_off / bytes;
        size_t piece = bytes - in_off % bytes;
        piece = piece < length ? piece : length;
        int ret = 0;
        if ((uint32_t)(entry->bitmap >> 32) & bit)
            memset(buf, 0, piece);
        else if ((uint32_t)entry->bitmap & bit)
            ret = read_host(img, entry->host_off + in_off, buf, piece);
        else
            ret = read_unallocated(img, guest_off, buf, piece);
        if (ret < 0)
            return ret;
        guest_off += piece, buf += piece, length -= piece;
    }
    return 0;
}

int map_read_entry(struct image *img, const struct qcow2_l2_entry *entry, uint64_t guest_off,
    uint8_t *buf, size_t length)
{
    uint32_t in_off = (uint32_t)(guest_off % img->geo.cluster_size);
    if (entry->kind == QCOW2_L2_COMPRESSED)
        return read_compressed(img, entry, in_off, buf, length);
    if (img->geo.extended_l2)
        return read_subclusters(img, entry, guest_off, buf, length);
    switch (entry->kind) {
    case QCOW2_L2_NORMAL:
        return read_host(img, entry->host_off + in_off, buf, length);
    case QCOW2_L2_UNALLOCATED:
        return read_unallocated(img, guest_off, buf, length);
    default:
        memset(buf, 0, length);
        return 0;
    }
}

/* The part of a guest range that lies under one L2 table. */
static size_t piece_in(uint64_t guest_off, size_t length, uint64_t unit)
{
    uint64_t room = unit - guest_off % unit;
    return length < room ? length : (size_t)room;
}

static int read_under_l2(
    struct image *img, const uint8_t *l2, uint64_t guest_off, uint8_t *buf, size_t length)
{
    const struct qcow2_geometry *geo = &img->geo;
    while (length > 0) {
        uint32_t idx = (uint32_t)(guest_off % geo->l2_span >> geo->cluster_bits);
        size_t piece = piece_in(guest_off, length, geo->cluster_size);
        struct qcow2_l2_entry entry;
        int ret = map_entry(img, l2, idx, &entry);
        if (ret == 0)
            ret = map_read_entry(img, &entry, guest_off, buf, piece);
        if (ret < 0)
            return ret;
        guest_off += piece, buf += piece, length -= piece;
    }
    return 0;
}

int map_read(
    struct image *img, const struct view *view, uint64_t guest_off, void *buf, size_t length)
{
    uint8_t *dst = buf, *l2 = malloc(img->geo.cluster_size);
    int ret = l2 ? 0 : image_no_memory(img);
    while (ret == 0 && length > 0) {
        uint64_t idx = guest_off / img->geo.l2_span;
        size_t piece = piece_in(guest_off, length, img->geo.l2_span);
        if (idx < view->l1_size && view->l1[idx] & QCOW2_OFFSET_MASK) {
            ret = map_read_l2(img, view->l1[idx], l2);
            if (ret == 0)
                ret = read_under_l2(img, l2, guest_off, dst, piece);
        } else {
            ret = read_unallocated(img, guest_off, dst, piece);
        }
        guest_off += piece, dst += piece, length -= piece;
    }
    free(l2);
    return ret;
}

static bool may_hold_data(struct image *img, const uint8_t *l2, uint32_t idx)
{
    struct qcow2_l2_entry e;
    qcow2_l2_decode(&img->geo, l2 + (size_t)idx * img->geo.l2_entry_size, &e);
    if (e.kind == QCOW2_L2_ZERO_ALLOC || e.kind == QCOW2_L2_ZERO_PLAIN)
        return false;
    if (e.kind == QCOW2_L2_UNALLOCATED && (e.bitmap >> 32) != UINT32_MAX)
        return img->header.backing_off != 0;
    return e.kind != QCOW2_L2_UNALLOCATED;
}

int map_next_data(
    struct image *img, const struct view *view, uint64_t guest_off, uint64_t *start, uint64_t *end)
{
    const struct qcow2_geometry *geo = &img->geo;
    uint8_t *l2 = malloc(geo->cluster_size);
    int ret = l2 ? 0 : image_no_memory(img);
    uint64_t at = guest_off;
    bool in_data = false;
    *start = *end = view->size_bytes;
    while (ret == 0 && at < view->size_bytes) {
        uint64_t l1_idx = at / geo->l2_span;
        bool mapped = l1_idx < view->l1_size && view->l1[l1_idx] & QCOW2_OFFSET_MASK;
        ret = mapped ? map_read_l2(img, view->l1[l1_idx], l2) : 0;
        uint64_t step = mapped ? geo->cluster_size : geo->l2_span;
        for (; ret == 0 && at / geo->l2_span == l1_idx && at < view->size_bytes;
             at = (at / step + 1) * step) {
            uint32_t idx = (uint32_t)(at % geo->l2_span >> geo->cluster_bits);
            bool data = mapped ? may_hold_data(img, l2, idx) : img->header.backing_off != 0;
            if (data && !in_data)
                *start = at;
            if (!data && in_data) {
                *end = at;
                free(l2);
                return 0;
            }
            in_data = data;
        }
        if (in_data && at - *start >= geo->l2_span)
            break; /* enough at once: the tables are read again for the next range */
    }
    if (in_data)
        *end = at < view->size_bytes ? at : view->size_bytes;
    free(l2);
    return ret;
}

struct view image_view(const struct image *img)
{
    return (struct view){img->l1, img->header.l1_size, img->header.size_bytes};
}

int view_read(
    struct image *img, const struct view *view, uint64_t guest_off, void *buf, size_t length)
{
    uint64_t end;
    int ret = image_begin(img, false);
    if (ret == 0)
        ret = image_needs_plain_data(img);
    if (ret < 0)
        return ret;
    if (!range_end(guest_off, length, &end) || end > view->size_bytes)
        return image_fail(img, -ERANGE, "the range passes the end of the disk");
    return map_read(img, view, guest_off, buf, length);
}

int image_read(struct image *img, uint64_t guest_off, void *buf, size_t length)
{
    int ret = image_begin(img, false); /* may read the L1 again */
    if (ret < 0)
        return ret;
    struct view view = image_view(img);
    return view_read(img, &view, guest_off, buf, length);
}
