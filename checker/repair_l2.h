/* SPDX-License-Identifier: MIT
 *
 * L2 entries that may have lost their cluster; for the files of that repair only.
 *
 *   repair_l2_find.c   which entries these are
 *   repair_l2_share.c  which of those are right that share a cluster
 *   repair_l2.c        what speaks for which cluster, and which are put back */
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
    bool moved;                /* shared no longer: another cluster is put back */
};

/* The entries that lost something, each once, in the order of their tables: an entry put back is
 * the neighbour of the next one. */
struct places {
    struct place *items;
    size_t count;
    struct place **shared; /* those that share something, by what they claim */
    size_t shared_count;
    uint64_t longest; /* of what these claim, bytes */
};

/* Fills `places`, which is all zeros; 0 or -ENOMEM, and l2_release_places() either way. */
int l2_find_places(const struct repair *repair, struct places *places);
void l2_release_places(struct places *places);

/* Its part for those that share something. */
int l2_judge_shared(const struct repair *repair, struct places *places);

/* An owner of the shared cluster besides `me` would keep it.  Where too many have it to look at all
 * of them, nobody is known to. */
bool l2_somebody_stays(const struct places *places, const struct place *me);

/* The host offset that the neighbour at `idx` maps, 0 if it maps none in the plain way. */
uint64_t l2_neighbour(const struct repair *repair, const struct table *table, uint32_t idx);

/* A neighbour of the place maps what lies beside the cluster that `raw` names. */
bool l2_continues(const struct repair *repair, const struct place *place, uint64_t raw);

/* Streams that were written in turn lie between each other: what `raw` names goes on with two
 * neighbours, on the same side of the place or on both, where all three are as far apart. */
bool l2_in_step(const struct repair *repair, const struct place *place, uint64_t raw);

#endif
