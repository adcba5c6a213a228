/* SPDX-License-Identifier: MIT
 *
 * The images named on the command line: opening, checking or repairing each, and saying what was
 * found, in their order, however many are looked at at a time. */
#ifndef CHECKER_IMAGES_H
#define CHECKER_IMAGES_H

#include "deploy.h"
#include "qcheck.h"
#include "repair.h"

/* What the command line asks for. */
struct arguments {
    struct check_options check;
    struct report_style style;
    bool json;
    bool share; /* -U */
    bool repair, dry_run;
    struct repair_options repair_options;
    const char *undo, *rollback;
    int progress;   /* 1, 0, or -1: decide */
    size_t threads; /* at least 1 */
    size_t max_findings;
    const char *explain; /* "" for all */
    bool explain_wanted;
    bool deploy, deploy_details; /* --deploy; what belongs to it */
    struct deploy_policy policy;
};

/* Prints to stdout and stderr; returns the worst exit code.  Sets args->check.threads. */
int images_check(struct arguments *args, char **names, size_t count);

#endif
