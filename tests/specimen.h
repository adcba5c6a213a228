/* SPDX-License-Identifier: MIT
 *
 * The images of a run of random damage: item i of a seed is a damaged copy of a healthy image, and
 * SPECIMEN_SHARE items in a row come from the same one.  An item depends on the run's seed and on
 * i, on nothing else. */
#ifndef TESTS_SPECIMEN_H
#define TESTS_SPECIMEN_H

#include <stdbool.h>
#include <stdint.h>

#include "imgmake.h"

enum { SPECIMEN_SHARE = 4 };

struct specimen {
    char *dir; /* where the images are */
    struct imgmake image;
    bool made;         /* the healthy image is there */
    uint64_t not_made; /* attempts that failed */
};

void specimen_open(struct specimen *s);
void specimen_close(struct specimen *s); /* removes the directory */

/* Makes the healthy image of an item; s->made tells whether that went well. */
void specimen_sound(struct specimen *s, uint64_t seed, uint64_t item);

/* Makes the damaged copy `name` of it; *story as damage_image() tells it. 0 or -errno. */
int specimen_damage(
    struct specimen *s, uint64_t seed, uint64_t item, const char *name, char **story);

/* Copies a file of the directory; holes stay holes.  0 or -errno. */
int specimen_copy(struct specimen *s, const char *from, const char *to);

/* Copies `name` to `keep`, as SEED-ITEM<suffix>.qcow2, with the script that made the image. */
void specimen_keep(struct specimen *s, const char *name, const char *keep, uint64_t seed,
    uint64_t item, const char *suffix);

#endif
