/* SPDX-License-Identifier: MIT
 *
 * An open qcow2 image: what a program calls, and the state the parts of the engine share.
 *
 * Every function returns 0 or -errno and leaves one line for people in image_error().  After an
 * error the image is as before the call or as after it, at worst with leaked clusters, and the
 * handle can be used on: what memory holds is what the device holds, or is read again first.  Only
 * a failed flush ends its life as a writer: what can be read then may be a cache that the device
 * has lost and that no later flush saves, so all that writes or flushes answers -EIO from then on,
 * image_close() too.  Reading goes on.
 *
 * Order is all there is to crash safety here.  Nothing is written behind a caller's back; each
 * function lists its writes and barriers, and these rules hold between any two barriers:
 *   - stored refcount >= references that any surviving state may hold;
 *   - COPIED only where exactly one reference exists, in every surviving state;
 *   - a cluster is given up (its count lowered) only when the metadata that dropped the last
 *     reference is durable, and is reused or discarded only after that. */
#ifndef ENGINE_IMAGE_H
#define ENGINE_IMAGE_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io.h"
#include "qcow2.h"

enum { IMAGE_ERROR_BYTES = 256 };

enum image_flags {
    IMAGE_WRITE = 1 << 0,
};

struct image_error {
    char text[IMAGE_ERROR_BYTES];
};

struct image;

/* ---- for programs -------------------------------------------------------------------------- */

/* Opens the image on `io`, which stays the caller's and must outlive the handle.  Writes nothing.
 * `why` (may be NULL) gets the line that image_error() would give.
 *   -EILSEQ not qcow2, -ENOTSUP a feature this engine cannot handle, -EUCLEAN damaged. */
int image_open(struct io *io, unsigned flags, struct image **out, struct image_error *why);

/* Makes everything durable and lets go of what is not referenced any more. */
int image_flush(struct image *img);

/* image_flush(), clears the dirty bit if this handle set it, and releases the handle whatever
 * happens.  The result tells whether all of that worked. */
int image_close(struct image *img);

/* Releases the handle and does no I/O: after a power cut, or for readers.  NULL is allowed. */
void image_abandon(struct image *img);

/* Reads the state again if an error left it open which of two the device has; other calls do that
 * themselves, but these simple questions below, and snapshot_list(), answer from memory. */
int image_refresh(struct image *img);

const char *image_error(const struct image *img);
uint64_t image_size(const struct image *img); /* of the virtual disk */

/* The active disk.  -ERANGE when the range passes its end.  Writes are durable after the next
 * image_flush(); until then each sector of the range is the old or the new one. */
int image_read(struct image *img, uint64_t guest_off, void *buf, size_t length);
int image_write(struct image *img, uint64_t guest_off, const void *buf, size_t length);

/* Clusters (with extended L2: subclusters) wholly inside the range read as zeros afterwards and
 * give up their space; the rest of the range, and a compressed cluster of which only a part is
 * inside, is left alone.  The disk's end counts as aligned. */
int image_discard(struct image *img, uint64_t guest_off, uint64_t length);

/* Changes the size of the virtual disk; what is new reads as zeros. */
int image_resize(struct image *img, uint64_t size_bytes);

struct image_options {
    uint64_t size_bytes;
    uint32_t cluster_size;  /* 512 .. 2 MiB, a power of two */
    unsigned refcount_bits; /* 1, 2, 4 .. 64 */
    unsigned version;       /* 2 or 3 */
    bool extended_l2, lazy_refcounts;
    enum qcow2_compression compression;
};

/* What `qemu-img create` would take: clusters of 64 KiB, refcounts of 16 bits, version 3. */
struct image_options image_options_default(uint64_t size_bytes);

/* Makes a new image on `io`, over whatever was there, durably. */
int image_create(struct io *io, const struct image_options *options, struct image_error *why);

/* ---- shared by the parts of the engine ----------------------------------------------------- */

struct cluster_run {
    uint64_t first, count; /* in clusters */
};

struct cluster_runs {
    struct cluster_run *list;
    size_t count, capacity;
};

struct refblock {
    uint8_t *bytes; /* NULL: not loaded */
    bool staged;    /* changed in memory, not yet written */
    bool attempted; /* this call wrote it, or tried to: the device may have the change */
};

/* The refcount table as on disk, and the blocks loaded so far.  Only between the start and the end
 * of one call may a block differ from the device: it is `staged` then. */
struct refcounts {
    uint64_t *table;
    uint64_t table_len;
    struct refblock *blocks; /* one per table entry */
    uint64_t loaded;
    uint64_t free_hint;        /* no free cluster below this one */
    struct cluster_runs freed; /* staged to 0 since the last refcount_write() */
    bool undoing;              /* changes go to attempted blocks only */
};

struct snapshot_table {
    struct qcow2_snapshot *list; /* pointing into `bytes` */
    uint32_t count;
    uint8_t *bytes; /* the table as on disk, padded */
    uint64_t length;
};

struct bitmap {
    struct qcow2_bitmap entry; /* without its name */
};

struct bitmaps {
    struct qcow2_bitmaps_ext ext;
    struct bitmap *list;
    uint32_t count;
};

/* A guest disk to look at: the active one or a snapshot's. */
struct view {
    const uint64_t *l1;
    uint32_t l1_size;
    uint64_t size_bytes;
};

struct backing;
struct codec;

struct image {
    struct io *io;
    unsigned flags;
    uint64_t file_size;      /* when the current call began, or after its writes */
    uint64_t refblock_bytes; /* of refcount blocks in memory while a whole tree is counted */

    struct qcow2_header header;
    struct qcow2_geometry geo;
    uint64_t *l1; /* the active one, header.l1_size entries */
    struct refcounts refs;
    struct snapshot_table snaps;
    struct bitmaps bitmaps;

    uint64_t *layout_index; /* see layout_index_build(); NULL: none */
    size_t layout_count;

    /* References that were dropped on the device; the first `dropped_durable` of them durably. */
    struct cluster_runs dropped;
    size_t dropped_durable;

    bool unflushed;          /* something other than freeing was written since the last barrier */
    bool stale;              /* memory and device may differ: read again before anything else */
    bool failed;             /* a flush failed: nothing is written any more */
    bool prepared;           /* the autoclear bits are seen to */
    bool own_dirty;          /* the dirty bit on disk, if it is set, is ours */
    bool dirty_set;          /* and is set, durably */
    struct backing *backing; /* see backing.h; NULL: none, or not opened */
    struct codec *codec;
    struct image_error error;
};

/* Sets the text and returns err, for `return image_fail(...)`. */
int image_fail(struct image *img, int err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static inline int image_no_memory(struct image *img)
{
    image_fail(img, -ENOMEM, "out of memory");
    return -ENOMEM;
}

/* What every call does first; `write` asks whether this image may be written at all, and for the
 * first write brings the header's feature bits in order. */
int image_begin(struct image *img, bool write);

/* What every call that may have staged something does last; passes `ret` on.  After an error
 * forgets what is staged. */
int image_end(struct image *img, int ret);

/* -ENOTSUP for images whose guest data cannot be understood without a key. */
int image_needs_plain_data(struct image *img);

/* One write of metadata of the kind `own` (layout.h), after a look at what is there. */
int image_write_meta(
    struct image *img, unsigned own, uint64_t host_off, const void *buf, size_t length);

/* -EIO once a flush has failed: what may not be built upon any more must not be written to. */
int image_check_flushed(struct image *img);

/* A barrier: what was written before is durable when it returns 0.  After an error nobody knows,
 * nor will a later flush tell: nothing is written any more. */
int image_barrier(struct image *img);

/* Writes header bytes [host_off, + length) of the first sector: a switch that cannot tear. */
int image_write_header(struct image *img, uint64_t host_off, const void *buf, size_t length);

/* On an image with lazy refcounts: the dirty bit, durably, before counts may lag behind. */
int image_lazy_begin(struct image *img);
bool image_is_lazy(const struct image *img);

/* Notes that [first, + count) lost a reference on the device.  Out of memory: they leak. */
void image_drop(struct image *img, uint64_t first, uint64_t count);

/* Lowers the counts of what was dropped durably. */
int image_settle(struct image *img);

/* -ENOMEM; neighbours are merged. */
int runs_add(struct cluster_runs *runs, uint64_t first, uint64_t count);

/* Reads `count` big-endian words into a new array. */
int image_read_words(struct image *img, uint64_t host_off, uint64_t count, uint64_t **out);

#endif
