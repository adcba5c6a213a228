/* SPDX-License-Identifier: MIT
 *
 * Memory, and whether there was enough of it.  Many a search takes what it had no room for as not
 * found; a repair asks, before it writes anything, whether that was so. */
#ifndef CHECKER_MEMORY_H
#define CHECKER_MEMORY_H

#include <stddef.h>

/* Like malloc(), calloc() and realloc(); free() is for all three. */
void *memory_new(size_t bytes);
void *memory_zeroed(size_t count, size_t bytes);
void *memory_resize(void *old, size_t bytes);

/* How many of these calls have failed so far, in all threads. */
unsigned memory_failures(void);

#endif
