/* SPDX-License-Identifier: MIT
 *
 * Whole mapping trees: an L1 with all its L2 tables and the clusters they map. */
#ifndef ENGINE_TREE_H
#define ENGINE_TREE_H

#include "image.h"

struct tree {
    const uint64_t *l1;
    uint32_t l1_size;
    const struct tree *other; /* or NULL: what both have at the same guest offset is skipped */
    uint8_t *copied;          /* tree_add() notes: a bit per L1 index, COPIED in that L2 table */
    uint64_t done;            /* clusters the last tree_add() counted, in the order of its walk */
    uint64_t limit;           /* and how many it may */
};

/* Makes room for `copied`.  -EUCLEAN when the L1 names more tables than the file has clusters:
 * walks would read one of them again and again. */
int tree_init(struct image *img, const uint64_t *l1, uint32_t l1_size, struct tree *tree);
void tree_release(struct tree *tree);

/* +1 or -1 for every L2 table and every cluster that one maps, not for the L1; staged, and written
 * as refcount_add_tree() does.  Reads each L2 table once.  With `other` the two trees together are
 * counted right: what one gains there the other loses. */
int tree_add(struct image *img, struct tree *tree, int delta);

/* Clears COPIED in the L2 tables where tree_add() saw it: writes each at most once. */
int tree_clear_copied(struct image *img, const struct tree *tree);

/* The same in the active L1, on the device and in memory; after an error these may differ. */
int tree_clear_copied_l1(struct image *img);

/* Sets COPIED in the active disk where one reference is left, in the parts that `gone` had too. For
 * speed only. */
int tree_set_copied(struct image *img, const struct tree *gone);

/* Writes the L1 with COPIED cleared to new clusters. */
int tree_write_l1(struct image *img, const uint64_t *l1, uint32_t l1_size, uint64_t *host_off);

#endif
