/* SPDX-License-Identifier: MIT
 *
 * The trial of the repair: damaged images of specimen.h, each repaired by `qcheck --repair`, by
 * `qcheck --repair --lossy` and by `qemu-img check -r all` (twice, as one does), each on a copy of
 * its own; what is left of the guests' data is held against the healthy image.
 *
 * Hard rules, broken by no image:
 *   worse     the safe repair makes no cluster unreadable that was right before; with --lossy this
 *             holds for the disks and snapshots that were right from end to end
 *   again     a second repair changes no byte
 *   verdict   the exit code of the repair is that of a check afterwards
 *   crash     ends with an exit code of its own, within TRIAL_SECONDS */
#ifndef TESTS_TRIAL_RUN_H
#define TESTS_TRIAL_RUN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "items.h"
#include "truth.h"

enum trial_tool { TRIAL_SAFE, TRIAL_LOSSY, TRIAL_QEMU, TRIAL_TOOLS };
enum trial_rule { TRIAL_WORSE, TRIAL_AGAIN, TRIAL_VERDICT, TRIAL_CRASH, TRIAL_RULES };
#if defined(__OPTIMIZE__)
enum { TRIAL_SECONDS = 10 };
#else
enum { TRIAL_SECONDS = 100 }; /* where `make coverage` counts each line */
#endif

const char *trial_tool_name(enum trial_tool tool);
const char *trial_rule_name(enum trial_rule rule);

enum { TRIAL_DAMAGES = 4 }; /* an image has one to so many */

/* One tool, over a number of images. */
struct trial_sum {
    uint64_t images;
    uint64_t clean_qemu, clean_own;
    struct truth_share share; /* sums */
    double kept_shares;       /* sum of the share kept of each image that has data */
    double seconds_most, seconds;
};

/* What --lossy lost of images with that kind of damage, shared among all damages of an image. */
struct trial_cause {
    char kind[96];
    double bytes, images; /* images: whole ones lost */
};

enum { TRIAL_CAUSES = 400 };

struct trial_totals {
    uint64_t images, with_data, skipped; /* skipped: not even the healthy image is sound */
    struct trial_sum tools[TRIAL_TOOLS];
    struct trial_sum by_damages[TRIAL_DAMAGES][TRIAL_TOOLS]; /* of images with index + 1 damages */
    uint64_t less_than_qemu; /* images of which qemu-img keeps more than --lossy */
    uint64_t broken[TRIAL_RULES];
    struct trial_cause causes[TRIAL_CAUSES];
    size_t cause_count;
};

/* 0, or -errno when an image could not be copied or damaged. */
int trial_run(const struct item_options *options, struct trial_totals *totals);

#endif
