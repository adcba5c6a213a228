/* SPDX-License-Identifier: MIT
 *
 * Lost L2 tables put back into the L1 entries that lost them, and lost L1 tables found again.
 *
 * A table is a candidate only if the image itself says that a reference to it is missing: its
 * stored refcount is higher than the references found.  An entry that is damaged but not empty says
 * by itself that something is missing; an empty one may always have been empty (a leak can be left
 * by an interrupted write, too), so holes are filled with --lossy only. */
#include <errno.h>
#include <stdlib.h>

#include "repair.h"

/* How strongly something speaks for a candidate. */
enum evidence { NOTHING, ONLY_ONE, OTHER_DISK, ONE_BIT };

struct candidate {
    uint64_t host_off;
    enum evidence evidence;
    bool tie; /* another one is as good */
};

struct place {
    enum check_id check;
    int tree;
    uint32_t l1_idx;
    uint64_t entry_off, raw;
};

static void propose(
    const struct repair *repair, struct candidate *best, uint64_t host_off, enum evidence evidence)
{
    if (evidence < best->evidence || !repair_deficit(repair, host_off) ||
        !repair_is_l2_table(repair, host_off))
        return;
    if (evidence == best->evidence) {
        best->tie |= host_off != best->host_off;
        return;
    }
    *best = (struct candidate){.host_off = host_off, .evidence = evidence};
}

static void propose_by_bits(
    const struct repair *repair, struct candidate *best, const struct place *place)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    uint64_t off = place->raw & QCOW2_OFFSET_MASK;
    if (off == 0)
        return;
    propose(repair, best, off & ~(uint64_t)(geo->cluster_size - 1), ONE_BIT);
    for (unsigned bit = geo->cluster_bits; bit < 56; bit++)
        propose(repair, best, off ^ UINT64_C(1) << bit, ONE_BIT);
}

static void propose_by_disks(
    const struct repair *repair, struct candidate *best, const struct place *place)
{
    const struct walk *walk = repair->walk;
    for (size_t i = 0; i < walk->tree_count; i++) {
        const struct tree *tree = &walk->trees[i];
        uint64_t raw;
        if ((int)i == place->tree || !tree->usable || place->l1_idx >= tree->l1_size ||
            plan_peek(&repair->plan, tree->l1_off + place->l1_idx * UINT64_C(8), &raw) < 0)
            continue;
        propose(repair, best, raw & QCOW2_OFFSET_MASK, OTHER_DISK);
    }
}

/* The n-th orphaned L2 table for the n-th place, if there are as many of one as of the other. */
static uint64_t nth_orphan(const struct repair *repair, size_t n, size_t *count)
{
    uint64_t host_off = 0;
    *count = 0;
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (f->check != CHECK_orphan_l2_table || !repair_deficit(repair, f->host_off))
            continue;
        if (*count == n)
            host_off = f->host_off;
        ++*count;
    }
    return host_off;
}

static int put_back(struct repair *repair, const struct place *place, uint64_t host_off)
{
    uint64_t stored = 0;
    walk_stored(repair->walk, cluster_of(&repair->walk->geo, host_off), &stored);
    bool copied = place->tree == TREE_ACTIVE && stored == 1;
    int ret = repair_take(repair, host_off, 1);
    if (ret == 0)
        ret = plan_be64(&repair->plan, PHASE_SWITCH, place->check, place->entry_off,
            host_off | (copied ? QCOW2_ENTRY_COPIED : 0));
    return ret;
}

/* The places that lost something, each once. */
static size_t find_places(const struct repair *repair, struct place *places)
{
    size_t count = 0;
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        struct place place = {.check = f->check, .tree = f->tree, .l1_idx = (uint32_t)f->index};
        switch (f->check) {
        case CHECK_l1_entry_unaligned:
        case CHECK_l1_entry_outside:
        case CHECK_l1_entry_into_metadata:
        case CHECK_l2_table_implausible:
        case CHECK_l1_flags_without_table:
            break;
        case CHECK_l1_hole:
            if (repair->options->lossy)
                break;
            continue;
        default:
            continue;
        }
        if (repair_was_cut_off(repair, f->host_off))
            continue;
        place.entry_off = repair_entry_off(repair, f);
        if (plan_peek(&repair->plan, place.entry_off, &place.raw) == 0 &&
            (count == 0 || places[count - 1].entry_off != place.entry_off))
            places[count++] = place;
    }
    return count;
}

static int fill_places(struct repair *repair, struct place *places, size_t count)
{
    size_t open = 0;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < count; i++) {
        struct candidate best = {0};
        propose_by_bits(repair, &best, &places[i]);
        propose_by_disks(repair, &best, &places[i]);
        if (best.evidence != NOTHING && !best.tie)
            ret = put_back(repair, &places[i], best.host_off);
        else
            places[open++] = places[i];
    }
    /* For what is left only order speaks: enough if there is but one of each. */
    size_t orphans = 0;
    nth_orphan(repair, 0, &orphans);
    if (ret < 0 || orphans != open || orphans == 0 || (open > 1 && !repair->options->lossy))
        return ret;
    for (size_t i = 0; ret == 0 && i < open; i++) {
        uint64_t host_off = nth_orphan(repair, 0, &orphans);
        if (open > 1)
            ret = plan_remark(&repair->plan,
                "choice: of %zu orphaned L2 tables the one at 0x%llx is put back for guest 0x%llx",
                orphans, (unsigned long long)host_off,
                (unsigned long long)places[i].l1_idx * repair->walk->geo.l2_span);
        if (ret == 0)
            ret = put_back(repair, &places[i], host_off);
    }
    return ret;
}

/* ---- lost L1 tables ---- */

/* The only orphaned L1 table (a run of clusters that look like one counts as one); 0 if there is
 * none or a choice. */
static uint64_t only_orphan(const struct repair *repair, enum check_id check)
{
    uint64_t first = 0, next = 0;
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (f->check != check)
            continue;
        if (first != 0 && f->host_off != next)
            return 0;
        if (first == 0)
            first = f->host_off;
        next = f->host_off + repair->walk->geo.cluster_size;
    }
    return first;
}

static int find_l1(struct repair *repair)
{
    uint64_t pointer = 0, orphan = only_orphan(repair, CHECK_orphan_l1_table);
    enum check_id why = CHECK_COUNT;
    unsigned places = 0;
    for (size_t i = 0; orphan && i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        switch (f->check) {
        case CHECK_header_l1_unaligned:
        case CHECK_header_l1_outside:
            pointer = QCOW2_HDR_L1_OFF;
            break;
        case CHECK_snapshot_l1_unaligned:
        case CHECK_snapshot_l1_outside:
            pointer = repair->walk->trees[f->tree].record_off;
            break;
        default:
            continue;
        }
        why = f->check;
        places++;
    }
    return places == 1 ? plan_be64(&repair->plan, PHASE_SWITCH, why, pointer, orphan) : 0;
}

int repair_l1(struct repair *repair)
{
    int ret = find_l1(repair);
    if (ret < 0 || repair->plan.count > 0)
        return ret;
    struct place *places = calloc(repair->findings.count + 1, sizeof(*places));
    if (!places)
        return -ENOMEM;
    size_t count = find_places(repair, places);
    ret = fill_places(repair, places, count);
    free(places);
    return ret;
}
