/* SPDX-License-Identifier: MIT
 *
 * See crew.h.  Everything below `lock` changes under it.  A task is in the list from its start
 * until its last job was taken up; it is done when as many jobs have ended as it has. */
#include "crew.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

enum { STACK_BYTES = 1 << 20 }; /* room, not memory */

struct hand {
    struct crew *crew;
    pthread_t thread;
    unsigned worker;
};

struct crew {
    unsigned most;
    pthread_mutex_t lock;
    pthread_cond_t wanted; /* there are jobs, or it is over */
    pthread_cond_t ended;  /* a task is done */
    unsigned count, idle;
    bool over;
    struct crew_task *first, *last;
    struct hand hands[];
};

/* ---- under the lock ---- */

static void unlink_task(struct crew *crew, const struct crew_task *task)
{
    struct crew_task **link = &crew->first, *before = NULL;
    while (*link != task) {
        before = *link;
        link = &before->link;
    }
    *link = task->link;
    if (crew->last == task)
        crew->last = before;
}

/* Takes up some jobs of the task, works at them without the lock, and tells when it is done. */
static void work_at(struct crew *crew, struct crew_task *task, unsigned worker)
{
    size_t first = task->next, end = first + (task->grain ? task->grain : 1);
    end = end < task->count ? end : task->count;
    task->next = end;
    if (end == task->count)
        unlink_task(crew, task);
    pthread_mutex_unlock(&crew->lock);
    for (size_t i = first; i < end; i++)
        task->job(task->arg, i, worker);
    pthread_mutex_lock(&crew->lock);
    task->done += end - first;
    if (task->done == task->count)
        pthread_cond_broadcast(&crew->ended);
}

static void *hand_main(void *arg)
{
    struct hand *hand = arg;
    struct crew *crew = hand->crew;
    pthread_mutex_lock(&crew->lock);
    while (!crew->over) {
        if (crew->first) {
            work_at(crew, crew->first, hand->worker);
            continue;
        }
        crew->idle++;
        pthread_cond_wait(&crew->wanted, &crew->lock);
        crew->idle--;
    }
    pthread_mutex_unlock(&crew->lock);
    return NULL;
}

/* Signals are for the thread that was there first. */
static void add_hands(struct crew *crew, unsigned threads)
{
    pthread_attr_t attr;
    sigset_t all, before;
    if (pthread_attr_init(&attr) != 0)
        return;
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (crew->count < threads) {
        struct hand *hand = &crew->hands[crew->count];
        hand->crew = crew;
        hand->worker = crew->count + 1;
        if (pthread_create(&hand->thread, &attr, hand_main, hand) != 0)
            break;
        crew->count++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
}

/* ---- public ---- */

int crew_open(unsigned most, struct crew **out)
{
    struct crew *crew = calloc(1, sizeof(*crew) + most * sizeof(crew->hands[0]));
    if (!crew)
        return -ENOMEM;
    crew->most = most;
    pthread_mutex_init(&crew->lock, NULL);
    pthread_cond_init(&crew->wanted, NULL);
    pthread_cond_init(&crew->ended, NULL);
    *out = crew;
    return 0;
}

void crew_close(struct crew *crew)
{
    if (!crew)
        return;
    pthread_mutex_lock(&crew->lock);
    crew->over = true;
    pthread_cond_broadcast(&crew->wanted);
    pthread_mutex_unlock(&crew->lock);
    for (unsigned i = 0; i < crew->count; i++)
        pthread_join(crew->hands[i].thread, NULL);
    pthread_cond_destroy(&crew->ended);
    pthread_cond_destroy(&crew->wanted);
    pthread_mutex_destroy(&crew->lock);
    free(crew);
}

unsigned crew_workers(const struct crew *crew)
{
    return crew ? crew->most + 1 : 1;
}

unsigned crew_count(struct crew *crew)
{
    if (!crew)
        return 0;
    pthread_mutex_lock(&crew->lock);
    unsigned count = crew->count;
    pthread_mutex_unlock(&crew->lock);
    return count;
}

void crew_grow(struct crew *crew, unsigned threads)
{
    if (!crew)
        return;
    pthread_mutex_lock(&crew->lock);
    if (!crew->over)
        add_hands(crew, threads < crew->most ? threads : crew->most);
    pthread_mutex_unlock(&crew->lock);
}

void crew_double(struct crew *crew)
{
    if (!crew)
        return;
    pthread_mutex_lock(&crew->lock);
    unsigned threads = crew->count * 2 + 1;
    if (!crew->over)
        add_hands(crew, threads < crew->most ? threads : crew->most);
    pthread_mutex_unlock(&crew->lock);
}

void crew_start(struct crew *crew, struct crew_task *task)
{
    task->next = task->done = 0;
    task->link = NULL;
    if (!crew || task->count == 0)
        return;
    pthread_mutex_lock(&crew->lock);
    if (crew->last)
        crew->last->link = task;
    else
        crew->first = task;
    crew->last = task;
    /* Those who work will look for more; of the others no more than there are jobs for. */
    size_t grain = task->grain ? task->grain : 1, wanted = (task->count + grain - 1) / grain;
    for (size_t i = 0; i < crew->idle && i < wanted; i++)
        pthread_cond_signal(&crew->wanted);
    pthread_mutex_unlock(&crew->lock);
}

void crew_wait(struct crew *crew, struct crew_task *task)
{
    if (!crew) {
        for (; task->next < task->count; task->next++)
            task->job(task->arg, task->next, 0);
        return;
    }
    pthread_mutex_lock(&crew->lock);
    while (task->done < task->count) {
        if (task->next < task->count)
            work_at(crew, task, 0);
        else
            pthread_cond_wait(&crew->ended, &crew->lock);
    }
    pthread_mutex_unlock(&crew->lock);
}
