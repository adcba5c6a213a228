/* SPDX-License-Identifier: MIT
 *
 * The disks of an image, active and snapshots: the snapshot table. */
#include <errno.h>
#include <stdlib.h>

#include "names.h"
#include "walk.h"

/* ---- snapshot table (spec: Snapshots) ---- */

struct snapshot_reader {
    uint8_t *bytes; /* the table from its start */
    size_t have, limit;
    size_t whole; /* records that do not pass the end of the file */
    bool complete;
};

/* Makes at least `upto` bytes of the table available, if there are as many.  Reads ahead in
 * growing steps: how long the table is only its records tell. */
static int reader_need(struct walk *walk, struct snapshot_reader *reader, size_t upto)
{
    if (upto <= reader->have || reader->have == reader->limit)
        return 0;
    size_t target = reader->have ? reader->have * 2 : 4096;
    target = target > upto ? target : upto;
    target = target < reader->limit ? target : reader->limit;
    uint8_t *bytes = realloc(reader->bytes, target);
    if (!bytes)
        return -ENOMEM;
    reader->bytes = bytes;
    walk_read(walk, walk->header.snapshots_off + reader->have, bytes + reader->have,
        target - reader->have, &reader->complete);
    reader->have = target;
    return 0;
}

/* Bytes of extra data; programs refuse a record with more than QCOW2_MAX_SNAPSHOT_EXTRA, those
 * behind it are read all the same. */
enum { MOST_BELIEVED = 64 * QCOW2_MAX_SNAPSHOT_EXTRA };

/* Finds the records; *offs gets where each starts. */
static int read_records(
    struct walk *walk, struct snapshot_reader *reader, size_t **offs, size_t *count)
{
    size_t pos = 0, room = 0;
    *count = 0;
    while (*count < walk->header.snapshot_count) {
        struct qcow2_snapshot record;
        int ret = reader_need(walk, reader, pos + QCOW2_SNAPSHOT_HEAD_BYTES);
        if (ret < 0)
            return ret;
        if (pos >= reader->have)
            break;
        if (qcow2_snapshot_decode(reader->bytes + pos, reader->have - pos, &record) < 0) {
            if (record.record_len == 0 || record.record_len > reader->limit - pos)
                break; /* both are multiples of 8 */
            ret = reader_need(walk, reader, pos + (size_t)record.record_len);
            if (ret < 0)
                return ret;
            qcow2_snapshot_decode(reader->bytes + pos, reader->have - pos, &record);
        }
        if (record.extra_len > MOST_BELIEVED)
            break; /* it is guest data that would be taken for it */
        if (*count == room) {
            room = room ? room * 2 : 16;
            size_t *more = realloc(*offs, room * sizeof(**offs));
            if (!more)
                return -ENOMEM;
            *offs = more;
        }
        (*offs)[(*count)++] = pos;
        walk->snapshot_table_len =
            pos + QCOW2_SNAPSHOT_HEAD_BYTES + record.extra_len + record.id_len + record.name_len;
        reader->whole += walk->header.snapshots_off + walk->snapshot_table_len <= walk->file_size;
        pos += (size_t)record.record_len;
    }
    return 0;
}

static void show_table(struct walk *walk, const struct snapshot_reader *reader, size_t count)
{
    bool truncated = reader->whole < walk->header.snapshot_count;
    struct subject subject = {
        .kind = OBJECT_SNAPSHOT_TABLE,
        .tree = TREE_NONE,
        .has_host = true,
        .host_off = walk->header.snapshots_off,
        .length = walk->snapshot_table_len,
        .snapshot_table = {.count = walk->header.snapshot_count,
            .readable = reader->whole,
            .truncated = truncated,
            .too_large = count < walk->header.snapshot_count &&
                         reader->limit == QCOW2_MAX_SNAPSHOT_TABLE_BYTES},
    };
    walk_show(walk, &subject);
    if (!reader->complete)
        walk->refs_incomplete = true;
}

static void show_snapshot(struct walk *walk, size_t i, const struct qcow2_snapshot *record,
    const struct named *ids, size_t count)
{
    struct tree *tree = &walk->trees[i + 1];
    struct subject subject = {
        .kind = OBJECT_SNAPSHOT,
        .tree = (int)i + 1,
        .has_host = true,
        .host_off = record->l1_off,
        .length = (uint64_t)record->l1_size * 8,
        .has_table = true,
        .table_off = walk->header.snapshots_off,
        .index = i,
        .snapshot = {.record = record,
            .disk_size = tree->disk_size,
            .id_repeated =
                record->id_len > 0 && names_other_has(ids, count, record->id, record->id_len, i),
            .name_shadows_id = record->name_len > 0 &&
                               names_other_has(ids, count, record->name, record->name_len, i)},
    };
    tree->usable = walk_show(walk, &subject) < AFTER_SKIP && record->l1_size > 0;
}

static int show_snapshots(
    struct walk *walk, const struct snapshot_reader *reader, const size_t *offs, size_t count)
{
    struct report *report = walk->report;
    struct named *ids = calloc(count + 1, sizeof(*ids));
    report->snapshots = calloc(count + 1, sizeof(*report->snapshots));
    if (!ids || !report->snapshots) {
        free(ids);
        return -ENOMEM;
    }
    report->snapshot_count = count;
    for (size_t i = 0; i < count; i++) {
        struct qcow2_snapshot record;
        qcow2_snapshot_decode(reader->bytes + offs[i], reader->have - offs[i], &record);
        ids[i] = (struct named){.name = record.id, .length = record.id_len, .idx = i};
        report->snapshots[i].id = record.id;
        report->snapshots[i].id_len = record.id_len;
        walk->trees[i + 1] = (struct tree){
            .record_off = walk->header.snapshots_off + offs[i],
            .l1_off = record.l1_off,
            .l1_size = record.l1_size,
            .disk_size_known = record.has_disk_size,
            .disk_size = record.has_disk_size ? record.disk_size : walk->header.size_bytes,
            .vm_state_size = record.vm_state_size,
        };
    }
    names_sort(ids, count);
    for (size_t i = 0; i < count; i++) {
        struct qcow2_snapshot record;
        qcow2_snapshot_decode(reader->bytes + offs[i], reader->have - offs[i], &record);
        show_snapshot(walk, i, &record, ids, count);
    }
    free(ids);
    return 0;
}

static bool snapshot_table_usable(const struct walk *walk)
{
    const struct qcow2_header *header = &walk->header;
    return header->snapshot_count > 0 && header->snapshot_count <= QCOW2_MAX_SNAPSHOTS &&
           cluster_aligned(&walk->geo, header->snapshots_off) && header->snapshots_off != 0 &&
           header->snapshots_off < walk->file_size;
}

/* How much of the active disk's L1 table can be read.  One that passes the end of the file was cut
 * off with it, or its size is damaged: what the disk needs of it is often there all the same. */
static struct tree active_tree(const struct walk *walk)
{
    const struct qcow2_header *header = &walk->header;
    struct tree tree = {
        .l1_off = header->l1_off,
        .l1_size = header->l1_size,
        .disk_size_known = true,
        .disk_size = header->size_bytes,
    };
    tree.usable = header->l1_size > 0 && header->l1_size <= QCOW2_MAX_L1_BYTES / 8 &&
                  header->l1_off != 0 && cluster_aligned(&walk->geo, header->l1_off);
    if (tree.usable && check_outside(&walk->view, header->l1_off, header->l1_size * UINT64_C(8))) {
        uint64_t end = walk->file_size, needed = l1_entries_for(&walk->geo, header->size_bytes);
        uint64_t there = header->l1_off < end ? (end - header->l1_off) / 8 : 0;
        tree.l1_size = (uint32_t)(there < tree.l1_size ? there : tree.l1_size);
        tree.l1_size = (uint32_t)(needed < tree.l1_size ? needed : tree.l1_size);
        tree.usable = tree.l1_size > 0;
    }
    return tree;
}

int walk_snapshot_table(struct walk *walk)
{
    struct snapshot_reader reader = {.complete = true};
    size_t *offs = NULL, count = 0;
    int ret = 0;
    bool usable = snapshot_table_usable(walk);
    if (usable) {
        /* The last cluster of the file may be cut short; it then goes on with zeros. */
        uint64_t left = (clusters_for(&walk->geo, walk->file_size) << walk->geo.cluster_bits) -
                        walk->header.snapshots_off;
        reader.limit =
            left < QCOW2_MAX_SNAPSHOT_TABLE_BYTES ? (size_t)left : QCOW2_MAX_SNAPSHOT_TABLE_BYTES;
        ret = read_records(walk, &reader, &offs, &count);
    }
    walk->trees = ret == 0 ? calloc(count + 1, sizeof(*walk->trees)) : NULL;
    if (ret == 0 && !walk->trees)
        ret = -ENOMEM;
    if (ret == 0) {
        walk->tree_count = count + 1;
        walk->trees[TREE_ACTIVE] = active_tree(walk);
        if (usable) {
            show_table(walk, &reader, count);
            ret = show_snapshots(walk, &reader, offs, count);
        }
    }
    walk->report->snapshot_bytes = reader.bytes; /* the IDs point into it */
    free(offs);
    return ret;
}
