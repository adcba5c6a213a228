/* SPDX-License-Identifier: MIT
 *
 * I9: repairing a crash image.  The repair leads to a clean image of the same content, a second one
 * changes nothing, and power may be cut inside it as well. */
#ifndef FAULTINJ_REPAIRING_H
#define FAULTINJ_REPAIRING_H

#include "fault.h"
#include "oracle.h"

struct repairing {
    struct oracle oracle;
    struct state *start; /* the crash image; from epoch to epoch of the repair, what is durable */
    struct state *now;   /* being repaired, then each cut inside the repair */
    struct state *first; /* as the first repair left it */
    uint64_t cuts;       /* looked at so far */
    bool orphaned;       /* leaks were kept, since they look like lost tables */
};

void repairing_init(struct repairing *r);
void repairing_release(struct repairing *r);

/* `model` is what users see of the crash image.  -errno of the machine. */
int repairing_run(struct repairing *r, const struct state *crash, const struct model *model,
    struct breach *breach);

#endif
