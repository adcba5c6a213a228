/* SPDX-License-Identifier: MIT
 *
 * The tree of choices: covering a whole product without walking it.
 *
 * The oracle notes which sectors it looks at.  A verdict cannot depend on what was not looked at,
 * so one run stands for all versions of the units it left alone: the walk branches only on units
 * that were read, and each leaf covers the product of the rest.  Units of refcount blocks are read
 * always, but only to see that counts are high enough: they hold the least count of all their
 * versions, which bounds every choice at once.  Units of L1 and L2 tables whose versions differ in
 * nothing but COPIED hold all flags that any version has.  Where a bound breaks a promise the walk
 * branches on such units as on others.  Units of guest data that only the active disk shows, all of
 * whose versions are allowed there, need no branch either: sectors are judged one by one.  Covered
 * this way are I1 to I7; only states that are walked go on (I8). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "explore_impl.h"
#include "oracle_impl.h"

enum { FREE_CHOICE = -1, MOST_DEEP = 10000 };

struct tree_walk {
    struct explorer *ex;
    int *fixed;        /* a choice, or FREE_CHOICE */
    uint8_t **bound;   /* of units that have one: the worst of all versions; else NULL */
    enum owner *owner; /* what the bound holds for */
    unsigned *choice;
    uint64_t runs;
    unsigned depth; /* of the recursion */
    long double covered;
    bool gave_up;
};

/* The least count of every entry over all versions of the unit. */
static uint8_t *least_counts(const struct epoch *epoch, const struct unit *unit, unsigned order)
{
    uint8_t *least = malloc(epoch->unit_bytes);
    if (!least)
        return NULL;
    memcpy(least, unit->versions[0].bytes, epoch->unit_bytes);
    uint64_t entries = ((uint64_t)epoch->unit_bytes * 8) >> order;
    for (unsigned v = 1; v < unit->count; v++) {
        for (uint64_t i = 0; i < entries; i++) {
            uint64_t count = qcow2_refcount_get(unit->versions[v].bytes, order, i);
            if (count < qcow2_refcount_get(least, order, i))
                qcow2_refcount_set(least, order, i, count);
        }
    }
    return least;
}

/* Whether the versions of a unit of entries are the same but for COPIED. */
static bool only_copied_differs(const struct epoch *epoch, const struct unit *unit, size_t step)
{
    for (unsigned v = 1; v < unit->count; v++) {
        for (size_t at = 0; at < epoch->unit_bytes; at += 8) {
            uint64_t differs =
                load_be64(unit->versions[v].bytes + at) ^ load_be64(unit->versions[0].bytes + at);
            if (differs & ~(at % step == 0 ? QCOW2_ENTRY_COPIED : 0))
                return false;
        }
    }
    return true;
}

/* COPIED where any version has it. */
static uint8_t *most_copied(const struct epoch *epoch, const struct unit *unit, size_t step)
{
    uint8_t *most = malloc(epoch->unit_bytes);
    if (!most)
        return NULL;
    memcpy(most, unit->versions[0].bytes, epoch->unit_bytes);
    for (unsigned v = 1; v < unit->count; v++) {
        for (size_t at = 0; at < epoch->unit_bytes; at += step)
            most[at] |= unit->versions[v].bytes[at] & 0x80;
    }
    return most;
}

static int find_bound(struct tree_walk *w, size_t f)
{
    const struct explorer *ex = w->ex;
    const struct epoch *epoch = &ex->epoch;
    const struct unit *unit = &epoch->units[f];
    uint64_t cluster = cluster_of(&ex->oracle.geo, unit->idx * epoch->unit_bytes);
    if (cluster >= ex->oracle.cluster_count || epoch->unit_bytes > ex->oracle.geo.cluster_size)
        return 0;
    w->owner[f] = (enum owner)ex->oracle.clusters[cluster].owner;
    size_t step = w->owner[f] == OWNER_L2 ? ex->oracle.geo.l2_entry_size : 8;
    if (w->owner[f] == OWNER_REFBLOCK)
        w->bound[f] = least_counts(epoch, unit, ex->oracle.geo.refcount_order);
    else if ((w->owner[f] == OWNER_L1 || w->owner[f] == OWNER_L2) &&
             only_copied_differs(epoch, unit, step))
        w->bound[f] = most_copied(epoch, unit, step);
    else
        return 0;
    return w->bound[f] ? 0 : -ENOMEM;
}

static int find_bounds(struct tree_walk *w)
{
    struct explorer *ex = w->ex;
    struct breach ignored = {0};
    int ret = 0;
    if (!oracle_look(&ex->oracle, ex->durable, &ignored))
        return 0;
    for (size_t f = 0; ret == 0 && f < ex->epoch.unit_count; f++)
        ret = find_bound(w, f);
    return ret;
}

static bool looked_at(const struct explorer *ex, size_t factor)
{
    unsigned sectors = ex->epoch.unit_bytes / STATE_SECTOR;
    if (factor == ex->epoch.unit_count)
        return true;
    for (unsigned s = 0; s < sectors; s++) {
        if (ex->state->marks[ex->epoch.units[factor].idx * sectors + s])
            return true;
    }
    return false;
}

/* Puts the bounds in for free units that have one. */
static void put_bounds(struct tree_walk *w)
{
    struct explorer *ex = w->ex;
    unsigned sectors = ex->epoch.unit_bytes / STATE_SECTOR;
    for (size_t f = 0; f < ex->epoch.unit_count; f++) {
        if (w->fixed[f] != FREE_CHOICE || !w->bound[f])
            continue;
        for (unsigned s = 0; s < sectors; s++) {
            const uint8_t *bytes = w->bound[f] + (size_t)s * STATE_SECTOR;
            state_put(
                ex->state, ex->epoch.units[f].idx * sectors + s, bytes, state_hash_sector(bytes));
        }
        ex->current[f] = UINT32_MAX; /* to be set again */
    }
}

/* Whether what holds bounds was read as what they hold for, and as nothing else. */
static bool bounds_hold(const struct tree_walk *w)
{
    const struct explorer *ex = w->ex;
    for (size_t f = 0; f < ex->epoch.unit_count; f++) {
        if (w->fixed[f] != FREE_CHOICE || !w->bound[f] || !looked_at(ex, f))
            continue;
        uint64_t cluster =
            cluster_of(&ex->oracle.geo, ex->epoch.units[f].idx * ex->epoch.unit_bytes);
        if (cluster >= ex->oracle.cluster_count ||
            ex->oracle.clusters[cluster].owner != w->owner[f])
            return false;
    }
    return true;
}

/* Guest data of the active disk alone, allowed in every version. */
static bool free_data(const struct explorer *ex, size_t factor)
{
    const struct unit *unit = &ex->epoch.units[factor];
    const struct oracle *o = &ex->oracle;
    uint64_t host_off = unit->idx * ex->epoch.unit_bytes;
    uint64_t cluster = cluster_of(&o->geo, host_off);
    if (ex->epoch.unit_bytes > o->geo.cluster_size || cluster >= o->cluster_count ||
        o->clusters[cluster].owner != OWNER_DATA || !o->clusters[cluster].active ||
        o->clusters[cluster].refs != 1 || o->clusters[cluster].place == PLACE_PACKED)
        return false;
    uint64_t first = (o->clusters[cluster].place << (o->geo.cluster_bits - 9)) +
                     (host_off & (o->geo.cluster_size - 1)) / STATE_SECTOR;
    for (unsigned v = 0; v < unit->count; v++) {
        for (unsigned s = 0; s < ex->epoch.unit_bytes / STATE_SECTOR; s++) {
            if (!history_allows_sector(
                    ex->history, ex->window, first + s, unit->versions[v].hashes[s]))
                return false;
        }
    }
    return true;
}

/* One run.  *good: the promises hold for all vectors that agree with what is fixed or was not read.
 * *branch: a free factor that was read; SIZE_MAX: none. */
static int run_once(struct tree_walk *w, bool *good, size_t *branch)
{
    struct explorer *ex = w->ex;
    struct breach breach = {0};
    size_t factors = epoch_factors(&ex->epoch);
    for (size_t f = 0; f < factors; f++)
        w->choice[f] = w->fixed[f] == FREE_CHOICE ? 0 : (unsigned)w->fixed[f];
    explorer_set(ex, w->choice);
    put_bounds(w);
    memset(ex->state->marks, 0, (size_t)(ex->state->room_bytes / STATE_SECTOR));
    int ret = explorer_judge(ex, false, false, false, &breach);
    *good = breach.invariant == INVARIANT_NONE && bounds_hold(w);
    *branch = SIZE_MAX;
    for (size_t f = factors; ret == 0 && f-- > 0;) {
        if (w->fixed[f] == FREE_CHOICE && epoch_choices(&ex->epoch, f) > 1 && looked_at(ex, f) &&
            !(*good && f < ex->epoch.unit_count && (w->bound[f] || free_data(ex, f))))
            *branch = f;
    }
    return ret;
}

static long double rest_of(const struct tree_walk *w)
{
    long double product = 1;
    for (size_t f = 0; f < epoch_factors(&w->ex->epoch); f++) {
        if (w->fixed[f] == FREE_CHOICE)
            product *= epoch_choices(&w->ex->epoch, f);
    }
    return product;
}

static int descend(struct tree_walk *w)
{
    struct explorer *ex = w->ex;
    bool good;
    size_t branch;
    if (++w->runs > ex->options->cap || w->depth > MOST_DEEP ||
        ((w->runs & 255) == 0 && explorer_out_of_time(ex))) {
        w->gave_up = true;
        return 0;
    }
    int ret = run_once(w, &good, &branch);
    if (ret < 0)
        return ret;
    if (branch == SIZE_MAX) {
        w->covered += rest_of(w);
        for (size_t f = 0; f < epoch_factors(&ex->epoch); f++)
            w->choice[f] = w->fixed[f] == FREE_CHOICE ? 0 : (unsigned)w->fixed[f];
        return explorer_visit(ex, w->choice); /* judged in full: reports it if it is broken */
    }
    for (unsigned v = 0; ret == 0 && v < epoch_choices(&ex->epoch, branch) && !w->gave_up; v++) {
        w->fixed[branch] = (int)v;
        w->depth++;
        ret = descend(w);
        w->depth--;
    }
    w->fixed[branch] = FREE_CHOICE;
    return ret;
}

int explorer_walk_tree(struct explorer *ex, long double *covered, bool *done)
{
    size_t factors = epoch_factors(&ex->epoch);
    struct tree_walk w = {.ex = ex,
        .fixed = malloc(factors * sizeof(*w.fixed)),
        .bound = calloc(factors, sizeof(*w.bound)),
        .owner = calloc(factors, sizeof(*w.owner)),
        .choice = calloc(factors, sizeof(*w.choice))};
    ex->state->marks = calloc((size_t)(ex->state->room_bytes / STATE_SECTOR), 1);
    int ret = w.fixed && w.bound && w.owner && w.choice && ex->state->marks ? 0 : -ENOMEM;
    for (size_t f = 0; ret == 0 && f < factors; f++)
        w.fixed[f] = FREE_CHOICE;
    if (ret == 0)
        ret = find_bounds(&w);
    if (ret == 0)
        ret = descend(&w);
    *covered = w.covered;
    *done = ret == 0 && !w.gave_up;
    for (size_t f = 0; w.bound && f < factors; f++)
        free(w.bound[f]);
    free(ex->state->marks);
    ex->state->marks = NULL;
    free(w.fixed);
    free(w.bound);
    free(w.owner);
    free(w.choice);
    return ret;
}
