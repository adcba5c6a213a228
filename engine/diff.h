/* SPDX-License-Identifier: MIT
 *
 * Comparing two disks of one image, and writing one out. */
#ifndef ENGINE_DIFF_H
#define ENGINE_DIFF_H

#include "image.h"

/* One guest range that differs, whole sectors; a result other than 0 ends the comparison. */
typedef int diff_range(void *arg, uint64_t guest_off, uint64_t length);

/* Calls `range` for each range whose bytes differ, in order, neighbours merged; what one disk has
 * behind the other's end differs.  Tables that both share, and clusters that both map, are not
 * read. */
int diff_views(
    struct image *img, const struct view *a, const struct view *b, diff_range *range, void *arg);

/* Writes the disk to `out`, which is empty, raw and with holes for zeros, durably. */
int export_raw(struct image *img, const struct view *view, struct io *out);

#endif
