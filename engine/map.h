/* SPDX-License-Identifier: MIT
 *
 * From guest offsets to host clusters: L2 tables, and reading through them. */
#ifndef ENGINE_MAP_H
#define ENGINE_MAP_H

#include "image.h"

/* Reads the L2 table of an L1 entry that has an offset.  -EUCLEAN if it cannot be one. */
int map_read_l2(struct image *img, uint64_t l1_entry, uint8_t *bytes);

/* Decodes entry `idx` of a table; -EUCLEAN unless its bits are allowed and what it points to is in
 * the file. */
int map_entry(struct image *img, const uint8_t *l2, uint32_t idx, struct qcow2_l2_entry *entry);

/* Guest bytes [guest_off, + length), all in the cluster that `entry` maps. */
int map_read_entry(struct image *img, const struct qcow2_l2_entry *entry, uint64_t guest_off,
    uint8_t *buf, size_t length);

/* Reads guest bytes; what the L1 does not reach reads as zeros, the view's size is not asked: VM
 * state lies behind it. */
int map_read(
    struct image *img, const struct view *view, uint64_t guest_off, void *buf, size_t length);

/* The first guest range at or after `guest_off` that may hold something other than zeros, as
 * [*start, *end); both are the view's size when there is none. */
int map_next_data(
    struct image *img, const struct view *view, uint64_t guest_off, uint64_t *start, uint64_t *end);

/* The clusters a mapped entry holds a reference to; count 0 where it holds none. */
struct cluster_run map_entry_clusters(
    const struct qcow2_geometry *geo, const struct qcow2_l2_entry *entry);

/* Bits of the subclusters that [in_off, in_off + length) touches. */
uint32_t map_subclusters(const struct qcow2_geometry *geo, uint32_t in_off, size_t length);

#endif
