/* SPDX-License-Identifier: MIT
 *
 * I9: repairing a crash image.  The repair leads to a clean image of the same content, a second one
 * changes nothing, and power may be cut inside it as well.
 *
 * A repair that gives up nothing keeps leaks that look like lost tables, since it cannot know that
 * a power cut made them.  They pass where I11 allows them and a lossy repair leads to a clean image
 * that shows nothing but what the power cut may show; they are counted apart. */
#ifndef FAULTINJ_REPAIRING_H
#define FAULTINJ_REPAIRING_H

#include "history.h"

struct repairing {
    struct oracle oracle;
    struct state *start; /* the crash image; from epoch to epoch of the repair, what is durable */
    struct state *now;   /* being repaired, then each cut inside the repair */
    struct state *first; /* as the first repair left it */
    uint64_t cuts;       /* looked at so far */
    bool no_memory;      /* a repair could not be completed for that */
    bool orphaned;       /* leaks were kept, since they look like lost tables */
    bool adopted;        /* and a lossy repair puts one of them where nothing was */
};

void repairing_init(struct repairing *r);
void repairing_release(struct repairing *r);

/* What holds for the crash image. */
struct repairing_promise {
    const struct leak_limits *limits;
    const struct model *model; /* what users see of it */
};

/* -errno of the machine. */
int repairing_run(struct repairing *r, const struct state *crash,
    const struct repairing_promise *promise, struct breach *breach);

/* A power cut hit the repair of a damaged image: repairing it again leads to a sound one that shows
 * nothing but what the history allows. */
int repairing_again(struct repairing *r, const struct state *crash, const struct history *history,
    struct window window, struct breach *breach);

#endif
