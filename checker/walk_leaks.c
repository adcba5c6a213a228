/* SPDX-License-Identifier: MIT
 *
 * Goes over the leaked clusters for those who search in them (orphan.c).
 *
 * Leaks are taken some thousands at a time, and what is read for one look at all of those is read
 * ahead.
 *
 * Invariant: what a search is shown, and in which order, does not depend on how many are taken. */
#include <errno.h>
#include <stdlib.h>

#include "walk.h"

enum { MOST_LEAKS = 4096 };

struct window {
    const struct leak_search *search;
    const struct leak_look *look;
    struct leak *leaks;
    size_t count;
    size_t *picked; /* those that are to be looked at */
};

bool walk_leaked(const struct walk *walk, uint64_t cluster)
{
    struct census_cell cell = census_get(walk->census, cluster);
    return !cell.claimed && cell.balance > 0 && cluster < walk->cluster_end &&
           census_known(walk->census, cluster);
}

/* The first leaked cluster at or after *cluster that has bytes in the file.  1 if there is one, 0
 * or -EINTR. */
static int next_leak(struct walk *walk, uint64_t *cluster)
{
    for (; census_next_leak(walk->census, *cluster, cluster); ++*cluster) {
        if (!walk_leaked(walk, *cluster))
            continue;
        uint64_t hole = walk_hole(walk, *cluster << walk->geo.cluster_bits);
        if (hole < walk->geo.cluster_size)
            return 1;
        *cluster += (hole >> walk->geo.cluster_bits) - 1;
        int ret = walk_pause(walk, 0);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* ---- a look at some of them ---- */

static bool look_place(const struct walk *walk, const void *arg, size_t item, uint64_t *host_off)
{
    const struct window *window = arg;
    (void)walk;
    *host_off = window->leaks[window->picked[item]].next_off;
    return true;
}

static int look_use(
    struct walk *walk, void *arg, size_t item, size_t count, const struct io_read_req *read)
{
    const struct window *window = arg;
    struct leak *leak = &window->leaks[window->picked[item]];
    (void)count;
    leak->next_off = LEAK_SEEN;
    /* A read that failed may just pass the end of the file. */
    if (read->length > 0 && (read->result == 0 || io_read_padded(walk->io, read->host_off,
                                                      read->buf, read->length) == 0))
        window->look->look(walk, window->search->arg, leak, read->buf);
    return walk_pause(walk, 0);
}

static int window_look(struct walk *walk, struct window *window)
{
    struct stream stream = {
        .bytes = window->look->bytes, .arg = window, .place = look_place, .use = look_use};
    for (size_t i = 0; i < window->count; i++) {
        if (window->leaks[i].next_off != LEAK_SEEN)
            window->picked[stream.count++] = i;
    }
    return stream.count > 0 ? walk_stream(walk, &stream) : 0;
}

/* ---- a window at a time ---- */

static int window_fill(struct walk *walk, struct window *window, uint64_t *cluster)
{
    int ret = 0;
    window->count = 0;
    while (window->count < MOST_LEAKS && (ret = next_leak(walk, cluster)) == 1) {
        window->leaks[window->count++] =
            (struct leak){.cluster = *cluster, .next_off = *cluster << walk->geo.cluster_bits};
        ++*cluster;
    }
    return ret < 0 ? ret : 0;
}

static int window_search(struct walk *walk, struct window *window)
{
    const struct leak_search *search = window->search;
    int ret = 0;
    size_t looks = sizeof(search->looks) / sizeof(search->looks[0]);
    for (size_t i = 0; ret == 0 && i < looks && search->looks[i].look; i++) {
        window->look = &search->looks[i];
        ret = window_look(walk, window);
    }
    for (size_t i = 0; ret == 0 && i < window->count; i++)
        ret = search->end(walk, search->arg, &window->leaks[i]);
    return ret;
}

int walk_search_leaks(struct walk *walk, const struct leak_search *search)
{
    struct window window = {.search = search};
    uint64_t cluster = walk->first_mismatch;
    int ret = next_leak(walk, &cluster);
    if (ret <= 0) /* most images need no memory for this */
        return ret;
    window.leaks = malloc(MOST_LEAKS * sizeof(*window.leaks));
    window.picked = malloc(MOST_LEAKS * sizeof(*window.picked));
    ret = window.leaks && window.picked ? 0 : -ENOMEM;
    do {
        if (ret == 0)
            ret = window_fill(walk, &window, &cluster);
        if (ret == 0)
            ret = window_search(walk, &window);
    } while (ret == 0 && window.count == MOST_LEAKS);
    free(window.leaks);
    free(window.picked);
    return ret;
}
