/* SPDX-License-Identifier: MIT
 *
 * Checks of the refcount table, its blocks, and of every cluster's count (spec: Host cluster
 * management). */
#include "check.h"

static uint64_t refblock_off(const struct subject *subject)
{
    return subject->reftable.raw & QCOW2_REFTABLE_MASK;
}

CHECK_FN(reftable_reserved_bits)
{
    (void)view;
    uint64_t raw = subject->reftable.raw;
    return wrong_want(finding, raw & QCOW2_REFTABLE_RSVD, raw, raw & QCOW2_REFTABLE_MASK);
}

/* Reserved bits come first: an entry that has some is wrong once, whatever its offset is. */
static bool reserved(const struct subject *subject)
{
    return subject->reftable.raw & QCOW2_REFTABLE_RSVD;
}

CHECK_FN(reftable_entry_unaligned)
{
    return wrong(finding, !reserved(subject) && !cluster_aligned(view->geo, refblock_off(subject)),
        subject->reftable.raw);
}

CHECK_FN(reftable_entry_outside)
{
    /* Unlike other metadata a block must begin in the file: growing images keep it whole. */
    uint64_t off = refblock_off(subject);
    return wrong(finding,
        !reserved(subject) && cluster_aligned(view->geo, off) && off >= view->file_size, off);
}

CHECK_FN(refblock_shared)
{
    uint64_t refs = subject->reftable.refs_seen, max = view->geo->refcount_max;
    return wrong_want(finding, refs != 0 && (refs < max ? refs : max) != 1, refs, 1);
}

/* What the stored count can be at best. */
static uint64_t countable(const struct check_view *view, const struct cluster_facts *facts)
{
    uint64_t max = view->geo->refcount_max;
    return facts->refs < max ? facts->refs : max;
}

static bool judged(const struct subject *subject)
{
    return subject->cluster.facts.stored_known && !subject->cluster.past_end;
}

CHECK_FN(refcount_too_low)
{
    const struct cluster_facts *facts = &subject->cluster.facts;
    uint64_t want = countable(view, facts);
    return wrong_want(finding, judged(subject) && facts->stored < want, facts->stored, want);
}

CHECK_FN(refcount_too_high)
{
    const struct cluster_facts *facts = &subject->cluster.facts;
    uint64_t want = countable(view, facts);
    return wrong_want(
        finding, judged(subject) && want > 0 && facts->stored > want, facts->stored, want);
}

CHECK_FN(cluster_leaked)
{
    (void)view;
    const struct cluster_facts *facts = &subject->cluster.facts;
    return wrong_want(
        finding, judged(subject) && facts->refs == 0 && facts->stored > 0, facts->stored, 0);
}

CHECK_FN(refcount_overflow)
{
    uint64_t refs = subject->cluster.facts.refs, max = view->geo->refcount_max;
    if (refs <= max)
        return false;
    finding_got_want(finding, refs, max);
    finding->weight = capped_product(finding->weight, refs - max);
    return true;
}

CHECK_FN(refcount_past_end)
{
    (void)view;
    const struct cluster_facts *facts = &subject->cluster.facts;
    return wrong_want(finding, subject->cluster.past_end && facts->stored > 0, facts->stored, 0);
}
