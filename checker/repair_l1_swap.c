/* SPDX-License-Identifier: MIT
 *
 * Two L1 entries of one disk that stand in each other's place.  Nothing is missing then, and no
 * table is lost: it is other disks that tell, by having those very tables, or tables with the same
 * clusters, at the places where these belong. */
#include <errno.h>
#include <stdlib.h>

#include "repair_l1.h"

enum { MAX_SUSPECTS = 16, MAX_TREES = 1024 };

struct suspect {
    uint32_t l1_idx;
    uint64_t raw;
    struct candidate table;
};

/* At most so many different values. */
struct few {
    uint64_t values[MAX_SUSPECTS];
    size_t count;
};

struct swap_search {
    struct match *m;
    struct few l1_indices, table_offs; /* about which something was found */
    int tree;
    struct suspect items[MAX_SUSPECTS];
    size_t count;
};

static bool has(const struct few *few, uint64_t value)
{
    for (size_t i = 0; i < few->count; i++) {
        if (few->values[i] == value)
            return true;
    }
    return false;
}

static void add(struct few *few, uint64_t value)
{
    if (few->count < MAX_SUSPECTS && !has(few, value))
        few->values[few->count++] = value;
}

/* Tables that are used at another place, too, or whose clusters are. */
static void find_suspects(struct swap_search *s)
{
    const struct repair *repair = s->m->repair;
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (f->check != CHECK_l1_entry_shared && f->check != CHECK_l2_entry_shared)
            continue;
        add(&s->l1_indices, f->guest_off / repair->walk->geo.l2_span);
        add(&s->table_offs, f->check == CHECK_l1_entry_shared ? f->host_off : f->table_off);
    }
}

static int add_suspect(struct swap_search *s, uint64_t l1_idx)
{
    struct walk *walk = s->m->repair->walk;
    uint64_t off = match_table_at(s->m, s->tree, l1_idx);
    struct suspect *item = &s->items[s->count];
    if (off == 0 || !has(&s->table_offs, off) ||
        plan_peek(&s->m->repair->plan, walk->trees[s->tree].l1_off + l1_idx * 8, &item->raw) < 0)
        return 0;
    item->l1_idx = (uint32_t)l1_idx;
    item->table = (struct candidate){.host_off = off, .bytes = malloc(walk->geo.cluster_size)};
    if (!item->table.bytes)
        return -ENOMEM;
    walk_read_again(walk, off, item->table.bytes, walk->geo.cluster_size);
    match_look_closer(s->m->repair, &item->table);
    s->count++;
    return 0;
}

/* How many other disks have it, or one like it, at that place. */
static size_t count_at(struct swap_search *s, const struct suspect *item, uint32_t l1_idx)
{
    const struct walk *walk = s->m->repair->walk;
    struct place place = {.tree = s->tree, .l1_idx = l1_idx};
    if (item->table.last >= tree_legal_entries(walk, &walk->trees[s->tree], l1_idx))
        return 0;
    return match_count_disks(s->m, &place, &item->table);
}

/* With one write of a sector: between two of them both entries would name one table, without the
 * counts for that. */
static int swap(struct swap_search *s, const struct suspect *a, const struct suspect *b)
{
    struct plan *plan = &s->m->repair->plan;
    uint64_t l1_off = s->m->repair->walk->trees[s->tree].l1_off, start = l1_off + a->l1_idx * 8;
    size_t length = (size_t)(b->l1_idx - a->l1_idx + 1) * 8;
    uint8_t *bytes = plan_writable(plan, start) ? malloc(length) : NULL;
    if (!bytes)
        return plan_writable(plan, start) ? -ENOMEM : 0;
    int ret = io_read_padded(s->m->repair->io, start, bytes, length);
    store_be64(bytes, b->raw);
    store_be64(bytes + length - 8, a->raw);
    if (ret == 0)
        ret = plan_remark(plan,
            "L1 entries %u and %u of %s stand in each other's place, as other disks tell",
            a->l1_idx, b->l1_idx, s->tree == TREE_ACTIVE ? "the disk" : "a snapshot");
    if (ret < 0) {
        free(bytes);
        return ret;
    }
    plan->needs_mark = true;
    return plan_data(plan, PHASE_SWITCH, CHECK_l1_entry_shared, start, bytes, length);
}

static bool in_one_sector(const struct swap_search *s, uint32_t a_idx, uint32_t b_idx)
{
    uint64_t l1_off = s->m->repair->walk->trees[s->tree].l1_off;
    return (l1_off + a_idx * UINT64_C(8)) / QCOW2_SECTOR_BYTES ==
           (l1_off + b_idx * UINT64_C(8)) / QCOW2_SECTOR_BYTES;
}

static int compare_suspects(const void *a, const void *b)
{
    const struct suspect *x = a, *y = b;
    return (x->l1_idx > y->l1_idx) - (x->l1_idx < y->l1_idx);
}

/* Of two disks that disagree each may be wrong: two more must say the same. */
static bool swapped(struct swap_search *s, const struct suspect *a, const struct suspect *b)
{
    enum { MAJORITY = 2 };
    return in_one_sector(s, a->l1_idx, b->l1_idx) && a->table.host_off != b->table.host_off &&
           count_at(s, a, b->l1_idx) >= MAJORITY && count_at(s, b, a->l1_idx) >= MAJORITY &&
           count_at(s, a, a->l1_idx) == 0 && count_at(s, b, b->l1_idx) == 0;
}

/* One pair a round. */
static int swap_pair(struct swap_search *s)
{
    for (size_t i = 0; i < s->count; i++) {
        for (size_t k = i + 1; k < s->count; k++) {
            if (swapped(s, &s->items[i], &s->items[k]))
                return swap(s, &s->items[i], &s->items[k]);
        }
    }
    return 0;
}

static int search_tree(struct swap_search *s)
{
    int ret = 0;
    s->count = 0;
    for (size_t i = 0; ret == 0 && i < s->l1_indices.count; i++)
        ret = add_suspect(s, s->l1_indices.values[i]);
    qsort(s->items, s->count, sizeof(s->items[0]), compare_suspects);
    if (ret == 0)
        ret = swap_pair(s);
    for (size_t i = 0; i < s->count; i++)
        free(s->items[i].table.bytes);
    return ret;
}

int match_swap_back(struct match *m)
{
    const struct walk *walk = m->repair->walk;
    struct swap_search s = {.m = m};
    int ret = 0;
    find_suspects(&s);
    for (size_t t = 0; s.l1_indices.count > 1 && ret == 0 && m->repair->plan.count == 0 &&
                       t < walk->tree_count && t < MAX_TREES;
         t++) {
        s.tree = (int)t;
        ret = search_tree(&s);
    }
    return ret;
}
