/* SPDX-License-Identifier: MIT
 *
 * What the bytes of a leaked cluster look like: an L2 table whose entries make sense and name what
 * is leaked as well, or one of the tables that look much like it but are none (those of bitmaps,
 * the refcount table).  Which of these were lost is for orphan.c to say.  Nothing is reported here,
 * and nothing is changed. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "orphan.h"

bool orphan_missed(const struct walk *walk, uint64_t cluster)
{
    return census_get(walk->census, cluster).balance > 0 && cluster < walk->cluster_end &&
           census_known(walk->census, cluster);
}

/* ---- L2 tables ---- */

/* MOST_ODD: entries that no program would write, in a table that is damaged; LOST_SHARE: of its
 * sectors one in so many may be garbage. */
enum { MOST_ODD = 8, LOST_SHARE = 4 };

/* Takes in one entry; false when the bytes are no L2 table after all. */
static bool look_at_entry(
    const struct walk *walk, const struct qcow2_l2_entry *e, uint32_t idx, struct l2_look *look)
{
    const struct qcow2_geometry *geo = &walk->geo;
    /* COPIED on a compressed or unallocated entry is fishy, too: not plain. */
    if (!l2_entry_fits(walk, e, e->host_off))
        return ++look->odd <= MOST_ODD;
    if (e->kind < QCOW2_L2_ZERO_ALLOC)
        return true;
    look->named++;
    look->marked += e->copied || e->kind == QCOW2_L2_COMPRESSED;
    if (!geo->data_file) {
        look->orphaned += orphan_missed(walk, cluster_of(geo, e->host_off));
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

/* Takes in a sector of entries; false when the bytes are no L2 table after all.  Storage loses
 * whole sectors: one of nothing but odd entries says nothing about the others. */
static bool look_at_sector(
    const struct walk *walk, const uint8_t *bytes, uint32_t first_idx, struct l2_look *look)
{
    uint32_t entries = QCOW2_SECTOR_BYTES / walk->geo.l2_entry_size;
    struct l2_look before = *look;
    for (uint32_t i = 0; i < entries; i++) {
        struct qcow2_l2_entry e;
        qcow2_l2_decode(&walk->geo, bytes + (size_t)i * walk->geo.l2_entry_size, &e);
        if (look_at_entry(walk, &e, first_idx + i, look))
            continue;
        *look = before;
        look->odd++;
        look->lost_sectors++;
        return look->odd <= MOST_ODD;
    }
    return true;
}

bool orphan_look_at_entries(
    const struct walk *walk, const uint8_t *bytes, size_t length, struct l2_look *look)
{
    size_t sectors = length / QCOW2_SECTOR_BYTES;
    *look = (struct l2_look){0};
    for (size_t i = 0; i < sectors; i++) {
        size_t at = i * QCOW2_SECTOR_BYTES;
        if (!look_at_sector(walk, bytes + at, (uint32_t)(at / walk->geo.l2_entry_size), look) ||
            look->lost_sectors > sectors / LOST_SHARE)
            return false;
    }
    return look->lost_sectors == 0 || look->named > 0;
}

/* A bitmap of the directory, whether that may be followed or not, has its table there. */
static bool is_in_directory(struct walk *walk, uint64_t host_off)
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
        /* Behind a damaged record others may follow; each begins with where its table is. */
        for (uint64_t pos = 0; !found && pos + 8 <= size; pos += 8)
            found = load_be64(bytes + pos) == host_off;
    }
    if (!bytes && size > 0 && size <= MOST_BYTES) {
        walk->no_memory = true;
        report_problem(walk->report, "%s", strerror(ENOMEM));
    }
    free(bytes);
    return found;
}

/* Bitmaps that were not followed (being marked inconsistent, say) leave tables behind that look
 * like an L2 table without flags.  Only a snapshot has such a one, too. */
static bool may_be_bitmap_table(struct walk *walk, uint64_t host_off, const struct l2_look *look)
{
    if (walk->has_bitmaps_ext &&
        host_off - walk->bitmaps.directory_off < walk->bitmaps.directory_size)
        return true; /* or their directory */
    return walk->has_bitmaps_ext && look->marked == 0 &&
           (walk->header.snapshot_count == 0 || is_in_directory(walk, host_off));
}

/* What lies at block_off counts clusters as refcount block `idx` of a table at table_off would:
 * those in use, and these two themselves.  Some disks may be lost, and a repair that was
 * interrupted may not have raised all counts.  A sector of it tells; guest data counts, too, but
 * not so. */
static bool counts_what_is_used(
    struct walk *walk, uint64_t block_off, uint64_t idx, uint64_t table_off)
{
    enum { SURE = 2 };
    const struct qcow2_geometry *geo = &walk->geo;
    uint8_t block[QCOW2_SECTOR_BYTES];
    if (io_read_padded(walk->io, block_off, block, sizeof(block)) < 0)
        return false;
    uint64_t agreed = 0, differed = 0, first = idx << geo->refblock_bits;
    uint64_t entries = (QCOW2_SECTOR_BYTES * UINT64_C(8)) >> geo->refcount_order;
    for (uint64_t i = 0; i < entries && differed * SURE < entries; i++) {
        uint64_t cluster = first + i;
        uint64_t count = qcow2_refcount_get(block, geo->refcount_order, i);
        struct census_cell cell = census_get(walk->census, cluster);
        bool own = cluster == cluster_of(geo, block_off) || cluster == cluster_of(geo, table_off);
        uint64_t refs = cell.claimed ? walk_counts(walk, cluster, cell.balance).refs : own;
        bool fits = (count > 0 || refs == 0) && count <= refs + walk->tree_count;
        agreed += refs > 0 && fits;
        differed += !fits || (count > 0 && cluster >= walk->cluster_end);
    }
    return agreed > differed * SURE;
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
static bool names_blocks(struct walk *walk, uint64_t off, const uint8_t *sector, uint64_t first_idx)
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

/* A refcount table whose entry was damaged may; in a table of guest data it is damage. */
static bool names_itself(const struct walk *walk, uint64_t host_off, const uint8_t *bytes)
{
    for (size_t at = 0; at < walk->geo.cluster_size; at += walk->geo.l2_entry_size) {
        if (host_off != 0 && (load_be64(bytes + at) & QCOW2_OFFSET_MASK) == host_off)
            return true;
    }
    return false;
}

/* What such bytes are, once their entries were looked at. */
static bool is_lost_l2(
    struct walk *walk, uint64_t host_off, const uint8_t *bytes, struct l2_look *look)
{
    if (look->orphaned == 0 || look->orphaned < look->named - look->orphaned ||
        look->orphaned < look->odd ||
        (look->lost_sectors > 0 && (look->marked == 0 || look->orphaned <= MOST_ODD)))
        return false; /* first what costs nothing */
    bool itself = names_itself(walk, host_off, bytes);
    look->odd += itself;
    return !may_be_bitmap_table(walk, host_off, look) &&
           (look->marked > 0 ||
               (look->metadata == 0 && !itself && !walk_looks_like_reftable(walk, host_off)));
}

bool orphan_is_lost_l2(
    struct walk *walk, uint64_t host_off, const uint8_t *bytes, struct l2_look *look)
{
    return orphan_look_at_entries(walk, bytes, walk->geo.cluster_size, look) &&
           is_lost_l2(walk, host_off, bytes, look);
}

uint32_t orphan_probe_bytes(const struct walk *walk)
{
    enum { PROBE_BYTES = 4096 };
    return walk->geo.cluster_size < PROBE_BYTES ? walk->geo.cluster_size : PROBE_BYTES;
}

/* Looks at the beginning before it reads a whole cluster: most are guest data. */
bool walk_look_at_l2(struct walk *walk, uint64_t cluster, struct l2_look *look)
{
    uint64_t off = cluster << walk->geo.cluster_bits;
    uint8_t *bytes = walk->buf;
    uint32_t probe = orphan_probe_bytes(walk);
    return io_read_padded(walk->io, off, bytes, probe) == 0 &&
           orphan_look_at_entries(walk, bytes, probe, look) &&
           io_read_padded(walk->io, off, bytes, walk->geo.cluster_size) == 0 &&
           orphan_look_at_entries(walk, bytes, walk->geo.cluster_size, look);
}

bool walk_looks_like_l2(struct walk *walk, uint64_t cluster, struct l2_look *look)
{
    return walk_look_at_l2(walk, cluster, look) &&
           is_lost_l2(walk, cluster << walk->geo.cluster_bits, walk->buf, look);
}
