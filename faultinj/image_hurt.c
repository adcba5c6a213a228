/* SPDX-License-Identifier: MIT
 *
 * Damage done to an image in memory that the repair undoes; see image_patch.h. */
#include <errno.h>
#include <string.h>

#include "image.h"
#include "image_patch.h"
#include "map.h"
#include "refcount.h"

/* The guest cluster's entry and where it is. */
static int find_entry(struct image *img, uint64_t guest_cluster, uint64_t *entry_off, uint64_t *raw)
{
    uint8_t field[8];
    uint64_t l2 = img->l1[guest_cluster >> img->geo.l2_bits] & QCOW2_OFFSET_MASK;
    *entry_off = l2 + (guest_cluster & (img->geo.l2_entries - 1)) * img->geo.l2_entry_size;
    int ret = io_read(img->io, *entry_off, field, sizeof(field));
    *raw = load_be64(field);
    return ret;
}

static int put64(struct io *io, uint64_t host_off, uint64_t value)
{
    uint8_t field[8];
    store_be64(field, value);
    return io_write(io, host_off, field, sizeof(field));
}

static int lower_count(struct image *img, uint64_t guest_cluster)
{
    uint64_t entry_off, raw;
    int ret = find_entry(img, guest_cluster, &entry_off, &raw);
    if (ret == 0)
        ret = refcount_add(img, cluster_of(&img->geo, raw & QCOW2_OFFSET_MASK), 1, -1);
    for (uint64_t i = 0; ret == 0 && i < img->refs.table_len; i++) { /* without its discards */
        if (img->refs.blocks[i].staged)
            ret = io_write(
                img->io, img->refs.table[i], img->refs.blocks[i].bytes, img->geo.cluster_size);
    }
    return ret;
}

int patch_count_low(struct io *io)
{
    struct image *img;
    int ret = image_open(io, IMAGE_WRITE, &img, NULL);
    if (ret < 0)
        return ret;
    ret = lower_count(img, 0);
    image_abandon(img);
    return ret;
}

int patch_dirty_low(struct io *io)
{
    struct image *img;
    int ret = image_open(io, IMAGE_WRITE, &img, NULL);
    if (ret < 0)
        return ret;
    ret = lower_count(img, 1);
    image_abandon(img);
    return ret == 0 ? patch_dirty(io) : ret;
}

int patch_shared(struct io *io)
{
    struct image *img;
    uint64_t off_a, off_b, a = 0, b;
    int ret = image_open(io, IMAGE_WRITE, &img, NULL);
    if (ret < 0)
        return ret;
    ret = find_entry(img, 1, &off_a, &a);
    if (ret == 0)
        ret = lower_count(img, 8);
    if (ret == 0)
        ret = find_entry(img, 8, &off_b, &b);
    if (ret == 0)
        ret = put64(io, off_b, a);
    image_abandon(img);
    return ret;
}

int patch_block_shared(struct io *io)
{
    struct image *img;
    int ret = image_open(io, IMAGE_WRITE, &img, NULL);
    if (ret < 0)
        return ret;
    ret = put64(io, img->header.reftable_off + 8, img->refs.table[0]);
    image_abandon(img);
    return ret;
}

int patch_block_lost(struct io *io)
{
    struct image *img;
    uint8_t noise[512];
    int ret = image_open(io, IMAGE_WRITE, &img, NULL);
    if (ret < 0)
        return ret;
    for (size_t i = 0; i < sizeof(noise); i++)
        noise[i] = (uint8_t)(i * 37 + 11);
    ret = io_write(io, img->refs.table[1], noise, sizeof(noise));
    if (ret == 0)
        ret = put64(io, img->header.reftable_off + 8, UINT64_C(1) << 40);
    image_abandon(img);
    return ret;
}

int patch_same_ids(struct io *io)
{
    struct image *img;
    int ret = image_open(io, IMAGE_WRITE, &img, NULL);
    if (ret < 0)
        return ret;
    const struct qcow2_snapshot *snaps = img->snaps.list;
    uint64_t second = img->header.snapshots_off + snaps[0].record_len;
    uint64_t id_off = second + QCOW2_SNAPSHOT_HEAD_BYTES + snaps[1].extra_len;
    ret = io_write(io, id_off, snaps[0].id, snaps[0].id_len);
    image_abandon(img);
    return ret;
}
