/* SPDX-License-Identifier: MIT
 *
 * Lost L2 tables put back into the L1 entries that lost them.
 *
 * A table is a candidate only if the image itself says that a reference to it is missing: its
 * stored refcount is higher than the references found.  Places are L1 entries that lost something:
 * damaged ones, which say so themselves, those that share their table with another place, and, with
 * --lossy, empty ones (which may always have been empty: a leak can be left by an interrupted
 * write, too).  What speaks for a pair of both is weighed; a pair is made where nothing else is as
 * good for either of the two. */
#include <errno.h>
#include <stdlib.h>

#include "repair_l1.h"

/* ---- pairs ---- */

static uint16_t *score_at(const struct match *m, size_t place, size_t candidate)
{
    return &m->scores[place * m->candidate_count + candidate];
}

/* What a disk has mapped once all those made of it have mapped, too: of those with an
 * empty entry at one place the youngest lost it. */
static bool younger_lost(const struct match *m, size_t place, size_t candidate)
{
    const struct place *p = &m->places[place];
    if (p->check != CHECK_l1_hole || p->tree == TREE_ACTIVE)
        return false;
    for (size_t i = 0; i < m->place_count; i++) {
        const struct place *q = &m->places[i];
        bool younger = q->tree > p->tree || q->tree == TREE_ACTIVE;
        if (younger && q->l1_idx == p->l1_idx && !q->filled && !may_be_right(q) &&
            *score_at(m, i, candidate) > 0)
            return true;
    }
    return false;
}

/* What the entry names makes no sense, but is counted just for it: it is the table that is damaged,
 * and what looks like one may be guest data that hung on it. */
static bool is_counted(const struct match *m, const struct place *p)
{
    const struct walk *walk = m->repair->walk;
    uint64_t off = p->raw & QCOW2_OFFSET_MASK;
    struct census_cell cell = census_get(walk->census, cluster_of(&walk->geo, off));
    return p->check == CHECK_l2_table_implausible && cell.balance == 0 && !cell.conflict &&
           repair_counted(m->repair, off);
}

/* A damaged entry had a table, an empty one need not: what is the only one for the former is not
 * the latter's because of little. */
static bool is_reserved(const struct match *m, size_t place, size_t candidate)
{
    if (m->places[place].check != CHECK_l1_hole || (*score_at(m, place, candidate) & STRONG))
        return false;
    for (size_t i = 0; i < m->place_count; i++) {
        const struct place *q = &m->places[i];
        size_t others = 0;
        if (q->filled || q->check == CHECK_l1_hole || may_be_right(q) || is_counted(m, q) ||
            *score_at(m, i, candidate) == 0)
            continue;
        for (size_t k = 0; k < m->candidate_count; k++)
            others += k != candidate && m->candidates[k].spare > 0 && *score_at(m, i, k) > 0;
        if (others == 0)
            return true;
    }
    return false;
}

/* Nothing is as good for the place, nor for the candidate; an empty entry for which nothing much
 * speaks must be the only one that is possible. */
static bool is_best(struct match *m, size_t place, size_t candidate)
{
    unsigned best = *score_at(m, place, candidate), least = best;
    if (m->places[place].check == CHECK_l1_hole && !(best & ~(unsigned)(WEAK | OWN)))
        least = FITS;
    for (size_t i = 0; i < m->place_count; i++) {
        if (i != place && !m->places[i].filled && *score_at(m, i, candidate) >= least &&
            m->candidates[candidate].spare == 1 && !younger_lost(m, i, candidate) &&
            !is_reserved(m, i, candidate))
            return false;
    }
    for (size_t k = 0; k < m->candidate_count; k++) {
        if (k != candidate && m->candidates[k].spare > 0 && *score_at(m, place, k) >= best)
            return false;
    }
    return best > 0 && !younger_lost(m, place, candidate) && !is_reserved(m, place, candidate);
}

/* Of what the entry names not even one reference is counted: it is a free cluster, or its count is
 * damaged. */
static bool is_uncounted(const struct match *m, const struct place *p)
{
    struct walk *walk = m->repair->walk;
    uint64_t stored, cluster = cluster_of(&walk->geo, p->raw & QCOW2_OFFSET_MASK);
    return walk_stored(walk, cluster, &stored) && stored == 0;
}

/* Of places that share a table one at least keeps it: the one that most speaks for. */
static bool may_move(const struct match *m, const struct place *p)
{
    bool best = true, others = false;
    for (size_t i = 0; i < m->place_count; i++) {
        const struct place *other = &m->places[i];
        if (other == p || ((other->raw ^ p->raw) & QCOW2_OFFSET_MASK) != 0)
            continue;
        others = true;
        best &= p->home > other->home;
    }
    if (others && best)
        return false;
    for (size_t i = 0; i < m->place_count; i++) {
        const struct place *other = &m->places[i];
        if (other != p && other->check == CHECK_l1_entry_shared && !other->filled &&
            ((other->raw ^ p->raw) & QCOW2_OFFSET_MASK) == 0)
            return true;
    }
    return p->check != CHECK_l1_entry_shared || (p->crowded && is_uncounted(m, p));
}

/* No other entry of the disk is empty. */
static bool is_only_empty(const struct match *m, const struct place *p)
{
    const struct walk *walk = m->repair->walk;
    const struct tree *tree = &walk->trees[p->tree];
    uint64_t end = l1_entries_for(&walk->geo, tree->disk_size), raw;
    for (uint64_t i = 0; i < end && i < tree->l1_size; i++) {
        if (i != p->l1_idx && plan_peek(&m->repair->plan, tree->l1_off + i * 8, &raw) == 0 &&
            (raw & QCOW2_OFFSET_MASK) == 0)
            return false;
    }
    return true;
}

/* Of entries that name one table each is a bit away from what another one is: it must be the place
 * that speaks for one of them.  If it speaks for another one as well, each may be the right one. */
static bool has_rival(
    const struct match *m, const struct place *p, const struct candidate *c, unsigned best)
{
    const unsigned by_place = OTHER_DISK | CONTINUES | WITHIN;
    for (size_t i = 0; i < m->place_count; i++) {
        const struct place *q = &m->places[i];
        bool same = q != p && q->tree == p->tree && ((q->raw ^ p->raw) & QCOW2_OFFSET_MASK) == 0;
        unsigned sum = *score_at(m, i, (size_t)(c - m->candidates));
        if (same && (sum & by_place) >= (best & by_place))
            return true;
    }
    return false;
}

/* A table is made before what it maps: what goes on a row of lost clusters may be data of that row,
 * and a guest's copy of a table. */
static bool goes_on_a_row(const struct match *m, const struct candidate *c)
{
    const struct walk *walk = m->repair->walk;
    return walk_leaked(walk, cluster_of(&walk->geo, c->host_off) - 1);
}

/* One behind which not nearly all of what leaks hangs may not be the one that was lost. */
static bool explains_leaks(const struct match *m, const struct candidate *c)
{
    enum { PART = 8 };
    uint64_t leaks = m->repair->report.leaks;
    return c->look.orphaned + 1 + leaks / PART >= leaks;
}

/* Whether this may be done without asking: nothing that can be read now may change for the worse.
 */
static bool is_safe(const struct match *m, const struct place *p, const struct candidate *c,
    unsigned best, bool only)
{
    /* An unaligned entry claims two clusters: the table's own, and one that may be its data; and
     * guest data that an entry names is claimed by that. */
    const struct walk *walk = m->repair->walk;
    uint64_t claimed = p->check == CHECK_l1_entry_unaligned || p->on_data;
    if (c->host_off + walk->geo.cluster_size > walk->file_size)
        return false;
    if (c->bare && !explains_leaks(m, c))
        return false; /* it may have been lost itself, and what leaks with it */
    if (!repair_counted(m->repair, c->host_off))
        return p->check != CHECK_l2_table_implausible && (best & ONE_BIT) && (best & OTHER_DISK) &&
               c->look.odd == 0;
    /* The guest may keep several such tables side by side. */
    if (p->on_data && !(best & OTHER_DISK) && (goes_on_a_row(m, c) || !explains_leaks(m, c)))
        return false;
    if (p->check == CHECK_l1_hole || c->look.odd > 0 || c->look.orphaned + claimed < c->look.named)
        return false;
    if (may_be_right(p))
        return (best & (ONE_BIT | OTHER_DISK)) && !has_rival(m, p, c, best);
    /* What an entry without an offset reads as, zeros, may be right. */
    if (p->check == CHECK_l1_flags_without_table && !(best & (STRONG | WITHIN | CONTINUES)))
        return only && is_only_empty(m, p);
    /* Offsets without flags may stand in a bitmap's table, one in a refcount table that nothing
     * points to any more. */
    bool plain = c->look.marked > 0 || (c->look.named > 1 && !walk->has_bitmaps_ext);
    /* That it shares clusters with another disk's table tells its place, but not its disk; and what
     * lies in the file is soon a bit away from something else there. */
    unsigned weak = p->check == CHECK_l2_table_implausible ? KIN | ONE_BIT : KIN;
    bool sure = (best & STRONG & ~weak) || ((best & STRONG) && (best & OWN));
    bool own = (best & OWN) || walk->tree_count == 1;
    return (only && plain && own && explains_leaks(m, c) && !is_counted(m, p) &&
               !goes_on_a_row(m, c) && !repair_fills_gap(m->repair, c->host_off)) ||
           sure;
}

/* A damaged entry names the entry's cluster as an L2 table: until that is mended, too, a guest
 * would read the change. */
static bool is_read(const struct match *m, const struct place *p)
{
    uint64_t start = p->entry_off & ~(uint64_t)(m->repair->walk->geo.cluster_size - 1);
    return table_find(&m->repair->walk->tables, start) && m->repair->plan.count > 0;
}

static int put_back(struct match *m, struct place *p, struct candidate *c, unsigned best)
{
    struct repair *repair = m->repair;
    p->filled = true;
    c->spare--;
    if (is_read(m, p) || plan_on_data(&repair->plan, p->entry_off))
        return 0; /* in the next round, when the guest has a copy of its own */
    uint64_t stored = 0, guest = p->l1_idx * repair->walk->geo.l2_span;
    walk_stored(repair->walk, cluster_of(&repair->walk->geo, c->host_off), &stored);
    bool copied = p->tree == TREE_ACTIVE && stored == 1;
    int ret = 0;
    if (!(best & STRONG) || p->check == CHECK_l1_hole || (p->on_data && repair->options->lossy))
        ret = plan_remark(&repair->plan,
            "choice: the orphaned L2 table at 0x%llx is put back for guest 0x%llx of %s",
            (unsigned long long)c->host_off, (unsigned long long)guest,
            p->tree == TREE_ACTIVE ? "the disk" : "a snapshot");
    if (ret == 0 && repair_deficit(repair, c->host_off))
        ret = repair_take(repair, c->host_off, 1);
    if (ret == 0)
        ret = plan_be64(&repair->plan, PHASE_SWITCH, p->check, p->entry_off,
            c->host_off | (copied ? QCOW2_ENTRY_COPIED : 0));
    return ret;
}

/* Makes one pair, the strongest first; *made tells whether there was one. */
static int make_pair(struct match *m, bool *made)
{
    bool only = match_count_open(m) == 1 && match_count_spare(m) == 1;
    size_t place = 0, candidate = 0;
    unsigned best = 0;
    for (size_t i = 0; i < m->place_count; i++) {
        for (size_t k = 0; k < m->candidate_count; k++) {
            unsigned sum = *score_at(m, i, k);
            const struct place *p = &m->places[i];
            const struct candidate *c = &m->candidates[k];
            if (sum <= best || p->filled || c->spare == 0 || !is_best(m, i, k) || !may_move(m, p))
                continue;
            if (!m->repair->lossy && !is_safe(m, p, c, sum, only))
                continue;
            unsigned place_bits = sum & ~(unsigned)(OWN | EARLIER | FITS | ENDS);
            if (may_be_right(p) && !only && !(p->crowded ? sum & STRONG : place_bits))
                continue; /* as likely as not the other one is wrong */
            best = sum;
            place = i;
            candidate = k;
        }
    }
    *made = best > 0;
    return best ? put_back(m, &m->places[place], &m->candidates[candidate], best) : 0;
}

/* In an empty entry nothing need have been; but where all of the disk's are empty its tables were
 * there. */
static bool takes_its_own(const struct match *m, const struct place *p, const struct candidate *c)
{
    const struct walk *walk = m->repair->walk;
    if (p->check != CHECK_l1_hole)
        return true;
    bool own = c->whose == ACTIVE_DISK || (c->whose == ANYBODY && walk->tree_count == 1);
    if (p->tree != TREE_ACTIVE || !own)
        return false;
    for (size_t i = 0; i < walk->tables.count; i++) {
        if (walk->tables.items[i].active_refs > 0)
            return false;
    }
    return true;
}

/* Which place each table gets, in order. */
struct row {
    struct match *m;
    bool all;        /* as many places as tables */
    uint16_t *where; /* by candidate: 1 + place */
    unsigned steps;  /* that may still be tried */
};

static bool find_row(struct row *row, size_t k);

/* The same once candidate k has place i. */
static bool goes_on(struct row *row, size_t k, size_t i)
{
    struct place *p = &row->m->places[i];
    if (row->steps == 0 || p->filled || may_be_right(p) || *score_at(row->m, i, k) == 0 ||
        (!row->all &&
            (younger_lost(row->m, i, k) || !takes_its_own(row->m, p, &row->m->candidates[k]))))
        return false;
    row->steps--;
    row->where[k] = (uint16_t)(i + 1);
    p->filled = true;
    bool found = find_row(row, k + 1);
    p->filled = false;
    return found;
}

/* A disk that has anything has something at its start: a table with the like of that, before which
 * no other one was made, is its first one as soon as its last. */
static bool may_be_first(const struct row *row, size_t k)
{
    enum { PART = 64 };
    const struct match *m = row->m;
    const struct candidate *c = &m->candidates[k];
    bool open = false;
    for (size_t i = 0; i < m->place_count; i++)
        open |= m->places[i].l1_idx == 0 && !m->places[i].filled && *score_at(m, i, k) > 0;
    for (size_t i = 0; i < k; i++)
        open &= row->where[i] == 0;
    return open && c->first < m->repair->walk->geo.l2_entries / PART;
}

/* Finds places for candidate k and later ones: the first way found is the one nearest to the order
 * of both, but for a table that goes to the end of the disk. */
static bool find_row(struct row *row, size_t k)
{
    const struct match *m = row->m;
    while (k < m->candidate_count && (m->candidates[k].spare == 0 || m->candidates[k].bare))
        k++;
    if (k == m->candidate_count)
        return true;
    unsigned early = may_be_first(row, k) ? 0 : ENDS;
    for (size_t i = 0; i < m->place_count; i++) {
        if ((*score_at(row->m, i, k) & early) && goes_on(row, k, i))
            return true;
    }
    for (size_t i = 0; i < m->place_count; i++) {
        if (!(*score_at(row->m, i, k) & early) && goes_on(row, k, i))
            return true;
    }
    return false;
}

/* Where nothing else tells, order speaks: tables are mostly made in that of their places, the first
 * ones first.  Only if all find one. */
static int pair_in_order(struct match *m)
{
    enum { MOST_STEPS = 10000 };
    struct row row = {.m = m, .steps = MOST_STEPS};
    size_t open = match_count_open(m), spare = match_count_spare(m);
    int ret = 0;
    if (!m->repair->lossy || spare == 0 || spare > open)
        return 0;
    row.all = spare == open;
    row.where = calloc(m->candidate_count, sizeof(*row.where));
    if (!row.where)
        return -ENOMEM;
    bool found = find_row(&row, 0);
    for (size_t k = 0; found && ret == 0 && k < m->candidate_count; k++) {
        if (row.where[k] > 0)
            ret = put_back(m, &m->places[row.where[k] - 1], &m->candidates[k], FITS);
    }
    free(row.where);
    return ret;
}

/* What is there, or may be put there with data behind it, says more than a table of zeros. */
static void leave_out_bare(struct match *m, size_t place)
{
    bool other = may_be_right(&m->places[place]);
    for (size_t k = 0; k < m->candidate_count; k++) {
        const struct candidate *c = &m->candidates[k];
        other |= !c->bare && c->spare > 0 && *score_at(m, place, k) > 0;
    }
    for (size_t k = 0; other && k < m->candidate_count; k++) {
        if (m->candidates[k].bare)
            *score_at(m, place, k) = 0;
    }
}

static int fill_places(struct match *m)
{
    bool made = true;
    int ret = 0;
    m->scores = calloc(m->place_count * m->candidate_count, sizeof(*m->scores));
    if (!m->scores)
        return -ENOMEM;
    for (size_t i = 0; i < m->place_count; i++) {
        for (size_t k = 0; k < m->candidate_count; k++)
            if ((m->places[i].raw & QCOW2_OFFSET_MASK) != m->candidates[k].host_off)
                *score_at(m, i, k) = (uint16_t)match_score(m, &m->places[i], &m->candidates[k]);
        leave_out_bare(m, i);
    }
    for (size_t i = 0; ret == 0 && i < m->place_count; i++) {
        if (may_be_right(&m->places[i]))
            ret = match_score_home(m, &m->places[i]);
    }
    while (ret == 0 && made)
        ret = make_pair(m, &made);
    return ret < 0 ? ret : pair_in_order(m);
}

/* What is found again may be damaged itself: a disk that reads what others have at other places
 * reads something else than it did when these pairs were one.  The plan is tried on a view. */
static int keep_if_sound(struct repair *repair)
{
    struct io *view;
    struct report report;
    struct check_options options = {.stop = repair->check.stop};
    int ret = io_overlay_open(repair->io, &view);
    if (ret < 0)
        return ret;
    ret = plan_apply(&repair->plan, view, NULL);
    if (ret == 0) {
        report_init(&report, 0);
        ret = check_image(view, NULL, &options, &report);
        if (ret == 0 && repair_shows_more(repair, &report))
            repair_new_plan(repair);
        report_release(&report);
    }
    io_close(view);
    return ret;
}

/* What fits between what a table maps is given back to that: it is data.  Not where so many tables
 * would have to be read for each. */
static void leave_out_gaps(struct match *m)
{
    enum { MOST_TABLES = 1024 };
    if (m->repair->walk->tables.count > MOST_TABLES)
        return;
    for (size_t k = 0; k < m->candidate_count; k++) {
        struct candidate *c = &m->candidates[k];
        if (c->spare == 1 && !c->bare && repair_fills_gap(m->repair, c->host_off))
            c->spare = 0;
    }
}

int repair_l1(struct repair *repair)
{
    struct match m = {.repair = repair};
    if (!repair->lossy && repair_has(repair, CHECK_orphan_l1_table))
        return 0; /* perhaps it is not the entries that are wrong, but where they are */
    int ret = match_swap_back(&m);
    if (ret < 0 || repair->plan.count > 0)
        return ret;
    ret = match_find(&m);
    leave_out_gaps(&m);
    if (ret == 0 && m.place_count > 0 && m.candidate_count > 0)
        ret = fill_places(&m);
    match_release(&m);
    return ret == 0 && !repair->lossy && repair->plan.count > 0 ? keep_if_sound(repair) : ret;
}
