/* SPDX-License-Identifier: MIT
 *
 * What speaks for putting an L2 table into an L1 entry; see repair_l1.h. */
#include <errno.h>
#include <stdlib.h>

#include "repair_l1.h"

/* The table that a disk has at that index, 0 if none. */
uint64_t match_table_at(const struct match *m, int tree_idx, uint64_t l1_idx)
{
    const struct walk *walk = m->repair->walk;
    const struct tree *tree = &walk->trees[tree_idx];
    uint64_t raw;
    if (!tree->usable || l1_idx >= tree->l1_size ||
        plan_peek(&m->repair->plan, tree->l1_off + l1_idx * 8, &raw) < 0)
        return 0;
    const struct table *table = table_find(&walk->tables, raw & QCOW2_OFFSET_MASK);
    return table && !table->skip ? table->host_off : 0;
}

/* The host offset of an entry of a table, 0 if it is no plain one. */
static uint64_t data_at(const struct match *m, uint64_t table_off, uint32_t idx)
{
    const struct qcow2_geometry *geo = &m->repair->walk->geo;
    uint8_t bytes[16] = {0};
    struct qcow2_l2_entry e;
    if (table_off == 0 ||
        io_read_padded(m->repair->io, table_off + (uint64_t)idx * geo->l2_entry_size, bytes,
            geo->l2_entry_size) < 0)
        return 0;
    qcow2_l2_decode(geo, bytes, &e);
    return e.kind == QCOW2_L2_NORMAL ? e.host_off : 0;
}

static unsigned score_neighbours(
    const struct match *m, const struct place *p, const struct candidate *c)
{
    const struct qcow2_geometry *geo = &m->repair->walk->geo;
    uint64_t before = p->l1_idx > 0 ? match_table_at(m, p->tree, p->l1_idx - 1) : 0;
    uint64_t behind = match_table_at(m, p->tree, p->l1_idx + UINT64_C(1));
    /* Who has the same table is as doubtful: a choice may follow the order, nothing else. */
    uint64_t own = may_be_right(p) && !m->repair->lossy ? p->raw & QCOW2_OFFSET_MASK : 0;
    before = before == own ? 0 : before;
    behind = behind == own ? 0 : behind;
    uint64_t two = 2 * (uint64_t)geo->cluster_size;
    uint64_t ends = data_at(m, before, geo->l2_entries - 1), starts = data_at(m, behind, 0);
    unsigned score = 0;
    bool in_order = before < c->host_off && (behind == 0 || c->host_off < behind);
    if (in_order && (before != 0 || behind != 0))
        score |= before != 0 && behind != 0 ? WITHIN : BESIDE;
    /* Between the two lies perhaps the table itself. */
    if ((ends && c->first_data > ends && c->first_data - ends <= two) ||
        (starts && c->last_data && starts > c->last_data && starts - c->last_data <= two))
        score |= CONTINUES;
    return score;
}

/* How many entries name the same clusters. */
static bool are_kin(struct match *m, const struct candidate *c, uint64_t table_off)
{
    struct walk *walk = m->repair->walk;
    unsigned size = walk->geo.l2_entry_size;
    walk_read_again(walk, table_off, walk->buf, walk->geo.cluster_size);
    for (size_t at = 0; at < walk->geo.cluster_size; at += size) {
        uint64_t a = load_be64(walk->buf + at), b = load_be64(c->bytes + at);
        if ((a & QCOW2_OFFSET_MASK) > 1 && ((a ^ b) & ~QCOW2_ENTRY_COPIED) == 0)
            return true;
    }
    return false;
}

/* Of thousands of disks nobody looks at others than the active one and those made next before and
 * after that of the place: trees first to end - 1. */
static size_t near_disks(const struct match *m, const struct place *p, size_t *end)
{
    enum { MOST = 64 };
    size_t count = m->repair->walk->tree_count;
    size_t at = p->tree == TREE_ACTIVE ? count : (size_t)p->tree;
    size_t first = count <= MOST || at <= MOST / 2 ? 0
                   : at + MOST / 2 < count         ? at - MOST / 2
                                                   : count - MOST;
    *end = count - first <= MOST ? count : first + MOST;
    return first;
}

/* The table that the place's disk number `i` of those, one before the first being the active one,
 * has there; 0 for the place's own. */
static uint64_t table_of_other(const struct match *m, const struct place *p, size_t i, size_t first)
{
    int tree = i < first ? TREE_ACTIVE : (int)i;
    return tree == p->tree ? 0 : match_table_at(m, tree, p->l1_idx);
}

size_t match_count_disks(struct match *m, const struct place *p, const struct candidate *c)
{
    size_t count = 0, end, first = near_disks(m, p, &end);
    for (size_t i = first - (first > 0); i < end; i++) {
        uint64_t off = table_of_other(m, p, i, first);
        count += off != 0 && (off == c->host_off || are_kin(m, c, off));
    }
    return count;
}

unsigned match_score_disks(struct match *m, const struct place *p, const struct candidate *c)
{
    unsigned score = 0;
    size_t end, first = near_disks(m, p, &end);
    for (size_t i = first - (first > 0); i < end; i++) {
        uint64_t off = table_of_other(m, p, i, first);
        if (off == c->host_off)
            score |= OTHER_DISK;
        else if (off != 0 && !(score & KIN) && are_kin(m, c, off))
            score |= KIN;
    }
    return score;
}

/* It shares clusters with a table of another place, and so belongs there. */
static bool kin_elsewhere(struct match *m, const struct place *p, const struct candidate *c)
{
    enum { MOST = 64 };
    const struct walk *walk = m->repair->walk;
    for (size_t i = 0; i < walk->tables.count && i < MOST; i++) {
        const struct table *table = &walk->tables.items[i];
        if (!table->skip && table->l1_idx != p->l1_idx && table->host_off != c->host_off &&
            are_kin(m, c, table->host_off))
            return true;
    }
    return false;
}

/* A disk has it at another place, and so it belongs there. */
static bool used_elsewhere(
    const struct walk *walk, const struct place *p, const struct candidate *c)
{
    const struct table *table = table_find(&walk->tables, c->host_off);
    return table && !table->skip && table->l1_idx != p->l1_idx;
}

/* Snapshots stand in the order of their making, and what a disk has mapped once, all those made of
 * it have mapped, too. */
static unsigned score_age(const struct match *m, const struct place *p)
{
    size_t end, first = near_disks(m, p, &end);
    if (may_be_right(p)) /* it has one */
        return 0;
    for (size_t i = first ? first : 1; i < end && (int)i != p->tree; i++) {
        if (match_table_at(m, (int)i, p->l1_idx) != 0)
            return EARLIER;
    }
    return 0;
}

/* The whole entry counts, as it would be: in a small file every offset is near another one. */
static unsigned score_bits(const struct match *m, const struct place *p, const struct candidate *c)
{
    struct walk *walk = m->repair->walk;
    uint64_t off = p->raw & QCOW2_OFFSET_MASK, differ = p->raw ^ c->host_off, stored = 0;
    if (off == 0)
        return 0;
    walk_stored(walk, cluster_of(&walk->geo, c->host_off), &stored);
    if (p->tree == TREE_ACTIVE && stored == 1)
        differ ^= QCOW2_ENTRY_COPIED;
    else if (p->tree != TREE_ACTIVE || stored == 0)
        differ &= ~QCOW2_ENTRY_COPIED;
    bool into = (off & ~(uint64_t)(walk->geo.cluster_size - 1)) == c->host_off;
    return into || __builtin_popcountll(differ) == 1 ? ONE_BIT : 0;
}

static unsigned score_end(const struct match *m, const struct place *p, const struct candidate *c)
{
    enum { PART = 64 };
    const struct walk *walk = m->repair->walk;
    const struct tree *tree = &walk->trees[p->tree];
    uint64_t legal = tree_legal_entries(walk, tree, p->l1_idx);
    bool is_last = p->l1_idx + UINT64_C(1) == l1_entries_for(&walk->geo, tree->disk_size);
    return is_last && c->last + 1 + legal / PART >= legal ? ENDS : 0;
}

/* Behind the end of a disk nothing is mapped; one entry of many may be damaged itself. */
static bool ends_in_time(const struct match *m, const struct place *p, const struct candidate *c)
{
    enum { MANY = 4 };
    const struct walk *walk = m->repair->walk;
    uint64_t legal = tree_legal_entries(walk, &walk->trees[p->tree], p->l1_idx);
    return c->last < legal ||
           (m->repair->lossy && c->last_but_one < legal && c->look.named >= MANY);
}

/* Somebody has it for data. */
static bool is_data(const struct match *m, const struct place *p, const struct candidate *c)
{
    struct walk *walk = m->repair->walk;
    const struct table *table = table_find(&walk->tables, c->host_off);
    bool own = p->check == CHECK_l1_entry_unaligned &&
               ranges_overlap(p->raw & QCOW2_OFFSET_MASK, walk->geo.cluster_size, c->host_off,
                   walk->geo.cluster_size);
    return (!table || table->skip) &&
           walk_facts(walk, cluster_of(&walk->geo, c->host_off)).refs > own;
}

/* 0 if it cannot be. */
unsigned match_score(struct match *m, const struct place *p, const struct candidate *c)
{
    const struct walk *walk = m->repair->walk;
    uint64_t guest_off = p->l1_idx * walk->geo.l2_span;
    if (is_data(m, p, c) || !ends_in_time(m, p, c) ||
        (walk->geo.data_file && c->look.guest_off != guest_off))
        return 0;
    const struct table *known = table_find(&walk->tables, c->host_off);
    if (known && !known->skip && !known->elsewhere && known->l1_idx != p->l1_idx)
        return 0; /* it has its place, and that is another one */
    unsigned sum = score_bits(m, p, c) | match_score_disks(m, p, c);
    sum |= walk->geo.data_file ? PLACE_IS_SAID : 0;
    /* What a bitmap left looks like a table without flags. */
    if (p->check == CHECK_l1_hole && c->look.marked == 0 && walk->has_bitmaps_ext &&
        !(sum & (KIN | OTHER_DISK | PLACE_IS_SAID)))
        return 0;
    bool foreign = p->tree == TREE_ACTIVE ? c->whose == SNAPSHOTS : c->whose == ACTIVE_DISK;
    if (c->bare && !(sum & ONE_BIT))
        return 0;
    /* Flags may be what is left of another time: rather that than in an entry that lost nothing. */
    if (!(sum & STRONG) && foreign)
        return m->repair->lossy && p->check != CHECK_l1_hole && !may_be_right(p) &&
                       !kin_elsewhere(m, p, c) && !used_elsewhere(walk, p, c)
                   ? FITS | score_end(m, p, c)
                   : 0;
    if (!(sum & STRONG) && kin_elsewhere(m, p, c))
        return 0;
    /* In a small file a sound entry is soon a bit away from another table. */
    if ((sum & STRONG) == ONE_BIT && may_be_right(p) && kin_elsewhere(m, p, c))
        return 0;
    /* Flags and counts contradict each other where the counts were made anew. */
    bool sure = m->repair->lossy && (sum & ONE_BIT) && (sum & KIN);
    if (foreign && !(sum & OTHER_DISK) && !sure)
        return 0;
    if (!(sum & STRONG) && used_elsewhere(walk, p, c))
        return 0;
    if (c->whose != ANYBODY && !foreign)
        sum |= OWN;
    return sum | score_age(m, p) | score_neighbours(m, p, c) | score_end(m, p, c) | FITS;
}

/* The table that a place has, taken for a candidate. */
int match_score_home(struct match *m, struct place *p)
{
    struct walk *walk = m->repair->walk;
    struct candidate c = {.host_off = p->raw & QCOW2_OFFSET_MASK};
    c.bytes = malloc(walk->geo.cluster_size);
    if (!c.bytes)
        return -ENOMEM;
    walk_looks_like_l2(walk, cluster_of(&walk->geo, c.host_off), &c.look);
    walk_read_again(walk, c.host_off, c.bytes, walk->geo.cluster_size);
    match_look_closer(m->repair, &c);
    p->home = match_score(m, p, &c) & ~(unsigned)(ONE_BIT | EARLIER);
    free(c.bytes);
    return 0;
}
