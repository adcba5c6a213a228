/* SPDX-License-Identifier: MIT
 *
 * Lost data clusters put back into the L2 entries that lost them.  As with L2 tables, only a
 * cluster of which the image says that a reference is missing is a candidate.  What speaks for one:
 * the damaged entry is one bit away from it, it continues what the neighbours map, another disk has
 * it at the same place, it decodes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "repair_l2.h"

enum evidence { NOTHING, ONLY_ONE, ONE_NEIGHBOUR, DECODES, OTHER_DISK, ONE_BIT, BOTH_NEIGHBOURS };

struct candidate {
    uint64_t raw; /* the entry as it would be, COPIED left out */
    enum evidence evidence;
    bool tie;
};

/* Nobody looks at more disks than that: of more, those whose tables lie nearest. */
enum { MOST_TWINS = 64 };

/* What is to be found for a place; `twins` are the entries that other disks have there.  The
 * neighbours map `before` and `behind`, and what lies between these is one cluster; 0: no such. */
struct search {
    const struct repair *repair;
    const struct place *place;
    uint64_t before, behind, between;
    uint64_t twins[MOST_TWINS];
    size_t twin_count;
    struct candidate best;
};

bool repair_entry_missed(
    const struct repair *repair, const struct qcow2_l2_entry *e, uint64_t own_off, uint64_t own_len)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    if (e->kind < QCOW2_L2_ZERO_ALLOC || !l2_entry_fits(repair->walk, e, 0))
        return false;
    for (uint64_t off = e->host_off & ~(uint64_t)(geo->cluster_size - 1);
         off < e->host_off + e->length; off += geo->cluster_size) {
        if ((!ranges_overlap(off, geo->cluster_size, own_off, own_len) &&
                !repair_deficit(repair, off)) ||
            walk_area_at(repair->walk, cluster_of(geo, off), NULL) != AREA_NONE)
            return false;
    }
    return e->kind != QCOW2_L2_COMPRESSED || repair_decodes(repair, e);
}

int repair_take_entry(struct repair *repair, const struct table *table, uint8_t *entry)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    struct qcow2_l2_entry e;
    uint64_t stored = 0;
    int ret = 0;
    qcow2_l2_decode(geo, entry, &e);
    for (uint64_t off = e.host_off & ~(uint64_t)(geo->cluster_size - 1);
         ret == 0 && off < e.host_off + e.length; off += geo->cluster_size)
        ret = repair_take(repair, off, table->refs);
    walk_stored(repair->walk, cluster_of(geo, e.host_off), &stored);
    if (e.kind != QCOW2_L2_COMPRESSED && table->active_refs > 0 && stored == 1)
        store_be64(entry, e.raw | QCOW2_ENTRY_COPIED);
    return ret;
}

int repair_put_entry(struct repair *repair, enum check_id why, const struct table *table,
    uint64_t entry_off, const uint8_t *entry)
{
    unsigned size = repair->walk->geo.l2_entry_size;
    uint8_t bytes[16] = {0};
    memcpy(bytes, entry, size);
    int ret = repair_take_entry(repair, table, bytes);
    return ret < 0 ? ret : plan_bytes(&repair->plan, PHASE_SWITCH, why, entry_off, bytes, size);
}

/* Names what the entry names already, with other flags: only its own bits tell that. */
static bool same_place(const struct place *place, uint64_t raw)
{
    uint64_t flags = QCOW2_ENTRY_COPIED | QCOW2_ENTRY_ZERO;
    return ((raw ^ place->raw) & ~flags) == 0;
}

/* Tables are sorted by place, then by where they lie. */
static void find_twins(struct search *s)
{
    const struct walk *walk = s->repair->walk;
    const struct table *mine = s->place->table, *table = mine;
    const struct table *first = walk->tables.items, *end = first + walk->tables.count;
    while (table > first && table[-1].l1_idx == mine->l1_idx && mine - table < MOST_TWINS / 2)
        table--;
    for (; table < end && table->l1_idx == mine->l1_idx && s->twin_count < MOST_TWINS; table++) {
        uint64_t off = table->host_off + (uint64_t)s->place->idx * walk->geo.l2_entry_size;
        if (table != mine && !table->skip &&
            plan_peek(&s->repair->plan, off, &s->twins[s->twin_count]) == 0)
            s->twin_count++;
    }
}

/* Who has the cluster already has it at this very place, on another disk: at any other one it would
 * be shared. */
static bool is_free_for(const struct search *s, const struct qcow2_l2_entry *e)
{
    const struct walk *walk = s->repair->walk;
    if (e->kind == QCOW2_L2_COMPRESSED ||
        !census_get(walk->census, cluster_of(&walk->geo, e->host_off)).claimed ||
        ranges_overlap(e->host_off, e->length, s->place->host_off, s->place->length))
        return true;
    for (size_t i = 0; i < s->twin_count; i++) {
        if (((s->twins[i] ^ e->raw) & QCOW2_OFFSET_MASK) == 0)
            return true;
    }
    return false;
}

static void propose(struct search *s, uint64_t raw, enum evidence evidence)
{
    const struct repair *repair = s->repair;
    const struct place *place = s->place;
    struct candidate *best = &s->best;
    uint8_t bytes[16] = {0};
    struct qcow2_l2_entry e;
    raw &= ~QCOW2_ENTRY_COPIED;
    /* Wherever it points, what says that it reads as zeros goes on doing so. */
    if (!((raw | place->raw) & QCOW2_ENTRY_COMPRESSED) && !repair->walk->geo.extended_l2)
        raw |= place->raw & QCOW2_ENTRY_ZERO;
    store_be64(bytes, raw);
    qcow2_l2_decode(&repair->walk->geo, bytes, &e);
    /* What another disk has there, and a bit away, needs no count if there is none. */
    /* An entry of zeros is not compressed, and no data cluster is a lost table. */
    bool zeros = !repair->walk->geo.extended_l2 && (place->raw & QCOW2_ENTRY_ZERO) &&
                 !(place->raw & (QCOW2_ENTRY_COMPRESSED | QCOW2_L2_RESERVED));
    if ((zeros && e.kind == QCOW2_L2_COMPRESSED) ||
        repair_has_at(repair, CHECK_orphan_l2_table, e.host_off))
        return;
    bool twin = evidence == OTHER_DISK && place->raw != 0 && l2_entry_fits(repair->walk, &e, 0) &&
                place->check != CHECK_l2_entry_shared && !repair_counted(repair, e.host_off) &&
                __builtin_popcountll((raw ^ place->raw) & ~QCOW2_ENTRY_COPIED) == 1;
    if (twin)
        evidence = BOTH_NEIGHBOURS;
    if (evidence < best->evidence || same_place(place, raw) ||
        (!twin && (!repair_entry_missed(repair, &e, place->host_off, place->length) ||
                      !is_free_for(s, &e))))
        return;
    if (evidence == best->evidence) {
        best->tie |= raw != best->raw;
        return;
    }
    *best = (struct candidate){.raw = raw, .evidence = evidence};
}

static void find_neighbours(struct search *s)
{
    const struct table *table = s->place->table;
    uint32_t size = s->repair->walk->geo.cluster_size;
    s->before = l2_neighbour(s->repair, table, s->place->idx - 1);
    s->behind = l2_neighbour(s->repair, table, s->place->idx + 1);
    if (s->before && s->behind == s->before + UINT64_C(2) * size)
        s->between = s->before + size;
}

static void propose_by_neighbours(struct search *s)
{
    uint32_t size = s->repair->walk->geo.cluster_size;
    if (s->between) {
        propose(s, s->between, BOTH_NEIGHBOURS);
        return;
    }
    if (s->before)
        propose(s, s->before + size, ONE_NEIGHBOUR);
    if (s->behind > size)
        propose(s, s->behind - size, ONE_NEIGHBOUR);
}

/* Where the bit leads between what both neighbours map, it is that one: if somebody has what lies
 * there, it is he who is wrong, and may be mended first. */
static void propose_by_bits(struct search *s)
{
    uint64_t raw = s->place->raw;
    if (s->between && __builtin_popcountll((raw ^ s->between) & QCOW2_OFFSET_MASK) == 1)
        return;
    for (unsigned bit = 0; (raw & QCOW2_OFFSET_MASK) && bit < 63; bit++)
        propose(s, raw ^ UINT64_C(1) << bit, ONE_BIT);
    if (!(raw & QCOW2_ENTRY_COMPRESSED))
        propose(s, raw & ~(uint64_t)(s->repair->walk->geo.cluster_size - 1), ONE_BIT);
}

static void propose_by_disks(struct search *s)
{
    for (size_t i = 0; i < s->twin_count; i++)
        propose(s, s->twins[i], OTHER_DISK);
}

/* A cluster that nobody has and that decodes holds compressed data which lost its entry; all of an
 * entry's numbers may be damaged, but where such data begins a cluster nothing else can.  Of large
 * clusters few are tried: each costs what it decodes to. */
enum { MOST_DECODED = 256 };
static void propose_by_data(struct search *s, struct missing *missing)
{
    enum { MOST_BYTES = 64 << 20, NOT_PACKED = 1 };
    const struct repair *repair = s->repair;
    unsigned bits = repair->walk->geo.cluster_bits;
    struct missing_cluster *c;
    for (size_t tried = 0; tried < MOST_DECODED && tried << bits < MOST_BYTES &&
                           (c = repair_next_missing(repair, missing, &tried)) != NULL;) {
        uint64_t raw = c->cluster << bits | QCOW2_ENTRY_COMPRESSED;
        if (c->packed == 0)
            c->packed = repair_shorten(repair, &raw) ? raw : NOT_PACKED;
        if (c->packed != NOT_PACKED)
            propose(s, c->packed, DECODES);
    }
}

/* Data that decodes is compressed, other data is not. */
static bool other_kind_fits(const struct repair *repair, const struct place *place)
{
    uint8_t bytes[16] = {0};
    struct qcow2_l2_entry packed;
    store_be64(bytes, (place->raw | QCOW2_ENTRY_COMPRESSED) & ~QCOW2_ENTRY_COPIED);
    qcow2_l2_decode(&repair->walk->geo, bytes, &packed);
    bool decodes = !check_outside(&repair->walk->view, packed.host_off, packed.length) &&
                   repair_decodes(repair, &packed);
    return decodes != !!(place->raw & QCOW2_ENTRY_COMPRESSED);
}

/* COPIED is as an entry has it that names the cluster. */
static bool copied_fits(const struct repair *repair, const struct place *place, uint64_t raw)
{
    uint64_t stored, cluster = cluster_of(&repair->walk->geo, raw & QCOW2_OFFSET_MASK);
    return place->table->active_refs == 0 || ((raw | place->raw) & QCOW2_ENTRY_COMPRESSED) ||
           !walk_stored(repair->walk, cluster, &stored) ||
           (stored == 1) == ((place->raw & QCOW2_ENTRY_COPIED) != 0);
}

/* `lost_one`: the only cluster that misses a reference, if this is the only place; else 0. */
static struct candidate find_candidate(const struct repair *repair, const struct place *place,
    uint64_t lost_one, struct missing *missing)
{
    struct search s = {.repair = repair, .place = place};
    find_twins(&s);
    find_neighbours(&s);
    propose_by_neighbours(&s);
    /* A shared entry is a valid one: only what kind of cluster it names may be in question. */
    bool shared = place->check == CHECK_l2_entry_shared;
    if (shared && !place->taken && other_kind_fits(repair, place))
        propose(&s, place->raw ^ QCOW2_ENTRY_COMPRESSED, ONE_BIT);
    else if (!shared || place->uprooted)
        propose_by_bits(&s);
    propose_by_disks(&s);
    if (s.best.evidence < DECODES && place->raw != 0 && !shared)
        propose_by_data(&s, missing);
    /* The only cluster without an owner may as well be a bitmap's, or have a wrong count: not where
     * what is read now may be right. */
    bool wrong = place->check == CHECK_l2_entry_into_metadata ||
                 place->check == CHECK_l2_entry_unaligned ||
                 (place->uprooted && copied_fits(repair, place, lost_one)) ||
                 (repair->lossy && place->check != CHECK_l2_copied_unallocated);
    if (s.best.evidence == NOTHING && lost_one && wrong &&
        (place->uprooted || !repair->walk->has_bitmaps_ext))
        propose(&s, lost_one, ONLY_ONE);
    return s.best;
}

static int put_back(struct repair *repair, const struct place *place, uint64_t raw)
{
    uint8_t bytes[16] = {0};
    store_be64(bytes, raw);
    if (repair->walk->geo.extended_l2)
        store_be64(bytes + 8, raw & QCOW2_ENTRY_COMPRESSED ? 0 : place->bitmap);
    return repair_put_entry(repair, place->check, place->table, place->entry_off, bytes);
}

/* What is left of a damaged entry, its flags, are those of one that names the cluster. */
static bool flags_fit(const struct repair *repair, const struct place *place, uint64_t raw)
{
    return !(place->raw & QCOW2_L2_RESERVED) && copied_fits(repair, place, raw);
}

static int fill_places(struct repair *repair, struct places *places)
{
    struct missing missing = {0};
    int ret = repair_find_missing(repair, places->count + MOST_DECODED, &missing);
    size_t unproven = 0;
    for (size_t i = 0; i < places->count; i++)
        unproven += !places->items[i].rooted && !places->items[i].proven;
    bool others = repair_lost_others(repair);
    bool alone = unproven == 1 && !others && !repair_has(repair, CHECK_area_shared) &&
                 !(repair->lossy && repair->counts_made);
    uint64_t lost_one = alone ? repair_only_leak(repair) : 0;
    for (size_t i = 0; ret == 0 && i < places->count; i++) {
        struct place *place = &places->items[i];
        bool shared = place->check == CHECK_l2_entry_shared;
        if (place->rooted || place->proven)
            continue;
        struct candidate best = find_candidate(repair, place, lost_one, &missing);
        if (best.evidence == NOTHING && place->table->active_refs > 0 && place->bitmap == 0 &&
            repair_is_stray_bit(repair, place->raw))
            ret = plan_be64(&repair->plan, PHASE_SWITCH, place->check, place->entry_off, 0);
        bool moves = best.evidence != ONE_BIT;
        if (best.evidence == NOTHING || best.tie ||
            (shared && moves && !l2_somebody_stays(places, place)))
            continue;
        /* What misses a reference may be what a lost table has. */
        if (others && best.evidence < ONE_BIT && !repair->lossy)
            continue;
        /* Zeros may be right: then it is the flag that is wrong. */
        if (place->check == CHECK_l2_copied_unallocated && best.evidence < BOTH_NEIGHBOURS &&
            !repair->lossy)
            continue;
        /* Of clusters that were written in turn the wrong one may lie behind its neighbour. */
        if (shared && place->by_one && !repair->lossy && !l2_continues(repair, place, best.raw) &&
            !l2_in_step(repair, place, best.raw))
            continue;
        /* That is not much: with a choice it takes --lossy, and so it does where the flags of the
         * entry are as damaged as its offset: it may have been one of zeros. */
        bool may_stay = shared ? !place->uprooted : !flags_fit(repair, place, best.raw);
        if (best.evidence <= ONE_NEIGHBOUR && may_stay && !repair->lossy)
            continue;
        /* What decodes may be guest data of that kind, where the entry does not say so. */
        if (best.evidence == DECODES && !(place->raw & QCOW2_ENTRY_COMPRESSED) && !repair->lossy)
            continue;
        /* A bit from each other are the two of them whichever is wrong.  And with flags that are
         * not those of the cluster it is two bits. */
        bool bitmaps = place->on_bitmap && best.evidence != DECODES;
        if ((bitmaps ||
                (best.evidence == ONE_BIT && !shared && !copied_fits(repair, place, best.raw))) &&
            !l2_continues(repair, place, best.raw))
            continue;
        place->moved = moves;
        ret = put_back(repair, place, best.raw);
    }
    free(missing.items);
    return ret;
}

int repair_l2(struct repair *repair)
{
    struct places places = {0};
    int ret = l2_find_places(repair, &places);
    if (ret == 0)
        ret = fill_places(repair, &places);
    l2_release_places(&places);
    return ret;
}
