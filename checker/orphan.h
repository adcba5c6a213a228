/* SPDX-License-Identifier: MIT
 *
 * What looks like a lost table; for the files of the search for orphans only.
 *
 *   orphan_look.c   what the bytes of a cluster look like
 *   orphan.c        the search, and what hangs on what was found
 *   orphan_left.c   what of it an interrupted operation left */
#ifndef CHECKER_ORPHAN_H
#define CHECKER_ORPHAN_H

#include "walk.h"

struct orphan {
    uint64_t cluster;
    uint64_t data_bytes; /* leaked guest data behind it */
    enum area_kind kind; /* an L2 table, one of L1 (all it points to are orphaned L2 tables), or of
                            snapshots */
    bool explained;      /* an orphaned L1 table points to it */
    bool names_orphans;  /* as an L1 table does; of one that is partly freed that is all there is */
    bool in_use;         /* of a table of snapshots: the first is there; so it is but a trace */
    bool left, is_copy;  /* by an operation; of a piece of a disk's L1 table */
    uint64_t named;      /* by L1 tables that are gone on purpose */
};

struct orphan_list {
    struct orphan *items; /* by ascending cluster */
    size_t count, room;
    bool refuted; /* an L1 table that should be gone on purpose may not be */
};

/* NULL: it is none. */
struct orphan *orphan_find(const struct orphan_list *list, uint64_t cluster);

/* Sets `left` of all of them, and walk->left, if a snapshot operation that did not come to its end
 * explains them all and nothing else is wrong; of none otherwise.  0 or -errno. */
int orphan_find_left(struct walk *walk, struct orphan_list *list);

/* Somebody's reference to it is missing, though others may be there. */
bool orphan_missed(const struct walk *walk, uint64_t cluster);

/* Of a leaked cluster so much is looked at first; in bytes. */
uint32_t orphan_probe_bytes(const struct walk *walk);

/* What the entries in these bytes tell, a sector at least, from the first one of the table on.
 * False when they are no L2 table's. */
bool orphan_look_at_entries(
    const struct walk *walk, const uint8_t *bytes, size_t length, struct l2_look *look);

/* A lost L2 table is what the bytes of a whole cluster look like.  Reads other clusters, but leaves
 * walk->buf alone. */
bool orphan_is_lost_l2(
    struct walk *walk, uint64_t host_off, const uint8_t *bytes, struct l2_look *look);

#endif
