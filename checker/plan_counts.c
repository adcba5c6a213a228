/* SPDX-License-Identifier: MIT
 *
 * What a refcount block counts once a plan is carried out; see plan.h. */
#include "plan.h"

static bool in_new_run(const struct plan *plan, uint64_t cluster)
{
    return cluster - plan->run_first < plan->run_count;
}

/* How often the old refcount structure itself uses the cluster.  Areas are sorted by offset, so
 * those that may cover it end just behind it. */
static uint64_t structure_claims(const struct walk *walk, uint64_t cluster)
{
    const struct area *area;
    enum area_kind kind = walk_area_at(walk, cluster, &area);
    uint64_t host_off = cluster << walk->geo.cluster_bits, claims = 0;
    if (kind == AREA_NONE || !area)
        return 0;
    while (area >= walk->areas.items && host_off - area->host_off < area->length) {
        claims += area->kind == AREA_REFCOUNT_BLOCK || area->kind == AREA_REFCOUNT_TABLE;
        area--;
    }
    return claims;
}

/* Zeros that the file does not even hold: nothing can be lost there. */
static bool in_hole(const struct plan *plan, uint64_t cluster)
{
    const struct qcow2_geometry *geo = &plan->walk->geo;
    return walk_hole(plan->walk, cluster << geo->cluster_bits) >= geo->cluster_size;
}

/* References to the cluster once the plan is carried out, from the stored count the census began
 * with.  When refcounts are made anew, the old structure does not count any more. */
static uint64_t new_count(const struct plan *plan, uint64_t cluster, uint64_t stored, bool lower)
{
    const struct walk *walk = plan->walk;
    struct census_cell cell = census_get(walk->census, cluster);
    bool known = census_known(walk->census, cluster);
    uint64_t loaded = stored < CENSUS_STORED_MAX ? stored : CENSUS_STORED_MAX;
    uint64_t refs = (uint64_t)((int64_t)(known ? loaded : 0) - cell.balance);
    if (plan->rebuild) {
        if (in_new_run(plan, cluster))
            return 1;
        uint64_t old = structure_claims(walk, cluster);
        if (old > 0)
            refs = stored = refs > old ? refs - old : 0;
        known &=
            !plan->void_counts && walk_block_off(walk, cluster >> walk->geo.refblock_bits) != 0;
        /* May be what was lost: a later round frees it, or finds whose it is. */
        bool structure_only = old > 0 && !cell.conflict;
        if (!known && refs == 0 && !structure_only && cluster < walk->cluster_end &&
            !in_hole(plan, cluster))
            refs = 1;
        /* Of those that have an L2 table at different places all but one get a copy: a count that
         * was raised for them would then pass for a lost reference. */
        const struct table *table = table_find(&walk->tables, cluster << walk->geo.cluster_bits);
        if (refs > 1 && cell.balance < 0 && table && table->elsewhere)
            refs = stored > 1 ? stored : 1;
    }
    if (!lower && known && stored > refs)
        refs = stored;
    return refs < walk->geo.refcount_max ? refs : walk->geo.refcount_max;
}

/* The clusters before the one returned have new counts like this one, provided that the census and
 * the old block say the same of them. */
static uint64_t alike_end(const struct plan *plan, uint64_t cluster)
{
    const struct walk *walk = plan->walk;
    const struct area *areas = walk->areas.items;
    uint64_t ends[] = {
        walk->cluster_end, plan->run_first, plan->run_first + plan->run_count, UINT64_MAX};
    uint64_t end = UINT64_MAX, host_off = cluster << walk->geo.cluster_bits;
    size_t low = 0, high = walk->areas.count; /* find the first area behind it */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (cluster_of(&walk->geo, areas[middle].host_off) <= cluster)
            low = middle + 1;
        else
            high = middle;
    }
    /* In metadata, and where holes matter, each is looked at. */
    if ((low > 0 && areas[low - 1].host_off + areas[low - 1].length > host_off) ||
        (plan->rebuild && census_get(walk->census, cluster).balance == 0))
        return cluster + 1;
    if (low < walk->areas.count)
        ends[3] = cluster_of(&walk->geo, areas[low].host_off);
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
        end = ends[i] > cluster && ends[i] < end ? ends[i] : end;
    return end;
}

void plan_fill_block(const struct plan *plan, uint64_t table_idx, bool lower, uint8_t *block_bytes)
{
    const struct walk *walk = plan->walk;
    const unsigned order = walk->geo.refcount_order;
    uint64_t entries = walk->geo.refblock_entries, first = table_idx << walk->geo.refblock_bits;
    for (uint64_t i = 0, n; i < entries; i += n) {
        uint64_t stored = qcow2_refcount_get(block_bytes, order, i);
        bool keep = first + i >= walk->cluster_end && !in_new_run(plan, first + i);
        uint64_t value =
            keep ? (plan->rebuild ? 0 : stored) : new_count(plan, first + i, stored, lower);
        uint64_t most = alike_end(plan, first + i) - (first + i);
        most = census_like_run(walk->census, first + i, most < entries - i ? most : entries - i);
        for (n = 0; n < most && qcow2_refcount_get(block_bytes, order, i + n) == stored; n++) {
            if (value != stored)
                qcow2_refcount_set(block_bytes, order, i + n, value);
        }
    }
}
