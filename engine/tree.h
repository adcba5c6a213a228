/* SPDX-License-Identifier: MIT
 *
 * Whole mapping trees: an L1 with all its L2 tables and the clusters they map. */
#ifndef ENGINE_TREE_H
#define ENGINE_TREE_H

#include "image.h"

struct tree {
    const uint64_t *l1;
    uint32_t l1_size;
    const struct tree *other; /* or NULL: branches that both share are skipped */
    uint8_t *copied;          /* tree_add() notes: a bit per L1 index, COPIED in that L2 table */
};

/* Makes room for `copied`. */
int tree_init(struct image *img, const uint64_t *l1, uint32_t l1_size, struct tree *tree);
void tree_release(struct tree *tree);

/* Stages +1 or -1 for every L2 table and every cluster that one maps, not for the L1.  Reads each
 * L2 table once, and no two at the same time. */
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
