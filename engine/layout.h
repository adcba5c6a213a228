/* SPDX-License-Identifier: MIT
 *
 * Where the image's own structures lie, and the question whether a range touches one of them. */
#ifndef ENGINE_LAYOUT_H
#define ENGINE_LAYOUT_H

#include "image.h"

enum region {
    REGION_NONE, /* nothing yet: new clusters, guest data */
    REGION_HEADER,
    REGION_REFTABLE,
    REGION_REFBLOCK,
    REGION_L1,
    REGION_SNAPSHOT_TABLE,
    REGION_SNAPSHOT_L1,
    REGION_BITMAP_DIRECTORY,
    REGION_BITMAP_TABLE,
    REGION_L2, /* of the active L1; last: see layout_overlap_fixed() */
};

/* Called with each structure; a result other than 0 ends the walk and is its result. */
typedef int layout_visit(void *arg, enum region region, uint64_t host_off, uint64_t length);

/* Visits every structure; the many L2 tables only if they are asked for. */
int layout_walk(const struct image *img, bool with_l2, layout_visit *visit, void *arg);

/* The first structure of another kind than `own` that the range touches, or REGION_NONE. */
enum region layout_overlap(
    const struct image *img, enum region own, uint64_t host_off, uint64_t length);

/* The same without looking at L2 tables. */
enum region layout_overlap_fixed(const struct image *img, uint64_t host_off, uint64_t length);

/* For many writes in a row that move no L2 table and no refcount block: layout_overlap() looks
 * these up instead of comparing with each, until the index is dropped.  Out of memory: it goes on
 * slowly. */
void layout_index_build(struct image *img);
void layout_index_drop(struct image *img);

const char *layout_name(enum region region);

/* -EUCLEAN if a structure of the image stands on a cluster that is staged as free. */
int layout_check_counted(struct image *img);

/* -EUCLEAN unless the range is cluster-aligned and begins and ends inside the file, give or take
 * the last cluster.  `what` is for the message. */
int layout_check_range(struct image *img, const char *what, uint64_t host_off, uint64_t length);

#endif
