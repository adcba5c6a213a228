/* SPDX-License-Identifier: MIT
 *
 * Runs: workloads on images under models, each explored and reported. */
#ifndef FAULTINJ_RUN_H
#define FAULTINJ_RUN_H

#include "output.h"

struct run_options {
    char **workloads; /* none: all that are built in */
    size_t workload_count;
    char **images; /* kinds or paths; none: "c512"; "all": every kind; "hurt": every damaged
                    * one */
    size_t image_count;
    char **models; /* none: "sector"; "all": every one */
    size_t model_count;
    unsigned sequences; /* all sequences of up to so many operations, instead of workloads */
    unsigned random_count, random_length;
    bool faults;            /* calls that fail, too */
    const char *base, *log; /* of another program */
    const char *record;     /* log file of the run, which is the only one, or NULL */
    struct explore_options explore;
};

/* -errno with a message on stderr.  What is broken is in output->stories. */
int run_all(const struct run_options *options, struct output *output);
/* A base image and a log of what another program did to it. */
int run_explore(const struct run_options *options, struct output *output);
/* IDs that a log was explored under need it again, as options->base and ->log. */
int run_replay(
    const char *id, const char *save, const struct run_options *options, struct output *output);

/* Names of images, up to 64, with "all" and "hurt" written out; returns how many there are in
 * `out`.
 */
enum { RUN_MOST_IMAGES = 4096 };
size_t run_image_names(const char *const *names, size_t count, const char *out[RUN_MOST_IMAGES]);

/* The image of a kind, or a file, in memory. */
int run_build_image(const char *name, struct io **out);

/* A workload by name, run on an image by name, with faults or without (NULL). */
int run_history(const char *workload, const char *image, bool backtraces, struct fault_plan *plan,
    struct history *out);

#endif
