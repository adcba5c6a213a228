/* SPDX-License-Identifier: MIT */
#include "guest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "qcow2.h"

struct disk {
    struct io *io, *data;
    struct qcow2_header header;
    struct qcow2_geometry geo;
    uint64_t l1_off, l1_size;
};

static int find_snapshot(struct disk *disk, const char *id)
{
    uint64_t off = disk->header.snapshots_off;
    uint8_t *buf = malloc(2 << 16);
    if (!buf)
        abort();
    int ret = -ENOENT;
    for (uint32_t i = 0; i < disk->header.snapshot_count; i++) {
        struct qcow2_snapshot s;
        ret = io_read_padded(disk->io, off, buf, 2 << 16);
        if (ret == 0)
            ret = qcow2_snapshot_decode(buf, 2 << 16, &s);
        if (ret != 0)
            break;
        if (s.id_len == strlen(id) && memcmp(s.id, id, s.id_len) == 0) {
            disk->l1_off = s.l1_off;
            disk->l1_size = s.l1_size;
            break;
        }
        off += s.record_len;
        ret = -ENOENT;
    }
    free(buf);
    return ret;
}

static int disk_open(struct disk *disk, const char *snapshot_id)
{
    uint8_t buf[512];
    int ret = io_read_padded(disk->io, 0, buf, sizeof(buf));
    if (ret == 0)
        ret = qcow2_header_decode(buf, sizeof(buf), &disk->header);
    if (ret == 0)
        ret = qcow2_geometry_init(&disk->header, &disk->geo);
    disk->l1_off = disk->header.l1_off;
    disk->l1_size = disk->header.l1_size;
    return ret < 0 || !snapshot_id ? ret : find_snapshot(disk, snapshot_id);
}

static int find_entry(struct disk *disk, uint64_t guest_cluster, struct qcow2_l2_entry *e)
{
    const struct qcow2_geometry *geo = &disk->geo;
    uint64_t l1_idx = guest_cluster >> geo->l2_bits;
    uint64_t l2_idx = guest_cluster & (geo->l2_entries - 1);
    uint8_t bytes[16] = {0};
    int ret = l1_idx < disk->l1_size ? io_read(disk->io, disk->l1_off + 8 * l1_idx, bytes, 8) : 0;
    uint64_t l2_off = load_be64(bytes) & QCOW2_OFFSET_MASK;
    memset(bytes, 0, sizeof(bytes));
    if (ret == 0 && l2_off)
        ret = io_read(disk->io, l2_off + l2_idx * geo->l2_entry_size, bytes, geo->l2_entry_size);
    qcow2_l2_decode(geo, bytes, e);
    return ret;
}

static int read_compressed(struct disk *disk, const struct qcow2_l2_entry *e, uint8_t *out)
{
    struct codec *codec;
    int ret = codec_open(disk->header.compression, &codec);
    if (ret < 0)
        return ret;
    uint8_t *src = malloc(e->length);
    if (!src)
        abort();
    ret = io_read_padded(disk->io, e->host_off, src, e->length);
    if (ret == 0)
        ret = codec_decode(codec, src, e->length, out, disk->geo.cluster_size);
    codec_close(codec);
    free(src);
    return ret;
}

static int read_cluster(struct disk *disk, uint64_t guest_cluster, uint8_t *out)
{
    struct qcow2_l2_entry e;
    uint32_t size = disk->geo.cluster_size, part = size / QCOW2_SUBCLUSTERS;
    memset(out, 0, size);
    int ret = find_entry(disk, guest_cluster, &e);
    if (ret < 0)
        return ret;
    if (e.kind == QCOW2_L2_COMPRESSED)
        return read_compressed(disk, &e, out);
    if (e.kind != QCOW2_L2_NORMAL)
        return 0;
    if (!cluster_aligned(&disk->geo, e.host_off))
        return -EBADMSG;
    ret = io_read_padded(disk->data ? disk->data : disk->io, e.host_off, out, size);
    for (unsigned i = 0; disk->geo.extended_l2 && i < QCOW2_SUBCLUSTERS; i++) {
        if (!(e.bitmap >> i & 1))
            memset(out + (size_t)i * part, 0, part);
    }
    return ret;
}

int guest_read(struct io *io, struct io *data, const char *snapshot_id, uint64_t guest_off,
    uint8_t *buf, size_t length)
{
    struct disk disk = {.io = io, .data = data};
    int ret = disk_open(&disk, snapshot_id);
    if (ret != 0)
        return ret;
    uint32_t size = disk.geo.cluster_size;
    uint8_t *cluster = malloc(size);
    if (!cluster)
        abort();
    while (ret == 0 && length > 0) {
        size_t in_off = guest_off & (size - 1);
        size_t n = length < size - in_off ? length : size - in_off;
        ret = read_cluster(&disk, guest_off >> disk.geo.cluster_bits, cluster);
        memcpy(buf, cluster + in_off, n);
        buf += n;
        guest_off += n;
        length -= n;
    }
    free(cluster);
    return ret;
}
