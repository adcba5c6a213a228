/* SPDX-License-Identifier: MIT
 *
 * What the header says of the active disk, and a record of a snapshot's: where its L1 table lies.
 * See repair_disk.h. */
#include <errno.h>
#include <stdlib.h>

#include "repair_disk.h"

enum { MOST_DOUBTED = 64 };

/* ---- lost L1 tables ---- */

static bool may_start_l1(const struct walk *walk, uint64_t off)
{
    return off != 0 && cluster_aligned(&walk->geo, off) && off < walk->file_size;
}

static bool is_used(const struct walk *walk, uint64_t host_off)
{
    return census_get(walk->census, cluster_of(&walk->geo, host_off)).claimed;
}

/* Another disk has it, though that may not be read yet. */
static bool is_named(const struct walk *walk, const struct tree *tree, uint64_t host_off)
{
    for (size_t i = 0; i < walk->tree_count; i++) {
        if (&walk->trees[i] != tree && walk->trees[i].l1_off == host_off)
            return true;
    }
    return false;
}

static void try_table(
    const struct repair *repair, const struct tree *tree, uint64_t host_off, struct tries *tries)
{
    if (!is_named(repair->walk, tree, host_off) && !repair_is_no_root(repair, host_off))
        try_also(tries, patch_be64(l1_off_at(tree), host_off));
}

static void try_orphans(const struct repair *repair, const struct tree *tree, struct tries *tries)
{
    for (size_t i = 0; i < repair->findings.count && repair_may_try(repair, 1); i++) {
        const struct finding *f = &repair->findings.items[i];
        if (f->check == CHECK_orphan_l1_table)
            try_table(repair, tree, f->host_off, tries);
    }
}

/* What is there may be an L1 table: it names L2 tables, known ones or such as nobody names; with
 * `above` it names what is said to be the disk's L1 table. */
static bool looks_like_l1(
    const struct walk *walk, const struct tree *tree, uint64_t host_off, bool above)
{
    uint64_t l1_size = tree->l1_size;
    uint8_t bytes[QCOW2_SECTOR_BYTES];
    uint64_t length = l1_size < sizeof(bytes) / 8 ? l1_size * 8 : sizeof(bytes);
    size_t named = 0;
    if (io_read_padded(walk->io, host_off, bytes, (size_t)length) < 0)
        return false;
    for (uint64_t at = 0; at < length; at += 8) {
        uint64_t raw = load_be64(bytes + at), off = raw & QCOW2_OFFSET_MASK;
        if (raw == 0)
            continue;
        struct census_cell cell = census_get(walk->census, cluster_of(&walk->geo, off));
        bool known = table_find(&walk->tables, off) || (!cell.claimed && cell.balance > 0) ||
                     off == tree->l1_off; /* if that is not what it is said to be */
        if ((raw & QCOW2_L1_RESERVED) || !may_start_l1(walk, off) || !known)
            return false;
        named += !above || off == tree->l1_off;
    }
    return named > 0;
}

static void try_leaked(
    const struct repair *repair, const struct tree *tree, bool above, struct tries *tries)
{
    enum { MOST = 4096 };
    const struct walk *walk = repair->walk;
    uint64_t cluster = 0;
    for (unsigned seen = 0; seen < MOST && census_next_leak(walk->census, cluster, &cluster);
         seen++, cluster++) {
        uint64_t host_off = cluster << walk->geo.cluster_bits;
        if (repair_deficit(repair, host_off) && looks_like_l1(walk, tree, host_off, above))
            try_table(repair, tree, host_off, tries);
    }
}

/* What lies there names clusters, and nothing else. */
static bool names_clusters(const struct walk *walk, const struct tree *tree, uint64_t host_off)
{
    uint8_t bytes[QCOW2_SECTOR_BYTES];
    size_t length = tree->l1_size < sizeof(bytes) / 8 ? tree->l1_size * 8 : sizeof(bytes);
    size_t named = 0;
    if (io_read_padded(walk->io, host_off, bytes, length) < 0)
        return false;
    for (size_t at = 0; at < length; at += 8) {
        uint64_t entry = load_be64(bytes + at), off = entry & QCOW2_OFFSET_MASK;
        if (entry != 0 && ((entry & QCOW2_L1_RESERVED) || !may_start_l1(walk, off)))
            return false;
        named += entry != 0;
    }
    return named > 0;
}

/* Where guest data is taken for the table, the true one may be among what that names. */
static void try_named(const struct repair *repair, const struct tree *tree, struct tries *tries)
{
    const struct walk *walk = repair->walk;
    for (uint64_t i = 0; i < tree->l1_size && i < MAX_TRIES / 2; i++) {
        uint8_t entry[8];
        if (io_read_padded(walk->io, tree->l1_off + i * 8, entry, sizeof(entry)) < 0)
            return;
        uint64_t off = load_be64(entry) & QCOW2_OFFSET_MASK;
        if (may_start_l1(walk, off) && names_clusters(walk, tree, off))
            try_table(repair, tree, off, tries);
    }
}

/* ---- a table made anew ---- */

/* What the table in the plan comes to once what was found hangs in it: an empty one would for a
 * while show zeros where data is. */
static int fill_first(struct repair *repair, uint64_t l1_off, uint8_t *table, uint64_t length)
{
    struct io *view;
    int ret = io_overlay_open(repair->io, &view);
    if (ret < 0)
        return ret;
    ret = plan_apply(&repair->plan, view, NULL);
    if (ret == 0)
        ret = repair_on_view(repair, view, repair_l1);
    if (ret == 0)
        ret = io_read_padded(view, l1_off, table, (size_t)length);
    io_close(view);
    return ret;
}

static int switch_l1(
    struct repair *repair, enum check_id why, uint64_t l1_off, uint64_t length, uint64_t entries)
{
    uint8_t fields[12], *table = calloc(1, (size_t)length);
    store_be32(fields, (uint32_t)entries);
    store_be64(fields + 4, l1_off);
    int ret = table ? plan_data(&repair->plan, PHASE_NEW, why, l1_off, table, length) : -ENOMEM;
    if (ret == 0)
        ret =
            plan_bytes(&repair->plan, PHASE_SWITCH, why, QCOW2_HDR_L1_SIZE, fields, sizeof(fields));
    if (ret == 0)
        ret = fill_first(repair, l1_off, table, length);
    return ret < 0 ? ret
                   : plan_remark(&repair->plan,
                         "lost: the L1 table of the disk; one is made of what was found");
}

/* The pointer leads to where the file would grow: what were put there would show in it. */
static int forget_l1(struct repair *repair, enum check_id why, const struct tree *tree)
{
    if (tree->l1_off == 0)
        return 0;
    repair->plan.needs_mark = true;
    return plan_be64(&repair->plan, PHASE_SWITCH, why, QCOW2_HDR_L1_OFF, 0);
}

/* Nothing tells where the table is: a new one, with what is found for its entries. */
static int make_l1(struct repair *repair, enum check_id why, const struct tree *tree)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    uint64_t entries = l1_entries_for(geo, tree->disk_size), cluster;
    if (entries == 0 || entries > QCOW2_MAX_L1_BYTES / 8)
        return 0;
    uint64_t clusters = clusters_for(geo, entries * 8);
    if (repair->plan.alloc_end ==
        (tree->l1_off > repair->file_size ? tree->l1_off : repair->file_size))
        repair->plan.alloc_end = UINT64_MAX; /* that pointer goes */
    int ret = plan_alloc(&repair->plan, why, clusters, 1, &cluster);
    if (ret == -ENOSPC) {
        repair_new_plan(repair);
        ret = repair_make_room(repair);
        return ret < 0 || repair->plan.count > 0 ? ret : forget_l1(repair, why, tree);
    }
    return ret < 0 ? ret
                   : switch_l1(repair, why, cluster << geo->cluster_bits,
                         clusters << geo->cluster_bits, entries);
}

/* Places a bit away from what the pointer says, where nobody has anything. */
static void try_bits(
    const struct repair *repair, const struct tree *tree, bool by_looks, struct tries *tries)
{
    const struct walk *walk = repair->walk;
    for (unsigned bit = 0; bit < 63; bit++) {
        uint64_t off = tree->l1_off ^ UINT64_C(1) << bit;
        if (may_start_l1(walk, off) && !is_used(walk, off) &&
            (!by_looks || looks_like_l1(walk, tree, off, false)))
            try_table(repair, tree, off, tries);
    }
}

static int find_l1(struct repair *repair, enum check_id why, const struct tree *tree)
{
    struct tries tries = {.count = 0};
    try_orphans(repair, tree, &tries);
    try_leaked(repair, tree, false, &tries);
    try_bits(repair, tree, tree->l1_off == 0, &tries);
    uint64_t below = tree->l1_off & ~(uint64_t)(repair->walk->geo.cluster_size - 1);
    if (below != tree->l1_off && may_start_l1(repair->walk, below))
        try_table(repair, tree, below, &tries);
    int ret = repair_take_best(repair, why, tries.patches, tries.count);
    if (ret < 0 || repair->plan.count > 0 || tree->record_off || !repair->lossy)
        return ret;
    return make_l1(repair, why, tree);
}

int repair_compare_offsets(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

int repair_note_damaged(struct repair *repair)
{
    repair->damaged_count = 0;
    repair->damaged = calloc(repair->findings.count + 1, sizeof(*repair->damaged));
    if (!repair->damaged)
        return -ENOMEM;
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (f->has_table && f->check != CHECK_l1_hole &&
            check_rows[f->check].severity == SEVERITY_DAMAGE)
            repair->damaged[repair->damaged_count++] = f->table_off;
    }
    qsort(repair->damaged, repair->damaged_count, sizeof(*repair->damaged), repair_compare_offsets);
    return 0;
}

bool repair_has_damaged_entries(const struct repair *repair, const struct tree *tree)
{
    return bsearch(&tree->l1_off, repair->damaged, repair->damaged_count, sizeof(*repair->damaged),
        repair_compare_offsets);
}

static int end_at_table(struct walk *walk, int tree_idx, uint32_t l1_idx, uint64_t raw)
{
    (void)walk, (void)tree_idx, (void)l1_idx;
    return (raw & QCOW2_OFFSET_MASK) != 0;
}

static int end_at_followed(struct walk *walk, int tree_idx, uint32_t l1_idx, uint64_t raw)
{
    (void)tree_idx, (void)l1_idx;
    const struct table *table = table_find(&walk->tables, raw & QCOW2_OFFSET_MASK);
    return table && !table->skip;
}

/* No entry of the disk's L1 table is such a one; false where that cannot be told. */
static bool has_none(struct walk *walk, const struct tree *tree, l1_visitor *visitor)
{
    return walk_visit_l1(walk, (int)(tree - walk->trees), visitor, false, NULL) == 0 &&
           !walk->unreadable;
}

/* Not one entry of it names a table. */
static bool is_nonsense(const struct repair *repair, const struct tree *tree)
{
    return tree->usable && tree->same_l1 == 1 && repair_has_damaged_entries(repair, tree) &&
           has_none(repair->walk, tree, end_at_followed);
}

/* What the disk has for its L1 table is empty, belongs to somebody else, counts for less, or makes
 * no sense.
 * (A table that nothing speaks against is the disk's own: an orphan beside it is what an
 * interrupted apply left.) */
static bool is_contested(const struct repair *repair, const struct tree *tree)
{
    struct walk *walk = repair->walk;
    uint64_t first = cluster_of(&walk->geo, tree->l1_off);
    uint64_t count = clusters_for(&walk->geo, tree->l1_size * UINT64_C(8));
    if (!tree->usable || tree->same_l1 != 1 || repair_has_damaged_entries(repair, tree) ||
        has_none(walk, tree, end_at_table))
        return true;
    for (uint64_t i = 0; i < count; i++) {
        struct census_cell cell = census_get(walk->census, first + i);
        if (cell.conflict || cell.balance < 0)
            return true;
    }
    return false;
}

/* Plans the pointer with which less than `below` is wrong, if there is one. */
static int choose_pointer(struct repair *repair, const struct tries *tries, uint64_t below)
{
    int ret =
        repair_take_better(repair, CHECK_orphan_l1_table, tries->patches, tries->count, below);
    if (ret == 0 && repair->plan.count > 0)
        ret = plan_remark(&repair->plan, "choice: an orphaned L1 table explains more of the image "
                                         "than the one of a disk, and takes its place");
    return ret;
}

/* Nothing follows from what is taken for the L1 table; but a lost one names it, and it is an L2
 * table, or there is one a bit away. */
static int mend_nonsense(struct repair *repair)
{
    const struct walk *walk = repair->walk;
    struct tries tries = {.count = 0};
    for (size_t i = 0, seen = 0; i < walk->tree_count && seen < MOST_DOUBTED; i++) {
        if (!is_nonsense(repair, &walk->trees[i]))
            continue;
        seen++;
        try_leaked(repair, &walk->trees[i], true, &tries);
        try_bits(repair, &walk->trees[i], true, &tries);
    }
    uint64_t now = repair_wrong(&repair->report);
    return choose_pointer(repair, &tries, repair->lossy ? now : now / 2);
}

/* The pointer is a good one, but to something else, while there is an orphaned table that explains
 * far more of the image. */
static int mend_pointers(struct repair *repair)
{
    const struct walk *walk = repair->walk;
    struct tries tries = {.count = 0};
    /* Where the table of snapshots is lost, an orphaned L1 table may be that of one. */
    bool records = repair_has(repair, CHECK_header_snapshots_outside) ||
                   repair_has(repair, CHECK_header_snapshots_unaligned) ||
                   repair_has(repair, CHECK_snapshot_table_truncated);
    bool any = !records && (repair_has(repair, CHECK_orphan_l1_table) ||
                               (repair->lossy && repair_has(repair, CHECK_orphan_l2_table)));
    for (size_t i = 0; any && i < walk->tree_count; i++) {
        const struct tree *tree = &walk->trees[i];
        if (repair->lossy ? !is_contested(repair, tree) : !is_nonsense(repair, tree))
            continue;
        try_orphans(repair, tree, &tries);
        if (repair->lossy)
            try_bits(repair, tree, true, &tries);
    }
    for (size_t i = 0; repair->fake_root && i < walk->tree_count; i++) {
        if (is_contested(repair, &walk->trees[i]))
            try_leaked(repair, &walk->trees[i], false, &tries);
    }
    for (size_t i = 0; i < walk->tree_count && i < MOST_DOUBTED; i++) {
        const struct tree *tree = &walk->trees[i];
        if (!repair_has_damaged_entries(repair, tree) || !repair_doubts_root(repair, tree))
            continue;
        try_leaked(repair, tree, false, &tries);
        try_named(repair, tree, &tries);
    }
    int ret = choose_pointer(repair, &tries, repair_wrong(&repair->report) / 2);
    return ret == 0 && repair->plan.count == 0 ? mend_nonsense(repair) : ret;
}

/* ---- tables on something else ---- */

/* A table longer than its disk needs that goes on over what others use. */
static int mend_overlap(struct repair *repair, const struct finding *f)
{
    const struct walk *walk = repair->walk;
    uint64_t needed = l1_entries_for(&walk->geo, walk->header.size_bytes);
    struct patch patch = patch_be32(QCOW2_HDR_L1_SIZE, (uint32_t)needed);
    if (f->host_off != walk->header.l1_off || needed == 0 || needed >= walk->header.l1_size)
        return 0;
    uint64_t now = repair_wrong(&repair->report);
    return repair_take_better(repair, f->check, &patch, 1, now);
}

/* L2 entries that name what lies there. */
static size_t count_into(const struct repair *repair, uint64_t host_off, uint64_t length)
{
    size_t count = 0;
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        count += f->check == CHECK_l2_entry_into_metadata && f->host_off - host_off < length;
    }
    return count;
}

/* The same of a LUKS header; its two fields, offset and length, may have a bit wrong. */
static int mend_crypto_overlap(struct repair *repair, const struct finding *f)
{
    const struct walk *walk = repair->walk;
    struct tries tries = {.count = 0};
    uint64_t off = repair_ext_off(walk, QCOW2_EXT_CRYPTO, QCOW2_CRYPTO_EXT_BYTES);
    if (off == 0 || !walk->has_crypto || f->host_off != walk->crypto_off)
        return 0;
    /* It is that one entry which is wrong, or the length of the refcount table. */
    if (count_into(repair, walk->crypto_off, walk->crypto_len) == 1 ||
        repair_has_at(repair, CHECK_area_shared, walk->header.reftable_off))
        return 0;
    for (unsigned bit = 0; bit < 63; bit++) {
        try_also(&tries, patch_be64(off, walk->crypto_off ^ UINT64_C(1) << bit));
        try_also(&tries, patch_be64(off + 8, walk->crypto_len ^ UINT64_C(1) << bit));
    }
    uint64_t now = repair_wrong(&repair->report);
    return repair_take_better(repair, f->check, tries.patches, tries.count, now);
}

/* Of two that lie on each other it is not the table that goes: refcounts are made anew elsewhere,
 * bitmaps are given up. */
static bool stays(const struct walk *walk, const struct tree *tree)
{
    for (size_t i = 0; i < walk->areas.count; i++) {
        const struct area *area = &walk->areas.items[i];
        bool goes = area->kind == AREA_REFCOUNT_TABLE || area->kind == AREA_REFCOUNT_BLOCK ||
                    area->kind == AREA_BITMAP_TABLE || area->kind == AREA_BITMAP_DATA;
        if (goes &&
            ranges_overlap(area->host_off, area->length, tree->l1_off, tree->l1_size * UINT64_C(8)))
            return true;
    }
    return false;
}

/* A snapshot's table on something else: it is longer than it needs to be, or, if that was not read
 * because of it, elsewhere, and then it looks like a table. */
static int mend_snapshot_overlap(struct repair *repair, enum check_id why, const struct tree *tree)
{
    const struct walk *walk = repair->walk;
    struct tries tries = {.count = 0};
    uint64_t needed = l1_entries_for(&walk->geo, tree->disk_size) +
                      l1_entries_for(&walk->geo, tree->vm_state_size);
    if (stays(walk, tree))
        return 0;
    if (needed > 0 && needed < tree->l1_size) {
        try_also(&tries, patch_be32(l1_size_at(tree), (uint32_t)needed));
    } else if (!tree->usable) {
        try_orphans(repair, tree, &tries);
        try_leaked(repair, tree, false, &tries);
        try_bits(repair, tree, true, &tries);
    }
    uint64_t now = repair_wrong(&repair->report);
    return repair_take_better(
        repair, why, tries.patches, tries.count, tree->usable ? now : UINT64_MAX);
}

/* A table that begins in the file and passes its end may be said to be longer than it is. */
static int mend_length(struct repair *repair, enum check_id why, const struct tree *tree)
{
    int ret = disk_mend_size(repair, why, tree);
    return ret == 0 && repair->plan.count == 0 ? find_l1(repair, why, tree) : ret;
}

static int mend_disk(struct repair *repair, const struct finding *f)
{
    struct walk *walk = repair->walk;
    const struct tree *tree = &walk->trees[f->tree > TREE_ACTIVE ? f->tree : TREE_ACTIVE];
    switch (f->check) {
    case CHECK_area_shared:
        return f->tree > TREE_ACTIVE && f->host_off == tree->l1_off
                   ? mend_snapshot_overlap(repair, f->check, tree)
                   : 0;
    case CHECK_header_l1_outside: /* by its size: all that the disk needs of it was read */
        return tree->usable ? disk_mend_size(repair, f->check, tree)
                            : find_l1(repair, f->check, tree);
    case CHECK_snapshot_l1_outside:
        return may_start_l1(walk, tree->l1_off) ? mend_length(repair, f->check, tree)
                                                : find_l1(repair, f->check, tree);
    case CHECK_header_l1_unaligned:
    case CHECK_snapshot_l1_unaligned:
        return find_l1(repair, f->check, tree);
    case CHECK_header_size:
    case CHECK_header_l1_too_small:
    case CHECK_header_l1_too_large:
    case CHECK_snapshot_l1_too_small:
    case CHECK_snapshot_disk_size:
        return disk_mend_size(repair, f->check, tree);
    case CHECK_snapshot_vm_state_size:
        return disk_mend_vm_state(repair, f);
    default:
        return 0;
    }
}

int repair_disks(struct repair *repair)
{
    int ret = 0;
    for (size_t i = 0; ret == 0 && repair->plan.count == 0 && i < repair->findings.count; i++) {
        if (repair->findings.items[i].check == CHECK_area_shared) /* others follow from it */
            ret = mend_overlap(repair, &repair->findings.items[i]);
        if (ret == 0 && repair->plan.count == 0 &&
            repair->findings.items[i].check == CHECK_area_shared)
            ret = mend_crypto_overlap(repair, &repair->findings.items[i]);
    }
    for (size_t i = 0; ret == 0 && repair->plan.count == 0 && i < repair->findings.count; i++)
        ret = mend_disk(repair, &repair->findings.items[i]);
    if (ret == 0 && repair->plan.count == 0)
        ret = disk_mend_small_sizes(repair);
    return ret == 0 && repair->plan.count == 0 ? mend_pointers(repair) : ret;
}
