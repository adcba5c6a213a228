/* SPDX-License-Identifier: MIT
 *
 * First pass over the L2 tables: every reference to guest data is taken off the census.
 *
 * Tables are visited by guest position.  Those that different disks have at one position (a
 * snapshot's and the active disk's, say) are held side by side, so that all references to a cluster
 * from one guest place are claimed at once.  A second claim is then always one from another place,
 * and never legal for data clusters: no list of owners is needed to see that.
 *
 * Nothing is judged here.  A table in which anything is not plain, or does not fit the census
 * exactly, is marked odd and shown to the checks when the census is complete. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "walk.h"

/* ---- entries ---- */

static bool in_file(const struct walk *walk, uint64_t off, uint64_t length)
{
    uint64_t end;
    return range_end(off, length, &end) && end <= walk->view.file_size;
}

bool l2_entry_plain(const struct walk *walk, const struct qcow2_l2_entry *e, uint64_t guest_off)
{
    const struct qcow2_geometry *geo = &walk->geo;
    switch (e->kind) {
    case QCOW2_L2_UNALLOCATED:
        return e->raw == 0 && !(e->bitmap & QCOW2_SUBCLUSTER_ALLOC);
    case QCOW2_L2_ZERO_PLAIN:
        return e->raw == QCOW2_ENTRY_ZERO && geo->version >= 3;
    case QCOW2_L2_COMPRESSED:
        return !e->copied && !e->bitmap && !geo->data_file &&
               e->length <= geo->cluster_size + QCOW2_SECTOR_BYTES &&
               in_file(walk, e->host_off, e->length);
    case QCOW2_L2_ZERO_ALLOC:
        if (geo->version < 3)
            return false;
        break;
    case QCOW2_L2_NORMAL:
        if (e->raw & QCOW2_ENTRY_ZERO)
            return false;
        break;
    }
    if ((e->raw & QCOW2_L2_RESERVED) || !cluster_aligned(geo, e->host_off) ||
        (e->bitmap >> 32 & e->bitmap))
        return false;
    return geo->data_file ? e->copied && e->host_off == guest_off
                          : in_file(walk, e->host_off, geo->cluster_size);
}

/* Could not have been written by anybody who meant it. */
static bool entry_absurd(const struct walk *walk, const struct qcow2_l2_entry *e)
{
    if (e->kind == QCOW2_L2_COMPRESSED)
        return check_outside(&walk->view, e->host_off, e->length);
    if ((e->raw & QCOW2_L2_RESERVED) || !cluster_aligned(&walk->geo, e->host_off))
        return true;
    return !walk->geo.data_file && e->host_off != 0 &&
           check_outside(&walk->view, e->host_off, walk->geo.cluster_size);
}

/* A few bad entries, or a sector of them, are damage to a table.  It is no table if nothing in it
 * makes sense: in other data hardly one in ten thousand entries would. */
enum { ABSURD_ENTRIES = 8, ABSURD_PER_SANE = 16 };

static void test_plausible(const struct walk *walk, struct table *table, const uint8_t *bytes)
{
    const struct qcow2_geometry *geo = &walk->geo;
    uint64_t unusual = 0, highest = 0;
    for (uint32_t i = 0; i < geo->l2_entries; i++) {
        uint64_t raw = load_be64(bytes + (size_t)i * geo->l2_entry_size);
        unusual |= raw;
        highest = (raw & QCOW2_OFFSET_MASK) > highest ? raw & QCOW2_OFFSET_MASK : highest;
    }
    uint64_t unaligned = QCOW2_OFFSET_MASK & (geo->cluster_size - 1);
    if (!(unusual & (QCOW2_L2_RESERVED | QCOW2_ENTRY_COMPRESSED | unaligned)) &&
        (geo->data_file || !check_outside(&walk->view, highest, geo->cluster_size)))
        return;
    table->absurd = table->used = 0;
    for (uint32_t i = 0; i < geo->l2_entries; i++) {
        struct qcow2_l2_entry e;
        qcow2_l2_decode(geo, bytes + (size_t)i * geo->l2_entry_size, &e);
        table->used += e.raw != 0;
        table->absurd += e.raw != 0 && entry_absurd(walk, &e);
    }
    table->implausible = table->absurd >= ABSURD_ENTRIES &&
                         (table->used - table->absurd) * ABSURD_PER_SANE <= table->absurd;
    struct subject subject = {.kind = OBJECT_L2_TABLE,
        .l2_table = {
            .implausible = table->implausible, .absurd = table->absurd, .used = table->used}};
    table->skip |= walk_after(walk, &subject) >= AFTER_SKIP;
}

/* ---- statistics of `qemu-img check`: the active disk, in the order of one table ---- */

static void count_cluster(
    struct walk *walk, const struct table *table, uint64_t off, uint64_t count, uint64_t *next_off)
{
    struct report *report = walk->report;
    report->allocated_clusters += count * table->active_refs;
    if (*next_off != 0 && *next_off != off)
        report->fragmented_clusters += table->active_refs;
    *next_off = off + count * walk->geo.cluster_size;
}

static void count_entry(struct walk *walk, const struct table *table,
    const struct qcow2_l2_entry *e, uint64_t *next_off)
{
    if (table->active_refs == 0)
        return;
    if (e->kind == QCOW2_L2_NORMAL || e->kind == QCOW2_L2_ZERO_ALLOC) {
        count_cluster(walk, table, e->host_off, 1, next_off);
    } else if (e->kind == QCOW2_L2_COMPRESSED && !e->bitmap && !walk->geo.data_file) {
        walk->report->allocated_clusters += table->active_refs;
        walk->report->compressed_clusters += table->active_refs;
        walk->report->fragmented_clusters += table->active_refs;
    }
}

/* ---- claims ---- */

/* Takes references off for compressed data.  A length that no program writes reaches into clusters
 * of others: what lies behind the longest stream there can be counts, but is not the entry's. */
static int claim_compressed(struct walk *walk, const struct qcow2_l2_entry *e, uint64_t refs)
{
    const struct qcow2_geometry *geo = &walk->geo;
    uint64_t end = e->host_off + e->length, own_end = end;
    if (e->length > geo->cluster_size + QCOW2_SECTOR_BYTES)
        own_end = e->host_off + geo->cluster_size;
    bool conflict = false;
    int ret = walk_claim(walk, e->host_off, own_end - e->host_off, refs, CLAIM_PACKED, &conflict);
    uint64_t next = clusters_for(geo, own_end) << geo->cluster_bits;
    if (ret == 0 && next < end)
        ret = walk_claim(walk, next, end - next, refs, CLAIM_REFUSED, &conflict);
    return ret;
}

/* Takes `refs` references off for one entry.  *exact: the census agrees that these are all there
 * are, so the stored count is `refs`. */
static int claim_entry(
    struct walk *walk, const struct qcow2_l2_entry *e, uint64_t refs, bool *exact)
{
    const struct qcow2_geometry *geo = &walk->geo;
    bool packed = e->kind == QCOW2_L2_COMPRESSED, conflict = false;
    *exact = false;
    if (geo->data_file || (packed && e->bitmap) ||
        check_outside(&walk->view, e->host_off, e->length))
        return 0;
    if (packed)
        return claim_compressed(walk, e, refs);
    bool aligned = cluster_aligned(geo, e->host_off);
    if (aligned && !walk->options->no_fast_paths)
        *exact = census_claim_exact(walk->census, cluster_of(geo, e->host_off), refs);
    if (*exact)
        return 0;
    return walk_claim(
        walk, e->host_off, e->length, refs, aligned ? CLAIM_ALONE : CLAIM_REFUSED, &conflict);
}

/* Whether there is anything to claim, and remarks about the entry that need no census. */
static bool note_entry(
    struct walk *walk, struct table *table, uint32_t idx, const struct qcow2_l2_entry *e)
{
    uint64_t guest_off = ((uint64_t)table->l1_idx << walk->geo.l2_bits | idx)
                         << walk->geo.cluster_bits;
    if (!l2_entry_plain(walk, e, guest_off) || (idx >= table->legal && e->raw != 0))
        table->odd = true;
    if (e->kind == QCOW2_L2_COMPRESSED)
        table->has_compressed = true;
    if (walk->geo.data_file && e->kind == QCOW2_L2_NORMAL &&
        walk->data_file_end < e->host_off + walk->geo.cluster_size)
        walk->data_file_end = e->host_off + walk->geo.cluster_size;
    return e->kind >= QCOW2_L2_ZERO_ALLOC;
}

/* After the claim: does what the entry says fit the stored count? */
static int settle_entry(struct walk *walk, struct table *table, const struct qcow2_l2_entry *e,
    uint64_t refs, bool exact)
{
    if (e->kind == QCOW2_L2_COMPRESSED || walk->geo.data_file)
        return 0; /* COPIED is not compared with counts there; the rest shows in the census */
    if (exact && (table->active_refs == 0 || e->copied == (refs == 1)))
        return 0;
    table->odd = true;
    return census_mark_odd(walk->census, cluster_of(&walk->geo, e->host_off));
}

/* How many entries from `idx` on map clusters in a row, alike but for the offset. */
static uint32_t run_length(const uint8_t *bytes, uint32_t idx, uint32_t end, uint32_t step)
{
    uint64_t want = load_be64(bytes + (size_t)idx * 8);
    uint32_t i = idx + 1;
    for (; i < end; i++) {
        want += step;
        if (load_be64(bytes + (size_t)i * 8) != want)
            break;
    }
    return i - idx;
}

static int claim_single(struct walk *walk, struct table *table, const uint8_t *bytes)
{
    const struct qcow2_geometry *geo = &walk->geo;
    bool runs = !geo->extended_l2 && !geo->data_file && !walk->options->no_fast_paths;
    uint64_t next_off = 0;
    for (uint32_t i = 0; i < geo->l2_entries; i++) {
        const uint8_t *p = bytes + (size_t)i * geo->l2_entry_size;
        if (load_be64(p) == 0 && !geo->extended_l2)
            continue;
        struct qcow2_l2_entry e;
        qcow2_l2_decode(geo, p, &e);
        if (runs && e.kind == QCOW2_L2_NORMAL && i < table->legal &&
            (table->active_refs == 0 || e.copied == (table->refs == 1))) {
            uint32_t n = run_length(bytes, i, table->legal, geo->cluster_size);
            if (l2_entry_plain(walk, &e, 0) &&
                in_file(walk, e.host_off, (uint64_t)n << geo->cluster_bits) &&
                census_claim_run(walk->census, cluster_of(geo, e.host_off), n, table->refs)) {
                if (table->active_refs)
                    count_cluster(walk, table, e.host_off, n, &next_off);
                i += n - 1;
                continue;
            }
        }
        bool exact;
        count_entry(walk, table, &e, &next_off);
        if (!note_entry(walk, table, i, &e))
            continue;
        int ret = claim_entry(walk, &e, table->refs, &exact);
        if (ret == 0)
            ret = settle_entry(walk, table, &e, table->refs, exact);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* ---- several tables at one guest position ---- */

struct use {
    uint64_t key; /* what is claimed: equal keys, equal clusters */
    size_t table; /* within the group */
    struct qcow2_l2_entry entry;
};

static int compare_uses(const void *a, const void *b)
{
    const struct use *x = a, *y = b;
    if (x->key != y->key)
        return x->key > y->key ? 1 : -1;
    return (x->table > y->table) - (x->table < y->table);
}

struct group {
    struct table *tables;
    size_t count;
    struct use *uses;   /* room for one a table */
    uint64_t *next_off; /* statistics, one a table */
};

/* Claims what the tables of the group have at one entry: the same cluster once, with the references
 * of all that have it. */
static int claim_column(struct walk *walk, struct group *group, size_t use_count)
{
    struct use *uses = group->uses;
    qsort(uses, use_count, sizeof(*uses), compare_uses);
    for (size_t i = 0; i < use_count;) {
        size_t end = i;
        uint64_t refs = 0;
        while (end < use_count && uses[end].key == uses[i].key)
            refs += group->tables[uses[end++].table].refs;
        bool exact;
        int ret = claim_entry(walk, &uses[i].entry, refs, &exact);
        for (; ret == 0 && i < end; i++)
            ret = settle_entry(walk, &group->tables[uses[i].table], &uses[i].entry, refs, exact);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* `bytes` holds entries first .. first + rows - 1 of each table, one table after the other. */
static int claim_rows(
    struct walk *walk, struct group *group, const uint8_t *bytes, uint32_t first, uint32_t rows)
{
    const struct qcow2_geometry *geo = &walk->geo;
    for (uint32_t row = 0; row < rows; row++) {
        size_t use_count = 0;
        for (size_t t = 0; t < group->count; t++) {
            struct table *table = &group->tables[t];
            struct use *use = &group->uses[use_count];
            if (table->skip)
                continue;
            qcow2_l2_decode(
                geo, bytes + ((size_t)t * rows + row) * geo->l2_entry_size, &use->entry);
            count_entry(walk, table, &use->entry, &group->next_off[t]);
            if (!note_entry(walk, table, first + row, &use->entry))
                continue;
            bool packed = use->entry.kind == QCOW2_L2_COMPRESSED;
            use->key = packed ? use->entry.raw & ~QCOW2_ENTRY_COPIED : use->entry.host_off;
            use->table = t;
            use_count++;
        }
        int ret = use_count ? claim_column(walk, group, use_count) : 0;
        if (ret < 0)
            return ret;
    }
    return 0;
}

static void read_table(struct walk *walk, const struct table *table, void *buf)
{
    bool complete = true;
    walk_read_table(walk, table, buf, &complete);
    if (!complete)
        walk->refs_incomplete = true;
}

/* More tables at one position than fit the buffer: as many rows of all of them as fit at a time. */
static int claim_tall_group(struct walk *walk, struct group *group)
{
    const struct qcow2_geometry *geo = &walk->geo;
    int ret = 0;
    for (size_t t = 0; t < group->count; t++) {
        read_table(walk, &group->tables[t], walk->buf);
        test_plausible(walk, &group->tables[t], walk->buf);
    }
    uint32_t fit = (uint32_t)(WALK_BUF_BYTES / group->count / geo->l2_entry_size);
    for (uint32_t first = 0, rows; ret == 0 && first < geo->l2_entries; first += rows) {
        rows = geo->l2_entries - first < fit ? geo->l2_entries - first : fit;
        size_t bytes = (size_t)rows * geo->l2_entry_size;
        for (size_t t = 0; t < group->count; t++) {
            uint64_t off = group->tables[t].host_off + (uint64_t)first * geo->l2_entry_size;
            walk_read_again(walk, off, walk->buf + t * bytes, bytes);
        }
        ret = claim_rows(walk, group, walk->buf, first, rows);
    }
    return ret;
}

static int claim_group(struct walk *walk, struct table *tables, size_t count, uint8_t *bytes)
{
    struct group group = {.tables = tables, .count = count};
    if (count == 1 && !tables->skip) {
        test_plausible(walk, tables, bytes);
        return tables->skip ? 0 : claim_single(walk, tables, bytes);
    }
    group.uses = calloc(count, sizeof(*group.uses));
    group.next_off = calloc(count, sizeof(*group.next_off));
    int ret = group.uses && group.next_off ? 0 : -ENOMEM;
    if (ret == 0 && !bytes) {
        ret = claim_tall_group(walk, &group);
    } else if (ret == 0) {
        for (size_t t = 0; t < count; t++)
            test_plausible(walk, &tables[t], bytes + t * walk->geo.cluster_size);
        ret = claim_rows(walk, &group, bytes, 0, walk->geo.l2_entries);
    }
    free(group.uses);
    free(group.next_off);
    return ret;
}

/* ---- reading ---- */

static size_t group_size(const struct table_set *set, size_t first)
{
    size_t end = first + 1;
    while (end < set->count && set->items[end].l1_idx == set->items[first].l1_idx)
        end++;
    return end - first;
}

/* Reads tables first .. first + count - 1 one behind the other into the buffer. */
static int read_tables(struct walk *walk, size_t first, size_t count, struct io_read_req *reqs)
{
    uint32_t size = walk->geo.cluster_size;
    for (size_t i = 0; i < count; i++)
        reqs[i] = (struct io_read_req){.host_off = walk->tables.items[first + i].host_off,
            .length = size,
            .buf = walk->buf + i * size};
    int ret = io_read_many(walk->io, reqs, count);
    for (size_t i = 0; ret == 0 && i < count; i++) {
        if (reqs[i].result < 0) /* fails, or is cut short by the end of the file */
            read_table(walk, &walk->tables.items[first + i], reqs[i].buf);
    }
    return ret;
}

int walk_l2_tables(struct walk *walk)
{
    const struct table_set *set = &walk->tables;
    size_t most = WALK_BUF_BYTES / walk->geo.cluster_size;
    most = most < set->count ? most : set->count;
    struct io_read_req *reqs = calloc(most + 1, sizeof(*reqs));
    int ret = reqs ? 0 : -ENOMEM;
    for (size_t i = 0; walk->options->no_fast_paths && i < set->count; i++)
        set->items[i].odd = true;
    for (size_t first = 0, count; ret == 0 && first < set->count; first += count) {
        count = group_size(set, first);
        bool tall = count > most;
        while (
            !tall && first + count < set->count && count + group_size(set, first + count) <= most)
            count += group_size(set, first + count);
        if (!tall)
            ret = read_tables(walk, first, count, reqs);
        for (size_t i = 0, n; ret == 0 && i < count; i += n) {
            n = group_size(set, first + i);
            ret = claim_group(walk, &set->items[first + i], n,
                tall ? NULL : walk->buf + i * walk->geo.cluster_size);
        }
        if (ret == 0)
            ret = walk_pause(walk, (uint64_t)count * walk->geo.cluster_size);
    }
    free(reqs);
    return ret;
}
