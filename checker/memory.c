/* SPDX-License-Identifier: MIT */
#include "memory.h"

#include <stdatomic.h>
#include <stdlib.h>

static atomic_uint failures;

static void *noted(void *memory)
{
    if (!memory)
        atomic_fetch_add(&failures, 1);
    return memory;
}

void *memory_new(size_t bytes)
{
    return noted(malloc(bytes));
}

void *memory_zeroed(size_t count, size_t bytes)
{
    return noted(calloc(count, bytes));
}

void *memory_resize(void *old, size_t bytes)
{
    return noted(realloc(old, bytes));
}

unsigned memory_failures(void)
{
    return atomic_load(&failures);
}
