/* SPDX-License-Identifier: MIT
 *
 * Which differences are known, by name; see differences.def. */
#ifndef TESTS_DIFFERENCES_H
#define TESTS_DIFFERENCES_H

#include "compare.h"
#include "io.h"

enum difference {
#define DIFFERENCE(name, why) DIFFERENCE_##name,
#include "differences.def"
#undef DIFFERENCE
    DIFFERENCE_COUNT,
    DIFFERENCE_NONE = DIFFERENCE_COUNT,
};

const char *difference_name(enum difference difference);

/* The reason that follows from the two outputs alone, or DIFFERENCE_NONE. */
enum difference difference_alone(const struct comparison *c);

/* The next reason, from `from` on, that the outputs suggest and that something must be taken out of
 * a copy for; DIFFERENCE_NONE if there is no other. */
enum difference difference_next(const struct comparison *c, enum difference from);

/* Takes what the difference is about out of the image.  Returns the number of places changed, 0 if
 * the image has no such thing, or -errno. */
int difference_take_out(enum difference difference, const struct comparison *c, struct io *image);

/* qemu-img calls the cluster of something corrupt that qcheck does not take for an L2 table. */
bool difference_told_of_table(const struct comparison *c);

#endif
