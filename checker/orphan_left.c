/* SPDX-License-Identifier: MIT
 *
 * What looks lost may be what a snapshot operation left that did not come to its end.  These are
 * the traces that tell so, on an image where nothing else is wrong:
 *
 *   create  a copy of the disk's L1 table, or a snapshot table with one record more
 *   delete  the snapshot table that was there before, with one record more: that of the L1 table
 *           which is gone.  If it was the last snapshot the header has the place of that L1 table
 *           where else that of the snapshot table is
 *   apply   the disk is to the bit one of its snapshots, and there is one other L1 table, with
 *           COPIED where a table was its alone
 *
 * All of what looks lost must be explained, table by table and count by count; else none of it is.
 * Programs lower the counts of a tree before they give up its traces. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "orphan.h"

enum { MOST_TABLES = 8, MOST_TABLE_BYTES = 4 << 20, MOST_HOLES = 1 << 16 };

/* ---- copies ---- */

/* The entries are those of the piece at `off` of a disk's L1 table, but for COPIED. */
static bool same_entries(
    const struct walk *walk, const struct tree *tree, uint64_t off, const uint8_t *bytes)
{
    uint8_t piece[QCOW2_SECTOR_BYTES];
    uint64_t end = tree->l1_size * UINT64_C(8);
    for (uint64_t at = 0; at < walk->geo.cluster_size; at += sizeof(piece)) {
        uint64_t left = end > off + at ? end - off - at : 0;
        size_t length = left < sizeof(piece) ? (size_t)left : sizeof(piece);
        memset(piece, 0, sizeof(piece));
        if (length > 0 && io_read_padded(walk->io, tree->l1_off + off + at, piece, length) < 0)
            return false;
        for (size_t i = 0; i < sizeof(piece); i += 8) {
            uint64_t differ = load_be64(piece + i) ^ load_be64(bytes + at + i);
            if ((differ & ~QCOW2_ENTRY_COPIED) != 0)
                return false;
        }
    }
    return true;
}

/* Of which disk does not matter. */
static bool is_copy(const struct walk *walk, uint64_t *compared, const uint8_t *bytes)
{
    enum { MOST_COMPARED = 1 << 16 };
    for (size_t t = 0; t < walk->tree_count; t++) {
        const struct tree *tree = &walk->trees[t];
        uint64_t end = tree->usable ? tree->l1_size * UINT64_C(8) : 0;
        for (uint64_t off = 0; off < end; off += walk->geo.cluster_size) {
            if (++*compared > MOST_COMPARED)
                return false;
            if (same_entries(walk, tree, off, bytes))
                return true;
        }
    }
    return false;
}

/* Behind the records of the snapshot table there may be one more, which the count leaves out: one
 * that names the table. */
static bool has_record(const struct walk *walk, uint64_t l1_off)
{
    uint64_t size = walk->geo.cluster_size, off = walk->header.snapshots_off;
    uint64_t start = (off + walk->snapshot_table_len) / size * size;
    if (walk->header.snapshot_count == 0)
        return false;
    if (io_read_padded(walk->io, start, walk->buf, size) < 0)
        return true; /* who knows */
    for (size_t at = 0; at < size; at += 8) {
        if (load_be64(walk->buf + at) == l1_off)
            return true;
    }
    return false;
}

static void find_copies(const struct walk *walk, struct orphan_list *list)
{
    enum { MOST_COPIES = 64 };
    uint64_t compared = 0, copies = 0;
    for (size_t i = 0; copies < MOST_COPIES && i < list->count; i++) {
        struct orphan *orphan = &list->items[i];
        uint64_t off = orphan->cluster << walk->geo.cluster_bits;
        if (orphan->kind != AREA_L1_TABLE ||
            io_read_padded(walk->io, off, walk->buf, walk->geo.cluster_size) < 0)
            continue;
        orphan->left = orphan->is_copy =
            is_copy(walk, &compared, walk->buf) && !has_record(walk, off);
        copies += orphan->is_copy;
    }
}

/* ---- the L1 table that is gone ---- */

struct gone {
    uint64_t first, clusters;
    uint64_t entries;
    bool whole;    /* `first` is where it begins */
    bool replaced; /* the disk's: what a snapshot has, too, keeps its count */

    /* Of the tables it names: those that have a count for it; of these the lost ones where some
     * disk has none, and which may have been its; and whether some have no count for it any more,
     * or never had. */
    uint64_t named, in_holes;
    bool uncounted;
};

/* Some disk has no table at this index. */
static int is_hole(struct walk *walk, uint64_t l1_idx, uint64_t *looked, bool *hole)
{
    uint8_t entry[8];
    *hole = false;
    for (size_t t = 0; !*hole && t < walk->tree_count; t++) {
        const struct tree *tree = &walk->trees[t];
        if (!tree->usable || l1_idx >= tree->l1_size)
            continue;
        if (++*looked > MOST_HOLES ||
            io_read_padded(walk->io, tree->l1_off + l1_idx * 8, entry, sizeof(entry)) < 0)
            *hole = true; /* who knows */
        else
            *hole = (load_be64(entry) & QCOW2_OFFSET_MASK) == 0;
    }
    return walk_pause(walk, 0);
}

static int take_entry(struct walk *walk, struct orphan_list *list, struct gone *gone,
    uint64_t l1_idx, uint64_t raw, uint64_t *looked)
{
    uint64_t cluster = cluster_of(&walk->geo, raw & QCOW2_OFFSET_MASK);
    if (cluster == 0)
        return 0;
    struct census_cell cell = census_get(walk->census, cluster);
    struct orphan *orphan = orphan_find(list, cluster);
    bool hole = !gone->whole;
    gone->uncounted |= cell.balance <= 0 && !(gone->replaced && cell.claimed);
    gone->named += cell.balance > 0;
    if (!orphan || orphan->kind != AREA_L2_TABLE)
        return 0;
    int ret = gone->whole ? is_hole(walk, l1_idx, looked, &hole) : 0;
    orphan->named = hole ? capped_sum(orphan->named, 1) : UINT64_MAX;
    gone->in_holes += hole && !(gone->replaced && (raw & QCOW2_ENTRY_COPIED));
    return ret;
}

/* Notes what hangs on it.  A disk may have lost its entry for one of these tables later, which it
 * then shared: as long as all are counted, its own count is left over.  Otherwise nobody can tell,
 * where that disk has a hole. */
static int take_gone(struct walk *walk, struct orphan_list *list, struct gone *gone)
{
    uint64_t off = gone->first << walk->geo.cluster_bits, looked = 0;
    list->refuted = true;
    for (uint64_t i = 0; i < gone->clusters; i++) {
        struct orphan *piece = orphan_find(list, gone->first + i);
        if (!walk_leaked(walk, gone->first + i))
            return 0;
        if (piece) {
            piece->kind = AREA_L1_TABLE;
            piece->left = true;
        }
    }
    for (uint64_t i = 0, end; i < gone->entries; i = end) {
        uint64_t some = WALK_BUF_BYTES / 8, left = gone->entries - i;
        end = i + (left < some ? left : some);
        if (io_read_padded(walk->io, off + i * 8, walk->buf, (size_t)(end - i) * 8) < 0)
            return 0;
        for (uint64_t k = i; k < end; k++) {
            int ret = take_entry(walk, list, gone, k, load_be64(walk->buf + (k - i) * 8), &looked);
            if (ret < 0)
                return ret;
        }
    }
    bool counted = !gone->uncounted && gone->in_holes < gone->named;
    list->refuted = gone->in_holes > 0 && !counted;
    return 0;
}

/* ---- tables of snapshots ---- */

struct records {
    uint8_t *bytes;
    uint64_t length; /* of the records; 0: there are none, and no bytes */
};

struct tables {
    struct records known[MOST_TABLES + 1]; /* the header's, and those left */
    size_t count;
};

static void tables_release(struct tables *tables)
{
    for (size_t i = 0; i < tables->count; i++)
        free(tables->known[i].bytes);
}

/* Bytes of records, or what lies there in their place; -EIO where nobody knows. */
static int read_records(
    const struct walk *walk, uint64_t host_off, uint64_t length, struct records *out)
{
    *out = (struct records){.length = length};
    if (length == 0)
        return 0;
    out->bytes = malloc((size_t)length);
    if (!out->bytes)
        return -ENOMEM;
    int ret = io_read_padded(walk->io, host_off, out->bytes, (size_t)length);
    if (ret < 0) {
        free(out->bytes);
        out->bytes = NULL;
    }
    return ret < 0 ? -EIO : 0;
}

/* The records are the known ones and, anywhere among them, one more.  Cuts them to their length. */
static bool has_one_more(
    struct records *more, const struct records *known, struct qcow2_snapshot *record)
{
    uint64_t at = 0, left;
    for (;;) {
        if (qcow2_snapshot_decode(more->bytes + at, (size_t)(more->length - at), record) < 0 ||
            record->record_len > more->length - at)
            return false;
        left = known->length - at;
        if (record->record_len > left ||
            memcmp(more->bytes + at, known->bytes + at, (size_t)record->record_len) != 0)
            break;
        at += record->record_len;
    }
    uint64_t behind = at + record->record_len;
    if (left > more->length - behind ||
        (left > 0 && memcmp(more->bytes + behind, known->bytes + at, (size_t)left) != 0))
        return false;
    more->length = behind + left;
    return true;
}

/* Whose record only the leaked table has was deleted, or not yet created. */
static int take_record(struct walk *walk, struct orphan_list *list,
    const struct qcow2_snapshot *record, bool only, bool *left)
{
    struct gone gone = {.first = cluster_of(&walk->geo, record->l1_off),
        .clusters = clusters_for(&walk->geo, record->l1_size * UINT64_C(8)),
        .entries = record->l1_size,
        .whole = true};
    /* Without any snapshot the table may as well have been lost. */
    *left = !only || walk->header.snapshots_off == record->l1_off;
    return *left ? take_gone(walk, list, &gone) : 0;
}

/* Compares a leaked table with those known. */
static int take_table(
    struct walk *walk, struct orphan_list *list, struct tables *tables, struct orphan *orphan)
{
    enum { RECORD_BYTES = 1 << 18 }; /* any record fits */
    for (size_t i = 0; i < tables->count; i++) {
        const struct records *known = &tables->known[i];
        struct records more;
        struct qcow2_snapshot record;
        int ret = read_records(
            walk, orphan->cluster << walk->geo.cluster_bits, known->length + RECORD_BYTES, &more);
        if (ret < 0)
            return ret == -EIO ? 0 : ret;
        if (has_one_more(&more, known, &record)) {
            ret = take_record(walk, list, &record, known->length == 0, &orphan->left);
            tables->known[tables->count++] = more;
            return ret;
        }
        free(more.bytes);
    }
    return 0;
}

/* One may be known by another one that is: two operations did not end. */
static int take_tables(struct walk *walk, struct orphan_list *list, struct tables *tables)
{
    enum { MOST_COMPARED = 64 };
    int ret = 0, compared = 0;
    bool found = true;
    while (ret == 0 && found && !list->refuted) {
        found = false;
        for (size_t i = 0; ret == 0 && i < list->count; i++) {
            struct orphan *orphan = &list->items[i];
            if (orphan->kind != AREA_SNAPSHOT_TABLE || orphan->left ||
                tables->count > MOST_TABLES || ++compared > MOST_COMPARED)
                continue;
            ret = take_table(walk, list, tables, orphan);
            found |= orphan->left;
        }
    }
    return ret;
}

static int find_snapshots(struct walk *walk, struct orphan_list *list)
{
    struct tables tables = {.count = 1};
    uint64_t length = (walk->snapshot_table_len + 7) / 8 * 8;
    if (length > MOST_TABLE_BYTES)
        return 0;
    int ret = read_records(walk, walk->header.snapshots_off, length, &tables.known[0]);
    if (ret == 0)
        ret = take_tables(walk, list, &tables);
    tables_release(&tables);
    return ret == -EIO ? 0 : ret;
}

/* ---- the disk that was there before ---- */

/* The disk is what one of the snapshots is. */
static bool was_applied(const struct walk *walk)
{
    enum { MOST_ENTRIES = 1 << 20 };
    const struct tree *active = &walk->trees[TREE_ACTIVE];
    uint64_t compared = 0, size = walk->geo.cluster_size;
    for (size_t t = 1; active->usable && t < walk->tree_count; t++) {
        const struct tree *tree = &walk->trees[t];
        uint64_t end = active->l1_size * UINT64_C(8), off = 0;
        if (!tree->usable || tree->l1_size != active->l1_size ||
            tree->disk_size != active->disk_size)
            continue;
        for (; off < end && compared < MOST_ENTRIES; off += size, compared += size / 8) {
            if (io_read_padded(walk->io, active->l1_off + off, walk->buf, size) < 0)
                return false;
            if (end - off < size)
                memset(walk->buf + (end - off), 0, size - (end - off));
            if (!same_entries(walk, tree, off, walk->buf))
                break;
        }
        if (off >= end)
            return true;
    }
    return false;
}

/* All that it names are L2 tables, those in use or such as were lost or released, though of a lost
 * one other disks may have nearly all the data.  1, 0 or -ENOMEM. */
static int names_tables(struct walk *walk, const struct orphan *orphan)
{
    const struct qcow2_geometry *geo = &walk->geo;
    uint64_t size = geo->cluster_size, off = orphan->cluster << geo->cluster_bits;
    uint8_t *bytes = malloc(size);
    if (!bytes)
        return -ENOMEM;
    bool good = io_read_padded(walk->io, off, bytes, size) == 0;
    for (size_t at = 0; good && at < size; at += 8) {
        uint64_t cluster = cluster_of(geo, load_be64(bytes + at) & QCOW2_OFFSET_MASK);
        struct census_cell cell = census_get(walk->census, cluster);
        struct l2_look look;
        if (cluster == 0 || walk_area_at(walk, cluster, NULL) == AREA_L2_TABLE ||
            (!cell.claimed && cell.balance == 0))
            continue;
        good = walk_leaked(walk, cluster) && walk_look_at_l2(walk, cluster, &look) &&
               look.named > 0 && look.odd == 0;
    }
    free(bytes);
    return good;
}

struct pieces {
    uint64_t first, last; /* clusters */
};

/* What may be left of the L1 table of which there is no record, but for that at `marked`. */
static int find_pieces(
    struct walk *walk, const struct orphan_list *list, uint64_t marked, struct pieces *pieces)
{
    enum { MOST_READ = 16 };
    int ret = 0, looked = 0;
    *pieces = (struct pieces){.first = UINT64_MAX};
    for (size_t i = 0; ret >= 0 && i < list->count; i++) {
        const struct orphan *orphan = &list->items[i];
        bool piece =
            orphan->kind == AREA_L1_TABLE || orphan->names_orphans || orphan->cluster == marked;
        if (orphan->left)
            continue;
        if (!piece && marked == 0 && orphan->kind == AREA_L2_TABLE && looked++ < MOST_READ) {
            ret = names_tables(walk, orphan);
            piece = ret == 1;
        }
        if (piece) {
            pieces->first = pieces->first == UINT64_MAX ? orphan->cluster : pieces->first;
            pieces->last = orphan->cluster;
        }
    }
    return ret < 0 ? ret : 0;
}

static int find_l1(struct walk *walk, struct orphan_list *list)
{
    const struct qcow2_header *header = &walk->header;
    bool deleted = header->snapshot_count == 0 && header->snapshots_off != 0;
    uint64_t marked = deleted ? cluster_of(&walk->geo, header->snapshots_off) : 0;
    uint64_t entries = walk->geo.cluster_size / 8;
    struct pieces pieces;
    if (list->refuted || (!deleted && !was_applied(walk)))
        return 0;
    int ret = find_pieces(walk, list, marked, &pieces);
    if (ret < 0 || pieces.first == UINT64_MAX || marked > pieces.first ||
        has_record(walk, pieces.first << walk->geo.cluster_bits))
        return ret;
    bool single = pieces.first == pieces.last && walk->trees[TREE_ACTIVE].l1_size <= entries;
    struct gone gone = {
        .first = deleted ? marked : pieces.first, .whole = deleted || single, .replaced = !deleted};
    gone.clusters = pieces.last + 1 - gone.first;
    gone.entries = gone.clusters * entries;
    return gone.entries > QCOW2_MAX_L1_BYTES / 8 ? 0 : take_gone(walk, list, &gone);
}

/* ---- what has been released already ---- */

/* An L1 table that names nothing lost, and a table that nobody counts any more, not even for it. */
static int find_released(struct walk *walk, struct orphan_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        struct orphan *orphan = &list->items[i];
        uint64_t off = orphan->cluster << walk->geo.cluster_bits, cluster;
        if (orphan->kind != AREA_L1_TABLE || orphan->left || orphan->names_orphans ||
            io_read_padded(walk->io, off, walk->buf, walk->geo.cluster_size) < 0)
            continue;
        for (size_t at = 0; !orphan->left && at < walk->geo.cluster_size; at += 8) {
            cluster = cluster_of(&walk->geo, load_be64(walk->buf + at) & QCOW2_OFFSET_MASK);
            struct census_cell cell = census_get(walk->census, cluster);
            orphan->left = cluster != 0 && !cell.claimed && cell.balance == 0;
        }
        if (walk_pause(walk, 0) < 0)
            return -EINTR;
    }
    return 0;
}

/* ---- the whole ---- */

/* Nothing else says that something was lost: no entry of an L1 table is, and no count is too low,
 * which a crash never leaves. */
static bool nothing_else_lost(const struct walk *walk)
{
    uint64_t cluster = 0;
    int64_t balance;
    if (report_has_damage(walk->report) || walk->l1_broken > 0 ||
        census_has_conflicts(walk->census) || census_has_refused(walk->census))
        return false;
    while (census_next_wrong(walk->census, cluster, &cluster, &balance)) {
        if (balance < 0)
            return false;
        cluster++;
    }
    return true;
}

/* Each count of an L2 table is that of an L1 table which is gone. */
static bool all_explained(const struct walk *walk, struct orphan_list *list)
{
    bool all = !list->refuted;
    for (size_t i = 0; i < list->count; i++) {
        struct orphan *orphan = &list->items[i];
        if (orphan->kind == AREA_L2_TABLE)
            orphan->left =
                (uint64_t)census_get(walk->census, orphan->cluster).balance <= orphan->named;
        all &= orphan->left || orphan->in_use;
    }
    return all;
}

int orphan_find_left(struct walk *walk, struct orphan_list *list)
{
    if (list->count == 0 || !nothing_else_lost(walk))
        return 0;
    find_copies(walk, list);
    int ret = find_released(walk, list);
    if (ret == 0)
        ret = find_snapshots(walk, list);
    if (ret == 0)
        ret = find_l1(walk, list);
    walk->left = ret == 0 && all_explained(walk, list);
    for (size_t i = 0; !walk->left && i < list->count; i++)
        list->items[i].left = false;
    return ret;
}
