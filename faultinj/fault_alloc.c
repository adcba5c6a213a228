/* SPDX-License-Identifier: MIT
 *
 * The n-th allocation fails.  The device is not touched; promised is that the operation fails with
 * -ENOMEM, or succeeds, and that the image and the handle can be used on (I10). */
#include <signal.h>
#include <stdlib.h>

#include "fault.h"

/* Allocation has no argument to carry a plan in: the one place that needs a variable. */
static volatile sig_atomic_t alloc_left;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);

void fault_alloc_arm(unsigned n)
{
    alloc_left = (sig_atomic_t)n;
}

unsigned fault_alloc_left(void)
{
    return (unsigned)alloc_left;
}

static bool fails_now(void)
{
    return alloc_left > 0 && --alloc_left == 0;
}

void *__wrap_malloc(size_t size)
{
    return fails_now() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails_now() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return fails_now() ? NULL : __real_realloc(old, size);
}
