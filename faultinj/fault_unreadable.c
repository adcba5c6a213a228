/* SPDX-License-Identifier: MIT
 *
 * Unreadable: a unit that was being written answers EIO until it is written again (a disk that lost
 * power in the middle of a sector).  Promised is only that the checker ends and says so. */
#include <errno.h>
#include <stdlib.h>

#include "fault.h"

int fault_unreadable(struct epoch *epoch, const struct recording *recording, uint64_t seed)
{
    (void)recording, (void)seed;
    uint8_t *zeros = calloc(1, epoch->unit_bytes);
    int ret = zeros ? 0 : -ENOMEM;
    for (size_t i = 0; ret >= 0 && i < epoch->unit_count; i++) {
        zeros[0] = 0xe1; /* a version of its own; nobody gets to see the byte */
        ret = epoch_add_version(epoch, i, zeros, NO_REQUEST, true);
        if (ret >= 0)
            epoch->units[i].versions[ret].unreadable = true;
    }
    free(zeros);
    return ret < 0 ? ret : 0;
}
