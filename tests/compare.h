/* SPDX-License-Identifier: MIT
 *
 * qemu-img check and qcheck on the same image: what each said, and whether that is the same,
 * differs for a reason with a name (differences.def), or just differs. */
#ifndef TESTS_COMPARE_H
#define TESTS_COMPARE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "imgmake.h"

enum compare_count {
    COUNT_CHECK_ERRORS,
    COUNT_CORRUPTIONS,
    COUNT_LEAKS,
    COUNT_IMAGE_END,
    COUNT_TOTAL,
    COUNT_ALLOCATED,
    COUNT_FRAGMENTED,
    COUNT_COMPRESSED,
    COMPARE_COUNTS,
};

/* The JSON key of a count. */
const char *compare_count_key(enum compare_count count);

struct verdict {
    int exit_code;
    json_t *json; /* NULL if it printed none */
    int64_t counts[COMPARE_COUNTS];
    char *err; /* stderr */
};

enum compare_outcome {
    COMPARE_EQUAL,
    COMPARE_NAMED,     /* differs; `reason` says why */
    COMPARE_DIFFERS,   /* no reason known: a bug in one of the two */
    COMPARE_QEMU_ONLY, /* there is no qcheck */
};

struct comparison {
    struct verdict qemu, own;
    enum compare_outcome outcome;
    const char *reason; /* its name in differences.def */
};

/* Checks `name` in `dir`, an image like `image`; makes "neutral.qcow2" beside it where a reason
 * asks for an object to be taken out.  `qcheck` is the program's path, NULL if there is none.
 * Programs that run longer than a minute are ended (exit 124).  Free with compare_free(). */
void compare_run(const char *dir, const struct imgmake *image, const char *name, const char *qcheck,
    struct comparison *out);
void compare_free(struct comparison *c);

/* Both verdicts as text, for people; free() it. */
char *compare_text(const struct comparison *c);

#endif
