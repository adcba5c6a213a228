/* SPDX-License-Identifier: MIT
 *
 * I10: every call fails, one after the other: the n-th of its kind for n = 1, 2, 3 ... until none
 * does.  After each the workload goes on with the same handle; then power is cut everywhere. */
#ifndef FAULTINJ_SWEEP_H
#define FAULTINJ_SWEEP_H

#include "output.h"

/* The kinds of faults, for lists: a name like "flush-drop" and what it means. */
extern const size_t sweep_row_count;
void sweep_row_name(size_t idx, char *out, size_t out_len);
const char *sweep_row_sentence(size_t idx);

/* All faults on the workload that `history` ran; a line for each kind of fault. */
int sweep_run(const struct history *history, const char *workload,
    const struct explore_options *options, struct output *output);

/* "fault-flush-drop-3-1": the third flush fails and variant 1 of what is lost is lost. */
bool sweep_parse(const char *text, struct fault_plan *plan, unsigned *variant);

/* Takes out of the recording what a failed flush in the mode FAULT_DROP lost: all of its epoch's
 * requests (variant 0) or one (variant - 1).  -ENOENT: there is no such variant. */
int sweep_lose(struct recording *recording, const struct fault_plan *plan, unsigned variant);

#endif
