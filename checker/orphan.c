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

/* What the entries of a table, taken for an L2 table, tell. */
struct evidence {
    uint64_t named;    /* entries that name clusters */
    uint64_t orphaned; /* of these, whose clusters are leaked */
    uint64_t marked;   /* of these, with flags that entries of other tables have not */
};

/* Stops at the first entry that cannot be one of an L2 table. */
static bool entries_make_sense(
    const struct walk *walk, const uint8_t *bytes, size_t length, struct evidence *evidence)
{
    *evidence = (struct evidence){0};
    const struct qcow2_geometry *geo = &walk->geo;
    for (size_t at = 0; at < length; at += geo->l2_entry_size) {
        struct qcow2_l2_entry e;
        qcow2_l2_decode(geo, bytes + at, &e);
        /* COPIED on a compressed or unallocated entry is fishy, too: not plain. */
        if (!l2_entry_plain(walk, &e, e.host_off))
            return false;
        if (e.kind < QCOW2_L2_ZERO_ALLOC || geo->data_file)
            continue;
        evidence->named++;
        evidence->orphaned += missed(walk, cluster_of(geo, e.host_off));
        evidence->marked += e.copied || e.kind == QCOW2_L2_COMPRESSED;
    }
    return true;
}

/* Bitmaps that were not followed (being marked inconsistent, say) leave tables behind that look
 * like an L2 table without flags.  Only a snapshot has such a one, too. */
static bool may_be_bitmap_table(const struct walk *walk, const struct evidence *evidence)
{
    return walk->has_bitmaps_ext && evidence->marked == 0 && walk->header.snapshot_count == 0;
}

/* Looks at the first sector before it reads a whole cluster: most leaks are guest data. */
static bool looks_like_l2(struct walk *walk, uint64_t cluster, uint64_t *data_bytes)
{
    uint64_t off = cluster << walk->geo.cluster_bits;
    uint8_t *bytes = walk->buf;
    struct evidence evidence;
    if (io_read_padded(walk->io, off, bytes, QCOW2_SECTOR_BYTES) < 0 ||
        !entries_make_sense(walk, bytes, QCOW2_SECTOR_BYTES, &evidence))
        return false;
    if (io_read_padded(walk->io, off, bytes, walk->geo.cluster_size) < 0 ||
        !entries_make_sense(walk, bytes, walk->geo.cluster_size, &evidence) ||
        may_be_bitmap_table(walk, &evidence))
        return false;
    *data_bytes = evidence.orphaned << walk->geo.cluster_bits;
    return evidence.orphaned > 0 && evidence.orphaned >= evidence.named - evidence.orphaned;
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
    if (walk->geo.extended_l2 ||
        io_read_padded(walk->io, off, walk->buf, walk->geo.cluster_size) < 0)
        return;
    for (int pass = 0; pass < 2; pass++) {
        for (size_t at = 0; at < walk->geo.cluster_size; at += 8) {
            uint64_t child_off = load_be64(walk->buf + at) & QCOW2_OFFSET_MASK;
            if (child_off == 0)
                continue;
            struct orphan *child = find(list, cluster_of(&walk->geo, child_off));
            if (child == orphan || (!child && !table_find(&walk->tables, child_off)))
                return; /* in the first pass only: nothing was changed yet */
            tables++;
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

static bool printable(const uint8_t *bytes, size_t length)
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
           s.extra_len <= QCOW2_MAX_SNAPSHOT_EXTRA && printable(s.id, s.id_len) &&
           printable(s.name, s.name_len) && leaked(walk, cluster_of(&walk->geo, s.l1_off));
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

int walk_find_orphans(struct walk *walk)
{
    struct orphan_list list = {0};
    int ret = 0;
    uint64_t cluster = walk->first_mismatch;
    /* What was not read may refer to them: then they are not known to be leaked. */
    for (; !walk->refs_incomplete && ret == 0 &&
           census_next_mismatch(walk->census, cluster, &cluster);
         cluster++) {
        struct orphan orphan = {.cluster = cluster};
        if (cluster % 4096 == 0)
            ret = walk_pause(walk, 0);
        uint64_t hole = walk_hole(walk, cluster << walk->geo.cluster_bits);
        if (hole >= walk->geo.cluster_size) /* zeros look like nothing that was lost */
            cluster += (hole >> walk->geo.cluster_bits) - 1;
        if (ret < 0 || hole >= walk->geo.cluster_size || !leaked(walk, cluster))
            continue;
        if (looks_like_l2(walk, cluster, &orphan.data_bytes))
            ret = add(&list, &orphan);
        else if (looks_like_snapshot_table(walk, cluster))
            show_orphan(walk, cluster, AREA_SNAPSHOT_TABLE, 0);
    }
    for (size_t i = 0; i < list.count; i++)
        recognise_l1(walk, &list, &list.items[i]);
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
