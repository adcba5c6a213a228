/* SPDX-License-Identifier: MIT
 *
 * Shorn: a unit holds the first part of its new version and the rest of the one before (a device
 * whose true unit is smaller than it says).  Everything else survives as written or not.  Promised
 * is that it is noticed, or else did no harm. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"

int fault_shorn(struct epoch *epoch, const struct recording *recording, uint64_t seed)
{
    (void)recording;
    uint8_t *mixed = malloc(epoch->unit_bytes);
    int ret = mixed ? 0 : -ENOMEM;
    for (size_t i = 0; ret >= 0 && i < epoch->unit_count; i++) {
        unsigned written = epoch->units[i].count;
        size_t cut = (size_t)(1 + state_mix(seed + i) % (epoch->unit_bytes / 8 - 1)) * 8;
        for (unsigned v = 1; ret >= 0 && v < written; v++) {
            memcpy(mixed, epoch->units[i].versions[v - 1].bytes, epoch->unit_bytes);
            memcpy(mixed, epoch->units[i].versions[v].bytes, cut);
            ret = epoch_add_version(epoch, i, mixed, NO_REQUEST, true);
        }
    }
    free(mixed);
    return ret < 0 ? ret : 0;
}
