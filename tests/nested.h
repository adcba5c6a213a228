/* SPDX-License-Identifier: MIT
 *
 * Images whose guests keep in their disks what looks like metadata: whole images (nested
 * virtualisation), tables that name clusters of this very image, copies of its own. */
#ifndef TESTS_NESTED_H
#define TESTS_NESTED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* From this guest cluster on, in the first two L2 tables, the content is the guest's choice; these
 * clusters lie in a row in the file. */
#define NESTED_SPOT      8
#define NESTED_SPOT_TEXT "8"

struct nested_base {
    const char *name, *recipe;
    unsigned cluster;
    bool extended, snapshots, bitmap, narrow; /* narrow: counts of one bit */
};
extern const struct nested_base nested_bases[];
extern const size_t nested_base_count;

/* Writes the statements of a recipe that put the content there; the image stays sound. */
struct nested_content {
    const char *name;
    void (*write)(FILE *out, const struct nested_base *base);
};
extern const struct nested_content nested_contents[];
extern const size_t nested_content_count;

#endif
