/* SPDX-License-Identifier: MIT
 *
 * See content.h. */
#include "content.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine_kit.h"
#include "snapshot.h"

void content_read(struct image *img, struct content *c)
{
    memset(c, 0, sizeof(*c));
    kit_must(img, image_refresh(img));
    c->size = image_size(img);
    c->bytes = malloc(c->size + 1);
    kit_must(img, image_read(img, 0, c->bytes, c->size));
    const struct qcow2_snapshot *list = snapshot_list(img, &c->snap_count);
    ck_assert_uint_le(c->snap_count, CONTENT_SNAPSHOTS);
    for (uint32_t i = 0; i < c->snap_count; i++) {
        struct view view;
        snprintf(c->snaps[i].name, sizeof(c->snaps[i].name), "%.*s", list[i].name_len,
            (const char *)list[i].name);
        kit_must(img, snapshot_view(img, i, &view));
        c->snaps[i].size = view.size_bytes;
        c->snaps[i].bytes = malloc(view.size_bytes + 1);
        kit_must(img, view_read(img, &view, 0, c->snaps[i].bytes, view.size_bytes));
        view_close(&view);
    }
}

void content_free(struct content *c)
{
    free(c->bytes);
    for (uint32_t i = 0; i < c->snap_count; i++)
        free(c->snaps[i].bytes);
}

bool content_same_snapshots(const struct content *a, const struct content *b)
{
    if (a->snap_count != b->snap_count)
        return false;
    for (uint32_t i = 0; i < a->snap_count; i++) {
        if (strcmp(a->snaps[i].name, b->snaps[i].name) != 0 ||
            a->snaps[i].size != b->snaps[i].size ||
            memcmp(a->snaps[i].bytes, b->snaps[i].bytes, a->snaps[i].size) != 0)
            return false;
    }
    return true;
}

bool content_same_disk(const struct content *a, const struct content *b)
{
    return a->size == b->size && memcmp(a->bytes, b->bytes, a->size) == 0;
}

bool content_mixes(const struct content *now, const struct content *a, const struct content *b)
{
    if (now->size != a->size || now->size != b->size)
        return false;
    for (uint64_t at = 0; at < now->size; at += 512) {
        if (memcmp(now->bytes + at, a->bytes + at, 512) != 0 &&
            memcmp(now->bytes + at, b->bytes + at, 512) != 0)
            return false;
    }
    return true;
}
