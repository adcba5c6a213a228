/* SPDX-License-Identifier: MIT
 *
 * I11: what leaks was allocated or released by the interrupted operation, nothing else.
 *
 * After each operation of a run this notes how much each cluster's stored count exceeds its
 * references, and which clusters the operation touched: their references or stored counts changed,
 * be it only for a while.  From these follows, for a power cut, what may leak and how much. */
#ifndef FAULTINJ_LEAKS_H
#define FAULTINJ_LEAKS_H

#include "fault.h"
#include "oracle.h"

/* After one operation. */
struct leak_note {
    uint64_t cluster_count;
    uint32_t *refs, *stored; /* of each cluster; higher counts are UINT32_MAX - 1 */
    bool *touched;           /* by the operation that ended here */
    uint64_t *blocks;        /* host offsets of refcount blocks by index, 0 where there is none */
    uint64_t block_count;
};

/* Notes what the oracle has just seen in `state`; `before` is the note before it, NULL for the
 * first.  -ENOMEM. */
int leaks_note(const struct oracle *oracle, const struct state *state,
    const struct leak_note *before, struct leak_note *out);

/* Adds to `after` what the requests [first, end), made between the two notes, touched for a while;
 * `start` is the content before them.  -ENOMEM. */
int leaks_touched(const struct oracle *oracle, const struct recording *recording, size_t first,
    size_t end, const struct state *start, const struct leak_note *before, struct leak_note *after);
void leaks_release(struct leak_note *note);

/* By how much each cluster's count may exceed its references after a cut. */
struct leak_limits {
    uint64_t cluster_count, room;
    uint32_t *limit; /* UINT32_MAX: the operation touched it */
};

/* Allowed is what leaked after any of notes[floor..ceil], and all that the operations leading to
 * notes[first + 1 .. ceil] touched.  -ENOMEM. */
int leaks_limits(const struct leak_note *notes, unsigned first, unsigned floor, unsigned ceil,
    struct leak_limits *limits);
void leaks_limits_release(struct leak_limits *limits);

/* Whether the state, as the oracle has just seen it, keeps I11.  Images whose counts may lag behind
 * promise nothing. */
bool leaks_allowed(const struct leak_limits *limits, const struct oracle *oracle,
    const struct state *state, struct breach *breach);

#endif
