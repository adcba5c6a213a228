/* SPDX-License-Identifier: MIT
 *
 * Refcount table and blocks: the stored counts go into the census first, and what the census says
 * in the end is shown to the checks last. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "walk.h"

static uint64_t block_off(uint64_t entry)
{
    return entry & QCOW2_REFTABLE_MASK;
}

/* A block that can be read: reserved bits do not matter, as they do not for QEMU. */
static bool block_usable(const struct walk *walk, uint64_t entry)
{
    uint64_t off = block_off(entry);
    return off != 0 && cluster_aligned(&walk->geo, off) && off < walk->view.file_size;
}

uint64_t walk_block_off(const struct walk *walk, uint64_t table_idx)
{
    if (table_idx >= walk->reftable_len || !block_usable(walk, walk->reftable[table_idx]))
        return 0;
    return block_off(walk->reftable[table_idx]);
}

/* The counts under the entry are not zero but unknown. */
static bool block_unknown(const struct walk *walk, uint64_t entry)
{
    return !cluster_aligned(&walk->geo, block_off(entry)) || block_off(entry) > INT64_MAX;
}

/* Reads the table, as far as there is one in the file.  Its size is what the file has, not what the
 * header claims; zero entries at the end are left out. */
static int read_reftable(struct walk *walk, bool *complete)
{
    const struct qcow2_header *header = &walk->header;
    uint64_t bytes = (uint64_t)header->reftable_clusters << walk->geo.cluster_bits;
    if (header->reftable_off == 0 || header->reftable_off >= walk->file_size)
        return 0;
    if (bytes > walk->file_size - header->reftable_off)
        bytes = walk->file_size - header->reftable_off;
    uint64_t *table = NULL;
    size_t room = 0, used = 0;
    for (uint64_t done = 0; done < bytes; done += WALK_BUF_BYTES) {
        size_t n = bytes - done < WALK_BUF_BYTES ? (size_t)(bytes - done) : WALK_BUF_BYTES;
        memset(walk->buf + n, 0, n % 8 ? 8 - n % 8 : 0);
        walk_read(walk, header->reftable_off + done, walk->buf, n, complete);
        size_t entries = div_up(n, 8);
        uint64_t *more = realloc(table, (room + entries) * sizeof(*table));
        if (!more) {
            free(table);
            return -ENOMEM;
        }
        table = more;
        for (size_t i = 0; i < entries; i++) {
            table[room + i] = load_be64(walk->buf + i * 8);
            if (table[room + i] != 0)
                used = room + i + 1;
        }
        room += entries;
    }
    walk->reftable = table;
    walk->reftable_len = used;
    return 0;
}

struct block_use {
    uint64_t off;
    size_t table_idx;
};

static int compare_block_uses(const void *a, const void *b)
{
    const struct block_use *x = a, *y = b;
    if (x->off != y->off)
        return x->off > y->off ? 1 : -1;
    return (x->table_idx > y->table_idx) - (x->table_idx < y->table_idx);
}

/* Entries that all refer to one block make counts for any number of clusters out of one: only the
 * first few of them are believed.  (*crowded)[i] tells which are not; freed by the caller. */
static int find_crowded(const struct walk *walk, bool **crowded)
{
    enum { BELIEVED = 4 };
    size_t count = walk->reftable_len;
    struct block_use *uses = calloc(count + 1, sizeof(*uses));
    *crowded = calloc(count + 1, sizeof(**crowded));
    bool room = uses && *crowded;
    if (room) {
        for (size_t i = 0; i < count; i++)
            uses[i] = (struct block_use){block_off(walk->reftable[i]), i};
        qsort(uses, count, sizeof(*uses), compare_block_uses);
        for (size_t i = BELIEVED; i < count; i++)
            (*crowded)[uses[i].table_idx] =
                uses[i].off != 0 && uses[i].off == uses[i - BELIEVED].off;
    }
    free(uses);
    return room ? 0 : -ENOMEM;
}

static bool block_place(const struct walk *walk, const void *arg, size_t i, uint64_t *host_off)
{
    const bool *crowded = arg;
    *host_off = block_off(walk->reftable[i]);
    return !crowded[i] && block_usable(walk, walk->reftable[i]);
}

static int use_block(
    struct walk *walk, void *arg, size_t i, size_t count, const struct io_read_req *read)
{
    const bool *crowded = arg;
    const struct qcow2_geometry *geo = &walk->geo;
    uint64_t first = i * geo->refblock_entries;
    bool complete = true;
    (void)count;
    if (crowded[i] || block_unknown(walk, walk->reftable[i]))
        return census_unknown(walk->census, first, geo->refblock_entries);
    if (read->length == 0)
        return 0;
    if (read->result < 0) /* fails, or is cut short by the end of the file */
        walk_read(walk, read->host_off, read->buf, read->length, &complete);
    if (!complete)
        return census_unknown(walk->census, first, geo->refblock_entries);
    if (walk_bytes_zero(read->buf, read->length)) {
        walk_hole(walk, read->host_off); /* there may be more of them */
        return 0;
    }
    int ret =
        census_load(walk->census, first, geo->refblock_entries, read->buf, geo->refcount_order);
    return ret < 0 ? ret : walk_pause(walk, 0);
}

static int load_blocks(struct walk *walk)
{
    bool *crowded;
    int ret = find_crowded(walk, &crowded);
    if (ret == 0) {
        struct stream stream = {
            .count = walk->reftable_len, .arg = crowded, .place = block_place, .use = use_block};
        ret = walk_stream(walk, &stream);
    }
    free(crowded);
    return ret;
}

int walk_refcounts(struct walk *walk)
{
    const struct qcow2_header *header = &walk->header;
    uint64_t bytes = (uint64_t)header->reftable_clusters << walk->geo.cluster_bits;
    bool complete = true;
    int ret = 0;
    if (!cluster_aligned(&walk->geo, header->reftable_off) || bytes > QCOW2_MAX_REFTABLE_BYTES)
        complete = false; /* reported with the header */
    else
        ret = read_reftable(walk, &complete);
    if (ret == 0 && !complete) {
        walk->reftable_len = 0;
        return census_unknown(walk->census, 0, UINT64_MAX);
    }
    return ret < 0 ? ret : load_blocks(walk);
}

/* Reads the piece of a refcount block that has the count of a cluster; NULL if it cannot. */
static const uint8_t *stored_piece(struct walk *walk, uint64_t cluster, unsigned piece_bits)
{
    const struct qcow2_geometry *geo = &walk->geo;
    uint64_t piece = cluster >> piece_bits;
    struct stored_piece *cached = &walk->stored_cache[piece % STORED_PIECES];
    if (cached->piece == piece)
        return cached->bytes;
    uint64_t in_block = (piece << piece_bits) & (geo->refblock_entries - 1);
    uint64_t off = walk_block_off(walk, cluster >> geo->refblock_bits) +
                   ((in_block << geo->refcount_order) / 8);
    cached->piece = UINT64_MAX;
    if (io_read_padded(
            walk->io, off, cached->bytes, (size_t)1 << (piece_bits + geo->refcount_order - 3)) < 0)
        return NULL;
    cached->piece = piece;
    return cached->bytes;
}

bool walk_stored(struct walk *walk, uint64_t cluster, uint64_t *stored)
{
    const struct qcow2_geometry *geo = &walk->geo;
    unsigned cluster_bits =
        geo->cluster_bits < STORED_PIECE_BITS ? geo->cluster_bits : STORED_PIECE_BITS;
    unsigned piece_bits = cluster_bits + 3 - geo->refcount_order; /* of clusters that have it */
    *stored = 0;
    if (walk_block_off(walk, cluster >> geo->refblock_bits) == 0)
        return true;
    const uint8_t *bytes = stored_piece(walk, cluster, piece_bits);
    if (!bytes)
        return false;
    *stored =
        qcow2_refcount_get(bytes, geo->refcount_order, cluster & ((UINT64_C(1) << piece_bits) - 1));
    return true;
}

/* ---- at the end ---- */

static void show_reftable_entry(struct walk *walk, size_t i, uint64_t refs_seen)
{
    struct subject subject = {
        .kind = OBJECT_REFTABLE_ENTRY,
        .tree = TREE_NONE,
        .has_host = true,
        .host_off = block_off(walk->reftable[i]),
        .length = walk->geo.cluster_size,
        .has_table = true,
        .table_off = walk->header.reftable_off,
        .index = i,
        .reftable = {.raw = walk->reftable[i], .refs_seen = refs_seen},
    };
    walk_show(walk, &subject);
}

/* Blocks that are used more than once lie side by side in the sorted list of areas. */
static void judge_shared_blocks(struct walk *walk)
{
    const struct area_list *areas = &walk->areas;
    for (size_t i = 0; i < areas->count;) {
        size_t end = i + 1, blocks = 0;
        while (end < areas->count && areas->items[end].host_off == areas->items[i].host_off)
            end++;
        uint64_t cluster = cluster_of(&walk->geo, areas->items[i].host_off);
        for (size_t k = i; k < end; k++)
            blocks += areas->items[k].kind == AREA_REFCOUNT_BLOCK;
        if (blocks > 0 && census_get(walk->census, cluster).conflict) {
            uint64_t refs = walk_facts(walk, cluster).refs;
            for (size_t k = i; k < end; k++) {
                if (areas->items[k].kind == AREA_REFCOUNT_BLOCK)
                    show_reftable_entry(walk, (size_t)areas->items[k].index, refs - --blocks);
            }
        }
        i = end;
    }
}

static void judge_reftable(struct walk *walk)
{
    for (size_t i = 0; i < walk->reftable_len; i++) {
        uint64_t entry = walk->reftable[i];
        if (entry != 0 && ((entry & QCOW2_REFTABLE_RSVD) || !block_usable(walk, entry)))
            show_reftable_entry(walk, i, 0);
    }
    if (census_has_conflicts(walk->census))
        judge_shared_blocks(walk);
}

/* Clusters that no check can tell apart: what is wrong with many is often the same. */
struct alike {
    struct cluster_facts facts;
    bool past_end;
    struct verdicts said;
};

static void show_cluster(struct walk *walk, uint64_t cluster, int64_t balance, struct alike *before)
{
    struct cluster_facts facts = walk_counts(walk, cluster, balance);
    bool past_end = cluster >= walk->cluster_end;
    if (facts.stored_known != before->facts.stored_known || facts.stored != before->facts.stored ||
        facts.refs != before->facts.refs || past_end != before->past_end)
        *before = (struct alike){facts, past_end, {.hits = HITS_UNKNOWN}};
    struct subject subject = {
        .kind = OBJECT_CLUSTER,
        .tree = TREE_NONE,
        .has_host = true,
        .host_off = cluster << walk->geo.cluster_bits,
        .length = walk->geo.cluster_size,
        .cluster = {.facts = facts, .past_end = past_end},
    };
    const struct owner *owner = walk_owner(walk, cluster);
    if (owner && owner->found) {
        subject.tree = owner->tree;
        subject.guest_off = owner->guest_off;
        subject.guest_len = owner->guest_len;
        subject.has_table = true;
        subject.table_off = owner->table_off;
        subject.index = owner->index;
    }
    walk_show_alike(walk, &subject, &before->said);
}

static void compare_part(struct walk *walk, uint64_t first, uint64_t end)
{
    struct alike before = {.said = {.hits = HITS_UNKNOWN}};
    int64_t balance;
    for (uint64_t cluster = first;
         census_next_wrong(walk->census, cluster, &cluster, &balance) && cluster < end; cluster++) {
        /* What looks leaked may be used by what could not be read. */
        if (census_known(walk->census, cluster) && !(walk->refs_incomplete && balance > 0))
            show_cluster(walk, cluster, balance, &before);
    }
}

/* The clusters of the file in parts; behind it there should be none. */
static int compare_all(struct walk *walk)
{
    enum { AT_LEAST = 1 << 18, MOST_PARTS = 256 };
    uint64_t each = walk->cluster_end / MOST_PARTS + 1;
    if (walk->first_mismatch == UINT64_MAX)
        return 0;
    int ret =
        walk_in_parts(walk, walk->cluster_end, each < AT_LEAST ? AT_LEAST : each, compare_part);
    if (ret == 0)
        compare_part(walk, walk->cluster_end, UINT64_MAX);
    return ret;
}

int walk_compare_refcounts(struct walk *walk)
{
    judge_reftable(walk);
    int ret = compare_all(walk);
    if (ret < 0)
        return ret;
    uint64_t end = census_end(walk->census, walk->cluster_end);
    walk->report->image_end_off = (end ? end : 1) << walk->geo.cluster_bits;
    struct subject subject = {
        .kind = OBJECT_FILE,
        .tree = TREE_NONE,
        .has_host = true,
        .host_off = walk->report->image_end_off,
        .length = walk->file_size > walk->report->image_end_off
                      ? walk->file_size - walk->report->image_end_off
                      : 0,
        .file = {.size = walk->file_size, .used_end = walk->report->image_end_off},
    };
    walk_show(walk, &subject);
    return 0;
}
