/* SPDX-License-Identifier: MIT
 *
 * Judging on several threads: what is to be judged is cut into parts, each with a walk of its own
 * that shares with the others what was learnt about the image, and has a report to itself.
 *
 * Invariant: the parts' reports are put together in the order of the parts, so that nothing depends
 * on who was first. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "walk.h"

enum { MOST_PARTS = 64 };

struct part {
    struct walk walk;
    struct report report;
    uint64_t first, end;
    walk_part *work;
};

bool walk_has_parts(const struct walk *walk)
{
    /* Whoever wants to be told of each finding wants it in order. */
    return walk->io->concurrent_reads && !walk->options->found && crew_count(walk->crew) > 0;
}

static void part_job(void *arg, size_t index, unsigned worker)
{
    struct part *part = (struct part *)arg + index;
    (void)worker;
    part->work(&part->walk, part->first, part->end);
}

static int part_open(const struct walk *walk, struct part *part, pthread_mutex_t *lock)
{
    memcpy(&part->walk, walk, sizeof(*walk));
    part->walk.report = &part->report;
    part->walk.owner_lock = lock;
    part->walk.crew = NULL;
    part->walk.buf = malloc(walk->geo.cluster_size);
    return part->walk.buf ? 0 : -ENOMEM;
}

/* Works at the next parts side by side; *next becomes where they end. */
static int parts_work(struct walk *walk, struct part *parts, size_t most, uint64_t count,
    uint64_t each, uint64_t *next)
{
    struct crew_task task = {.job = part_job, .arg = parts};
    for (; task.count < most && *next < count; task.count++) {
        struct part *part = &parts[task.count];
        report_init_part(&part->report, walk->report);
        part->walk.unreadable = walk->unreadable;
        part->first = *next;
        *next = count - *next < each ? count : *next + each;
        part->end = *next;
    }
    crew_start(walk->crew, &task);
    crew_wait(walk->crew, &task);
    for (size_t i = 0; i < task.count; i++) {
        report_append(walk->report, &parts[i].report);
        report_release(&parts[i].report);
        walk->unreadable |= parts[i].walk.unreadable;
    }
    return walk_pause(walk, 0);
}

/* Some for each thread, as they take different times; there are many threads where storage is
 * slow. */
static size_t parts_wanted(const struct walk *walk)
{
    enum { EACH = 8, BUF_BYTES = 2 << 20 };
    size_t threads = crew_count(walk->crew) + 1, parts = EACH * threads;
    size_t room = BUF_BYTES / walk->geo.cluster_size;
    if (parts > room)
        parts = room > threads ? room : threads;
    return parts < MOST_PARTS ? parts : MOST_PARTS;
}

int walk_in_parts(struct walk *walk, uint64_t count, uint64_t each, walk_part *work)
{
    size_t most = walk_has_parts(walk) ? parts_wanted(walk) : 0, opened = 0;
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct part *parts = most > 1 ? calloc(most, sizeof(*parts)) : NULL;
    int ret = parts || most <= 1 ? 0 : -ENOMEM;
    for (; ret == 0 && opened < most && parts; opened++) {
        ret = part_open(walk, &parts[opened], &lock);
        parts[opened].work = work;
    }
    for (uint64_t next = 0; ret == 0 && next < count;) {
        uint64_t first = next;
        if (parts) {
            ret = parts_work(walk, parts, most, count, each, &next);
        } else {
            next = count - first < each ? count : first + each;
            work(walk, first, next);
            ret = walk_pause(walk, 0);
        }
    }
    for (size_t i = 0; i < opened; i++)
        free(parts[i].walk.buf);
    free(parts);
    return ret;
}
