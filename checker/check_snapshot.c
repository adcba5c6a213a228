/* SPDX-License-Identifier: MIT
 *
 * Checks of the snapshot table and its records (spec: Snapshots). */
#include <string.h>

#include "check.h"

static const struct qcow2_snapshot *record(const struct subject *subject)
{
    return subject->snapshot.record;
}

CHECK_FN(snapshot_table_truncated)
{
    (void)view;
    return wrong_want(finding,
        subject->snapshot_table.truncated && !subject->snapshot_table.too_large,
        subject->snapshot_table.readable, subject->snapshot_table.count);
}

CHECK_FN(snapshot_table_too_large)
{
    (void)view;
    return wrong_want(finding, subject->snapshot_table.too_large, subject->snapshot_table.readable,
        subject->snapshot_table.count);
}

CHECK_FN(snapshot_extra_short)
{
    uint32_t have = record(subject)->extra_len;
    return wrong_want(finding, view->geo->version >= 3 && have < QCOW2_SNAPSHOT_EXTRA_V3, have,
        QCOW2_SNAPSHOT_EXTRA_V3);
}

CHECK_FN(snapshot_extra_long)
{
    (void)view;
    uint32_t have = record(subject)->extra_len;
    return wrong_want(finding, have > QCOW2_MAX_SNAPSHOT_EXTRA, have, QCOW2_MAX_SNAPSHOT_EXTRA);
}

static uint64_t l1_bytes(const struct subject *subject)
{
    return (uint64_t)record(subject)->l1_size * 8;
}

CHECK_FN(snapshot_l1_unaligned)
{
    uint64_t off = record(subject)->l1_off;
    return wrong(finding, !cluster_aligned(view->geo, off), off);
}

CHECK_FN(snapshot_l1_too_large)
{
    return wrong(finding,
        cluster_aligned(view->geo, record(subject)->l1_off) &&
            l1_bytes(subject) > QCOW2_MAX_L1_BYTES,
        record(subject)->l1_size);
}

CHECK_FN(snapshot_l1_outside)
{
    uint64_t off = record(subject)->l1_off;
    return wrong(finding,
        record(subject)->l1_size > 0 && cluster_aligned(view->geo, off) &&
            l1_bytes(subject) <= QCOW2_MAX_L1_BYTES && check_outside(view, off, l1_bytes(subject)),
        off);
}

static bool size_unmappable(const struct check_view *view, uint64_t size_bytes)
{
    return size_bytes > INT64_MAX || l1_entries_for(view->geo, size_bytes) > QCOW2_MAX_L1_BYTES / 8;
}

CHECK_FN(snapshot_disk_size)
{
    uint64_t size = subject->snapshot.disk_size;
    return wrong(finding, record(subject)->has_disk_size && size_unmappable(view, size), size);
}

CHECK_FN(snapshot_l1_too_small)
{
    uint64_t size = subject->snapshot.disk_size;
    if (size_unmappable(view, size))
        return false;
    uint64_t need = l1_entries_for(view->geo, size);
    return wrong_want(finding, record(subject)->l1_size < need, record(subject)->l1_size, need);
}

CHECK_FN(snapshot_id_repeated)
{
    (void)view, (void)finding;
    return subject->snapshot.id_repeated;
}

CHECK_FN(snapshot_id_empty)
{
    (void)view, (void)finding;
    return record(subject)->id_len == 0;
}

CHECK_FN(snapshot_name_shadows_id)
{
    (void)view, (void)finding;
    return subject->snapshot.name_shadows_id;
}

CHECK_FN(snapshot_text)
{
    (void)view;
    const struct qcow2_snapshot *s = record(subject);
    bool hit = (s->id_len > 0 && memchr(s->id, 0, s->id_len)) ||
               (s->name_len > 0 && memchr(s->name, 0, s->name_len));
    return wrong(finding, hit, s->extra_len);
}

CHECK_FN(snapshot_vm_state_size)
{
    const struct qcow2_snapshot *s = record(subject);
    uint64_t size = subject->snapshot.disk_size;
    if (s->vm_state_size == 0 || size_unmappable(view, size))
        return false;
    uint64_t first = l1_entries_for(view->geo, size);
    uint64_t room = s->l1_size > first ? capped_product(s->l1_size - first, view->geo->l2_span) : 0;
    return wrong_want(finding, s->vm_state_size > room, s->vm_state_size, room);
}

CHECK_FN(snapshot_date)
{
    (void)view;
    uint32_t nsec = record(subject)->date_nsec;
    return wrong(finding, nsec >= 1000000000, nsec);
}
