/* SPDX-License-Identifier: MIT
 *
 * All that the guests of an image can read: the active disk and every snapshot, cluster by cluster,
 * by the plain reader of guest.h.  Of a healthy image it is the truth, against which a damaged or
 * repaired copy is held. */
#ifndef TESTS_TRUTH_H
#define TESTS_TRUTH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "guest.h"
#include "io.h"

/* Instead of a digest: cannot be read.  Digests are 0 for zeros, 1 for what the backing file has.
 */
#define TRUTH_UNREADABLE UINT64_MAX

/* Guest clusters in a row; more than one only of unreadable ones.  What is not listed is not
 * allocated. */
struct truth_run {
    uint64_t guest_idx, count, digest;
    uint64_t host_off, length; /* of the bytes in the file, length 0: there are none */
    uint64_t at[2];            /* of the L1 and the L2 entry */
};

struct truth_disk {
    char label[GUEST_LABEL_BYTES]; /* "" for the active disk, else "ID/name" */
    uint64_t names_off, names_len; /* where a snapshot's label is in the file */
    uint64_t cluster_count;
    struct truth_run *runs;
    size_t count, room;
};

struct truth {
    unsigned cluster_bits, l2_entry_size;
    bool data_file;
    uint64_t background; /* digest of what is not allocated */
    struct truth_disk *disks;
    size_t disk_count;
};

/* Reads up to `most_bytes` of each disk.  What cannot be read is part of the answer; aborts without
 * memory.  Release with truth_free(). */
void truth_read(struct io *io, struct io *data, uint64_t most_bytes, struct truth *out);
void truth_free(struct truth *content);

/* The most bytes that a disk of it has. */
uint64_t truth_size(const struct truth *content);

/* Bytes of the truth's allocated clusters, but for those of zeros, whose data is still in the
 * damaged file as it was. */
struct truth_share {
    uint64_t in_file, kept; /* and those that read as they did */
    /* Those of which something still says where they belong: an entry of this or of another disk
     * leads there, or stood alone in its sector or beside one that is as it was, and may be mended.
     * Of all others the part of the table was cut off or overwritten: nothing can know. */
    uint64_t known, known_kept;
    /* Those whose L2 entry is untouched, and the name of the snapshot: their place is known. */
    uint64_t placed, placed_kept;
    uint64_t mapped, mapped_kept; /* those whose L1 and L2 entry are untouched, too */
    unsigned snapshots, snapshots_kept;
};

void truth_kept(const struct truth *truth, struct io *healthy, struct io *damaged,
    const struct truth *after, struct truth_share *share);

/* Guest clusters that read as in the truth before, and after not; a line about the first goes to
 * `why`.  With `whole` a snapshot that was not wholly sound may be gone. */
uint64_t truth_worse(const struct truth *truth, const struct truth *before,
    const struct truth *after, bool whole, FILE *why);

/* Guest clusters that read neither as in `a` nor as in `b`, nor, with `lossy`, are unreadable now;
 * a line about the first goes to `why`. */
uint64_t truth_between(
    const struct truth *a, const struct truth *b, const struct truth *now, bool lossy, FILE *why);

/* Guest clusters of `after` that read neither as in the truth nor as before, and disks that the
 * truth does not have: what belongs elsewhere was taken for them.  What cannot be read is none of
 * these, nor, with `lossy`, what reads as zeros; a line about the first goes to `why`. */
uint64_t truth_foreign(const struct truth *truth, const struct truth *before,
    const struct truth *after, bool lossy, FILE *why);

#endif
