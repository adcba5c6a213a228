/* SPDX-License-Identifier: MIT
 *
 * What qcrash prints: for people, as JSON, as TAP, or as a table in Markdown. */
#ifndef FAULTINJ_OUTPUT_H
#define FAULTINJ_OUTPUT_H

#include <stdio.h>

#include "story.h"

enum output_style { OUTPUT_HUMAN, OUTPUT_JSON, OUTPUT_TAP, OUTPUT_TABLE };

/* All runs of a workload, for the table; sequences and random workloads are one each. */
struct output_row {
    char name[32];
    unsigned runs, kept;
    struct explore_counts counts;
};

struct output {
    enum output_style style;
    FILE *out;
    const char *base, *log; /* of a foreign log, not owned: a replay needs them; else NULL */
    uint64_t seed;
    unsigned lines; /* of TAP, so far */
    struct explore_counts total;
    struct story *stories; /* all of them */
    size_t story_count;
    struct output_row *rows;
    size_t row_count;
    size_t printed;     /* stories of the current line */
    char left_out[512]; /* what a budget left out, "" if nothing */
};

/* Takes it over, unless the current line has it already.  -ENOMEM. */
int output_story(struct output *output, struct story *story);

/* One workload on one kind of image under one model is done. */
void output_line(struct output *output, const char *workload, const char *image, const char *model,
    const struct explore_counts *counts);

/* The sum.  -ENOMEM or -EIO. */
int output_finish(struct output *output);
void output_release(struct output *output);

void story_print(const struct story *story, FILE *out);

/* A count that may be astronomic: exact below 2^63, else "2^x". */
void output_count(long double count, char *out, size_t out_len);

#endif
