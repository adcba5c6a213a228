/* SPDX-License-Identifier: MIT
 *
 * The L1 tables of all disks, and from them the set of L2 tables, each once, with the number of L1
 * entries that refer to it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "walk.h"

/* ---- set of L2 tables ---- */

static size_t table_slot(const struct table_set *set, uint64_t host_off)
{
    size_t mask = set->slot_count - 1;
    size_t i = (size_t)((host_off >> 9) * UINT64_C(0x9e3779b97f4a7c15) >> 32) & mask;
    while (set->slots[i] != 0 && set->items[set->slots[i] - 1].host_off != host_off)
        i = (i + 1) & mask;
    return i;
}

struct table *table_find(const struct table_set *set, uint64_t host_off)
{
    if (set->slot_count == 0)
        return NULL;
    uint32_t slot = set->slots[table_slot(set, host_off)];
    return slot ? &set->items[slot - 1] : NULL;
}

/* Makes the hash anew with room for twice the tables there are. */
static int tables_rehash(struct table_set *set)
{
    size_t slot_count = 64;
    while (slot_count < set->count * 4)
        slot_count *= 2;
    uint32_t *slots = calloc(slot_count, sizeof(*slots));
    if (!slots)
        return -ENOMEM;
    free(set->slots);
    set->slots = slots;
    set->slot_count = slot_count;
    for (size_t i = 0; i < set->count; i++)
        slots[table_slot(set, set->items[i].host_off)] = (uint32_t)(i + 1);
    return 0;
}

/* The table at host_off, added if it is new; NULL when out of memory. */
static struct table *table_get(struct table_set *set, uint64_t host_off)
{
    struct table *table = table_find(set, host_off);
    if (table)
        return table;
    if (set->count == set->room) {
        size_t room = set->room ? set->room * 2 : 32;
        struct table *items = realloc(set->items, room * sizeof(*items));
        if (!items)
            return NULL;
        set->items = items;
        set->room = room;
    }
    if ((set->count + 1) * 2 > set->slot_count && tables_rehash(set) < 0)
        return NULL;
    set->slots[table_slot(set, host_off)] = (uint32_t)(set->count + 1);
    table = &set->items[set->count++];
    *table = (struct table){.host_off = host_off, .tree = TREE_NONE};
    return table;
}

static int compare_tables(const void *a, const void *b)
{
    const struct table *x = a, *y = b;
    if (x->l1_idx != y->l1_idx)
        return x->l1_idx > y->l1_idx ? 1 : -1;
    return (x->host_off > y->host_off) - (x->host_off < y->host_off);
}

/* Of one disk they are in order already; of millions sorting takes memory, too. */
static int tables_sort(struct table_set *set)
{
    size_t sorted = 1;
    while (sorted < set->count && compare_tables(&set->items[sorted - 1], &set->items[sorted]) < 0)
        sorted++;
    if (sorted >= set->count)
        return 0;
    qsort(set->items, set->count, sizeof(*set->items), compare_tables);
    return tables_rehash(set);
}

/* ---- L1 tables ---- */

uint32_t tree_legal_entries(const struct walk *walk, const struct tree *tree, uint64_t l1_idx)
{
    const struct qcow2_geometry *geo = &walk->geo;
    /* From the first L1 entry behind the disk on there may be VM state. */
    if (!tree->disk_size_known || l1_idx >= l1_entries_for(geo, tree->disk_size))
        return geo->l2_entries;
    uint64_t clusters = clusters_for(geo, tree->disk_size) - (l1_idx << geo->l2_bits);
    return clusters < geo->l2_entries ? (uint32_t)clusters : geo->l2_entries;
}

/* An entry that is not plainly right.  Claims what QEMU counts for it; tells whether the table
 * behind it may be looked at. */
static int unusual_l1_entry(struct walk *walk, uint64_t raw, uint64_t refs, bool *descend)
{
    uint64_t off = raw & QCOW2_OFFSET_MASK;
    walk->judge_l1 = true;
    *descend = false;
    if (off == 0)
        return 0;
    if (check_outside(&walk->view, off, walk->geo.cluster_size)) {
        walk->l1_broken++;
        return 0;
    }
    if (!cluster_aligned(&walk->geo, off)) {
        bool conflict = false;
        walk->l1_broken++;
        return walk_claim(walk, off, walk->geo.cluster_size, refs, CLAIM_REFUSED, &conflict);
    }
    *descend = true;
    return 0;
}

static int add_table(struct walk *walk, int tree_idx, uint32_t l1_idx, uint64_t raw)
{
    const struct qcow2_geometry *geo = &walk->geo;
    const struct tree *tree = &walk->trees[tree_idx];
    uint64_t off = raw & QCOW2_OFFSET_MASK, end;
    if ((raw & QCOW2_L1_RESERVED) || off == 0 || !cluster_aligned(geo, off) ||
        !range_end(off, geo->cluster_size, &end) || end > walk->view.file_size) {
        bool descend;
        int ret = unusual_l1_entry(walk, raw, tree->same_l1, &descend);
        if (ret < 0 || !descend)
            return ret;
    }
    struct table *table = table_get(&walk->tables, off);
    if (!table)
        return -ENOMEM;
    uint32_t legal = tree_legal_entries(walk, tree, l1_idx);
    if (table->tree == TREE_NONE) {
        table->tree = tree_idx;
        table->l1_idx = l1_idx;
        table->legal = UINT32_MAX;
    }
    if (legal < table->legal) {
        table->legal = legal;
        table->legal_tree = tree_idx;
    }
    table->refs += tree->same_l1;
    if (table->l1_idx != l1_idx) {
        table->elsewhere = walk->judge_l1 = true;
        walk->l1_broken++;
    }
    if (tree_idx != TREE_ACTIVE && table->snapshot == 0 && table->l1_idx == l1_idx)
        table->snapshot = tree_idx;
    if (tree_idx == TREE_ACTIVE) {
        table->active_refs++;
        *(raw & QCOW2_ENTRY_COPIED ? &table->copied_set : &table->copied_clear) = true;
    }
    if (l1_idx >= l1_entries_for(geo, tree->disk_size))
        walk->judge_l1 = true;
    else if (l1_idx == table->l1_idx)
        table->below_end = true;
    return 0;
}

struct l1_visit {
    int tree_idx;
    l1_visitor *visit;
    uint64_t zeros_end; /* zero entries are visited below this one */
};

/* Entries first .. first + count - 1; `bytes` is NULL for zeros. */
static int visit_entries(struct walk *walk, const struct l1_visit *visit, uint64_t first,
    uint64_t count, const uint8_t *bytes)
{
    int ret = 0;
    if (!bytes && first + count > visit->zeros_end)
        count = first < visit->zeros_end ? visit->zeros_end - first : 0;
    for (uint64_t i = 0; ret == 0 && i < count; i++) {
        uint64_t raw = bytes ? load_be64(bytes + i * 8) : 0;
        if (raw || first + i < visit->zeros_end)
            ret = visit->visit(walk, visit->tree_idx, (uint32_t)(first + i), raw);
    }
    return ret;
}

/* How much of a table is read at once: where holes are known, not far beyond the next one. */
static uint64_t piece_of_l1(const struct walk *walk, uint64_t host_off, uint64_t left)
{
    enum { LEAST = 64 << 10 };
    const struct extent *extent = &walk->extent;
    uint64_t n = left < WALK_BUF_BYTES ? left : WALK_BUF_BYTES;
    uint64_t data = host_off < extent->data_end ? (extent->data_end - host_off) / 8 * 8 : n;
    if (host_off < extent->data_off || data >= n)
        return n;
    return data > LEAST ? data : n < LEAST ? n : LEAST;
}

int walk_visit_l1(struct walk *walk, int tree_idx, l1_visitor *visitor, bool zeros, bool *complete)
{
    const struct tree *tree = &walk->trees[tree_idx];
    struct l1_visit visit = {tree_idx, visitor, 0};
    uint64_t bytes = (uint64_t)tree->l1_size * 8;
    bool in_pieces = false; /* between holes */
    int ret = 0;
    if (zeros)
        visit.zeros_end = l1_entries_for(&walk->geo, tree->disk_size);
    for (uint64_t done = 0, n; ret == 0 && done < bytes; done += n) {
        uint64_t host_off = tree->l1_off + done;
        n = (in_pieces ? walk_hole(walk, host_off) : walk_known_hole(walk, host_off)) / 8 * 8;
        n = n < bytes - done ? n : bytes - done;
        if (n > 0) {
            ret = visit_entries(walk, &visit, done / 8, n / 8, NULL);
            continue;
        }
        n = piece_of_l1(walk, host_off, bytes - done);
        in_pieces = n < bytes - done && n < WALK_BUF_BYTES;
        if (complete)
            walk_read(walk, host_off, walk->buf, (size_t)n, complete);
        else
            walk_read_again(walk, host_off, walk->buf, (size_t)n);
        if (walk_bytes_zero(walk->buf, (size_t)n))
            walk_hole(walk, host_off); /* there may be more of it */
        ret = visit_entries(walk, &visit, done / 8, n / 8, walk->buf);
        if (ret == 0)
            ret = walk_pause(walk, n);
    }
    return ret;
}

struct l1_use {
    uint64_t off;
    uint32_t size;
    size_t tree;
};

static int compare_l1_uses(const void *a, const void *b)
{
    const struct l1_use *x = a, *y = b;
    if (x->off != y->off)
        return x->off > y->off ? 1 : -1;
    if (x->size != y->size)
        return x->size > y->size ? 1 : -1;
    return (x->tree > y->tree) - (x->tree < y->tree);
}

/* Disks that share one L1 table (which is wrong, but cheap to make) are read once. */
static int find_same_l1(struct walk *walk)
{
    struct l1_use *uses = calloc(walk->tree_count, sizeof(*uses));
    if (!uses)
        return -ENOMEM;
    size_t count = 0;
    for (size_t i = 0; i < walk->tree_count; i++) {
        if (walk->trees[i].usable)
            uses[count++] = (struct l1_use){walk->trees[i].l1_off, walk->trees[i].l1_size, i};
    }
    qsort(uses, count, sizeof(*uses), compare_l1_uses);
    for (size_t i = 0, first = 0; i < count; i++) {
        if (uses[i].off != uses[first].off || uses[i].size != uses[first].size)
            first = i;
        walk->trees[uses[first].tree].same_l1++;
    }
    free(uses);
    return 0;
}

static int claim_l1(struct walk *walk, size_t tree_idx)
{
    struct tree *tree = &walk->trees[tree_idx];
    struct area area = {.kind = tree_idx ? AREA_SNAPSHOT_L1_TABLE : AREA_L1_TABLE,
        .host_off = tree->l1_off,
        .length = (uint64_t)tree->l1_size * 8,
        .index = tree_idx,
        .tree = (int)tree_idx};
    bool conflict;
    int ret = walk_claim_area(walk, &area, &conflict);
    /* A snapshot's table on top of other metadata is not interpreted: that bounds what is read. (Of
     * several disks with the very same table it is the first one that is.) */
    if (conflict && tree->same_l1 > 0 && tree_idx != TREE_ACTIVE) {
        tree->usable = false;
        walk->refs_incomplete = true;
        report_problem(walk->report,
            "the L1 table of a snapshot, at 0x%llx, lies on other metadata and was not interpreted",
            (unsigned long long)tree->l1_off);
    }
    return ret;
}

static int claim_table(struct walk *walk, struct table *table)
{
    const struct qcow2_geometry *geo = &walk->geo;
    uint64_t cluster = cluster_of(geo, table->host_off);
    bool conflict = false, exact = census_claim_exact(walk->census, cluster, table->refs);
    /* An exact match means that the stored count is table->refs. */
    bool copied_wrong = table->refs == 1 ? table->copied_clear : table->copied_set;
    int ret = 0;
    if (!exact)
        ret = walk_claim(
            walk, table->host_off, geo->cluster_size, table->refs, CLAIM_ALONE, &conflict);
    if (ret == 0 && (!exact || copied_wrong)) {
        walk->judge_l1 = true;
        ret = census_mark_odd(walk->census, cluster);
    }
    if (conflict) {
        struct subject subject = {
            .kind = OBJECT_L1_ENTRY,
            .l1 = {.raw = table->host_off, .facts.area = walk_area_at(walk, cluster, NULL)},
        };
        table->skip = walk_after(walk, &subject) >= AFTER_SKIP;
        walk->l1_broken++;
    }
    return ret;
}

int walk_l1_tables(struct walk *walk)
{
    int ret = find_same_l1(walk);
    for (size_t i = 0; ret == 0 && i < walk->tree_count; i++) {
        if (walk->trees[i].usable)
            ret = claim_l1(walk, i);
    }
    walk_sort_areas(walk);
    for (size_t i = 0; ret == 0 && i < walk->tree_count; i++) {
        bool complete = true;
        if (walk->trees[i].usable && walk->trees[i].same_l1 > 0)
            ret = walk_visit_l1(walk, (int)i, add_table, false, &complete);
        if (!complete)
            walk->refs_incomplete = true;
    }
    for (size_t i = 0; ret == 0 && i < walk->tables.count; i++)
        ret = claim_table(walk, &walk->tables.items[i]);
    if (ret < 0 || walk->tables.count == 0)
        return ret;
    walk->bytes_total = (uint64_t)walk->tables.count * walk->geo.cluster_size;
    return tables_sort(&walk->tables);
}

/* ---- holes ---- */

/* Orphaned tables that no damaged entry of an L1 table, and no L1 table that is too short, has
 * lost: an entry that is empty now must have. */
static uint64_t unexplained_orphans(const struct walk *walk)
{
    const struct tree *active = &walk->trees[TREE_ACTIVE];
    uint64_t needed = l1_entries_for(&walk->geo, active->disk_size), explained = walk->l1_broken;
    if (active->l1_size < needed)
        explained += needed - active->l1_size;
    return walk->orphan_tables > explained ? walk->orphan_tables - explained : 0;
}

/* Empty L1 entries are suspicious beside orphaned tables, but a sparse disk is full of them: then
 * nobody can tell which one it was. */
enum { HOLES_PER_ORPHAN = 4 };

static int count_hole(struct walk *walk, int tree_idx, uint32_t l1_idx, uint64_t raw)
{
    (void)tree_idx, (void)l1_idx;
    walk->l1_holes += raw == 0;
    return walk->l1_holes > unexplained_orphans(walk) * HOLES_PER_ORPHAN;
}

static int holes_tell_something(struct walk *walk, bool *tell)
{
    uint64_t orphans = unexplained_orphans(walk);
    int ret = 0;
    for (size_t i = 0; orphans > 0 && ret == 0 && i < walk->tree_count; i++) {
        if (walk->trees[i].usable && walk->trees[i].same_l1 > 0)
            ret = walk_visit_l1(walk, (int)i, count_hole, true, NULL);
    }
    *tell = walk->l1_holes <= orphans * HOLES_PER_ORPHAN && walk->l1_holes > 0;
    return ret < 0 ? ret : 0;
}

/* ---- second look ---- */

/* VM state that was loaded back lies behind the active disk's end, too.  It then hangs on a
 * snapshot's table as well, or starts as QEMU's machine state does. */
static bool find_vm_state(const struct walk *walk)
{
    const struct qcow2_geometry *geo = &walk->geo;
    static const uint8_t magic[4] = {'Q', 'E', 'V', 'M'};
    uint64_t first = l1_entries_for(geo, walk->trees[TREE_ACTIVE].disk_size);
    uint8_t bytes[16], start[sizeof(magic)];
    if (walk->header.crypt_method != QCOW2_CRYPT_NONE)
        return true; /* cannot be told */
    if (io_read_padded(walk->io, walk->header.l1_off + first * 8, bytes, 8) < 0)
        return false;
    uint64_t l2_off = load_be64(bytes) & QCOW2_OFFSET_MASK;
    struct qcow2_l2_entry entry;
    if (l2_off == 0 || io_read_padded(walk->io, l2_off, bytes, sizeof(bytes)) < 0)
        return false;
    qcow2_l2_decode(geo, bytes, &entry);
    return entry.kind == QCOW2_L2_NORMAL &&
           io_read_padded(walk->io, entry.host_off, start, sizeof(start)) == 0 &&
           memcmp(start, magic, sizeof(magic)) == 0;
}

/* Millions of entries ask. */
static bool vm_state_is_there(struct walk *walk)
{
    if (!walk->vm_state_asked)
        walk->vm_state_there = find_vm_state(walk);
    walk->vm_state_asked = true;
    return walk->vm_state_there;
}

static bool active_past_end(struct walk *walk, uint32_t l1_idx, const struct table *table)
{
    if (l1_idx < l1_entries_for(&walk->geo, walk->trees[TREE_ACTIVE].disk_size))
        return false;
    if (table && table->refs > table->active_refs)
        return false;
    return !vm_state_is_there(walk);
}

/* What lies behind a snapshot's end is VM state, unless another disk has it for its data, or there
 * is no disk at all. */
static bool snapshot_past_end(
    const struct walk *walk, int tree_idx, uint32_t l1_idx, const struct table *table)
{
    const struct tree *tree = &walk->trees[tree_idx];
    if (!tree->disk_size_known || tree->vm_state_size > 0 ||
        l1_idx < l1_entries_for(&walk->geo, tree->disk_size))
        return false;
    return tree->disk_size == 0 || (table && table->below_end && table->l1_idx == l1_idx);
}

static int judge_l1_entry(struct walk *walk, int tree_idx, uint32_t l1_idx, uint64_t raw)
{
    const struct qcow2_geometry *geo = &walk->geo;
    const struct tree *tree = &walk->trees[tree_idx];
    uint64_t needed = l1_entries_for(geo, tree->disk_size), off = raw & QCOW2_OFFSET_MASK;
    uint64_t guest_off = (uint64_t)l1_idx * geo->l2_span;
    const struct table *table = table_find(&walk->tables, off);
    struct subject subject = {
        .kind = OBJECT_L1_ENTRY,
        .tree = tree_idx,
        .has_host = true,
        .host_off = off ? off : tree->l1_off + l1_idx * UINT64_C(8),
        .length = off ? geo->cluster_size : 8,
        .has_table = true,
        .table_off = tree->l1_off,
        .index = l1_idx,
        .guest_off = guest_off,
        .guest_len = l1_idx < needed && tree->disk_size - guest_off < geo->l2_span
                         ? tree->disk_size - guest_off
                         : geo->l2_span,
        .weight = tree->same_l1,
        .l1 = {.raw = raw,
            .active = tree_idx == TREE_ACTIVE,
            .elsewhere = table && table->elsewhere,
            .hole_by_orphan = raw == 0 && l1_idx < needed,
            .holes = walk->l1_holes,
            .orphans = unexplained_orphans(walk)},
        .risk_counted = raw == 0,
    };
    if (off != 0)
        subject.l1.facts = walk_facts(walk, cluster_of(geo, off));
    if (off != 0 && tree_idx == TREE_ACTIVE)
        subject.l1.past_end = active_past_end(walk, l1_idx, table);
    else if (off != 0)
        subject.l1.past_end = snapshot_past_end(walk, tree_idx, l1_idx, table);
    if (off != 0)
        walk_note_owner(walk, cluster_of(geo, off), &subject);
    walk_show(walk, &subject);
    return 0;
}

int walk_judge_l1(struct walk *walk)
{
    bool holes;
    int ret = holes_tell_something(walk, &holes);
    if (ret < 0)
        return ret;
    if (!walk->judge_l1 && !holes && !census_has_conflicts(walk->census) &&
        !walk->options->no_fast_paths)
        return 0;
    for (size_t i = 0; ret == 0 && i < walk->tree_count; i++) {
        if (walk->trees[i].usable && walk->trees[i].same_l1 > 0)
            ret = walk_visit_l1(walk, (int)i, judge_l1_entry, holes, NULL);
    }
    return ret;
}
