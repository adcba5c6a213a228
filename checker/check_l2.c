/* SPDX-License-Identifier: MIT
 *
 * Checks of L2 entries and of decoded compressed clusters (spec: Cluster mapping, Extended L2
 * Entries). */
#include <errno.h>

#include "check.h"

static const struct qcow2_l2_entry *entry(const struct subject *subject)
{
    return &subject->l2.entry;
}

static bool compressed(const struct subject *subject)
{
    return entry(subject)->kind == QCOW2_L2_COMPRESSED;
}

/* Names a host cluster of its own, in the image or in the data file. */
static bool has_cluster(const struct subject *subject)
{
    return entry(subject)->kind == QCOW2_L2_NORMAL || entry(subject)->kind == QCOW2_L2_ZERO_ALLOC;
}

static bool has_cluster_here(const struct check_view *view, const struct subject *subject)
{
    return has_cluster(subject) && !view->geo->data_file;
}

CHECK_FN(l2_reserved_bits)
{
    (void)view;
    uint64_t raw = entry(subject)->raw;
    return wrong_want(
        finding, !compressed(subject) && (raw & QCOW2_L2_RESERVED), raw, raw & ~QCOW2_L2_RESERVED);
}

CHECK_FN(l2_entry_unaligned)
{
    return wrong(finding,
        has_cluster(subject) && !cluster_aligned(view->geo, entry(subject)->host_off),
        entry(subject)->raw);
}

CHECK_FN(l2_entry_outside)
{
    const struct qcow2_l2_entry *e = entry(subject);
    return wrong(finding,
        has_cluster_here(view, subject) && check_outside(view, e->host_off, e->length), e->raw);
}

CHECK_FN(l2_entry_cut)
{
    const struct qcow2_l2_entry *e = entry(subject);
    /* Only what the disk shows of the cluster can be missed. */
    uint64_t end = e->host_off + subject->guest_len;
    return wrong_want(finding,
        has_cluster_here(view, subject) && e->kind == QCOW2_L2_NORMAL && !e->bitmap &&
            end > view->file_size && !check_outside(view, e->host_off, e->length),
        view->file_size, end);
}

/* COPIED has a meaning in the active disk's tables only, and counts as often as it has the table.
 */
static bool copied_wrong(
    const struct subject *subject, struct finding *finding, bool hit, uint64_t want)
{
    const struct qcow2_l2_entry *e = entry(subject);
    if (!hit || subject->l2.active_refs == 0 || !has_cluster(subject) ||
        !subject->l2.facts.stored_known)
        return false;
    finding->weight = subject->l2.active_refs;
    return wrong_want(finding, true, e->raw, want);
}

CHECK_FN(l2_copied_set)
{
    (void)view;
    const struct qcow2_l2_entry *e = entry(subject);
    return copied_wrong(
        subject, finding, e->copied && subject->l2.facts.stored != 1, e->raw & ~QCOW2_ENTRY_COPIED);
}

CHECK_FN(l2_copied_clear)
{
    (void)view;
    const struct qcow2_l2_entry *e = entry(subject);
    return copied_wrong(
        subject, finding, !e->copied && subject->l2.facts.stored == 1, e->raw | QCOW2_ENTRY_COPIED);
}

CHECK_FN(l2_copied_unallocated)
{
    /* In a data file offset 0 is a place like any other. */
    const struct qcow2_l2_entry *e = entry(subject);
    bool hit = e->copied && !has_cluster(subject) && !compressed(subject) && !view->geo->data_file;
    return wrong_want(finding, hit, e->raw, e->raw & ~QCOW2_ENTRY_COPIED);
}

CHECK_FN(l2_zero_flag)
{
    const struct qcow2_l2_entry *e = entry(subject);
    return wrong_want(finding,
        view->geo->version < 3 && !compressed(subject) && (e->raw & QCOW2_ENTRY_ZERO), e->raw,
        e->raw & ~QCOW2_ENTRY_ZERO);
}

CHECK_FN(l2_compressed_copied)
{
    (void)view;
    const struct qcow2_l2_entry *e = entry(subject);
    return wrong_want(
        finding, compressed(subject) && e->copied, e->raw, e->raw & ~QCOW2_ENTRY_COPIED);
}

/* An entry that is refused before its data is looked at. */
static bool compressed_refused(const struct check_view *view, const struct subject *subject)
{
    return view->geo->data_file || entry(subject)->bitmap != 0;
}

CHECK_FN(l2_compressed_outside)
{
    const struct qcow2_l2_entry *e = entry(subject);
    return wrong(finding,
        compressed(subject) && !compressed_refused(view, subject) &&
            check_outside(view, e->host_off, e->length),
        e->raw);
}

CHECK_FN(l2_compressed_size)
{
    /* Deflate or zstd data that is larger than the cluster is stored as a normal cluster. */
    const struct qcow2_l2_entry *e = entry(subject);
    uint64_t most = (uint64_t)view->geo->cluster_size + QCOW2_SECTOR_BYTES;
    return wrong(finding, compressed(subject) && e->length > most, e->length);
}

CHECK_FN(l2_compressed_bitmap)
{
    const struct qcow2_l2_entry *e = entry(subject);
    return wrong_want(
        finding, compressed(subject) && !view->geo->data_file && e->bitmap != 0, e->bitmap, 0);
}

CHECK_FN(l2_compressed_data_file)
{
    return wrong(finding, compressed(subject) && view->geo->data_file, entry(subject)->raw);
}

CHECK_FN(l2_subcluster_conflict)
{
    (void)view;
    uint64_t bitmap = entry(subject)->bitmap;
    return wrong(finding, has_cluster(subject) && (bitmap >> 32 & bitmap), bitmap);
}

CHECK_FN(l2_subcluster_unallocated)
{
    (void)view;
    uint64_t bitmap = entry(subject)->bitmap;
    return wrong_want(finding,
        entry(subject)->kind == QCOW2_L2_UNALLOCATED && (bitmap & QCOW2_SUBCLUSTER_ALLOC), bitmap,
        bitmap & ~QCOW2_SUBCLUSTER_ALLOC);
}

CHECK_FN(l2_subcluster_zero_flag)
{
    const struct qcow2_l2_entry *e = entry(subject);
    return wrong_want(finding,
        view->geo->extended_l2 && !compressed(subject) && (e->raw & QCOW2_ENTRY_ZERO), e->raw,
        e->raw & ~QCOW2_ENTRY_ZERO);
}

CHECK_FN(l2_subcluster_is_entry)
{
    (void)view;
    return wrong(finding, subject->l2.bitmap_leaked, entry(subject)->bitmap);
}

CHECK_FN(l2_entry_past_end)
{
    (void)view;
    finding->weight = 1; /* of the disks that have the table, others may be larger */
    finding->tree = subject->l2.past_end_tree;
    return wrong(finding, subject->l2.past_end && (has_cluster(subject) || compressed(subject)),
        entry(subject)->raw);
}

CHECK_FN(l2_entry_into_metadata)
{
    enum area_kind area =
        compressed(subject) ? subject->l2.compressed_area : subject->l2.facts.area;
    return wrong(finding,
        (has_cluster_here(view, subject) || compressed(subject)) && area != AREA_NONE,
        entry(subject)->raw);
}

CHECK_FN(l2_entry_shared)
{
    bool conflict =
        compressed(subject) ? subject->l2.compressed_conflict : subject->l2.facts.conflict;
    enum area_kind area =
        compressed(subject) ? subject->l2.compressed_area : subject->l2.facts.area;
    return wrong(finding,
        (has_cluster_here(view, subject) || compressed(subject)) && conflict && area == AREA_NONE,
        entry(subject)->raw);
}

CHECK_FN(l2_data_file_offset)
{
    const struct qcow2_l2_entry *e = entry(subject);
    uint64_t want = subject->guest_off;
    return wrong_want(finding, view->geo->data_file && has_cluster(subject) && e->host_off != want,
        e->host_off, want);
}

CHECK_FN(compressed_undecodable)
{
    (void)view, (void)finding;
    return subject->compressed.result == -EBADMSG;
}

CHECK_FN(compressed_short)
{
    (void)view, (void)finding;
    return subject->compressed.result == -ENODATA;
}

CHECK_FN(compressed_long)
{
    (void)view, (void)finding;
    return subject->compressed.result == -EOVERFLOW;
}
