/* SPDX-License-Identifier: MIT
 *
 * Leaks are harmless only if nothing lost explains them.  This stage looks into leaked clusters for
 * what may be a lost L2 table, L1 table or snapshot table: every entry makes sense, and what it
 * points to is leaked as well. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "walk.h"

struct orphan {
    uint64_t cluster;
    uint64_t data_bytes; /* leaked guest data behind it */
    bool is_l1;          /* all it points to are orphaned L2 tables */
    bool explained;      /* an orphaned L1 table points to it */
};

struct orphan_list {
    struct orphan *items; /* by ascending cluster */
    size_t count, room;
};

static bool leaked(const struct walk *walk, uint64_t cluster)
{
    struct census_cell cell = census_get(walk->census, cluster);
    return !cell.claimed && cell.balance > 0 && cluster < walk->cluster_end &&
           census_known(walk->census, cluster);
}

/* Somebody's reference to it is missing, though others may be there. */
static bool missed(const struct walk *walk, uint64_t cluster)
{
    return census_get(walk->census, cluster).balance > 0 && cluster < walk->cluster_end &&
           census_known(walk->census, cluster);
}

static struct orphan *find(const struct orphan_list *list, uint64_t cluster)
{
    size_t low = 0, high = list->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (list->items[middle].cluster < cluster)
            low = middle + 1;
        else
            high = middle;
    }
    return low < list->count && list->items[low].cluster == cluster ? &list->items[low] : NULL;
}

/* Takes in one entry; false when the bytes are no L2 table after all. */
static bool look_at_entry(
    const struct walk *walk, const struct qcow2_l2_entry *e, uint32_t idx, struct l2_look *look)
{
    enum { MOST_ODD = 8 };
    const struct qcow2_geometry *geo = &walk->geo;
    /* COPIED on a compressed or unallocated entry is fishy, too: not plain. */
    if (!l2_entry_plain(walk, e, e->host_off))
        return ++look->odd <= MOST_ODD;
    if (e->kind < QCOW2_L2_ZERO_ALLOC)
        return true;
    look->named++;
    look->marked += e->copied || e->kind == QCOW2_L2_COMPRESSED;
    if (!geo->data_file) {
        look->orphaned += missed(walk, cluster_of(geo, e->host_off));
        enum area_kind area = walk_area_at(walk, cluster_of(geo, e->host_off), NULL);
        look->metadata += area != AREA_NONE && area != AREA_L2_TABLE; /* that an L1 table names */
        return true;
    }
    /* There offsets are those of the guest, and tell where the table belongs. */
    uint64_t guest_off = e->host_off - ((uint64_t)idx << geo->cluster_bits);
    if (guest_off % geo->l2_span != 0 || (look->orphaned > 0 && guest_off != look->guest_off))
        return ++look->odd <= MOST_ODD;
    look->guest_off = guest_off;
    look->orphaned++;
    return true;
}

static bool look_at_entries(
    const struct walk *walk, const uint8_t *bytes, size_t length, struct l2_look *look)
{
    *look = (struct l2_look){0};
    for (size_t at = 0; at < length; at += walk->geo.l2_entry_size) {
        struct qcow2_l2_entry e;
        qcow2_l2_decode(&walk->geo, bytes + at, &e);
        if (!look_at_entry(walk, &e, (uint32_t)(at / walk->geo.l2_entry_size), look))
            return false;
    }
    return true;
}

/* A bitmap of the directory, whether that may be followed or not, has its table there. */
static bool is_in_directory(const struct walk *walk, uint64_t host_off)
{
    enum { MOST_BYTES = 1 << 20 };
    uint64_t size = walk->bitmaps.directory_size;
    uint8_t *bytes = size > 0 && size <= MOST_BYTES ? malloc((size_t)size) : NULL;
    bool found = false;
    struct qcow2_bitmap bitmap;
    if (bytes && io_read_padded(walk->io, walk->bitmaps.directory_off, bytes, (size_t)size) == 0) {
        for (uint64_t pos = 0; !found && pos < size; pos += bitmap.record_len) {
            if (qcow2_bitmap_decode(bytes + pos, (size_t)(size - pos), &bitmap) < 0)
                break;
            found = host_off - bitmap.table_off < bitmap.table_size * UINT64_C(8);
        }
    }
    free(bytes);
    return found;
}

/* Bitmaps that were not followed (being marked inconsistent, say) leave tables behind that look
 * like an L2 table without flags.  Only a snapshot has such a one, too. */
static bool may_be_bitmap_table(
    const struct walk *walk, uint64_t host_off, const struct l2_look *look)
{
    return walk->has_bitmaps_ext && look->marked == 0 &&
           (walk->header.snapshot_count == 0 || is_in_directory(walk, host_off));
}

/* What lies at block_off counts clusters as refcount block `idx` of a table at table_off would:
 * those in use and these two themselves.  A sector of it tells. */
static bool counts_what_is_used(
    const struct walk *walk, uint64_t block_off, uint64_t idx, uint64_t table_off)
{
    const struct qcow2_geometry *geo = &walk->geo;
    uint8_t block[QCOW2_SECTOR_BYTES];
    if (io_read_padded(walk->io, block_off, block, sizeof(block)) < 0)
        return false;
    uint64_t agreed = 0, differed = 0, first = idx << geo->refblock_bits;
    for (uint64_t i = 0; i < (QCOW2_SECTOR_BYTES * UINT64_C(8)) >> geo->refcount_order; i++) {
        uint64_t cluster = first + i;
        bool counted = qcow2_refcount_get(block, geo->refcount_order, i) != 0;
        bool used = cluster == cluster_of(geo, block_off) ||
                    cluster == cluster_of(geo, table_off) ||
                    census_get(walk->census, cluster).claimed;
        agreed += counted && used;
        differed += counted ? cluster >= walk->cluster_end : used;
    }
    return agreed > differed;
}

bool walk_looks_like_reftable(struct walk *walk, uint64_t off)
{
    uint8_t bytes[64];
    if (io_read_padded(walk->io, off, bytes, sizeof(bytes)) < 0)
        return false;
    for (size_t at = 0; at < sizeof(bytes); at += 8) {
        uint64_t entry = load_be64(bytes + at);
        if ((entry & QCOW2_REFTABLE_RSVD) || !cluster_aligned(&walk->geo, entry) ||
            entry >= walk->file_size || entry == off)
            return false;
    }
    for (size_t at = 0; at < sizeof(bytes); at += 8) {
        uint64_t entry = load_be64(bytes + at);
        if (entry != 0 && counts_what_is_used(walk, entry, at / 8, off))
            return true;
    }
    return false;
}

/* Looks at the first sector before it reads a whole cluster: most leaks are guest data. */
bool walk_looks_like_l2(struct walk *walk, uint64_t cluster, struct l2_look *look)
{
    uint64_t off = cluster << walk->geo.cluster_bits;
    uint8_t *bytes = walk->buf;
    if (io_read_padded(walk->io, off, bytes, QCOW2_SECTOR_BYTES) < 0 ||
        !look_at_entries(walk, bytes, QCOW2_SECTOR_BYTES, look))
        return false;
    if (io_read_padded(walk->io, off, bytes, walk->geo.cluster_size) < 0 ||
        !look_at_entries(walk, bytes, walk->geo.cluster_size, look) ||
        may_be_bitmap_table(walk, off, look) ||
        (look->marked == 0 && (look->metadata > 0 || walk_looks_like_reftable(walk, off))))
        return false;
    return look->orphaned > 0 && look->orphaned >= look->named - look->orphaned &&
           look->orphaned >= look->odd;
}

static bool all_zeros(struct walk *walk, uint64_t host_off)
{
    uint8_t bytes[4096];
    size_t piece = walk->geo.cluster_size < sizeof(bytes) ? walk->geo.cluster_size : sizeof(bytes);
    for (uint64_t at = 0; at < walk->geo.cluster_size; at += piece) {
        if (io_read_padded(walk->io, host_off + at, bytes, piece) < 0 ||
            !walk_bytes_zero(bytes, piece))
            return false;
    }
    return true;
}

/* The table in the walk's buffer would bring back nothing but zeros, and those the guest reads
 * without it: a refcount table whose blocks were never written looks like one of these. */
static bool brings_zeros(struct walk *walk)
{
    const struct qcow2_geometry *geo = &walk->geo;
    if (walk->view.has_backing || geo->data_file)
        return false;
    for (uint32_t i = 0; i < geo->l2_entries; i++) {
        struct qcow2_l2_entry e;
        qcow2_l2_decode(geo, walk->buf + (size_t)i * geo->l2_entry_size, &e);
        if (e.kind <= QCOW2_L2_ZERO_ALLOC || !missed(walk, cluster_of(geo, e.host_off)))
            continue;
        if (e.kind == QCOW2_L2_COMPRESSED || !all_zeros(walk, e.host_off))
            return false;
    }
    return true;
}

static int add(struct orphan_list *list, const struct orphan *orphan)
{
    if (list->count == list->room) {
        size_t room = list->room ? list->room * 2 : 16;
        struct orphan *items = realloc(list->items, room * sizeof(*items));
        if (!items)
            return -ENOMEM;
        list->items = items;
        list->room = room;
    }
    list->items[list->count++] = *orphan;
    return 0;
}

/* An L1 table looks like an L2 table, but what it points to are L2 tables: orphaned ones, or some
 * of a snapshot that miss a reference. */
static void recognise_l1(struct walk *walk, struct orphan_list *list, struct orphan *orphan)
{
    uint64_t off = orphan->cluster << walk->geo.cluster_bits, data_bytes = 0, tables = 0;
    if (io_read_padded(walk->io, off, walk->buf, QCOW2_SECTOR_BYTES) < 0 ||
        (load_be64(walk->buf) & QCOW2_L1_RESERVED) ||
        io_read_padded(walk->io, off, walk->buf, walk->geo.cluster_size) < 0)
        return;
    for (int pass = 0; pass < 2; pass++) {
        for (size_t at = 0; at < walk->geo.cluster_size; at += 8) {
            uint64_t child_off = load_be64(walk->buf + at) & QCOW2_OFFSET_MASK;
            if (child_off == 0)
                continue;
            struct orphan *child = find(list, cluster_of(&walk->geo, child_off));
            enum area_kind area = walk_area_at(walk, cluster_of(&walk->geo, child_off), NULL);
            /* A pointer that went wrong takes one of the tables for an L1 table; another one may
             * have no data behind it. */
            bool table = child || area == AREA_L2_TABLE;
            if (child == orphan || (!table && area != AREA_L1_TABLE &&
                                       !leaked(walk, cluster_of(&walk->geo, child_off))))
                return; /* in the first pass only: nothing was changed yet */
            tables += table;
            if (pass == 1 && child) {
                child->explained = true;
                data_bytes += child->data_bytes;
            }
        }
        if (tables == 0)
            return;
    }
    orphan->is_l1 = true;
    orphan->data_bytes = data_bytes;
}

bool walk_is_text(const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (bytes[i] < 0x20)
            return false;
    }
    return true;
}

static bool looks_like_snapshot_table(struct walk *walk, uint64_t cluster)
{
    enum { PROBE_BYTES = 4096 };
    size_t length = walk->geo.cluster_size < PROBE_BYTES ? walk->geo.cluster_size : PROBE_BYTES;
    struct qcow2_snapshot s;
    if (io_read_padded(walk->io, cluster << walk->geo.cluster_bits, walk->buf, length) < 0 ||
        qcow2_snapshot_decode(walk->buf, length, &s) < 0)
        return false;
    return s.l1_off != 0 && cluster_aligned(&walk->geo, s.l1_off) && s.l1_size > 0 &&
           s.l1_size <= QCOW2_MAX_L1_BYTES / 8 && s.id_len > 0 && s.date_nsec < 1000000000 &&
           s.extra_len <= QCOW2_MAX_SNAPSHOT_EXTRA && walk_is_text(s.id, s.id_len) &&
           walk_is_text(s.name, s.name_len) && leaked(walk, cluster_of(&walk->geo, s.l1_off));
}

static void show_orphan(
    struct walk *walk, uint64_t cluster, enum area_kind kind, uint64_t data_bytes)
{
    struct subject subject = {
        .kind = OBJECT_ORPHAN,
        .tree = TREE_NONE,
        .has_host = true,
        .host_off = cluster << walk->geo.cluster_bits,
        .length = walk->geo.cluster_size,
        .orphan = {.kind = kind, .data_bytes = data_bytes},
    };
    walk_show(walk, &subject);
}

/* The first leaked cluster at or after *cluster that has bytes in the file: zeros look like nothing
 * that was lost.  1 if there is one, 0 or -EINTR. */
static int next_leak(struct walk *walk, uint64_t *cluster)
{
    for (; census_next_mismatch(walk->census, *cluster, cluster); ++*cluster) {
        int ret = *cluster % 4096 == 0 ? walk_pause(walk, 0) : 0;
        if (ret < 0)
            return ret;
        if (!leaked(walk, *cluster))
            continue;
        uint64_t hole = walk_hole(walk, *cluster << walk->geo.cluster_bits);
        if (hole < walk->geo.cluster_size)
            return 1;
        *cluster += (hole >> walk->geo.cluster_bits) - 1;
    }
    return 0;
}

/* Where entries of the two kinds of table differ, an L1 table does not look like an L2 table. */
static int find_other_l1(struct walk *walk, struct orphan_list *list)
{
    int ret;
    uint64_t cluster = walk->first_mismatch;
    for (; (ret = next_leak(walk, &cluster)) == 1; cluster++) {
        struct orphan orphan = {.cluster = cluster};
        if (!find(list, cluster))
            recognise_l1(walk, list, &orphan);
        if (orphan.is_l1)
            show_orphan(walk, cluster, AREA_L1_TABLE, orphan.data_bytes);
    }
    return ret;
}

static int find_tables(struct walk *walk, struct orphan_list *list)
{
    int ret;
    uint64_t cluster = walk->first_mismatch;
    for (; (ret = next_leak(walk, &cluster)) == 1; cluster++) {
        struct orphan orphan = {.cluster = cluster};
        struct l2_look look;
        if (walk_looks_like_l2(walk, cluster, &look) && !brings_zeros(walk)) {
            orphan.data_bytes = look.orphaned << walk->geo.cluster_bits;
            ret = add(list, &orphan);
            if (ret < 0)
                return ret;
        } else if (looks_like_snapshot_table(walk, cluster)) {
            show_orphan(walk, cluster, AREA_SNAPSHOT_TABLE, 0);
        }
    }
    return ret;
}

int walk_find_orphans(struct walk *walk)
{
    struct orphan_list list = {0};
    /* What was not read may refer to them: then they are not known to be leaked. */
    int ret = walk->refs_incomplete ? 0 : find_tables(walk, &list);
    for (size_t i = 0; i < list.count; i++)
        recognise_l1(walk, &list, &list.items[i]);
    if (ret == 0 && list.count > 0 && (walk->geo.extended_l2 || walk->geo.data_file))
        ret = find_other_l1(walk, &list);
    for (size_t i = 0; ret == 0 && i < list.count; i++) {
        const struct orphan *orphan = &list.items[i];
        show_orphan(walk, orphan->cluster, orphan->is_l1 ? AREA_L1_TABLE : AREA_L2_TABLE,
            orphan->data_bytes);
        if (orphan->is_l1)
            continue;
        walk->report->data_at_risk += orphan->data_bytes;
        walk->orphan_tables += !orphan->explained;
    }
    free(list.items);
    return ret;
}
