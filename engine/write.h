/* SPDX-License-Identifier: MIT
 *
 * Changing guest data: what write, discard and resize share.  The caller has begun the call. */
#ifndef ENGINE_WRITE_H
#define ENGINE_WRITE_H

#include "image.h"

/* How write and discard begin: a look at the range; bitmaps get their bits, lazy images their dirty
 * bit, each with its barrier.  -ERANGE: it passes the end of the disk. */
int write_begin(struct image *img, uint64_t guest_off, uint64_t length);

/* Writes guest bytes (NULL: zeros, in clusters of their own), also beyond the disk's end as far as
 * the L1 reaches. */
int write_range(struct image *img, uint64_t guest_off, const uint8_t *src, uint64_t length);

/* Unmaps what lies wholly inside the range, beyond the disk's end too. */
int discard_range(struct image *img, uint64_t guest_off, uint64_t length);

#endif
