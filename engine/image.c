/* SPDX-License-Identifier: MIT
 *
 * The open image: reading its state, barriers, giving up clusters, the header's feature bits.
 * See image.h for the rules. */
#include "image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backing.h"
#include "bitmap.h"
#include "codec.h"
#include "layout.h"
#include "refcount.h"
#include "snapshot.h"

int image_fail(struct image *img, int err, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(img->error.text, sizeof(img->error.text), format, args);
    va_end(args);
    return err;
}

const char *image_error(const struct image *img)
{
    return img->error.text;
}

uint64_t image_size(const struct image *img)
{
    return img->header.size_bytes;
}

int runs_add(struct cluster_runs *runs, uint64_t first, uint64_t count)
{
    struct cluster_run *last = runs->count > 0 ? &runs->list[runs->count - 1] : NULL;
    if (last && last->first + last->count == first) {
        last->count += count;
        return 0;
    }
    if (!runs->list || runs->count == runs->capacity) {
        size_t capacity = runs->capacity ? runs->capacity * 2 : 16;
        struct cluster_run *list = realloc(runs->list, capacity * sizeof(*list));
        if (!list)
            return -ENOMEM;
        runs->list = list;
        runs->capacity = capacity;
    }
    runs->list[runs->count++] = (struct cluster_run){first, count};
    return 0;
}

/* ---- reading the state --------------------------------------------------------------------- */

int image_read_words(struct image *img, uint64_t host_off, uint64_t count, uint64_t **out)
{
    uint64_t *words = malloc(count > 0 ? (size_t)count * 8 : 8);
    if (!words)
        return image_no_memory(img);
    int ret = io_read_padded(img->io, host_off, words, (size_t)count * 8);
    if (ret < 0) {
        free(words);
        return image_fail(
            img, ret, "cannot read the table at 0x%" PRIx64 ": %s", host_off, strerror(-ret));
    }
    for (uint64_t i = 0; i < count; i++)
        words[i] = load_be64((const uint8_t *)&words[i]);
    *out = words;
    return 0;
}

static int check_features(struct image *img, const struct qcow2_header *h)
{
    if (h->magic != QCOW2_MAGIC)
        return image_fail(img, -EILSEQ, "not a qcow2 image");
    if (h->version < 2 || h->version > 3)
        return image_fail(img, -ENOTSUP, "qcow2 version %" PRIu32 " is not known", h->version);
    if (h->incompatible & ~QCOW2_INCOMPAT_KNOWN)
        return image_fail(img, -ENOTSUP, "unknown incompatible features 0x%" PRIx64,
            h->incompatible & ~QCOW2_INCOMPAT_KNOWN);
    if (h->incompatible & QCOW2_INCOMPAT_DATA_FILE)
        return image_fail(img, -ENOTSUP, "images with an external data file are not supported");
    if (h->compression > QCOW2_ZSTD)
        return image_fail(img, -ENOTSUP, "compression type %u is not known", h->compression);
    return 0;
}

static int check_header(struct image *img, const struct qcow2_header *h)
{
    int ret = check_features(img, h);
    if (ret < 0)
        return ret;
    if (qcow2_geometry_init(h, &img->geo) < 0)
        return image_fail(img, -EUCLEAN, "impossible cluster size, refcount width or L2 format");
    uint64_t l1_bytes = h->l1_size * UINT64_C(8);
    if (h->version >= 3 && (h->header_length < QCOW2_V3_HEADER_BYTES || h->header_length % 8 ||
                               h->header_length > img->geo.cluster_size))
        return image_fail(img, -EUCLEAN, "impossible header length %" PRIu32, h->header_length);
    if (h->size_bytes > INT64_MAX || l1_bytes > QCOW2_MAX_L1_BYTES ||
        l1_entries_for(&img->geo, h->size_bytes) > h->l1_size)
        return image_fail(img, -EUCLEAN,
            "an L1 table of %" PRIu32 " entries does not fit a disk of %" PRIu64 " bytes",
            h->l1_size, h->size_bytes);
    if (h->snapshot_count > QCOW2_MAX_SNAPSHOTS)
        return image_fail(img, -EUCLEAN, "%" PRIu32 " snapshots are too many", h->snapshot_count);
    return h->l1_size ? layout_check_range(img, "the L1 table", h->l1_off, l1_bytes) : 0;
}

/* Finds the bitmaps extension; the other ones do not matter here. */
static int read_extensions(struct image *img, const uint8_t *cluster)
{
    const struct qcow2_header *h = &img->header;
    size_t end = img->geo.cluster_size, pos = h->header_length;
    if (h->backing_off > pos && h->backing_off < end)
        end = (size_t)h->backing_off;
    struct qcow2_ext ext;
    int ret;
    while ((ret = qcow2_ext_next(cluster, end, &pos, &ext)) > 0) {
        if (ext.type == QCOW2_EXT_BITMAPS && ext.length >= QCOW2_BITMAPS_EXT_BYTES)
            qcow2_bitmaps_ext_decode(ext.data, &img->bitmaps.ext);
    }
    return ret < 0 ? image_fail(img, -EUCLEAN, "a header extension passes its cluster; run qcheck")
                   : 0;
}

static int read_header(struct image *img)
{
    uint8_t head[QCOW2_SECTOR_BYTES];
    struct qcow2_header h;
    int ret = io_size(img->io, &img->file_size);
    if (ret == 0)
        ret = io_read_padded(img->io, 0, head, sizeof(head));
    if (ret < 0)
        return image_fail(img, ret, "cannot read the header: %s", strerror(-ret));
    qcow2_header_decode(head, sizeof(head), &h); /* a sector holds all its fields */
    ret = check_header(img, &h);
    if (ret < 0)
        return ret;
    img->header = h;
    uint8_t *cluster = malloc(img->geo.cluster_size);
    if (!cluster)
        return image_no_memory(img);
    ret = io_read_padded(img->io, 0, cluster, img->geo.cluster_size);
    if (ret < 0)
        image_fail(img, ret, "cannot read the header: %s", strerror(-ret));
    else
        ret = read_extensions(img, cluster);
    free(cluster);
    return ret;
}

static void forget_state(struct image *img)
{
    refcount_release(img);
    snapshot_release(img);
    bitmap_release(img);
    free(img->l1);
    img->l1 = NULL;
}

/* Everything memory holds, from the device. */
static int load_state(struct image *img)
{
    forget_state(img);
    img->stale = true;
    int ret = read_header(img);
    if (ret == 0)
        ret = image_read_words(img, img->header.l1_off, img->header.l1_size, &img->l1);
    if (ret == 0)
        ret = refcount_load(img);
    if (ret == 0)
        ret = snapshot_load(img);
    if (ret == 0)
        ret = bitmap_load(img);
    if (ret == 0)
        img->stale = false;
    return ret;
}

int image_open(struct io *io, unsigned flags, struct image **out, struct image_error *why)
{
    struct image *img = calloc(1, sizeof(*img));
    if (!img) {
        if (why)
            snprintf(why->text, sizeof(why->text), "out of memory");
        return -ENOMEM;
    }
    img->io = io;
    img->flags = flags;
    img->refblock_bytes = REFCOUNT_MEMORY;
    int ret = load_state(img);
    if (ret < 0) {
        if (why)
            *why = img->error;
        image_abandon(img);
        return ret;
    }
    *out = img;
    return 0;
}

void image_abandon(struct image *img)
{
    if (!img)
        return;
    forget_state(img);
    backing_close(img->backing);
    codec_close(img->codec);
    free(img->dropped.list);
    free(img);
}

/* ---- writing ------------------------------------------------------------------------------- */

static int write_failed(struct image *img, const char *what, uint64_t host_off, int err)
{
    return image_fail(
        img, err, "cannot write %s at 0x%" PRIx64 ": %s", what, host_off, strerror(-err));
}

int image_check_flushed(struct image *img)
{
    return img->failed ? image_fail(img, -EIO, "a flush failed; open the image again") : 0;
}

int image_write_meta(
    struct image *img, unsigned own, uint64_t host_off, const void *buf, size_t length)
{
    int ret = image_check_flushed(img);
    if (ret < 0)
        return ret;
    enum region hit = layout_overlap(img, (enum region)own, host_off, length);
    if (hit != REGION_NONE)
        return image_fail(img, -EUCLEAN,
            "a write to 0x%" PRIx64 " would destroy %s; run qcheck --repair", host_off,
            layout_name(hit));
    ret = io_write(img->io, host_off, buf, length);
    img->unflushed = true;
    if (ret < 0)
        return write_failed(img, "metadata", host_off, ret);
    if (img->file_size < host_off + length)
        img->file_size = host_off + length;
    return 0;
}

int image_write_header(struct image *img, uint64_t host_off, const void *buf, size_t length)
{
    int ret = image_check_flushed(img);
    if (ret < 0)
        return ret;
    img->unflushed = true;
    ret = io_write(img->io, host_off, buf, length);
    return ret < 0 ? write_failed(img, "the header", host_off, ret) : 0;
}

int image_barrier(struct image *img)
{
    int ret = image_check_flushed(img);
    if (ret < 0)
        return ret;
    ret = io_flush(img->io);
    if (ret < 0) {
        /* Each write since the last barrier may be there or not, whatever can be read.  What was
         * dropped may still be referenced on the device: it leaks. */
        img->failed = true;
        img->stale = true;
        return image_fail(img, ret, "cannot make the changes durable: %s", strerror(-ret));
    }
    img->dropped_durable = img->dropped.count;
    img->unflushed = false;
    return 0;
}

void image_drop(struct image *img, uint64_t first, uint64_t count)
{
    struct cluster_runs *runs = &img->dropped;
    if (count == 0)
        return;
    if (runs->count > img->dropped_durable) {
        (void)runs_add(runs, first, count);
        return;
    }
    /* The last one is durable: not to be merged with it.  An empty run keeps them apart. */
    if (runs->count == 0 || runs_add(runs, UINT64_MAX, 0) == 0)
        (void)runs_add(runs, first, count);
}

/* Without snapshots the header may name the L1 table of the last one in place of a snapshot table
 * (see snapshot_delete()), until that is given up. */
static int forget_deleted(struct image *img, const struct cluster_runs *runs, size_t count)
{
    static const uint8_t nowhere[8];
    struct qcow2_header *h = &img->header;
    uint64_t cluster = cluster_of(&img->geo, h->snapshots_off);
    bool named = false;
    for (size_t i = 0; i < count; i++)
        named |= cluster - runs->list[i].first < runs->list[i].count;
    if (!named || h->snapshot_count > 0)
        return 0;
    int ret = image_write_header(img, QCOW2_HDR_SNAPSHOTS_OFF, nowhere, sizeof(nowhere));
    if (ret == 0)
        h->snapshots_off = 0;
    return ret;
}

int image_settle(struct image *img)
{
    struct cluster_runs *runs = &img->dropped;
    size_t durable = img->dropped_durable;
    if (durable == 0)
        return 0;
    bool unflushed = img->unflushed;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < durable; i++)
        ret = refcount_add(img, runs->list[i].first, runs->list[i].count, -1);
    if (ret == 0)
        ret = refcount_write(img);
    if (ret == 0)
        ret = forget_deleted(img, runs, durable);
    /* Whatever happened, never lower them again. */
    memmove(runs->list, runs->list + durable, (runs->count - durable) * sizeof(*runs->list));
    runs->count -= durable;
    img->dropped_durable = 0;
    img->unflushed = unflushed; /* if these writes are lost, clusters leak: needs no barrier */
    return ret;
}

/* ---- calls --------------------------------------------------------------------------------- */

/* Unknown autoclear bits are cleared before the image changes: they vouch for data that we would
 * not keep in step. */
static int clear_unknown_autoclear(struct image *img)
{
    struct qcow2_header *h = &img->header;
    uint64_t known = h->autoclear & QCOW2_AUTOCLEAR_BITMAPS;
    if (h->version < 3 || known == h->autoclear)
        return 0;
    uint8_t field[8];
    store_be64(field, known);
    int ret = image_write_header(img, QCOW2_HDR_AUTOCLEAR, field, sizeof(field));
    if (ret == 0)
        ret = image_barrier(img); /* durable before the first change they would lie about */
    img->stale |= ret < 0;
    if (ret == 0)
        h->autoclear = known;
    return ret;
}

static int check_writable(struct image *img)
{
    const struct qcow2_header *h = &img->header;
    if (!(img->flags & IMAGE_WRITE))
        return image_fail(img, -EROFS, "the image was opened for reading only");
    if (h->incompatible & QCOW2_INCOMPAT_CORRUPT)
        return image_fail(img, -EUCLEAN, "the image is marked corrupt; run qcheck --repair first");
    if ((h->incompatible & QCOW2_INCOMPAT_DIRTY) && !img->own_dirty)
        return image_fail(img, -EUCLEAN,
            "the image is marked dirty (not closed cleanly); run qcheck --repair first");
    int ret = image_check_flushed(img);
    return ret < 0 ? ret : image_needs_plain_data(img);
}

int image_needs_plain_data(struct image *img)
{
    if (img->header.crypt_method != QCOW2_CRYPT_NONE)
        return image_fail(img, -ENOTSUP, "encrypted images can only be listed");
    return 0;
}

int image_begin(struct image *img, bool write)
{
    int ret = img->stale ? load_state(img) : 0;
    img->error.text[0] = ret < 0 ? img->error.text[0] : '\0';
    if (ret < 0)
        return ret;
    ret = io_size(img->io, &img->file_size);
    if (ret < 0)
        return image_fail(img, ret, "cannot tell the size of the image: %s", strerror(-ret));
    if (!write)
        return 0;
    ret = check_writable(img);
    if (ret == 0 && !img->prepared)
        ret = clear_unknown_autoclear(img);
    if (ret == 0)
        img->prepared = true;
    return ret;
}

int image_refresh(struct image *img)
{
    return image_begin(img, false);
}

int image_end(struct image *img, int ret)
{
    if (ret < 0)
        refcount_forget(img);
    refcount_trim(img);
    return ret;
}

/* 1. -- barrier: data, tables, and what they no longer point to
 * 2. lowered counts of what was dropped; lost, they are leaks, so no barrier */
static int flush_now(struct image *img)
{
    int ret = img->unflushed ? image_barrier(img) : 0;
    return ret < 0 ? ret : image_settle(img);
}

int image_flush(struct image *img)
{
    int ret = image_begin(img, false);
    if (ret == 0)
        ret = image_check_flushed(img);
    if (ret == 0)
        ret = flush_now(img);
    return image_end(img, ret);
}

bool image_is_lazy(const struct image *img)
{
    return img->header.version >= 3 && (img->header.compatible & QCOW2_COMPAT_LAZY);
}

static int write_incompatible(struct image *img, uint64_t bits)
{
    uint8_t field[8];
    store_be64(field, bits);
    int ret = image_write_header(img, QCOW2_HDR_INCOMPATIBLE, field, sizeof(field));
    if (ret == 0)
        ret = image_barrier(img);
    if (ret == 0)
        img->header.incompatible = bits;
    img->stale |= ret < 0;
    return ret;
}

int image_lazy_begin(struct image *img)
{
    if (!image_is_lazy(img) || img->dirty_set)
        return 0;
    /* The bit may be on the device even if the call fails, and it is ours then; but counts may lag
     * behind only once it is known to be there. */
    img->own_dirty = true;
    int ret = write_incompatible(img, img->header.incompatible | QCOW2_INCOMPAT_DIRTY);
    img->dirty_set = ret == 0;
    return ret;
}

int image_close(struct image *img)
{
    int ret = 0;
    if (img->flags & IMAGE_WRITE)
        ret = image_flush(img);
    if (ret == 0 && img->own_dirty) {
        /* All counts, the lowered ones too, are durable before the bit may go. */
        ret = image_barrier(img);
        if (ret == 0)
            ret = write_incompatible(img, img->header.incompatible & ~QCOW2_INCOMPAT_DIRTY);
    }
    image_abandon(img);
    return ret;
}
