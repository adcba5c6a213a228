/* SPDX-License-Identifier: MIT
 *
 * The second half of building: counts every reference to every host cluster, finds room for the
 * refcount blocks that takes, and writes all tables and the header. */
#include <errno.h>
#include <string.h>

#include "recipe_impl.h"

/* ---- counting ------------------------------------------------------------------------------- */

static int count(struct recipe *r, uint64_t host_off, uint64_t length)
{
    uint64_t first = cluster_of(&r->geo, host_off), end = clusters_for(&r->geo, host_off + length);
    for (uint64_t i = first; i < end && i < r->next_cluster; i++) {
        if (r->refs[i] == r->geo.refcount_max)
            return recipe_fail(r, "the references to the cluster at %#llx do not fit %u bits",
                (unsigned long long)(i << r->geo.cluster_bits), 1u << r->geo.refcount_order);
        r->refs[i]++;
    }
    return 0;
}

static struct qcow2_l2_entry entry(const struct recipe *r, const struct l2_table *l2, uint32_t idx)
{
    uint8_t bytes[16] = {0};
    store_be64(bytes, l2->raw[idx]);
    if (r->geo.extended_l2)
        store_be64(bytes + 8, l2->bitmap[idx]);
    struct qcow2_l2_entry e;
    qcow2_l2_decode(&r->geo, bytes, &e);
    return e;
}

static int count_l2(struct recipe *r, const struct l2_table *l2)
{
    int ret = count(r, l2->host_off, r->geo.cluster_size);
    for (uint32_t i = 0; ret == 0 && i < r->geo.l2_entries; i++) {
        struct qcow2_l2_entry e = entry(r, l2, i);
        bool data = e.kind == QCOW2_L2_NORMAL || e.kind == QCOW2_L2_ZERO_ALLOC;
        if ((data && !r->geo.data_file) || e.kind == QCOW2_L2_COMPRESSED)
            ret = count(r, e.host_off, e.length);
    }
    return ret;
}

static int count_l1(struct recipe *r, const struct l1_table *l1)
{
    int ret = count(r, l1->host_off, 8 * (uint64_t)l1->size);
    for (uint32_t i = 0; ret == 0 && i < l1->size; i++)
        ret = l1->l2[i] ? count_l2(r, l1->l2[i]) : 0;
    return ret;
}

static int count_bitmap(struct recipe *r, const struct recipe_bitmap *b)
{
    int ret = count(r, b->table_off, 8 * b->table_size);
    for (uint64_t i = 0; ret == 0 && i < b->table_size; i++) {
        if (b->table[i] > 1)
            ret = count(r, b->table[i], r->geo.cluster_size);
    }
    return ret;
}

/* ---- refcount blocks ------------------------------------------------------------------------ */

/* Room for refs and refblocks of clusters that are still to come. */
static void refs_grow(struct recipe *r, uint64_t had)
{
    uint64_t *refs = recipe_alloc(r, r->next_cluster, sizeof(*refs));
    memcpy(refs, r->refs, had * sizeof(*refs));
    r->refs = refs;
    uint64_t blocks = div_up(r->next_cluster, r->geo.refblock_entries);
    uint64_t *refblocks = recipe_alloc(r, blocks, sizeof(*refblocks));
    if (r->refblock_count)
        memcpy(refblocks, r->refblocks, r->refblock_count * sizeof(*refblocks));
    r->refblocks = refblocks;
    r->refblock_count = blocks;
}

static uint64_t alloc_counted(struct recipe *r, uint64_t clusters)
{
    uint64_t had = r->next_cluster, host_off = build_alloc(r, clusters);
    refs_grow(r, had);
    for (uint64_t i = had; i < r->next_cluster; i++)
        r->refs[i] = 1;
    return host_off;
}

static bool block_needed(const struct recipe *r, uint64_t block)
{
    uint64_t first = block * r->geo.refblock_entries, end = first + r->geo.refblock_entries;
    for (uint64_t i = first; i < end && i < r->next_cluster; i++) {
        if (r->refs[i])
            return true;
    }
    return false;
}

/* Gives every block that must exist a cluster.  A block added may need another one, so the loop
 * looks at what is there now, not at what was there when it began. */
static void place_refblocks(struct recipe *r)
{
    uint64_t reftable_entries = (uint64_t)r->header.reftable_clusters * r->geo.cluster_size / 8;
    for (uint64_t i = 0; i < r->refblock_count; i++) {
        if (r->refblocks[i] || !block_needed(r, i))
            continue;
        uint64_t host_off = alloc_counted(r, 1); /* may move r->refblocks */
        r->refblocks[i] = host_off;
        i = UINT64_MAX; /* from the start: it may lie under an earlier block */
    }
    if (r->refblock_count <= reftable_entries)
        return;
    for (uint32_t i = 0; i < r->header.reftable_clusters; i++)
        r->refs[cluster_of(&r->geo, r->header.reftable_off) + i] = 0;
    r->header.reftable_clusters = (uint32_t)clusters_for(&r->geo, 8 * (r->refblock_count + 2));
    r->header.reftable_off = alloc_counted(r, r->header.reftable_clusters);
    place_refblocks(r);
}

static int count_all(struct recipe *r)
{
    r->refs = recipe_alloc(r, r->next_cluster, sizeof(*r->refs));
    uint64_t reftable_bytes = (uint64_t)r->header.reftable_clusters * r->geo.cluster_size;
    uint64_t first_block = r->header.reftable_off + reftable_bytes;
    int ret = count(r, 0, first_block + r->geo.cluster_size);
    if (ret == 0)
        ret = count_l1(r, &r->active);
    for (size_t i = 0; ret == 0 && i < r->snapshot_count; i++)
        ret = count_l1(r, &r->snapshots[i].l1);
    for (size_t i = 0; ret == 0 && i < r->bitmap_count; i++)
        ret = count_bitmap(r, &r->bitmaps[i]);
    if (ret == 0)
        ret = count(r, r->crypto_off, r->crypto_len);
    uint64_t end = r->next_cluster << r->geo.cluster_bits;
    uint64_t tables_off = r->snapshot_table_off ? r->snapshot_table_off : r->bitmap_dir_off;
    if (ret == 0 && tables_off)
        ret = count(r, tables_off, end - tables_off);
    if (ret < 0)
        return ret;
    refs_grow(r, r->next_cluster);
    r->refblocks[0] = first_block;
    place_refblocks(r);
    return 0;
}

/* ---- writing -------------------------------------------------------------------------------- */

static uint64_t copied(const struct recipe *r, uint64_t host_off)
{
    return r->refs[cluster_of(&r->geo, host_off)] == 1 ? QCOW2_ENTRY_COPIED : 0;
}

static int write_l2(struct recipe *r, struct l2_table *l2, bool active)
{
    if (l2->written)
        return 0;
    l2->written = true;
    uint8_t *buf = recipe_alloc(r, r->geo.cluster_size, 1);
    for (uint32_t i = 0; i < r->geo.l2_entries; i++) {
        struct qcow2_l2_entry e = entry(r, l2, i);
        bool data = e.kind == QCOW2_L2_NORMAL || e.kind == QCOW2_L2_ZERO_ALLOC;
        uint64_t flags = active && data && !r->geo.data_file ? copied(r, e.host_off) : 0;
        store_be64(buf + (size_t)i * r->geo.l2_entry_size, e.raw | flags);
        if (r->geo.extended_l2)
            store_be64(buf + (size_t)i * 16 + 8, e.bitmap);
    }
    return io_write(r->io, l2->host_off, buf, r->geo.cluster_size);
}

static int write_l1(struct recipe *r, const struct l1_table *l1, bool active)
{
    uint8_t *buf = recipe_alloc(r, l1->size, 8);
    int ret = 0;
    for (uint32_t i = 0; ret == 0 && i < l1->size; i++) {
        if (!l1->l2[i])
            continue;
        uint64_t off = l1->l2[i]->host_off;
        store_be64(buf + 8 * (size_t)i, off | (active ? copied(r, off) : 0));
        ret = write_l2(r, l1->l2[i], active);
    }
    return ret < 0 || l1->size == 0 ? ret
                                    : io_write(r->io, l1->host_off, buf, 8 * (size_t)l1->size);
}

static int write_refcounts(struct recipe *r)
{
    size_t table_bytes = (size_t)r->header.reftable_clusters * r->geo.cluster_size;
    uint8_t *table = recipe_alloc(r, table_bytes, 1), *block = recipe_alloc(r, 1, 2 << 20);
    int ret = 0;
    for (uint64_t b = 0; ret == 0 && b < r->refblock_count; b++) {
        if (!r->refblocks[b])
            continue;
        store_be64(table + 8 * b, r->refblocks[b]);
        uint64_t first = b * r->geo.refblock_entries;
        for (uint64_t i = 0; i < r->geo.refblock_entries; i++) {
            uint64_t refs = first + i < r->next_cluster ? r->refs[first + i] : 0;
            qcow2_refcount_set(block, r->geo.refcount_order, i, refs);
        }
        ret = io_write(r->io, r->refblocks[b], block, r->geo.cluster_size);
    }
    return ret < 0 ? ret : io_write(r->io, r->header.reftable_off, table, table_bytes);
}

/* ---- snapshot table and bitmap directory ---------------------------------------------------- */

static struct qcow2_snapshot snapshot_record(struct recipe *r, const struct recipe_snapshot *s)
{
    uint8_t *extra = recipe_alloc(r, s->extra_len + 24, 1);
    memset(extra, 0xe5, s->extra_len + 24); /* what is unknown must be kept, so let it be seen */
    store_be64(extra, s->vm_state_size);
    store_be64(extra + 8, s->disk_size);
    store_be64(extra + 16, s->icount);
    return (struct qcow2_snapshot){.l1_off = s->l1.host_off,
        .l1_size = s->l1.size,
        .id_len = (uint16_t)strlen(s->id),
        .name_len = (uint16_t)strlen(s->name),
        .date_sec = (uint32_t)s->date_sec,
        .date_nsec = (uint32_t)s->date_nsec,
        .vm_clock_nsec = s->clock_nsec,
        .vm_state_size32 = s->vm_state_size > UINT32_MAX ? 0 : (uint32_t)s->vm_state_size,
        .extra_len = (uint32_t)s->extra_len,
        .extra = extra,
        .id = (const uint8_t *)s->id,
        .name = (const uint8_t *)s->name};
}

static int write_snapshots(struct recipe *r)
{
    uint64_t size = 0;
    for (size_t i = 0; i < r->snapshot_count; i++) {
        struct qcow2_snapshot record = snapshot_record(r, &r->snapshots[i]);
        size += qcow2_snapshot_length(&record);
    }
    if (size == 0)
        return 0;
    uint8_t *buf = recipe_alloc(r, size, 1);
    r->snapshot_table_off = build_alloc(r, clusters_for(&r->geo, size));
    uint64_t pos = 0;
    for (size_t i = 0; i < r->snapshot_count; i++) {
        struct qcow2_snapshot record = snapshot_record(r, &r->snapshots[i]);
        r->snapshots[i].record_off = r->snapshot_table_off + pos;
        qcow2_snapshot_encode(&record, buf + pos);
        pos += qcow2_snapshot_length(&record);
    }
    r->header.snapshot_count = (uint32_t)r->snapshot_count;
    r->header.snapshots_off = r->snapshot_table_off;
    return io_write(r->io, r->snapshot_table_off, buf, size);
}

static uint64_t bitmap_record_len(const struct recipe_bitmap *b)
{
    return (QCOW2_BITMAP_HEAD_BYTES + b->extra_len + strlen(b->name) + 7) & ~UINT64_C(7);
}

static int write_bitmap(struct recipe *r, const struct recipe_bitmap *b, uint8_t *record)
{
    store_be64(record, b->table_off);
    store_be32(record + 8, (uint32_t)b->table_size);
    store_be32(record + 12, (uint32_t)b->flags);
    record[16] = (uint8_t)b->type;
    record[17] = (uint8_t)b->granularity_bits;
    store_be16(record + 18, (uint16_t)strlen(b->name));
    store_be32(record + 20, (uint32_t)b->extra_len);
    memset(record + QCOW2_BITMAP_HEAD_BYTES, 0xe5, b->extra_len);
    memcpy(record + QCOW2_BITMAP_HEAD_BYTES + b->extra_len, b->name, strlen(b->name));
    uint8_t *table = recipe_alloc(r, b->table_size, 8);
    for (uint64_t i = 0; i < b->table_size; i++)
        store_be64(table + 8 * i, b->table[i]);
    return b->table_size ? io_write(r->io, b->table_off, table, 8 * b->table_size) : 0;
}

/* Adds the extension that points to the directory. */
static int write_bitmaps(struct recipe *r)
{
    if (r->bitmap_count == 0)
        return 0;
    uint64_t size = 0;
    for (size_t i = 0; i < r->bitmap_count; i++)
        size += bitmap_record_len(&r->bitmaps[i]);
    uint8_t *buf = recipe_alloc(r, size, 1), *p = buf;
    r->bitmap_dir_off = build_alloc(r, clusters_for(&r->geo, size));
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < r->bitmap_count; i++) {
        r->bitmaps[i].record_off = r->bitmap_dir_off + (uint64_t)(p - buf);
        ret = write_bitmap(r, &r->bitmaps[i], p);
        p += bitmap_record_len(&r->bitmaps[i]);
    }
    r->header.autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
    return ret < 0 ? ret : io_write(r->io, r->bitmap_dir_off, buf, size);
}

int recipe_finish(struct recipe *r)
{
    if (r->raw_image) {
        r->finished = true;
        return io_mem_branch(r->io, &r->pristine);
    }
    int ret = write_snapshots(r);
    if (ret == 0)
        ret = write_bitmaps(r);
    if (ret == 0)
        ret = count_all(r);
    if (ret == 0)
        ret = write_l1(r, &r->active, true);
    for (size_t i = 0; ret == 0 && i < r->snapshot_count; i++)
        ret = write_l1(r, &r->snapshots[i].l1, false);
    if (ret == 0)
        ret = write_refcounts(r);
    if (ret == 0)
        ret = recipe_write_header(r);
    if (ret == 0)
        ret = io_resize(r->io, r->next_cluster << r->geo.cluster_bits);
    if (ret == 0 && r->data)
        ret = io_resize(r->data, r->header.size_bytes);
    if (ret == 0)
        ret = io_mem_branch(r->io, &r->pristine);
    if (ret < 0)
        return ret == -EINVAL ? ret : recipe_fail(r, "writing the image: %s", strerror(-ret));
    r->finished = true;
    return 0;
}
