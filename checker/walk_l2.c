/* SPDX-License-Identifier: MIT
 *
 * First pass over the L2 tables: every reference to guest data is taken off the census.
 *
 * Tables are visited by guest position.  Those that different disks have at one position (a
 * snapshot's and the active disk's, say) are held side by side, so that all references to a cluster
 * from one guest place are claimed at once.  A second claim is then always one from another place,
 * and never legal for data clusters: no list of owners is needed to see that.
 *
 * Nothing is judged here.  A table in which anything is not plain, or does not fit the census
 * exactly, is marked odd and shown to the checks when the census is complete. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "walk.h"

/* ---- statistics of `qemu-img check`: the active disk, in the order of one table ---- */

static void count_cluster(
    struct walk *walk, const struct table *table, uint64_t off, uint64_t count, uint64_t *next_off)
{
    struct report *report = walk->report;
    report->allocated_clusters += count * table->active_refs;
    if (*next_off != 0 && *next_off != off)
        report->fragmented_clusters += table->active_refs;
    *next_off = off + count * walk->geo.cluster_size;
}

static void count_entry(struct walk *walk, const struct table *table,
    const struct qcow2_l2_entry *e, uint64_t *next_off)
{
    if (table->active_refs == 0)
        return;
    if (e->kind == QCOW2_L2_NORMAL || e->kind == QCOW2_L2_ZERO_ALLOC) {
        count_cluster(walk, table, e->host_off, 1, next_off);
    } else if (e->kind == QCOW2_L2_COMPRESSED && !e->bitmap && !walk->geo.data_file) {
        walk->report->allocated_clusters += table->active_refs;
        walk->report->compressed_clusters += table->active_refs;
        walk->report->fragmented_clusters += table->active_refs;
    }
}

/* ---- claims ---- */

/* Takes references off for compressed data.  A length that no program writes reaches into clusters
 * of others: what lies behind the longest stream there can be counts, but is not the entry's. */
static int claim_compressed(struct walk *walk, const struct qcow2_l2_entry *e, uint64_t refs)
{
    const struct qcow2_geometry *geo = &walk->geo;
    uint64_t end = e->host_off + e->length, own_end = end;
    if (e->length > geo->cluster_size + QCOW2_SECTOR_BYTES)
        own_end = e->host_off + geo->cluster_size;
    bool conflict = false;
    int ret = walk_claim(walk, e->host_off, own_end - e->host_off, refs, CLAIM_PACKED, &conflict);
    uint64_t next = clusters_for(geo, own_end) << geo->cluster_bits;
    if (ret == 0 && next < end)
        ret = walk_claim(walk, next, end - next, refs, CLAIM_REFUSED, &conflict);
    return ret;
}

/* Takes `refs` references off for one entry.  *exact: the census agrees that these are all there
 * are, so the stored count is `refs`. */
static int claim_entry(
    struct walk *walk, const struct qcow2_l2_entry *e, uint64_t refs, bool *exact)
{
    const struct qcow2_geometry *geo = &walk->geo;
    bool packed = e->kind == QCOW2_L2_COMPRESSED, conflict = false;
    *exact = false;
    if (geo->data_file || (packed && e->bitmap) ||
        check_outside(&walk->view, e->host_off, e->length))
        return 0;
    if (packed)
        return claim_compressed(walk, e, refs);
    bool aligned = cluster_aligned(geo, e->host_off);
    if (aligned && !walk->options->no_fast_paths)
        *exact = census_claim_exact(walk->census, cluster_of(geo, e->host_off), refs);
    if (*exact)
        return 0;
    return walk_claim(
        walk, e->host_off, e->length, refs, aligned ? CLAIM_ALONE : CLAIM_REFUSED, &conflict);
}

/* Whether there is anything to claim, and remarks about the entry that need no census. */
static bool note_entry(
    struct walk *walk, struct table *table, uint32_t idx, const struct qcow2_l2_entry *e)
{
    uint64_t guest_off = ((uint64_t)table->l1_idx << walk->geo.l2_bits | idx)
                         << walk->geo.cluster_bits;
    if (!l2_entry_plain(walk, e, guest_off) || (idx >= table->legal && e->raw != 0))
        table->odd = true;
    if (e->kind == QCOW2_L2_COMPRESSED)
        table->has_compressed = true;
    if (walk->geo.data_file && e->kind == QCOW2_L2_NORMAL &&
        walk->data_file_end < e->host_off + walk->geo.cluster_size)
        walk->data_file_end = e->host_off + walk->geo.cluster_size;
    return e->kind >= QCOW2_L2_ZERO_ALLOC;
}

/* After the claim: does what the entry says fit the stored count? */
static int settle_entry(struct walk *walk, struct table *table, const struct qcow2_l2_entry *e,
    uint64_t refs, bool exact)
{
    if (e->kind == QCOW2_L2_COMPRESSED || walk->geo.data_file)
        return 0; /* COPIED is not compared with counts there; the rest shows in the census */
    if (exact && (table->active_refs == 0 || e->copied == (refs == 1)))
        return 0;
    table->odd = true;
    return census_mark_odd(walk->census, cluster_of(&walk->geo, e->host_off));
}

/* The fast path: claims entries in a row, `length` of them from `idx` on, as long as all is as it
 * should be with them; returns how many.
 *
 * Invariant: an entry that is claimed here is one that l2_entry_plain() accepts, that lies on the
 * disk, whose COPIED flag fits its references, and whose cluster nobody claimed before.  If the
 * counts stored for the clusters fit as well, no check would object; if not, the table is odd. */
static uint32_t claim_run(struct walk *walk, struct table *table, uint32_t idx,
    const struct qcow2_l2_entry *e, uint32_t length)
{
    const struct qcow2_geometry *geo = &walk->geo;
    if (e->kind != QCOW2_L2_NORMAL || (table->active_refs > 0 && e->copied != (table->refs == 1)) ||
        !l2_entry_plain(walk, e, 0) || idx >= table->legal)
        return 0;
    uint64_t room = (walk->view.file_size - e->host_off) >> geo->cluster_bits;
    bool exact = true;
    length = length < table->legal - idx ? length : table->legal - idx;
    length = length < room ? length : (uint32_t)room;
    length = (uint32_t)census_claim_run(
        walk->census, cluster_of(geo, e->host_off), length, table->refs, &exact);
    table->odd |= !exact;
    return length;
}

static int claim_single(
    struct walk *walk, struct table *table, const uint8_t *bytes, const struct l2_digest *digest)
{
    const struct qcow2_geometry *geo = &walk->geo;
    bool fast = !geo->extended_l2 && !geo->data_file && !walk->options->no_fast_paths;
    struct l2_run run = {0};
    uint64_t next_off = 0;
    for (uint32_t i = 0, n; i < geo->l2_entries; i += n) {
        const uint8_t *p = bytes + (size_t)i * geo->l2_entry_size;
        n = 1;
        if (load_be64(p) == 0 && !geo->extended_l2)
            continue;
        struct qcow2_l2_entry e;
        qcow2_l2_decode(geo, p, &e);
        uint32_t claimed = 0;
        if (fast) /* also behind what broke the run: the rest of it is remembered */
            claimed = claim_run(walk, table, i, &e,
                l2_run_at(geo, bytes, i, digest->runs, digest->run_count, &run));
        if (claimed > 0) {
            n = claimed;
            if (table->active_refs)
                count_cluster(walk, table, e.host_off, n, &next_off);
            continue;
        }
        bool exact;
        count_entry(walk, table, &e, &next_off);
        if (!note_entry(walk, table, i, &e))
            continue;
        int ret = claim_entry(walk, &e, table->refs, &exact);
        if (ret == 0)
            ret = settle_entry(walk, table, &e, table->refs, exact);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* ---- several tables at one guest position ---- */

struct use {
    uint64_t key; /* what is claimed: equal keys, equal clusters */
    size_t table; /* within the group */
    struct qcow2_l2_entry entry;
};

static int compare_uses(const void *a, const void *b)
{
    const struct use *x = a, *y = b;
    if (x->key != y->key)
        return x->key > y->key ? 1 : -1;
    return (x->table > y->table) - (x->table < y->table);
}

struct group {
    struct table *tables;
    size_t count;
    const uint8_t **bytes; /* of each table; NULL: nothing in it is to be claimed */
    struct use *uses;      /* room for one a table */
    uint64_t *next_off;    /* statistics, one a table */
};

/* Claims what the tables of the group have at one entry: the same cluster once, with the references
 * of all that have it. */
static int claim_column(struct walk *walk, struct group *group, size_t use_count)
{
    struct use *uses = group->uses;
    qsort(uses, use_count, sizeof(*uses), compare_uses);
    for (size_t i = 0; i < use_count;) {
        size_t end = i;
        uint64_t refs = 0;
        while (end < use_count && uses[end].key == uses[i].key)
            refs += group->tables[uses[end++].table].refs;
        bool exact;
        int ret = claim_entry(walk, &uses[i].entry, refs, &exact);
        for (; ret == 0 && i < end; i++)
            ret = settle_entry(walk, &group->tables[uses[i].table], &uses[i].entry, refs, exact);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* group->bytes points to entries first .. first + rows - 1 of each table. */
static int claim_rows(struct walk *walk, struct group *group, uint32_t first, uint32_t rows)
{
    const struct qcow2_geometry *geo = &walk->geo;
    for (uint32_t row = 0; row < rows; row++) {
        size_t use_count = 0;
        for (size_t t = 0; t < group->count; t++) {
            struct table *table = &group->tables[t];
            struct use *use = &group->uses[use_count];
            if (!group->bytes[t])
                continue;
            qcow2_l2_decode(geo, group->bytes[t] + (size_t)row * geo->l2_entry_size, &use->entry);
            count_entry(walk, table, &use->entry, &group->next_off[t]);
            if (!note_entry(walk, table, first + row, &use->entry))
                continue;
            bool packed = use->entry.kind == QCOW2_L2_COMPRESSED;
            use->key = packed ? use->entry.raw & ~QCOW2_ENTRY_COPIED : use->entry.host_off;
            use->table = t;
            use_count++;
        }
        int ret = use_count ? claim_column(walk, group, use_count) : 0;
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* A table as it was read, for the first time: may it be interpreted? */
static void take_table(struct walk *walk, struct table *table, const struct io_read_req *read,
    struct l2_digest *digest)
{
    bool complete = true;
    if (read->length > 0 && read->result < 0) /* fails, or is cut short by the end of the file */
        walk_read_table(walk, table, read->buf, &complete);
    if (!complete)
        walk->refs_incomplete = true;
    table->empty = read->length == 0 || walk_bytes_zero(read->buf, read->length);
    if (read->length > 0 && table->empty)
        walk_hole(walk, table->host_off); /* there may be more of them */
    if (table->empty)
        return;
    l2_scan(&walk->geo, read->buf, digest);
    walk_test_plausible(walk, table, read->buf, digest);
    if (complete && !walk->options->no_fast_paths)
        table->shape = l2_shape_of(&walk->geo, digest);
}

/* ---- more tables at one position than fit the buffer ---- */

enum { TALL_PIECE_BYTES = 4096, TALL_MOST_BYTES = 64 << 20 };

/* Room in proportion to what there is to read, so that reads do not become tiny. */
struct tall {
    uint8_t *buf;
    size_t buf_len;
    struct io_read_req *reqs; /* one a table */
};

static void tall_read(struct walk *walk, const struct tall *tall, size_t count)
{
    struct io_batch batch = {
        .io = walk->io, .crew = walk->crew, .reqs = tall->reqs, .count = count};
    io_batch_start(&batch);
    io_batch_wait(&batch);
}

/* Reads each table once as a whole. */
static void tall_take(struct walk *walk, struct group *group, const struct tall *tall)
{
    uint32_t size = walk->geo.cluster_size;
    size_t fit = tall->buf_len / size;
    struct l2_digest digest;
    for (size_t first = 0, count; first < group->count; first += count) {
        count = group->count - first < fit ? group->count - first : fit;
        for (size_t i = 0; i < count; i++) {
            uint64_t host_off = group->tables[first + i].host_off;
            tall->reqs[i] = (struct io_read_req){.host_off = host_off,
                .length = walk_known_hole(walk, host_off) < size ? size : 0,
                .buf = tall->buf + i * size};
        }
        tall_read(walk, tall, count);
        for (size_t i = 0; i < count; i++)
            take_table(walk, &group->tables[first + i], &tall->reqs[i], &digest);
    }
}

/* Then as many rows of all of them as fit at a time. */
static int tall_claim(struct walk *walk, struct group *group, const struct tall *tall)
{
    const struct qcow2_geometry *geo = &walk->geo;
    uint32_t fit = (uint32_t)(tall->buf_len / group->count / geo->l2_entry_size);
    int ret = 0;
    for (uint32_t first = 0, rows; ret == 0 && first < geo->l2_entries; first += rows) {
        rows = geo->l2_entries - first < fit ? geo->l2_entries - first : fit;
        size_t bytes = (size_t)rows * geo->l2_entry_size, live = 0;
        for (size_t t = 0; t < group->count; t++) {
            const struct table *table = &group->tables[t];
            uint8_t *buf = tall->buf + live * bytes;
            group->bytes[t] = NULL;
            if (table->skip || table->empty)
                continue;
            tall->reqs[live++] = (struct io_read_req){
                .host_off = table->host_off + (uint64_t)first * geo->l2_entry_size,
                .length = bytes,
                .buf = buf};
            group->bytes[t] = buf;
        }
        tall_read(walk, tall, live);
        for (size_t i = 0; i < live; i++) {
            const struct io_read_req *req = &tall->reqs[i];
            if (req->result < 0)
                walk_read_again(walk, req->host_off, req->buf, req->length);
        }
        ret = claim_rows(walk, group, first, rows);
        if (ret == 0)
            ret = walk_pause(walk, 0);
    }
    return ret;
}

static int claim_tall_group(struct walk *walk, struct group *group)
{
    struct tall tall = {.buf_len = group->count * TALL_PIECE_BYTES};
    tall.buf_len = tall.buf_len > TALL_MOST_BYTES ? TALL_MOST_BYTES : tall.buf_len;
    tall.buf_len = tall.buf_len < WALK_BUF_BYTES ? WALK_BUF_BYTES : tall.buf_len;
    tall.buf = malloc(tall.buf_len);
    tall.reqs = calloc(group->count, sizeof(*tall.reqs));
    int ret = tall.buf && tall.reqs ? 0 : -ENOMEM;
    if (ret == 0) {
        tall_take(walk, group, &tall);
        ret = tall_claim(walk, group, &tall);
    }
    free(tall.buf);
    free(tall.reqs);
    return ret;
}

/* ---- going over them ---- */

/* `reads` is NULL when they are more than fit the buffer. */
static int claim_group(
    struct walk *walk, struct table *tables, size_t count, const struct io_read_req *reads)
{
    struct group group = {.tables = tables, .count = count};
    struct l2_digest digest;
    group.uses = calloc(count, sizeof(*group.uses));
    group.next_off = calloc(count, sizeof(*group.next_off));
    group.bytes = calloc(count, sizeof(*group.bytes));
    int ret = group.uses && group.next_off && group.bytes ? 0 : -ENOMEM;
    if (ret == 0 && !reads) {
        ret = claim_tall_group(walk, &group);
    } else if (ret == 0) {
        for (size_t t = 0; t < count; t++) {
            take_table(walk, &tables[t], &reads[t], &digest);
            if (!tables[t].skip && !tables[t].empty)
                group.bytes[t] = reads[t].buf;
        }
        ret = claim_rows(walk, &group, 0, walk->geo.l2_entries);
    }
    free(group.uses);
    free(group.next_off);
    free(group.bytes);
    return ret;
}

static size_t group_size(const struct walk *walk, size_t first)
{
    const struct table_set *set = &walk->tables;
    size_t end = first + 1;
    while (end < set->count && set->items[end].l1_idx == set->items[first].l1_idx)
        end++;
    return end - first;
}

static bool table_place(const struct walk *walk, const void *arg, size_t item, uint64_t *host_off)
{
    (void)arg;
    *host_off = walk->tables.items[item].host_off;
    return true;
}

static int use_group(
    struct walk *walk, void *arg, size_t first, size_t count, const struct io_read_req *reads)
{
    struct table *tables = &walk->tables.items[first];
    struct l2_digest digest;
    int ret = 0;
    (void)arg;
    if (count > 1) {
        ret = claim_group(walk, tables, count, reads);
    } else {
        take_table(walk, tables, reads, &digest);
        if (!tables->skip && !tables->empty)
            ret = claim_single(walk, tables, reads->buf, &digest);
    }
    return ret < 0 ? ret : walk_pause(walk, (uint64_t)count * walk->geo.cluster_size);
}

int walk_l2_tables(struct walk *walk)
{
    const struct table_set *set = &walk->tables;
    for (size_t i = 0; walk->options->no_fast_paths && i < set->count; i++)
        set->items[i].odd = true;
    struct stream stream = {
        .count = set->count, .place = table_place, .together = group_size, .use = use_group};
    int ret = walk_stream(walk, &stream);
    if (!census_next_mismatch(walk->census, 0, &walk->first_mismatch))
        walk->first_mismatch = UINT64_MAX;
    return ret;
}
