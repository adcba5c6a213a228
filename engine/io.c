/* SPDX-License-Identifier: MIT
 *
 * What is the same for every layer: range checks, fallbacks for optional members. */
#include "io.h"

#include <errno.h>
#include <string.h>

/* Offsets are file offsets to the kernel: off_t is signed. */
static bool range_ok(uint64_t host_off, uint64_t length)
{
    uint64_t end;
    return !__builtin_add_overflow(host_off, length, &end) && end <= INT64_MAX;
}

int io_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    if (length == 0)
        return 0;
    return range_ok(host_off, length) ? io->ops->read(io, host_off, buf, length) : -ERANGE;
}

int io_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    if (io->read_only)
        return -EROFS;
    if (length == 0)
        return 0;
    return range_ok(host_off, length) ? io->ops->write(io, host_off, buf, length) : -EFBIG;
}

int io_flush(struct io *io)
{
    return io->ops->flush(io);
}

int io_size(struct io *io, uint64_t *size_bytes)
{
    return io->ops->size(io, size_bytes);
}

int io_resize(struct io *io, uint64_t size_bytes)
{
    if (io->read_only)
        return -EROFS;
    return size_bytes <= INT64_MAX ? io->ops->resize(io, size_bytes) : -EFBIG;
}

int io_discard(struct io *io, uint64_t host_off, uint64_t length)
{
    if (io->read_only)
        return -EROFS;
    if (length == 0 || !io->ops->discard)
        return 0;
    return range_ok(host_off, length) ? io->ops->discard(io, host_off, length) : -ERANGE;
}

void io_close(struct io *io)
{
    if (io)
        io->ops->close(io);
}

int io_extents(struct io *io, uint64_t host_off, uint64_t *start, uint64_t *end)
{
    if (io->ops->extents)
        return io->ops->extents(io, host_off, start, end);
    uint64_t size;
    int ret = io_size(io, &size);
    if (ret < 0)
        return ret;
    *start = host_off < size ? host_off : size;
    *end = size;
    return 0;
}

int io_read_padded(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    uint64_t size;
    int ret = io_size(io, &size);
    if (ret < 0)
        return ret;
    size_t inside = 0;
    if (host_off < size)
        inside = size - host_off < length ? (size_t)(size - host_off) : length;
    ret = io_read(io, host_off, buf, inside);
    if (ret < 0)
        return ret;
    memset((uint8_t *)buf + inside, 0, length - inside);
    return 0;
}
