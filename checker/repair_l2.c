/* SPDX-License-Identifier: MIT
 *
 * Lost data clusters put back into the L2 entries that lost them.  As with L2 tables, only a
 * cluster of which the image says that a reference is missing is a candidate.  What speaks for one:
 * the damaged entry is one bit away from it, it continues what the neighbours map, another disk has
 * it at the same place. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "repair.h"

enum evidence { NOTHING, ONE_NEIGHBOUR, OTHER_DISK, ONE_BIT, BOTH_NEIGHBOURS };

struct candidate {
    uint64_t raw; /* the entry as it would be, COPIED left out */
    enum evidence evidence;
    bool tie;
};

struct place {
    enum check_id check;
    const struct table *table;
    uint32_t idx;
    uint64_t entry_off, raw, host_off;
};

/* Every cluster the entry touches misses a reference. */
static bool entry_deficit(const struct repair *repair, const struct qcow2_l2_entry *e)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    if (e->kind < QCOW2_L2_ZERO_ALLOC || !l2_entry_plain(repair->walk, e, 0))
        return false;
    for (uint64_t off = e->host_off & ~(uint64_t)(geo->cluster_size - 1);
         off < e->host_off + e->length; off += geo->cluster_size) {
        if (!repair_deficit(repair, off))
            return false;
    }
    return e->kind != QCOW2_L2_COMPRESSED || repair_decodes(repair, e);
}

static void propose(
    const struct repair *repair, struct candidate *best, uint64_t raw, enum evidence evidence)
{
    uint8_t bytes[16] = {0};
    struct qcow2_l2_entry e;
    raw &= ~QCOW2_ENTRY_COPIED;
    store_be64(bytes, raw);
    qcow2_l2_decode(&repair->walk->geo, bytes, &e);
    if (evidence < best->evidence || !entry_deficit(repair, &e))
        return;
    if (evidence == best->evidence) {
        best->tie |= raw != best->raw;
        return;
    }
    *best = (struct candidate){.raw = raw, .evidence = evidence};
}

/* The host offset that the neighbour at `idx` maps, 0 if it maps none in the plain way. */
static uint64_t neighbour(const struct repair *repair, const struct table *table, uint32_t idx)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    uint64_t raw;
    if (idx >= geo->l2_entries ||
        plan_peek(&repair->plan, table->host_off + (uint64_t)idx * geo->l2_entry_size, &raw) < 0 ||
        (raw & QCOW2_ENTRY_COMPRESSED))
        return 0;
    uint64_t off = raw & QCOW2_OFFSET_MASK;
    return cluster_aligned(geo, off) && off < repair->walk->file_size ? off : 0;
}

static void propose_by_neighbours(
    const struct repair *repair, struct candidate *best, const struct place *place)
{
    uint32_t size = repair->walk->geo.cluster_size;
    uint64_t zero = place->raw & QCOW2_ENTRY_COMPRESSED ? 0 : place->raw & QCOW2_ENTRY_ZERO;
    uint64_t before = neighbour(repair, place->table, place->idx - 1);
    uint64_t behind = neighbour(repair, place->table, place->idx + 1);
    if (repair->walk->geo.extended_l2)
        zero = 0;
    if (before && behind && before + size == behind - size) {
        propose(repair, best, (before + size) | zero, BOTH_NEIGHBOURS);
        return;
    }
    if (before)
        propose(repair, best, (before + size) | zero, ONE_NEIGHBOUR);
    if (behind > size)
        propose(repair, best, (behind - size) | zero, ONE_NEIGHBOUR);
}

static void propose_by_bits(
    const struct repair *repair, struct candidate *best, const struct place *place)
{
    for (unsigned bit = 0; bit < 63; bit++)
        propose(repair, best, place->raw ^ UINT64_C(1) << bit, ONE_BIT);
    if (!(place->raw & QCOW2_ENTRY_COMPRESSED))
        propose(
            repair, best, place->raw & ~(uint64_t)(repair->walk->geo.cluster_size - 1), ONE_BIT);
}

static void propose_by_disks(
    const struct repair *repair, struct candidate *best, const struct place *place)
{
    const struct walk *walk = repair->walk;
    for (size_t i = 0; i < walk->tables.count; i++) {
        const struct table *table = &walk->tables.items[i];
        uint64_t raw;
        if (table == place->table || table->skip || table->l1_idx != place->table->l1_idx)
            continue;
        uint64_t off = table->host_off + (uint64_t)place->idx * walk->geo.l2_entry_size;
        if (plan_peek(&repair->plan, off, &raw) == 0)
            propose(repair, best, raw, OTHER_DISK);
    }
}

static struct candidate find_candidate(const struct repair *repair, const struct place *place)
{
    struct candidate best = {0};
    propose_by_neighbours(repair, &best, place);
    if (place->check != CHECK_l2_entry_shared) /* that one is a valid entry: no bit speaks */
        propose_by_bits(repair, &best, place);
    propose_by_disks(repair, &best, place);
    return best;
}

static int put_back(struct repair *repair, const struct place *place, uint64_t raw)
{
    const struct walk *walk = repair->walk;
    uint8_t bytes[16] = {0};
    struct qcow2_l2_entry e;
    store_be64(bytes, raw);
    qcow2_l2_decode(&walk->geo, bytes, &e);
    uint64_t stored = 0;
    int ret = 0;
    for (uint64_t off = e.host_off & ~(uint64_t)(walk->geo.cluster_size - 1);
         ret == 0 && off < e.host_off + e.length; off += walk->geo.cluster_size)
        ret = repair_take(repair, off, place->table->refs);
    walk_stored(repair->walk, cluster_of(&walk->geo, e.host_off), &stored);
    if (e.kind != QCOW2_L2_COMPRESSED && place->table->active_refs > 0 && stored == 1)
        raw |= QCOW2_ENTRY_COPIED;
    if (ret == 0)
        ret = plan_be64(&repair->plan, PHASE_SWITCH, place->check, place->entry_off, raw);
    return ret;
}

static bool is_place(const struct finding *f)
{
    switch (f->check) {
    case CHECK_l2_entry_unaligned:
    case CHECK_l2_entry_outside:
    case CHECK_l2_entry_into_metadata:
    case CHECK_l2_entry_shared:
    case CHECK_l2_compressed_outside:
        return true;
    default:
        return false;
    }
}

static int compare_places(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    return (x->entry_off > y->entry_off) - (x->entry_off < y->entry_off);
}

/* The entries that lost something, each once, in the order of their tables: an entry put back is
 * the neighbour of the next one. */
static size_t find_places(const struct repair *repair, struct place *places)
{
    size_t count = 0, kept = 0;
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (!is_place(f))
            continue;
        struct place place = {
            .check = f->check,
            .table = table_find(&repair->walk->tables, f->table_off),
            .idx = (uint32_t)f->index,
            .entry_off = repair_entry_off(repair, f),
            .host_off = f->host_off,
        };
        if (repair_was_cut_off(repair, f->host_off))
            continue;
        if (place.table && plan_peek(&repair->plan, place.entry_off, &place.raw) == 0)
            places[count++] = place;
    }
    if (count > 0)
        qsort(places, count, sizeof(*places), compare_places);
    for (size_t i = 0; i < count; i++) {
        if (kept == 0 || places[kept - 1].entry_off != places[i].entry_off)
            places[kept++] = places[i];
    }
    return kept;
}

/* Whether an owner of the shared cluster besides number `me` would keep it. */
static bool somebody_stays(const struct place *places, size_t count, const bool *moved, size_t me)
{
    for (size_t i = 0; i < count; i++) {
        if (i != me && !moved[i] && places[i].check == CHECK_l2_entry_shared &&
            places[i].host_off == places[me].host_off)
            return true;
    }
    return false;
}

static int fill_places(struct repair *repair, const struct place *places, size_t count)
{
    bool *moved = calloc(count + 1, sizeof(*moved));
    int ret = moved ? 0 : -ENOMEM;
    for (size_t i = 0; ret == 0 && i < count; i++) {
        bool shared = places[i].check == CHECK_l2_entry_shared;
        struct candidate best = find_candidate(repair, &places[i]);
        if (best.evidence == NOTHING || best.tie ||
            (shared && !somebody_stays(places, count, moved, i)))
            continue;
        /* One neighbour is not much: with a choice it takes --lossy. */
        if (best.evidence == ONE_NEIGHBOUR && shared && !repair->options->lossy)
            continue;
        moved[i] = true;
        ret = put_back(repair, &places[i], best.raw);
    }
    free(moved);
    return ret;
}

/* ---- zeroed entries, with --lossy ---- */

/* Fills a run of empty entries whose neighbours are just as far apart, if the clusters between them
 * all miss a reference. */
static int fill_run(struct repair *repair, const struct table *table, uint32_t first, uint32_t end)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    uint64_t before = first > 0 ? neighbour(repair, table, first - 1) : 0;
    uint64_t behind = neighbour(repair, table, end);
    uint64_t bytes = (uint64_t)(end - first + 1) << geo->cluster_bits;
    if (!before || !behind || behind < before || behind - before != bytes)
        return 0;
    for (uint64_t off = before + geo->cluster_size; off < behind; off += geo->cluster_size) {
        if (!repair_deficit(repair, off))
            return 0;
    }
    int ret = plan_remark(&repair->plan,
        "choice: %u empty entries of the L2 table at 0x%llx get the orphaned clusters between "
        "their "
        "neighbours",
        end - first, (unsigned long long)table->host_off);
    for (uint32_t i = first; ret == 0 && i < end; i++) {
        struct place place = {.check = CHECK_cluster_leaked,
            .table = table,
            .idx = i,
            .entry_off = table->host_off + (uint64_t)i * geo->l2_entry_size};
        ret = put_back(repair, &place, before + ((uint64_t)(i - first + 1) << geo->cluster_bits));
    }
    return ret;
}

static int fill_table(struct repair *repair, const struct table *table, const uint8_t *bytes)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    int ret = 0;
    for (uint32_t i = 0, end; ret == 0 && i < geo->l2_entries; i = end + 1) {
        end = i;
        while (end < geo->l2_entries && load_be64(bytes + (size_t)end * 8) == 0)
            end++;
        if (end > i && end < geo->l2_entries)
            ret = fill_run(repair, table, i, end);
    }
    return ret;
}

static int fill_holes(struct repair *repair)
{
    struct walk *walk = repair->walk;
    uint64_t cluster;
    if (walk->geo.extended_l2 || walk->geo.data_file ||
        !census_next_mismatch(walk->census, 0, &cluster))
        return 0;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < walk->tables.count; i++) {
        const struct table *table = &walk->tables.items[i];
        if (table->skip)
            continue;
        walk_read_again(walk, table->host_off, walk->buf, walk->geo.cluster_size);
        ret = fill_table(repair, table, walk->buf);
    }
    return ret;
}

int repair_l2(struct repair *repair)
{
    struct place *places = calloc(repair->findings.count + 1, sizeof(*places));
    if (!places)
        return -ENOMEM;
    size_t count = find_places(repair, places);
    int ret = fill_places(repair, places, count);
    free(places);
    if (ret == 0 && repair->plan.count == 0 && repair->options->lossy && repair->walk->judgeable)
        ret = fill_holes(repair);
    return ret;
}
