/* SPDX-License-Identifier: MIT
 *
 * L2 entries that may have lost their cluster; see repair_l2.h. */
#include <stdlib.h>

#include "repair_l2.h"

uint64_t l2_neighbour(const struct repair *repair, const struct table *table, uint32_t idx)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    uint64_t raw;
    if (idx >= geo->l2_entries ||
        plan_peek(&repair->plan, table->host_off + (uint64_t)idx * geo->l2_entry_size, &raw) < 0 ||
        (raw & QCOW2_ENTRY_COMPRESSED))
        return 0;
    uint64_t off = raw & QCOW2_OFFSET_MASK;
    return cluster_aligned(geo, off) && off < repair->walk->file_size ? off : 0;
}

bool l2_continues(const struct repair *repair, const struct place *place, uint64_t raw)
{
    uint32_t size = repair->walk->geo.cluster_size;
    uint64_t off = raw & QCOW2_OFFSET_MASK;
    return off > size && (l2_neighbour(repair, place->table, place->idx - 1) == off - size ||
                             l2_neighbour(repair, place->table, place->idx + 1) == off + size);
}

bool l2_in_step(const struct repair *repair, const struct place *place, uint64_t raw)
{
    enum { IN_ROW = 3 };
    uint64_t own = raw & QCOW2_OFFSET_MASK;
    for (uint32_t at = 0; at < IN_ROW; at++) {
        uint64_t row[IN_ROW];
        for (uint32_t i = 0; i < IN_ROW; i++)
            row[i] = i == at ? own : l2_neighbour(repair, place->table, place->idx - at + i);
        if (row[0] != 0 && row[1] > row[0] && row[2] > row[1] && row[1] - row[0] == row[2] - row[1])
            return true;
    }
    return false;
}

static bool is_place(const struct repair *repair, const struct finding *f)
{
    const struct table *table = table_find(&repair->walk->tables, f->host_off);
    switch (f->check) {
    case CHECK_l2_entry_into_metadata:
        /* Of an empty table and guest data it is as likely the L1 entry that is wrong. */
        return !(table && table->empty) && !repair_goes_on(repair, f) &&
               !repair_on_nonsense(repair, f);
    case CHECK_l2_entry_unaligned:
    case CHECK_l2_entry_outside:
    case CHECK_l2_entry_shared:
    case CHECK_l2_compressed_outside:
    case CHECK_l2_subcluster_unallocated:
    case CHECK_l2_copied_unallocated:
        return true;
    default:
        return false;
    }
}

static bool is_on_bitmap(const struct repair *repair, const struct finding *f)
{
    uint64_t cluster = cluster_of(&repair->walk->geo, f->host_off);
    return f->check == CHECK_l2_entry_into_metadata &&
           area_is_bitmap(walk_area_at(repair->walk, cluster, NULL));
}

static int compare_places(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    return (x->entry_off > y->entry_off) - (x->entry_off < y->entry_off);
}

static size_t collect(const struct repair *repair, struct place *places)
{
    size_t count = 0, kept = 0;
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (!is_place(repair, f))
            continue;
        struct place place = {
            .check = f->check,
            .table = table_find(&repair->walk->tables, f->table_off),
            .idx = (uint32_t)f->index,
            .entry_off = repair_entry_off(repair, f),
            .host_off = f->host_off,
            .length = f->length,
            .on_bitmap = is_on_bitmap(repair, f),
        };
        if (repair_was_cut_off(repair, f->host_off))
            continue;
        if (repair->walk->geo.extended_l2)
            plan_peek(&repair->plan, place.entry_off + 8, &place.bitmap);
        if (!place.table || plan_peek(&repair->plan, place.entry_off, &place.raw) < 0)
            continue;
        if ((place.raw & QCOW2_OFFSET_MASK) == 0) /* it claims nothing */
            place.host_off = place.length = 0;
        places[count++] = place;
    }
    if (count > 0)
        qsort(places, count, sizeof(*places), compare_places);
    for (size_t i = 0; i < count; i++) {
        if (kept == 0 || places[kept - 1].entry_off != places[i].entry_off)
            places[kept++] = places[i];
    }
    return kept;
}

/* A compressed cluster that decodes is what it says it is: who shares it is wrong. */
static bool proves_itself(const struct repair *repair, const struct place *place)
{
    uint8_t bytes[16] = {0};
    struct qcow2_l2_entry e;
    store_be64(bytes, place->raw);
    qcow2_l2_decode(&repair->walk->geo, bytes, &e);
    bool inside =
        place->check == CHECK_l2_entry_shared || place->check == CHECK_l2_entry_into_metadata;
    return e.kind == QCOW2_L2_COMPRESSED && inside && repair_decodes(repair, &e);
}

bool l2_share(const struct place *a, const struct place *b)
{
    return a->check == CHECK_l2_entry_shared && b->check == CHECK_l2_entry_shared &&
           ranges_overlap(a->host_off, a->length, b->host_off, b->length);
}

/* What is stored for the shared cluster are the references of the others, and would not be without
 * any one of these: this entry is the one that is not counted. */
static bool is_uncounted(
    const struct repair *repair, const struct place *places, size_t count, size_t me)
{
    uint64_t stored, total = 0, refs = places[me].table->refs;
    bool only = true;
    if (!walk_stored(repair->walk, cluster_of(&repair->walk->geo, places[me].host_off), &stored))
        return false;
    for (size_t i = 0; i < count; i++) {
        if (!l2_share(&places[i], &places[me]))
            continue;
        total += places[i].table->refs;
        only &= i == me || places[i].table->refs != refs;
    }
    return only && total == stored + refs;
}

/* Of two that share a cluster the one that goes on with its neighbours is right, or whose data
 * decodes, or that is counted. */
static void find_roots(const struct repair *repair, struct place *places, size_t count)
{
    enum { MOST = 1000 }; /* each is compared with each */
    for (size_t i = 0; count <= MOST && i < count; i++) {
        struct place *p = &places[i];
        bool plain = p->check == CHECK_l2_entry_shared && !(p->raw & QCOW2_ENTRY_COMPRESSED);
        p->in_step = plain && l2_in_step(repair, p, p->raw);
        p->rooted = p->in_step || (plain && l2_continues(repair, p, p->raw));
    }
    for (size_t i = 0; count <= MOST && i < count; i++) {
        size_t sure = 0, sharing = 0, in_step = 0;
        for (size_t k = 0; k < count; k++) {
            bool same = l2_share(&places[k], &places[i]);
            sharing += same;
            places[i].taken |=
                same && places[k].proven && i != k && places[k].host_off == places[i].host_off;
            sure += same && (places[k].rooted || places[k].proven);
            in_step += same && (places[k].proven || places[k].in_step);
        }
        places[i].uprooted =
            !places[i].rooted && !places[i].proven && sharing > 1 &&
            (sure + 1 == sharing || (sure == 0 && is_uncounted(repair, places, count, i)));
        places[i].by_one = sure > 0 && in_step == 0;
    }
}

static size_t count_mirrored(const struct place *places, size_t count, const struct table *table)
{
    size_t mirrored = 0;
    for (size_t i = 0; i < count; i++)
        mirrored += places[i].mirrored && places[i].table == table;
    return mirrored;
}

/* A table overwritten with another one, or with L1 entries in each other's place, shares the same
 * entries with it: then no single one was damaged, and what neighbours and bits say of it is worth
 * nothing. */
static void find_mirrored(struct place *places, size_t count)
{
    enum { MOST = 1000, SINGLE = 1 };
    for (size_t i = 0; count <= MOST && i < count; i++) {
        for (size_t k = 0; k < count && !places[i].mirrored; k++)
            places[i].mirrored =
                places[i].check == CHECK_l2_entry_shared &&
                places[k].check == CHECK_l2_entry_shared && places[i].table != places[k].table &&
                places[i].idx == places[k].idx && places[i].host_off == places[k].host_off;
    }
    for (size_t i = 0; count <= MOST && i < count; i++) {
        if (places[i].check == CHECK_l2_entry_shared &&
            count_mirrored(places, count, places[i].table) > SINGLE)
            places[i].rooted = true; /* it stays */
    }
}

size_t l2_find_places(const struct repair *repair, struct place *places)
{
    size_t count = collect(repair, places);
    for (size_t i = 0; i < count; i++)
        places[i].proven = proves_itself(repair, &places[i]);
    find_roots(repair, places, count);
    find_mirrored(places, count);
    return count;
}
