/* SPDX-License-Identifier: MIT
 *
 * Leaks are harmless only if nothing lost explains them.  This stage looks into leaked clusters for
 * what may be a lost L2 table, L1 table or snapshot table: every entry makes sense, and what it
 * points to is leaked as well. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "orphan.h"

struct orphan *orphan_find(const struct orphan_list *list, uint64_t cluster)
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

/* ---- tables that bring back nothing ---- */

/* The entry's cluster came back with the table. */
static bool brings_back(
    const struct walk *walk, const uint8_t *table, size_t idx, struct qcow2_l2_entry *e)
{
    qcow2_l2_decode(&walk->geo, table + idx * walk->geo.l2_entry_size, e);
    return e->kind > QCOW2_L2_ZERO_ALLOC &&
           orphan_missed(walk, cluster_of(&walk->geo, e->host_off));
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
    uint64_t data_bytes = 0, tables = 0, named = 0;
    if (load_be64(bytes) & QCOW2_L1_RESERVED)
        return;
    for (int pass = 0; pass < 2; pass++) {
        for (size_t at = 0; at < walk->geo.cluster_size; at += 8) {
            uint64_t child_off = load_be64(bytes + at) & QCOW2_OFFSET_MASK;
            if (child_off == 0)
                continue;
            struct orphan *child = orphan_find(list, cluster_of(&walk->geo, child_off));
            enum area_kind area = walk_area_at(walk, cluster_of(&walk->geo, child_off), NULL);
            /* A pointer that went wrong takes one of the tables for an L1 table; another one may
             * have no data behind it. */
            bool table = child || area == AREA_L2_TABLE;
            orphan->names_orphans |= child && child != orphan;
            if (child == orphan || (!table && area != AREA_L1_TABLE &&
                                       !walk_leaked(walk, cluster_of(&walk->geo, child_off))))
                return; /* in the first pass only: nothing was changed yet */
            named++;
            tables += table;
            if (pass == 1 && child) {
                child->explained = true;
                data_bytes += child->data_bytes;
            }
        }
        /* Guest data that looks like a table may hang on an L2 table, too. */
        if (tables == 0 || tables * 2 < named)
            return;
    }
    orphan->kind = AREA_L1_TABLE;
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
           walk_is_text(s.name, s.name_len);
}

/* The first snapshot was lost with it.  Otherwise the disks are there, and somebody has a copy. */
static bool has_lost_snapshot(const struct walk *walk, const uint8_t *bytes)
{
    return walk_leaked(walk, cluster_of(&walk->geo, load_be64(bytes)));
}

static void show_orphan(struct walk *walk, const struct orphan *orphan)
{
    struct subject subject = {
        .kind = OBJECT_ORPHAN,
        .tree = TREE_NONE,
        .has_host = true,
        .host_off = orphan->cluster << walk->geo.cluster_bits,
        .length = walk->geo.cluster_size,
        .orphan = {.kind = orphan->kind,
            .data_bytes = orphan->data_bytes,
            .copy = orphan->is_copy,
            .left = orphan->left},
    };
    walk_show(walk, &subject);
}

/* ---- the search ---- */

/* The first sectors tell most guest data from an L2 table. */
static void look_first(struct walk *walk, void *arg, struct leak *leak, const uint8_t *bytes)
{
    struct l2_look look;
    (void)arg;
    leak->snapshot_table = looks_like_snapshot_table(walk, bytes, orphan_probe_bytes(walk));
    leak->in_use = leak->snapshot_table && !has_lost_snapshot(walk, bytes);
    if (orphan_look_at_entries(walk, bytes, orphan_probe_bytes(walk), &look))
        leak->next_off = leak->cluster << walk->geo.cluster_bits;
}

static void look_for_l2(struct walk *walk, void *arg, struct leak *leak, const uint8_t *bytes)
{
    struct l2_look look;
    (void)arg;
    leak->l2_table = orphan_is_lost_l2(walk, leak->cluster << walk->geo.cluster_bits, bytes, &look);
    leak->data_bytes = look.orphaned << walk->geo.cluster_bits;
    leak->zeros = leak->l2_table && may_bring_zeros(walk, bytes, &leak->next_off);
}

static void look_at_data(struct walk *walk, void *arg, struct leak *leak, const uint8_t *bytes)
{
    (void)arg;
    leak->zeros = walk_bytes_zero(bytes, orphan_probe_bytes(walk));
}

static int keep_l2(struct walk *walk, void *arg, struct leak *leak)
{
    struct orphan orphan = {
        .cluster = leak->cluster, .data_bytes = leak->data_bytes, .kind = AREA_L2_TABLE};
    int ret = 0;
    if (leak->zeros)
        ret = confirm_zeros(walk, leak->cluster << walk->geo.cluster_bits, &leak->zeros);
    if (ret < 0)
        return ret;
    if (leak->l2_table && !leak->zeros)
        return add(arg, &orphan);
    orphan.kind = AREA_SNAPSHOT_TABLE;
    orphan.data_bytes = 0;
    orphan.in_use = leak->in_use;
    return leak->snapshot_table ? add(arg, &orphan) : 0;
}

static int find_l2_tables(struct walk *walk, struct orphan_list *list)
{
    struct leak_search search = {
        .arg = list,
        .looks = {{orphan_probe_bytes(walk), look_first}, {walk->geo.cluster_size, look_for_l2},
            {orphan_probe_bytes(walk), look_at_data}},
        .end = keep_l2,
    };
    return walk_search_leaks(walk, &search);
}

static bool orphan_place(const struct walk *walk, const void *arg, size_t item, uint64_t *host_off)
{
    const struct orphan_list *list = arg;
    *host_off = list->items[item].cluster << walk->geo.cluster_bits;
    return list->items[item].kind == AREA_L2_TABLE;
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

struct l1_search {
    struct orphan_list *list, found;
};

static void look_for_flags(struct walk *walk, void *arg, struct leak *leak, const uint8_t *bytes)
{
    const struct l1_search *search = arg;
    if (!orphan_find(search->list, leak->cluster) && !(load_be64(bytes) & QCOW2_L1_RESERVED))
        leak->next_off = leak->cluster << walk->geo.cluster_bits;
}

static void look_for_l1(struct walk *walk, void *arg, struct leak *leak, const uint8_t *bytes)
{
    const struct l1_search *search = arg;
    struct orphan orphan = {.cluster = leak->cluster};
    recognise_l1(walk, search->list, &orphan, bytes);
    leak->l1_table = orphan.kind == AREA_L1_TABLE;
    leak->data_bytes = orphan.data_bytes;
}

static int keep_l1(struct walk *walk, void *arg, struct leak *leak)
{
    struct l1_search *search = arg;
    struct orphan orphan = {
        .cluster = leak->cluster, .data_bytes = leak->data_bytes, .kind = AREA_L1_TABLE};
    (void)walk;
    return leak->l1_table ? add(&search->found, &orphan) : 0;
}

static int compare_orphans(const void *a, const void *b)
{
    const struct orphan *x = a, *y = b;
    return (x->cluster > y->cluster) - (x->cluster < y->cluster);
}

/* Where entries of the two kinds of table differ, an L1 table does not look like an L2 table. */
static int find_other_l1(struct walk *walk, struct orphan_list *list)
{
    struct l1_search l1 = {.list = list};
    struct leak_search search = {
        .arg = &l1,
        .looks = {{QCOW2_SECTOR_BYTES, look_for_flags}, {walk->geo.cluster_size, look_for_l1}},
        .end = keep_l1,
    };
    int ret = walk_search_leaks(walk, &search);
    for (size_t i = 0; ret == 0 && i < l1.found.count; i++)
        ret = add(list, &l1.found.items[i]);
    if (l1.found.count > 0)
        qsort(list->items, list->count, sizeof(*list->items), compare_orphans);
    free(l1.found.items);
    return ret;
}

static bool has_l2(const struct orphan_list *list)
{
    bool has = false;
    for (size_t i = 0; i < list->count; i++)
        has |= list->items[i].kind == AREA_L2_TABLE;
    return has;
}

/* Of what an operation left its L1 table tells enough. */
static void show_orphans(struct walk *walk, const struct orphan_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        const struct orphan *orphan = &list->items[i];
        if (orphan->left ? orphan->kind == AREA_L1_TABLE : !orphan->in_use)
            show_orphan(walk, orphan);
        if (orphan->left || orphan->kind != AREA_L2_TABLE)
            continue;
        walk->report->data_at_risk = capped_sum(walk->report->data_at_risk, orphan->data_bytes);
        walk->orphan_tables += !orphan->explained;
    }
}

int walk_find_orphans(struct walk *walk)
{
    struct orphan_list list = {0};
    /* What was not read may refer to them: then they are not known to be leaked. */
    int ret = walk->refs_incomplete ? 0 : find_l2_tables(walk, &list);
    if (ret == 0 && has_l2(&list)) {
        ret = find_l1_tables(walk, &list);
        if (ret == 0 && (walk->geo.extended_l2 || walk->geo.data_file))
            ret = find_other_l1(walk, &list);
    }
    if (ret == 0)
        ret = orphan_find_left(walk, &list);
    if (ret == 0)
        show_orphans(walk, &list);
    free(list.items);
    return ret;
}
