/* SPDX-License-Identifier: MIT
 *
 * Discard: on a file a discarded range holds its old bytes or zeros, on a device perhaps noise. The
 * first two are versions anyway; this adds the third.  Promise: I1 to I8, since nothing that is
 * discarded may be referred to any more. */
#include <errno.h>
#include <stdlib.h>

#include "fault.h"

static bool discarded(const struct recording *recording, const struct epoch *epoch, uint64_t unit)
{
    for (size_t i = epoch->first; i < epoch->end; i++) {
        const struct request *r = &recording->list[i];
        if (r->kind == REQUEST_DISCARD && r->host_off <= unit * epoch->unit_bytes &&
            r->length >= (unit + 1) * epoch->unit_bytes - r->host_off)
            return true;
    }
    return false;
}

int fault_discard_noise(struct epoch *epoch, const struct recording *recording, uint64_t seed)
{
    uint8_t *noise = malloc(epoch->unit_bytes);
    int ret = noise ? 0 : -ENOMEM;
    for (size_t i = 0; ret >= 0 && i < epoch->unit_count; i++) {
        if (!discarded(recording, epoch, epoch->units[i].idx))
            continue;
        for (unsigned b = 0; b < epoch->unit_bytes; b++)
            noise[b] = (uint8_t)state_mix(seed + i + b);
        ret = epoch_add_version(epoch, i, noise, NO_REQUEST, true);
    }
    free(noise);
    return ret < 0 ? ret : 0;
}
