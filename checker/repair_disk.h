/* SPDX-License-Identifier: MIT
 *
 * What the header says of the active disk, and a record of a snapshot's: the few values that each
 * field can have had are tried out on a copy-on-write view of the image.
 *
 *   repair_disk.c   where the L1 table of a disk lies
 *   repair_size.c   how long that is, how large disk and VM state are */
#ifndef CHECKER_REPAIR_DISK_H
#define CHECKER_REPAIR_DISK_H

#include <string.h>

#include "repair.h"

enum { MAX_TRIES = 128 };

struct tries {
    struct patch patches[MAX_TRIES];
    size_t count;
};

/* Each is tried once; what does not fit any more is not. */
static inline void try_also(struct tries *tries, struct patch patch)
{
    for (size_t i = 0; i < tries->count; i++) {
        if (tries->patches[i].off == patch.off && tries->patches[i].length == patch.length &&
            memcmp(tries->patches[i].bytes, patch.bytes, patch.length) == 0)
            return;
    }
    if (tries->count < MAX_TRIES)
        tries->patches[tries->count++] = patch;
}

/* ---- where a disk's fields are ---- */

static inline uint64_t l1_off_at(const struct tree *tree)
{
    return tree->record_off ? tree->record_off : QCOW2_HDR_L1_OFF;
}

static inline uint64_t l1_size_at(const struct tree *tree)
{
    return tree->record_off ? tree->record_off + 8 : QCOW2_HDR_L1_SIZE;
}

/* Of a snapshot that says it. */
static inline uint64_t disk_size_at(const struct tree *tree)
{
    return tree->record_off ? tree->record_off + QCOW2_SNAPSHOT_HEAD_BYTES + 8 : QCOW2_HDR_SIZE;
}

/* Table and disk size contradict each other: one of the two is wrong. */
int disk_mend_size(struct repair *repair, enum check_id why, const struct tree *tree);

/* Disks that map more than their size.  Tried once a disk, however many entries say so. */
int disk_mend_small_sizes(struct repair *repair);

/* More VM state than the table maps: there can be only as much as it does, which is none if it ends
 * with the disk. */
int disk_mend_vm_state(struct repair *repair, const struct finding *f);

#endif
