/* SPDX-License-Identifier: MIT */
#include <errno.h>

#include "io.h"

static struct io_watch *self(struct io *io)
{
    return (struct io_watch *)io;
}

/* That the end is nearer than was thought is an answer. */
static int noted(struct io_watch *watch, int ret)
{
    if (ret < 0 && ret != -ERANGE)
        atomic_fetch_add(&watch->failures, 1);
    return ret;
}

static int watch_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    return noted(self(io), io_read(self(io)->below, host_off, buf, length));
}

static int watch_extents(struct io *io, uint64_t host_off, uint64_t *start, uint64_t *end)
{
    return noted(self(io), io_extents(self(io)->below, host_off, start, end));
}

static int watch_size(struct io *io, uint64_t *size_bytes)
{
    return noted(self(io), io_size(self(io)->below, size_bytes));
}

static int watch_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    return io_write(self(io)->below, host_off, buf, length);
}

static int watch_flush(struct io *io)
{
    return io_flush(self(io)->below);
}

static int watch_resize(struct io *io, uint64_t size_bytes)
{
    return io_resize(self(io)->below, size_bytes);
}

static void watch_close(struct io *io)
{
    (void)io; /* nothing is its own */
}

void io_watch_init(struct io_watch *watch, struct io *below)
{
    static const struct io_ops ops = {
        .read = watch_read,
        .write = watch_write,
        .flush = watch_flush,
        .size = watch_size,
        .resize = watch_resize,
        .close = watch_close,
        .extents = watch_extents,
    };
    *watch = (struct io_watch){
        .io = {.ops = &ops,
            .concurrent_reads = below->concurrent_reads,
            .read_only = below->read_only},
        .below = below,
    };
}

unsigned io_watch_failures(struct io_watch *watch)
{
    return atomic_load(&watch->failures);
}
