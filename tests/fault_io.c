/* SPDX-License-Identifier: MIT
 *
 * See fault_io.h. */
#include "fault_io.h"

#include <errno.h>

static bool fires(struct fault_io *fault)
{
    if (fault->lasting && fault->fired)
        return true;
    if (fault->left == 0 || --fault->left > 0)
        return false;
    fault->fired = true;
    return true;
}

static struct fault_io *self(struct io *io)
{
    return (struct fault_io *)io;
}

static int fault_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    return fires(self(io)) ? -EIO : io_read(self(io)->next, host_off, buf, length);
}

static int fault_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    struct fault_io *fault = self(io);
    fault->writes++;
    if (!fires(fault))
        return io_write(fault->next, host_off, buf, length);
    if (fault->tear)
        (void)io_write(fault->next, host_off, buf, length / 2 / 512 * 512);
    return -ENOSPC;
}

static int fault_flush(struct io *io)
{
    struct fault_io *fault = self(io);
    fault->flushes++;
    if (!fires(fault))
        return io_flush(fault->next);
    fault->flush_fired = true;
    return -EIO;
}

static int fault_size(struct io *io, uint64_t *size_bytes)
{
    return fires(self(io)) ? -EIO : io_size(self(io)->next, size_bytes);
}

static int fault_resize(struct io *io, uint64_t size_bytes)
{
    return fires(self(io)) ? -EIO : io_resize(self(io)->next, size_bytes);
}

static int fault_discard(struct io *io, uint64_t host_off, uint64_t length)
{
    return fires(self(io)) ? -EIO : io_discard(self(io)->next, host_off, length);
}

static void fault_close(struct io *io)
{
    (void)io;
}

static const struct io_ops fault_ops = {
    .read = fault_read,
    .write = fault_write,
    .flush = fault_flush,
    .size = fault_size,
    .resize = fault_resize,
    .discard = fault_discard,
    .close = fault_close,
};

void fault_io_init(struct fault_io *fault, struct io *next)
{
    *fault = (struct fault_io){.io = {.ops = &fault_ops}, .next = next};
}
