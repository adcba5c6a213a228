/* SPDX-License-Identifier: MIT
 *
 * What happened: a run of a workload, recorded, with what users saw after each operation. */
#ifndef FAULTINJ_HISTORY_H
#define FAULTINJ_HISTORY_H

#include "fault.h"
#include "hurt.h"
#include "leaks.h"
#include "record.h"
#include "workload.h"

struct history {
    struct workload workload;     /* with OP_CLOSE at its end; no operations for foreign logs */
    char image[IMAGE_NAME_BYTES]; /* kind or path: what finds it again */
    struct io *base;              /* before the first operation, in memory */
    struct recording recording;
    struct model *models;    /* [0] before, [i] after operation i - 1 */
    struct leak_note *leaks; /* the same */
    int *results;            /* of each operation */
    bool *switched;          /* foreign logs: step i switched the disk as a whole; else NULL */
    bool is_hurt;            /* damaged before, and repaired first: see hurt.h */
    struct hurt hurt;        /* what was wrong then */
    size_t step_count;       /* models - 1 */
    uint64_t room_bytes;     /* no state is larger */
    struct io *disk;         /* during the run: what the operations work on */

    /* A promise broken with no crash at all, after operation `live_step` - 1. */
    struct breach live;
    unsigned live_step;
};

/* Takes over the workload (also when it fails) and `base`; runs it on a copy, with the calls
 * failing that `plan` (may be NULL) names. */
int history_run(struct workload *workload, const char *image, struct io *base, bool backtraces,
    struct fault_plan *plan, struct history *out);

/* Whether the image after an operation is what the operation means; `unit` is the bytes that its
 * numbers count.  I10. */
bool history_follows(const struct op *op, uint64_t unit, int result, const struct model *before,
    const struct model *after, struct breach *breach);
/* A log of another program's writes to `base`, a step for every flush.  Takes over the recording
 * (also when it fails) and `base`.  -EUCLEAN: the base image is damaged; -EFBIG: it is, or becomes,
 * larger than HISTORY_MOST_BYTES: states are kept whole in memory, several of them; -E2BIG: what
 * users see after each step would take more than that; -ETIME: `deadline` (seconds on the monotonic
 * clock; 0: none) has passed. */
#define HISTORY_MOST_BYTES (UINT64_C(4) << 30)
int history_foreign(const char *name, struct io *base, struct recording *recording, double deadline,
    struct history *out);
void history_release(struct history *history);

/* What is allowed after a cut in an epoch: anything from models[floor] to models[ceil]. */
struct window {
    unsigned floor, ceil;
};
struct window history_window(
    const struct history *history, const struct recording *recording, size_t first, size_t end);

/* What may leak after a cut in that epoch.  -ENOMEM. */
int history_leak_limits(const struct history *history, const struct recording *recording,
    size_t first, struct window window, struct leak_limits *limits);

/* Notes what the oracle has just seen as what is there after `step` operations: `before` is the
 * content before the last one, whose requests are [first, end); NULL for step 0.  Broken invariants
 * are kept in history->live.  -ENOMEM. */
int history_note(struct history *history, struct oracle *oracle, const struct state *before,
    const struct state *state, unsigned step, size_t first, size_t end);

/* Whether that sector of the active disk may hold that, whatever the rest is: false when in doubt.
 */
bool history_allows_sector(
    const struct history *history, struct window window, uint64_t sector, uint64_t hash);

/* Whether what was seen is allowed; I5, I6, I7 and I10. */
bool history_allows(const struct history *history, struct window window, const struct model *seen,
    struct breach *breach);

#endif
