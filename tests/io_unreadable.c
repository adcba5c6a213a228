/* SPDX-License-Identifier: MIT */
#include "io_unreadable.h"

#include <errno.h>
#include <stdlib.h>

#include "qcow2.h"

struct io_unreadable {
    struct io io;
    struct io *next;
    uint64_t bad_off, bad_len;
};

static struct io_unreadable *self(struct io *io)
{
    return (struct io_unreadable *)io;
}

static int unreadable_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    if (ranges_overlap(host_off, length, self(io)->bad_off, self(io)->bad_len))
        return -EIO;
    return io_read(self(io)->next, host_off, buf, length);
}

static int unreadable_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    return io_write(self(io)->next, host_off, buf, length);
}

static int unreadable_flush(struct io *io)
{
    return io_flush(self(io)->next);
}

static int unreadable_size(struct io *io, uint64_t *size_bytes)
{
    return io_size(self(io)->next, size_bytes);
}

static int unreadable_resize(struct io *io, uint64_t size_bytes)
{
    return io_resize(self(io)->next, size_bytes);
}

static int unreadable_extents(struct io *io, uint64_t host_off, uint64_t *start, uint64_t *end)
{
    return io_extents(self(io)->next, host_off, start, end);
}

static void unreadable_close(struct io *io)
{
    io_close(self(io)->next);
    free(io);
}

int io_unreadable_open(struct io *next, uint64_t host_off, uint64_t length, struct io **out)
{
    static const struct io_ops ops = {
        .read = unreadable_read,
        .write = unreadable_write,
        .flush = unreadable_flush,
        .size = unreadable_size,
        .resize = unreadable_resize,
        .close = unreadable_close,
        .extents = unreadable_extents,
    };
    struct io_unreadable *layer = calloc(1, sizeof(*layer));
    if (!layer)
        return -ENOMEM;
    *layer = (struct io_unreadable){
        .io = {.ops = &ops, .concurrent_reads = next->concurrent_reads},
        .next = next,
        .bad_off = host_off,
        .bad_len = length,
    };
    *out = &layer->io;
    return 0;
}
