/* SPDX-License-Identifier: MIT
 *
 * Header fields.  The right value of some follows from the rest of the image; for others the few
 * possible ones are tried (repair_try.c). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "repair.h"

enum { MAX_TRIES = 64 };

/* Every value of a small field. */
static int try_values(
    struct repair *repair, enum check_id why, uint64_t off, uint32_t first, uint32_t last)
{
    struct patch patches[MAX_TRIES];
    size_t count = 0;
    for (uint32_t value = first; value <= last && count < MAX_TRIES; value++)
        patches[count++] = patch_be32(off, value);
    return repair_take_best(repair, why, patches, count);
}

static int mend_crypt_method(struct repair *repair, enum check_id why)
{
    bool luks = repair->walk->has_crypto;
    uint32_t method = luks ? QCOW2_CRYPT_LUKS : QCOW2_CRYPT_NONE;
    if (!luks && !repair->lossy)
        return 0;
    return plan_be32(&repair->plan, PHASE_SWITCH, why, QCOW2_HDR_CRYPT_METHOD, method);
}

/* The name cannot be read where the header says.  Giving it up is a loss: what was never written
 * to the image came from there.  No bytes at a place where none can be are no name. */
static int drop_backing_name(struct repair *repair, enum check_id why)
{
    uint8_t zeros[12] = {0};
    bool named = repair->walk->header.backing_len > 0;
    if (named && !repair->lossy)
        return 0;
    int ret = named ? plan_remark(&repair->plan, "lost: the name of the backing file") : 0;
    for (unsigned at = 0; ret == 0 && at < sizeof(zeros); at += 4)
        ret = plan_bytes(&repair->plan, PHASE_SWITCH, why, QCOW2_HDR_BACKING_OFF + at, zeros, 4);
    return ret;
}

/* Cuts the list of extensions off where it cannot be read any more. */
static int end_extensions(struct repair *repair, const struct finding *f)
{
    if (!repair->lossy)
        return 0;
    int ret = plan_remark(&repair->plan, "lost: the header extensions from 0x%llx on",
        (unsigned long long)f->host_off);
    return ret < 0 ? ret : plan_be64(&repair->plan, PHASE_SWITCH, f->check, f->host_off, 0);
}

/* The image's own table of names has one for an incompatible bit that is set: it is a feature. */
static bool names_unknown_bit(const struct walk *walk)
{
    enum { ENTRY_BYTES = 48, INCOMPATIBLE = 0 };
    const struct qcow2_ext *names = &walk->feature_names;
    uint64_t unknown = walk->header.incompatible & ~QCOW2_INCOMPAT_KNOWN;
    for (uint64_t at = 0; names->data && at + ENTRY_BYTES <= names->length; at += ENTRY_BYTES) {
        const uint8_t *entry = names->data + at;
        if (entry[0] == INCOMPATIBLE && entry[1] < 64 && (unknown >> entry[1] & 1))
            return true;
    }
    return false;
}

/* Such an image has not been walked: nobody has looked at its extensions yet. */
static bool names_data_file(const struct walk *walk)
{
    struct qcow2_ext ext;
    size_t pos = walk->header.header_length;
    while (qcow2_ext_next(walk->head, walk->head_len, &pos, &ext) == 1) {
        if (ext.type == QCOW2_EXT_DATA_FILE)
            return true;
    }
    return false;
}

/* These may be the known bits of the image, by what else its header says: without guest data in the
 * file there is little that could be wrong with it, but who has a data file names it. */
static bool fits_header(const struct walk *walk, uint64_t bits)
{
    uint64_t now = walk->header.incompatible;
    bool typed = walk->header.compression != QCOW2_ZLIB;
    return (!(bits & QCOW2_INCOMPAT_DATA_FILE) || (now & QCOW2_INCOMPAT_DATA_FILE) ||
               names_data_file(walk)) &&
           !(bits & QCOW2_INCOMPAT_COMPRESSION) == !typed;
}

/* Every combination of the bits that are known.  Unknown ones may be a feature of another
 * program's: if it says so hands off, if not the image must make sense without them. */
static int mend_incompatible(struct repair *repair, enum check_id why)
{
    struct patch patches[QCOW2_INCOMPAT_KNOWN + 1];
    size_t count = 0;
    if (!repair->lossy || names_unknown_bit(repair->walk))
        return 0;
    uint64_t features = repair->walk->header.incompatible;
    /* One bit is damage to that bit alone; with others data may seem to make more sense. */
    bool alone = __builtin_popcountll(features & ~QCOW2_INCOMPAT_KNOWN) == 1;
    for (uint64_t bits = 0; bits <= QCOW2_INCOMPAT_KNOWN; bits++) {
        if (alone ? bits == (features & QCOW2_INCOMPAT_KNOWN) : fits_header(repair->walk, bits))
            patches[count++] = patch_be64(QCOW2_HDR_INCOMPATIBLE, bits);
    }
    int ret = repair_take_best(repair, why, patches, count);
    return ret < 0 || repair->plan.count == 0
               ? ret
               : plan_remark(&repair->plan,
                     "choice: the unknown feature bits 0x%llx are cleared: nothing names them",
                     (unsigned long long)(repair->walk->header.incompatible &
                                          ~(uint64_t)QCOW2_INCOMPAT_KNOWN));
}

/* Extensions that follow each other from there to the end of the list. */
static size_t count_exts(const struct walk *walk, size_t pos)
{
    struct qcow2_ext ext;
    size_t count = 0;
    int ret;
    while ((ret = qcow2_ext_next(walk->head, walk->head_len, &pos, &ext)) == 1)
        count++;
    return ret < 0 ? 0 : count;
}

/* With the compression type or without: right is what finds the extensions; where the type is
 * spoken of it is there. */
static int mend_length(struct repair *repair, enum check_id why)
{
    const struct walk *walk = repair->walk;
    struct patch lengths[] = {patch_be32(QCOW2_HDR_LENGTH, QCOW2_V3_HEADER_BYTES),
        patch_be32(QCOW2_HDR_LENGTH, QCOW2_V3_HEADER_BYTES + 8)};
    size_t without = count_exts(walk, QCOW2_V3_HEADER_BYTES);
    size_t with = count_exts(walk, QCOW2_V3_HEADER_BYTES + 8);
    if (walk->header.incompatible & QCOW2_INCOMPAT_COMPRESSION)
        return repair_take_best(repair, why, &lengths[1], 1);
    return with == without ? repair_take_best(repair, why, lengths, 2)
                           : repair_take_best(repair, why, &lengths[with > without], 1);
}

uint64_t repair_ext_off(const struct walk *walk, uint32_t type, uint32_t length)
{
    struct qcow2_ext ext;
    size_t pos = walk->header.header_length;
    while (qcow2_ext_next(walk->head, walk->head_len, &pos, &ext) == 1) {
        if (ext.type == type && ext.length == length)
            return ext.head_off + 8;
    }
    return 0;
}

/* Extensions of fixed length: that is what the field must say.  Names of features are as many as
 * programs write; of others a bit may be wrong. */
static int mend_ext(struct repair *repair, const struct finding *f)
{
    enum { BITS = 32, MOST_NAMES = 16, NAME_BYTES = 48 };
    struct patch patches[BITS];
    size_t count = 0;
    uint64_t head;
    int ret = plan_peek(&repair->plan, f->host_off, &head);
    uint64_t type = head >> 32, off = f->host_off + 4;
    if (ret == 0 && type == QCOW2_EXT_CRYPTO)
        return plan_be32(&repair->plan, PHASE_SWITCH, f->check, off, QCOW2_CRYPTO_EXT_BYTES);
    if (ret == 0 && type == QCOW2_EXT_BITMAPS)
        return plan_be32(&repair->plan, PHASE_SWITCH, f->check, off, QCOW2_BITMAPS_EXT_BYTES);
    for (unsigned bit = 0; type != QCOW2_EXT_FEATURE_NAMES && bit < BITS; bit++)
        patches[count++] = patch_be32(off, (uint32_t)head ^ UINT32_C(1) << bit);
    for (uint32_t names = 1; type == QCOW2_EXT_FEATURE_NAMES && names <= MOST_NAMES; names++)
        patches[count++] = patch_be32(off, names * NAME_BYTES);
    if (ret == 0 && repair->lossy)
        ret = repair_take_better(repair, f->check, patches, count, repair_wrong(&repair->report));
    return ret < 0 || repair->plan.count > 0 || f->check != CHECK_ext_truncated
               ? ret
               : end_extensions(repair, f);
}

enum { CLUSTER_SIZES = QCOW2_MAX_CLUSTER_BITS - QCOW2_MIN_CLUSTER_BITS + 1 };

static size_t every_cluster_size(struct patch patches[CLUSTER_SIZES])
{
    for (uint32_t i = 0; i < CLUSTER_SIZES; i++)
        patches[i] = patch_be32(QCOW2_HDR_CLUSTER_BITS, QCOW2_MIN_CLUSTER_BITS + i);
    return CLUSTER_SIZES;
}

/* Every size; or they are too small for extended L2 entries only, and those are none. */
static int mend_cluster_bits(struct repair *repair, enum check_id why)
{
    struct patch patches[CLUSTER_SIZES + 1];
    uint64_t features = repair->walk->header.incompatible;
    size_t count = every_cluster_size(patches);
    if (features & QCOW2_INCOMPAT_EXTL2)
        patches[count++] = patch_be64(QCOW2_HDR_INCOMPATIBLE, features & ~QCOW2_INCOMPAT_EXTL2);
    return repair_take_best(repair, why, patches, count);
}

static int mend_field(struct repair *repair, const struct finding *f)
{
    bool lossy = repair->lossy;
    switch (f->check) {
    case CHECK_header_magic: {
        struct patch magic = patch_be32(0, QCOW2_MAGIC);
        return lossy ? repair_take_best(repair, f->check, &magic, 1) : 0;
    }
    case CHECK_header_version:
        return lossy ? try_values(repair, f->check, QCOW2_HDR_VERSION, 2, 3) : 0;
    case CHECK_header_incompatible_unknown:
        return mend_incompatible(repair, f->check);
    case CHECK_header_cluster_bits:
        return mend_cluster_bits(repair, f->check);
    case CHECK_header_refcount_order:
        return try_values(repair, f->check, QCOW2_HDR_REFCOUNT_ORDER, 0, QCOW2_MAX_REFCOUNT_ORDER);
    case CHECK_header_length:
        return mend_length(repair, f->check);
    case CHECK_header_compression_type:
    case CHECK_header_compression_bit:
        return repair_compression(repair, f->check);
    case CHECK_header_crypt_method:
    case CHECK_header_crypto_missing:
    case CHECK_ext_crypto_unexpected:
        return mend_crypt_method(repair, f->check);
    case CHECK_header_backing_name:
        return drop_backing_name(repair, f->check);
    case CHECK_ext_bitmaps_reserved:
        return plan_be32(&repair->plan, PHASE_SWITCH, f->check, f->host_off + 8 + 4, 0);
    case CHECK_ext_truncated:
    case CHECK_ext_length:
        return mend_ext(repair, f);
    default:
        return 0;
    }
}

/* How the data is encrypted says the LUKS header, too: first that must have been found. */
static bool is_about_encryption(enum check_id check)
{
    return check == CHECK_header_crypt_method || check == CHECK_header_crypto_missing ||
           check == CHECK_ext_crypto_unexpected;
}

/* ---- a geometry that is possible, but not that of the image ---- */

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
    if (mapped_bytes(patched, report) < repair->least_mapped)
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

/* Of what is wrong no more than this part may be left for a possible field to be replaced. */
enum { LEAST_GAIN = 16 };

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
    return ret;
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

/* One field a round: each changes what the others mean. */
int repair_header_fields(struct repair *repair)
{
    int ret = 0;
    for (int last = 0; last < 2; last++) {
        for (size_t i = 0; ret == 0 && repair->plan.count == 0 && i < repair->findings.count; i++) {
            const struct finding *f = &repair->findings.items[i];
            enum object_kind kind = check_rows[f->check].kind;
            if ((kind == OBJECT_HEADER || kind == OBJECT_EXTENSION) &&
                is_about_encryption(f->check) == last)
                ret = mend_field(repair, f);
        }
    }
    if (ret == 0 && repair->plan.count == 0)
        ret = mend_version(repair);
    if (ret == 0 && repair->plan.count == 0)
        ret = repair_l2_width(repair);
    return ret == 0 && repair->plan.count == 0 ? mend_geometry(repair) : ret;
}
