/* SPDX-License-Identifier: MIT
 *
 * L2 entries that share a cluster: which of them are right.  See repair_l2.h. */
#include <errno.h>
#include <stdlib.h>

#include "repair_l2.h"

/* Each of those that share a cluster is compared with each; of more of them none is judged. */
enum { MOST_SHARERS = 1000 };

static int compare_claims(const void *a, const void *b)
{
    const struct place *x = *(struct place *const *)a, *y = *(struct place *const *)b;
    if (x->host_off != y->host_off)
        return x->host_off < y->host_off ? -1 : 1;
    return (x->entry_off > y->entry_off) - (x->entry_off < y->entry_off);
}

static int sort_shared(struct places *places)
{
    places->shared = malloc((places->count + 1) * sizeof(struct place *));
    if (!places->shared)
        return -ENOMEM;
    for (size_t i = 0; i < places->count; i++) {
        struct place *p = &places->items[i];
        if (p->check != CHECK_l2_entry_shared)
            continue;
        places->shared[places->shared_count++] = p;
        places->longest = p->length > places->longest ? p->length : places->longest;
    }
    if (places->shared_count > 0)
        qsort(places->shared, places->shared_count, sizeof(struct place *), compare_claims);
    return 0;
}

/* The first that begins at `host_off` or behind it. */
static size_t first_from(const struct places *places, uint64_t host_off)
{
    size_t low = 0, high = places->shared_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (places->shared[middle]->host_off < host_off)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Those among which all lie that share a cluster with `p`, itself as well; none if it shares
 * nothing, or with too many. */
struct sharers {
    struct place *const *items;
    size_t count;
};

static struct sharers near(const struct places *places, const struct place *p)
{
    uint64_t before = p->host_off > places->longest ? p->host_off - places->longest : 0;
    size_t first = first_from(places, before);
    size_t end = first_from(places, p->host_off + p->length);
    bool some = p->check == CHECK_l2_entry_shared && end - first <= MOST_SHARERS;
    return (struct sharers){places->shared + first, some ? end - first : 0};
}

/* Of two near each other. */
static bool share(const struct place *a, const struct place *b)
{
    return ranges_overlap(a->host_off, a->length, b->host_off, b->length);
}

/* What is stored for the shared cluster are the references of the others, and would not be without
 * any one of these: this entry is the one that is not counted. */
static bool is_uncounted(
    const struct repair *repair, const struct sharers *others, const struct place *me)
{
    uint64_t stored, total = 0, refs = me->table->refs;
    bool only = true;
    if (!walk_stored(repair->walk, cluster_of(&repair->walk->geo, me->host_off), &stored))
        return false;
    for (size_t k = 0; k < others->count; k++) {
        const struct place *other = others->items[k];
        if (!share(other, me))
            continue;
        total += other->table->refs;
        only &= other == me || other->table->refs != refs;
    }
    return only && total == stored + refs;
}

/* Of two that share a cluster the one that goes on with its neighbours is right, or whose data
 * decodes, or that is counted. */
static void find_roots(const struct repair *repair, const struct places *places)
{
    for (size_t i = 0; i < places->shared_count; i++) {
        struct place *p = places->shared[i];
        bool plain = !(p->raw & QCOW2_ENTRY_COMPRESSED) && near(places, p).count > 0;
        p->in_step = plain && l2_in_step(repair, p, p->raw);
        p->rooted = p->in_step || (plain && l2_continues(repair, p, p->raw));
    }
    for (size_t i = 0; i < places->shared_count; i++) {
        struct place *p = places->shared[i];
        struct sharers others = near(places, p);
        size_t sure = 0, sharing = 0, in_step = 0;
        for (size_t k = 0; k < others.count; k++) {
            const struct place *other = others.items[k];
            bool same = share(other, p);
            sharing += same;
            p->taken |= same && other->proven && other != p && other->host_off == p->host_off;
            sure += same && (other->rooted || other->proven);
            in_step += same && (other->proven || other->in_step);
        }
        p->uprooted = !p->rooted && !p->proven && sharing > 1 &&
                      (sure + 1 == sharing || (sure == 0 && is_uncounted(repair, &others, p)));
        p->by_one = sure > 0 && in_step == 0;
    }
}

/* A table overwritten with another one, or with L1 entries in each other's place, shares the same
 * entries with it: then no single one was damaged, and what neighbours and bits say of it is worth
 * nothing. */
static void find_mirrored(const struct places *places)
{
    enum { SINGLE = 1 };
    for (size_t i = 0; i < places->shared_count; i++) {
        struct place *p = places->shared[i];
        struct sharers others = near(places, p);
        for (size_t k = 0; k < others.count && !p->mirrored; k++)
            p->mirrored = others.items[k]->table != p->table && others.items[k]->idx == p->idx &&
                          others.items[k]->host_off == p->host_off;
    }
    /* The places of a table follow each other. */
    for (size_t i = 0, end; i < places->count; i = end) {
        size_t mirrored = 0, shared = 0;
        for (end = i; end < places->count && places->items[end].table == places->items[i].table;
             end++) {
            mirrored += places->items[end].mirrored;
            shared += places->items[end].check == CHECK_l2_entry_shared;
        }
        for (size_t k = i; k < end && mirrored > SINGLE && mirrored * 2 > shared; k++)
            places->items[k].rooted |= places->items[k].check == CHECK_l2_entry_shared; /* stays */
    }
}

int l2_judge_shared(const struct repair *repair, struct places *places)
{
    int ret = sort_shared(places);
    if (ret < 0)
        return ret;
    find_roots(repair, places);
    find_mirrored(places);
    return 0;
}

bool l2_somebody_stays(const struct places *places, const struct place *me)
{
    struct sharers others = near(places, me);
    for (size_t k = 0; k < others.count; k++) {
        if (others.items[k] != me && !others.items[k]->moved && share(others.items[k], me))
            return true;
    }
    return false;
}
