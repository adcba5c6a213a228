/* SPDX-License-Identifier: MIT
 *
 * Changes to the active disk's mapping, collected and then made in one safe order. */
#ifndef ENGINE_BATCH_H
#define ENGINE_BATCH_H

#include "image.h"

/* One L2 table that is changed: in place, or as a copy (or new one) that an L1 entry will switch
 * to.  COPIED flags in `bytes` count only if the table was ours alone; else they are cleared. */
struct batch_table {
    uint32_t l1_idx;
    uint64_t host_off;    /* where it goes; 0 until the first change of a table not ours */
    uint32_t first, last; /* entries changed; first > last: none */
    bool fresh;           /* needs its L1 entry written */
    uint8_t *bytes;
};

enum { BATCH_TABLES = 16 };

struct batch {
    struct image *img;
    struct batch_table tables[BATCH_TABLES];
    unsigned count;
    struct cluster_runs drops; /* referenced no more once the batch is written */
    bool needs_barrier;        /* something new will be pointed to */
};

/* Whether what an L1 or L2 entry points to may be changed in place.  COPIED says so; the count is
 * asked as well, since a wrong flag would let a write change a snapshot. */
int batch_is_ours(struct image *img, uint64_t entry, bool *ours);

/* The table for an L1 index, loaded (zeros if there is none); -EAGAIN when the batch is full. */
int batch_table(struct batch *batch, uint32_t l1_idx, struct batch_table **out);

/* Sets an entry; allocates the table's new place first if it has to move. */
int batch_set(
    struct batch *batch, struct batch_table *table, uint32_t idx, uint64_t raw, uint64_t bitmap);

/* Notes that what the old entry pointed to is not referenced by it any more. */
int batch_drop(struct batch *batch, const struct qcow2_l2_entry *entry);

/* Writes it all; see batch.c for the order.  The batch is empty afterwards, also on error. */
int batch_commit(struct batch *batch);
void batch_abort(struct batch *batch);

#endif
