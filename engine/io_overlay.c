/* SPDX-License-Identifier: MIT
 *
 * A view of another layer that can be written to without changing it: what is written stays in
 * memory, page by page, and goes when the view is closed. */
#include "io.h"

#include <errno.h>
#include <stdlib.h>

enum { PAGE_BYTES = 4096 };

struct io_overlay {
    struct io io;
    struct io *base;    /* not owned, only read */
    struct io *written; /* io_mem: the pages that were written, whole */
    uint64_t base_size; /* what of the base is still seen: less after a shrink */
};

static struct io_overlay *self(struct io *io)
{
    return (struct io_overlay *)io;
}

static bool page_is_written(struct io_overlay *overlay, uint64_t page_off)
{
    bool held;
    io_mem_run(overlay->written, page_off, 1, &held);
    return held;
}

static int read_base(struct io_overlay *overlay, uint64_t host_off, uint8_t *buf, size_t length)
{
    size_t inside = 0;
    if (host_off < overlay->base_size)
        inside = overlay->base_size - host_off < length ? (size_t)(overlay->base_size - host_off)
                                                        : length;
    for (size_t i = inside; i < length; i++)
        buf[i] = 0;
    return io_read(overlay->base, host_off, buf, inside);
}

static int overlay_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    struct io_overlay *overlay = self(io);
    uint64_t size;
    int ret = io_size(overlay->written, &size);
    if (ret == 0 && host_off + length > size)
        ret = -ERANGE;
    uint8_t *dst = buf;
    while (ret == 0 && length > 0) {
        bool held;
        size_t n = (size_t)io_mem_run(overlay->written, host_off, length, &held);
        ret = held ? io_read(overlay->written, host_off, dst, n)
                   : read_base(overlay, host_off, dst, n);
        dst += n, host_off += n, length -= n;
    }
    return ret;
}

/* Brings the page over from the base before a part of it is written. */
static int fetch_page(struct io_overlay *overlay, uint64_t page_off)
{
    uint8_t page[PAGE_BYTES];
    uint64_t size = 0;
    if (page_is_written(overlay, page_off))
        return 0;
    int ret = read_base(overlay, page_off, page, sizeof(page));
    if (ret == 0)
        ret = io_size(overlay->written, &size);
    if (ret == 0)
        ret = io_write(overlay->written, page_off, page, sizeof(page));
    if (ret == 0 && size > page_off && size < page_off + PAGE_BYTES)
        ret = io_resize(overlay->written, size);
    return ret;
}

static int overlay_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    struct io_overlay *overlay = self(io);
    uint64_t first = host_off - host_off % PAGE_BYTES, last = host_off + length - 1, size;
    last -= last % PAGE_BYTES;
    int ret = io_size(overlay->written, &size);
    if (ret == 0)
        ret = fetch_page(overlay, first);
    if (ret == 0 && last != first)
        ret = fetch_page(overlay, last);
    if (ret == 0)
        ret = io_write(overlay->written, host_off, buf, length);
    if (ret == 0) /* a page fetched whole must not make the view longer */
        ret = io_resize(overlay->written, host_off + length > size ? host_off + length : size);
    return ret;
}

static int overlay_flush(struct io *io)
{
    (void)io;
    return 0;
}

static int overlay_size(struct io *io, uint64_t *size_bytes)
{
    return io_size(self(io)->written, size_bytes);
}

static int overlay_resize(struct io *io, uint64_t size_bytes)
{
    struct io_overlay *overlay = self(io);
    if (size_bytes < overlay->base_size)
        overlay->base_size = size_bytes;
    return io_resize(overlay->written, size_bytes);
}

/* Where the base has a hole, something may have been written. */
static int overlay_extents(struct io *io, uint64_t host_off, uint64_t *start, uint64_t *end)
{
    struct io_overlay *overlay = self(io);
    uint64_t size, at = host_off;
    bool held = false;
    int ret = io_size(overlay->written, &size);
    *start = *end = size;
    if (ret == 0 && host_off < overlay->base_size) {
        ret = io_extents(overlay->base, host_off, start, end);
        if (*start >= overlay->base_size)
            *start = *end = size;
        else if (*end > overlay->base_size)
            *end = overlay->base_size;
    }
    while (ret == 0 && at < *start && !held) {
        uint64_t run = io_mem_run(overlay->written, at, *start - at, &held);
        if (held)
            *start = at, *end = at + run;
        at += run;
    }
    return ret;
}

static void overlay_close(struct io *io)
{
    io_close(self(io)->written);
    free(io);
}

static const struct io_ops overlay_ops = {
    .read = overlay_read,
    .write = overlay_write,
    .flush = overlay_flush,
    .size = overlay_size,
    .resize = overlay_resize,
    .close = overlay_close,
    .extents = overlay_extents,
};

int io_overlay_open(struct io *base, struct io **out)
{
    struct io_overlay *overlay = calloc(1, sizeof(*overlay));
    if (!overlay)
        return -ENOMEM;
    int ret = io_size(base, &overlay->base_size);
    if (ret == 0)
        ret = io_mem_open(overlay->base_size, &overlay->written);
    if (ret < 0) {
        free(overlay);
        return ret;
    }
    overlay->io.ops = &overlay_ops;
    overlay->io.concurrent_reads = base->concurrent_reads;
    overlay->base = base;
    *out = &overlay->io;
    return 0;
}
