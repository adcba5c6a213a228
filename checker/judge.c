/* SPDX-License-Identifier: MIT
 *
 * The second look: entries of L2 tables that were not plain, or whose clusters the census knows
 * something about, are shown to the checks.  By now the census is complete, so every check can be
 * told stored count, true references and other owners of the cluster. */
#include <errno.h>
#include <stdlib.h>

#include "walk.h"

/* What the census knows about the clusters an entry touches. */
struct touched {
    bool noteworthy; /* anything a check could object to */
    bool conflict;
    enum area_kind area;
    bool alone;      /* it is one cluster, which nobody else refers to */
    int64_t balance; /* of that */
    uint64_t refs;   /* all that it has; 0: not known */
};

static struct touched look_up(struct walk *walk, const struct qcow2_l2_entry *e)
{
    struct touched touched = {0};
    if (e->kind < QCOW2_L2_ZERO_ALLOC || walk->geo.data_file ||
        check_outside(&walk->view, e->host_off, e->length))
        return touched;
    uint64_t last = cluster_of(&walk->geo, e->host_off + e->length - 1);
    touched.alone = cluster_aligned(&walk->geo, e->host_off) && e->kind != QCOW2_L2_COMPRESSED;
    for (uint64_t c = cluster_of(&walk->geo, e->host_off); c <= last; c++) {
        struct census_cell cell = census_get(walk->census, c);
        touched.noteworthy |= cell.balance != 0 || cell.conflict || cell.odd;
        touched.alone &= cell.claimed && !cell.conflict;
        touched.conflict |= cell.conflict && !walk_wrongly_accused(walk, c);
        touched.balance = cell.balance;
        if (cell.conflict && touched.area == AREA_NONE)
            touched.area = walk_area_at(walk, c, NULL);
    }
    return touched;
}

/* The guest range of an entry, cut at the disk's end; all of it where VM state lies. */
static void set_guest_range(
    const struct walk *walk, const struct table *table, uint32_t idx, struct subject *subject)
{
    const struct qcow2_geometry *geo = &walk->geo;
    uint64_t disk = walk->trees[table->tree].disk_size;
    subject->guest_off = ((uint64_t)table->l1_idx << geo->l2_bits | idx) << geo->cluster_bits;
    subject->guest_len = geo->cluster_size;
    if (subject->guest_off < disk && disk - subject->guest_off < subject->guest_len)
        subject->guest_len = disk - subject->guest_off;
}

static void note_owners(struct walk *walk, const struct subject *subject)
{
    const struct qcow2_l2_entry *e = &subject->l2.entry;
    uint64_t last = cluster_of(&walk->geo, e->host_off + e->length - 1);
    for (uint64_t c = cluster_of(&walk->geo, e->host_off); c <= last; c++)
        walk_note_owner(walk, c, subject);
}

/* No other table lies at this guest position, and nothing was claimed but by who has the cluster:
 * so a cluster with one owner has the references of the table. */
static bool refs_are_known(const struct walk *walk, size_t item)
{
    const struct table_set *set = &walk->tables;
    uint32_t l1_idx = set->items[item].l1_idx;
    return !walk->options->no_fast_paths && !census_has_refused(walk->census) &&
           (item == 0 || set->items[item - 1].l1_idx != l1_idx) &&
           (item + 1 == set->count || set->items[item + 1].l1_idx != l1_idx);
}

static struct cluster_facts entry_facts(
    struct walk *walk, const struct qcow2_l2_entry *e, const struct touched *touched)
{
    const struct qcow2_geometry *geo = &walk->geo;
    uint64_t cluster = cluster_of(geo, e->host_off);
    int64_t stored = touched->balance + (int64_t)touched->refs;
    if (geo->data_file && e->kind >= QCOW2_L2_ZERO_ALLOC) /* there each is used once */
        return (struct cluster_facts){.stored_known = true, .stored = 1, .refs = 1};
    if (e->kind != QCOW2_L2_NORMAL && e->kind != QCOW2_L2_ZERO_ALLOC)
        return (struct cluster_facts){0};
    /* Metadata is claimed, too: who has a cluster alone has none of it. */
    if (!touched->alone)
        return walk_facts(walk, cluster);
    if (touched->refs == 0 || stored >= CENSUS_STORED_MAX || !census_known(walk->census, cluster))
        return walk_counts(walk, cluster, touched->balance);
    return (struct cluster_facts){
        .stored_known = true, .stored = (uint64_t)stored, .refs = touched->refs};
}

static bool bitmap_leaked(const struct walk *walk, const struct qcow2_l2_entry *e)
{
    return l2_bitmap_like_entry(walk, e) &&
           walk_leaked(walk, cluster_of(&walk->geo, e->bitmap & QCOW2_OFFSET_MASK));
}

/* Plain entries of a table that no check can tell apart: the flags, and what is known about their
 * clusters, are the same.  What is wrong with many entries is often the same. */
struct alike {
    uint64_t flags, stored, refs;
    bool stored_known;
    struct verdicts said;
};

static void show_alike(struct walk *walk, const struct subject *subject, struct alike *before)
{
    const struct cluster_facts *facts = &subject->l2.facts;
    uint64_t flags = subject->l2.entry.raw & ~QCOW2_OFFSET_MASK;
    if (flags != before->flags || facts->stored_known != before->stored_known ||
        facts->stored != before->stored || facts->refs != before->refs)
        *before = (struct alike){
            flags, facts->stored, facts->refs, facts->stored_known, {.hits = HITS_UNKNOWN}};
    walk_show_alike(walk, subject, &before->said);
}

static void judge_entry(struct walk *walk, const struct table *table, uint32_t idx,
    const struct qcow2_l2_entry *e, const struct touched *touched, struct alike *before)
{
    const struct qcow2_geometry *geo = &walk->geo;
    bool names_cluster = e->kind >= QCOW2_L2_ZERO_ALLOC;
    uint64_t entry_off = table->host_off + (uint64_t)idx * geo->l2_entry_size;
    struct subject subject = {
        .kind = OBJECT_L2_ENTRY,
        .tree = table->tree,
        .has_host = true,
        .host_off = names_cluster && !geo->data_file ? e->host_off : entry_off,
        .length = names_cluster && !geo->data_file ? e->length : geo->l2_entry_size,
        .has_table = true,
        .table_off = table->host_off,
        .index = idx,
        .weight = table->refs,
        .l2 = {.entry = *e,
            .active_refs = table->active_refs,
            .past_end = idx >= table->legal,
            .past_end_tree = table->legal_tree,
            .facts = entry_facts(walk, e, touched),
            .bitmap_leaked = bitmap_leaked(walk, e),
            .compressed_conflict = touched->conflict,
            .compressed_area = touched->area},
    };
    set_guest_range(walk, table, idx, &subject);
    if (touched->noteworthy)
        note_owners(walk, &subject);
    if (before)
        show_alike(walk, &subject, before);
    else
        walk_show(walk, &subject);
}

/* The fast path: how many entries from idx on, mapping `length` clusters in a row, lie on the disk
 * and are plain. */
static uint32_t plain_run(const struct walk *walk, const struct table *table, uint32_t idx,
    const struct qcow2_l2_entry *e, uint32_t length)
{
    if (e->kind != QCOW2_L2_NORMAL || idx >= table->legal || !l2_entry_plain(walk, e, 0))
        return 0;
    uint64_t room = (walk->view.file_size - e->host_off) >> walk->geo.cluster_bits;
    length = length < table->legal - idx ? length : table->legal - idx;
    return length < room ? length : (uint32_t)room;
}

/* `bytes` are not looked at where the table has a shape. */
static void judge_table(struct walk *walk, const struct table *table, const uint8_t *bytes)
{
    const struct qcow2_geometry *geo = &walk->geo;
    bool fast = !geo->extended_l2 && !geo->data_file && !walk->options->no_fast_paths;
    struct alike before = {.said = {.hits = HITS_UNKNOWN}};
    uint64_t refs = refs_are_known(walk, (size_t)(table - walk->tables.items)) ? table->refs : 0;
    const struct l2_shape *shape = table->shape;
    struct l2_run run = {0};
    uint32_t plain_end = 0; /* entries before it are known to be plain */
    for (uint32_t i = 0, n = 0; i < geo->l2_entries; i += n ? n : 1) {
        struct qcow2_l2_entry e;
        bool behind_right = n > 0; /* then there is something about this one */
        if (shape)
            l2_shape_entry(geo, shape, i, &run, &e);
        else
            qcow2_l2_decode(geo, bytes + (size_t)i * geo->l2_entry_size, &e);
        n = 0;
        if (e.raw == 0 && e.bitmap == 0)
            continue;
        if (fast && i >= plain_end)
            plain_end = i + plain_run(walk, table, i, &e, l2_run_at(geo, bytes, i, NULL, 0, &run));
        bool plain = i < plain_end;
        if (plain && !behind_right)
            n = (uint32_t)census_right_run(
                walk->census, cluster_of(geo, e.host_off), plain_end - i);
        if (n > 0)
            continue;
        uint64_t guest_off = ((uint64_t)table->l1_idx << geo->l2_bits | i) << geo->cluster_bits;
        struct touched touched = look_up(walk, &e);
        touched.refs = refs;
        if (walk->options->no_fast_paths || touched.noteworthy ||
            (!plain && (i >= table->legal || !l2_entry_plain(walk, &e, guest_off))))
            judge_entry(walk, table, i, &e, &touched, plain && touched.alone ? &before : NULL);
    }
}

static void judge_skipped(struct walk *walk, const struct table *table)
{
    struct subject subject = {
        .kind = OBJECT_L2_TABLE,
        .tree = table->tree,
        .has_host = true,
        .host_off = table->host_off,
        .length = walk->geo.cluster_size,
        .has_table = true,
        .table_off = walk->trees[table->tree].l1_off,
        .index = table->l1_idx,
        .guest_off = (uint64_t)table->l1_idx * walk->geo.l2_span,
        .guest_len = walk->geo.l2_span,
        .weight = table->refs,
        .l2_table = {.implausible = table->implausible,
            .absurd = table->absurd,
            .used = table->used},
    };
    walk_show(walk, &subject);
}

/* Where anything at all is wrong, every table may refer to it. */
static bool worth_a_look(const struct walk *walk, const struct table *table)
{
    bool all = census_has_conflicts(walk->census) || walk->owner_slots > 0;
    return !table->skip && !table->empty && (all || table->odd);
}

static bool judge_place(const struct walk *walk, const void *arg, size_t item, uint64_t *host_off)
{
    const struct table *table = &walk->tables.items[item];
    (void)arg;
    *host_off = table->host_off;
    return worth_a_look(walk, table) && !table->shape;
}

static void judge_one(struct walk *walk, size_t item, const struct io_read_req *read)
{
    const struct table *table = &walk->tables.items[item];
    if (table->skip)
        judge_skipped(walk, table);
    if (!worth_a_look(walk, table) || (read->length == 0 && !table->shape))
        return;
    if (read->length > 0 && read->result < 0)
        walk_read_again(walk, read->host_off, read->buf, read->length);
    walk->table_idx = item;
    judge_table(walk, table, read->buf);
}

static int judge_use(
    struct walk *walk, void *arg, size_t item, size_t count, const struct io_read_req *read)
{
    (void)arg, (void)count;
    judge_one(walk, item, read);
    return walk_pause(walk, 0);
}

/* The same of some tables in a row, which are read here. */
static void judge_part(struct walk *walk, uint64_t first, uint64_t end)
{
    for (uint64_t i = first; i < end; i++) {
        const struct table *table = &walk->tables.items[i];
        struct io_read_req read = {.host_off = table->host_off, .buf = walk->buf};
        if (judge_place(walk, NULL, i, &read.host_off))
            read.length = walk->geo.cluster_size;
        read.result = read.length ? io_read(walk->io, read.host_off, read.buf, read.length) : 0;
        judge_one(walk, i, &read);
    }
}

int walk_judge_tables(struct walk *walk)
{
    enum { PART_BYTES = 2 << 20 };
    struct stream stream = {.count = walk->tables.count, .place = judge_place, .use = judge_use};
    int ret = walk_has_parts(walk) ? walk_in_parts(walk, walk->tables.count,
                                         PART_BYTES / walk->geo.cluster_size, judge_part)
                                   : walk_stream(walk, &stream);
    walk->table_idx = walk->tables.count; /* whoever comes later is no longer the first */
    return ret;
}
