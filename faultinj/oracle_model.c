/* SPDX-License-Identifier: MIT
 *
 * Models of what users see, and their comparison. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "oracle.h"

const char *invariant_sentence(enum invariant invariant)
{
    static const char *const sentences[INVARIANT_COUNT] = {
        [INVARIANT_NONE] = "nothing is broken",
        [INVARIANT_OPENS] = "the image opens and every structure parses",
        [INVARIANT_COUNTED] = "no stored refcount is below the true references",
        [INVARIANT_COPIED] = "COPIED in the active disk means exactly one reference",
        [INVARIANT_OWNED] = "no cluster has two owners or is used though counted as free",
        [INVARIANT_SNAPSHOT_LIST] = "the snapshot list is the one before or the one after",
        [INVARIANT_DISK] = "the active disk is the one before or the one after, never a mix",
        [INVARIANT_SNAPSHOTS] = "every snapshot is bit-identical",
        [INVARIANT_CONTINUES] = "going on on the crash image breaks nothing",
        [INVARIANT_REPAIRS] = "repair leads to a clean image of the same content",
        [INVARIANT_DURABLE] = "success is durable, an error leaves before or after",
        [INVARIANT_LEAKS] = "only what the interrupted operation touched leaks",
        [INVARIANT_FLUSHES] = "every flush is needed",
    };
    return sentences[invariant];
}

bool breach_note(struct breach *breach, enum invariant invariant, const char *format, ...)
{
    if (breach->invariant != INVARIANT_NONE)
        return false;
    va_list args;
    va_start(args, format);
    vsnprintf(breach->text, sizeof(breach->text), format, args);
    va_end(args);
    breach->invariant = invariant;
    return false;
}

void model_release(struct model *model)
{
    for (uint32_t i = 0; i < model->snapshot_room; i++)
        free(model->snapshots[i].disk.list);
    free(model->snapshots);
    free(model->active.list);
    *model = (struct model){0};
}

static int disk_copy(const struct disk_model *from, struct disk_model *to)
{
    *to = (struct disk_model){.size_bytes = from->size_bytes};
    if (from->count == 0)
        return 0;
    to->list = malloc(from->count * sizeof(*to->list));
    if (!to->list)
        return -ENOMEM;
    memcpy(to->list, from->list, from->count * sizeof(*to->list));
    to->count = to->room = from->count;
    return 0;
}

int model_copy(const struct model *from, struct model *to)
{
    *to = (struct model){0};
    int ret = disk_copy(&from->active, &to->active);
    to->snapshots = calloc(from->snapshot_count + 1, sizeof(*to->snapshots));
    if (!to->snapshots)
        ret = -ENOMEM;
    for (uint32_t i = 0; ret == 0 && i < from->snapshot_count; i++) {
        to->snapshots[i].record_hash = from->snapshots[i].record_hash;
        ret = disk_copy(&from->snapshots[i].disk, &to->snapshots[i].disk);
        to->snapshot_room = to->snapshot_count = i + 1;
    }
    if (ret < 0)
        model_release(to);
    return ret;
}

bool disk_same(const struct disk_model *a, const struct disk_model *b, uint64_t *sector)
{
    if (a->size_bytes == b->size_bytes && a->count == b->count &&
        (a->count == 0 || memcmp(a->list, b->list, a->count * sizeof(*a->list)) == 0))
        return true;
    size_t i = 0;
    while (i < a->count && i < b->count && a->list[i].sector == b->list[i].sector &&
           a->list[i].hash == b->list[i].hash)
        i++;
    uint64_t left = i < a->count ? a->list[i].sector : UINT64_MAX;
    uint64_t right = i < b->count ? b->list[i].sector : UINT64_MAX;
    *sector = left < right ? left : right;
    return false;
}

bool snapshots_same_records(const struct model *a, const struct model *b)
{
    if (a->snapshot_count != b->snapshot_count)
        return false;
    for (uint32_t i = 0; i < a->snapshot_count; i++) {
        if (a->snapshots[i].record_hash != b->snapshots[i].record_hash)
            return false;
    }
    return true;
}

bool snapshots_same_disks(
    const struct model *a, const struct model *b, uint32_t *snapshot, uint64_t *sector)
{
    for (uint32_t i = 0; i < a->snapshot_count; i++) {
        *snapshot = i;
        if (!disk_same(&a->snapshots[i].disk, &b->snapshots[i].disk, sector))
            return false;
    }
    return true;
}
