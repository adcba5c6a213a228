/* SPDX-License-Identifier: MIT
 *
 * Metadata that is neither refcounts nor mapping: header, refcount table and LUKS header as areas,
 * and the bitmaps (spec: Bitmaps). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "names.h"
#include "walk.h"

/* ---- bitmap tables ---- */

static int bitmap_entry(struct walk *walk, const struct qcow2_bitmap *bitmap, uint64_t bitmap_idx,
    uint64_t index, uint64_t raw)
{
    if (raw == 0 || raw == 1)
        return 0;
    struct subject subject = {
        .kind = OBJECT_BITMAP_ENTRY,
        .tree = TREE_NONE,
        .has_host = true,
        .host_off = raw & QCOW2_OFFSET_MASK,
        .length = walk->geo.cluster_size,
        .has_table = true,
        .table_off = bitmap->table_off,
        .index = index,
        .bitmap_entry.raw = raw,
    };
    if (walk_show(walk, &subject) >= AFTER_SKIP || subject.host_off == 0)
        return 0;
    struct area area = {.kind = AREA_BITMAP_DATA,
        .host_off = subject.host_off,
        .length = walk->geo.cluster_size,
        .index = bitmap_idx,
        .tree = TREE_NONE};
    bool conflict;
    return walk_claim_area(walk, &area, &conflict);
}

static int bitmap_table(struct walk *walk, const struct qcow2_bitmap *bitmap, uint64_t bitmap_idx)
{
    struct area area = {.kind = AREA_BITMAP_TABLE,
        .host_off = bitmap->table_off,
        .length = (uint64_t)bitmap->table_size * 8,
        .index = bitmap_idx,
        .tree = TREE_NONE};
    bool conflict;
    int ret = walk_claim_area(walk, &area, &conflict);
    /* A table that is also something else is not interpreted: that also bounds the work. */
    for (uint64_t done = 0, n; ret == 0 && !conflict && done < area.length; done += n) {
        bool complete = true;
        n = walk_known_hole(walk, area.host_off + done) / 8 * 8;
        n = n < area.length - done ? n : area.length - done;
        if (n > 0)
            continue;
        n = area.length - done < WALK_BUF_BYTES ? area.length - done : WALK_BUF_BYTES;
        walk_read(walk, area.host_off + done, walk->buf, (size_t)n, &complete);
        if (!complete)
            walk->refs_incomplete = true;
        if (walk_bytes_zero(walk->buf, (size_t)n))
            walk_hole(walk, area.host_off + done); /* there may be more of it */
        for (size_t i = 0; ret == 0 && i < n / 8; i++)
            ret = bitmap_entry(
                walk, bitmap, bitmap_idx, (done / 8) + i, load_be64(walk->buf + i * 8));
        if (ret == 0)
            ret = walk_pause(walk, n);
    }
    return ret;
}

/* ---- directory ---- */

struct directory {
    uint8_t *bytes;
    struct qcow2_bitmap *bitmaps;
    struct named *names;
    uint64_t count;
};

static void directory_free(struct directory *dir)
{
    free(dir->bytes);
    free(dir->bitmaps);
    free(dir->names);
}

/* Decodes what there is; directory_size is in range and in the file, or the extension's check would
 * have kept us from here. */
static int directory_read(struct walk *walk, struct directory *dir)
{
    size_t size = (size_t)walk->bitmaps.directory_size, pos = 0;
    dir->bytes = malloc(size);
    dir->bitmaps = calloc(size / QCOW2_BITMAP_HEAD_BYTES + 1, sizeof(*dir->bitmaps));
    dir->names = calloc(size / QCOW2_BITMAP_HEAD_BYTES + 1, sizeof(*dir->names));
    if (!dir->bytes || !dir->bitmaps || !dir->names)
        return -ENOMEM;
    bool complete = true, truncated = false;
    walk_read(walk, walk->bitmaps.directory_off, dir->bytes, size, &complete);
    if (!complete)
        walk->refs_incomplete = true;
    while (dir->count < walk->bitmaps.bitmap_count) {
        struct qcow2_bitmap *bitmap = &dir->bitmaps[dir->count];
        truncated = qcow2_bitmap_decode(dir->bytes + pos, size - pos, bitmap) < 0;
        if (truncated)
            break;
        dir->names[dir->count] =
            (struct named){.name = bitmap->name, .length = bitmap->name_len, .idx = dir->count};
        dir->count++;
        pos += (size_t)bitmap->record_len;
    }
    struct subject subject = {
        .kind = OBJECT_BITMAP_DIRECTORY,
        .tree = TREE_NONE,
        .has_host = true,
        .host_off = walk->bitmaps.directory_off,
        .length = size,
        .bitmap_directory = {.count = walk->bitmaps.bitmap_count,
            .readable = dir->count,
            .size = size,
            .used = pos,
            .truncated = truncated},
    };
    walk_show(walk, &subject);
    return 0;
}

static int bitmaps_read(struct walk *walk, struct directory *dir)
{
    struct area area = {.kind = AREA_BITMAP_DIRECTORY,
        .host_off = walk->bitmaps.directory_off,
        .length = walk->bitmaps.directory_size,
        .tree = TREE_NONE};
    bool conflict;
    int ret = walk_claim_area(walk, &area, &conflict);
    if (ret == 0)
        ret = directory_read(walk, dir);
    if (ret < 0)
        return ret;
    names_sort(dir->names, (size_t)dir->count);
    for (uint64_t i = 0; ret == 0 && i < dir->count; i++) {
        struct subject subject = {
            .kind = OBJECT_BITMAP,
            .tree = TREE_NONE,
            .has_host = true,
            .host_off = dir->bitmaps[i].table_off,
            .length = (uint64_t)dir->bitmaps[i].table_size * 8,
            .has_table = true,
            .table_off = walk->bitmaps.directory_off,
            .index = i,
            .bitmap = {.record = &dir->bitmaps[i],
                .name_repeated = names_other_has(dir->names, (size_t)dir->count,
                    dir->bitmaps[i].name, dir->bitmaps[i].name_len, i)},
        };
        if (walk_show(walk, &subject) < AFTER_SKIP)
            ret = bitmap_table(walk, &dir->bitmaps[i], i);
    }
    return ret;
}

int walk_bitmaps(struct walk *walk)
{
    struct directory dir = {0};
    int ret = walk->has_bitmaps ? bitmaps_read(walk, &dir) : 0;
    directory_free(&dir);
    return ret;
}

int walk_fixed_areas(struct walk *walk)
{
    const struct qcow2_header *header = &walk->header;
    uint64_t reftable_bytes = (uint64_t)header->reftable_clusters << walk->geo.cluster_bits;
    bool reftable_ok = header->reftable_off != 0 && reftable_bytes <= QCOW2_MAX_REFTABLE_BYTES &&
                       cluster_aligned(&walk->geo, header->reftable_off);
    struct area fixed[] = {
        {.kind = AREA_HEADER, .length = walk->geo.cluster_size},
        {.kind = AREA_REFCOUNT_TABLE,
            .host_off = header->reftable_off,
            .length = reftable_ok ? reftable_bytes : 0},
        {.kind = AREA_CRYPTO_HEADER,
            .host_off = walk->crypto_off,
            .length = walk->has_crypto ? walk->crypto_len : 0},
        {.kind = AREA_SNAPSHOT_TABLE,
            .host_off = header->snapshots_off,
            .length = walk->snapshot_table_len},
    };
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < sizeof(fixed) / sizeof(fixed[0]); i++) {
        fixed[i].tree = TREE_NONE;
        bool conflict;
        ret = walk_claim_area(walk, &fixed[i], &conflict);
    }
    for (size_t i = 0; ret == 0 && i < walk->reftable_len; i++) {
        uint64_t off = walk->reftable[i] & QCOW2_REFTABLE_MASK;
        if (off == 0 || !cluster_aligned(&walk->geo, off) || off >= walk->view.file_size ||
            (walk->reftable[i] & QCOW2_REFTABLE_RSVD)) /* QEMU counts no reference then */
            continue;
        struct area block = {.kind = AREA_REFCOUNT_BLOCK,
            .host_off = off,
            .length = walk->geo.cluster_size,
            .index = i,
            .tree = TREE_NONE};
        bool conflict;
        ret = walk_claim_area(walk, &block, &conflict);
    }
    return ret < 0 ? ret : walk_bitmaps(walk);
}
