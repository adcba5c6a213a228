/* SPDX-License-Identifier: MIT
 *
 * L2 entries that may have lost their cluster; for the files of that repair only.
 *
 *   repair_l2_find.c  which entries these are
 *   repair_l2.c       what speaks for which cluster, and which are put back */
#ifndef CHECKER_REPAIR_L2_H
#define CHECKER_REPAIR_L2_H

#include "repair.h"

struct place {
    enum check_id check;
    const struct table *table;
    uint32_t idx;
    uint64_t entry_off, raw, bitmap;
    uint64_t host_off, length; /* what it claims as it stands */
    bool proven;               /* shared, or on metadata, and what it names decodes */
    bool rooted;               /* shared, and only here the neighbours say that it is right */
    bool in_step;              /* rooted, and it is in step with two neighbours */
    bool uprooted;             /* shared with one that is */
    bool by_one;               /* for that one only one neighbour speaks, and it may be chance */
    bool taken;                /* another one's data begins there, and decodes */
    bool mirrored;             /* shared with the same entry of another table */
    bool on_bitmap;            /* of which it is as likely the bitmap that is wrong */
};

/* The entries that lost something, each once, in the order of their tables: an entry put back is
 * the neighbour of the next one.  `places` has room for one a finding; returns how many there are.
 */
size_t l2_find_places(const struct repair *repair, struct place *places);

/* Both are said to share a cluster, and it is the same one. */
bool l2_share(const struct place *a, const struct place *b);

/* The host offset that the neighbour at `idx` maps, 0 if it maps none in the plain way. */
uint64_t l2_neighbour(const struct repair *repair, const struct table *table, uint32_t idx);

/* A neighbour of the place maps what lies beside the cluster that `raw` names. */
bool l2_continues(const struct repair *repair, const struct place *place, uint64_t raw);

/* Streams that were written in turn lie between each other: what `raw` names goes on with two
 * neighbours, on the same side of the place or on both, where all three are as far apart. */
bool l2_in_step(const struct repair *repair, const struct place *place, uint64_t raw);

#endif
