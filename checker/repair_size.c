/* SPDX-License-Identifier: MIT
 *
 * How large a disk is, its VM state, and how long its L1 table; see repair_disk.h. */
#include <errno.h>
#include <stdlib.h>

#include "repair_disk.h"

/* Sizes that the disk can have: those of other disks, the present one with a bit changed; if that
 * is too little, as far as its table maps or as data is mapped. */
static void try_sizes(
    const struct repair *repair, const struct tree *tree, uint64_t least, struct tries *tries)
{
    const struct walk *walk = repair->walk;
    uint64_t most = capped_product(tree->l1_size, walk->geo.l2_span), off = disk_size_at(tree);
    for (size_t i = 0; i < walk->tree_count; i++) {
        const struct tree *other = &walk->trees[i];
        if (other != tree && other->disk_size_known && other->disk_size >= least &&
            other->disk_size <= most)
            try_also(tries, patch_be64(off, other->disk_size));
    }
    if (tries->count == 0 && least > 0 && least <= most && !tree->record_off)
        try_also(tries, patch_be64(off, least));
    for (unsigned bit = 9; (least == 0 || tree->record_off) && bit < 63; bit++) {
        uint64_t size = tree->disk_size ^ UINT64_C(1) << bit;
        if (l1_entries_for(&walk->geo, size) == tree->l1_size && size >= least)
            try_also(tries, patch_be64(off, size));
    }
    /* Larger than it was is better than one that cuts off what is mapped. */
    if ((tree->record_off || (tries->count == 0 && least == 0)) && most > 0)
        try_also(tries, patch_be64(off, most));
}

/* A sector into the last entry of an L2 table that is not empty; its first where none is to be had.
 */
static uint64_t entries_end(const struct repair *repair, uint64_t l2_off)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    uint64_t end = QCOW2_SECTOR_BYTES;
    uint8_t *bytes = table_find(&repair->walk->tables, l2_off)
                         ? repair_memory(repair, malloc(geo->cluster_size))
                         : NULL;
    if (bytes && io_read_padded(repair->io, l2_off, bytes, geo->cluster_size) == 0) {
        for (uint64_t i = 0; i < geo->l2_entries; i++) {
            if (!walk_bytes_zero(bytes + i * geo->l2_entry_size, geo->l2_entry_size))
                end = (i << geo->cluster_bits) + QCOW2_SECTOR_BYTES;
        }
    }
    free(bytes);
    return end;
}

/* Of a snapshot without VM state: up to the last entry it is disk. */
static uint64_t tables_end(const struct repair *repair, const struct tree *tree)
{
    uint64_t raw;
    if (!tree->record_off || tree->vm_state_size > 0 || !tree->usable)
        return 0;
    for (uint64_t i = tree->l1_size; i-- > 0;) {
        if (plan_peek(&repair->plan, tree->l1_off + i * 8, &raw) < 0)
            return 0;
        if (raw != 0)
            return i * repair->walk->geo.l2_span + entries_end(repair, raw & QCOW2_OFFSET_MASK);
    }
    return 0;
}

int disk_mend_size(struct repair *repair, enum check_id why, const struct tree *tree)
{
    const struct walk *walk = repair->walk;
    struct tries tries = {.count = 0};
    uint64_t needed = l1_entries_for(&walk->geo, tree->disk_size);
    if (tree->disk_size_known && repair->lossy)
        try_sizes(repair, tree, tables_end(repair, tree), &tries);
    if (needed > 0 && needed <= QCOW2_MAX_L1_BYTES / 8)
        try_also(&tries, patch_be32(l1_size_at(tree), (uint32_t)needed));
    /* What a disk does not reach reads as zeros: that more of it is damaged is no gain. */
    uint64_t now = repair_wrong(&repair->report);
    return repair_take_better(
        repair, why, tries.patches, tries.count, repair->lossy ? UINT64_MAX : now);
}

/* An L1 entry behind the end of the disk that names a table. */
static bool names_table(const struct repair *repair, const struct finding *f)
{
    uint64_t raw;
    if (plan_peek(&repair->plan, repair_entry_off(repair, f), &raw) < 0)
        return false;
    const struct table *table = table_find(&repair->walk->tables, raw & QCOW2_OFFSET_MASK);
    return table && !table->skip;
}

/* How far each disk's tables map data, where that is past its end: one number a tree. */
static void mapped_ends(const struct repair *repair, uint64_t *ends)
{
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        uint64_t len = 0;
        if (f->check == CHECK_l2_entry_past_end)
            len = f->guest_len;
        else if (f->check == CHECK_l1_entry_past_end && names_table(repair, f))
            len = QCOW2_SECTOR_BYTES; /* and somewhere behind that */
        if (len > 0 && f->tree >= TREE_ACTIVE && ends[f->tree] < f->guest_off + len)
            ends[f->tree] = f->guest_off + len;
    }
}

int disk_mend_small_sizes(struct repair *repair)
{
    const struct walk *walk = repair->walk;
    if (!repair->lossy || walk->tree_count == 0 ||
        !(repair_has(repair, CHECK_l2_entry_past_end) ||
            repair_has(repair, CHECK_l1_entry_past_end)))
        return 0;
    uint64_t *ends = calloc(walk->tree_count, sizeof(*ends));
    int ret = ends ? 0 : -ENOMEM;
    if (ends)
        mapped_ends(repair, ends);
    for (size_t i = 0; ret == 0 && repair->plan.count == 0 && i < walk->tree_count; i++) {
        const struct tree *tree = &walk->trees[i];
        struct tries tries = {.count = 0};
        if (ends[i] == 0 || !tree->disk_size_known)
            continue;
        try_sizes(repair, tree, ends[i], &tries);
        ret = repair_take_best(repair,
            repair_has(repair, CHECK_l1_entry_past_end) ? CHECK_l1_entry_past_end
                                                        : CHECK_l2_entry_past_end,
            tries.patches, tries.count);
    }
    free(ends);
    return ret;
}

int disk_mend_vm_state(struct repair *repair, const struct finding *f)
{
    const struct tree *tree = &repair->walk->trees[f->tree];
    uint64_t extra;
    int ret = plan_peek(&repair->plan, tree->record_off + 32, &extra);
    if (ret < 0 || (f->want > 0 && !repair->lossy))
        return ret;
    if ((uint32_t)extra >= 8) /* its length: then the size there counts */
        return plan_be64(&repair->plan, PHASE_SWITCH, f->check,
            tree->record_off + QCOW2_SNAPSHOT_HEAD_BYTES, f->want);
    return plan_be32(
        &repair->plan, PHASE_SWITCH, f->check, tree->record_off + 32, (uint32_t)f->want);
}
