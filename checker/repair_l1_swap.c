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
    bool swapped;
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

/* Other disks have it, or one like it, at that place. */
static bool belongs(struct swap_search *s, const struct suspect *item, uint32_t l1_idx)
{
    const struct walk *walk = s->m->repair->walk;
    struct place place = {.tree = s->tree, .l1_idx = l1_idx};
    return item->table.last < tree_legal_entries(walk, &walk->trees[s->tree], l1_idx) &&
           (match_score_disks(s->m, &place, &item->table) & (KIN | OTHER_DISK));
}

static int put(struct swap_search *s, const struct suspect *where, const struct suspect *what)
{
    struct repair *repair = s->m->repair;
    return plan_be64(&repair->plan, PHASE_SWITCH, CHECK_l1_entry_shared,
        repair->walk->trees[s->tree].l1_off + where->l1_idx * UINT64_C(8), what->raw);
}

static int swap(struct swap_search *s, struct suspect *a, struct suspect *b)
{
    struct plan *plan = &s->m->repair->plan;
    int ret = plan_remark(plan,
        "L1 entries %u and %u of %s stand in each other's place, as other disks tell", a->l1_idx,
        b->l1_idx, s->tree == TREE_ACTIVE ? "the disk" : "a snapshot");
    if (ret == 0)
        ret = put(s, a, b);
    if (ret == 0)
        ret = put(s, b, a);
    a->swapped = b->swapped = plan->needs_mark = true;
    return ret;
}

static int swap_pairs(struct swap_search *s)
{
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < s->count; i++) {
        struct suspect *a = &s->items[i];
        if (a->swapped || belongs(s, a, a->l1_idx))
            continue;
        for (size_t k = i + 1; ret == 0 && k < s->count; k++) {
            struct suspect *b = &s->items[k];
            if (!b->swapped && a->table.host_off != b->table.host_off && belongs(s, a, b->l1_idx) &&
                belongs(s, b, a->l1_idx) && !belongs(s, b, b->l1_idx)) {
                ret = swap(s, a, b);
                break;
            }
        }
    }
    return ret;
}

int match_swap_back(struct match *m)
{
    const struct walk *walk = m->repair->walk;
    struct swap_search s = {.m = m};
    int ret = 0;
    find_suspects(&s);
    for (size_t t = 0; s.l1_indices.count > 1 && ret == 0 && t < walk->tree_count && t < MAX_TREES;
         t++) {
        s.tree = (int)t;
        s.count = 0;
        for (size_t i = 0; ret == 0 && i < s.l1_indices.count; i++)
            ret = add_suspect(&s, s.l1_indices.values[i]);
        if (ret == 0)
            ret = swap_pairs(&s);
        for (size_t i = 0; i < s.count; i++)
            free(s.items[i].table.bytes);
    }
    return ret;
}
