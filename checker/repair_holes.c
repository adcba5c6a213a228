/* SPDX-License-Identifier: MIT
 *
 * Empty L2 entries that may have lost their clusters.  An empty entry says nothing by itself, so
 * this takes --lossy, and what fills it must fit closely: the clusters between those of its
 * neighbours, or those that another disk has at these very places; and all of them miss just the
 * references that they would get here. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "repair.h"

/* Nobody looks at more disks than that at one place. */
enum { MOST_TABLES = 64 };

/* What was found out about an entry. */
enum { NOT_ASKED, RIVAL, NO_RIVAL };

/* One table; its bytes, as they are and as they will be, and those of another one are read into
 * buffers of a cluster. */
struct hole_search {
    struct repair *repair;
    const struct table *table;
    const struct table *first, *end; /* those that disks have at the same place as this one */
    uint8_t *bytes, *other, *old;
    uint8_t *rivals; /* for each entry, as long as no whole sector is known to be lost */
    struct peek {    /* of each table at this place the sector that was looked at last */
        uint64_t at; /* + 1; 0: none */
        uint8_t bytes[QCOW2_SECTOR_BYTES];
    } * peeks;
    bool lost_sector; /* what is filled lies in a sector that was lost as a whole */
    bool from_older;  /* what it is filled from is older: entries cannot have been empty */
};

static bool is_empty(const struct hole_search *s, uint32_t idx)
{
    static const uint8_t zeros[16] = {0};
    unsigned size = s->repair->walk->geo.l2_entry_size;
    return memcmp(s->bytes + (size_t)idx * size, zeros, size) == 0;
}

static int fill(struct hole_search *s, uint32_t idx, const uint8_t *entry)
{
    unsigned size = s->repair->walk->geo.l2_entry_size;
    uint8_t bytes[16] = {0};
    memcpy(bytes, entry, size);
    int ret = repair_take_entry(s->repair, s->table, bytes);
    memcpy(s->bytes + (size_t)idx * size, bytes, size);
    return ret;
}

/* Sector by sector: that a whole one was lost must be seen until it is there again. */
static int write_filled(struct hole_search *s)
{
    int ret = 0;
    for (size_t at = 0; ret == 0 && at < s->repair->walk->geo.cluster_size;
         at += QCOW2_SECTOR_BYTES) {
        if (memcmp(s->bytes + at, s->old + at, QCOW2_SECTOR_BYTES) == 0)
            continue;
        uint8_t *sector = malloc(QCOW2_SECTOR_BYTES);
        if (!sector)
            return -ENOMEM;
        memcpy(sector, s->bytes + at, QCOW2_SECTOR_BYTES);
        ret = plan_data(&s->repair->plan, PHASE_SWITCH, CHECK_cluster_leaked,
            s->table->host_off + at, sector, QCOW2_SECTOR_BYTES);
    }
    return ret;
}

/* The references that the cluster misses are those of this table. */
static bool misses_these(const struct hole_search *s, uint64_t host_off)
{
    const struct walk *walk = s->repair->walk;
    return repair_deficit(s->repair, host_off) &&
           census_get(walk->census, cluster_of(&walk->geo, host_off)).balance ==
               (int64_t)s->table->refs;
}

/* When the first disk that has the table was made: snapshots stand in that order, the active disk
 * is the last. */
static size_t age(const struct hole_search *s, const struct table *table)
{
    return table->snapshot ? (size_t)table->snapshot : s->repair->walk->tree_count;
}

/* The sector with that entry, as that table has it. */
static const uint8_t *sector_of(
    const struct hole_search *s, const struct table *table, uint32_t idx)
{
    size_t at = (size_t)idx * s->repair->walk->geo.l2_entry_size / QCOW2_SECTOR_BYTES;
    struct peek *peek = &s->peeks[table - s->first];
    if (peek->at != at + 1)
        walk_read_again(s->repair->walk, table->host_off + at * QCOW2_SECTOR_BYTES, peek->bytes,
            QCOW2_SECTOR_BYTES);
    peek->at = at + 1;
    return peek->bytes;
}

static bool is_empty_in(const struct hole_search *s, const struct table *table, uint32_t idx)
{
    unsigned size = s->repair->walk->geo.l2_entry_size;
    return walk_bytes_zero(
        sector_of(s, table, idx) + (size_t)idx * size % QCOW2_SECTOR_BYTES, size);
}

/* Its whole sector is empty, while what ours has there is missed by somebody. */
static bool lost_sector(const struct hole_search *s, const struct table *table, uint32_t idx)
{
    const struct qcow2_geometry *geo = &s->repair->walk->geo;
    uint32_t per_sector = QCOW2_SECTOR_BYTES / geo->l2_entry_size;
    if (!walk_bytes_zero(sector_of(s, table, idx), QCOW2_SECTOR_BYTES))
        return false;
    for (uint32_t i = idx / per_sector * per_sector, end = i + per_sector; i < end; i++) {
        struct qcow2_l2_entry e;
        qcow2_l2_decode(geo, s->bytes + (size_t)i * geo->l2_entry_size, &e);
        if (e.kind == QCOW2_L2_NORMAL && repair_deficit(s->repair, e.host_off))
            return true;
    }
    return false;
}

/* Another disk may have lost the cluster at that entry, not this one.  What a disk has mapped once,
 * all those made of it have mapped, too: so an empty entry younger than one that maps something is
 * the one that lost it; if there is none, of those older the last. */
static bool find_rival(const struct hole_search *s, uint32_t idx)
{
    size_t mine = age(s, s->table), oldest = SIZE_MAX, last = 0, younger = 0;
    const struct table *t;
    if (s->end - s->first > MOST_TABLES)
        return true; /* who knows */
    for (t = s->first; t < s->end; t++) {
        if (!t->skip && t != s->table && !is_empty_in(s, t, idx) && age(s, t) < oldest)
            oldest = age(s, t);
    }
    for (t = s->first; t < s->end; t++) {
        if (t->skip || t == s->table || !is_empty_in(s, t, idx))
            continue;
        if (lost_sector(s, t, idx))
            return true;
        younger += age(s, t) > oldest;
        last = age(s, t) > last ? age(s, t) : last;
    }
    return !s->lost_sector && (younger > 0 || (mine < oldest && mine < last));
}

static bool has_rival(const struct hole_search *s, uint32_t idx)
{
    if (s->lost_sector)
        return find_rival(s, idx);
    if (s->rivals[idx] == NOT_ASKED)
        s->rivals[idx] = find_rival(s, idx) ? RIVAL : NO_RIVAL;
    return s->rivals[idx] == RIVAL;
}

/* ---- between neighbours ---- */

/* The cluster that an entry maps, 0 if it maps none in the plain way. */
static uint64_t mapped(const struct hole_search *s, uint32_t idx)
{
    struct qcow2_l2_entry e;
    qcow2_l2_decode(
        &s->repair->walk->geo, s->bytes + (size_t)idx * s->repair->walk->geo.l2_entry_size, &e);
    return e.kind == QCOW2_L2_NORMAL && l2_entry_fits(s->repair->walk, &e, 0) ? e.host_off : 0;
}

/* Fills entries first to end - 1, if the neighbours are just as far apart. */
static int fill_run(struct hole_search *s, uint32_t first, uint32_t end)
{
    const struct qcow2_geometry *geo = &s->repair->walk->geo;
    uint64_t before = first > 0 ? mapped(s, first - 1) : 0, behind = mapped(s, end);
    uint64_t bytes = (uint64_t)(end - first + 1) << geo->cluster_bits;
    if (!before || !behind || behind < before || behind - before != bytes)
        return 0;
    for (uint32_t i = first; i < end; i++) {
        if (!misses_these(s, before + ((uint64_t)(i - first + 1) << geo->cluster_bits)) ||
            has_rival(s, i))
            return 0;
    }
    int ret = plan_remark(&s->repair->plan,
        "choice: %u empty entries of the L2 table at 0x%llx get the orphaned clusters between "
        "their neighbours",
        end - first, (unsigned long long)s->table->host_off);
    for (uint32_t i = first; ret == 0 && i < end; i++) {
        uint8_t entry[16];
        store_be64(entry, before + ((uint64_t)(i - first + 1) << geo->cluster_bits));
        store_be64(entry + 8, QCOW2_SUBCLUSTER_ALLOC);
        ret = fill(s, i, entry);
    }
    return ret;
}

static int fill_runs(struct hole_search *s)
{
    const struct qcow2_geometry *geo = &s->repair->walk->geo;
    int ret = 0;
    for (uint32_t i = 0, end; ret == 0 && i < geo->l2_entries; i = end + 1) {
        end = i;
        while (end < geo->l2_entries && is_empty(s, end))
            end++;
        if (end > i && end < geo->l2_entries)
            ret = fill_run(s, i, end);
    }
    return ret;
}

/* ---- by other disks ---- */

/* Of the clusters of compressed data: as many references as there are entries for them. */
static bool packed_miss(const struct hole_search *s, const struct qcow2_l2_entry *packed)
{
    const struct qcow2_geometry *geo = &s->repair->walk->geo;
    uint64_t off = packed->host_off & ~(uint64_t)(geo->cluster_size - 1), refs = 0;
    for (uint32_t i = 0; i < s->table->legal && i < geo->l2_entries; i++) {
        struct qcow2_l2_entry e;
        if (!is_empty(s, i))
            continue;
        qcow2_l2_decode(geo, s->other + (size_t)i * geo->l2_entry_size, &e);
        if (e.kind == QCOW2_L2_COMPRESSED &&
            ranges_overlap(e.host_off, e.length, off, geo->cluster_size))
            refs += s->table->refs;
    }
    return census_get(s->repair->walk->census, cluster_of(geo, off)).balance == (int64_t)refs;
}

/* Storage loses whole sectors: an entry beside others that are there was empty before. */
static bool sector_is_empty(const struct hole_search *s, uint32_t idx)
{
    uint32_t per_sector = QCOW2_SECTOR_BYTES / s->repair->walk->geo.l2_entry_size;
    uint32_t first = idx / per_sector * per_sector;
    for (uint32_t i = first; i < first + per_sector; i++) {
        if (!is_empty(s, i))
            return false;
    }
    return true;
}

/* What is shared has no COPIED. */
static bool fits_from_other(const struct hole_search *s, uint32_t idx)
{
    const struct qcow2_geometry *geo = &s->repair->walk->geo;
    struct qcow2_l2_entry e;
    if (!is_empty(s, idx) || idx >= s->table->legal)
        return false;
    qcow2_l2_decode(geo, s->other + (size_t)idx * geo->l2_entry_size, &e);
    return !e.copied && e.kind >= QCOW2_L2_ZERO_ALLOC &&
           (s->from_older || sector_is_empty(s, idx)) && repair_entry_missed(s->repair, &e, 0, 0) &&
           (e.kind == QCOW2_L2_COMPRESSED ? packed_miss(s, &e) : misses_these(s, e.host_off)) &&
           !has_rival(s, idx);
}

/* A single cluster may as well have a wrong count: then nothing is lost.  Unless what is older has
 * nothing else that is empty here: it would be no older state of this table. */
static int fill_from_other(struct hole_search *s)
{
    const struct qcow2_geometry *geo = &s->repair->walk->geo;
    uint32_t fitting = 0, strange = 0;
    for (uint32_t i = 0; i < geo->l2_entries; i++) {
        bool fits = fits_from_other(s, i);
        fitting += fits;
        strange += !fits && is_empty(s, i) && load_be64(s->other + (size_t)i * geo->l2_entry_size);
        if (!fits)
            memset(s->other + (size_t)i * geo->l2_entry_size, 0, geo->l2_entry_size);
    }
    if (fitting < (s->from_older && strange == 0 ? 1 : 2))
        return 0;
    int ret = plan_remark(&s->repair->plan,
        "choice: %u empty entries of the L2 table at 0x%llx get the clusters that another disk has "
        "there",
        fitting, (unsigned long long)s->table->host_off);
    for (uint32_t i = 0; ret == 0 && i < geo->l2_entries; i++) {
        const uint8_t *entry = s->other + (size_t)i * geo->l2_entry_size;
        if (load_be64(entry) == 0)
            continue;
        ret = fill(s, i, entry);
    }
    s->lost_sector = true;
    if (ret == 0)
        ret = fill_runs(s); /* between those */
    s->lost_sector = false;
    return ret;
}

static bool has_changed(const struct hole_search *s)
{
    return memcmp(s->bytes, s->old, s->repair->walk->geo.cluster_size) != 0;
}

static int fill_from_others(struct hole_search *s)
{
    struct walk *walk = s->repair->walk;
    int ret = 0;
    if (s->end - s->first > MOST_TABLES)
        return 0; /* each entry has a rival */
    for (const struct table *other = s->first; ret == 0 && other < s->end; other++) {
        if (other == s->table || other->skip || has_changed(s))
            continue;
        walk_read_again(walk, other->host_off, s->other, walk->geo.cluster_size);
        s->from_older = walk->geo.version >= 3 && age(s, other) < age(s, s->table);
        ret = fill_from_other(s);
    }
    return ret;
}

static bool has_empty(const struct hole_search *s)
{
    const struct qcow2_geometry *geo = &s->repair->walk->geo;
    for (size_t at = 0; at < geo->cluster_size; at += geo->l2_entry_size) {
        if (load_be64(s->bytes + at) == 0)
            return true;
    }
    return false;
}

/* What is empty there may be somebody's data. */
static bool lies_on_other(const struct walk *walk, const struct table *table)
{
    return census_get(walk->census, cluster_of(&walk->geo, table->host_off)).conflict;
}

/* Tables are sorted by place. */
static void turn_to(struct hole_search *s, const struct table *table)
{
    const struct walk *walk = s->repair->walk;
    const struct table *all = walk->tables.items + walk->tables.count;
    s->table = table;
    if (!s->first || s->first->l1_idx != table->l1_idx) {
        s->first = s->end = table;
        while (s->end < all && s->end->l1_idx == table->l1_idx)
            s->end++;
        for (size_t i = 0; i < MOST_TABLES; i++)
            s->peeks[i].at = 0;
    }
}

static int search_table(struct hole_search *s)
{
    struct walk *walk = s->repair->walk;
    walk_read_again(walk, s->table->host_off, s->bytes, walk->geo.cluster_size);
    if (!has_empty(s)) /* most tables of a full disk */
        return 0;
    memcpy(s->old, s->bytes, walk->geo.cluster_size);
    memset(s->rivals, NOT_ASKED, walk->geo.l2_entries);
    int ret = fill_runs(s);
    if (ret == 0 && !has_changed(s) && !repair_has(s->repair, CHECK_orphan_l2_table))
        ret = fill_from_others(s);
    return ret == 0 ? write_filled(s) : ret;
}

int repair_holes(struct repair *repair)
{
    struct walk *walk = repair->walk;
    struct hole_search s = {.repair = repair};
    uint64_t cluster;
    if (!repair->lossy || !walk->judgeable || walk->geo.data_file ||
        !census_next_mismatch(walk->census, 0, &cluster))
        return 0;
    s.bytes = calloc(4, walk->geo.cluster_size);
    s.peeks = calloc(MOST_TABLES, sizeof(*s.peeks));
    int ret = s.bytes && s.peeks ? 0 : -ENOMEM;
    if (ret == 0) {
        s.other = s.bytes + walk->geo.cluster_size;
        s.old = s.other + walk->geo.cluster_size;
        s.rivals = s.old + walk->geo.cluster_size;
    }
    for (size_t i = 0; ret == 0 && i < walk->tables.count; i++) {
        turn_to(&s, &walk->tables.items[i]);
        if (!s.table->skip && !lies_on_other(walk, s.table))
            ret = search_table(&s);
    }
    free(s.bytes);
    free(s.peeks);
    return ret;
}
