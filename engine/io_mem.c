/* SPDX-License-Identifier: MIT
 *
 * An image in memory, copy-on-write: what tests and the harness run on.
 *
 * The image is a row of chunks of 2 MiB, a chunk a row of pages of 4 KiB; a missing chunk or page
 * reads as zeros.  Chunks and pages count their owners and are copied before the first write by
 * one of several owners.  The counts are not atomic: an image and its branches belong to one
 * thread.  Invariant: whatever lies at or past the size is zero. */
#include "io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE_BYTES = 4096, CHUNK_PAGES = 512 };
#define CHUNK_BYTES ((uint64_t)PAGE_BYTES * CHUNK_PAGES)

struct page {
    unsigned owners;
    uint8_t bytes[PAGE_BYTES];
};

struct chunk {
    unsigned owners;
    struct page *pages[CHUNK_PAGES];
};

struct io_mem {
    struct io io;
    uint64_t size;
    size_t chunk_count; /* slots in `chunks`; all slots beyond are holes */
    struct chunk **chunks;
};

static struct io_mem *self(struct io *io)
{
    return (struct io_mem *)io;
}

static void page_put(struct page *page)
{
    if (page && --page->owners == 0)
        free(page);
}

static void chunk_put(struct chunk *chunk)
{
    if (!chunk || --chunk->owners > 0)
        return;
    for (size_t i = 0; i < CHUNK_PAGES; i++)
        page_put(chunk->pages[i]);
    free(chunk);
}

/* The chunk as ours alone, made or copied if need be; NULL when out of memory. */
static struct chunk *chunk_own(struct chunk **slot)
{
    struct chunk *old = *slot;
    if (old && old->owners == 1)
        return old;
    struct chunk *chunk = calloc(1, sizeof(*chunk));
    if (!chunk)
        return NULL;
    chunk->owners = 1;
    if (old) {
        memcpy(chunk->pages, old->pages, sizeof(chunk->pages));
        for (size_t i = 0; i < CHUNK_PAGES; i++) {
            if (chunk->pages[i])
                chunk->pages[i]->owners++;
        }
        chunk_put(old);
    }
    *slot = chunk;
    return chunk;
}

static struct page *page_own(struct page **slot)
{
    struct page *old = *slot;
    if (old && old->owners == 1)
        return old;
    struct page *page = old ? malloc(sizeof(*page)) : calloc(1, sizeof(*page));
    if (!page)
        return NULL;
    if (old)
        memcpy(page->bytes, old->bytes, PAGE_BYTES);
    page->owners = 1;
    page_put(old);
    *slot = page;
    return page;
}

static int slots_grow(struct io_mem *mem, uint64_t count)
{
    if (count <= mem->chunk_count)
        return 0;
    if (count > SIZE_MAX / sizeof(struct chunk *))
        return -ENOMEM;
    struct chunk **chunks = realloc(mem->chunks, (size_t)count * sizeof(struct chunk *));
    if (!chunks)
        return -ENOMEM;
    memset(
        chunks + mem->chunk_count, 0, (size_t)(count - mem->chunk_count) * sizeof(struct chunk *));
    mem->chunks = chunks;
    mem->chunk_count = (size_t)count;
    return 0;
}

static const struct page *page_at(const struct io_mem *mem, uint64_t host_off)
{
    uint64_t chunk_idx = host_off / CHUNK_BYTES;
    if (chunk_idx >= mem->chunk_count || !mem->chunks[chunk_idx])
        return NULL;
    return mem->chunks[chunk_idx]->pages[host_off % CHUNK_BYTES / PAGE_BYTES];
}

static size_t piece(uint64_t host_off, uint64_t length)
{
    uint64_t left = PAGE_BYTES - host_off % PAGE_BYTES;
    return (size_t)(left < length ? left : length);
}

static int mem_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    struct io_mem *mem = self(io);
    if (host_off + length > mem->size)
        return -ERANGE;
    uint8_t *dst = buf;
    while (length > 0) {
        size_t n = piece(host_off, length);
        const struct page *page = page_at(mem, host_off);
        if (page)
            memcpy(dst, page->bytes + host_off % PAGE_BYTES, n);
        else
            memset(dst, 0, n);
        dst += n, host_off += n, length -= n;
    }
    return 0;
}

static int mem_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    struct io_mem *mem = self(io);
    const uint8_t *src = buf;
    int ret = slots_grow(mem, (host_off + length - 1) / CHUNK_BYTES + 1);
    if (ret < 0)
        return ret;
    while (length > 0) {
        size_t n = piece(host_off, length);
        struct chunk *chunk = chunk_own(&mem->chunks[host_off / CHUNK_BYTES]);
        struct page *page =
            chunk ? page_own(&chunk->pages[host_off % CHUNK_BYTES / PAGE_BYTES]) : NULL;
        if (!page)
            return -ENOMEM;
        memcpy(page->bytes + host_off % PAGE_BYTES, src, n);
        src += n, host_off += n, length -= n;
        if (mem->size < host_off)
            mem->size = host_off;
    }
    return 0;
}

static int mem_flush(struct io *io)
{
    (void)io;
    return 0;
}

static int mem_size(struct io *io, uint64_t *size_bytes)
{
    *size_bytes = self(io)->size;
    return 0;
}

/* Zeros a range by dropping whole pages and clearing the rest. */
static int zero_range(struct io_mem *mem, uint64_t host_off, uint64_t length)
{
    while (length > 0) {
        uint64_t chunk_idx = host_off / CHUNK_BYTES;
        if (chunk_idx >= mem->chunk_count)
            break;
        size_t n = piece(host_off, length);
        if (page_at(mem, host_off)) {
            struct chunk *chunk = chunk_own(&mem->chunks[chunk_idx]);
            if (!chunk)
                return -ENOMEM;
            struct page **slot = &chunk->pages[host_off % CHUNK_BYTES / PAGE_BYTES];
            if (n == PAGE_BYTES) {
                page_put(*slot);
                *slot = NULL;
            } else {
                struct page *page = page_own(slot);
                if (!page)
                    return -ENOMEM;
                memset(page->bytes + host_off % PAGE_BYTES, 0, n);
            }
        } else if (!mem->chunks[chunk_idx] && host_off % CHUNK_BYTES == 0) {
            uint64_t skip = CHUNK_BYTES < length ? CHUNK_BYTES : length;
            host_off += skip, length -= skip;
            continue;
        }
        host_off += n, length -= n;
    }
    return 0;
}

static int mem_resize(struct io *io, uint64_t size_bytes)
{
    struct io_mem *mem = self(io);
    if (size_bytes < mem->size) {
        int ret = zero_range(mem, size_bytes, mem->size - size_bytes);
        if (ret < 0)
            return ret;
    }
    mem->size = size_bytes;
    return 0;
}

static int mem_discard(struct io *io, uint64_t host_off, uint64_t length)
{
    struct io_mem *mem = self(io);
    if (host_off >= mem->size)
        return 0;
    uint64_t left = mem->size - host_off;
    return zero_range(mem, host_off, length < left ? length : left);
}

uint64_t io_mem_run(struct io *io, uint64_t host_off, uint64_t length, bool *held)
{
    const struct io_mem *mem = self(io);
    uint64_t at = host_off, end = host_off + length;
    *held = page_at(mem, at) != NULL;
    while (at < end && (page_at(mem, at) != NULL) == *held) {
        uint64_t chunk_idx = at / CHUNK_BYTES;
        if (chunk_idx >= mem->chunk_count)
            return length;
        uint64_t step = mem->chunks[chunk_idx] ? PAGE_BYTES : CHUNK_BYTES;
        at = (at / step + 1) * step;
    }
    return (at < end ? at : end) - host_off;
}

static int mem_extents(struct io *io, uint64_t host_off, uint64_t *start, uint64_t *end)
{
    uint64_t size = self(io)->size;
    bool held = false;
    *start = *end = size;
    if (host_off >= size)
        return 0;
    uint64_t run = io_mem_run(io, host_off, size - host_off, &held);
    *start = held ? host_off : host_off + run;
    if (*start < size)
        *end = *start + io_mem_run(io, *start, size - *start, &held);
    return 0;
}

static void mem_close(struct io *io)
{
    struct io_mem *mem = self(io);
    for (size_t i = 0; i < mem->chunk_count; i++)
        chunk_put(mem->chunks[i]);
    free(mem->chunks);
    free(mem);
}

static const struct io_ops mem_ops = {
    .read = mem_read,
    .write = mem_write,
    .flush = mem_flush,
    .size = mem_size,
    .resize = mem_resize,
    .discard = mem_discard,
    .close = mem_close,
    .extents = mem_extents,
};

int io_mem_open(uint64_t size_bytes, struct io **out)
{
    struct io_mem *mem = calloc(1, sizeof(*mem));
    if (!mem)
        return -ENOMEM;
    mem->io.ops = &mem_ops;
    mem->io.concurrent_reads = true;
    mem->size = size_bytes;
    *out = &mem->io;
    return 0;
}

int io_mem_branch(struct io *src, struct io **out)
{
    struct io_mem *from = self(src);
    struct io *io;
    int ret = io_mem_open(from->size, &io);
    if (ret < 0)
        return ret;
    struct io_mem *to = self(io);
    ret = slots_grow(to, from->chunk_count);
    if (ret < 0) {
        mem_close(io);
        return ret;
    }
    for (size_t i = 0; i < from->chunk_count; i++) {
        to->chunks[i] = from->chunks[i];
        if (to->chunks[i])
            to->chunks[i]->owners++;
    }
    *out = io;
    return 0;
}

int io_mem_load(struct io *src, struct io **out)
{
    enum { COPY_BYTES = 1 << 20 };
    uint8_t *buf = malloc(COPY_BYTES);
    struct io *io = NULL;
    uint64_t size;
    int ret = buf ? io_size(src, &size) : -ENOMEM;
    if (ret == 0)
        ret = io_mem_open(size, &io);
    for (uint64_t at = 0, start, end; ret == 0 && at < size; at = end) {
        ret = io_extents(src, at, &start, &end);
        for (at = start; ret == 0 && at < end;) {
            size_t n = end - at < COPY_BYTES ? (size_t)(end - at) : COPY_BYTES;
            ret = io_read(src, at, buf, n);
            if (ret == 0)
                ret = io_write(io, at, buf, n);
            at += n;
        }
    }
    free(buf);
    if (ret < 0) {
        io_close(io);
        return ret;
    }
    *out = io;
    return 0;
}
