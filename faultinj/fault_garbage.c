/* SPDX-License-Identifier: MIT
 *
 * Garbage: a unit that was being written when power went holds noise (flash that lost a page in the
 * middle of programming it).  What was not being written survives.  No format without checksums can
 * promise its content; promised is that it is noticed, or else did no harm. */
#include <errno.h>
#include <stdlib.h>

#include "fault.h"

int fault_garbage(struct epoch *epoch, const struct recording *recording, uint64_t seed)
{
    (void)recording;
    uint8_t *noise = malloc(epoch->unit_bytes);
    int ret = noise ? 0 : -ENOMEM;
    for (size_t i = 0; ret >= 0 && i < epoch->unit_count; i++) {
        for (unsigned b = 0; b < epoch->unit_bytes; b++)
            noise[b] = (uint8_t)state_mix(seed + epoch->units[i].idx * epoch->unit_bytes + b);
        ret = epoch_add_version(epoch, i, noise, NO_REQUEST, true);
    }
    free(noise);
    return ret < 0 ? ret : 0;
}
