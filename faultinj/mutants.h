/* SPDX-License-Identifier: MIT
 *
 * Mutants: proof that the harness bites.  Most are bugs of order made of a recorded run, by
 * dropping, moving or changing requests as a wrong engine would have issued them; bugs in handling
 * errors are made of runs in which a call fails, some with a wrong engine indeed. */
#ifndef FAULTINJ_MUTANTS_H
#define FAULTINJ_MUTANTS_H

#include "history.h"
#include "misbehave.h"
#include "output.h"

/* Changes the recording.  -ENOENT: there is nothing of the kind in it. */
typedef int mutant_change(const struct history *history, struct recording *recording);

struct mutant {
    const char *name, *workload, *image;
    const char *fault;              /* as sweep_parse() has it; "": no call fails */
    const struct misbehaviour *bug; /* NULL: the engine is right */
    mutant_change *change;          /* NULL: the recording stays as it is */
    const char *sentence;
};
extern const struct mutant mutants[];
extern const size_t mutant_count;
const struct mutant *mutant_find(const char *name);

/* The mutant's run.  -ENOENT: its workload gives no occasion for the bug. */
int mutant_history(const struct mutant *mutant, bool backtraces, struct history *out);

/* Runs all of them under all models of a power cut and prints the table.  *missed: how many were
 * not found.  -errno. */
int mutants_run(const struct explore_options *options, FILE *out, unsigned *missed);

/* How many flushes each kind of operation made, and without how many a promise is broken. */
struct flush_tally {
    unsigned flushes[OP_CLOSE + 1], needed[OP_CLOSE + 1];
};

/* I12: for every flush of the workload's run, does a state break without it?  Prints a line each
 * and adds to the tally. */
int flushes_report(const char *workload, const char *image, const struct explore_options *options,
    FILE *out, struct flush_tally *tally);
void flushes_print(const struct flush_tally *tally, FILE *out);

#endif
