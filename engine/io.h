/* SPDX-License-Identifier: MIT
 *
 * struct io: the block device everything in this project reads and writes through.
 *
 * A layer is an object with this table of functions; a filter (undo log, fault model, recorder)
 * takes the next layer as an argument when it is opened and owns it from then on.  There is no
 * hidden write-back cache anywhere: a write that returned 0 has been handed to the layer below,
 * and only io_flush() makes it durable.
 *
 * Every function returns 0 or -errno.  Offsets and lengths are bytes.  A layer is used by one
 * thread at a time, except that `read` and `size` may be called from several threads at once when
 * `concurrent_reads` is set.
 */
#ifndef ENGINE_IO_H
#define ENGINE_IO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crew.h"

struct io;

struct io_ops {
    /* Reads exactly `length` bytes.  A range that passes the end of the device is -ERANGE: whoever
     * reads knows the size, so this also tells that the device shrank. */
    int (*read)(struct io *io, uint64_t host_off, void *buf, size_t length);

    /* Writes exactly `length` bytes, growing the device when the range passes its end (the gap
     * reads as zeros).  After an error any part of the range may have been written. */
    int (*write)(struct io *io, uint64_t host_off, const void *buf, size_t length);

    /* When it returns 0, every write, resize and discard that completed before the call is
     * durable.  After an error nothing is known about any of them, now or later. */
    int (*flush)(struct io *io);

    /* Current size of the device. */
    int (*size)(struct io *io, uint64_t *size_bytes);

    /* Sets the size; a grown area reads as zeros. */
    int (*resize)(struct io *io, uint64_t size_bytes);

    /* The range is of no use any more; it may read as anything afterwards.  Optional (NULL: the
     * call succeeds and does nothing). */
    int (*discard)(struct io *io, uint64_t host_off, uint64_t length);

    /* Releases the layer and those below it.  Never flushes. */
    void (*close)(struct io *io);

    /* Optional: the first range at or after `host_off` that may hold something other than zeros,
     * as [*start, *end); both are the device size when there is none. */
    int (*extents)(struct io *io, uint64_t host_off, uint64_t *start, uint64_t *end);
};

struct io {
    const struct io_ops *ops;
    bool concurrent_reads; /* read and size may be called from several threads */
    bool read_only;        /* write, resize and discard answer -EROFS */
};

int io_read(struct io *io, uint64_t host_off, void *buf, size_t length);
int io_write(struct io *io, uint64_t host_off, const void *buf, size_t length);
int io_flush(struct io *io);
int io_size(struct io *io, uint64_t *size_bytes);
int io_resize(struct io *io, uint64_t size_bytes);
int io_discard(struct io *io, uint64_t host_off, uint64_t length);
void io_close(struct io *io); /* NULL is allowed */

/* Like the optional member; a layer without it has one extent, the whole device. */
int io_extents(struct io *io, uint64_t host_off, uint64_t *start, uint64_t *end);

/* Reads `length` bytes; what lies at or past the end of the device reads as zeros.  qcow2 allows
 * the last cluster of a file to be cut short. */
int io_read_padded(struct io *io, uint64_t host_off, void *buf, size_t length);

/* ---- many reads at once (io_batch.c) ---- */

/* `result` is 0 or -errno of that request alone; a `length` of 0 reads nothing. */
struct io_read_req {
    uint64_t host_off;
    size_t length;
    void *buf;
    int result;
};

/* Reads that go on, in any order, while the caller does something else.  From the start on until it
 * has waited the batch and its buffers must be left alone; on a layer without concurrent_reads
 * nothing happens before the wait. */
struct io_batch {
    struct io *io;
    struct crew *crew; /* NULL: one read after the other */
    struct io_read_req *reqs;
    size_t count;
    struct crew_task task; /* not the caller's */
};
void io_batch_start(struct io_batch *batch);
void io_batch_wait(struct io_batch *batch);

/* ---- the real file (io_file.c) ---- */

enum io_file_flags {
    IO_FILE_WRITE = 1 << 0,   /* open for writing; the default is reading only */
    IO_FILE_SHARE = 1 << 1,   /* look although another program has the image open (-U) */
    IO_FILE_NO_LOCK = 1 << 2, /* no image locks at all: backing and data files, new files */
    IO_FILE_CREATE = 1 << 3,  /* create, and fail with -EEXIST if it is there */
};

/* What io_file_open() found out that an error number cannot say. */
struct io_file_info {
    int lock_byte;        /* -EBUSY: the byte another program holds, such as 101; else 0 */
    long holder_pid;      /* a process that has the file open, 0 if none could be found */
    char holder_name[32]; /* its command name, "" if unknown */
    bool unlocked;        /* this file system or device has no such locks: nothing was locked */
    bool block_device;
};

/* Opens `path`, a regular file or a block device; anything else is -ENOTBLK.  Takes QEMU's image
 * locks for a reader or a writer; -EBUSY when another program's claims forbid it.  `info` may be
 * NULL.  On success *out is owned by the caller. */
int io_file_open(const char *path, unsigned flags, struct io **out, struct io_file_info *info);

/* What a lock byte stands for, such as "write"; for messages. */
const char *io_file_lock_name(int lock_byte);

/* ---- an image in memory (io_mem.c) ---- */

/* A new empty image of `size_bytes` zeros. */
int io_mem_open(uint64_t size_bytes, struct io **out);

/* How many of `length` bytes, 1 or more, are of a kind: *held if memory is used for them, because
 * they were written, and not if they are a hole.  The cost is that of the run.  `mem` must be an
 * io_mem layer. */
uint64_t io_mem_run(struct io *mem, uint64_t host_off, uint64_t length, bool *held);

/* A copy that shares all pages with `src` until one of the two writes: costs a few pointers per
 * 2 MiB.  `src` must be an io_mem layer. */
int io_mem_branch(struct io *src, struct io **out);

/* Reads a whole layer of any kind into a new image in memory; holes stay holes. */
int io_mem_load(struct io *src, struct io **out);

/* ---- a view that can be written to (io_overlay.c) ---- */

/* A view of `base`, which is only read, must not change, and stays the caller's.  What is written
 * to the view is kept in memory until it is closed. */
int io_overlay_open(struct io *base, struct io **out);

/* ---- reads that failed (io_watch.c) ---- */

/* A filter over `below`, which stays the caller's, that counts the reads that failed, unless it was
 * for the end of the device.  Discards do not reach `below`. */
struct io_watch {
    struct io io;
    struct io *below;
    atomic_uint failures;
};
void io_watch_init(struct io_watch *watch, struct io *below);
unsigned io_watch_failures(struct io_watch *watch);

/* ---- files that images name (io_name.c) ---- */

/* The path of a file that the image at `beside` names; relative names start at its folder.  The
 * bytes are the image's: -EINVAL unless they are a plain path (no protocol such as nbd:, no NUL).
 * -ENOMEM. *path is malloc'd. */
int io_file_named(const char *beside, const uint8_t *name, size_t length, char **path);

/* The files of a chain, by what they are and not by name. */
enum { IO_CHAIN_MAX = 200 }; /* behind the first one */
struct io_chain {
    struct {
        uint64_t dev, ino;
    } seen[IO_CHAIN_MAX + 1];
    size_t depth; /* files so far */
};

/* Adds the file at `path`, unless nothing is there.  -EEXIST if it is in the chain already, -ELOOP
 * if the chain is full. */
int io_chain_add(struct io_chain *chain, const char *path);

/* ---- old bytes saved first (io_undo.c) ---- */

/* A filter over `next` that saves, durably, the old content of every range in the file `log` before
 * it is overwritten or cut off.  `log` must be empty (-EEXIST).  Discards do not reach `next`. Owns
 * both when it succeeds, neither when it fails. */
int io_undo_open(struct io *next, struct io *log, struct io **out);

/* Puts `image` back as it was when io_undo_open() made `log`, its size too, and flushes; may be
 * called again after it failed half-way.  -EILSEQ when the log is not one or belongs to another
 * image, -ESTALE when a logged place, or the size, is neither as it was nor as the log's owner made
 * it; the image is untouched then. */
int io_undo_rollback(struct io *log, struct io *image);

#endif
