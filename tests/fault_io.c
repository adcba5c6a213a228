/* SPDX-License-Identifier: MIT
 *
 * See fault_io.h.  The allocator below replaces the C library's for the whole test program; its
 * state is the one exception to "no mutable statics": malloc has no argument to carry it. */
#include "fault_io.h"

#include <errno.h>
#include <stdlib.h>

static bool fires(struct fault_io *fault)
{
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
    self(io)->flushes++;
    return fires(self(io)) ? -EIO : io_flush(self(io)->next);
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

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_ALLOCATOR 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define OWN_ALLOCATOR 0
#endif
#endif
#ifndef OWN_ALLOCATOR
#define OWN_ALLOCATOR 1
#endif

static unsigned long alloc_left;
static bool alloc_fired;

void fault_alloc_arm(unsigned long n)
{
    alloc_left = n;
    if (n > 0)
        alloc_fired = false;
}

bool fault_alloc_fired(void)
{
    return alloc_fired;
}

bool fault_alloc_works(void)
{
    return OWN_ALLOCATOR;
}

#if OWN_ALLOCATOR
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);

static bool alloc_fires(void)
{
    if (alloc_left == 0 || --alloc_left > 0)
        return false;
    alloc_fired = true;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t size)
{
    return alloc_fires() ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return alloc_fires() ? NULL : __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
    return alloc_fires() ? NULL : __libc_realloc(old, size);
}
#endif
