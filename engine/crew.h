/* SPDX-License-Identifier: MIT
 *
 * A crew of threads for many jobs of one kind: reads, decodings, whole images.
 *
 * Whoever waits for a task works at it, too, so nothing depends on there being threads: a crew that
 * could not start any, and no crew at all (NULL), do the same work one job after the other. Jobs of
 * a task are taken up in ascending order and may end in any. */
#ifndef ENGINE_CREW_H
#define ENGINE_CREW_H

#include <stddef.h>

struct crew;

/* One job of a task.  `worker` is the number of the one who does it, 0 being whoever waits; no two
 * jobs run at the same time under one number (provided that one thread at a time waits). */
typedef void crew_job(void *arg, size_t index, unsigned worker);

/* Jobs 0 .. count - 1; the caller's until it is started, then the crew's until it was waited for.
 * The first four members are the caller's to set. */
struct crew_task {
    crew_job *job;
    void *arg;
    size_t count;
    size_t grain; /* jobs taken up at a time; 0 means 1 */
    size_t next, done;
    struct crew_task *link;
};

/* A crew of up to `most` threads, none of them there yet.  -ENOMEM. */
int crew_open(unsigned most, struct crew **out);
void crew_close(struct crew *crew); /* all tasks have been waited for; NULL is allowed */

/* Worker numbers are below this; 1 for NULL. */
unsigned crew_workers(const struct crew *crew);

/* Threads that are there now; 0 for NULL. */
unsigned crew_count(struct crew *crew);

/* Sees to it that there are `threads` threads, or `most`; fewer if the system says no. */
void crew_grow(struct crew *crew, unsigned threads);

/* The same, in one go: twice as many threads as there are, and at least one. */
void crew_double(struct crew *crew);

/* Tasks that are started are worked at in the order of their starts, and must be waited for. */
void crew_start(struct crew *crew, struct crew_task *task);
void crew_wait(struct crew *crew, struct crew_task *task);

#endif
