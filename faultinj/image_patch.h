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

/* Damage, for the repair. */
int patch_count_low(struct io *io);    /* guest cluster 0: two references, counted once */
int patch_dirty_low(struct io *io);    /* guest cluster 1: not counted; the dirty bit */
int patch_shared(struct io *io);       /* guest cluster 8 is mapped to where 1 is; 8's is gone */
int patch_block_shared(struct io *io); /* entry 1 of the refcount table is entry 0 */
int patch_block_lost(struct io *io);   /* entry 1 points beyond the file; the block is noise */
int patch_same_ids(struct io *io);     /* the second snapshot's ID is the first one's */

#endif
