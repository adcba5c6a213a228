/* SPDX-License-Identifier: MIT
 *
 * A violation told to people: what ran, where it was cut, what was there, what was lost. */
#ifndef FAULTINJ_STORY_H
#define FAULTINJ_STORY_H

#include "explore.h"

enum { STORY_ID_BYTES = 800, STORY_SIDE_MAX = 12 };

struct story {
    char id[STORY_ID_BYTES];
    enum invariant invariant;
    char workload[WORKLOAD_NAME_BYTES + IMAGE_NAME_BYTES];
    char cut[256];
    char order[200]; /* what must be durable before what; "" if that is not the point */
    char message[BREACH_TEXT_BYTES];
    char *persisted[STORY_SIDE_MAX], *lost[STORY_SIDE_MAX]; /* malloc'd lines */
    char *backtraces[STORY_SIDE_MAX]; /* first of persisted, first of lost, ... */
    size_t persisted_count, lost_count, backtrace_count;
};

/* `suffix` of the ID names a mutant, "" for none.  -ENOMEM. */
int story_make(const struct history *history, const struct fault_model *model,
    const struct violation *violation, const char *suffix, struct story *out);
/* The story of history->live. */
void story_live(const struct history *history, const char *suffix, struct story *out);
void story_release(struct story *story);

/* The parts of an ID: WORKLOAD@IMAGE/MODEL/EPOCH/CHOICES[+MUTANT]. */
struct story_id {
    char workload[WORKLOAD_NAME_BYTES], image[IMAGE_NAME_BYTES], model[32], choices[STORY_ID_BYTES],
        mutant[48];
    unsigned epoch;
};
int story_id_parse(const char *text, struct story_id *out); /* -EINVAL */

#endif
