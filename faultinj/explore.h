/* SPDX-License-Identifier: MIT
 *
 * Exploring what a power cut may leave, epoch by epoch, and judging each state. */
#ifndef FAULTINJ_EXPLORE_H
#define FAULTINJ_EXPLORE_H

#include "fault.h"
#include "history.h"

struct explore_options {
    uint64_t cap;     /* vectors of an epoch that are walked one by one */
    uint64_t samples; /* at random, above the cap */
    uint64_t seed;
    uint64_t check_full;    /* distinct states of an epoch that the checker sees; then one in 64 */
    uint64_t continue_full; /* the same for I8; then one in 64 */
    uint64_t repair_full;   /* the same for I9 */
    bool no_continuation;   /* I8 is not run */
    bool metadata_only;     /* I1 to I4 and nothing else: for measuring */
    double deadline;        /* seconds on the monotonic clock; 0: none */
    unsigned only_epoch;    /* 1 + its number; 0: all */
};
struct explore_options explore_options_default(void);

/* The four numbers, never mixed, and how deep the states were looked into. */
struct explore_counts {
    long double legal;     /* vectors under the model; exact below 2^63 */
    long double certified; /* covered by a leaf of the tree of choices without being walked */
    uint64_t executed, distinct;
    uint64_t checked, continued, refused; /* seen by the checker; went on; engine refused to */
    uint64_t repaired, repair_cuts;       /* repaired, and power cuts inside a repair */
    uint64_t orphaned;       /* not clean then: leaks that look like lost tables are kept */
    uint64_t adopted;        /* of these: a lossy repair puts one where nothing was */
    uint64_t harmed, silent; /* models that promise less: states with damage, and unnoticed */
    uint64_t epochs, epochs_exhaustive, units, units_touched;
    uint64_t largest_epoch_units;
    uint64_t flushes, flushes_needed; /* that lied, and without which a promise is broken */
    double seconds;
    bool out_of_time;
};
void explore_counts_add(struct explore_counts *sum, const struct explore_counts *more);
bool explore_exhaustive(const struct explore_counts *counts);

/* One vector that breaks a promise, shrunk: all factors but these are at their durable version
 * (`raised` are persisted), and none of `lost` can be persisted as well without mending it. */
struct violation {
    unsigned epoch;
    size_t first, end; /* its requests */
    struct window window;
    struct breach breach;
    unsigned *choice;
    bool *needed; /* factors without which, with all others at their durable version, it is kept */
    const struct epoch *units; /* valid during the call */
    const struct recording *recording;
};

/* Called with each violation; a result other than 0 ends the exploration. */
typedef int explore_report(void *arg, const struct violation *violation);

/* Explores all epochs of `recording` (the history's own, or a changed one).  Adds to *counts.
 * Returns 0, a result of `report`, or -errno. */
int explore_run(const struct history *history, const struct recording *recording,
    const struct fault_model *model, const struct explore_options *options,
    struct explore_counts *counts, explore_report *report, void *arg);

/* One vector again.  On success *state is the crash state (the caller closes it) and
 * `report` has been called if it breaks a promise.  -ENOENT: there is no such epoch or vector. */
int explore_replay(const struct history *history, const struct recording *recording,
    const struct fault_model *model, const struct explore_options *options, unsigned epoch,
    const char *choices, struct state **state, explore_report *report, void *arg);

/* Vectors as text: "p3.1-7.2" (these at those versions, the rest durable), or "l2.0" (these, the
 * rest at their last version), whichever is shorter. */
void choices_print(const struct epoch *epoch, const unsigned *choice, char *out, size_t out_len);
int choices_parse(const struct epoch *epoch, const char *text, unsigned *choice);

double monotonic_seconds(void);

#endif
