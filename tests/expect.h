/* SPDX-License-Identifier: MIT
 *
 * The expect file of a corpus folder (corpus/README.md) and its comparison with what the checker
 * printed as JSON. */
#ifndef TESTS_EXPECT_H
#define TESTS_EXPECT_H

#include <jansson.h>
#include <stdio.h>

#include "recipe.h"

enum { EXPECT_ANY = -1 }; /* of a number: there is no such line */

struct expect_finding {
    char *line; /* as in the file, for messages */
    char *check;
    struct expect_key {
        char *key, *value;
    } keys[16];
    size_t key_count;
};

/* Guest content: `data OFFSET LENGTH pattern [snapshot]`. */
struct expect_content {
    char *guest_off, *length; /* expressions */
    struct recipe_pattern pattern;
    char *snapshot_id; /* NULL: the active disk */
};

struct expect {
    int exit_code, corruptions, leaks, check_errors, repair_exit, qemu_exit, repair_qemu_exit;
    char *verdict, *args, *repair_args; /* NULL without such a line */
    struct expect_finding *findings;
    size_t finding_count;
    struct expect_content *contents;
    size_t content_count;
};

/* -EINVAL with "file:line: message" in `error`, or what opening the file gave. */
int expect_load(const char *path, struct expect **out, char error[RECIPE_ERROR_BYTES]);
void expect_free(struct expect *expect); /* NULL is allowed */

/* Compares one object of the checker's output with the expectation and writes every difference to
 * `out`: lines expected but not found, findings nobody expected (in the syntax of the file, to be
 * copied if they are right), other numbers and words.  Returns how many there are. */
int expect_compare(
    const struct expect *expect, struct recipe *recipe, const json_t *report, FILE *out);

#endif
