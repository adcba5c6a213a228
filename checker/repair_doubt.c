/* SPDX-License-Identifier: MIT
 *
 * Whose a cluster is that two claim, one as a table and one as guest data.  A guest may keep whole
 * images in its data, so that data looks like any table: what the data's owner says decides, not
 * what the bytes look like.  Nothing is planned here. */
#include <errno.h>
#include <stdlib.h>

#include "repair.h"

/* Of conflicts, lost tables, what these name, and all tables so many are looked at. */
enum { MOST_SEEN = 1000, MOST_LOST = 128, MOST_NAMES = 1 << 20, MOST_TABLES = 1 << 16 };
enum { PROBE_BYTES = 4096 };

/* What the table's entry maps in the plain way; 0 if nothing. */
static uint64_t maps(const struct walk *walk, const uint8_t *table, uint32_t idx)
{
    struct qcow2_l2_entry e;
    qcow2_l2_decode(&walk->geo, table + (size_t)idx * walk->geo.l2_entry_size, &e);
    return e.kind == QCOW2_L2_NORMAL ? e.host_off : 0;
}

/* The same of a table in the file, as it is stored. */
static uint64_t mapped(const struct walk *walk, const struct table *table, uint64_t idx)
{
    uint8_t bytes[16] = {0};
    uint64_t off = table->host_off + idx * walk->geo.l2_entry_size;
    if (idx >= walk->geo.l2_entries ||
        io_read_padded(walk->io, off, bytes, walk->geo.l2_entry_size) < 0)
        return 0;
    return maps(walk, bytes, 0);
}

/* How many neighbours of the entry map what lies beside the cluster. */
static unsigned count_beside(const struct walk *walk, const struct finding *f)
{
    const struct table *table = table_find(&walk->tables, f->table_off);
    uint64_t size = walk->geo.cluster_size;
    if (!table || table->skip || plan_doubts(table))
        return 0;
    bool before = f->index > 0 && mapped(walk, table, f->index - 1) == f->host_off - size;
    bool behind = mapped(walk, table, f->index + 1) == f->host_off + size;
    return before && behind ? 2 : before || behind;
}

/* The L2 table that the finding's entry names as guest data, if nothing else lies there. */
static struct table *accused(const struct repair *repair, const struct finding *f)
{
    struct walk *walk = repair->walk;
    enum area_kind area = walk_area_at(walk, cluster_of(&walk->geo, f->host_off), NULL);
    bool plain = area == AREA_NONE || area == AREA_L2_TABLE;
    return plain && f->check == CHECK_l2_entry_into_metadata && f->table_off != f->host_off
               ? table_find(&walk->tables, f->host_off)
               : NULL;
}

/* An entry that goes on with both its neighbours is right.  With one of them it may have come to
 * point one cluster beside its own; where a table is missing, too, it is the table's entry. */
static void find_accused(struct repair *repair)
{
    bool lost = repair_has(repair, CHECK_orphan_l2_table);
    for (size_t i = 0, seen = 0; i < repair->findings.count && seen < MOST_SEEN; i++) {
        struct table *table = accused(repair, &repair->findings.items[i]);
        seen += table != NULL;
        if (table)
            table->accused |=
                count_beside(repair->walk, &repair->findings.items[i]) >= (lost ? 1 : 2);
    }
}

/* Compressed data of a lost table lies where a disk has an L2 table, and decodes. */
static void accuse_by_data(struct repair *repair, const struct qcow2_l2_entry *e)
{
    uint64_t start = e->host_off & ~(uint64_t)(repair->walk->geo.cluster_size - 1);
    struct table *table = table_find(&repair->walk->tables, start);
    if (table && !table->skip && repair_decodes(repair, e))
        table->rather_data = true;
}

/* Notes what the lost table in `bytes` names.  An L2 table accuses tables that make little sense
 * themselves. */
static void note_names(
    struct repair *repair, const struct finding *f, const uint8_t *bytes, struct lost_names *names)
{
    struct walk *walk = repair->walk;
    for (uint32_t idx = 0; idx < walk->geo.l2_entries && names->count < MOST_NAMES; idx++) {
        struct qcow2_l2_entry e;
        qcow2_l2_decode(&walk->geo, bytes + (size_t)idx * walk->geo.l2_entry_size, &e);
        if (f->check == CHECK_orphan_l2_table && e.kind == QCOW2_L2_COMPRESSED)
            accuse_by_data(repair, &e);
        uint64_t off = e.kind == QCOW2_L2_NORMAL ? e.host_off : 0;
        if (off == 0 || off == f->host_off)
            continue;
        names->offs[names->count++] = off;
        struct table *table = table_find(&walk->tables, off);
        if (f->check == CHECK_orphan_l2_table && table && !table->skip && plan_doubts(table))
            table->rather_data = true;
    }
}

static int find_names(struct repair *repair)
{
    const struct walk *walk = repair->walk;
    struct lost_names *names = &repair->lost_names;
    bool lost =
        repair_has(repair, CHECK_orphan_l2_table) || repair_has(repair, CHECK_orphan_l1_table);
    size_t seen = 0;
    if (!lost || walk->geo.data_file) /* what it names is not in this file */
        return 0;
    uint8_t *bytes = malloc(walk->geo.cluster_size);
    names->offs = calloc(MOST_NAMES, sizeof(*names->offs));
    if (!bytes || !names->offs) {
        free(bytes);
        return -ENOMEM;
    }
    for (size_t i = 0; i < repair->findings.count && seen < MOST_LOST; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (f->check != CHECK_orphan_l2_table && f->check != CHECK_orphan_l1_table)
            continue;
        seen++;
        if (io_read_padded(walk->io, f->host_off, bytes, walk->geo.cluster_size) == 0)
            note_names(repair, f, bytes, names);
    }
    qsort(names->offs, names->count, sizeof(*names->offs), repair_compare_offsets);
    free(bytes);
    return 0;
}

/* The L1 table of a disk, or the table of snapshots, lies on what two neighbours say is guest data.
 * Where only its end does, a length in a record is wrong. */
static void find_fake_roots(struct repair *repair)
{
    const struct walk *walk = repair->walk;
    repair->fake_root = repair->fake_records = false;
    for (size_t i = 0, seen = 0; i < repair->findings.count && seen < MOST_SEEN; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (f->check != CHECK_l2_entry_into_metadata)
            continue;
        seen++;
        enum area_kind area = walk_area_at(walk, cluster_of(&walk->geo, f->host_off), NULL);
        bool root = area == AREA_L1_TABLE || area == AREA_SNAPSHOT_L1_TABLE;
        bool records = area == AREA_SNAPSHOT_TABLE && f->host_off == walk->header.snapshots_off;
        if ((!root && !records) || count_beside(walk, f) < 2)
            continue;
        repair->fake_root |= root;
        repair->fake_records |= !root;
    }
}

/* The entry of an L1 table could not have been written by anybody who meant it. */
static bool is_absurd(const struct repair *repair, uint64_t raw)
{
    const struct walk *walk = repair->walk;
    uint64_t off = raw & QCOW2_OFFSET_MASK;
    enum area_kind area = walk_area_at(walk, cluster_of(&walk->geo, off), NULL);
    return (raw & QCOW2_L1_RESERVED) || !cluster_aligned(&walk->geo, off) ||
           (check_outside(&walk->view, off, walk->geo.cluster_size) &&
               !repair_was_cut_off(repair, off)) ||
           (off != 0 && area != AREA_NONE && area != AREA_L2_TABLE);
}

bool repair_doubts_root(const struct repair *repair, const struct tree *tree)
{
    enum { FEW = 3, MOST_ENTRIES = 4096 };
    uint64_t used = 0, absurd = 0;
    for (uint64_t i = 0; tree->usable && i < tree->l1_size && i < MOST_ENTRIES; i++) {
        uint8_t entry[8];
        if (io_read_padded(repair->io, tree->l1_off + i * 8, entry, sizeof(entry)) < 0)
            return false;
        used += load_be64(entry) != 0;
        absurd += load_be64(entry) != 0 && is_absurd(repair, load_be64(entry));
    }
    return absurd >= FEW && absurd * 2 >= used;
}

int repair_find_doubtful(struct repair *repair)
{
    struct walk *walk = repair->walk;
    find_accused(repair);
    find_fake_roots(repair);
    repair->doubtful_root = walk->tree_count > 0 &&
                            repair_has_damaged_entries(repair, &walk->trees[TREE_ACTIVE]) &&
                            repair_doubts_root(repair, &walk->trees[TREE_ACTIVE]);
    /* Guest data that looks like a table may name a true one: what is accused itself says nothing.
     */
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        struct table *table = accused(repair, f);
        const struct table *by = table ? table_find(&walk->tables, f->table_off) : NULL;
        if (table && table->accused && by && !by->accused)
            table->rather_data = true;
    }
    int ret = find_names(repair);
    repair->fake_tables = false;
    for (size_t i = 0; i < walk->tables.count; i++)
        repair->fake_tables |= walk->tables.items[i].rather_data;
    return ret;
}

bool repair_goes_on(const struct repair *repair, const struct finding *f)
{
    return count_beside(repair->walk, f) == 2;
}

bool repair_is_no_root(const struct repair *repair, uint64_t host_off)
{
    const struct lost_names *names = &repair->lost_names;
    return names->count > 0 && bsearch(&host_off, names->offs, names->count, sizeof(*names->offs),
                                   repair_compare_offsets);
}

bool repair_leaves_out(const struct repair *repair, const uint8_t *table, uint64_t cluster,
    uint64_t *first, uint64_t *end)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    uint64_t last = 0, last_idx = 0;
    for (uint32_t i = 0; i < geo->l2_entries; i++) {
        uint64_t off = maps(repair->walk, table, i);
        if (off == 0)
            continue;
        *first = cluster_of(geo, last) + 1;
        *end = cluster_of(geo, off);
        if (last != 0 && cluster >= *first && cluster < *end && *end - *first + 1 == i - last_idx)
            return true;
        last = off;
        last_idx = i;
    }
    return false;
}

/* None of the clusters, but perhaps this one, is where it belongs: each misses a reference, or has
 * none. */
static bool are_missed(const struct repair *repair, uint64_t first, uint64_t end, uint64_t but)
{
    const struct walk *walk = repair->walk;
    for (uint64_t c = first; c < end; c++) {
        if (c != but && census_get(walk->census, c).claimed &&
            !repair_deficit(repair, c << walk->geo.cluster_bits))
            return false;
    }
    return true;
}

bool repair_fills_gap(const struct repair *repair, uint64_t host_off)
{
    struct walk *walk = repair->walk;
    uint8_t *bytes = repair_memory(repair, malloc(walk->geo.cluster_size));
    uint64_t cluster = cluster_of(&walk->geo, host_off), first, end;
    bool found = !bytes || walk->tables.count > MOST_TABLES; /* who knows */
    for (size_t i = 0; !found && i < walk->tables.count; i++) {
        const struct table *table = &walk->tables.items[i];
        found = !table->skip &&
                io_read_padded(walk->io, table->host_off, bytes, walk->geo.cluster_size) == 0 &&
                repair_leaves_out(repair, bytes, cluster, &first, &end) &&
                are_missed(repair, first, end, cluster);
    }
    free(bytes);
    return found;
}

/* What leaks there is data: not zeros. */
static bool is_leaked_data(struct walk *walk, uint64_t cluster)
{
    uint32_t length = walk->geo.cluster_size < PROBE_BYTES ? walk->geo.cluster_size : PROBE_BYTES;
    uint64_t host_off = cluster << walk->geo.cluster_bits;
    return walk_leaked(walk, cluster) && walk_hole(walk, host_off) < walk->geo.cluster_size &&
           io_read_padded(walk->io, host_off, walk->buf, length) == 0 &&
           !walk_bytes_zero(walk->buf, length);
}

uint64_t repair_emptied_table(const struct repair *repair)
{
    enum { MANY = 32 };
    struct walk *walk = repair->walk;
    uint64_t cluster = 0, table_off = 0;
    unsigned found = 0;
    for (size_t i = 0; table_off == 0 && i < walk->tables.count; i++) {
        const struct table *table = &walk->tables.items[i];
        if (table->empty && !table->skip)
            table_off = table->host_off;
    }
    for (unsigned seen = 0; table_off != 0 && found < MANY && seen < MOST_SEEN &&
                            census_next_leak(walk->census, cluster, &cluster);
         seen++, cluster++)
        found += is_leaked_data(walk, cluster);
    return found == MANY ? table_off : 0;
}

bool repair_lost_others(const struct repair *repair)
{
    static const enum check_id checks[] = {CHECK_orphan_l2_table, CHECK_orphan_l1_table,
        CHECK_orphan_snapshot_table, CHECK_snapshot_table_truncated,
        CHECK_header_snapshots_unaligned, CHECK_header_snapshots_outside,
        CHECK_snapshot_l1_unaligned, CHECK_snapshot_l1_outside, CHECK_header_l1_unaligned,
        CHECK_header_l1_outside, CHECK_bitmap_directory_truncated, CHECK_l1_flags_without_table,
        CHECK_l1_entry_unaligned, CHECK_l1_entry_outside, CHECK_l1_entry_into_metadata,
        CHECK_l1_hole, CHECK_l2_table_implausible, CHECK_bitmap_entry_unaligned,
        CHECK_bitmap_entry_outside, CHECK_bitmap_table_range, CHECK_ext_bitmaps_directory};
    for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
        if (repair_has(repair, checks[i]))
            return true;
    }
    return false;
}
