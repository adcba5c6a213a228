/* SPDX-License-Identifier: MIT
 *
 * Rules of the pre-deploy gate (deploy.h): what a sound image may have and a policy may not want.
 */
#include <stdio.h>

#include "check.h"

/* Says which file it is, as far as there is room. */
static bool named(struct finding *finding, bool hit, const uint8_t *name, size_t length)
{
    size_t room = sizeof(finding->detail);
    if (hit && name)
        snprintf(finding->detail, room, "%.*s", (int)(length < room ? length : room),
            (const char *)name);
    return hit;
}

CHECK_FN(deploy_backing_file)
{
    return named(finding, view->has_backing, subject->policy.backing, subject->policy.backing_len);
}

CHECK_FN(deploy_data_file)
{
    bool hit = view->geo->data_file || subject->policy.data_file;
    return named(finding, hit, subject->policy.data_file, subject->policy.data_file_len);
}

CHECK_FN(deploy_unknown_features)
{
    (void)view;
    return wrong(finding, subject->policy.unknown > 0, subject->policy.unknown);
}

CHECK_FN(deploy_encryption)
{
    (void)subject;
    return wrong(finding, view->header->crypt_method != 0, view->header->crypt_method);
}

CHECK_FN(deploy_snapshots)
{
    (void)subject;
    return wrong(finding, view->header->snapshot_count != 0, view->header->snapshot_count);
}

CHECK_FN(deploy_bitmaps)
{
    (void)view;
    (void)finding;
    return subject->policy.has_bitmaps;
}

CHECK_FN(deploy_dirty_bit)
{
    (void)subject;
    (void)finding;
    return view->header->incompatible & QCOW2_INCOMPAT_DIRTY;
}

CHECK_FN(deploy_corrupt_bit)
{
    (void)subject;
    (void)finding;
    return view->header->incompatible & QCOW2_INCOMPAT_CORRUPT;
}

CHECK_FN(deploy_leaks)
{
    (void)view;
    return wrong(finding, subject->policy.leaks > 0, subject->policy.leaks);
}

CHECK_FN(deploy_max_size)
{
    uint64_t size = subject->policy.largest, most = subject->policy.max_size;
    (void)view;
    return wrong_want(finding, most != 0 && size > most, size, most);
}

CHECK_FN(deploy_metadata_size)
{
    (void)view;
    uint64_t size = subject->policy.metadata, most = subject->policy.metadata_limit;
    return wrong_want(finding, size > most, size, most);
}

CHECK_FN(deploy_file_size)
{
    uint64_t most = subject->policy.file_limit;
    return wrong_want(finding, view->file_size > most, view->file_size, most);
}

CHECK_FN(deploy_trailing_bytes)
{
    return wrong_want(finding, subject->policy.trailing, view->file_size, subject->policy.used_end);
}
