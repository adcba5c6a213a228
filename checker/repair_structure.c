/* SPDX-License-Identifier: MIT
 *
 * A lost refcount table or block is worth finding: its counts tell what the image looked like
 * before the damage, and so what is missing.  Only if it cannot be found are counts made anew. */
#include <errno.h>
#include <stdlib.h>

#include "repair.h"

/* MAX_COMPARED: counts that one repair looks at to find blocks, each of which may hold 2^24. */
enum { MAX_CANDIDATES = 24, MAX_SCANNED = 16384, MAX_MISSING = 16, MAX_COMPARED = 1 << 26 };

/* The first cluster from `c` on that nobody claims and that holds something, or the end. */
static uint64_t next_candidate(struct walk *walk, uint64_t c)
{
    for (uint64_t skip; c < walk->cluster_end; c += skip) {
        skip = census_right_run(walk->census, c, walk->cluster_end - c);
        if (skip == 0 && census_get(walk->census, c).claimed)
            skip = 1;
        if (skip == 0)
            skip = walk_hole(walk, c << walk->geo.cluster_bits) >> walk->geo.cluster_bits;
        if (skip == 0)
            return c;
        skip = skip < walk->cluster_end - c ? skip : walk->cluster_end - c;
    }
    return c;
}

/* A count that is higher than the references may be right, where some were lost; but not by much.
 */
static bool count_is_sane(uint64_t stored, uint64_t refs)
{
    enum { MOST_LOST = 64 };
    return stored >= refs && stored - refs <= MOST_LOST;
}

/* How the counts in a block, or in its beginning, agree with the references found. */
struct fit {
    uint64_t misfit, insane, used;
};

/* Under a missing block the census holds references only. */
static uint64_t references(const struct walk *walk, uint64_t cluster)
{
    int64_t balance = census_get(walk->census, cluster).balance;
    return cluster < walk->cluster_end && balance < 0 ? (uint64_t)-balance : 0;
}

/* Compares the first `entries` counts in walk->buf; false when they cannot be those of the block.
 */
static bool compare_counts(
    const struct walk *walk, uint64_t table_idx, uint64_t off, uint64_t entries, struct fit *fit)
{
    uint64_t first = table_idx << walk->geo.refblock_bits;
    *fit = (struct fit){0};
    for (uint64_t i = 0; i < entries; i++) {
        uint64_t stored = qcow2_refcount_get(walk->buf, walk->geo.refcount_order, i);
        uint64_t refs = references(walk, first + i) + (first + i == cluster_of(&walk->geo, off));
        bool inside = first + i < walk->cluster_end;
        fit->misfit += stored != refs;
        fit->insane += inside ? !count_is_sane(stored, refs) : stored > 0;
        fit->used += refs > 0;
        if (fit->insane > 64 && fit->insane > fit->used) /* and there is no end to it */
            return false;
    }
    return true;
}

/* Blocks that entries get back. */
struct found_blocks {
    uint64_t offs[2 * MAX_MISSING];
    size_t count;
};

/* Another entry has it, or gets it. */
static bool is_taken(const struct walk *walk, const struct found_blocks *found, uint64_t off)
{
    for (size_t i = 0; i < found->count; i++) {
        if (found->offs[i] == off)
            return true;
    }
    return walk_area_at(walk, cluster_of(&walk->geo, off), NULL) == AREA_REFCOUNT_BLOCK;
}

/* Counts of block `table_idx`, if it lay at `off`, that differ from the references; UINT64_MAX if
 * it cannot be that block, for which mostly a look at its first sector is enough. */
static uint64_t block_misfit(
    struct repair *repair, const struct found_blocks *found, uint64_t table_idx, uint64_t off)
{
    struct walk *walk = repair->walk;
    const struct qcow2_geometry *geo = &walk->geo;
    uint64_t entries = UINT64_C(8) * QCOW2_SECTOR_BYTES >> geo->refcount_order;
    struct fit fit;
    repair->compared += entries;
    if (off == 0 || !cluster_aligned(geo, off) || off >= walk->file_size ||
        is_taken(walk, found, off) ||
        io_read_padded(walk->io, off, walk->buf, QCOW2_SECTOR_BYTES) < 0 ||
        !compare_counts(walk, table_idx, off, entries, &fit) ||
        (fit.insane > 8 && fit.insane > fit.used / 2))
        return UINT64_MAX;
    repair->compared += geo->refblock_entries;
    if (io_read_padded(walk->io, off, walk->buf, geo->cluster_size) < 0 ||
        !compare_counts(walk, table_idx, off, geo->refblock_entries, &fit))
        return UINT64_MAX;
    return fit.used > 0 && fit.insane * 2 <= fit.used ? fit.misfit : UINT64_MAX;
}

/* Looks at every cluster that nobody claims, nearest bits of the old value first. */
static uint64_t find_block(
    struct repair *repair, const struct found_blocks *found, uint64_t table_idx, uint64_t raw)
{
    struct walk *walk = repair->walk;
    uint64_t best = 0, best_misfit = UINT64_MAX, scanned = 0;
    for (unsigned bit = walk->geo.cluster_bits; bit < 56; bit++) {
        uint64_t off = (raw & QCOW2_REFTABLE_MASK) ^ UINT64_C(1) << bit;
        uint64_t misfit = block_misfit(repair, found, table_idx, off);
        if (misfit < best_misfit) {
            best = off;
            best_misfit = misfit;
        }
    }
    for (uint64_t c = next_candidate(walk, 1);
         best == 0 && c < walk->cluster_end && scanned < MAX_SCANNED &&
         repair->compared < MAX_COMPARED;
         c = next_candidate(walk, c + 1)) {
        scanned++;
        uint64_t off = c << walk->geo.cluster_bits;
        uint64_t misfit = block_misfit(repair, found, table_idx, off);
        if (misfit < best_misfit) {
            best = off;
            best_misfit = misfit;
        }
    }
    return best;
}

static int put_block_back(
    struct repair *repair, struct found_blocks *found, enum check_id why, uint64_t table_idx)
{
    const struct walk *walk = repair->walk;
    uint64_t raw = table_idx < walk->reftable_len ? walk->reftable[table_idx] : 0;
    uint64_t entry_off = walk->header.reftable_off + table_idx * 8;
    if (walk->header.reftable_off == 0 || !cluster_aligned(&walk->geo, walk->header.reftable_off) ||
        check_outside(&walk->view, walk->header.reftable_off, (table_idx + 1) * 8))
        return 0; /* there is no table to put it into */
    if (found->count == sizeof(found->offs) / sizeof(found->offs[0]))
        return 0;
    uint64_t off = find_block(repair, found, table_idx, raw);
    if (off == 0)
        return 0;
    found->offs[found->count++] = off;
    return plan_be64(&repair->plan, PHASE_SWITCH, why, entry_off, off);
}

bool repair_is_no_reftable(const struct repair *repair)
{
    enum { SEVERAL = 2 };
    const struct walk *walk = repair->walk;
    const uint64_t *hits = repair->report.hits;
    uint64_t used = 0, wrong = hits[CHECK_refblock_shared];
    for (uint64_t i = 0; i < walk->reftable_len; i++) {
        uint64_t entry = walk->reftable[i], off = entry & QCOW2_REFTABLE_MASK;
        used += entry != 0;
        wrong +=
            (off == 0 && entry != 0) || !cluster_aligned(&walk->geo, off) || off >= walk->file_size;
    }
    return wrong >= SEVERAL && wrong * 2 >= used;
}

static int find_blocks(struct repair *repair)
{
    const struct walk *walk = repair->walk;
    struct found_blocks found = {.count = 0};
    if (repair->no_reftable)
        return 0;
    uint64_t entries = ((uint64_t)walk->header.reftable_clusters << walk->geo.cluster_bits) / 8;
    int ret = 0;
    for (size_t i = 0; i < repair->findings.count && found.count < MAX_MISSING; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (f->check == CHECK_reftable_reserved_bits && repair_names_block(repair, f))
            found.offs[found.count++] = walk->reftable[f->index] & QCOW2_REFTABLE_MASK;
    }
    for (size_t i = 0; ret == 0 && i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (f->check == CHECK_reftable_entry_unaligned || f->check == CHECK_reftable_entry_outside)
            ret = put_block_back(repair, &found, f->check, f->index);
    }
    /* An entry that is 0 is wrong only if something under it is in use.  Where many are, the table
     * is lost as a whole, and made anew. */
    uint64_t missing[MAX_MISSING], cluster = 0, count = 0;
    while (
        ret == 0 && count < MAX_MISSING && census_next_mismatch(walk->census, cluster, &cluster)) {
        uint64_t table_idx = cluster >> walk->geo.refblock_bits;
        if (cluster >= walk->cluster_end || table_idx >= entries)
            break;
        if (census_get(walk->census, cluster).balance < 0 && walk_block_off(walk, table_idx) == 0)
            missing[count++] = table_idx;
        cluster = (table_idx + 1) << walk->geo.refblock_bits;
    }
    for (uint64_t i = 0; ret == 0 && count < MAX_MISSING && i < count; i++)
        ret = put_block_back(repair, &found, CHECK_refcount_too_low, missing[i]);
    return ret;
}

static int find_table(struct repair *repair, enum check_id why)
{
    struct walk *walk = repair->walk;
    struct patch patches[MAX_CANDIDATES];
    size_t count = 0;
    uint64_t scanned = 0;
    for (uint64_t c = next_candidate(walk, 1);
         c < walk->cluster_end && count < MAX_CANDIDATES && scanned < MAX_SCANNED;
         c = next_candidate(walk, c + 1)) {
        scanned++;
        uint64_t off = c << walk->geo.cluster_bits;
        if (walk_looks_like_reftable(walk, off))
            patches[count++] = patch_be64(QCOW2_HDR_REFTABLE_OFF, off);
    }
    return count ? repair_take_best(repair, why, patches, count) : 0;
}

/* The size of a table that is where it should be: as many clusters as the file needs. */
static int mend_table_size(struct repair *repair, enum check_id why)
{
    const struct walk *walk = repair->walk;
    uint64_t blocks = div_up(walk->cluster_end, walk->geo.refblock_entries);
    uint64_t clusters = clusters_for(&walk->geo, blocks * 8);
    struct patch patch = patch_be32(QCOW2_HDR_REFTABLE_CLUSTERS, (uint32_t)clusters);
    return repair_take_best(repair, why, &patch, 1);
}

/* The header claims more of the table than there is: it goes on over what others use. */
static bool table_overlaps(const struct repair *repair, const struct finding *f)
{
    return f->check == CHECK_area_shared && f->host_off == repair->walk->header.reftable_off &&
           f->length > repair->walk->geo.cluster_size;
}

bool repair_on_nonsense(const struct repair *repair, const struct finding *finding)
{
    enum { FEW = 3 };
    const struct walk *walk = repair->walk;
    const struct area *area;
    enum area_kind kind = walk_area_at(walk, cluster_of(&walk->geo, finding->host_off), &area);
    bool entry = check_rows[finding->check].kind == OBJECT_L2_ENTRY; /* what it names is no table */
    if (area && (kind == AREA_L1_TABLE || kind == AREA_SNAPSHOT_L1_TABLE))
        return (entry || repair_has(repair, CHECK_orphan_l1_table)) && area->tree >= TREE_ACTIVE &&
               repair_has_damaged_entries(repair, &walk->trees[area->tree]);
    if (!area || (kind != AREA_REFCOUNT_BLOCK && kind != AREA_REFCOUNT_TABLE))
        return false;
    bool counts_nothing =
        kind == AREA_REFCOUNT_BLOCK && area->index << walk->geo.refblock_bits >= walk->cluster_end;
    return counts_nothing || repair->void_counts ||
           repair->report.hits[CHECK_refcount_too_low] > FEW ||
           repair->report.hits[CHECK_refblock_shared] > FEW;
}

int repair_find_structure(struct repair *repair)
{
    int ret = 0;
    if (!repair->walk->judgeable || repair->walk->unreadable)
        return 0;
    for (size_t i = 0; ret == 0 && repair->plan.count == 0 && i < repair->findings.count; i++) {
        switch (repair->findings.items[i].check) {
        case CHECK_header_reftable_unaligned:
        case CHECK_header_reftable_outside:
            ret = find_table(repair, repair->findings.items[i].check);
            break;
        case CHECK_header_reftable_missing:
            if (repair->walk->header.reftable_off == 0 &&
                repair->walk->header.reftable_clusters > 0)
                ret = find_table(repair, CHECK_header_reftable_missing);
            if (ret == 0 && repair->plan.count == 0)
                ret = mend_table_size(repair, CHECK_header_reftable_missing);
            break;
        case CHECK_header_reftable_too_large:
            ret = mend_table_size(repair, repair->findings.items[i].check);
            break;
        default:
            if (table_overlaps(repair, &repair->findings.items[i]))
                ret = mend_table_size(repair, CHECK_area_shared);
            break;
        }
    }
    return ret == 0 && repair->plan.count == 0 ? find_blocks(repair) : ret;
}
