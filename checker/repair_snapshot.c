/* SPDX-License-Identifier: MIT
 *
 * The snapshot table and the bitmap directory: written anew into fresh clusters, without what is
 * broken, and switched to by one write of the header. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "names.h"
#include "repair.h"

enum { EXTRA_ROOM = QCOW2_SNAPSHOT_EXTRA_V3, ID_ROOM = 24, NAME_ROOM = 40 };

/* One record of the new table. */
struct record {
    struct qcow2_snapshot snapshot; /* points into the old table, or at: */
    uint8_t extra[EXTRA_ROOM];
    char id[ID_ROOM], name[NAME_ROOM];
    bool drop;
};

struct table_copy {
    uint8_t *bytes; /* the old table */
    struct record *records;
    struct named *ids; /* as they stand in the old table, sorted */
    size_t count;
    uint64_t next_id; /* one more than any number used as an ID so far */
    bool changed;
};

static void copy_free(struct table_copy *copy)
{
    free(copy->bytes);
    free(copy->records);
    free(copy->ids);
}

/* 0 for what is no number, or too long a one. */
static uint64_t numeric_id(const struct qcow2_snapshot *s)
{
    enum { MOST_DIGITS = 18 };
    uint64_t value = 0;
    size_t k = 0;
    while (k < s->id_len && k < MOST_DIGITS && s->id[k] >= '0' && s->id[k] <= '9')
        value = value * 10 + (uint64_t)(s->id[k++] - '0');
    return k == s->id_len ? value : 0;
}

static void note_ids(struct table_copy *copy)
{
    copy->next_id = 1;
    for (size_t i = 0; i < copy->count; i++) {
        const struct qcow2_snapshot *s = &copy->records[i].snapshot;
        uint64_t value = numeric_id(s);
        copy->ids[i] = (struct named){.name = s->id, .length = s->id_len, .idx = i};
        copy->next_id = value >= copy->next_id ? value + 1 : copy->next_id;
    }
    names_sort(copy->ids, copy->count);
}

static int copy_read(const struct walk *walk, struct table_copy *copy)
{
    size_t length = (size_t)walk->snapshot_table_len + 8, pos = 0;
    copy->count = walk->tree_count - 1;
    copy->bytes = malloc(length);
    copy->records = calloc(copy->count + 1, sizeof(*copy->records));
    copy->ids = calloc(copy->count + 1, sizeof(*copy->ids));
    if (!copy->bytes || !copy->records || !copy->ids)
        return -ENOMEM;
    int ret = io_read_padded(walk->io, walk->header.snapshots_off, copy->bytes, length);
    for (size_t i = 0; ret == 0 && i < copy->count; i++) {
        ret = qcow2_snapshot_decode(copy->bytes + pos, length - pos, &copy->records[i].snapshot);
        pos += (size_t)copy->records[i].snapshot.record_len;
    }
    if (ret == 0)
        note_ids(copy);
    return ret;
}

/* What the format demands in version 3 and was left out: the sizes as they were understood. */
static void complete_extra(const struct walk *walk, struct record *record)
{
    struct qcow2_snapshot *s = &record->snapshot;
    if (s->extra_len >= EXTRA_ROOM)
        return; /* not what was judged: the device says something else each time */
    if (s->extra_len > 0)
        memcpy(record->extra, s->extra, s->extra_len);
    if (s->extra_len < 8)
        store_be64(record->extra, s->vm_state_size);
    store_be64(record->extra + 8, walk->header.size_bytes);
    s->extra = record->extra;
    s->extra_len = EXTRA_ROOM;
}

static int give_id(struct repair *repair, struct table_copy *copy, struct record *record)
{
    int n = snprintf(record->id, sizeof(record->id), "%llu", (unsigned long long)copy->next_id++);
    record->snapshot.id = (const uint8_t *)record->id;
    record->snapshot.id_len = (uint16_t)n;
    return plan_remark(&repair->plan, "the snapshot at 0x%llx gets the new ID \"%s\"",
        (unsigned long long)record->snapshot.l1_off, record->id);
}

/* Only the first of several with one ID keeps it. */
static bool keeps_id(const struct table_copy *copy, size_t me)
{
    const struct qcow2_snapshot *s = &copy->records[me].snapshot;
    return names_first(copy->ids, copy->count, s->id, s->id_len) >= me;
}

/* Entries for the disk and the VM state behind it. */
static uint32_t needed_l1_size(const struct walk *walk, const struct qcow2_snapshot *s)
{
    uint64_t disk = s->has_disk_size ? s->disk_size : walk->header.size_bytes;
    uint64_t size = l1_entries_for(&walk->geo, disk) + l1_entries_for(&walk->geo, s->vm_state_size);
    return size < QCOW2_MAX_L1_BYTES / 8 ? (uint32_t)size : QCOW2_MAX_L1_BYTES / 8;
}

static int give_up_record(struct repair *repair, struct table_copy *copy, const struct finding *f)
{
    struct record *record = &copy->records[f->tree - 1];
    if (record->drop)
        return 0;
    record->drop = true;
    copy->changed = true;
    return plan_remark(
        &repair->plan, "lost: snapshot number %d, whose L1 table cannot be found", f->tree);
}

static int mend_record(struct repair *repair, struct table_copy *copy, const struct finding *f)
{
    struct record *record = &copy->records[f->tree - 1];
    bool lossy = repair->lossy;
    const struct qcow2_snapshot *s = &record->snapshot;
    if (s->l1_size == 0 && s->id_len == 0)
        return lossy ? give_up_record(repair, copy, f) : 0; /* no program writes that */
    switch (f->check) {
    case CHECK_snapshot_extra_short:
        complete_extra(repair->walk, record);
        break;
    case CHECK_snapshot_text: /* no length explains it: as programs show it */
        record->snapshot.id_len =
            (uint16_t)strnlen((const char *)record->snapshot.id, record->snapshot.id_len);
        record->snapshot.name_len =
            (uint16_t)strnlen((const char *)record->snapshot.name, record->snapshot.name_len);
        break;
    case CHECK_snapshot_id_empty:
        copy->changed = true;
        return give_id(repair, copy, record);
    case CHECK_snapshot_id_repeated:
        if (keeps_id(copy, (size_t)f->tree - 1))
            return 0;
        copy->changed = true;
        return give_id(repair, copy, record);
    case CHECK_snapshot_extra_long:
        if (!lossy || record->snapshot.extra_len <= QCOW2_MAX_SNAPSHOT_EXTRA)
            return 0;
        record->snapshot.extra_len = QCOW2_MAX_SNAPSHOT_EXTRA;
        break;
    case CHECK_snapshot_l1_too_large:
        if (cluster_aligned(&repair->walk->geo, record->snapshot.l1_off)) {
            record->snapshot.l1_size = needed_l1_size(repair->walk, &record->snapshot);
            break;
        }
        /* fall through */
    case CHECK_snapshot_l1_unaligned:
    case CHECK_snapshot_l1_outside:
        return lossy ? give_up_record(repair, copy, f) : 0;
    default:
        return 0;
    }
    copy->changed = true;
    return 0;
}

static int write_table(struct repair *repair, const struct table_copy *copy, enum check_id why)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    uint64_t length = 0, count = 0, cluster = 0, pos = 0;
    for (size_t i = 0; i < copy->count; i++) {
        if (!copy->records[i].drop) {
            length += qcow2_snapshot_length(&copy->records[i].snapshot);
            count++;
        }
    }
    uint8_t header[12] = {0}, *bytes;
    int ret = 0;
    if (count > 0) {
        uint64_t clusters = clusters_for(geo, length);
        bytes = calloc(clusters, geo->cluster_size);
        ret = bytes ? plan_alloc(&repair->plan, why, clusters, 1, &cluster) : -ENOMEM;
        if (ret < 0) {
            free(bytes);
            return ret;
        }
        for (size_t i = 0; i < copy->count; i++) {
            if (copy->records[i].drop)
                continue;
            qcow2_snapshot_encode(&copy->records[i].snapshot, bytes + pos);
            pos += qcow2_snapshot_length(&copy->records[i].snapshot);
        }
        ret = plan_data(&repair->plan, PHASE_NEW, why, cluster << geo->cluster_bits, bytes,
            clusters << geo->cluster_bits);
    }
    store_be32(header, (uint32_t)count);
    store_be64(header + 4, cluster << geo->cluster_bits);
    if (ret == 0)
        ret = plan_bytes(
            &repair->plan, PHASE_SWITCH, why, QCOW2_HDR_SNAPSHOT_COUNT, header, sizeof(header));
    return ret;
}

static int mend_snapshots(struct repair *repair)
{
    struct table_copy copy = {0};
    enum check_id why = CHECK_snapshot_extra_short;
    int ret = repair->walk->tree_count > 1 ? copy_read(repair->walk, &copy) : 0;
    for (size_t i = 0; ret == 0 && copy.count > 0 && i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (check_rows[f->check].kind != OBJECT_SNAPSHOT || (size_t)f->tree > copy.count)
            continue;
        bool before = copy.changed;
        ret = mend_record(repair, &copy, f);
        if (copy.changed != before)
            why = f->check;
    }
    if (ret == 0 && copy.changed)
        ret = write_table(repair, &copy, why);
    copy_free(&copy);
    return ret;
}

/* ---- snapshots without a table ---- */

static void name_adopted(
    const struct walk *walk, struct record *record, uint64_t l1_off, size_t nth)
{
    snprintf(record->id, sizeof(record->id), "%zu", nth);
    snprintf(record->name, sizeof(record->name), "recovered-%zu", nth);
    store_be64(record->extra + 8, walk->header.size_bytes);
    record->snapshot = (struct qcow2_snapshot){.l1_off = l1_off,
        .l1_size = (uint32_t)l1_entries_for(&walk->geo, walk->header.size_bytes),
        .id_len = (uint16_t)strlen(record->id),
        .name_len = (uint16_t)strlen(record->name),
        .extra_len = sizeof(record->extra),
        .extra = record->extra,
        .id = (const uint8_t *)record->id,
        .name = (const uint8_t *)record->name};
}

int repair_adopt_snapshots(struct repair *repair, enum check_id why)
{
    const struct walk *walk = repair->walk;
    uint64_t l1_bytes = l1_entries_for(&walk->geo, walk->header.size_bytes) * 8;
    size_t most = (size_t)repair->report.hits[CHECK_orphan_l1_table];
    /* An orphan is one cluster: of longer tables it is not known what belongs together. */
    if (most == 0 || most > walk->header.snapshot_count || l1_bytes > walk->geo.cluster_size)
        return 0;
    struct table_copy copy = {.records = calloc(most, sizeof(*copy.records))};
    if (!copy.records)
        return -ENOMEM;
    for (size_t i = 0; i < repair->findings.count && copy.count < most; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (f->check != CHECK_orphan_l1_table)
            continue;
        name_adopted(walk, &copy.records[copy.count], f->host_off, copy.count + 1);
        copy.count++;
    }
    int ret = plan_remark(&repair->plan,
        "choice: %zu of %u snapshots, whose table is lost, are found by their L1 tables and named "
        "recovered-1 and so on",
        copy.count, walk->header.snapshot_count);
    if (ret == 0)
        ret = write_table(repair, &copy, why);
    copy_free(&copy);
    return ret;
}

/* ---- bitmaps ---- */

static bool is_bitmap_area(const struct area *area)
{
    return area->kind == AREA_BITMAP_TABLE || area->kind == AREA_BITMAP_DATA;
}

/* A table or data that shares its cluster; not where that is with an L1 entry which is wrong: then
 * the bitmap's bytes are there. */
static bool bitmap_shares(const struct repair *repair, const struct area *area)
{
    return is_bitmap_area(area) && walk_area_conflict(repair->walk, area) &&
           !(repair_has_at(repair, CHECK_l1_entry_into_metadata, area->host_off) &&
               repair_names_no_table(repair, area->host_off));
}

/* Bitmaps that no program could use: they are lost already. */
struct broken_bitmaps {
    uint8_t *by_index;   /* one a bitmap of the directory */
    uint64_t *table_off; /* those with a broken table; as findings come, by host offset */
    size_t tables;
};

static int find_broken_bitmaps(const struct repair *repair, struct broken_bitmaps *broken)
{
    const struct walk *walk = repair->walk;
    uint32_t count = walk->bitmaps.bitmap_count;
    broken->by_index = calloc((size_t)count + 1, 1);
    broken->table_off = calloc(repair->findings.count + 1, sizeof(*broken->table_off));
    if (!broken->by_index || !broken->table_off)
        return -ENOMEM;
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        const struct check_row *row = &check_rows[f->check];
        if (row->tally == TALLY_NONE)
            continue;
        if (row->kind == OBJECT_BITMAP && f->index < count)
            broken->by_index[f->index] = 1;
        if (row->kind == OBJECT_BITMAP_ENTRY)
            broken->table_off[broken->tables++] = f->table_off;
    }
    qsort(broken->table_off, broken->tables, sizeof(*broken->table_off), repair_compare_offsets);
    for (size_t i = 0; i < walk->areas.count; i++) {
        const struct area *area = &walk->areas.items[i];
        if (area->index < count && bitmap_shares(repair, area))
            broken->by_index[area->index] = 1;
    }
    return 0;
}

static bool bitmap_broken(
    const struct broken_bitmaps *broken, uint64_t idx, const struct qcow2_bitmap *bitmap)
{
    return broken->by_index[idx] || bsearch(&bitmap->table_off, broken->table_off, broken->tables,
                                        sizeof(*broken->table_off), repair_compare_offsets);
}

static uint64_t bitmaps_ext_off(const struct walk *walk)
{
    return repair_ext_off(walk, QCOW2_EXT_BITMAPS, QCOW2_BITMAPS_EXT_BYTES);
}

static int write_directory(
    struct repair *repair, enum check_id why, const uint8_t *bytes, size_t length, uint32_t count)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    uint64_t clusters = clusters_for(geo, length), cluster;
    uint8_t *data = calloc(clusters, geo->cluster_size), ext[QCOW2_BITMAPS_EXT_BYTES];
    int ret = data ? plan_alloc(&repair->plan, why, clusters, 1, &cluster) : -ENOMEM;
    if (ret < 0) {
        free(data);
        return ret;
    }
    memcpy(data, bytes, length);
    struct qcow2_bitmaps_ext fields = {.bitmap_count = count,
        .directory_size = length,
        .directory_off = cluster << geo->cluster_bits};
    qcow2_bitmaps_ext_encode(&fields, ext);
    ret = plan_data(&repair->plan, PHASE_NEW, why, cluster << geo->cluster_bits, data,
        clusters << geo->cluster_bits);
    for (unsigned at = 0; ret == 0 && at < sizeof(ext); at += 8)
        ret = plan_bytes(
            &repair->plan, PHASE_SWITCH, why, bitmaps_ext_off(repair->walk) + at, ext + at, 8);
    return ret;
}

/* Without its bit the extension counts for nothing: every program then throws the bitmaps away. */
static int give_up_bitmaps(struct repair *repair, enum check_id why)
{
    uint64_t bits = repair->walk->header.autoclear & ~QCOW2_AUTOCLEAR_BITMAPS;
    int ret = plan_remark(&repair->plan, "the bitmaps are lost and marked so");
    return ret < 0 ? ret : plan_be64(&repair->plan, PHASE_SWITCH, why, QCOW2_HDR_AUTOCLEAR, bits);
}

/* Keeps every bitmap that is sound. */
static int mend_directory(struct repair *repair, enum check_id why)
{
    const struct walk *walk = repair->walk;
    size_t size = (size_t)walk->bitmaps.directory_size, pos = 0, kept_len = 0;
    uint8_t *bytes = calloc(2, size), *kept;
    if (!bytes)
        return -ENOMEM;
    kept = bytes + size;
    uint32_t kept_count = 0;
    struct broken_bitmaps broken = {0};
    int ret = io_read_padded(walk->io, walk->bitmaps.directory_off, bytes, size);
    if (ret == 0)
        ret = find_broken_bitmaps(repair, &broken);
    for (uint32_t i = 0; ret == 0 && i < walk->bitmaps.bitmap_count; i++) {
        struct qcow2_bitmap bitmap;
        if (qcow2_bitmap_decode(bytes + pos, size - pos, &bitmap) < 0)
            break;
        if (!bitmap_broken(&broken, i, &bitmap)) {
            memcpy(kept + kept_len, bytes + pos, (size_t)bitmap.record_len);
            kept_len += (size_t)bitmap.record_len;
            kept_count++;
        } else {
            char name[64];
            report_escape(bitmap.name, bitmap.name_len, name, sizeof(name));
            ret = plan_remark(&repair->plan, "the broken bitmap \"%s\" is removed", name);
        }
        pos += (size_t)bitmap.record_len;
    }
    if (ret == 0 && (kept_count == 0 || bitmaps_ext_off(walk) == 0))
        ret = give_up_bitmaps(repair, why);
    else if (ret == 0)
        ret = write_directory(repair, why, kept, kept_len, kept_count);
    free(broken.by_index);
    free(broken.table_off);
    free(bytes);
    return ret;
}

static bool bitmap_shares_at(const struct repair *repair, uint64_t host_off)
{
    const struct walk *walk = repair->walk;
    const struct area *area;
    walk_area_at(walk, cluster_of(&walk->geo, host_off), &area);
    while (area && area->host_off == host_off && !is_bitmap_area(area))
        area = area > walk->areas.items ? area - 1 : NULL;
    /* What is true of one there is true of all. */
    return area && area->host_off == host_off && bitmap_shares(repair, area);
}

static int mend_bitmaps(struct repair *repair)
{
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        const struct check_row *row = &check_rows[f->check];
        if (row->tally == TALLY_NONE)
            continue;
        if (f->check == CHECK_ext_bitmaps_count || f->check == CHECK_ext_bitmaps_directory)
            return give_up_bitmaps(repair, f->check);
        if ((f->check == CHECK_area_shared && bitmap_shares_at(repair, f->host_off)) ||
            row->kind == OBJECT_BITMAP_DIRECTORY || row->kind == OBJECT_BITMAP ||
            row->kind == OBJECT_BITMAP_ENTRY)
            return mend_directory(repair, f->check);
    }
    return 0;
}

int repair_snapshots(struct repair *repair)
{
    int ret = mend_snapshots(repair);
    if (ret == 0 && repair->plan.count == 0)
        ret = mend_bitmaps(repair);
    if (ret != -ENOSPC)
        return ret;
    repair_new_plan(repair);
    return repair_make_room(repair);
}
