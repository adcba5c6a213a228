/* SPDX-License-Identifier: MIT
 *
 * What the files of the exploration share. */
#ifndef FAULTINJ_EXPLORE_IMPL_H
#define FAULTINJ_EXPLORE_IMPL_H

#include "check.h"
#include "continuation.h"
#include "explore.h"
#include "repairing.h"

/* A set of hashes. */
struct hash_set {
    uint64_t *slots; /* 0: free */
    size_t size, count;
};
int hash_set_add(struct hash_set *set, uint64_t hash, bool *added);
void hash_set_release(struct hash_set *set);

struct explorer {
    const struct history *history;
    const struct recording *recording;
    const struct fault_model *model;
    const struct explore_options *options;
    struct explore_counts *counts;
    explore_report *report;
    void *report_arg;

    struct state *durable; /* at the start of the epoch */
    struct state *state;   /* with the current vector */
    unsigned *current;
    struct epoch epoch;
    struct window window;
    struct leak_limits limits;
    uint64_t base_hash; /* of the durable state */
    uint64_t seen_here; /* distinct states of this epoch */
    uint64_t executed_here;
    uint64_t reported_here;

    struct oracle oracle;
    struct continuation continuation;
    struct repairing repairing;
    struct hash_set seen;
};

/* Makes ex->state the state of that vector. */
void explorer_set(struct explorer *ex, const unsigned *choice);

/* What the checker may find after a crash: space that is lost, flags that are only slow, and what
 * the oracle judges itself (COPIED against true references, lost tables by the disks' content).
 * `dirty`: counts may lag behind. */
bool explorer_allows(enum check_id check, bool dirty);

/* The promises that this state breaks, if any.  -errno of the machine. */
int explorer_judge(struct explorer *ex, bool check, bool go_on, bool repair, struct breach *breach);

/* Models that promise less: counted, not reported. */
int explorer_judge_lightly(struct explorer *ex);

/* One vector: sets, skips what was seen, judges, shrinks and reports.  A fault_visit. */
int explorer_visit(void *arg, const unsigned *choice);

/* Walks all of the epoch; explore_walk.c. */
int explorer_walk(struct explorer *ex);

/* The deadline has passed; then the counts say so. */
bool explorer_out_of_time(struct explorer *ex);

/* Sets *done if the tree of choices could be walked to its end; explore_tree.c. */
int explorer_walk_tree(struct explorer *ex, long double *covered, bool *done);

/* Makes the vector smallest; `needed` (one a factor) gets what had to be persisted, with all else
 * lost; explore_shrink.c. */
int explorer_shrink(struct explorer *ex, unsigned *choice, bool *needed, struct breach *breach);

#endif
