/* SPDX-License-Identifier: MIT
 *
 * L2 entries that may have lost their cluster; see repair_l2.h. */
#include <errno.h>
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

int l2_find_places(const struct repair *repair, struct places *places)
{
    places->items = calloc(repair->findings.count + 1, sizeof(*places->items));
    if (!places->items)
        return -ENOMEM;
    places->count = collect(repair, places->items);
    for (size_t i = 0; i < places->count; i++)
        places->items[i].proven = proves_itself(repair, &places->items[i]);
    return l2_judge_shared(repair, places);
}

void l2_release_places(struct places *places)
{
    free(places->items);
    free(places->shared);
}
