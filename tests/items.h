/* SPDX-License-Identifier: MIT
 *
 * Which of the random images a run is about, and what is told: the oracle's and the trial's command
 * line,
 *
 *     N SEED [--keep DIR] [--only I] [--verbose] */
#ifndef TESTS_ITEMS_H
#define TESTS_ITEMS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct item_options {
    uint64_t seed, first, count; /* items first .. first + count - 1 */
    const char *keep;            /* directory for images of items that are told, NULL: none */
    const char *qcheck;          /* path of the program, NULL: there is none */
    FILE *log;                   /* what is found is told here */
    bool verbose;                /* so is every other item */
};

/* Fills all but `qcheck` and `log`; false, with the usage of `program` on stderr, when the
 * arguments make no sense. */
bool items_parse(int argc, char **argv, const char *program, struct item_options *options);

#endif
