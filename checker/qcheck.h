/* SPDX-License-Identifier: MIT
 *
 * The checker as a library: check one image on any device. */
#ifndef CHECKER_QCHECK_H
#define CHECKER_QCHECK_H

#include <signal.h>

#include "io.h"
#include "report.h"

/* What an L1 entry names is implausible as an L2 table, whatever it looks like. */
struct no_table {
    uint64_t host_off;
    bool is_data; /* it is known to be the guest's */
};

struct check_options {
    bool deep;    /* decode every compressed cluster */
    bool backing; /* follow the backing chain */
    unsigned threads;
    const struct deploy_policy *deploy; /* NULL: no pre-deploy gate; see deploy.h */

    /* Shows every object to the checks, also where a fast path knows that none of them can have
     * anything to say: for tests, which compare. */
    bool no_fast_paths;

    /* Ends before anything is judged when nearly all counts are lost: for the repair, which makes
     * them anew first. */
    bool stop_without_counts;

    /* For the repair, which finds them.  Not owned. */
    const struct no_table *no_tables;
    size_t no_table_count;

    /* Ends the check, which is incomplete then, soon after so many corruptions were found: for who
     * asks whether there are fewer.  0: never. */
    uint64_t enough;

    /* Set from a signal handler to end the check; NULL: never. */
    const volatile sig_atomic_t *stop;

    /* Called for every finding, also for those that the report's cap leaves out.  NULL: not. */
    void (*found)(void *arg, const struct finding *finding);
    void *found_arg;

    /* Called now and then; both in bytes of metadata.  NULL: not. */
    void (*progress)(void *arg, uint64_t done, uint64_t total);
    void *progress_arg;
};

/* Checks the image on `io` and fills the report, which report_init() made.  `filename` is for names
 * relative to the image (data file, backing file); NULL: they are not looked for.  Whatever
 * fails makes the verdict incomplete; the result says why, 0 or -errno, when it was the machine. */
int check_image(struct io *io, const char *filename, const struct check_options *options,
    struct report *report);

#endif
