/* SPDX-License-Identifier: MIT
 *
 * What a guest sees: the plainest reader there can be, for tests that compare content.  It reads
 * every table again for every cluster and trusts nobody's mapping code but its own. */
#ifndef TESTS_GUEST_H
#define TESTS_GUEST_H

#include <stddef.h>
#include <stdint.h>

#include "io.h"

/* Reads from the active disk, or the snapshot of that ID.  `data` is the external data file, NULL
 * without one; the backing file counts as zeros.  -ENOENT: no such snapshot; -EBADMSG: the image is
 * broken there, or other errors of io and codec. */
int guest_read(struct io *io, struct io *data, const char *snapshot_id, uint64_t guest_off,
    uint8_t *buf, size_t length);

#endif
