/* SPDX-License-Identifier: MIT
 *
 * Checks of the file as a whole and of what lies beside it: pieces of metadata that overlap, lost
 * tables, the data file, the backing chain, and what could not be read. */
#include "check.h"

CHECK_FN(area_shared)
{
    (void)view, (void)finding;
    return subject->area.conflict;
}

CHECK_FN(data_file_name)
{
    (void)view, (void)finding;
    return subject->data_file.unsafe_name;
}

CHECK_FN(data_file_missing)
{
    (void)view, (void)finding;
    return subject->data_file.missing;
}

CHECK_FN(data_file_short)
{
    (void)view;
    return wrong_want(finding,
        !subject->data_file.missing && !subject->data_file.unsafe_name &&
            subject->data_file.size < subject->data_file.wanted,
        subject->data_file.size, subject->data_file.wanted);
}

CHECK_FN(backing_name)
{
    (void)view, (void)finding;
    return subject->backing.unsafe_name;
}

CHECK_FN(backing_missing)
{
    (void)view, (void)finding;
    return subject->backing.missing;
}

CHECK_FN(backing_format)
{
    (void)view, (void)finding;
    return subject->backing.wrong_format;
}

CHECK_FN(backing_loop)
{
    (void)view, (void)finding;
    return subject->backing.loop;
}

CHECK_FN(backing_depth)
{
    (void)view, (void)finding;
    return subject->backing.too_deep;
}

CHECK_FN(backing_size)
{
    (void)view;
    return wrong_want(finding, subject->backing.size > subject->backing.wanted,
        subject->backing.size, subject->backing.wanted);
}

CHECK_FN(orphan_l2_table)
{
    (void)view;
    return wrong(finding, subject->orphan.kind == AREA_L2_TABLE, subject->orphan.data_bytes);
}

CHECK_FN(orphan_l1_table)
{
    (void)view;
    return wrong(finding, subject->orphan.kind == AREA_L1_TABLE, subject->orphan.data_bytes);
}

CHECK_FN(orphan_snapshot_table)
{
    (void)view;
    return wrong(finding, subject->orphan.kind == AREA_SNAPSHOT_TABLE, subject->orphan.data_bytes);
}

CHECK_FN(file_trailing)
{
    return wrong_want(
        finding, view->file_size > subject->file.used_end, view->file_size, subject->file.used_end);
}

CHECK_FN(unreadable)
{
    (void)view;
    return wrong(finding, subject->region.error != 0, (uint64_t)subject->region.error);
}
