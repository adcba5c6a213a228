/* SPDX-License-Identifier: MIT
 *
 * What a small image holds, the disk and its snapshots, for comparing. */
#ifndef TESTS_CONTENT_H
#define TESTS_CONTENT_H

#include "image.h"

enum { CONTENT_SNAPSHOTS = 4 };

struct content {
    uint64_t size;
    uint8_t *bytes;
    uint32_t snap_count;
    struct {
        char name[16];
        uint64_t size;
        uint8_t *bytes;
    } snaps[CONTENT_SNAPSHOTS];
};

/* Fails the test when something cannot be read.  Free with content_free(). */
void content_read(struct image *img, struct content *c);
void content_free(struct content *c);

bool content_same_disk(const struct content *a, const struct content *b);
bool content_same_snapshots(const struct content *a, const struct content *b);

/* Whether each sector of the disk is that of `a` or that of `b`. */
bool content_mixes(const struct content *now, const struct content *a, const struct content *b);

#endif
