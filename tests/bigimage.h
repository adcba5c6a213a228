/* SPDX-License-Identifier: MIT
 *
 * Large sound images in no time, for benchmarks and for counting what a check reads: metadata and
 * compressed clusters only, plain data being holes.  The same settings make the same bytes. */
#ifndef TESTS_BIGIMAGE_H
#define TESTS_BIGIMAGE_H

#include "io.h"
#include "qcow2.h"

struct bigimage {
    unsigned cluster_bits;
    uint64_t size_bytes;   /* of the virtual disk */
    unsigned percent;      /* of the guest clusters are mapped, evenly spread */
    bool shuffled;         /* in an order of host clusters that looks random */
    unsigned snapshots;    /* all of them as the disk is */
    unsigned record_bytes; /* of a snapshot's record, a multiple of 8; 0: no more than it needs */
    unsigned bitmaps;      /* small ones, each with a table of its own and nothing in it */
    uint64_t compressed;   /* that many clusters, from guest offset 0 on, are compressed */
    unsigned wrong_every;  /* every so many mapped clusters have a stored count one too high */
};

/* What it consists of, in clusters; and where its parts are. */
struct bigimage_parts {
    uint64_t reftable, refblocks, l1, l2_tables, mapped, total;
    uint64_t l1_off, l2_off; /* l2_off: of the first L2 table */
    uint64_t packed_bytes;   /* compressed data */
};

/* Writes it to an empty device.  0 or -errno; *parts may be NULL. */
int bigimage_write(struct io *io, const struct bigimage *settings, struct bigimage_parts *parts);

/* The same as a new file. */
int bigimage_save(const char *path, const struct bigimage *settings);

#endif
