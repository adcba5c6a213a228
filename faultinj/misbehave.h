/* SPDX-License-Identifier: MIT
 *
 * Wrong engines that cannot be made of a recording: they must run. */
#ifndef FAULTINJ_MISBEHAVE_H
#define FAULTINJ_MISBEHAVE_H

#include "image.h"

struct misbehaviour {
    /* A layer between the engine and its device, which it owns when it succeeds; NULL: none. */
    int (*layer)(struct io *next, struct io **out);
    /* Called after each operation with its result; NULL: nothing. */
    void (*after)(struct image *img, int result);
};

extern const struct misbehaviour misbehaviour_none;
extern const struct misbehaviour misbehaviour_flush_ignored; /* a failed flush was a good one */
extern const struct misbehaviour misbehaviour_flush_retried; /* the second one tells the truth */
extern const struct misbehaviour misbehaviour_list_changed;  /* in memory, though writing failed */

#endif
