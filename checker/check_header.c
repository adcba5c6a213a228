/* SPDX-License-Identifier: MIT
 *
 * Checks of the header's fields and of the header extensions (spec: Header, Header extensions). */
#include <stdio.h>
#include <string.h>

#include "check.h"

/* ---- can it be judged at all ---- */

CHECK_FN(header_magic)
{
    (void)subject;
    return wrong_want(
        finding, view->header->magic != QCOW2_MAGIC, view->header->magic, QCOW2_MAGIC);
}

CHECK_FN(header_version)
{
    (void)subject;
    uint32_t version = view->header->version;
    return wrong(finding, version != 2 && version != 3, version);
}

CHECK_FN(header_truncated)
{
    (void)view;
    struct qcow2_header header;
    return wrong(finding,
        qcow2_header_decode(subject->header.bytes, subject->header.length, &header) < 0,
        subject->header.length);
}

/* Looks a feature bit up in the image's own feature name table (spec: Feature name table). */
static void name_feature(
    const struct subject *subject, unsigned type, unsigned bit, char *out, size_t out_len)
{
    const struct qcow2_ext *table = &subject->header.feature_names;
    snprintf(out, out_len, "bit %u", bit);
    for (size_t at = 0; table->data && at + QCOW2_FEATURE_NAME_BYTES <= table->length;
         at += QCOW2_FEATURE_NAME_BYTES) {
        const uint8_t *entry = table->data + at;
        if (entry[0] == type && entry[1] == bit) {
            snprintf(out, out_len, "bit %u, %.46s", bit, (const char *)entry + 2);
            return;
        }
    }
}

static bool unknown_bits(const struct subject *subject, struct finding *finding, unsigned type,
    uint64_t bits, uint64_t known)
{
    uint64_t unknown = bits & ~known;
    if (!unknown)
        return false;
    finding_got_want(finding, bits, bits & known);
    name_feature(subject, type, (unsigned)__builtin_ctzll(unknown), finding->detail,
        sizeof(finding->detail));
    return true;
}

CHECK_FN(header_incompatible_unknown)
{
    return unknown_bits(subject, finding, 0, view->header->incompatible, QCOW2_INCOMPAT_KNOWN);
}

CHECK_FN(header_compatible_unknown)
{
    return unknown_bits(subject, finding, 1, view->header->compatible, QCOW2_COMPAT_KNOWN);
}

CHECK_FN(header_autoclear_unknown)
{
    return unknown_bits(subject, finding, 2, view->header->autoclear, QCOW2_AUTOCLEAR_KNOWN);
}

CHECK_FN(header_cluster_bits)
{
    (void)subject;
    const struct qcow2_header *header = view->header;
    unsigned least = header->incompatible & QCOW2_INCOMPAT_EXTL2 ? QCOW2_MIN_CLUSTER_BITS_EXTL2
                                                                 : QCOW2_MIN_CLUSTER_BITS;
    return wrong(finding,
        header->cluster_bits < least || header->cluster_bits > QCOW2_MAX_CLUSTER_BITS,
        header->cluster_bits);
}

CHECK_FN(header_refcount_order)
{
    (void)subject;
    uint32_t order = view->header->refcount_order;
    return wrong(finding, order > QCOW2_MAX_REFCOUNT_ORDER, order);
}

/* ---- fields ---- */

CHECK_FN(header_length)
{
    (void)subject;
    const struct qcow2_header *header = view->header;
    uint32_t length = header->header_length;
    return wrong(finding,
        header->version >= 3 &&
            (length < QCOW2_V3_HEADER_BYTES || length % 8 != 0 || length > view->geo->cluster_size),
        length);
}

static bool all_zero(const struct subject *subject, size_t from, size_t to)
{
    for (size_t i = from; i < to && i < subject->header.length; i++) {
        if (subject->header.bytes[i] != 0)
            return false;
    }
    return true;
}

enum { COMPRESSION_FIELD_END = 112 }; /* the field is one byte, the rest of its 8 are padding */

CHECK_FN(header_unknown_fields)
{
    return wrong(finding, !all_zero(subject, COMPRESSION_FIELD_END, view->header->header_length),
        view->header->header_length);
}

CHECK_FN(header_padding)
{
    uint32_t length = view->header->header_length;
    size_t end = length < COMPRESSION_FIELD_END ? length : COMPRESSION_FIELD_END;
    (void)finding;
    return !all_zero(subject, QCOW2_HDR_COMPRESSION + 1, end);
}

static bool size_unmappable(const struct qcow2_geometry *geo, uint64_t size_bytes)
{
    return size_bytes > INT64_MAX || l1_entries_for(geo, size_bytes) > QCOW2_MAX_L1_BYTES / 8;
}

CHECK_FN(header_size)
{
    (void)subject;
    uint64_t size = view->header->size_bytes;
    return wrong(finding, size_unmappable(view->geo, size), size);
}

CHECK_FN(header_l1_too_small)
{
    (void)subject;
    if (size_unmappable(view->geo, view->header->size_bytes)) /* then the size is what is wrong */
        return false;
    uint64_t need = l1_entries_for(view->geo, view->header->size_bytes);
    uint32_t have = view->header->l1_size;
    if (have >= need)
        return false;
    finding_got_want(finding, have, need);
    finding->guest_off = have * view->geo->l2_span;
    finding->guest_len = view->header->size_bytes - finding->guest_off;
    return true;
}

static uint64_t l1_bytes(const struct check_view *view)
{
    return (uint64_t)view->header->l1_size * 8;
}

CHECK_FN(header_l1_too_large)
{
    (void)subject;
    return wrong(finding, l1_bytes(view) > QCOW2_MAX_L1_BYTES, view->header->l1_size);
}

CHECK_FN(header_l1_unaligned)
{
    (void)subject;
    uint64_t off = view->header->l1_off;
    return wrong(finding, !cluster_aligned(view->geo, off), off);
}

CHECK_FN(header_l1_outside)
{
    (void)subject;
    const struct qcow2_header *header = view->header;
    /* Offset 0 is the header's own place. */
    bool misplaced =
        header->l1_off == 0 || check_outside(view, header->l1_off, (uint64_t)header->l1_size * 8);
    return wrong(finding,
        header->l1_size > 0 && header->l1_size <= QCOW2_MAX_L1_BYTES / 8 &&
            cluster_aligned(view->geo, header->l1_off) && misplaced,
        header->l1_off);
}

CHECK_FN(header_reftable_missing)
{
    (void)subject;
    const struct qcow2_header *header = view->header;
    return header->reftable_clusters == 0 ? wrong(finding, true, 0)
                                          : wrong(finding, header->reftable_off == 0, 0);
}

static uint64_t reftable_bytes(const struct check_view *view)
{
    return (uint64_t)view->header->reftable_clusters << view->geo->cluster_bits;
}

CHECK_FN(header_reftable_too_large)
{
    (void)subject;
    return wrong(
        finding, reftable_bytes(view) > QCOW2_MAX_REFTABLE_BYTES, view->header->reftable_clusters);
}

CHECK_FN(header_reftable_unaligned)
{
    (void)subject;
    uint64_t off = view->header->reftable_off;
    return wrong(finding, !cluster_aligned(view->geo, off), off);
}

CHECK_FN(header_reftable_outside)
{
    (void)subject;
    const struct qcow2_header *header = view->header;
    return wrong(finding,
        header->reftable_clusters > 0 && cluster_aligned(view->geo, header->reftable_off) &&
            reftable_bytes(view) <= QCOW2_MAX_REFTABLE_BYTES &&
            check_outside(view, header->reftable_off, reftable_bytes(view)),
        header->reftable_off);
}

CHECK_FN(header_snapshot_count)
{
    (void)subject;
    uint32_t count = view->header->snapshot_count;
    if (count <= QCOW2_MAX_SNAPSHOTS)
        return false;
    finding_got_want(finding, count, QCOW2_MAX_SNAPSHOTS);
    return true;
}

CHECK_FN(header_snapshots_unaligned)
{
    (void)subject;
    const struct qcow2_header *header = view->header;
    return wrong(
        finding, !cluster_aligned(view->geo, header->snapshots_off), header->snapshots_off);
}

CHECK_FN(header_snapshots_outside)
{
    (void)subject;
    const struct qcow2_header *header = view->header;
    /* Without snapshots the offset means nothing, but programs refuse an absurd one all the same.
     */
    uint64_t limit = header->snapshot_count > 0 ? view->file_size - 1 : INT64_MAX;
    bool in_header = header->snapshot_count > 0 && header->snapshots_off == 0;
    return wrong(finding, in_header || header->snapshots_off > limit, header->snapshots_off);
}

CHECK_FN(header_crypt_method)
{
    (void)subject;
    uint32_t method = view->header->crypt_method;
    return wrong(finding, method > QCOW2_CRYPT_LUKS, method);
}

CHECK_FN(header_crypto_missing)
{
    (void)finding;
    return view->header->crypt_method == QCOW2_CRYPT_LUKS && !subject->header.has_crypto_ext;
}

CHECK_FN(header_compression_type)
{
    (void)subject;
    uint8_t type = view->header->compression;
    return wrong(finding, type > QCOW2_ZSTD, type);
}

CHECK_FN(header_compression_bit)
{
    (void)subject;
    bool bit = view->header->incompatible & QCOW2_INCOMPAT_COMPRESSION;
    uint8_t type = view->header->compression;
    return wrong(finding, bit != (type != 0), type);
}

CHECK_FN(header_dirty)
{
    (void)subject, (void)finding;
    return view->header->incompatible & QCOW2_INCOMPAT_DIRTY;
}

CHECK_FN(header_corrupt)
{
    (void)subject, (void)finding;
    return view->header->incompatible & QCOW2_INCOMPAT_CORRUPT;
}

CHECK_FN(header_bitmaps_bit)
{
    (void)finding;
    return (view->header->autoclear & QCOW2_AUTOCLEAR_BITMAPS) && !subject->header.has_bitmaps_ext;
}

CHECK_FN(header_raw_data_bit)
{
    (void)subject, (void)finding;
    return (view->header->autoclear & QCOW2_AUTOCLEAR_RAW_DATA) && !view->geo->data_file;
}

CHECK_FN(header_raw_data_backing)
{
    (void)subject, (void)finding;
    return (view->header->autoclear & QCOW2_AUTOCLEAR_RAW_DATA) && view->has_backing;
}

CHECK_FN(header_data_file_snapshots)
{
    (void)subject;
    return wrong(finding, view->geo->data_file && view->header->snapshot_count > 0,
        view->header->snapshot_count);
}

CHECK_FN(header_backing_name)
{
    (void)subject;
    const struct qcow2_header *header = view->header;
    if (header->backing_off == 0)
        return false;
    uint64_t end; /* the offset is judged without a name, too: it ends the header extensions */
    bool bad = header->backing_len > QCOW2_MAX_BACKING_NAME ||
               header->backing_off < header->header_length ||
               !range_end(header->backing_off, header->backing_len, &end) ||
               end > view->geo->cluster_size || end > view->file_size;
    return wrong(finding, bad, header->backing_off);
}

/* ---- extensions ---- */

CHECK_FN(ext_truncated)
{
    (void)view;
    return wrong(finding, subject->ext.truncated, subject->ext.ext.length);
}

CHECK_FN(ext_repeated)
{
    (void)view;
    return wrong(finding, subject->ext.repeated, subject->ext.ext.type);
}

static bool ext_known(uint32_t type)
{
    switch (type) {
    case QCOW2_EXT_END: /* shown only where even a head has no room */
    case QCOW2_EXT_FEATURE_NAMES:
    case QCOW2_EXT_BITMAPS:
    case QCOW2_EXT_CRYPTO:
    case QCOW2_EXT_DATA_FILE:
    case (uint32_t)QCOW2_EXT_BACKING_FORMAT:
        return true;
    default:
        return false;
    }
}

CHECK_FN(ext_unknown)
{
    (void)view;
    return wrong(finding, !ext_known(subject->ext.ext.type), subject->ext.ext.type);
}

enum { MAX_FORMAT_NAME = 15 };

CHECK_FN(ext_length)
{
    (void)view;
    uint32_t length = subject->ext.ext.length;
    switch (subject->ext.ext.type) {
    case QCOW2_EXT_BITMAPS:
        return wrong_want(
            finding, length != QCOW2_BITMAPS_EXT_BYTES, length, QCOW2_BITMAPS_EXT_BYTES);
    case QCOW2_EXT_CRYPTO:
        return wrong_want(
            finding, length != QCOW2_CRYPTO_EXT_BYTES, length, QCOW2_CRYPTO_EXT_BYTES);
    case QCOW2_EXT_FEATURE_NAMES:
        return wrong(finding, length % QCOW2_FEATURE_NAME_BYTES != 0, length);
    case (uint32_t)QCOW2_EXT_BACKING_FORMAT: /* QEMU; names of formats are short */
        return wrong_want(finding, length > MAX_FORMAT_NAME, length, MAX_FORMAT_NAME);
    default:
        return false;
    }
}

/* True if this is a whole bitmaps extension, which is then decoded.  Without its bit in the header
 * it counts for nothing (spec: autoclear_features). */
static bool bitmaps_ext(
    const struct check_view *view, const struct subject *subject, struct qcow2_bitmaps_ext *bitmaps)
{
    const struct qcow2_ext *ext = &subject->ext.ext;
    if (ext->type != QCOW2_EXT_BITMAPS || ext->length != QCOW2_BITMAPS_EXT_BYTES || !ext->data ||
        !(view->header->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return false;
    qcow2_bitmaps_ext_decode(ext->data, bitmaps);
    return true;
}

CHECK_FN(ext_bitmaps_reserved)
{
    struct qcow2_bitmaps_ext bitmaps;
    return bitmaps_ext(view, subject, &bitmaps) &&
           wrong_want(finding, bitmaps.reserved != 0, bitmaps.reserved, 0);
}

CHECK_FN(ext_bitmaps_count)
{
    struct qcow2_bitmaps_ext bitmaps;
    return bitmaps_ext(view, subject, &bitmaps) &&
           wrong(finding, bitmaps.bitmap_count == 0 || bitmaps.bitmap_count > QCOW2_MAX_BITMAPS,
               bitmaps.bitmap_count);
}

/* An entry takes at most its head, a name and padding; QEMU has no extra data. */
#define MAX_DIRECTORY_BYTES \
    ((uint64_t)QCOW2_MAX_BITMAPS * (QCOW2_BITMAP_HEAD_BYTES + QCOW2_MAX_BITMAP_NAME + 1))

CHECK_FN(ext_bitmaps_directory)
{
    struct qcow2_bitmaps_ext bitmaps;
    if (!bitmaps_ext(view, subject, &bitmaps))
        return false;
    bool bad = bitmaps.directory_size == 0 || bitmaps.directory_size > MAX_DIRECTORY_BYTES ||
               !cluster_aligned(view->geo, bitmaps.directory_off) || bitmaps.directory_off == 0 ||
               check_outside(view, bitmaps.directory_off, bitmaps.directory_size);
    return wrong(finding, bad, bitmaps.directory_off);
}

CHECK_FN(ext_bitmaps_stale)
{
    (void)finding;
    return subject->ext.ext.type == QCOW2_EXT_BITMAPS &&
           !(view->header->autoclear & QCOW2_AUTOCLEAR_BITMAPS);
}

/* Where the LUKS header should be, if the extension is of the length that tells it. */
static bool luks_range(const struct subject *subject, uint64_t *off, uint64_t *length)
{
    const struct qcow2_ext *ext = &subject->ext.ext;
    if (ext->type != QCOW2_EXT_CRYPTO || ext->length != QCOW2_CRYPTO_EXT_BYTES || !ext->data)
        return false;
    *off = load_be64(ext->data);
    *length = load_be64(ext->data + 8);
    return true;
}

static bool luks_misplaced(const struct check_view *view, uint64_t off, uint64_t length)
{
    return off == 0 || length == 0 || length > INT64_MAX || !cluster_aligned(view->geo, off);
}

CHECK_FN(ext_crypto_range)
{
    uint64_t off, length;
    return luks_range(subject, &off, &length) &&
           wrong(finding, luks_misplaced(view, off, length), off);
}

CHECK_FN(ext_crypto_outside)
{
    uint64_t off, length;
    return luks_range(subject, &off, &length) && !luks_misplaced(view, off, length) &&
           wrong(finding, check_outside(view, off, length), off);
}

CHECK_FN(ext_crypto_unexpected)
{
    return wrong(finding,
        subject->ext.ext.type == QCOW2_EXT_CRYPTO && view->header->crypt_method != QCOW2_CRYPT_LUKS,
        view->header->crypt_method);
}

CHECK_FN(ext_unused)
{
    uint32_t type = subject->ext.ext.type;
    return wrong(finding,
        (type == (uint32_t)QCOW2_EXT_BACKING_FORMAT && !view->has_backing) ||
            (type == QCOW2_EXT_DATA_FILE && !view->geo->data_file),
        type);
}
