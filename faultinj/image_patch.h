/* SPDX-License-Identifier: MIT
 *
 * Finishing touches on an image in memory, byte by byte: what the engine reads but never makes. */
#ifndef FAULTINJ_IMAGE_PATCH_H
#define FAULTINJ_IMAGE_PATCH_H

#include "io.h"

int patch_dirty(struct io *io);      /* the dirty bit */
int patch_leaks(struct io *io);      /* counts too high, and two clusters nobody uses */
int patch_zero(struct io *io);       /* guest cluster 3 zero and preallocated, 20 plain */
int patch_compressed(struct io *io); /* guest clusters 16 and 17 compressed, in one host cluster */
int patch_extra(struct io *io);      /* 16 unknown bytes behind a snapshot's known extra data */
int patch_vm_state(struct io *io);   /* a snapshot s1 with VM state behind the disk's end */
int patch_bitmap(struct io *io);     /* a dirty bitmap with the auto flag, nothing marked yet */

#endif
