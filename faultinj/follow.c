/* SPDX-License-Identifier: MIT
 *
 * What an operation means, said a second time: from what users saw before it, what they may see
 * after it. */
#include <inttypes.h>

#include "history.h"

static bool in_range(const struct op *op, uint64_t unit, uint64_t sector)
{
    uint64_t from = op->guest_off * unit, to = from + op->length * unit;
    return sector * STATE_SECTOR < to && (sector + 1) * STATE_SECTOR > from;
}

/* Outside what the operation may touch the two disks are the same. */
static bool same_outside(
    const struct disk_model *a, const struct disk_model *b, const struct op *op, uint64_t unit)
{
    size_t i = 0, j = 0;
    uint64_t end = a->size_bytes < b->size_bytes ? a->size_bytes : b->size_bytes;
    while (i < a->count || j < b->count) {
        uint64_t x = i < a->count ? a->list[i].sector : UINT64_MAX;
        uint64_t y = j < b->count ? b->list[j].sector : UINT64_MAX;
        uint64_t sector = x < y ? x : y;
        bool touched = op->kind == OP_RESIZE ? sector * STATE_SECTOR >= end && y != sector
                                             : in_range(op, unit, sector);
        bool same = x == y && a->list[i].hash == b->list[j].hash;
        if (!same && !touched)
            return false;
        i += x == sector, j += y == sector;
    }
    return true;
}

static bool wholly_written(
    const struct disk_model *after, const struct op *op, uint64_t unit, uint64_t *bad)
{
    uint64_t from = op->guest_off * unit, to = from + op->length * unit;
    size_t at = 0;
    for (uint64_t s = (from + STATE_SECTOR - 1) / STATE_SECTOR; (s + 1) * STATE_SECTOR <= to; s++) {
        uint8_t bytes[STATE_SECTOR];
        op_fill(op->byte, s * STATE_SECTOR, bytes, sizeof(bytes));
        while (at < after->count && after->list[at].sector < s)
            at++;
        *bad = s;
        if (at == after->count || after->list[at].sector != s ||
            after->list[at].hash != state_hash_sector(bytes))
            return false;
    }
    return true;
}

/* All snapshots of `a` but number `without` are those of `b`, in order. */
static bool same_but(const struct model *a, const struct model *b, uint32_t without)
{
    uint64_t sector;
    for (uint32_t i = 0, j = 0; i < a->snapshot_count; i++) {
        if (i == without)
            continue;
        if (j >= b->snapshot_count || a->snapshots[i].record_hash != b->snapshots[j].record_hash ||
            !disk_same(&a->snapshots[i].disk, &b->snapshots[j].disk, &sector))
            return false;
        j++;
    }
    return true;
}

static bool applied(const struct model *before, const struct model *after)
{
    uint64_t sector;
    for (uint32_t i = 0; i < before->snapshot_count; i++) {
        struct disk_model cut = before->snapshots[i].disk; /* without VM state */
        while (cut.count > 0 && cut.list[cut.count - 1].sector * STATE_SECTOR >= cut.size_bytes)
            cut.count--;
        if (disk_same(&cut, &after->active, &sector))
            return true;
    }
    return false;
}

static bool deleted(const struct model *before, const struct model *after)
{
    if (after->snapshot_count + 1 != before->snapshot_count)
        return false;
    for (uint32_t i = 0; i < before->snapshot_count; i++) {
        if (same_but(before, after, i))
            return true;
    }
    return false;
}

static bool changed_rightly(const struct op *op, uint64_t unit, int result,
    const struct model *before, const struct model *after)
{
    uint64_t sector;
    bool list_same =
        before->snapshot_count == after->snapshot_count && same_but(before, after, UINT32_MAX);
    bool disk = disk_same(&before->active, &after->active, &sector);
    if (result < 0 && list_same && disk)
        return true;
    switch (op->kind) {
    case OP_WRITE:
        return list_same && before->active.size_bytes == after->active.size_bytes &&
               same_outside(&before->active, &after->active, op, unit) &&
               (result < 0 || wholly_written(&after->active, op, unit, &sector));
    case OP_DISCARD:
        return list_same && before->active.size_bytes == after->active.size_bytes &&
               same_outside(&before->active, &after->active, op, unit);
    case OP_RESIZE:
        return list_same && same_outside(&before->active, &after->active, op, unit);
    case OP_CREATE:
        return disk && after->snapshot_count == before->snapshot_count + 1 &&
               same_but(before, after, UINT32_MAX);
    case OP_APPLY:
        return list_same && applied(before, after);
    case OP_DELETE:
        return disk && deleted(before, after);
    case OP_REPAIR:
        return true; /* what was damaged may change; that it is sound now is seen elsewhere */
    default:
        return list_same && disk;
    }
}

bool history_follows(const struct op *op, uint64_t unit, int result, const struct model *before,
    const struct model *after, struct breach *breach)
{
    char text[64];
    if (changed_rightly(op, unit, result, before, after))
        return true;
    op_text(op, text, sizeof(text));
    return breach_note(breach, INVARIANT_DURABLE,
        "'%s' returned %d, but the image is neither as %s", text, result,
        result < 0 ? "before nor as after it" : "it should be");
}
