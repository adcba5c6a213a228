/* SPDX-License-Identifier: MIT
 *
 * Stale: where the file grew but the write was lost, bytes show that the disk held before (file
 * systems without ordered data).  Here they are the meanest ones: other sectors of this image, and
 * noise.  Promise: I1 to I8, since nothing refers to clusters before they are durable. */
#include <errno.h>
#include <stdlib.h>

#include "fault.h"

int fault_stale(struct epoch *epoch, const struct recording *recording, uint64_t seed)
{
    (void)recording;
    uint8_t *noise = malloc(epoch->unit_bytes);
    int ret = noise ? 0 : -ENOMEM;
    for (size_t i = 0; ret >= 0 && i < epoch->unit_count; i++) {
        if (epoch->units[i].idx * epoch->unit_bytes < epoch->durable_size)
            continue;
        for (unsigned b = 0; b < epoch->unit_bytes; b++)
            noise[b] = (uint8_t)state_mix(seed + i + b);
        ret = epoch_add_version(epoch, i, noise, NO_REQUEST, true);
        if (ret >= 0 && i > 0) /* what another unit held */
            ret = epoch_add_version(
                epoch, i, epoch->units[i - 1].versions[0].bytes, NO_REQUEST, true);
    }
    free(noise);
    return ret < 0 ? ret : 0;
}
