/* SPDX-License-Identifier: MIT
 *
 * What looks like a lost table; for the files of the search for orphans only.
 *
 *   orphan_look.c   what the bytes of a cluster look like
 *   orphan.c        the search, and what hangs on what was found */
#ifndef CHECKER_ORPHAN_H
#define CHECKER_ORPHAN_H

#include "walk.h"

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
