/* SPDX-License-Identifier: MIT
 *
 * See image_patch.h. */
#include "image_patch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "image.h"
#include "refcount.h"
#include "snapshot.h"
#include "write.h"

/* Changes one header field. */
static int put_header(struct io *io, uint64_t host_off, uint64_t value, size_t length)
{
    uint8_t field[8];
    store_be64(field, value);
    return io_write(io, host_off, field + 8 - length, length);
}

static int open_image(struct io *io, struct image **img)
{
    return image_open(io, IMAGE_WRITE, img, NULL);
}

/* Host offset of the L2 entry of a guest cluster; 0 if there is no table. */
static uint64_t entry_off(const struct image *img, uint64_t guest_cluster)
{
    uint64_t l2 = img->l1[guest_cluster >> img->geo.l2_bits] & QCOW2_OFFSET_MASK;
    return l2 ? l2 + (guest_cluster & (img->geo.l2_entries - 1)) * img->geo.l2_entry_size : 0;
}

static int read_entry(struct image *img, uint64_t guest_cluster, uint64_t *raw)
{
    uint8_t field[8];
    int ret = io_read_padded(img->io, entry_off(img, guest_cluster), field, sizeof(field));
    *raw = load_be64(field);
    return ret;
}

static int write_entry(struct image *img, uint64_t guest_cluster, uint64_t raw)
{
    uint8_t field[8];
    store_be64(field, raw);
    return io_write(img->io, entry_off(img, guest_cluster), field, sizeof(field));
}

int patch_dirty(struct io *io)
{
    return put_header(io, QCOW2_HDR_INCOMPATIBLE, QCOW2_INCOMPAT_DIRTY, 8);
}

int patch_leaks(struct io *io)
{
    struct image *img;
    uint64_t host_off;
    int ret = open_image(io, &img);
    if (ret < 0)
        return ret;
    ret = refcount_alloc(img, 2, &host_off);
    if (ret == 0)
        ret = refcount_add(img, cluster_of(&img->geo, host_off), 1, +1);
    if (ret == 0)
        ret = refcount_write(img);
    if (ret == 0)
        ret = io_write(io, host_off + img->geo.cluster_size, "leak", 4);
    image_abandon(img);
    return ret;
}

int patch_zero(struct io *io)
{
    struct image *img;
    uint64_t raw;
    int ret = open_image(io, &img);
    if (ret < 0)
        return ret;
    ret = read_entry(img, 3, &raw);
    if (ret == 0)
        ret = write_entry(img, 3, raw | QCOW2_ENTRY_ZERO);
    if (ret == 0)
        ret = write_entry(img, 20, QCOW2_ENTRY_ZERO);
    image_abandon(img);
    return ret;
}

/* Raw deflate of a cluster of one byte: a few bytes. */
static int pack(uint8_t byte, uint32_t cluster_size, uint8_t *out, size_t *length)
{
    uint8_t *plain = malloc(cluster_size);
    z_stream z = {0};
    if (!plain)
        return -ENOMEM;
    memset(plain, byte, cluster_size);
    int ret = deflateInit2(&z, 9, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) == Z_OK ? 0 : -ENOMEM;
    if (ret == 0) {
        z.next_in = plain;
        z.avail_in = cluster_size;
        z.next_out = out;
        z.avail_out = (uInt)*length;
        ret = deflate(&z, Z_FINISH) == Z_STREAM_END ? 0 : -EFBIG;
        *length = z.total_out;
        deflateEnd(&z);
    }
    free(plain);
    return ret;
}

/* Their counts: 2 disks refer to each of the two entries' L2 table, if there is a snapshot. */
static int share_cluster(struct image *img, uint64_t keep, uint64_t give_up)
{
    uint64_t count;
    int ret = refcount_get(img, cluster_of(&img->geo, give_up), &count);
    for (uint64_t i = 0; ret == 0 && i < count; i++) {
        ret = refcount_add(img, cluster_of(&img->geo, keep), 1, +1);
        if (ret == 0)
            ret = refcount_add(img, cluster_of(&img->geo, give_up), 1, -1);
    }
    return ret == 0 ? refcount_write(img) : ret;
}

int patch_compressed(struct io *io)
{
    enum { SECOND = 100 }; /* bytes into the host cluster */
    struct image *img;
    uint64_t raw[2], packed[2];
    uint8_t bytes[512] = {0};
    size_t length[2] = {SECOND, 256};
    int ret = open_image(io, &img);
    if (ret < 0)
        return ret;
    /* Copies of the L2 tables in the active disk and the snapshot differ from here on: only the
     * snapshot's table (if the L1 entry is shared, the common one) is patched in place. */
    for (unsigned i = 0; ret == 0 && i < 2; i++)
        ret = read_entry(img, 16 + i, &raw[i]);
    uint64_t keep = raw[0] & QCOW2_OFFSET_MASK, give_up = raw[1] & QCOW2_OFFSET_MASK;
    for (unsigned i = 0; ret == 0 && i < 2; i++)
        ret = pack((uint8_t)(0x41 + i), img->geo.cluster_size, bytes + i * SECOND, &length[i]);
    for (unsigned i = 0; ret == 0 && i < 2; i++)
        ret =
            qcow2_compressed_encode(&img->geo, keep + i * SECOND, (uint32_t)length[i], &packed[i]);
    if (ret == 0)
        ret = io_write(io, keep, bytes, sizeof(bytes));
    for (unsigned i = 0; ret == 0 && i < 2; i++)
        ret = write_entry(img, 16 + i, packed[i]);
    /* The snapshot has a table of its own by now. */
    const struct qcow2_snapshot *snap = img->snaps.list;
    uint8_t field[8];
    if (ret == 0)
        ret = io_read(io, snap->l1_off, field, sizeof(field));
    uint64_t l2 = load_be64(field) & QCOW2_OFFSET_MASK;
    for (unsigned i = 0; ret == 0 && i < 2; i++) {
        store_be64(field, packed[i]);
        ret = io_write(io, l2 + (16 + i) * UINT64_C(8), field, sizeof(field));
    }
    if (ret == 0)
        ret = share_cluster(img, keep, give_up);
    image_abandon(img);
    return ret;
}

int patch_extra(struct io *io)
{
    struct image *img;
    uint8_t extra[40], bytes[512] = {0};
    int ret = open_image(io, &img);
    if (ret < 0)
        return ret;
    struct qcow2_snapshot record = img->snaps.list[0];
    memcpy(extra, record.extra, record.extra_len < 24 ? record.extra_len : 24);
    memset(extra + 24, 0x5a, 16);
    record.extra = extra;
    record.extra_len = sizeof(extra);
    if (qcow2_snapshot_length(&record) <= sizeof(bytes)) {
        qcow2_snapshot_encode(&record, bytes);
        ret = io_write(io, img->header.snapshots_off, bytes, sizeof(bytes));
    }
    image_abandon(img);
    return ret;
}

/* The active disk gives up the L2 table at L1 index 1, so that only a snapshot has it. */
static int give_up_table(struct image *img)
{
    static const uint8_t none[8];
    uint64_t l2_off = img->l1[1] & QCOW2_OFFSET_MASK, *words;
    int ret = io_write(img->io, img->header.l1_off + 8, none, sizeof(none));
    if (ret == 0)
        ret = image_read_words(img, l2_off, img->geo.l2_entries, &words);
    if (ret < 0)
        return ret;
    ret = refcount_add(img, cluster_of(&img->geo, l2_off), 1, -1);
    for (uint32_t i = 0; ret == 0 && i < img->geo.l2_entries; i++) {
        if (words[i] & QCOW2_OFFSET_MASK)
            ret = refcount_add(img, cluster_of(&img->geo, words[i] & QCOW2_OFFSET_MASK), 1, -1);
    }
    free(words);
    img->stale = true;
    return ret == 0 ? refcount_write(img) : ret;
}

int patch_vm_state(struct io *io)
{
    struct image *img;
    uint8_t state[1024];
    /* A smaller disk on the same L1 leaves room behind it. */
    int ret = put_header(io, QCOW2_HDR_SIZE, 16 << 10, 8);
    if (ret == 0)
        ret = open_image(io, &img);
    if (ret < 0)
        return ret;
    memset(state, 0x77, sizeof(state));
    struct snapshot_info info = {
        .name = "s1", .vm_state_size = sizeof(state), .icount = UINT64_MAX};
    ret = image_begin(img, true);
    if (ret == 0)
        ret = write_range(img, img->geo.l2_span, state, sizeof(state));
    image_end(img, ret);
    if (ret == 0)
        ret = snapshot_create(img, &info);
    if (ret == 0)
        ret = give_up_table(img);
    if (ret == 0)
        ret = image_discard(img, 0, 512);
    int closed = image_close(img);
    return ret < 0 ? ret : closed;
}

int patch_bitmap(struct io *io)
{
    struct image *img;
    uint64_t host_off;
    uint8_t directory[512] = {0}, table[512] = {0}, ext[48] = {0};
    int ret = open_image(io, &img);
    if (ret < 0)
        return ret;
    ret = refcount_alloc(img, 2, &host_off);
    if (ret == 0)
        ret = refcount_write(img);
    store_be64(directory, host_off + 512);
    store_be32(directory + 8, 1); /* one cluster of bits */
    store_be32(directory + 12, QCOW2_BITMAP_AUTO);
    directory[16] = QCOW2_BITMAP_TYPE_DIRTY;
    directory[17] = QCOW2_MIN_BITMAP_GRANULARITY_BITS;
    store_be16(directory + 18, 2);
    memcpy(directory + 24, "b0", 2);
    struct qcow2_bitmaps_ext fields = {
        .bitmap_count = 1, .directory_size = 32, .directory_off = host_off};
    store_be32(ext, QCOW2_EXT_BITMAPS);
    store_be32(ext + 4, QCOW2_BITMAPS_EXT_BYTES);
    qcow2_bitmaps_ext_encode(&fields, ext + 8);
    if (ret == 0)
        ret = io_write(io, host_off, directory, sizeof(directory));
    if (ret == 0)
        ret = io_write(io, host_off + 512, table, sizeof(table));
    if (ret == 0)
        ret = io_write(io, img->header.header_length, ext, sizeof(ext));
    if (ret == 0)
        ret = put_header(io, QCOW2_HDR_AUTOCLEAR, QCOW2_AUTOCLEAR_BITMAPS, 8);
    image_abandon(img);
    return ret;
}
