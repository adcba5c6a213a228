/* SPDX-License-Identifier: MIT
 *
 * Placing guest data.  Host clusters are handed out one after the other and never again; a cluster
 * that is overwritten by something else is simply counted by nobody in the end, which makes it a
 * free one.  What a snapshot holds is frozen and copied before it changes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "codec.h"
#include "recipe_impl.h"

enum { DEFLATE_WINDOW_BITS = 12, DEFLATE_MEM_LEVEL = 9, ZSTD_LEVEL = 3 };

uint64_t build_alloc(struct recipe *r, uint64_t clusters)
{
    uint64_t host_off = r->next_cluster << r->geo.cluster_bits;
    r->next_cluster += clusters;
    return host_off;
}

bool build_frozen(const struct recipe *r, uint64_t host_off)
{
    uint64_t cluster = cluster_of(&r->geo, host_off);
    return cluster < r->frozen_count && r->frozen[cluster];
}

/* ---- tables --------------------------------------------------------------------------------- */

void build_l1_resize(struct recipe *r, struct l1_table *l1, uint32_t entries)
{
    uint64_t old = clusters_for(&r->geo, 8 * (uint64_t)l1->size);
    uint64_t clusters = clusters_for(&r->geo, 8 * (uint64_t)entries);
    struct l2_table **l2 = recipe_alloc(r, entries, sizeof(*l2));
    if (l1->size)
        memcpy(l2, l1->l2, (entries < l1->size ? entries : l1->size) * sizeof(*l2));
    if (clusters > old)
        l1->host_off = build_alloc(r, clusters);
    l1->l2 = l2;
    l1->size = entries;
}

static struct l2_table *l2_new(struct recipe *r)
{
    struct l2_table *l2 = recipe_alloc(r, 1, sizeof(*l2));
    l2->raw = recipe_alloc(r, r->geo.l2_entries, 8);
    l2->bitmap = recipe_alloc(r, r->geo.l2_entries, 8);
    l2->host_off = build_alloc(r, 1);
    return l2;
}

/* The entry of a guest cluster in a table that may be changed. */
struct slot {
    struct l2_table *l2;
    uint32_t idx;
};

static int slot_get(
    struct recipe *r, struct l1_table *l1, uint64_t guest_cluster, struct slot *slot)
{
    uint64_t l1_idx = guest_cluster >> r->geo.l2_bits;
    if (l1_idx >= l1->size)
        return recipe_fail(r, "the L1 table has no entry %llu", (unsigned long long)l1_idx);
    struct l2_table *old = l1->l2[l1_idx];
    if (!old || old->frozen) {
        struct l2_table *l2 = l2_new(r);
        if (old) {
            memcpy(l2->raw, old->raw, 8 * (size_t)r->geo.l2_entries);
            if (r->geo.extended_l2)
                memcpy(l2->bitmap, old->bitmap, 8 * (size_t)r->geo.l2_entries);
        }
        l1->l2[l1_idx] = l2;
    }
    slot->l2 = l1->l2[l1_idx];
    slot->idx = (uint32_t)(guest_cluster & (r->geo.l2_entries - 1));
    return 0;
}

static struct qcow2_l2_entry slot_entry(const struct recipe *r, const struct slot *slot)
{
    uint8_t bytes[16] = {0};
    store_be64(bytes, slot->l2->raw[slot->idx]);
    if (r->geo.extended_l2)
        store_be64(bytes + 8, slot->l2->bitmap[slot->idx]);
    struct qcow2_l2_entry e;
    qcow2_l2_decode(&r->geo, bytes, &e);
    return e;
}

static void slot_set(struct slot *slot, uint64_t raw, uint64_t bitmap)
{
    slot->l2->raw[slot->idx] = raw;
    slot->l2->bitmap[slot->idx] = bitmap;
}

static uint64_t subcluster_bits(const struct recipe *r, uint64_t off, uint64_t length)
{
    uint64_t size = r->geo.cluster_size / QCOW2_SUBCLUSTERS;
    uint64_t first = off / size, end = div_up(off + length, size);
    return (UINT64_MAX >> (64 - (end - first))) << first;
}

/* ---- content -------------------------------------------------------------------------------- */

static int read_compressed(struct recipe *r, const struct qcow2_l2_entry *e, uint8_t *buf)
{
    uint8_t *src = malloc(e->length);
    if (!src)
        abort();
    struct codec *codec;
    int ret = codec_open(r->header.compression, &codec);
    if (ret == 0) {
        ret = io_read_padded(r->io, e->host_off, src, e->length);
        if (ret == 0)
            ret = codec_decode(codec, src, e->length, buf, r->geo.cluster_size);
        codec_close(codec);
    }
    free(src);
    return ret;
}

/* What the guest sees of a cluster; the backing file counts as zeros. */
static int read_cluster(struct recipe *r, const struct qcow2_l2_entry *e, uint8_t *buf)
{
    uint32_t size = r->geo.cluster_size;
    memset(buf, 0, size);
    if (e->kind == QCOW2_L2_COMPRESSED)
        return read_compressed(r, e, buf);
    if (e->kind != QCOW2_L2_NORMAL)
        return 0;
    int ret = io_read_padded(r->geo.data_file ? r->data : r->io, e->host_off, buf, size);
    for (unsigned i = 0; ret == 0 && r->geo.extended_l2 && i < QCOW2_SUBCLUSTERS; i++) {
        if (!(e->bitmap >> i & 1))
            memset(buf + size / QCOW2_SUBCLUSTERS * i, 0, size / QCOW2_SUBCLUSTERS);
    }
    return ret;
}

/* The host cluster a guest cluster may write to: its own if it has one to itself, else a new one.
 */
static uint64_t own_cluster(
    struct recipe *r, uint64_t guest_cluster, const struct qcow2_l2_entry *e)
{
    if (r->geo.data_file)
        return guest_cluster << r->geo.cluster_bits;
    bool has = e->kind == QCOW2_L2_NORMAL || e->kind == QCOW2_L2_ZERO_ALLOC;
    return has && !build_frozen(r, e->host_off) ? e->host_off : build_alloc(r, 1);
}

/* With a data file COPIED tells offset 0 from no offset, so it is there from the beginning. */
static uint64_t data_flags(const struct recipe *r)
{
    return r->geo.data_file ? QCOW2_ENTRY_COPIED : 0;
}

/* Puts `length` bytes at in_off of a guest cluster; buf is a cluster with those bytes in place. */
static int write_cluster(struct recipe *r, struct l1_table *l1, uint64_t guest_cluster,
    uint64_t in_off, uint64_t length, const uint8_t *buf)
{
    struct slot slot;
    int ret = slot_get(r, l1, guest_cluster, &slot);
    if (ret < 0)
        return ret;
    struct qcow2_l2_entry e = slot_entry(r, &slot);
    uint8_t *whole = malloc(r->geo.cluster_size);
    if (!whole)
        abort();
    ret = read_cluster(r, &e, whole);
    if (ret == 0) {
        memcpy(whole + in_off, buf + in_off, length);
        uint64_t host_off = own_cluster(r, guest_cluster, &e);
        uint64_t bitmap = 0;
        if (r->geo.extended_l2) {
            uint64_t bits = subcluster_bits(r, in_off, length);
            bitmap = e.kind == QCOW2_L2_COMPRESSED ? QCOW2_SUBCLUSTER_ALLOC : e.bitmap;
            bitmap = (bitmap & ~(bits << 32)) | bits;
        }
        slot_set(&slot, host_off | data_flags(r), bitmap);
        struct io *io = r->geo.data_file ? r->data : r->io;
        ret = io_write(io, host_off, whole, r->geo.cluster_size);
    }
    free(whole);
    return ret < 0 ? recipe_fail(r, "writing guest data: %s", strerror(-ret)) : 0;
}

int build_data(struct recipe *r, struct l1_table *l1, uint64_t guest_off, uint64_t length,
    const struct recipe_pattern *pattern)
{
    uint32_t size = r->geo.cluster_size;
    uint8_t *buf = malloc(size);
    if (!buf)
        abort();
    int ret = 0;
    while (ret == 0 && length > 0) {
        uint64_t in_off = guest_off & (size - 1);
        uint64_t n = length < size - in_off ? length : size - in_off;
        recipe_pattern_fill(pattern, guest_off, buf + in_off, n);
        ret = write_cluster(r, l1, guest_off >> r->geo.cluster_bits, in_off, n, buf);
        guest_off += n;
        length -= n;
    }
    free(buf);
    return ret;
}

/* ---- compressed clusters -------------------------------------------------------------------- */

size_t recipe_compress(enum qcow2_compression type, const uint8_t *src, uint8_t *dst, size_t size)
{
    if (type == QCOW2_ZSTD) {
        size_t n = ZSTD_compress(dst, size, src, size, ZSTD_LEVEL);
        return ZSTD_isError(n) || n >= size ? 0 : n;
    }
    z_stream z = {0};
    if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -DEFLATE_WINDOW_BITS, DEFLATE_MEM_LEVEL,
            Z_DEFAULT_STRATEGY) != Z_OK)
        abort();
    z.next_in = (z_const Bytef *)src;
    z.avail_in = (uInt)size;
    z.next_out = dst;
    z.avail_out = (uInt)size;
    int ret = deflate(&z, Z_FINISH);
    size_t n = size - z.avail_out;
    deflateEnd(&z);
    return ret == Z_STREAM_END && n < size ? n : 0;
}

/* A place for `length` compressed bytes: after the last ones if their cluster has room and counts
 * left, going on into the next cluster if that is the next to be handed out. */
static uint64_t place_packed(struct recipe *r, uint64_t length, bool apart)
{
    uint64_t size = r->geo.cluster_size, used = r->packed_off & (size - 1);
    uint64_t cluster_end = r->packed_off - used + size;
    bool room = used && !apart && r->packed_refs < r->geo.refcount_max;
    if (room && length > size - used) {
        room = cluster_end == r->next_cluster << r->geo.cluster_bits;
        if (room) {
            build_alloc(r, 1);
            r->packed_refs = 0;
        }
    }
    if (!room) {
        r->packed_off = build_alloc(r, 1);
        r->packed_refs = 0;
    }
    uint64_t host_off = r->packed_off;
    r->packed_off += length;
    r->packed_refs++;
    return host_off;
}

int build_compressed(struct recipe *r, uint64_t guest_off, uint64_t length,
    const struct recipe_pattern *pattern, bool apart)
{
    uint32_t size = r->geo.cluster_size;
    uint8_t *plain = calloc(1, size), *packed = malloc(size);
    if (!plain || !packed)
        abort();
    int ret = 0;
    while (ret == 0 && length > 0) {
        uint64_t n = length < size ? length : size, raw;
        struct slot slot;
        memset(plain, 0, size);
        recipe_pattern_fill(pattern, guest_off, plain, n);
        size_t packed_len = recipe_compress(r->header.compression, plain, packed, size);
        if (packed_len == 0) {
            ret = recipe_fail(r, "a cluster of this does not get smaller");
            break;
        }
        ret = slot_get(r, &r->active, guest_off >> r->geo.cluster_bits, &slot);
        if (ret < 0)
            break;
        uint64_t host_off = place_packed(r, packed_len, apart);
        if (qcow2_compressed_encode(&r->geo, host_off, (uint32_t)packed_len, &raw) < 0) {
            ret = recipe_fail(r, "the offset does not fit a compressed entry");
            break;
        }
        slot_set(&slot, raw, 0);
        ret = io_write(r->io, host_off, packed, packed_len);
        guest_off += n;
        length -= n;
    }
    free(plain);
    free(packed);
    return ret;
}

/* ---- zeros and holes ------------------------------------------------------------------------ */

/* Fills a host cluster under a zero flag with something that would be noticed. */
static int write_stale(struct recipe *r, uint64_t host_off, const struct recipe_pattern *stale)
{
    uint32_t size = r->geo.cluster_size;
    uint8_t *buf = malloc(size);
    if (!buf)
        abort();
    recipe_pattern_fill(stale, host_off, buf, size);
    int ret = io_write(r->geo.data_file ? r->data : r->io, host_off, buf, size);
    free(buf);
    return ret;
}

static int clear_cluster(struct recipe *r, uint64_t guest_cluster, uint64_t bits, bool zero,
    bool prealloc, const struct recipe_pattern *stale)
{
    struct slot slot;
    int ret = slot_get(r, &r->active, guest_cluster, &slot);
    if (ret < 0)
        return ret;
    struct qcow2_l2_entry e = slot_entry(r, &slot);
    bool whole = bits == QCOW2_SUBCLUSTER_ALLOC;
    if (!whole && e.kind == QCOW2_L2_COMPRESSED)
        return recipe_fail(r, "part of a compressed cluster cannot be cleared");
    uint64_t raw = 0, bitmap = 0;
    if (r->header.autoclear & QCOW2_AUTOCLEAR_RAW_DATA) { /* must read the same without tables */
        static const struct recipe_pattern zeros;
        stale = &zeros;
        prealloc = true;
    }
    if (prealloc) {
        raw = own_cluster(r, guest_cluster, &e) | data_flags(r);
        ret = write_stale(r, raw & QCOW2_OFFSET_MASK, stale);
    } else if (!whole) {
        raw = slot.l2->raw[slot.idx];
    }
    if (r->geo.extended_l2)
        bitmap = (e.bitmap & ~bits & ~(bits << 32)) | (zero ? bits << 32 : 0);
    else
        raw |= zero ? QCOW2_ENTRY_ZERO : 0;
    slot_set(&slot, raw, bitmap);
    return ret;
}

static int clear_range(struct recipe *r, uint64_t guest_off, uint64_t length, bool zero,
    bool prealloc, const struct recipe_pattern *stale)
{
    uint32_t size = r->geo.cluster_size;
    uint32_t unit = r->geo.extended_l2 ? size / QCOW2_SUBCLUSTERS : size;
    uint64_t end = guest_off + length;
    if (guest_off % unit || (end % unit && end != r->header.size_bytes))
        return recipe_fail(
            r, "zero and discard want whole %s", r->geo.extended_l2 ? "subclusters" : "clusters");
    while (guest_off < end) {
        uint64_t span_end = guest_off / r->geo.l2_span * r->geo.l2_span + r->geo.l2_span;
        if (!zero && !r->active.l2[guest_off / r->geo.l2_span]) { /* a hole already */
            guest_off = span_end;
            continue;
        }
        uint64_t in_off = guest_off & (size - 1);
        uint64_t n = end - guest_off < size - in_off ? end - guest_off : size - in_off;
        uint64_t bits = r->geo.extended_l2 ? subcluster_bits(r, in_off, n) : QCOW2_SUBCLUSTER_ALLOC;
        int ret = clear_cluster(r, guest_off >> r->geo.cluster_bits, bits, zero, prealloc, stale);
        if (ret < 0)
            return ret;
        guest_off += n;
    }
    return 0;
}

int build_zero(struct recipe *r, uint64_t guest_off, uint64_t length, bool prealloc,
    const struct recipe_pattern *stale)
{
    if (r->geo.version < 3)
        return recipe_fail(r, "version 2 has no zero clusters");
    return clear_range(r, guest_off, length, true, prealloc, stale);
}

int build_discard(struct recipe *r, uint64_t guest_off, uint64_t length)
{
    return clear_range(r, guest_off, length, false, false, NULL);
}

/* ---- snapshots ------------------------------------------------------------------------------ */

static void freeze_cluster(struct recipe *r, uint64_t host_off)
{
    uint64_t cluster = cluster_of(&r->geo, host_off);
    if (cluster >= r->frozen_count) {
        uint8_t *frozen = recipe_alloc(r, 2 * r->next_cluster, 1);
        if (r->frozen_count)
            memcpy(frozen, r->frozen, r->frozen_count);
        r->frozen = frozen;
        r->frozen_count = 2 * r->next_cluster;
    }
    r->frozen[cluster] = 1;
}

static void freeze_table(struct recipe *r, struct l2_table *l2)
{
    l2->frozen = true;
    for (uint32_t i = 0; i < r->geo.l2_entries; i++) {
        struct qcow2_l2_entry e = slot_entry(r, &(struct slot){l2, i});
        if (e.kind == QCOW2_L2_NORMAL || e.kind == QCOW2_L2_ZERO_ALLOC)
            freeze_cluster(r, e.host_off);
    }
}

int build_snapshot(
    struct recipe *r, const struct recipe_snapshot *plan, const struct recipe_pattern *vm_state)
{
    if (r->geo.data_file)
        return recipe_fail(r, "no snapshots with a data file");
    struct recipe_snapshot s = *plan;
    uint64_t disk_l1 = l1_entries_for(&r->geo, r->header.size_bytes);
    uint64_t state_l1 = l1_entries_for(&r->geo, s.vm_state_size);
    s.disk_size = r->header.size_bytes;
    build_l1_resize(r, &s.l1, (uint32_t)(state_l1 ? disk_l1 + state_l1 : r->active.size));
    for (uint32_t i = 0; i < r->active.size && i < s.l1.size; i++) {
        s.l1.l2[i] = r->active.l2[i];
        if (s.l1.l2[i] && !s.l1.l2[i]->frozen)
            freeze_table(r, s.l1.l2[i]);
    }
    r->snapshots = recipe_grow(r, r->snapshots, r->snapshot_count, sizeof(s));
    r->snapshots[r->snapshot_count] = s;
    return build_data(r, &r->snapshots[r->snapshot_count++].l1, disk_l1 * r->geo.l2_span,
        s.vm_state_size, vm_state);
}
