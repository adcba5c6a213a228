/* SPDX-License-Identifier: MIT
 *
 * The repair as a workload: an image that was damaged before the run began.
 *
 * Such an image breaks promises already, so a crash state is measured against it: no cluster is
 * protected less than it was, no COPIED flag is wrong that was right, each sector is as it was or
 * as the repair makes it, and a second repair leads to a sound image. */
#ifndef FAULTINJ_HURT_H
#define FAULTINJ_HURT_H

#include "oracle.h"

/* What was wrong with counts and flags before. */
struct hurt {
    uint64_t cluster_count;
    bool *under;                 /* clusters whose stored count was below their references */
    struct copied_entry *copied; /* entries that had COPIED though there was another reference */
    size_t copied_count;
};

/* Notes what a lenient oracle has just seen.  -ENOMEM. */
int hurt_note(const struct oracle *oracle, const struct state *state, struct hurt *out);
void hurt_release(struct hurt *hurt);

/* Whether the state, as a lenient oracle has just seen it, is no worse. */
bool hurt_no_worse(const struct hurt *hurt, const struct oracle *oracle, const struct state *state,
    struct breach *breach);

#endif
