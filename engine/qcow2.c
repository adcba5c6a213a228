/* SPDX-License-Identifier: MIT
 *
 * Decoding and encoding of the format; see qcow2.h.  Nothing here looks at a device. */
#include "qcow2.h"

#include <errno.h>
#include <string.h>

/* ---- header ---- */

int qcow2_header_decode(const uint8_t *buf, size_t length, struct qcow2_header *header)
{
    if (length < QCOW2_V2_HEADER_BYTES)
        return -ENODATA;
    struct qcow2_header h = {
        .magic = load_be32(buf),
        .version = load_be32(buf + QCOW2_HDR_VERSION),
        .backing_off = load_be64(buf + QCOW2_HDR_BACKING_OFF),
        .backing_len = load_be32(buf + QCOW2_HDR_BACKING_LEN),
        .cluster_bits = load_be32(buf + QCOW2_HDR_CLUSTER_BITS),
        .size_bytes = load_be64(buf + QCOW2_HDR_SIZE),
        .crypt_method = load_be32(buf + QCOW2_HDR_CRYPT_METHOD),
        .l1_size = load_be32(buf + QCOW2_HDR_L1_SIZE),
        .l1_off = load_be64(buf + QCOW2_HDR_L1_OFF),
        .reftable_off = load_be64(buf + QCOW2_HDR_REFTABLE_OFF),
        .reftable_clusters = load_be32(buf + QCOW2_HDR_REFTABLE_CLUSTERS),
        .snapshot_count = load_be32(buf + QCOW2_HDR_SNAPSHOT_COUNT),
        .snapshots_off = load_be64(buf + QCOW2_HDR_SNAPSHOTS_OFF),
        .refcount_order = 4,
        .header_length = QCOW2_V2_HEADER_BYTES,
    };
    if (h.version >= 3) {
        if (length < QCOW2_V3_HEADER_BYTES)
            return -ENODATA;
        h.incompatible = load_be64(buf + QCOW2_HDR_INCOMPATIBLE);
        h.compatible = load_be64(buf + QCOW2_HDR_COMPATIBLE);
        h.autoclear = load_be64(buf + QCOW2_HDR_AUTOCLEAR);
        h.refcount_order = load_be32(buf + QCOW2_HDR_REFCOUNT_ORDER);
        h.header_length = load_be32(buf + QCOW2_HDR_LENGTH);
        if (h.header_length > QCOW2_HDR_COMPRESSION) {
            if (length <= QCOW2_HDR_COMPRESSION)
                return -ENODATA;
            h.compression = buf[QCOW2_HDR_COMPRESSION];
        }
    }
    *header = h;
    return 0;
}

void qcow2_header_encode(const struct qcow2_header *header, uint8_t *buf)
{
    store_be32(buf, header->magic);
    store_be32(buf + QCOW2_HDR_VERSION, header->version);
    store_be64(buf + QCOW2_HDR_BACKING_OFF, header->backing_off);
    store_be32(buf + QCOW2_HDR_BACKING_LEN, header->backing_len);
    store_be32(buf + QCOW2_HDR_CLUSTER_BITS, header->cluster_bits);
    store_be64(buf + QCOW2_HDR_SIZE, header->size_bytes);
    store_be32(buf + QCOW2_HDR_CRYPT_METHOD, header->crypt_method);
    store_be32(buf + QCOW2_HDR_L1_SIZE, header->l1_size);
    store_be64(buf + QCOW2_HDR_L1_OFF, header->l1_off);
    store_be64(buf + QCOW2_HDR_REFTABLE_OFF, header->reftable_off);
    store_be32(buf + QCOW2_HDR_REFTABLE_CLUSTERS, header->reftable_clusters);
    store_be32(buf + QCOW2_HDR_SNAPSHOT_COUNT, header->snapshot_count);
    store_be64(buf + QCOW2_HDR_SNAPSHOTS_OFF, header->snapshots_off);
    if (header->version < 3)
        return;
    store_be64(buf + QCOW2_HDR_INCOMPATIBLE, header->incompatible);
    store_be64(buf + QCOW2_HDR_COMPATIBLE, header->compatible);
    store_be64(buf + QCOW2_HDR_AUTOCLEAR, header->autoclear);
    store_be32(buf + QCOW2_HDR_REFCOUNT_ORDER, header->refcount_order);
    store_be32(buf + QCOW2_HDR_LENGTH, header->header_length);
    if (header->header_length > QCOW2_HDR_COMPRESSION)
        buf[QCOW2_HDR_COMPRESSION] = header->compression;
}

int qcow2_ext_next(const uint8_t *buf, size_t end, size_t *pos, struct qcow2_ext *ext)
{
    if (*pos > end || end - *pos < 8)
        return 0;
    struct qcow2_ext e = {
        .type = load_be32(buf + *pos),
        .length = load_be32(buf + *pos + 4),
        .head_off = (uint32_t)*pos,
    };
    if (e.type == QCOW2_EXT_END)
        return 0;
    size_t room = end - *pos - 8;
    if (e.length > room) {
        *ext = e;
        return -ERANGE;
    }
    e.data = buf + *pos + 8;
    *ext = e;
    size_t padded = ((size_t)e.length + 7) & ~(size_t)7;
    *pos += 8 + (padded < room ? padded : room);
    return 1;
}

void qcow2_bitmaps_ext_decode(const uint8_t *data, struct qcow2_bitmaps_ext *ext)
{
    ext->bitmap_count = load_be32(data);
    ext->reserved = load_be32(data + 4);
    ext->directory_size = load_be64(data + 8);
    ext->directory_off = load_be64(data + 16);
}

void qcow2_bitmaps_ext_encode(const struct qcow2_bitmaps_ext *ext, uint8_t *data)
{
    store_be32(data, ext->bitmap_count);
    store_be32(data + 4, ext->reserved);
    store_be64(data + 8, ext->directory_size);
    store_be64(data + 16, ext->directory_off);
}

/* ---- geometry ---- */

int qcow2_geometry_init(const struct qcow2_header *header, struct qcow2_geometry *geo)
{
    bool extended = header->incompatible & QCOW2_INCOMPAT_EXTL2;
    if (header->cluster_bits < QCOW2_MIN_CLUSTER_BITS ||
        header->cluster_bits > QCOW2_MAX_CLUSTER_BITS ||
        header->refcount_order > QCOW2_MAX_REFCOUNT_ORDER ||
        (extended && header->cluster_bits < QCOW2_MIN_CLUSTER_BITS_EXTL2))
        return -EINVAL;
    unsigned bits = header->cluster_bits, order = header->refcount_order;
    unsigned l2_bits = bits - (extended ? 4 : 3);
    unsigned refblock_bits = bits + 3 - order;
    *geo = (struct qcow2_geometry){
        .version = header->version,
        .cluster_bits = bits,
        .cluster_size = UINT32_C(1) << bits,
        .extended_l2 = extended,
        .data_file = header->incompatible & QCOW2_INCOMPAT_DATA_FILE,
        .l2_entry_size = extended ? 16 : 8,
        .l2_bits = l2_bits,
        .l2_entries = UINT32_C(1) << l2_bits,
        .l2_span = UINT64_C(1) << (l2_bits + bits),
        .refcount_order = order,
        .refcount_max = UINT64_MAX >> (64 - (1u << order)),
        .refblock_bits = refblock_bits,
        .refblock_entries = UINT64_C(1) << refblock_bits,
        .compressed_shift = 62 - (bits - 8),
    };
    return 0;
}

/* ---- L2 entries ---- */

static void decode_compressed(const struct qcow2_geometry *geo, struct qcow2_l2_entry *e)
{
    unsigned x = geo->compressed_shift;
    uint64_t sectors = (e->raw & (QCOW2_ENTRY_COMPRESSED - 1)) >> x;
    e->kind = QCOW2_L2_COMPRESSED;
    e->host_off = e->raw & ((UINT64_C(1) << x) - 1);
    e->length = (uint32_t)((sectors + 1) * QCOW2_SECTOR_BYTES - e->host_off % QCOW2_SECTOR_BYTES);
}

void qcow2_l2_decode(const struct qcow2_geometry *geo, const uint8_t *p, struct qcow2_l2_entry *e)
{
    uint64_t raw = load_be64(p);
    *e = (struct qcow2_l2_entry){
        .raw = raw,
        .bitmap = geo->extended_l2 ? load_be64(p + 8) : 0,
        .copied = raw & QCOW2_ENTRY_COPIED,
        .host_off = raw & QCOW2_OFFSET_MASK,
        .length = geo->cluster_size,
    };
    if (raw & QCOW2_ENTRY_COMPRESSED)
        decode_compressed(geo, e);
    else if ((raw & QCOW2_ENTRY_ZERO) && !geo->extended_l2)
        e->kind = e->host_off ? QCOW2_L2_ZERO_ALLOC : QCOW2_L2_ZERO_PLAIN;
    else if (e->host_off || (geo->data_file && e->copied))
        e->kind = QCOW2_L2_NORMAL;
    else
        e->kind = QCOW2_L2_UNALLOCATED;
}

int qcow2_compressed_encode(
    const struct qcow2_geometry *geo, uint64_t host_off, uint32_t length, uint64_t *raw)
{
    unsigned x = geo->compressed_shift;
    uint64_t last_sector = (host_off + length - 1) / QCOW2_SECTOR_BYTES;
    uint64_t sectors = last_sector - host_off / QCOW2_SECTOR_BYTES;
    if (length == 0 || host_off >> x || host_off >> 56 || sectors >> (62 - x))
        return -ERANGE;
    *raw = QCOW2_ENTRY_COMPRESSED | sectors << x | host_off;
    return 0;
}

/* ---- refcounts ---- */

uint64_t qcow2_refcount_get(const uint8_t *block, unsigned order, uint64_t idx)
{
    switch (order) {
    case 6:
        return load_be64(block + idx * 8);
    case 5:
        return load_be32(block + idx * 4);
    case 4:
        return load_be16(block + idx * 2);
    case 3:
        return block[idx];
    default: { /* several in a byte, the first in its least significant bits */
        unsigned width = 1u << order, per_byte = 8u >> order;
        unsigned shift = (unsigned)(idx % per_byte) * width;
        return (unsigned)block[idx / per_byte] >> shift & ((1u << width) - 1);
    }
    }
}

void qcow2_refcount_set(uint8_t *block, unsigned order, uint64_t idx, uint64_t value)
{
    switch (order) {
    case 6:
        store_be64(block + idx * 8, value);
        break;
    case 5:
        store_be32(block + idx * 4, (uint32_t)value);
        break;
    case 4:
        store_be16(block + idx * 2, (uint16_t)value);
        break;
    case 3:
        block[idx] = (uint8_t)value;
        break;
    default: {
        unsigned width = 1u << order, per_byte = 8u >> order;
        unsigned shift = (unsigned)(idx % per_byte) * width;
        unsigned mask = ((1u << width) - 1) << shift;
        uint8_t *byte = block + idx / per_byte;
        *byte = (uint8_t)((*byte & ~mask) | ((unsigned)value << shift & mask));
    }
    }
}

/* ---- snapshots ---- */

uint64_t qcow2_snapshot_length(const struct qcow2_snapshot *s)
{
    uint64_t length = QCOW2_SNAPSHOT_HEAD_BYTES;
    length += (uint64_t)s->extra_len + s->id_len + s->name_len;
    return (length + 7) & ~UINT64_C(7);
}

int qcow2_snapshot_decode(const uint8_t *buf, size_t length, struct qcow2_snapshot *snapshot)
{
    struct qcow2_snapshot s = {0};
    if (length < QCOW2_SNAPSHOT_HEAD_BYTES) {
        *snapshot = s;
        return -ENODATA;
    }
    s.l1_off = load_be64(buf);
    s.l1_size = load_be32(buf + 8);
    s.id_len = load_be16(buf + 12);
    s.name_len = load_be16(buf + 14);
    s.date_sec = load_be32(buf + 16);
    s.date_nsec = load_be32(buf + 20);
    s.vm_clock_nsec = load_be64(buf + 24);
    s.vm_state_size = s.vm_state_size32 = load_be32(buf + 32);
    s.extra_len = load_be32(buf + 36);
    s.record_len = qcow2_snapshot_length(&s);
    /* The last record's padding may be missing. */
    uint64_t unpadded = QCOW2_SNAPSHOT_HEAD_BYTES + (uint64_t)s.extra_len + s.id_len + s.name_len;
    if (unpadded <= length) {
        s.extra = buf + QCOW2_SNAPSHOT_HEAD_BYTES;
        s.id = s.extra + s.extra_len;
        s.name = s.id + s.id_len;
        if (s.extra_len >= 8)
            s.vm_state_size = load_be64(s.extra);
        s.has_disk_size = s.extra_len >= 16;
        s.disk_size = s.has_disk_size ? load_be64(s.extra + 8) : 0;
        s.has_icount = s.extra_len >= 24;
        s.icount = s.has_icount ? load_be64(s.extra + 16) : 0;
    }
    *snapshot = s;
    return unpadded <= length ? 0 : -ENODATA;
}

static uint8_t *put_bytes(uint8_t *p, const uint8_t *bytes, size_t length)
{
    if (length > 0) /* the pointer may be NULL otherwise */
        memcpy(p, bytes, length);
    return p + length;
}

void qcow2_snapshot_encode(const struct qcow2_snapshot *s, uint8_t *buf)
{
    memset(buf, 0, (size_t)qcow2_snapshot_length(s));
    store_be64(buf, s->l1_off);
    store_be32(buf + 8, s->l1_size);
    store_be16(buf + 12, s->id_len);
    store_be16(buf + 14, s->name_len);
    store_be32(buf + 16, s->date_sec);
    store_be32(buf + 20, s->date_nsec);
    store_be64(buf + 24, s->vm_clock_nsec);
    store_be32(buf + 32, s->vm_state_size32);
    store_be32(buf + 36, s->extra_len);
    uint8_t *p = buf + QCOW2_SNAPSHOT_HEAD_BYTES;
    p = put_bytes(p, s->extra, s->extra_len);
    p = put_bytes(p, s->id, s->id_len);
    put_bytes(p, s->name, s->name_len);
}

/* ---- bitmaps ---- */

int qcow2_bitmap_decode(const uint8_t *buf, size_t length, struct qcow2_bitmap *bitmap)
{
    struct qcow2_bitmap b = {0};
    if (length < QCOW2_BITMAP_HEAD_BYTES) {
        *bitmap = b;
        return -ENODATA;
    }
    b.table_off = load_be64(buf);
    b.table_size = load_be32(buf + 8);
    b.flags = load_be32(buf + 12);
    b.type = buf[16];
    b.granularity_bits = buf[17];
    b.name_len = load_be16(buf + 18);
    b.extra_len = load_be32(buf + 20);
    b.record_len =
        (QCOW2_BITMAP_HEAD_BYTES + (uint64_t)b.extra_len + b.name_len + 7) & ~UINT64_C(7);
    bool whole = b.record_len <= length;
    if (whole)
        b.name = buf + QCOW2_BITMAP_HEAD_BYTES + b.extra_len;
    *bitmap = b;
    return whole ? 0 : -ENODATA;
}

uint64_t qcow2_bitmap_bytes(uint64_t size_bytes, unsigned granularity_bits)
{
    uint64_t bits = (size_bytes >> granularity_bits) +
                    ((size_bytes & ((UINT64_C(1) << granularity_bits) - 1)) != 0);
    return div_up(bits, 8);
}
