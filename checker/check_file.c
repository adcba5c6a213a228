/* SPDX-License-Identifier: MIT
 *
 * Checks of the file as a whole and of what lies beside it: pieces of metadata that overlap, lost
 * tables, the data file, the backing chain, and what could not be read. */
#include <stdio.h>

#include "check.h"

CHECK_FN(area_shared)
{
    (void)view;
    if (subject->area.conflict)
        snprintf(
            finding->detail, sizeof(finding->detail), "%s", area_kind_name(subject->area.kind));
    return subject->area.conflict;
}

/* Says which file it is, as far as there is room. */
static bool named(struct finding *finding, bool hit, const uint8_t *name, size_t length)
{
    if (hit && name)
        snprintf(finding->detail, sizeof(finding->detail), "%.*s",
            (int)(length < sizeof(finding->detail) ? length : sizeof(finding->detail)),
            (const char *)name);
    return hit;
}

static bool about_data_file(const struct subject *subject, struct finding *finding, bool hit)
{
    return named(finding, hit, subject->data_file.name, subject->data_file.name_len);
}

CHECK_FN(data_file_name)
{
    (void)view;
    return about_data_file(subject, finding, subject->data_file.unsafe_name);
}

CHECK_FN(data_file_missing)
{
    (void)view;
    return about_data_file(subject, finding, subject->data_file.missing);
}

CHECK_FN(data_file_short)
{
    (void)view;
    bool hit = !subject->data_file.missing && !subject->data_file.unsafe_name &&
               subject->data_file.size < subject->data_file.wanted;
    return about_data_file(subject, finding,
        wrong_want(finding, hit, subject->data_file.size, subject->data_file.wanted));
}

static bool about_backing(const struct subject *subject, struct finding *finding, bool hit)
{
    return named(finding, hit, subject->backing.name, subject->backing.name_len);
}

CHECK_FN(backing_name)
{
    (void)view;
    return about_backing(subject, finding, subject->backing.unsafe_name);
}

CHECK_FN(backing_missing)
{
    (void)view;
    return about_backing(subject, finding, subject->backing.missing);
}

CHECK_FN(backing_format)
{
    (void)view;
    return about_backing(subject, finding, subject->backing.wrong_format);
}

CHECK_FN(backing_loop)
{
    (void)view;
    return about_backing(subject, finding, subject->backing.loop);
}

CHECK_FN(backing_depth)
{
    (void)view;
    return about_backing(subject, finding, subject->backing.too_deep);
}

CHECK_FN(backing_size)
{
    (void)view;
    bool hit = subject->backing.size > subject->backing.wanted;
    return about_backing(
        subject, finding, wrong_want(finding, hit, subject->backing.size, subject->backing.wanted));
}

CHECK_FN(backing_damaged)
{
    (void)view;
    return about_backing(subject, finding, subject->backing.damaged);
}

CHECK_FN(orphan_l2_table)
{
    (void)view;
    return wrong(finding, subject->orphan.kind == AREA_L2_TABLE, subject->orphan.data_bytes);
}

CHECK_FN(orphan_l1_table)
{
    (void)view;
    bool lost = subject->orphan.kind == AREA_L1_TABLE && !subject->orphan.left;
    return wrong(finding, lost, subject->orphan.data_bytes);
}

CHECK_FN(orphan_l1_copy)
{
    (void)view;
    bool copy = subject->orphan.left && subject->orphan.copy;
    return wrong(finding, copy, subject->orphan.data_bytes);
}

CHECK_FN(orphan_l1_gone)
{
    (void)view;
    bool gone = subject->orphan.left && !subject->orphan.copy;
    return wrong(finding, gone, subject->orphan.data_bytes);
}

CHECK_FN(orphan_snapshot_table)
{
    (void)view;
    return wrong(finding, subject->orphan.kind == AREA_SNAPSHOT_TABLE, subject->orphan.data_bytes);
}

CHECK_FN(file_trailing)
{
    (void)view;
    uint64_t size = subject->file.size, used_end = subject->file.used_end;
    return wrong_want(finding, size > used_end, size, used_end);
}

CHECK_FN(unreadable)
{
    (void)view;
    return wrong(finding, subject->region.error != 0, (uint64_t)subject->region.error);
}
