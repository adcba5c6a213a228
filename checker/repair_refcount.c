/* SPDX-License-Identifier: MIT
 *
 * Refcounts: raised where too low, lowered where nothing lost can explain that they are too high,
 * or, when the structure itself is damaged, made anew in fresh space and switched to by one write
 * of the header. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "repair.h"

/* Of the first clusters whose count is too low most are counted as free. */
static bool counted_as_free(struct walk *walk)
{
    enum { SAMPLE = 64 };
    uint64_t cluster = 0, stored;
    unsigned seen = 0, free = 0;
    int64_t balance;
    for (; seen < SAMPLE && census_next_wrong(walk->census, cluster, &cluster, &balance);
         cluster++) {
        if (balance >= 0 || cluster >= walk->cluster_end)
            continue;
        seen++;
        free += walk_stored(walk, cluster, &stored) && stored == 0;
    }
    return free * 2 > seen;
}

/* What is stored tells nothing: most of a block that something else uses, too, is wrong; or of most
 * clusters in use it says that they are free, as it may only where counts were to be made later. */
bool repair_counts_nothing(const struct repair *repair)
{
    const uint64_t *hits = repair->report.hits;
    struct walk *walk = repair->walk;
    if (!walk || !walk->judgeable || walk->without_counts)
        return false;
    uint64_t low = hits[CHECK_refcount_too_low], wrong = hits[CHECK_refcount_too_high] + low;
    uint64_t in_use =
        capped_sum(walk->area_clusters, walk->tables.count + repair->report.allocated_clusters);
    bool later = walk->header.incompatible & QCOW2_INCOMPAT_DIRTY;
    return (hits[CHECK_refblock_shared] > 0 && wrong * 2 > walk->cluster_end) ||
           (!later && low * 2 > in_use && counted_as_free(walk));
}

/* More references than a count of this width can say: it is as high as it gets. */
static bool at_limit(const struct repair *repair, uint64_t cluster)
{
    uint64_t stored;
    return walk_stored(repair->walk, cluster, &stored) && stored == repair->walk->geo.refcount_max;
}

/* Plans a rewrite of every block in which a count is wrong in that direction. */
static int plan_blocks(struct repair *repair, bool lower)
{
    const struct walk *walk = repair->walk;
    uint64_t cluster = 0;
    int ret = 0;
    while (ret == 0 && census_next_mismatch(walk->census, cluster, &cluster)) {
        uint64_t table_idx = cluster >> walk->geo.refblock_bits;
        bool wrong = (census_get(walk->census, cluster).balance > 0) == lower;
        if (wrong && !lower && at_limit(repair, cluster))
            wrong = false;
        if (!wrong || cluster >= walk->cluster_end || !census_known(walk->census, cluster)) {
            cluster++;
            continue;
        }
        uint64_t block = walk_block_off(walk, table_idx);
        if (block != 0 && plan_writable(&repair->plan, block))
            ret = plan_refblock(&repair->plan, lower ? PHASE_RELEASE : PHASE_NEW,
                lower ? CHECK_cluster_leaked : CHECK_refcount_too_low, table_idx, lower);
        cluster = (table_idx + 1) << walk->geo.refblock_bits;
    }
    return ret;
}

/* With counts above one, a stale COPIED flag lets a write change what others see. */
static int clear_copied(struct repair *repair)
{
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (f->check != CHECK_l1_copied_set && f->check != CHECK_l2_copied_set)
            continue;
        uint64_t cluster = cluster_of(&repair->walk->geo, f->host_off);
        if (walk_facts(repair->walk, cluster).refs > 1)
            ret =
                plan_be64(&repair->plan, PHASE_NEW, f->check, repair_entry_off(repair, f), f->want);
    }
    return ret;
}

int repair_raise(struct repair *repair)
{
    int ret = plan_blocks(repair, false);
    if (ret == 0 && repair->plan.count > 0)
        ret = clear_copied(repair);
    return ret;
}

/* What nobody could put back is given up with its data. */
static int tell_orphans(struct repair *repair)
{
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (f->check == CHECK_orphan_l2_table)
            ret = plan_remark(&repair->plan,
                "lost: what hangs on the orphaned L2 table at 0x%llx: where it belongs is not "
                "known",
                (unsigned long long)f->host_off);
    }
    return ret;
}

/* A leaked data cluster that would fit an empty L2 entry is freed, too: an interrupted discard
 * leaves just that, and a repair of what an interrupted call left must end clean.  Where a whole
 * table is empty, and as much leaks as no call leaves, that is a choice. */
int repair_lower(struct repair *repair)
{
    const struct walk *walk = repair->walk;
    if (!walk->judgeable || walk->refs_incomplete || repair->report.incomplete)
        return 0; /* what was not read may use it */
    if (repair->lost_references && !repair->lossy)
        return 0; /* it may be what somebody is looking for */
    if (repair->options->leaks_only && repair->report.corruptions > 0)
        return 0;
    if (repair_has(repair, CHECK_l2_data_file_offset) ||
        repair_has(repair, CHECK_l2_compressed_data_file))
        return 0; /* what seems to leak may be the data, and the data file's bit wrong */
    int ret = repair_l2_width(repair);
    if (ret < 0 || (repair->other_width && !repair->lossy))
        return ret;
    uint64_t emptied = repair_emptied_table(repair);
    if (emptied != 0)
        ret = plan_remark(&repair->plan,
            "%s: what leaks may be what the L2 table at 0x%llx, which is empty, has lost",
            repair->lossy ? "lost" : "left", (unsigned long long)emptied);
    if (ret < 0 || (emptied != 0 && !repair->lossy))
        return ret;
    ret = plan_blocks(repair, true);
    repair->lowered |= repair->plan.count > 0;
    return ret == 0 && repair->plan.count > 0 ? tell_orphans(repair) : ret;
}

/* ---- a new structure ---- */

static bool structure_broken(const struct repair *repair)
{
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        switch (f->check) {
        case CHECK_reftable_reserved_bits:
        case CHECK_header_reftable_missing:
        case CHECK_header_reftable_too_large:
        case CHECK_header_reftable_unaligned:
        case CHECK_header_reftable_outside:
        case CHECK_reftable_entry_unaligned:
        case CHECK_reftable_entry_outside:
        case CHECK_refblock_shared:
            return true;
        default:
            break;
        }
    }
    /* With narrow counts an overlap shows only as such. */
    for (size_t i = 0; i < repair->walk->areas.count; i++) {
        const struct area *area = &repair->walk->areas.items[i];
        if ((area->kind == AREA_REFCOUNT_TABLE || area->kind == AREA_REFCOUNT_BLOCK) &&
            walk_area_conflict(repair->walk, area))
            return true;
    }
    return false;
}

/* A cluster in use whose count has no block to stand in. */
static bool block_missing(const struct repair *repair)
{
    const struct walk *walk = repair->walk;
    uint64_t cluster = 0;
    while (census_next_mismatch(walk->census, cluster, &cluster)) {
        uint64_t table_idx = cluster >> walk->geo.refblock_bits;
        if (cluster < walk->cluster_end && census_get(walk->census, cluster).balance < 0 &&
            walk_block_off(walk, table_idx) == 0)
            return true;
        cluster = (table_idx + 1) << walk->geo.refblock_bits;
    }
    return false;
}

enum { MOST_BLOCKS = QCOW2_MAX_REFTABLE_BYTES / 8 };

struct layout {
    uint64_t first; /* cluster: the table, then the blocks */
    uint64_t table_clusters, block_count;
    uint64_t end; /* clusters that may have counts */
    bool *wanted; /* by table index: something there is counted; MOST_BLOCKS of them */
};

static bool range_unused(const struct walk *walk, uint64_t first, uint64_t count)
{
    for (uint64_t c = first; c < first + count; c++) {
        struct census_cell cell = census_get(walk->census, c);
        /* Where a block is missing nobody says that the cluster is free. */
        if (cell.claimed || cell.balance != 0 || !census_known(walk->census, c) ||
            walk_block_off(walk, c >> walk->geo.refblock_bits) == 0)
            return false;
    }
    return true;
}

/* Clusters first to end - 1 have counts. */
static void want_blocks(
    const struct walk *walk, struct layout *layout, uint64_t first, uint64_t end)
{
    uint64_t last = (end - 1) >> walk->geo.refblock_bits;
    for (uint64_t i = first >> walk->geo.refblock_bits; end > first && i <= last; i++) {
        if (i < MOST_BLOCKS)
            layout->wanted[i] = true;
    }
}

/* A block is wanted where there was one, where something is referred to, and where the file holds
 * anything, which may be what was lost.  Most of a sparse file is neither. */
static void want_used(struct walk *walk, struct layout *layout)
{
    const unsigned bits = walk->geo.refblock_bits;
    for (uint64_t i = 0; i <= walk->cluster_end >> bits && i < MOST_BLOCKS; i++) {
        if (walk_block_off(walk, i) != 0)
            want_blocks(walk, layout, i << bits, (i + 1) << bits);
    }
    for (uint64_t c = 0; census_next_mismatch(walk->census, c, &c) && c < walk->cluster_end;
         c = ((c >> bits) + 1) << bits)
        want_blocks(walk, layout, c, c + 1);
    for (uint64_t c = 0, hole; c < walk->cluster_end;) {
        hole = walk_hole(walk, c << walk->geo.cluster_bits) >> walk->geo.cluster_bits;
        if (hole == 0)
            want_blocks(walk, layout, c, c + 1);
        c = hole > 0 ? c + hole : ((c >> bits) + 1) << bits;
    }
}

static void size_up(const struct walk *walk, struct layout *layout)
{
    const struct qcow2_geometry *geo = &walk->geo;
    uint64_t entries = div_up(layout->end, geo->refblock_entries);
    layout->block_count = 0;
    for (uint64_t i = 0; i < entries && i < MOST_BLOCKS; i++)
        layout->block_count += layout->wanted[i];
    layout->table_clusters = clusters_for(geo, entries * 8);
}

static bool too_large(const struct walk *walk, const struct layout *layout)
{
    return layout->table_clusters > (uint64_t)QCOW2_MAX_REFTABLE_BYTES >> walk->geo.cluster_bits;
}

/* The first cluster from `end` on behind all that those L2 tables name which were not followed:
 * what was written as zeros, or never, may be guest data all the same. */
static uint64_t unnamed_end(const struct repair *repair, uint64_t end)
{
    enum { MOST_TABLES = 64, BEYOND = 4096 };
    const struct walk *walk = repair->walk;
    const struct qcow2_geometry *geo = &walk->geo;
    uint8_t *bytes = repair_memory(repair, malloc(geo->cluster_size));
    for (size_t i = 0, seen = 0; bytes && i < walk->tables.count && seen < MOST_TABLES; i++) {
        const struct table *table = &walk->tables.items[i];
        bool shared = census_get(walk->census, cluster_of(geo, table->host_off)).conflict;
        if (!(table->skip || shared) ||
            io_read_padded(walk->io, table->host_off, bytes, geo->cluster_size) < 0)
            continue;
        seen++;
        for (uint32_t idx = 0; idx < geo->l2_entries; idx++) {
            struct qcow2_l2_entry e;
            qcow2_l2_decode(geo, bytes + (size_t)idx * geo->l2_entry_size, &e);
            uint64_t cluster = cluster_of(geo, e.host_off);
            if (e.kind == QCOW2_L2_NORMAL && cluster >= end && cluster < walk->cluster_end + BEYOND)
                end = cluster + 1;
        }
    }
    free(bytes);
    return end;
}

/* Clusters behind all that is used or counted, where the file has nothing but zeros: no counts are
 * needed to tell that nothing was lost there.  False if there are none soon. */
static bool find_zeros(const struct repair *repair, uint64_t need, uint64_t *first)
{
    struct walk *walk = repair->walk;
    enum { MOST_READ = 256 };
    uint64_t end = walk->cluster_end, run = 0;
    unsigned read = 0;
    for (uint64_t c = unnamed_end(repair, census_end(walk->census, end));
         c < end && read < MOST_READ; c++) {
        uint64_t host_off = c << walk->geo.cluster_bits;
        bool zeros = walk_hole(walk, host_off) >= walk->geo.cluster_size;
        if (!zeros) {
            zeros = io_read_padded(walk->io, host_off, walk->buf, walk->geo.cluster_size) == 0 &&
                    walk_bytes_zero(walk->buf, walk->geo.cluster_size);
            read++;
        }
        run = zeros ? run + 1 : 0;
        *first = c + 1 - run;
        if (run == need)
            return true;
    }
    return false;
}

/* In the file if there is room for it, else behind its end; there it must count itself.  Where it
 * would be too large no room is looked for. */
static void find_room(const struct repair *repair, uint64_t spare, struct layout *layout)
{
    struct walk *walk = repair->walk;
    layout->end = walk->cluster_end + spare;
    want_used(walk, layout);
    want_blocks(walk, layout, walk->cluster_end, layout->end);
    size_up(walk, layout);
    if (too_large(walk, layout))
        return;
    uint64_t need = layout->table_clusters + layout->block_count;
    /* What was lost, or not read, may be where nothing seems to be. */
    bool all_seen = !repair->lost_references && !walk->refs_incomplete && !repair->void_counts;
    for (uint64_t c = 1; all_seen && c + need <= walk->cluster_end; c++) {
        if (walk_block_off(walk, c >> walk->geo.refblock_bits) == 0) {
            c |= walk->geo.refblock_entries - 1; /* nothing there is known to be free */
            continue;
        }
        if (range_unused(walk, c, need)) {
            layout->first = c;
            return;
        }
        while (c + need <= walk->cluster_end && range_unused(walk, c, 1))
            c++;
    }
    if (repair->void_counts && find_zeros(repair, need, &layout->first))
        return;
    layout->first = unnamed_end(repair, walk->cluster_end);
    for (uint64_t before = 0; before != layout->end;) {
        before = layout->end;
        layout->end = layout->first + layout->table_clusters + layout->block_count + spare;
        want_blocks(walk, layout, layout->first, layout->end);
        size_up(walk, layout);
    }
}

static int plan_structure(struct repair *repair, const struct layout *layout)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    struct plan *plan = &repair->plan;
    uint64_t table_len = layout->table_clusters << geo->cluster_bits;
    uint64_t block = layout->first + layout->table_clusters;
    uint8_t *table = calloc(1, (size_t)table_len), header[12];
    if (!table)
        return -ENOMEM;
    for (uint64_t i = 0, at = block; i < table_len / 8; i++) {
        if (layout->wanted[i])
            store_be64(table + i * 8, at++ << geo->cluster_bits);
    }
    int ret = plan_data(plan, PHASE_NEW, CHECK_header_reftable_missing,
        layout->first << geo->cluster_bits, table, table_len);
    for (uint64_t i = 0; ret == 0 && i < table_len / 8; i++) {
        if (!layout->wanted[i])
            continue;
        ret = plan_refblock(plan, PHASE_NEW, CHECK_header_reftable_missing, i, false);
        if (ret == 0)
            plan->edits[plan->count - 1].host_off = block++ << geo->cluster_bits;
    }
    store_be64(header, layout->first << geo->cluster_bits);
    store_be32(header + 8, (uint32_t)layout->table_clusters);
    if (ret == 0)
        ret = plan_bytes(plan, PHASE_SWITCH, CHECK_header_reftable_missing, QCOW2_HDR_REFTABLE_OFF,
            header, sizeof(header));
    return ret;
}

static int plan_layout(struct repair *repair, const struct layout *layout)
{
    struct walk *walk = repair->walk;
    if (too_large(walk, layout))
        return plan_remark(
            &repair->plan, "the refcount table would become larger than 8 MiB: not made anew");
    if (repair->plan.alloc_end >> walk->geo.cluster_bits < layout->end)
        return 0;
    repair->plan.rebuild = true;
    repair->plan.void_counts = repair->void_counts;
    repair->counts_made |= repair->void_counts;
    repair->plan.needs_mark = true;
    repair->plan.run_first = layout->first;
    repair->plan.run_count = layout->table_clusters + layout->block_count;
    return plan_structure(repair, layout);
}

static int plan_rebuild(struct repair *repair, uint64_t spare)
{
    struct layout layout = {.wanted = calloc(MOST_BLOCKS, sizeof(bool))};
    if (!layout.wanted)
        return -ENOMEM;
    find_room(repair, spare, &layout);
    int ret = plan_layout(repair, &layout);
    free(layout.wanted);
    return ret;
}

static bool may_rebuild(const struct repair *repair)
{
    return repair->walk->judgeable && !repair->walk->unreadable;
}

int repair_rebuild(struct repair *repair)
{
    bool needed = repair->void_counts || structure_broken(repair) || block_missing(repair);
    return needed && may_rebuild(repair) ? plan_rebuild(repair, 0) : 0;
}

int repair_make_room(struct repair *repair)
{
    const uint64_t *hits = repair->report.hits;
    /* Copies to come find their counts there. */
    uint64_t copies = hits[CHECK_l1_entry_shared] + hits[CHECK_l2_entry_shared] +
                      hits[CHECK_l2_entry_into_metadata];
    const struct area_list *areas = &repair->walk->areas;
    for (size_t i = 0; i < areas->count; i++) { /* tables that may have to be written anew */
        enum area_kind kind = areas->items[i].kind;
        if (kind == AREA_SNAPSHOT_TABLE || kind == AREA_BITMAP_DIRECTORY)
            copies += clusters_for(&repair->walk->geo, areas->items[i].length);
    }
    uint64_t span = repair->walk->geo.refblock_entries;
    return may_rebuild(repair) ? plan_rebuild(repair, copies > span ? copies : span) : 0;
}
