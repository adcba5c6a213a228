/* SPDX-License-Identifier: MIT
 *
 * I8: going on on a crash image, unrepaired, with the project's own engine.  Many ordering bugs
 * show only here, as a snapshot that changes under a later write. */
#ifndef FAULTINJ_CONTINUATION_H
#define FAULTINJ_CONTINUATION_H

#include "oracle.h"

struct continuation {
    struct oracle oracle;
    struct state *state;
    bool refused; /* the engine keeps its hands off: a dirty image waits for its repair */
};

void continuation_init(struct continuation *c);
void continuation_release(struct continuation *c);

/* Writes over mapped clusters, allocates, creates, applies, deletes; `model` is what users see of
 * the crash image now.  Returns -errno of the machine, else 0; what broke is in `breach`. */
int continuation_run(struct continuation *c, const struct state *crash, const struct model *model,
    struct breach *breach);

#endif
