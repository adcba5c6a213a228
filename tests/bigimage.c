/* SPDX-License-Identifier: MIT
 *
 * Host clusters, in this order: header, refcount table, refcount blocks, active L1, snapshot table,
 * L1 tables of the snapshots, bitmap directory, bitmap tables; then each L2 table with the data it
 * maps behind it (shuffled: all tables, then all data); compressed data last, packed without gaps.
 */
#include "bigimage.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { TEMPLATES = 16, BITMAP_BYTES = 32, BITMAP_GRANULARITY_BITS = 16 };

struct maker {
    struct io *io;
    const struct bigimage *want;
    struct qcow2_geometry geo;
    struct bigimage_parts parts;
    uint64_t guest_clusters;
    uint64_t snapshot_table, bitmap_directory, body, packed; /* first cluster of each */
    uint16_t *packed_refs; /* of each cluster of compressed data */
    uint8_t *templates[TEMPLATES];
    size_t template_len[TEMPLATES];
    uint8_t *buf; /* room for a cluster */
};

/* ---- where things are ---- */

static bool is_mapped(const struct maker *m, uint64_t guest)
{
    unsigned percent = m->want->percent;
    return guest >= m->want->compressed && (guest + 1) * percent / 100 > guest * percent / 100;
}

/* Mapped clusters before a guest cluster. */
static uint64_t mapped_before(const struct maker *m, uint64_t guest)
{
    uint64_t all = guest * m->want->percent / 100;
    uint64_t packed = m->want->compressed * m->want->percent / 100;
    return all > packed ? all - packed : 0;
}

/* The host cluster of L2 table i. */
static uint64_t table_cluster(const struct maker *m, uint64_t i)
{
    return m->body + i + (m->want->shuffled ? 0 : mapped_before(m, i << m->geo.l2_bits));
}

/* A permutation of 0 .. count - 1: multiplication by an odd number modulo a power of two, repeated
 * until the result is below `count`. */
static uint64_t shuffle(uint64_t i, uint64_t count)
{
    uint64_t mask = 1;
    while (mask < count)
        mask *= 2;
    mask -= 1;
    do
        i = (i * UINT64_C(0x9e3779b97f4a7c15) + 0x7f4a7c15) & mask;
    while (i >= count);
    return i;
}

static uint64_t data_cluster(const struct maker *m, uint64_t guest)
{
    uint64_t nth = mapped_before(m, guest);
    if (m->want->shuffled)
        return m->body + m->parts.l2_tables + shuffle(nth, m->parts.mapped);
    return m->body + (guest >> m->geo.l2_bits) + 1 + nth;
}

/* Digits of a snapshot's ID, and of its name. */
static unsigned digits(const struct maker *m)
{
    return m->want->snapshots > 10000 ? 8 : 4;
}

static uint64_t record_bytes(const struct maker *m)
{
    uint64_t least = QCOW2_SNAPSHOT_HEAD_BYTES + QCOW2_SNAPSHOT_EXTRA_V3 + 2 * digits(m);
    return m->want->record_bytes > least ? m->want->record_bytes : least;
}

static uint32_t count_of(const struct maker *m, uint64_t cluster)
{
    uint32_t shared = 1 + m->want->snapshots;
    if (cluster >= m->parts.total)
        return 0;
    if (cluster >= m->packed)
        return m->packed_refs[cluster - m->packed] * shared;
    if (cluster < m->body)
        return 1;
    unsigned every = m->want->wrong_every;
    return shared + (every && cluster % every == 0);
}

static int write_at(struct maker *m, uint64_t cluster, const void *bytes, size_t length)
{
    return io_write(m->io, cluster << m->geo.cluster_bits, bytes, length);
}

/* ---- compressed clusters ---- */

/* Four bits of entropy a byte in half of the cluster, so it packs to about a quarter. */
static int make_templates(struct maker *m)
{
    uint32_t size = m->geo.cluster_size;
    for (unsigned t = 0; t < TEMPLATES; t++) {
        z_stream z = {0};
        uint64_t state = t + 1;
        for (uint32_t i = 0; i < size; i++) {
            state = state * UINT64_C(6364136223846793005) + 1442695040888963407;
            m->buf[i] = i % 1024 < 512 ? (uint8_t)(state >> 60) : 0;
        }
        m->templates[t] = malloc(size);
        if (!m->templates[t] || deflateInit2(&z, 6, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) != Z_OK)
            return -ENOMEM;
        z.next_in = m->buf;
        z.avail_in = size;
        z.next_out = m->templates[t];
        z.avail_out = size;
        int ret = deflate(&z, Z_FINISH);
        m->template_len[t] = (size_t)z.total_out;
        deflateEnd(&z);
        if (ret != Z_STREAM_END)
            return -EINVAL;
    }
    return 0;
}

/* The bytes of compressed data before number i. */
static uint64_t packed_off(const struct maker *m, uint64_t i)
{
    uint64_t round = 0, off = 0;
    for (unsigned t = 0; t < TEMPLATES; t++)
        round += m->template_len[t];
    off = i / TEMPLATES * round;
    for (unsigned t = 0; t < i % TEMPLATES; t++)
        off += m->template_len[t];
    return off;
}

static uint64_t packed_entry(const struct maker *m, uint64_t i)
{
    uint64_t host_off = (m->packed << m->geo.cluster_bits) + packed_off(m, i);
    uint64_t end = host_off + m->template_len[i % TEMPLATES];
    uint64_t sectors = (end - 1) / QCOW2_SECTOR_BYTES - host_off / QCOW2_SECTOR_BYTES;
    return QCOW2_ENTRY_COMPRESSED | sectors << (62 - (m->geo.cluster_bits - 8)) | host_off;
}

static int write_packed(struct maker *m)
{
    unsigned bits = m->geo.cluster_bits;
    int ret = 0;
    for (uint64_t i = 0; ret == 0 && i < m->want->compressed; i++) {
        uint64_t off = packed_off(m, i), length = m->template_len[i % TEMPLATES];
        /* What counts is the range of whole sectors. */
        uint64_t last = ((off + length - 1) | (QCOW2_SECTOR_BYTES - 1)) >> bits;
        for (uint64_t c = off >> bits; c <= last; c++)
            m->packed_refs[c]++;
        ret =
            io_write(m->io, (m->packed << bits) + off, m->templates[i % TEMPLATES], (size_t)length);
    }
    return ret;
}

/* ---- tables ---- */

static int write_l2_table(struct maker *m, uint64_t table)
{
    uint64_t first = table << m->geo.l2_bits;
    uint64_t copied = m->want->snapshots ? 0 : QCOW2_ENTRY_COPIED;
    if (m->parts.mapped == 0 && m->want->compressed == 0)
        return 0; /* a hole */
    for (uint64_t i = 0; i < m->geo.l2_entries; i++) {
        uint64_t guest = first + i, raw = 0;
        if (guest < m->want->compressed)
            raw = packed_entry(m, guest);
        else if (guest < m->guest_clusters && is_mapped(m, guest))
            raw = data_cluster(m, guest) << m->geo.cluster_bits | copied;
        store_be64(m->buf + i * 8, raw);
    }
    return write_at(m, table_cluster(m, table), m->buf, m->geo.cluster_size);
}

static int write_l1(struct maker *m, uint64_t cluster, uint64_t copied)
{
    uint64_t count = m->parts.l2_tables;
    uint8_t *bytes = calloc(count, 8);
    if (!bytes)
        return -ENOMEM;
    for (uint64_t i = 0; i < count; i++)
        store_be64(bytes + i * 8, table_cluster(m, i) << m->geo.cluster_bits | copied);
    int ret = write_at(m, cluster, bytes, count * 8);
    free(bytes);
    return ret;
}

static int write_snapshots(struct maker *m)
{
    unsigned count = m->want->snapshots, id = digits(m);
    uint64_t length = record_bytes(m), extra = length - QCOW2_SNAPSHOT_HEAD_BYTES - 2 * id;
    uint8_t *bytes = calloc(count + 1, length);
    uint64_t l1 = m->snapshot_table + clusters_for(&m->geo, count * length);
    int ret = bytes ? 0 : -ENOMEM;
    for (unsigned i = 0; ret == 0 && i < count; i++) {
        uint8_t *p = bytes + i * length;
        store_be64(p, (l1 + i * m->parts.l1) << m->geo.cluster_bits);
        store_be32(p + 8, (uint32_t)m->parts.l2_tables);
        store_be16(p + 12, (uint16_t)id); /* length of the ID */
        store_be16(p + 14, (uint16_t)id); /* and of the name */
        store_be32(p + 36, (uint32_t)extra);
        store_be64(p + 48, m->want->size_bytes); /* after the size of the VM state */
        for (unsigned digit = 0, n = i; digit < id; digit++, n /= 10)
            p[length - id - 1 - digit] = p[length - 1 - digit] = (uint8_t)('0' + n % 10);
        ret = write_l1(m, l1 + i * m->parts.l1, 0);
    }
    if (ret == 0 && count > 0)
        ret = write_at(m, m->snapshot_table, bytes, count * length);
    free(bytes);
    return ret;
}

static int write_bitmaps(struct maker *m)
{
    unsigned count = m->want->bitmaps;
    uint8_t *bytes = calloc(count + 1, BITMAP_BYTES);
    uint64_t tables = m->bitmap_directory + clusters_for(&m->geo, (uint64_t)count * BITMAP_BYTES);
    for (unsigned i = 0; bytes && i < count; i++) {
        uint8_t *p = bytes + (size_t)i * BITMAP_BYTES;
        store_be64(p, (tables + i) << m->geo.cluster_bits);
        store_be32(p + 8, 1); /* entries of the table: nothing is marked */
        p[16] = QCOW2_BITMAP_TYPE_DIRTY;
        p[17] = BITMAP_GRANULARITY_BITS;
        store_be16(p + 18, BITMAP_BYTES - QCOW2_BITMAP_HEAD_BYTES); /* length of the name */
        for (unsigned digit = 0, n = i; digit < 8; digit++, n /= 10)
            p[BITMAP_BYTES - 1 - digit] = (uint8_t)('0' + n % 10);
    }
    int ret = bytes ? 0 : -ENOMEM;
    if (ret == 0 && count > 0)
        ret = write_at(m, m->bitmap_directory, bytes, (size_t)count * BITMAP_BYTES);
    free(bytes);
    return ret;
}

static int write_refcounts(struct maker *m)
{
    uint64_t per_block = m->geo.refblock_entries, first = 1 + m->parts.reftable;
    int ret = 0;
    for (uint64_t b = 0; ret == 0 && b < m->parts.refblocks; b++) {
        uint8_t entry[8];
        for (uint64_t i = 0; i < per_block; i++)
            qcow2_refcount_set(m->buf, m->geo.refcount_order, i, count_of(m, b * per_block + i));
        ret = write_at(m, first + b, m->buf, m->geo.cluster_size);
        store_be64(entry, (first + b) << m->geo.cluster_bits);
        if (ret == 0)
            ret = io_write(m->io, m->geo.cluster_size + b * 8, entry, sizeof(entry));
    }
    return ret;
}

static int write_header(struct maker *m)
{
    uint8_t head[QCOW2_V3_HEADER_BYTES + 8 + QCOW2_BITMAPS_EXT_BYTES + 8] = {0};
    struct qcow2_bitmaps_ext bitmaps = {.bitmap_count = m->want->bitmaps,
        .directory_size = (uint64_t)m->want->bitmaps * BITMAP_BYTES,
        .directory_off = m->bitmap_directory << m->geo.cluster_bits};
    unsigned bits = m->geo.cluster_bits;
    store_be32(head, QCOW2_MAGIC);
    store_be32(head + QCOW2_HDR_VERSION, 3);
    store_be32(head + QCOW2_HDR_CLUSTER_BITS, bits);
    store_be64(head + QCOW2_HDR_SIZE, m->want->size_bytes);
    store_be32(head + QCOW2_HDR_L1_SIZE, (uint32_t)m->parts.l2_tables);
    store_be64(head + QCOW2_HDR_L1_OFF, m->parts.l1_off);
    store_be64(head + QCOW2_HDR_REFTABLE_OFF, UINT64_C(1) << bits);
    store_be32(head + QCOW2_HDR_REFTABLE_CLUSTERS, (uint32_t)m->parts.reftable);
    store_be32(head + QCOW2_HDR_SNAPSHOT_COUNT, m->want->snapshots);
    if (m->want->snapshots)
        store_be64(head + QCOW2_HDR_SNAPSHOTS_OFF, m->snapshot_table << bits);
    store_be32(head + QCOW2_HDR_REFCOUNT_ORDER, m->geo.refcount_order);
    store_be32(head + QCOW2_HDR_LENGTH, QCOW2_V3_HEADER_BYTES);
    if (m->want->bitmaps) {
        store_be64(head + QCOW2_HDR_AUTOCLEAR, QCOW2_AUTOCLEAR_BITMAPS);
        store_be32(head + QCOW2_V3_HEADER_BYTES, QCOW2_EXT_BITMAPS);
        store_be32(head + QCOW2_V3_HEADER_BYTES + 4, QCOW2_BITMAPS_EXT_BYTES);
        qcow2_bitmaps_ext_encode(&bitmaps, head + QCOW2_V3_HEADER_BYTES + 8);
    }
    return io_write(m->io, 0, head, sizeof(head));
}

/* ---- all of it ---- */

static int plan(struct maker *m)
{
    const struct bigimage *want = m->want;
    struct qcow2_header header = {.version = 3,
        .cluster_bits = want->cluster_bits,
        .refcount_order = want->snapshots < UINT16_MAX ? 4 : 5,
        .size_bytes = want->size_bytes};
    int ret = qcow2_geometry_init(&header, &m->geo);
    if (ret < 0)
        return ret;
    struct bigimage_parts *parts = &m->parts;
    uint64_t cluster = m->geo.cluster_size;
    m->guest_clusters = clusters_for(&m->geo, want->size_bytes);
    parts->l2_tables = l1_entries_for(&m->geo, want->size_bytes);
    parts->mapped = mapped_before(m, m->guest_clusters);
    parts->l1 = clusters_for(&m->geo, parts->l2_tables * 8);
    parts->packed_bytes = packed_off(m, want->compressed);
    /* Blocks count themselves, too. */
    for (uint64_t before = UINT64_MAX; before != parts->total;) {
        before = parts->total;
        parts->refblocks = div_up(parts->total, m->geo.refblock_entries);
        parts->reftable = div_up(parts->refblocks * 8, cluster);
        uint64_t l1 = 1 + parts->reftable + parts->refblocks;
        parts->l1_off = l1 * cluster;
        m->snapshot_table = l1 + parts->l1;
        m->bitmap_directory = m->snapshot_table +
                              clusters_for(&m->geo, want->snapshots * record_bytes(m)) +
                              want->snapshots * parts->l1;
        m->body = m->bitmap_directory + want->bitmaps +
                  clusters_for(&m->geo, (uint64_t)want->bitmaps * BITMAP_BYTES);
        m->packed = m->body + parts->l2_tables + parts->mapped;
        parts->total = m->packed + clusters_for(&m->geo, parts->packed_bytes);
    }
    parts->l2_off = table_cluster(m, 0) * cluster;
    m->packed_refs = calloc(parts->total - m->packed + 1, sizeof(*m->packed_refs));
    return m->packed_refs ? 0 : -ENOMEM;
}

static int write_all(struct maker *m)
{
    int ret = io_resize(m->io, m->parts.total << m->geo.cluster_bits);
    if (ret == 0)
        ret = write_packed(m);
    if (ret == 0)
        ret = write_header(m);
    if (ret == 0)
        ret = write_refcounts(m);
    if (ret == 0)
        ret = write_l1(
            m, m->parts.l1_off >> m->geo.cluster_bits, m->want->snapshots ? 0 : QCOW2_ENTRY_COPIED);
    if (ret == 0)
        ret = write_snapshots(m);
    if (ret == 0)
        ret = write_bitmaps(m);
    for (uint64_t i = 0; ret == 0 && i < m->parts.l2_tables; i++)
        ret = write_l2_table(m, i);
    return ret;
}

int bigimage_write(struct io *io, const struct bigimage *settings, struct bigimage_parts *parts)
{
    struct maker m = {
        .io = io, .want = settings, .buf = malloc(UINT64_C(1) << QCOW2_MAX_CLUSTER_BITS)};
    m.geo.cluster_size = UINT32_C(1) << settings->cluster_bits;
    int ret = m.buf ? 0 : -ENOMEM;
    if (ret == 0 && settings->compressed)
        ret = make_templates(&m);
    if (ret == 0)
        ret = plan(&m);
    if (ret == 0)
        ret = write_all(&m);
    if (ret == 0 && parts)
        *parts = m.parts;
    for (unsigned t = 0; t < TEMPLATES; t++)
        free(m.templates[t]);
    free(m.packed_refs);
    free(m.buf);
    return ret;
}

int bigimage_save(const char *path, const struct bigimage *settings)
{
    struct io *io;
    int ret = io_file_open(path, IO_FILE_CREATE | IO_FILE_WRITE | IO_FILE_NO_LOCK, &io, NULL);
    if (ret < 0)
        return ret;
    ret = bigimage_write(io, settings, NULL);
    io_close(io);
    return ret;
}
