/* SPDX-License-Identifier: MIT
 *
 * Changing guest data: what write, discard and resize share.  The caller has begun the call. */
#ifndef ENGINE_WRITE_H
#define ENGINE_WRITE_H

#include "image.h"

/* Writes guest bytes (NULL: zeros, in clusters of their own), also beyond the disk's end as far as
 * the L1 reaches. */
int write_range(struct image *img, uint64_t guest_off, const uint8_t *src, uint64_t length);

/* Unmaps what lies wholly inside the range, beyond the disk's end too. */
int discard_range(struct image *img, uint64_t guest_off, uint64_t length);

#endif
