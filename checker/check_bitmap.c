/* SPDX-License-Identifier: MIT
 *
 * Checks of the bitmap directory, its entries and bitmap tables (spec: Bitmaps). */
#include "check.h"

static const struct qcow2_bitmap *record(const struct subject *subject)
{
    return subject->bitmap.record;
}

CHECK_FN(bitmap_directory_truncated)
{
    (void)view;
    return wrong_want(finding, subject->bitmap_directory.truncated,
        subject->bitmap_directory.readable, subject->bitmap_directory.count);
}

CHECK_FN(bitmap_directory_size)
{
    (void)view;
    return wrong_want(finding,
        !subject->bitmap_directory.truncated &&
            subject->bitmap_directory.size != subject->bitmap_directory.used,
        subject->bitmap_directory.size, subject->bitmap_directory.used);
}

CHECK_FN(bitmap_flags_reserved)
{
    (void)view;
    uint32_t flags = record(subject)->flags;
    return wrong_want(
        finding, flags & ~QCOW2_BITMAP_FLAGS_KNOWN, flags, flags & QCOW2_BITMAP_FLAGS_KNOWN);
}

CHECK_FN(bitmap_in_use)
{
    (void)view, (void)finding;
    return record(subject)->flags & QCOW2_BITMAP_IN_USE;
}

CHECK_FN(bitmap_type)
{
    (void)view;
    uint8_t type = record(subject)->type;
    return wrong(finding, type != QCOW2_BITMAP_TYPE_DIRTY, type);
}

static bool granularity_ok(const struct qcow2_bitmap *bitmap)
{
    return bitmap->granularity_bits >= QCOW2_MIN_BITMAP_GRANULARITY_BITS &&
           bitmap->granularity_bits <= QCOW2_MAX_BITMAP_GRANULARITY_BITS;
}

CHECK_FN(bitmap_granularity)
{
    (void)view;
    return wrong(finding, !granularity_ok(record(subject)), record(subject)->granularity_bits);
}

CHECK_FN(bitmap_name)
{
    (void)view;
    uint16_t length = record(subject)->name_len;
    return wrong(finding, length == 0 || length > QCOW2_MAX_BITMAP_NAME, length);
}

CHECK_FN(bitmap_name_repeated)
{
    (void)view, (void)finding;
    return subject->bitmap.name_repeated;
}

CHECK_FN(bitmap_extra_data)
{
    (void)view;
    return wrong(finding, record(subject)->extra_len > 0, record(subject)->extra_len);
}

CHECK_FN(bitmap_table_size)
{
    const struct qcow2_bitmap *bitmap = record(subject);
    if (!granularity_ok(bitmap))
        return false;
    /* QEMU sees a disk as whole sectors. */
    uint64_t size = view->header->size_bytes / QCOW2_SECTOR_BYTES * QCOW2_SECTOR_BYTES;
    uint64_t want = clusters_for(view->geo, qcow2_bitmap_bytes(size, bitmap->granularity_bits));
    /* The content of a bitmap in use may be out of date, its size included (spec: in_use). */
    bool stale = bitmap->flags & QCOW2_BITMAP_IN_USE;
    return wrong_want(finding, bitmap->table_size != want && !stale, bitmap->table_size, want);
}

CHECK_FN(bitmap_table_range)
{
    const struct qcow2_bitmap *bitmap = record(subject);
    bool bad = bitmap->table_off == 0 || !cluster_aligned(view->geo, bitmap->table_off) ||
               bitmap->table_size > QCOW2_MAX_BITMAP_TABLE_ENTRIES ||
               check_outside(view, bitmap->table_off, (uint64_t)bitmap->table_size * 8);
    return wrong(finding, bitmap->table_size > 0 && bad, bitmap->table_off);
}

static uint64_t data_off(const struct subject *subject)
{
    return subject->bitmap_entry.raw & QCOW2_OFFSET_MASK;
}

CHECK_FN(bitmap_entry_reserved)
{
    (void)view;
    uint64_t raw = subject->bitmap_entry.raw;
    /* Bit 0 says "all ones" where there is no cluster, and is reserved where there is one. */
    uint64_t reserved = QCOW2_BITMAP_RESERVED | (data_off(subject) ? 1 : 0);
    return wrong_want(finding, raw & reserved, raw, raw & ~reserved);
}

CHECK_FN(bitmap_entry_unaligned)
{
    return wrong(
        finding, !cluster_aligned(view->geo, data_off(subject)), subject->bitmap_entry.raw);
}

CHECK_FN(bitmap_entry_outside)
{
    uint64_t off = data_off(subject);
    return wrong(finding, off != 0 && check_outside(view, off, view->geo->cluster_size), off);
}
