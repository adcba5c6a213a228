/* SPDX-License-Identifier: MIT */
#include "guest.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"

/* The snapshot of that ID, or the nth one. */
static int find_snapshot(struct guest_disk *disk, const char *id, unsigned nth, char *label)
{
    enum { RECORD_BYTES = 2 << 16 };
    uint64_t off = disk->header.snapshots_off, file_size;
    uint8_t *buf = malloc(RECORD_BYTES);
    if (!buf)
        abort();
    int ret = io_size(disk->io, &file_size);
    if (ret == 0)
        ret = -ENOENT;
    for (uint32_t i = 0; ret == -ENOENT && i < disk->header.snapshot_count; i++) {
        struct qcow2_snapshot s;
        int err = off < file_size ? io_read_padded(disk->io, off, buf, RECORD_BYTES) : -EBADMSG;
        if (err == 0)
            err = qcow2_snapshot_decode(buf, RECORD_BYTES, &s);
        if (err != 0) {
            ret = err;
            break;
        }
        disk->names_off = off + QCOW2_SNAPSHOT_HEAD_BYTES + s.extra_len;
        disk->names_len = (uint64_t)s.id_len + s.name_len;
        off += s.record_len;
        if (id ? s.id_len != strlen(id) || memcmp(s.id, id, s.id_len) != 0 : i + 1 != nth)
            continue;
        disk->l1_off = s.l1_off;
        disk->l1_size = s.l1_size;
        if (s.has_disk_size)
            disk->size_bytes = s.disk_size;
        if (label)
            snprintf(label, GUEST_LABEL_BYTES, "%.*s/%.*s", (int)s.id_len, (const char *)s.id,
                (int)s.name_len, (const char *)s.name);
        ret = 0;
    }
    free(buf);
    return ret;
}

int guest_open(struct guest_disk *disk, struct io *io, struct io *data, const char *snapshot_id,
    unsigned nth, char *label)
{
    uint8_t buf[512];
    *disk = (struct guest_disk){.io = io};
    int ret = io_read_padded(disk->io, 0, buf, sizeof(buf));
    if (ret == 0)
        ret = qcow2_header_decode(buf, sizeof(buf), &disk->header);
    if (ret == 0)
        ret = qcow2_geometry_init(&disk->header, &disk->geo);
    if (disk->geo.data_file)
        disk->data = data;
    disk->l1_off = disk->header.l1_off;
    disk->l1_size = disk->header.l1_size;
    disk->size_bytes = disk->header.size_bytes;
    if (label)
        *label = '\0';
    return ret < 0 || (!snapshot_id && nth == 0) ? ret
                                                 : find_snapshot(disk, snapshot_id, nth, label);
}

int guest_entry(
    struct guest_disk *disk, uint64_t guest_idx, struct qcow2_l2_entry *e, uint64_t at[2])
{
    const struct qcow2_geometry *geo = &disk->geo;
    uint64_t l1_idx = guest_idx >> geo->l2_bits;
    uint64_t l2_idx = guest_idx & (geo->l2_entries - 1);
    uint8_t bytes[16] = {0};
    at[0] = l1_idx < disk->l1_size ? disk->l1_off + 8 * l1_idx : 0;
    at[1] = 0;
    int ret = at[0] ? io_read(disk->io, at[0], bytes, 8) : 0;
    uint64_t l2_off = load_be64(bytes) & QCOW2_OFFSET_MASK;
    memset(bytes, 0, sizeof(bytes));
    if (ret == 0 && !cluster_aligned(geo, l2_off))
        ret = -EBADMSG;
    if (ret == 0 && l2_off) {
        at[1] = l2_off + l2_idx * geo->l2_entry_size;
        ret = io_read(disk->io, at[1], bytes, geo->l2_entry_size);
    }
    qcow2_l2_decode(geo, bytes, e);
    return ret;
}

static int read_compressed(struct guest_disk *disk, const struct qcow2_l2_entry *e, uint8_t *out)
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

int guest_cluster(struct guest_disk *disk, const struct qcow2_l2_entry *e, uint8_t *out)
{
    uint32_t size = disk->geo.cluster_size, part = size / QCOW2_SUBCLUSTERS;
    memset(out, 0, size);
    if (e->kind == QCOW2_L2_COMPRESSED)
        return read_compressed(disk, e, out);
    if (disk->geo.version < 3 && (e->raw & QCOW2_ENTRY_ZERO)) /* programs refuse it */
        return -EBADMSG;
    if (disk->geo.extended_l2 && (e->bitmap & e->bitmap >> 32 & UINT32_MAX)) /* as well */
        return -EBADMSG;
    if (e->kind != QCOW2_L2_NORMAL)
        return 0;
    if (!cluster_aligned(&disk->geo, e->host_off))
        return -EBADMSG;
    int ret = io_read_padded(disk->data ? disk->data : disk->io, e->host_off, out, size);
    for (unsigned i = 0; disk->geo.extended_l2 && i < QCOW2_SUBCLUSTERS; i++) {
        if (!(e->bitmap >> i & 1))
            memset(out + (size_t)i * part, 0, part);
    }
    return ret;
}

static int read_at(struct guest_disk *disk, uint64_t guest_idx, uint8_t *out)
{
    struct qcow2_l2_entry e;
    uint64_t at[2];
    int ret = guest_entry(disk, guest_idx, &e, at);
    return ret < 0 ? ret : guest_cluster(disk, &e, out);
}

int guest_read(struct io *io, struct io *data, const char *snapshot_id, uint64_t guest_off,
    uint8_t *buf, size_t length)
{
    struct guest_disk disk;
    int ret = guest_open(&disk, io, data, snapshot_id, 0, NULL);
    if (ret != 0)
        return ret;
    uint32_t size = disk.geo.cluster_size;
    uint8_t *cluster = malloc(size);
    if (!cluster)
        abort();
    while (ret == 0 && length > 0) {
        size_t in_off = guest_off & (size - 1);
        size_t n = length < size - in_off ? length : size - in_off;
        ret = read_at(&disk, guest_off >> disk.geo.cluster_bits, cluster);
        memcpy(buf, cluster + in_off, n);
        buf += n;
        guest_off += n;
        length -= n;
    }
    free(cluster);
    return ret;
}
