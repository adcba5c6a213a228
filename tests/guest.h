/* SPDX-License-Identifier: MIT
 *
 * What a guest sees: the plainest reader there can be, for tests that compare content.  It reads
 * every table again for every cluster and trusts nobody's mapping code but its own. */
#ifndef TESTS_GUEST_H
#define TESTS_GUEST_H

#include <stddef.h>
#include <stdint.h>

#include "io.h"
#include "qcow2.h"

/* One disk of an image: the active one or a snapshot. */
struct guest_disk {
    struct io *io, *data; /* not owned */
    struct qcow2_header header;
    struct qcow2_geometry geo;
    uint64_t l1_off, l1_size, size_bytes;
    uint64_t names_off, names_len; /* of a snapshot: its ID and name in the file */
};

/* Opens the active disk, the snapshot of that ID, or (ID NULL) the nth snapshot, counted from 1;
 * `data` as below, looked at only if the header says that there is one.  -ENOENT: no such snapshot,
 * or other errors.  `label`, if not NULL, gets "ID/name" of the snapshot, "" for the disk. */
enum { GUEST_LABEL_BYTES = 128 };
int guest_open(struct guest_disk *disk, struct io *io, struct io *data, const char *snapshot_id,
    unsigned nth, char *label);

/* The entry of a guest cluster, and where it stands: at[0] of the L1 entry, [1] of the L2
 * entry, 0 if there is none. */
int guest_entry(
    struct guest_disk *disk, uint64_t guest_idx, struct qcow2_l2_entry *e, uint64_t at[2]);

/* Reads what the entry leads to, a whole cluster. */
int guest_cluster(struct guest_disk *disk, const struct qcow2_l2_entry *e, uint8_t *out);

/* Reads from the active disk, or the snapshot of that ID.  `data` is the external data file, NULL
 * without one; the backing file counts as zeros.  -ENOENT: no such snapshot; -EBADMSG: the image is
 * broken there, or other errors of io and codec. */
int guest_read(struct io *io, struct io *data, const char *snapshot_id, uint64_t guest_off,
    uint8_t *buf, size_t length);

#endif
