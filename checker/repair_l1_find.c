/* SPDX-License-Identifier: MIT
 *
 * Which L2 tables may have been lost, each once; see repair_l1.h. */
#include <errno.h>
#include <stdlib.h>

#include "repair_l1.h"

/* Flags in L2 tables count only for the active disk. */
static enum owner_kind owner_of(struct walk *walk, const struct qcow2_l2_entry *e)
{
    uint64_t stored;
    if (e->kind != QCOW2_L2_NORMAL && e->kind != QCOW2_L2_ZERO_ALLOC)
        return ANYBODY;
    if (e->copied)
        return ACTIVE_DISK;
    return walk_stored(walk, cluster_of(&walk->geo, e->host_off), &stored) && stored == 1
               ? SNAPSHOTS
               : ANYBODY;
}

void match_look_closer(struct repair *repair, struct candidate *c)
{
    struct walk *walk = repair->walk;
    const struct qcow2_geometry *geo = &walk->geo;
    unsigned votes[SNAPSHOTS + 1] = {0};
    c->first = UINT32_MAX;
    for (uint32_t i = 0; i < geo->l2_entries; i++) {
        struct qcow2_l2_entry e;
        qcow2_l2_decode(geo, c->bytes + (size_t)i * geo->l2_entry_size, &e);
        if ((e.raw != 0 || e.bitmap != 0) && l2_entry_fits(walk, &e, e.host_off)) {
            c->first = i < c->first ? i : c->first;
            c->last_but_one = c->last;
            c->last = i;
        }
        if (!geo->data_file)
            votes[owner_of(walk, &e)]++;
        if (e.kind == QCOW2_L2_NORMAL && i == 0)
            c->first_data = e.host_off;
        if (e.kind == QCOW2_L2_NORMAL && i == geo->l2_entries - 1)
            c->last_data = e.host_off;
    }
    if (votes[ACTIVE_DISK] != votes[SNAPSHOTS])
        c->whose = votes[ACTIVE_DISK] > votes[SNAPSHOTS] ? ACTIVE_DISK : SNAPSHOTS;
}

/* `spare` references to it are missing, by the count or by what the places themselves took.
 * `empty_too`: there may be no data behind it. */
static int add_candidate(struct match *m, uint64_t host_off, uint64_t spare, bool empty_too)
{
    struct walk *walk = m->repair->walk;
    struct candidate c = {.host_off = host_off, .spare = spare};
    for (size_t i = 0; i < m->candidate_count; i++) {
        if (m->candidates[i].host_off == host_off)
            return 0;
    }
    const struct table *table = table_find(&walk->tables, host_off);
    bool known = table && !table->skip, spare_is_claim = !repair_deficit(m->repair, host_off);
    if (spare == 0 || m->candidate_count == MAX_CANDIDATES || host_off >= walk->file_size)
        return 0;
    bool fits = walk_looks_like_l2(walk, cluster_of(&walk->geo, host_off), &c.look);
    /* Beside a place with another disk's table only what its own lost is orphaned. */
    fits |= c.look.orphaned > c.look.odd && c.look.marked > 0;
    /* What an entry points into, with nothing odd in it, is a table also where no count tells. */
    fits |= spare_is_claim && c.look.named > 0 && c.look.odd == 0 && c.look.metadata == 0;
    c.bare = !fits && !known;
    if (c.bare && !(empty_too && c.look.named == 0 && c.look.odd == 0))
        return 0;
    /* Zeros that somebody maps are guest data: of those a reference is missing, not of a table. */
    struct census_cell cell = census_get(walk->census, cluster_of(&walk->geo, host_off));
    if (c.bare && cell.claimed && cell.balance > 0)
        return 0;
    c.bytes = malloc(walk->geo.cluster_size);
    if (!c.bytes)
        return -ENOMEM;
    walk_read_again(walk, host_off, c.bytes, walk->geo.cluster_size);
    match_look_closer(m->repair, &c);
    m->candidates[m->candidate_count++] = c;
    return 0;
}

static uint64_t deficit(const struct repair *repair, uint64_t host_off)
{
    const struct walk *walk = repair->walk;
    return repair_deficit(repair, host_off)
               ? (uint64_t)census_get(walk->census, cluster_of(&walk->geo, host_off)).balance
               : 0;
}

/* How often an orphaned L1 table names the L2 table at host_off: those references are no place's.
 */
static int count_explained(struct repair *repair, uint64_t host_off, uint64_t *explained)
{
    const struct walk *walk = repair->walk;
    uint8_t *bytes = malloc(walk->geo.cluster_size);
    int ret = bytes ? 0 : -ENOMEM;
    *explained = 0;
    for (size_t i = 0; ret == 0 && i < repair->findings.count; i++) {
        uint64_t named = 0;
        const struct finding *f = &repair->findings.items[i];
        if (f->check != CHECK_orphan_l1_table)
            continue;
        ret = io_read_padded(walk->io, f->host_off, bytes, walk->geo.cluster_size);
        for (size_t at = 0; ret == 0 && at < walk->geo.cluster_size; at += 8)
            named += (load_be64(bytes + at) & QCOW2_OFFSET_MASK) == host_off;
        if (named > 0 && !repair_is_no_root(repair, f->host_off))
            *explained += named;
    }
    free(bytes);
    return ret == -ENOMEM ? ret : 0;
}

/* With the references that it misses by its count, but for those of an orphaned L1 table. */
static int add_unexplained(struct match *m, uint64_t host_off)
{
    uint64_t spare = deficit(m->repair, host_off), explained = 0;
    int ret = spare > 0 ? count_explained(m->repair, host_off, &explained) : 0;
    return ret < 0 || explained >= spare ? ret
                                         : add_candidate(m, host_off, spare - explained, false);
}

static int add_orphans(struct match *m)
{
    const struct finding_set *findings = &m->repair->findings;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < findings->count; i++) {
        uint64_t host_off = findings->items[i].host_off;
        if (findings->items[i].check != CHECK_orphan_l2_table)
            continue;
        ret = add_unexplained(m, host_off);
        /* Its own count may be damaged, too: then what hangs on it speaks for it. */
        if (ret == 0 && m->repair->lossy && !m->repair->void_counts &&
            !repair_deficit(m->repair, host_off))
            ret = add_candidate(m, host_off, 1, false);
    }
    return ret;
}

/* Each disk has a table once: a count of more than there are disks is itself what is damaged. */
static bool counted_sanely(const struct walk *walk, const struct table *table)
{
    struct census_cell cell = census_get(walk->census, cluster_of(&walk->geo, table->host_off));
    return cell.balance <= 0 || table->refs + (uint64_t)cell.balance <= walk->tree_count;
}

/* Tables of other disks that miss a reference.  `with_data`: only if most of the data behind it
 * does so, too; else it may just have a wrong count. */
static int add_tables(struct match *m, bool with_data)
{
    struct walk *walk = m->repair->walk;
    struct l2_look look;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < walk->tables.count; i++) {
        const struct table *table = &walk->tables.items[i];
        if (table->skip || deficit(m->repair, table->host_off) == 0 || !counted_sanely(walk, table))
            continue;
        if (!with_data || walk_looks_like_l2(walk, cluster_of(&walk->geo, table->host_off), &look))
            ret = add_unexplained(m, table->host_off);
    }
    return ret;
}

/* More disks have a table than are counted for it: one of them may have lost another one. */
static bool some_crowded(const struct walk *walk)
{
    for (size_t i = 0; i < walk->tables.count; i++) {
        const struct table *table = &walk->tables.items[i];
        if (!table->skip &&
            census_get(walk->census, cluster_of(&walk->geo, table->host_off)).balance < 0)
            return true;
    }
    return false;
}

/* Of that one the other disks have most clusters: the check does not take it for lost. */
static int add_leaked(struct match *m)
{
    enum { MOST = 4096 };
    const struct walk *walk = m->repair->walk;
    uint64_t cluster = 0;
    int ret = 0;
    if (!some_crowded(walk))
        return 0;
    for (unsigned seen = 0;
         ret == 0 && seen < MOST && census_next_mismatch(walk->census, cluster, &cluster);
         seen++, cluster++) {
        uint64_t host_off = cluster << walk->geo.cluster_bits;
        if (!census_get(walk->census, cluster).claimed)
            ret = add_candidate(m, host_off, deficit(m->repair, host_off), false);
    }
    return ret;
}

/* What an entry is a bit away from may be a table without data.  One that it points into it has
 * claimed, too: to the census nothing is missing there. */
static int add_pointed_at(struct match *m)
{
    const struct qcow2_geometry *geo = &m->repair->walk->geo;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < m->place_count; i++) {
        const struct place *p = &m->places[i];
        uint64_t off = p->raw & QCOW2_OFFSET_MASK & ~(uint64_t)(geo->cluster_size - 1);
        struct census_cell cell = census_get(m->repair->walk->census, cluster_of(geo, off));
        if (p->check == CHECK_l1_entry_unaligned && off != 0 && cell.balance == 0 && !cell.conflict)
            ret = add_candidate(m, off, 1, true);
        for (size_t t = 0; ret == 0 && off != 0 && t < m->repair->walk->tree_count; t++) {
            uint64_t twin = match_table_at(m, (int)t, p->l1_idx);
            if (twin != 0 && __builtin_popcountll(twin ^ off) == 1 &&
                !repair_counted(m->repair, twin))
                ret = add_candidate(m, twin, 1, true);
        }
        for (unsigned bit = geo->cluster_bits; ret == 0 && off != 0 && bit < 56; bit++) {
            uint64_t other = off ^ UINT64_C(1) << bit;
            ret = add_candidate(m, other, deficit(m->repair, other), true);
        }
    }
    return ret;
}

size_t match_count_open(const struct match *m)
{
    size_t open = 0;
    for (size_t i = 0; i < m->place_count; i++)
        open += !m->places[i].filled && !may_be_right(&m->places[i]);
    return open;
}

size_t match_count_spare(const struct match *m)
{
    size_t spare = 0;
    for (size_t k = 0; k < m->candidate_count; k++)
        spare += m->candidates[k].bare ? 0 : m->candidates[k].spare;
    return spare;
}

static int compare_candidates(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    return (x->host_off > y->host_off) - (x->host_off < y->host_off);
}

static int compare_places(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    return (x->entry_off > y->entry_off) - (x->entry_off < y->entry_off);
}

static struct candidate *find_candidate(struct match *m, uint64_t host_off)
{
    struct candidate key = {.host_off = host_off};
    return m->candidate_count == 0 || host_off == 0
               ? NULL
               : bsearch(&key, m->candidates, m->candidate_count, sizeof(key), compare_candidates);
}

/* The plain offset at an entry of the candidate, 0 behind the last one. */
static uint64_t offset_at(const struct match *m, const struct candidate *c, uint64_t idx)
{
    const struct qcow2_geometry *geo = &m->repair->walk->geo;
    uint64_t raw = idx < geo->l2_entries ? load_be64(c->bytes + idx * geo->l2_entry_size) : 0;
    return raw & QCOW2_ENTRY_COMPRESSED ? 0 : raw & QCOW2_OFFSET_MASK;
}

/* Marks the candidates that this one maps between the clusters of its neighbours. */
static void accuse(struct match *m, const struct candidate *by, bool *accused)
{
    uint64_t size = m->repair->walk->geo.cluster_size;
    for (uint64_t i = 1; i + 1 < m->repair->walk->geo.l2_entries; i++) {
        uint64_t off = offset_at(m, by, i);
        const struct candidate *c = find_candidate(m, off);
        if (c && c != by && offset_at(m, by, i - 1) + size == off &&
            offset_at(m, by, i + 1) == off + size)
            accused[c - m->candidates] = true;
    }
}

/* A guest may keep tables in its data: what a lost table maps is none that was lost, unless that
 * table is itself such a one. */
static void leave_out_data(struct match *m)
{
    bool accused[MAX_CANDIDATES] = {false}, out[MAX_CANDIDATES] = {false};
    if (m->repair->walk->geo.data_file)
        return;
    for (size_t k = 0; k < m->candidate_count; k++)
        accuse(m, &m->candidates[k], accused);
    for (size_t k = 0; k < m->candidate_count; k++) {
        if (!accused[k])
            accuse(m, &m->candidates[k], out);
    }
    for (size_t k = 0; k < m->candidate_count; k++)
        m->candidates[k].spare = out[k] ? 0 : m->candidates[k].spare;
}

/* Places that had a table for sure: an empty one need not. */
static size_t count_damaged(const struct match *m)
{
    size_t count = 0;
    for (size_t i = 0; i < m->place_count; i++)
        count += m->places[i].check != CHECK_l1_hole;
    return count;
}

int match_find(struct match *m)
{
    struct repair *repair = m->repair;
    m->places = calloc(MAX_PLACES, sizeof(*m->places));
    m->candidates = calloc(MAX_CANDIDATES, sizeof(*m->candidates));
    if (!m->places || !m->candidates)
        return -ENOMEM;
    match_add_places(m);
    int ret = add_orphans(m);
    bool any = m->place_count > 0 || m->candidate_count > 0;
    if (ret == 0 && (any || repair->lossy))
        ret = add_tables(m, !any);
    if (ret == 0 && repair->lossy)
        ret = add_leaked(m);
    if (ret == 0)
        ret = add_pointed_at(m);
    if (ret == 0 && repair->lossy && match_count_spare(m) > count_damaged(m)) {
        match_add_doubtful(m);
    }
    if (m->place_count > 0)
        qsort(m->places, m->place_count, sizeof(*m->places), compare_places);
    if (m->candidate_count > 0)
        qsort(m->candidates, m->candidate_count, sizeof(*m->candidates), compare_candidates);
    leave_out_data(m);
    return ret;
}

void match_release(struct match *m)
{
    for (size_t k = 0; m->candidates && k < m->candidate_count; k++)
        free(m->candidates[k].bytes);
    free(m->scores);
    free(m->candidates);
    free(m->places);
}
