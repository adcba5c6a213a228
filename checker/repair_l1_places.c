/* SPDX-License-Identifier: MIT
 *
 * Which L1 entries may have lost their L2 table; see repair_l1.h. */
#include <stdlib.h>

#include "repair_l1.h"

static bool is_place(const struct repair *repair, enum check_id check)
{
    switch (check) {
    case CHECK_l1_entry_unaligned:
    case CHECK_l1_entry_outside:
    case CHECK_l1_entry_into_metadata:
    case CHECK_l2_table_implausible:
    case CHECK_l1_flags_without_table:
    case CHECK_l1_entry_shared:
    case CHECK_l1_entry_into_data:
        return true;
    case CHECK_l1_hole:
        return repair->lossy;
    default:
        return false;
    }
}

static void add_place(struct match *m, const struct place *place)
{
    for (size_t i = 0; i < m->place_count; i++) {
        if (m->places[i].entry_off == place->entry_off)
            return;
    }
    if (m->place_count < MAX_PLACES)
        m->places[m->place_count++] = *place;
}

/* Behind the last entry that the disk needs there is VM state, or nothing that could be lost. */
static bool holds_nothing(const struct repair *repair, const struct finding *f)
{
    const struct tree *tree = &repair->walk->trees[f->tree];
    return tree->disk_size_known && tree->vm_state_size == 0 &&
           f->index >= l1_entries_for(&repair->walk->geo, tree->disk_size);
}

/* Of a bitmap and a table it is as likely the bitmap that is wrong: what lies there tells. */
static bool is_on_bitmap(const struct repair *repair, const struct finding *f)
{
    const struct walk *walk = repair->walk;
    enum area_kind area = walk_area_at(walk, cluster_of(&walk->geo, f->host_off), NULL);
    return f->check == CHECK_l1_entry_into_metadata && area_is_bitmap(area) &&
           !repair_names_no_table(repair, f->host_off);
}

bool repair_names_no_table(const struct repair *repair, uint64_t host_off)
{
    struct walk *walk = repair->walk;
    struct l2_look look;
    return !walk_look_at_l2(walk, cluster_of(&walk->geo, host_off), &look) ||
           look.named <= look.odd + look.metadata;
}

static void add_found_places(struct match *m)
{
    const struct repair *repair = m->repair;
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        struct place place = {.check = f->check, .tree = f->tree, .l1_idx = (uint32_t)f->index};
        if (!is_place(repair, f->check) || is_on_bitmap(repair, f) ||
            repair_was_cut_off(repair, f->host_off) || repair_on_nonsense(repair, f) ||
            holds_nothing(repair, f))
            continue;
        place.entry_off = repair_entry_off(repair, f);
        if (plan_peek(&repair->plan, place.entry_off, &place.raw) == 0)
            add_place(m, &place);
    }
}

/* One of the lost tables has it for data. */
static bool is_their_data(const struct match *m, uint64_t host_off)
{
    const struct qcow2_geometry *geo = &m->repair->walk->geo;
    for (size_t k = 0; k < m->candidate_count; k++) {
        for (size_t at = 0; at < geo->cluster_size; at += geo->l2_entry_size) {
            uint64_t raw = load_be64(m->candidates[k].bytes + at);
            if (!(raw & QCOW2_ENTRY_COMPRESSED) && (raw & QCOW2_OFFSET_MASK) == host_off)
                return true;
        }
    }
    return false;
}

/* An entry that names zeros which are somebody's data is as good as an empty one. */
static bool is_hole(const struct match *m, uint64_t raw)
{
    const struct walk *walk = m->repair->walk;
    const struct table *table = table_find(&walk->tables, raw & QCOW2_OFFSET_MASK);
    if (raw == 0 || !table || table->skip || !table->empty || table->refs != 1)
        return raw == 0;
    return census_get(walk->census, cluster_of(&walk->geo, table->host_off)).conflict ||
           is_their_data(m, table->host_off);
}

/* Where holes are so many that the check tells none, some may still have something for them. */
static void add_holes(struct match *m)
{
    const struct walk *walk = m->repair->walk;
    for (size_t t = 0; t < walk->tree_count; t++) {
        const struct tree *tree = &walk->trees[t];
        uint64_t end = l1_entries_for(&walk->geo, tree->disk_size);
        end = end < tree->l1_size ? end : tree->l1_size;
        for (uint64_t i = 0; tree->usable && i < end && i < MAX_HOLES; i++) {
            struct place place = {.check = CHECK_l1_hole, .tree = (int)t, .l1_idx = (uint32_t)i};
            place.entry_off = tree->l1_off + i * 8;
            if (plan_peek(&m->repair->plan, place.entry_off, &place.raw) < 0 ||
                !is_hole(m, place.raw))
                continue;
            place.raw = 0; /* what it says speaks for nothing */
            add_place(m, &place);
        }
    }
}

/* Every entry of a disk that names the table. */
static void add_entries(struct match *m, const struct table *table, const struct place *like)
{
    const struct walk *walk = m->repair->walk;
    for (size_t t = 0; t < walk->tree_count; t++) {
        const struct tree *tree = &walk->trees[t];
        struct place place = *like;
        place.tree = (int)t;
        place.l1_idx = table->l1_idx;
        place.entry_off = tree->l1_off + table->l1_idx * UINT64_C(8);
        if (tree->usable && table->l1_idx < tree->l1_size &&
            plan_peek(&m->repair->plan, place.entry_off, &place.raw) == 0 &&
            (place.raw & QCOW2_OFFSET_MASK) == table->host_off)
            add_place(m, &place);
    }
}

/* What makes no sense in the table is what was cut off with the file. */
static bool was_cut_off(const struct match *m, const struct table *table)
{
    const struct walk *walk = m->repair->walk;
    uint8_t *bytes = repair_memory(m->repair, malloc(walk->geo.cluster_size));
    uint64_t cut = 0;
    if (bytes && io_read_padded(walk->io, table->host_off, bytes, walk->geo.cluster_size) == 0) {
        for (uint32_t i = 0; i < walk->geo.l2_entries; i++) {
            struct qcow2_l2_entry e;
            qcow2_l2_decode(&walk->geo, bytes + (size_t)i * walk->geo.l2_entry_size, &e);
            cut += e.kind >= QCOW2_L2_ZERO_ALLOC && repair_was_cut_off(m->repair, e.host_off);
        }
    }
    free(bytes);
    return cut >= table->absurd;
}

/* An entry may name what is none of its tables. */
static void add_doubtful(struct match *m)
{
    const struct walk *walk = m->repair->walk;
    struct place like = {.check = CHECK_l2_table_implausible};
    for (size_t i = 0; i < walk->tables.count; i++) {
        const struct table *table = &walk->tables.items[i];
        if (!table->skip && !table->elsewhere && plan_doubts(table) && !was_cut_off(m, table))
            add_entries(m, table, &like);
    }
}

/* Or guest data. */
static void add_fakes(struct match *m)
{
    const struct walk *walk = m->repair->walk;
    struct place like = {.check = CHECK_l1_entry_into_data, .on_data = true};
    for (size_t i = 0; m->repair->fake_tables && i < walk->tables.count; i++) {
        if (walk->tables.items[i].rather_data)
            add_entries(m, &walk->tables.items[i], &like);
    }
}

/* With more references to a table than are counted, one of them may be wrong. */
static void add_crowded(struct match *m)
{
    const struct walk *walk = m->repair->walk;
    struct place like = {.check = CHECK_l1_entry_shared, .crowded = true};
    for (size_t i = 0; i < walk->tables.count; i++) {
        const struct table *table = &walk->tables.items[i];
        uint64_t cluster = cluster_of(&walk->geo, table->host_off);
        if (!table->skip && census_get(walk->census, cluster).balance < 0)
            add_entries(m, table, &like);
    }
}

void match_add_places(struct match *m)
{
    add_fakes(m);
    add_found_places(m);
}

void match_add_doubtful(struct match *m)
{
    add_doubtful(m);
    add_crowded(m);
    add_holes(m);
}
