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

/* ---- L2 tables ---- */

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
    if (walk->has_bitmaps_ext &&
        host_off - walk->bitmaps.directory_off < walk->bitmaps.directory_size)
        return true; /* or their directory */
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

/* The entries in a sector could be those of a refcount table. */
static bool could_be_reftable(const struct walk *walk, uint64_t off, uint8_t *sector)
{
    if (io_read_padded(walk->io, off, sector, QCOW2_SECTOR_BYTES) < 0)
        return false;
    for (size_t at = 0; at < QCOW2_SECTOR_BYTES; at += 8) {
        uint64_t entry = load_be64(sector + at);
        if ((entry & QCOW2_REFTABLE_RSVD) || !cluster_aligned(&walk->geo, entry) ||
            entry >= walk->file_size || entry == off)
            return false;
    }
    return true;
}

/* One of the first blocks that the sector names counts what it would with these indices. */
static bool names_blocks(
    const struct walk *walk, uint64_t off, const uint8_t *sector, uint64_t first_idx)
{
    enum { MOST_BLOCKS = 8 };
    unsigned named = 0;
    for (size_t i = 0; i < QCOW2_SECTOR_BYTES / 8 && named < MOST_BLOCKS; i++) {
        uint64_t entry = load_be64(sector + i * 8);
        named += entry != 0;
        if (entry != 0 && counts_what_is_used(walk, entry, first_idx + i, off))
            return true;
    }
    return false;
}

bool walk_looks_like_reftable(struct walk *walk, uint64_t off)
{
    enum { MOST_CLUSTERS = 64 };
    uint8_t sector[QCOW2_SECTOR_BYTES], before[QCOW2_SECTOR_BYTES];
    if (!could_be_reftable(walk, off, sector))
        return false;
    uint64_t size = walk->geo.cluster_size;
    for (uint64_t k = 0; k < MOST_CLUSTERS; k++) { /* the cluster may be one further on in it */
        if (names_blocks(walk, off, sector, k * size / 8))
            return true;
        if (off < (k + 2) * size || !could_be_reftable(walk, off - (k + 1) * size, before))
            return false;
    }
    return false;
}

/* True if that is what the bytes of a whole cluster look like. */
static bool is_lost_l2(
    struct walk *walk, uint64_t host_off, const uint8_t *bytes, struct l2_look *look)
{
    if (!look_at_entries(walk, bytes, walk->geo.cluster_size, look) ||
        may_be_bitmap_table(walk, host_off, look) ||
        (look->marked == 0 && (look->metadata > 0 || walk_looks_like_reftable(walk, host_off))))
        return false;
    return look->orphaned > 0 && look->orphaned >= look->named - look->orphaned &&
           look->orphaned >= look->odd;
}

/* Looks at the first sector before it reads a whole cluster: most leaks are guest data. */
bool walk_looks_like_l2(struct walk *walk, uint64_t cluster, struct l2_look *look)
{
    uint64_t off = cluster << walk->geo.cluster_bits;
    uint8_t *bytes = walk->buf;
    return io_read_padded(walk->io, off, bytes, QCOW2_SECTOR_BYTES) == 0 &&
           look_at_entries(walk, bytes, QCOW2_SECTOR_BYTES, look) &&
           io_read_padded(walk->io, off, bytes, walk->geo.cluster_size) == 0 &&
           is_lost_l2(walk, off, bytes, look);
}

/* ---- tables that bring back nothing ---- */

/* The entry's cluster came back with the table. */
static bool brings_back(
    const struct walk *walk, const uint8_t *table, size_t idx, struct qcow2_l2_entry *e)
{
    qcow2_l2_decode(&walk->geo, table + idx * walk->geo.l2_entry_size, e);
    return e->kind > QCOW2_L2_ZERO_ALLOC && missed(walk, cluster_of(&walk->geo, e->host_off));
}

/* A table may bring back nothing but zeros, and those the guest reads without it: a refcount table
 * whose blocks were never written looks like one of these.  *first_off: the first cluster that
 * would have to be zeros, UINT64_MAX if there is none. */
static bool may_bring_zeros(const struct walk *walk, const uint8_t *table, uint64_t *first_off)
{
    *first_off = UINT64_MAX;
    if (walk->view.has_backing || walk->geo.data_file)
        return false;
    for (size_t i = 0; i < walk->geo.l2_entries; i++) {
        struct qcow2_l2_entry e;
        if (!brings_back(walk, table, i, &e))
            continue;
        if (e.kind == QCOW2_L2_COMPRESSED)
            return false;
        if (*first_off == UINT64_MAX)
            *first_off = e.host_off;
    }
    return true;
}

static bool data_place(const struct walk *walk, const void *arg, size_t item, uint64_t *host_off)
{
    struct qcow2_l2_entry e;
    bool wanted = brings_back(walk, arg, item, &e);
    *host_off = e.host_off;
    return wanted;
}

/* 1 when they are not zeros, which ends it. */
static int data_use(
    struct walk *walk, void *arg, size_t item, size_t count, const struct io_read_req *read)
{
    (void)arg, (void)item, (void)count;
    if (read->length == 0)
        return 0;
    if ((read->result < 0 &&
            io_read_padded(walk->io, read->host_off, read->buf, read->length) < 0) ||
        !walk_bytes_zero(read->buf, read->length))
        return 1;
    walk_hole(walk, read->host_off); /* there may be more of them */
    return walk_pause(walk, 0);
}

/* Looks into all clusters of a table that may bring zeros.  0 or -errno. */
static int confirm_zeros(struct walk *walk, uint64_t table_off, bool *zeros)
{
    uint8_t *table = malloc(walk->geo.cluster_size);
    if (!table)
        return -ENOMEM;
    struct stream stream = {
        .count = walk->geo.l2_entries, .arg = table, .place = data_place, .use = data_use};
    int ret = io_read_padded(walk->io, table_off, table, walk->geo.cluster_size) < 0
                  ? 1
                  : walk_stream(walk, &stream);
    *zeros = ret == 0;
    free(table);
    return ret < 0 ? ret : 0;
}

/* ---- what else it may be ---- */

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
static void recognise_l1(
    struct walk *walk, struct orphan_list *list, struct orphan *orphan, const uint8_t *bytes)
{
    uint64_t data_bytes = 0, tables = 0;
    if (load_be64(bytes) & QCOW2_L1_RESERVED)
        return;
    for (int pass = 0; pass < 2; pass++) {
        for (size_t at = 0; at < walk->geo.cluster_size; at += 8) {
            uint64_t child_off = load_be64(bytes + at) & QCOW2_OFFSET_MASK;
            if (child_off == 0)
                continue;
            struct orphan *child = find(list, cluster_of(&walk->geo, child_off));
            enum area_kind area = walk_area_at(walk, cluster_of(&walk->geo, child_off), NULL);
            /* A pointer that went wrong takes one of the tables for an L1 table; another one may
             * have no data behind it. */
            bool table = child || area == AREA_L2_TABLE;
            if (child == orphan || (!table && area != AREA_L1_TABLE &&
                                       !walk_leaked(walk, cluster_of(&walk->geo, child_off))))
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

static bool looks_like_snapshot_table(const struct walk *walk, const uint8_t *bytes, size_t length)
{
    struct qcow2_snapshot s;
    return qcow2_snapshot_decode(bytes, length, &s) == 0 && s.l1_off != 0 &&
           cluster_aligned(&walk->geo, s.l1_off) && s.l1_size > 0 &&
           s.l1_size <= QCOW2_MAX_L1_BYTES / 8 && s.id_len > 0 && s.date_nsec < 1000000000 &&
           s.extra_len <= QCOW2_MAX_SNAPSHOT_EXTRA && walk_is_text(s.id, s.id_len) &&
           walk_is_text(s.name, s.name_len) && walk_leaked(walk, cluster_of(&walk->geo, s.l1_off));
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

/* ---- the search ---- */

static uint32_t probe_bytes(const struct walk *walk)
{
    enum { PROBE_BYTES = 4096 };
    return walk->geo.cluster_size < PROBE_BYTES ? walk->geo.cluster_size : PROBE_BYTES;
}

/* The first sector tells most guest data from an L2 table. */
static void look_first(struct walk *walk, void *arg, struct leak *leak, const uint8_t *bytes)
{
    struct l2_look look;
    (void)arg;
    leak->snapshot_table = looks_like_snapshot_table(walk, bytes, probe_bytes(walk));
    if (look_at_entries(walk, bytes, QCOW2_SECTOR_BYTES, &look))
        leak->next_off = leak->cluster << walk->geo.cluster_bits;
}

static void look_for_l2(struct walk *walk, void *arg, struct leak *leak, const uint8_t *bytes)
{
    struct l2_look look;
    (void)arg;
    leak->l2_table = is_lost_l2(walk, leak->cluster << walk->geo.cluster_bits, bytes, &look);
    leak->data_bytes = look.orphaned << walk->geo.cluster_bits;
    leak->zeros = leak->l2_table && may_bring_zeros(walk, bytes, &leak->next_off);
}

static void look_at_data(struct walk *walk, void *arg, struct leak *leak, const uint8_t *bytes)
{
    (void)arg;
    leak->zeros = walk_bytes_zero(bytes, probe_bytes(walk));
}

static int keep_l2(struct walk *walk, void *arg, struct leak *leak)
{
    struct orphan orphan = {.cluster = leak->cluster, .data_bytes = leak->data_bytes};
    int ret = 0;
    if (leak->zeros)
        ret = confirm_zeros(walk, leak->cluster << walk->geo.cluster_bits, &leak->zeros);
    if (ret < 0)
        return ret;
    if (leak->l2_table && !leak->zeros)
        return add(arg, &orphan);
    if (leak->snapshot_table)
        show_orphan(walk, leak->cluster, AREA_SNAPSHOT_TABLE, 0);
    return 0;
}

static int find_l2_tables(struct walk *walk, struct orphan_list *list)
{
    struct leak_search search = {
        .arg = list,
        .looks = {{probe_bytes(walk), look_first}, {walk->geo.cluster_size, look_for_l2},
            {probe_bytes(walk), look_at_data}},
        .end = keep_l2,
    };
    return walk_search_leaks(walk, &search);
}

static bool orphan_place(const struct walk *walk, const void *arg, size_t item, uint64_t *host_off)
{
    const struct orphan_list *list = arg;
    *host_off = list->items[item].cluster << walk->geo.cluster_bits;
    return true;
}

static int orphan_use(
    struct walk *walk, void *arg, size_t item, size_t count, const struct io_read_req *read)
{
    struct orphan_list *list = arg;
    (void)count;
    if (read->length > 0 && (read->result == 0 || io_read_padded(walk->io, read->host_off,
                                                      read->buf, read->length) == 0))
        recognise_l1(walk, list, &list->items[item], read->buf);
    return walk_pause(walk, 0);
}

/* L1 tables among what looks like L2 tables. */
static int find_l1_tables(struct walk *walk, struct orphan_list *list)
{
    struct stream stream = {
        .count = list->count, .arg = list, .place = orphan_place, .use = orphan_use};
    return walk_stream(walk, &stream);
}

static void look_for_flags(struct walk *walk, void *arg, struct leak *leak, const uint8_t *bytes)
{
    if (!find(arg, leak->cluster) && !(load_be64(bytes) & QCOW2_L1_RESERVED))
        leak->next_off = leak->cluster << walk->geo.cluster_bits;
}

static void look_for_l1(struct walk *walk, void *arg, struct leak *leak, const uint8_t *bytes)
{
    struct orphan orphan = {.cluster = leak->cluster};
    recognise_l1(walk, arg, &orphan, bytes);
    leak->l1_table = orphan.is_l1;
    leak->data_bytes = orphan.data_bytes;
}

static int show_l1(struct walk *walk, void *arg, struct leak *leak)
{
    (void)arg;
    if (leak->l1_table)
        show_orphan(walk, leak->cluster, AREA_L1_TABLE, leak->data_bytes);
    return 0;
}

/* Where entries of the two kinds of table differ, an L1 table does not look like an L2 table. */
static int find_other_l1(struct walk *walk, struct orphan_list *list)
{
    struct leak_search search = {
        .arg = list,
        .looks = {{QCOW2_SECTOR_BYTES, look_for_flags}, {walk->geo.cluster_size, look_for_l1}},
        .end = show_l1,
    };
    return walk_search_leaks(walk, &search);
}

int walk_find_orphans(struct walk *walk)
{
    struct orphan_list list = {0};
    /* What was not read may refer to them: then they are not known to be leaked. */
    int ret = walk->refs_incomplete ? 0 : find_l2_tables(walk, &list);
    if (ret == 0 && list.count > 0)
        ret = find_l1_tables(walk, &list);
    if (ret == 0 && list.count > 0 && (walk->geo.extended_l2 || walk->geo.data_file))
        ret = find_other_l1(walk, &list);
    for (size_t i = 0; ret == 0 && i < list.count; i++) {
        const struct orphan *orphan = &list.items[i];
        show_orphan(walk, orphan->cluster, orphan->is_l1 ? AREA_L1_TABLE : AREA_L2_TABLE,
            orphan->data_bytes);
        if (orphan->is_l1)
            continue;
        walk->report->data_at_risk = capped_sum(walk->report->data_at_risk, orphan->data_bytes);
        walk->orphan_tables += !orphan->explained;
    }
    free(list.items);
    return ret;
}
