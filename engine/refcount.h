/* SPDX-License-Identifier: MIT
 *
 * Refcounts and the allocation of clusters.
 *
 * Changes are staged in the loaded blocks and go to the device together in refcount_write(), each
 * block once, in host order, with no barrier: when that is needed is for the caller to say.  Growth
 * is the exception: new blocks and tables are written at once, with their barriers.
 *
 * refcount_add_tree() is for changes of any size: it writes what is staged when memory is short. */
#ifndef ENGINE_REFCOUNT_H
#define ENGINE_REFCOUNT_H

#include "image.h"

enum { REFCOUNT_MEMORY = 36 << 20 }; /* image.refblock_bytes: the blocks of 1 TiB, and some */

int refcount_load(struct image *img);
void refcount_release(struct image *img);

int refcount_get(struct image *img, uint64_t cluster, uint64_t *count);

/* How many of `count` clusters from `first` on, but one at least, have a count that says the same
 * to "is it 1?" as that of `first`; *one is the answer. */
int refcount_ones(struct image *img, uint64_t first, uint64_t count, uint64_t *same, bool *one);

/* Stages +1 or -1 for each of `count` clusters.  -EOVERFLOW when the width cannot hold it.
 * -EUCLEAN when a count is 0: the clusters are in use, so the image is damaged.  After an error
 * some are staged: the caller gives up and image_end() forgets. */
int refcount_add(struct image *img, uint64_t first, uint64_t count, int delta);

/* The same for callers that need no count to stay off the device: raised ones before a commit,
 * lowered ones after it.  Adds to *done how many were done, also after an error. */
int refcount_add_tree(struct image *img, uint64_t first, uint64_t count, int delta, uint64_t *done);

/* Finds `count` free neighbours and stages their count as 1. */
int refcount_alloc(struct image *img, uint64_t count, uint64_t *host_off);

/* Writes what is staged; then discards what became free (advice only, errors are ignored), so the
 * metadata that dropped it must be durable. */
int refcount_write(struct image *img);

/* Forgets what is staged; the blocks are read again when they are needed. */
void refcount_forget(struct image *img);

/* For taking back, before it was committed, what a call raised: keeps the blocks it wrote or tried
 * to write as they were meant to be, forgets other staged ones, and lets refcount_add() pass over
 * these.  False if nothing was attempted.  Until the call's image_end(). */
bool refcount_undo(struct image *img);

/* Ends a call: forgets what was attempted, and keeps memory small. */
void refcount_trim(struct image *img);

/* Whether the cluster's loaded count is 0; false for blocks not loaded. */
bool refcount_staged_free(const struct image *img, uint64_t cluster);

/* refgrow.c: makes refcount blocks from block index `idx` on, for at least `count` more clusters
 * in a row; entry `idx` of the table is 0 or past its end. */
int refcount_cover(struct image *img, uint64_t idx, uint64_t count);

#endif
