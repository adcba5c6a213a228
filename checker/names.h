/* SPDX-License-Identifier: MIT
 *
 * Which of many names come twice: IDs of snapshots, names of bitmaps.  Sorting, so that a crafted
 * image with 65536 of them costs no quadratic search. */
#ifndef CHECKER_NAMES_H
#define CHECKER_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct named {
    const uint8_t *name; /* not owned; may hold any bytes */
    size_t length;
    size_t idx; /* the caller's index of the thing named */
};

/* Sorts by name, equal ones by idx. */
void names_sort(struct named *names, size_t count);

/* In sorted names: does `name` belong to anything but number `idx`? */
bool names_other_has(
    const struct named *names, size_t count, const uint8_t *name, size_t length, size_t idx);

/* In sorted names: the lowest idx among those that are `name`, SIZE_MAX if there is none. */
size_t names_first(const struct named *names, size_t count, const uint8_t *name, size_t length);

#endif
