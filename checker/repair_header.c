/* SPDX-License-Identifier: MIT
 *
 * Header fields.  The right value of some follows from the rest of the image; for others the few
 * possible ones are tried on a copy-on-write view of it, and the one that makes sense of the image
 * is taken if it is the only one. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "repair.h"

/* How much is wrong with the image under the patch: UINT64_MAX if it cannot be judged at all. */
static int try_patch(struct repair *repair, const struct patch *patch, uint64_t *wrong)
{
    struct io *overlay;
    struct report report;
    struct check_options options = {.stop = repair->check.stop};
    int ret = io_overlay_open(repair->io, &overlay);
    if (ret < 0)
        return ret;
    ret = io_write(overlay, patch->off, patch->bytes, patch->length);
    if (ret == 0) {
        report_init(&report, 0);
        check_image(overlay, NULL, &options, &report);
        *wrong = report.corruptions + report.leaks;
        if (report.unsupported || report.incomplete || report.check_errors)
            *wrong = UINT64_MAX;
        report_release(&report);
    }
    io_close(overlay);
    return ret;
}

/* Bits in which the patch differs from what is there: damage is mostly small. */
static int distance(struct repair *repair, const struct patch *patch, unsigned *bits)
{
    uint8_t old[8];
    int ret = io_read_padded(repair->io, patch->off, old, patch->length);
    *bits = 0;
    for (size_t i = 0; ret == 0 && i < patch->length; i++)
        *bits += (unsigned)__builtin_popcount((unsigned)(old[i] ^ patch->bytes[i]));
    return ret;
}

int repair_take_best(
    struct repair *repair, enum check_id why, const struct patch *patches, size_t count)
{
    uint64_t best_wrong = UINT64_MAX;
    unsigned best_bits = UINT32_MAX;
    size_t best = 0;
    bool tie = true;
    for (size_t i = 0; i < count; i++) {
        uint64_t wrong;
        unsigned bits;
        int ret = try_patch(repair, &patches[i], &wrong);
        if (ret == 0)
            ret = distance(repair, &patches[i], &bits);
        if (ret < 0)
            return ret;
        if (wrong == UINT64_MAX || wrong > best_wrong || (wrong == best_wrong && bits > best_bits))
            continue;
        tie = wrong == best_wrong && bits == best_bits;
        best_wrong = wrong;
        best_bits = bits;
        best = i;
    }
    if (tie)
        return 0;
    return plan_bytes(&repair->plan, PHASE_SWITCH, why, patches[best].off, patches[best].bytes,
        patches[best].length);
}

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

/* Every value one bit away from the present one. */
static int try_bits(struct repair *repair, enum check_id why, uint64_t off, uint64_t value)
{
    struct patch patches[MAX_TRIES];
    for (unsigned bit = 0; bit < MAX_TRIES; bit++)
        patches[bit] = patch_be64(off, value ^ UINT64_C(1) << bit);
    return repair_take_best(repair, why, patches, MAX_TRIES);
}

/* The two fields of the compression type together: what the compressed clusters are cannot be seen
 * here, so the bit follows the type, whose unknown values are tried. */
static int mend_compression(struct repair *repair, enum check_id why)
{
    const struct qcow2_header *header = &repair->walk->header;
    uint64_t bits = header->incompatible & ~QCOW2_INCOMPAT_COMPRESSION;
    if (header->compression == QCOW2_ZSTD)
        bits |= QCOW2_INCOMPAT_COMPRESSION;
    else if (header->compression != QCOW2_ZLIB && repair->options->lossy) {
        uint8_t type = header->incompatible & QCOW2_INCOMPAT_COMPRESSION ? QCOW2_ZSTD : QCOW2_ZLIB;
        return plan_bytes(
            &repair->plan, PHASE_SWITCH, why, QCOW2_HDR_COMPRESSION, &type, sizeof(type));
    } else if (header->compression != QCOW2_ZLIB) {
        return 0;
    }
    return plan_be64(&repair->plan, PHASE_SWITCH, why, QCOW2_HDR_INCOMPATIBLE, bits);
}

/* The L1 table's size: what the disk needs, if the table's clusters have the room. */
static int mend_l1_size(struct repair *repair, enum check_id why)
{
    const struct walk *walk = repair->walk;
    uint64_t needed = l1_entries_for(&walk->geo, walk->header.size_bytes);
    struct patch patches[2] = {patch_be32(QCOW2_HDR_L1_SIZE, (uint32_t)needed),
        patch_be64(QCOW2_HDR_SIZE, walk->header.l1_size * walk->geo.l2_span)};
    if (needed == 0 || needed > QCOW2_MAX_L1_BYTES / 8)
        return repair->options->lossy ? repair_take_best(repair, why, patches + 1, 1) : 0;
    return repair_take_best(repair, why, patches, repair->options->lossy ? 2 : 1);
}

/* Data is mapped behind the disk's end.  The size was a snapshot's, perhaps, or reaches to the end
 * of what is mapped at least. */
static int mend_small_size(struct repair *repair, enum check_id why)
{
    const struct walk *walk = repair->walk;
    struct patch patches[MAX_TRIES];
    size_t count = 0;
    uint64_t mapped_end = 0;
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        bool past = f->check == CHECK_l2_entry_past_end || f->check == CHECK_l1_entry_past_end;
        if (past && f->tree == TREE_ACTIVE && mapped_end < f->guest_off + f->guest_len)
            mapped_end = f->guest_off + f->guest_len;
    }
    for (size_t i = 1; i < walk->tree_count && count < MAX_TRIES - 1; i++) {
        if (walk->trees[i].disk_size_known && walk->trees[i].disk_size >= mapped_end)
            patches[count++] = patch_be64(QCOW2_HDR_SIZE, walk->trees[i].disk_size);
    }
    if (count == 0)
        patches[count++] = patch_be64(QCOW2_HDR_SIZE, mapped_end);
    return mapped_end ? repair_take_best(repair, why, patches, count) : 0;
}

static int mend_crypt_method(struct repair *repair, enum check_id why)
{
    bool luks = repair->walk->has_crypto;
    uint32_t method = luks ? QCOW2_CRYPT_LUKS : QCOW2_CRYPT_NONE;
    if (!luks && !repair->options->lossy)
        return 0;
    return plan_be32(&repair->plan, PHASE_SWITCH, why, QCOW2_HDR_CRYPT_METHOD, method);
}

/* The name cannot be read where the header says.  Giving it up is a loss: what was never written
 * to the image came from there. */
static int drop_backing_name(struct repair *repair, enum check_id why)
{
    uint8_t zeros[12] = {0};
    if (!repair->options->lossy)
        return 0;
    int ret = plan_remark(&repair->plan, "lost: the name of the backing file");
    for (unsigned at = 0; ret == 0 && at < sizeof(zeros); at += 4)
        ret = plan_bytes(&repair->plan, PHASE_SWITCH, why, QCOW2_HDR_BACKING_OFF + at, zeros, 4);
    return ret;
}

/* Cuts the list of extensions off where it cannot be read any more. */
static int end_extensions(struct repair *repair, const struct finding *f)
{
    if (!repair->options->lossy)
        return 0;
    int ret = plan_remark(&repair->plan, "lost: the header extensions from 0x%llx on",
        (unsigned long long)f->host_off);
    return ret < 0 ? ret : plan_be64(&repair->plan, PHASE_SWITCH, f->check, f->host_off, 0);
}

/* The snapshot table: a bit away, or gone with the end of the file, or at least not to be found. */
static int mend_snapshots_off(struct repair *repair, enum check_id why)
{
    const struct qcow2_header *header = &repair->walk->header;
    uint8_t none[12] = {0};
    int ret = 0;
    if (!repair_was_cut_off(repair, header->snapshots_off) &&
        header->snapshot_count <= QCOW2_MAX_SNAPSHOTS)
        ret = try_bits(repair, why, QCOW2_HDR_SNAPSHOTS_OFF, header->snapshots_off);
    if (ret < 0 || repair->plan.count > 0)
        return ret;
    ret = plan_remark(&repair->plan, "lost: all %u snapshots, whose table cannot be found",
        header->snapshot_count);
    return ret < 0 ? ret
                   : plan_bytes(&repair->plan, PHASE_SWITCH, why, QCOW2_HDR_SNAPSHOT_COUNT, none,
                         sizeof(none));
}

/* Every combination of the bits that are known. */
static int mend_incompatible(struct repair *repair, enum check_id why)
{
    struct patch patches[QCOW2_INCOMPAT_KNOWN + 1];
    for (uint64_t bits = 0; bits <= QCOW2_INCOMPAT_KNOWN; bits++)
        patches[bits] = patch_be64(QCOW2_HDR_INCOMPATIBLE, bits);
    return repair_take_best(repair, why, patches, QCOW2_INCOMPAT_KNOWN + 1);
}

/* Extensions of fixed length: that is what the field must say. */
static int mend_ext(struct repair *repair, const struct finding *f)
{
    uint64_t type;
    int ret = plan_peek(&repair->plan, f->host_off, &type);
    type >>= 32;
    if (ret == 0 && type == QCOW2_EXT_CRYPTO)
        return plan_be32(
            &repair->plan, PHASE_SWITCH, f->check, f->host_off + 4, QCOW2_CRYPTO_EXT_BYTES);
    if (ret == 0 && type == QCOW2_EXT_BITMAPS)
        return plan_be32(
            &repair->plan, PHASE_SWITCH, f->check, f->host_off + 4, QCOW2_BITMAPS_EXT_BYTES);
    return ret < 0 || f->check != CHECK_ext_truncated ? ret : end_extensions(repair, f);
}

static int mend_field(struct repair *repair, const struct finding *f)
{
    const struct qcow2_header *header = &repair->walk->header;
    bool lossy = repair->options->lossy;
    switch (f->check) {
    case CHECK_header_magic: {
        struct patch magic = patch_be32(0, QCOW2_MAGIC);
        return lossy ? repair_take_best(repair, f->check, &magic, 1) : 0;
    }
    case CHECK_header_version:
        return lossy ? try_values(repair, f->check, QCOW2_HDR_VERSION, 2, 3) : 0;
    case CHECK_header_incompatible_unknown:
        return lossy ? mend_incompatible(repair, f->check) : 0;
    case CHECK_header_cluster_bits:
        return try_values(repair, f->check, QCOW2_HDR_CLUSTER_BITS, QCOW2_MIN_CLUSTER_BITS,
            QCOW2_MAX_CLUSTER_BITS);
    case CHECK_header_refcount_order:
        return try_values(repair, f->check, QCOW2_HDR_REFCOUNT_ORDER, 0, QCOW2_MAX_REFCOUNT_ORDER);
    case CHECK_header_length: {
        struct patch lengths[] = {
            patch_be32(QCOW2_HDR_LENGTH, 104), patch_be32(QCOW2_HDR_LENGTH, 112)};
        return repair_take_best(repair, f->check, lengths, 2);
    }
    case CHECK_header_compression_type:
    case CHECK_header_compression_bit:
        return mend_compression(repair, f->check);
    case CHECK_header_size:
    case CHECK_header_l1_too_small:
    case CHECK_header_l1_too_large:
        return mend_l1_size(repair, f->check);
    case CHECK_header_l1_outside: /* by its size: all that the disk needs of it was read */
        return repair->walk->trees[TREE_ACTIVE].usable ? mend_l1_size(repair, f->check) : 0;
    case CHECK_header_crypt_method:
    case CHECK_header_crypto_missing:
    case CHECK_ext_crypto_unexpected:
        return mend_crypt_method(repair, f->check);
    case CHECK_header_backing_name:
        return drop_backing_name(repair, f->check);
    case CHECK_ext_truncated:
    case CHECK_ext_length:
        return mend_ext(repair, f);
    case CHECK_header_snapshot_count:
    case CHECK_header_snapshots_unaligned:
    case CHECK_header_snapshots_outside:
        if (header->snapshot_count == 0) /* of no table at all */
            return plan_be64(&repair->plan, PHASE_SWITCH, f->check, QCOW2_HDR_SNAPSHOTS_OFF, 0);
        return lossy ? mend_snapshots_off(repair, f->check) : 0;
    default:
        return 0;
    }
}

/* One field a round: each changes what the others mean. */
int repair_header_fields(struct repair *repair)
{
    int ret = 0;
    for (size_t i = 0; ret == 0 && repair->plan.count == 0 && i < repair->findings.count; i++) {
        enum check_id check = repair->findings.items[i].check;
        enum object_kind kind = check_rows[check].kind;
        bool past = check == CHECK_l2_entry_past_end || check == CHECK_l1_entry_past_end;
        if (past && repair->options->lossy && repair->findings.items[i].tree == TREE_ACTIVE)
            ret = mend_small_size(repair, check);
        else if (kind == OBJECT_HEADER || kind == OBJECT_EXTENSION)
            ret = mend_field(repair, &repair->findings.items[i]);
    }
    return ret;
}
