/* SPDX-License-Identifier: MIT
 *
 * Taking a disputed object out of a damaged image: what one of the two checkers interprets and the
 * other refuses.  When it is gone from a copy, both must agree about all the rest. */
#ifndef TESTS_NEUTRAL_H
#define TESTS_NEUTRAL_H

#include <stdbool.h>
#include <stdint.h>

#include "io.h"

/* Each returns the number of places changed, or -errno; the image may be damaged in any way. */

/* Zeroes the L1 entries, of the disk and of all snapshots, whose offset field is host_off. */
int neutral_drop_l2(struct io *image, uint64_t host_off);

/* The disk, or snapshots, whose L1 table starts at host_off: an empty table for the disk, at the
 * end of the file, and none for snapshots. */
int neutral_drop_l1(struct io *image, uint64_t host_off);

/* The same for the disk alone, wherever its table is. */
int neutral_drop_active_l1(struct io *image);

/* Zeroes the L1 entries that have flags but no offset. */
int neutral_drop_bare_flags(struct io *image);

/* Points the header's refcount table past the end of the file. */
int neutral_drop_reftable(struct io *image);

/* Clears the autoclear bit of the bitmaps: they and their clusters are nobody's then. */
int neutral_drop_bitmaps(struct io *image);

/* Sets the number of snapshots and the offset of their table to 0. */
int neutral_drop_snapshots(struct io *image);

/* Takes the backing file's name out of the header. */
int neutral_drop_backing(struct io *image);

#endif
