/* SPDX-License-Identifier: MIT
 *
 * Checks of L1 entries and of L2 tables as a whole (spec: Cluster mapping). */
#include <stdio.h>

#include "check.h"

static uint64_t l2_off(const struct subject *subject)
{
    return subject->l1.raw & QCOW2_OFFSET_MASK;
}

/* The entry names a whole L2 table in the file. */
static bool usable(const struct check_view *view, const struct subject *subject)
{
    uint64_t off = l2_off(subject);
    return off != 0 && cluster_aligned(view->geo, off) && off < view->file_size;
}

CHECK_FN(l1_reserved_bits)
{
    (void)view;
    uint64_t raw = subject->l1.raw;
    return wrong_want(finding, raw & QCOW2_L1_RESERVED, raw, raw & ~QCOW2_L1_RESERVED);
}

CHECK_FN(l1_entry_unaligned)
{
    return wrong(finding, !cluster_aligned(view->geo, l2_off(subject)), subject->l1.raw);
}

CHECK_FN(l1_entry_outside)
{
    uint64_t off = l2_off(subject);
    return wrong(
        finding, off != 0 && check_outside(view, off, view->geo->cluster_size), subject->l1.raw);
}

CHECK_FN(l1_flags_without_table)
{
    (void)view;
    uint64_t raw = subject->l1.raw;
    return wrong_want(
        finding, l2_off(subject) == 0 && (raw & QCOW2_ENTRY_COPIED), raw, raw & QCOW2_L1_RESERVED);
}

static bool copied_is_judged(const struct subject *subject)
{
    return subject->l1.active && l2_off(subject) != 0 && subject->l1.facts.stored_known;
}

CHECK_FN(l1_copied_set)
{
    (void)view;
    uint64_t raw = subject->l1.raw;
    return wrong_want(finding,
        copied_is_judged(subject) && (raw & QCOW2_ENTRY_COPIED) && subject->l1.facts.stored != 1,
        raw, raw & ~QCOW2_ENTRY_COPIED);
}

CHECK_FN(l1_copied_clear)
{
    (void)view;
    uint64_t raw = subject->l1.raw;
    return wrong_want(finding,
        copied_is_judged(subject) && !(raw & QCOW2_ENTRY_COPIED) && subject->l1.facts.stored == 1,
        raw, raw | QCOW2_ENTRY_COPIED);
}

CHECK_FN(l1_entry_shared)
{
    return wrong(finding, usable(view, subject) && subject->l1.elsewhere, l2_off(subject));
}

CHECK_FN(l1_entry_into_data)
{
    /* The table's own claim made no conflict with another table or metadata, so it was data. */
    return wrong(finding,
        usable(view, subject) && subject->l1.facts.conflict && !subject->l1.elsewhere &&
            subject->l1.facts.area == AREA_L2_TABLE,
        l2_off(subject));
}

CHECK_FN(l1_entry_into_metadata)
{
    enum area_kind area = subject->l1.facts.area;
    return wrong(finding, usable(view, subject) && area != AREA_NONE && area != AREA_L2_TABLE,
        l2_off(subject));
}

CHECK_FN(l1_entry_past_end)
{
    (void)view;
    return wrong(finding, subject->l1.past_end && l2_off(subject) != 0, subject->index);
}

CHECK_FN(l1_hole)
{
    (void)view;
    /* With more holes than orphans some are none: they are told, and count for nothing. */
    if (subject->l1.hole_by_orphan && subject->l1.holes > subject->l1.orphans) {
        finding->weight = 0;
        snprintf(finding->detail, sizeof(finding->detail), "%llu of %llu such entries",
            (unsigned long long)subject->l1.orphans, (unsigned long long)subject->l1.holes);
    }
    return wrong(finding, subject->l1.hole_by_orphan, subject->l1.raw);
}

CHECK_FN(l2_table_implausible)
{
    (void)view;
    if (subject->l2_table.implausible)
        snprintf(finding->detail, sizeof(finding->detail), "%llu of %llu entries",
            (unsigned long long)subject->l2_table.absurd,
            (unsigned long long)subject->l2_table.used);
    return subject->l2_table.implausible;
}
