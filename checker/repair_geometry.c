/* SPDX-License-Identifier: MIT
 *
 * How large clusters, counts and L2 entries are.  A value that is possible but not the image's own
 * makes everything look wrong; under the right one nearly all of it makes sense. */
#include <errno.h>
#include <stdlib.h>

#include "repair.h"

enum { CLUSTER_SIZES = QCOW2_MAX_CLUSTER_BITS - QCOW2_MIN_CLUSTER_BITS + 1 };

static size_t every_cluster_size(struct patch patches[CLUSTER_SIZES])
{
    for (uint32_t i = 0; i < CLUSTER_SIZES; i++)
        patches[i] = patch_be32(QCOW2_HDR_CLUSTER_BITS, QCOW2_MIN_CLUSTER_BITS + i);
    return CLUSTER_SIZES;
}

/* Every size; or they are too small for extended L2 entries only, and those are none. */
int repair_cluster_bits(struct repair *repair, enum check_id why)
{
    struct patch patches[CLUSTER_SIZES + 1];
    uint64_t features = repair->walk->header.incompatible;
    size_t count = every_cluster_size(patches);
    if (features & QCOW2_INCOMPAT_EXTL2)
        patches[count++] = patch_be64(QCOW2_HDR_INCOMPATIBLE, features & ~QCOW2_INCOMPAT_EXTL2);
    return repair_take_best(repair, why, patches, count);
}

/* Guest data that the active disk maps: with the right geometry it is no less than with another.  0
 * where that is not to be had. */
static uint64_t mapped_bytes(struct io *io, const struct report *report)
{
    uint8_t field[4];
    if (io_read_padded(io, QCOW2_HDR_CLUSTER_BITS, field, sizeof(field)) < 0)
        return 0;
    uint32_t bits = load_be32(field);
    return bits > QCOW2_MAX_CLUSTER_BITS
               ? 0
               : capped_product(report->allocated_clusters, UINT64_C(1) << bits);
}

/* Of what is wrong no more than this part may be left for a possible field to be replaced. */
enum { LEAST_GAIN = 16 };

/* With clusters that are too large the counts of the file's upper half are said to be behind its
 * end: there they are not found wrong any more, and no nearer to right. */
static bool counts_past_end(const struct repair *repair, const struct report *report)
{
    uint64_t before = repair->report.hits[CHECK_refcount_past_end];
    return report->hits[CHECK_refcount_past_end] >
           capped_sum(before, repair_wrong(&repair->report) / LEAST_GAIN);
}

/* Neither table begins where a cluster does. */
static bool is_unaligned(const struct repair *repair)
{
    return repair_has(repair, CHECK_header_reftable_unaligned) &&
           repair_has(repair, CHECK_header_l1_unaligned);
}

/* L1 tables too short for their disks. */
static uint64_t misfits(const struct report *report)
{
    return report->hits[CHECK_header_l1_too_small] + report->hits[CHECK_snapshot_l1_too_small];
}

/* What no damage of a single disk explains: several have too short a table, all at once. */
static bool is_misfit(const struct repair *repair)
{
    return misfits(&repair->report) > 1 && !repair->report.incomplete;
}

/* With the geometry of the image data is mapped, and no less than with another; and where that
 * other one makes any sense, its own makes more: each table is long enough for its disk, or the
 * disks are without damage. */
static bool is_no_geometry(
    const struct repair *repair, struct io *patched, const struct report *report)
{
    if (mapped_bytes(patched, report) < repair->least_mapped || counts_past_end(repair, report))
        return true;
    if (is_misfit(repair))
        return misfits(report) > 0;
    return !is_unaligned(repair) && report_has_damage(report);
}

/* Of what is in use many counts are wrong though they were found (not only leaks, which lost tables
 * leave behind), or there are more references than a count can say, or the L1 table is too short
 * for the disk, which no program makes.  Where clusters are taken for smaller ones only one of
 * several in the file is in use. */
static bool is_miscounted(const struct repair *repair)
{
    const struct report *report = &repair->report;
    const uint64_t *hits = report->hits;
    const struct walk *walk = repair->walk;
    uint64_t wrong = hits[CHECK_refcount_too_low] + hits[CHECK_refcount_too_high];
    uint64_t used = capped_product(report->allocated_clusters, 4);
    if (used > walk->cluster_end)
        used = walk->cluster_end;
    return walk->judgeable && !walk->without_counts && !report->incomplete &&
           ((wrong > used / 8 && wrong + hits[CHECK_cluster_leaked] > used / 4) ||
               hits[CHECK_refcount_overflow] > 0 || hits[CHECK_header_l1_too_small] > 0);
}

/* The header says that it is a short one, but behind that are the fields of a long one, where the
 * extensions of a short one would be. */
static int mend_version(struct repair *repair)
{
    const struct walk *walk = repair->walk;
    const uint8_t *head = walk->head;
    struct patch version = patch_be32(QCOW2_HDR_VERSION, 3);
    if (repair->version_tried || walk->header.version != 2 || walk->unreadable ||
        walk->head_len < QCOW2_V3_HEADER_BYTES ||
        load_be32(head + QCOW2_HDR_REFCOUNT_ORDER) > QCOW2_MAX_REFCOUNT_ORDER ||
        (load_be32(head + QCOW2_HDR_LENGTH) != QCOW2_V3_HEADER_BYTES &&
            load_be32(head + QCOW2_HDR_LENGTH) != QCOW2_V3_HEADER_BYTES + 8))
        return 0;
    repair->version_tried = true;
    uint64_t now = repair_wrong(&repair->report);
    repair->least_mapped = 1;
    repair->refuses = repair->lossy ? NULL : is_no_geometry; /* entries may be the bits of some */
    int ret = repair_take_better(
        repair, CHECK_header_version, &version, 1, repair->lossy ? now : now / LEAST_GAIN);
    repair->refuses = NULL;
    return ret;
}

/* ---- clusters taken for parts of them ---- */

/* What starts at a cluster, by the largest power of two clusters that it starts at a multiple of.
 */
struct starts {
    size_t by_shift[CLUSTER_SIZES], count;
};

static void add_start(struct starts *starts, const struct walk *walk, uint64_t off)
{
    uint64_t cluster = cluster_of(&walk->geo, off);
    if (cluster == 0 || !cluster_aligned(&walk->geo, off) || off >= walk->file_size)
        return;
    unsigned shift = (unsigned)__builtin_ctzll(cluster);
    starts->by_shift[shift < CLUSTER_SIZES ? shift : CLUSTER_SIZES - 1]++;
    starts->count++;
}

static int add_mapped(struct starts *starts, const struct walk *walk)
{
    enum { MOST_TABLES = 64 };
    uint8_t *bytes = malloc(walk->geo.cluster_size);
    if (!bytes)
        return -ENOMEM;
    for (size_t i = 0; i < walk->tables.count && i < MOST_TABLES; i++) {
        const struct table *table = &walk->tables.items[i];
        add_start(starts, walk, table->host_off);
        if (table->skip ||
            io_read_padded(walk->io, table->host_off, bytes, walk->geo.cluster_size) < 0)
            continue;
        for (uint32_t idx = 0; idx < walk->geo.l2_entries; idx++) {
            struct qcow2_l2_entry e;
            qcow2_l2_decode(&walk->geo, bytes + (size_t)idx * walk->geo.l2_entry_size, &e);
            if (e.kind == QCOW2_L2_NORMAL)
                add_start(starts, walk, e.host_off);
        }
    }
    free(bytes);
    return 0;
}

/* All that the image names starts at multiples of 2^*shift clusters, but for what may be damaged:
 * of clusters that are the image's own every other start would be at an odd one.  0: at any. */
static int find_shift(const struct walk *walk, unsigned *shift)
{
    enum { LEAST = 16, DAMAGED = 8 };
    struct starts starts = {.count = 0};
    *shift = 0;
    for (size_t i = 0; i < walk->tree_count; i++)
        add_start(&starts, walk, walk->trees[i].l1_off);
    add_start(&starts, walk, walk->header.reftable_off);
    add_start(&starts, walk, walk->header.snapshots_off);
    int ret = walk->geo.data_file ? 0 : add_mapped(&starts, walk);
    size_t odd = starts.by_shift[0];
    while (ret == 0 && starts.count >= LEAST && odd <= starts.count / DAMAGED &&
           walk->geo.cluster_bits + *shift < QCOW2_MAX_CLUSTER_BITS)
        odd += starts.by_shift[++*shift];
    return ret;
}

static bool is_no_shift(
    const struct repair *repair, struct io *patched, const struct report *report)
{
    (void)patched;
    return counts_past_end(repair, report);
}

/* The image may be damaged besides: it need only be the better with it. */
static int mend_shift(struct repair *repair)
{
    unsigned shift;
    int ret = find_shift(repair->walk, &shift);
    if (ret < 0 || shift == 0)
        return ret;
    struct patch patch = patch_be32(QCOW2_HDR_CLUSTER_BITS, repair->walk->geo.cluster_bits + shift);
    repair->orphans_may_show = true;
    repair->refuses = is_no_shift;
    ret = repair_take_better(
        repair, CHECK_header_cluster_bits, &patch, 1, repair_wrong(&repair->report) / 2);
    repair->refuses = NULL;
    repair->orphans_may_show = false;
    return ret;
}

/* With the right size of clusters, or width of counts, nearly all of them are right.  Tried once a
 * repair: the whole image is checked for each. */
static int mend_geometry(struct repair *repair)
{
    enum { ORDERS = QCOW2_MAX_REFCOUNT_ORDER + 1 };
    struct patch patches[CLUSTER_SIZES + ORDERS];
    size_t count = every_cluster_size(patches);
    bool unaligned = is_unaligned(repair);
    /* Of a device that fails the counts say nothing. */
    if (repair->geometry_tried || repair->walk->unreadable ||
        (!unaligned && !is_miscounted(repair)))
        return 0;
    repair->geometry_tried = true;
    for (uint32_t order = 0; repair->walk->header.version >= 3 && order < ORDERS; order++)
        patches[count++] = patch_be32(QCOW2_HDR_REFCOUNT_ORDER, order);
    /* A geometry with which no data is found has little that could be wrong. */
    repair->least_mapped = 1;
    if (!unaligned && repair->report.allocated_clusters > 0)
        repair->least_mapped =
            capped_product(repair->report.allocated_clusters, repair->walk->geo.cluster_size);
    repair->refuses = is_no_geometry;
    uint64_t below = repair_wrong(&repair->report) / (is_misfit(repair) ? 1 : LEAST_GAIN);
    uint64_t findings = repair->trial_findings;
    int ret = repair_take_better(
        repair, CHECK_header_cluster_bits, patches, count, unaligned ? REPAIR_WRONG_UNREAD : below);
    repair->trial_findings = findings; /* of what makes no sense there are many, only this once */
    repair->refuses = NULL;
    if (repair->plan.count > 0 && repair->plan.edits[0].host_off == QCOW2_HDR_REFCOUNT_ORDER)
        repair->plan.edits[0].why = CHECK_header_refcount_order;
    return ret == 0 && repair->plan.count == 0 && !unaligned ? mend_shift(repair) : ret;
}

/* What is wrong with L2 entries themselves, not with the counts of what they name. */
static uint64_t wrong_entries(const struct report *report)
{
    uint64_t sum = 0;
    for (int check = 0; check < CHECK_COUNT; check++) {
        if (check_rows[check].kind == OBJECT_L2_ENTRY && check_rows[check].tally != TALLY_NONE &&
            check != CHECK_l2_copied_set)
            sum = capped_sum(sum, report->hits[check]);
    }
    return sum;
}

enum { FEW_ENTRIES = 4 };

/* With entries of the right width nearly none is wrong; where few are, nearly nothing. */
static bool is_no_width(
    const struct repair *repair, struct io *patched, const struct report *report)
{
    (void)patched;
    uint64_t before = wrong_entries(&repair->report);
    return before < FEW_ENTRIES ? repair_wrong(report) * LEAST_GAIN > repair_wrong(&repair->report)
                                : wrong_entries(report) * LEAST_GAIN > before;
}

/* What speaks for the other width: wrong entries, and clusters that nobody names. */
static uint64_t width_doubts(const struct repair *repair)
{
    bool wide = repair->walk->header.incompatible & QCOW2_INCOMPAT_EXTL2;
    uint64_t wrong = wrong_entries(&repair->report);
    if (!wide)
        return wrong < FEW_ENTRIES ? 0 : wrong;
    wrong -= repair->report.hits[CHECK_l2_subcluster_is_entry]; /* they leak, and count once */
    return capped_sum(wrong, repair->report.hits[CHECK_cluster_leaked]);
}

/* L2 entries are taken for wide ones or for narrow ones, and are not: every other one of narrow
 * entries leaks what it names then, and every other half of wide ones is no entry. */
int repair_l2_width(struct repair *repair)
{
    const struct walk *walk = repair->walk;
    bool weak = repair->lossy && repair->other_width; /* and not taken for that reason */
    struct patch patch =
        patch_be64(QCOW2_HDR_INCOMPATIBLE, walk->header.incompatible ^ QCOW2_INCOMPAT_EXTL2);
    if (!walk->judgeable || walk->header.version < 3 || walk->unreadable ||
        repair->report.incomplete || (repair->width_tried && !weak) ||
        walk->geo.cluster_bits < QCOW2_MIN_CLUSTER_BITS_EXTL2 || width_doubts(repair) == 0)
        return 0;
    repair->width_tried = true;
    repair->refuses = is_no_width;
    int ret = repair_take_better(
        repair, CHECK_header_cluster_bits, &patch, 1, repair_wrong(&repair->report));
    repair->refuses = NULL;
    bool few = width_doubts(repair) < FEW_ENTRIES; /* it may be chance */
    if (ret == 0 && few && repair->lossy && repair->plan.count > 0)
        return plan_remark(&repair->plan, "choice: L2 entries are taken for %s ones",
            walk->geo.extended_l2 ? "plain" : "extended");
    if (few || repair->options->leaks_only) {
        repair->other_width = repair->plan.count > 0;
        repair_new_plan(repair);
    }
    return ret;
}

int repair_geometry(struct repair *repair)
{
    int ret = mend_version(repair);
    if (ret == 0 && repair->plan.count == 0)
        ret = repair_l2_width(repair);
    return ret == 0 && repair->plan.count == 0 ? mend_geometry(repair) : ret;
}
