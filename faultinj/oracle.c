/* SPDX-License-Identifier: MIT
 *
 * See oracle.h.  Reads header, snapshot table, every L1 and L2 table; what hangs on bitmaps is in
 * oracle_bitmap.c.  Sectors of zeros are skipped by their hash: this runs for every state. */
#include "oracle.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "oracle_impl.h"

void oracle_init(struct oracle *oracle)
{
    *oracle = (struct oracle){0};
}

void oracle_release(struct oracle *oracle)
{
    model_release(&oracle->model);
    free(oracle->clusters);
    free(oracle->copied);
    free(oracle->plain);
    codec_close(oracle->codec);
    *oracle = (struct oracle){0};
}

/* ---- claims -------------------------------------------------------------------------------- */

static const char *owner_name(unsigned owner)
{
    static const char *const names[] = {"nobody", "the header", "the refcount table",
        "a refcount block", "the active L1", "the snapshot table", "a snapshot's L1", "an L2 table",
        "guest data", "bitmaps"};
    return names[owner];
}

static bool clusters_room(struct oracle *o, uint64_t count)
{
    if (count > o->cluster_room) {
        struct host_cluster *grown = realloc(o->clusters, count * sizeof(*grown));
        if (!grown) {
            o->no_memory = true;
            return false;
        }
        o->clusters = grown;
        o->cluster_room = count;
    }
    if (count > 0)
        memset(o->clusters, 0, count * sizeof(*o->clusters));
    o->cluster_count = count;
    return true;
}

bool oracle_claim(struct oracle *o, uint64_t host_off, uint64_t length, enum owner owner,
    uint64_t place, struct breach *breach)
{
    uint64_t end;
    if (length == 0)
        return true;
    if (!range_end(host_off, length, &end) || cluster_of(&o->geo, end - 1) >= o->cluster_count)
        return o->lenient ||
               breach_note(breach, INVARIANT_OPENS, "%s at 0x%" PRIx64 " lies outside the file",
                   owner_name(owner), host_off);
    bool packed = place == PLACE_PACKED;
    for (uint64_t c = cluster_of(&o->geo, host_off); c <= cluster_of(&o->geo, end - 1); c++) {
        struct host_cluster *cluster = &o->clusters[c];
        bool shares = cluster->owner == owner && cluster->place == place &&
                      (packed || owner == OWNER_L2 || owner == OWNER_DATA);
        if (cluster->owner != OWNER_NONE && !shares && !o->lenient)
            return breach_note(breach, INVARIANT_OWNED,
                "the cluster at 0x%" PRIx64 " belongs to %s and to %s", c << o->geo.cluster_bits,
                owner_name(cluster->owner), owner_name(owner));
        cluster->owner = (uint8_t)owner;
        cluster->place = place;
        cluster->refs++;
    }
    return true;
}

static void note_copied(struct oracle *o, uint64_t cluster, uint64_t guest_cluster, bool l1)
{
    if (o->copied_count == o->copied_room) {
        size_t room = o->copied_room ? o->copied_room * 2 : 256;
        struct copied_entry *grown = realloc(o->copied, room * sizeof(*grown));
        if (!grown) {
            o->no_memory = true;
            return;
        }
        o->copied = grown;
        o->copied_room = room;
    }
    o->copied[o->copied_count++] = (struct copied_entry){cluster, guest_cluster, l1};
}

/* ---- guest content ------------------------------------------------------------------------- */

static void disk_add(struct oracle *o, struct disk_model *disk, uint64_t sector, uint64_t hash)
{
    if (hash == STATE_ZERO_HASH)
        return;
    if (disk->count == disk->room) {
        size_t room = disk->room ? disk->room * 2 : 128;
        struct guest_sector *grown = realloc(disk->list, room * sizeof(*grown));
        if (!grown) {
            o->no_memory = true;
            return;
        }
        disk->list = grown;
        disk->room = room;
    }
    disk->list[disk->count++] = (struct guest_sector){sector, hash};
}

static bool add_compressed(struct oracle *o, const struct state *state,
    const struct qcow2_l2_entry *e, struct disk_model *disk, uint64_t sector, uint64_t limit,
    struct breach *breach)
{
    if (!o->plain)
        o->plain = malloc(1 << QCOW2_MAX_CLUSTER_BITS);
    if (!o->codec && codec_open((enum qcow2_compression)o->header.compression, &o->codec) < 0)
        o->codec = NULL;
    if (!o->plain || !o->codec) {
        o->no_memory = true;
        return false;
    }
    uint64_t left = o->size_bytes - e->host_off;
    size_t length = e->length < left ? e->length : (size_t)left;
    const uint8_t *packed = state_at(state, e->host_off, length);
    int ret = packed ? codec_decode(o->codec, packed, length, o->plain, o->geo.cluster_size) : -1;
    if (ret < 0)
        return breach_note(breach, INVARIANT_DISK,
            "the compressed cluster at 0x%" PRIx64 " cannot be decoded", e->host_off);
    for (uint32_t at = 0; at < o->geo.cluster_size && sector < limit; at += STATE_SECTOR, sector++)
        disk_add(o, disk, sector, state_hash_sector(o->plain + at));
    return true;
}

static void add_plain(struct oracle *o, const struct state *state, const struct qcow2_l2_entry *e,
    struct disk_model *disk, uint64_t sector, uint64_t limit)
{
    uint32_t sectors = o->geo.cluster_size / STATE_SECTOR;
    uint64_t host = e->host_off / STATE_SECTOR;
    for (uint32_t i = 0; i < sectors && sector + i < limit; i++) {
        uint32_t sub = i * QCOW2_SUBCLUSTERS / sectors;
        if (o->geo.extended_l2 && !(e->bitmap >> sub & 1))
            continue;
        disk_add(o, disk, sector + i, state_sector_hash(state, host + i));
    }
}

/* ---- tables -------------------------------------------------------------------------------- */

struct tree_look {
    bool active;
    uint64_t limit; /* guest sectors that count as content */
    struct disk_model *disk;
};

static bool look_entry(struct oracle *o, const struct state *state, const struct tree_look *look,
    const uint8_t *bytes, uint64_t guest_cluster, struct breach *breach)
{
    struct qcow2_l2_entry e;
    qcow2_l2_decode(&o->geo, bytes, &e);
    uint64_t sector = guest_cluster * (o->geo.cluster_size / STATE_SECTOR);
    if (e.kind != QCOW2_L2_COMPRESSED && e.raw & QCOW2_L2_RESERVED && !o->lenient)
        return breach_note(breach, INVARIANT_OPENS,
            "the L2 entry of guest cluster %" PRIu64 " has reserved bits: 0x%" PRIx64,
            guest_cluster, e.raw);
    if (e.kind == QCOW2_L2_UNALLOCATED || e.kind == QCOW2_L2_ZERO_PLAIN)
        return true;
    if (e.kind == QCOW2_L2_COMPRESSED) {
        if (e.copied)
            return breach_note(breach, INVARIANT_COPIED, "a compressed entry has COPIED set");
        uint64_t left = e.host_off < o->size_bytes ? o->size_bytes - e.host_off : 1;
        uint64_t length = e.length < left ? e.length : left;
        return oracle_claim(o, e.host_off, length, OWNER_DATA, PLACE_PACKED, breach) &&
               add_compressed(o, state, &e, look->disk, sector, look->limit, breach);
    }
    bool aligned = cluster_aligned(&o->geo, e.host_off);
    bool inside = cluster_of(&o->geo, e.host_off) < o->cluster_count;
    if (o->lenient && (!aligned || !inside))
        return true;
    if (!o->lenient && (!aligned || (e.bitmap >> 32 & e.bitmap)))
        return breach_note(breach, INVARIANT_OPENS,
            "the L2 entry of guest cluster %" PRIu64 " has wrong bits: 0x%" PRIx64, guest_cluster,
            e.raw);
    if (!oracle_claim(o, e.host_off, o->geo.cluster_size, OWNER_DATA, guest_cluster, breach))
        return false;
    o->clusters[cluster_of(&o->geo, e.host_off)].active |= look->active;
    if (look->active && e.copied)
        note_copied(o, cluster_of(&o->geo, e.host_off), guest_cluster, false);
    if (e.kind == QCOW2_L2_NORMAL)
        add_plain(o, state, &e, look->disk, sector, look->limit);
    return true;
}

static bool look_l2(struct oracle *o, const struct state *state, const struct tree_look *look,
    uint64_t host_off, uint64_t l1_idx, struct breach *breach)
{
    for (uint64_t at = 0; at < o->geo.cluster_size; at += STATE_SECTOR) {
        if (state_sector_hash(state, (host_off + at) / STATE_SECTOR) == STATE_ZERO_HASH)
            continue;
        const uint8_t *bytes = state_at(state, host_off + at, STATE_SECTOR);
        for (uint32_t i = 0; i < STATE_SECTOR; i += o->geo.l2_entry_size) {
            uint64_t idx = (at + i) / o->geo.l2_entry_size;
            if (load_be64(bytes + i) != 0 &&
                !look_entry(o, state, look, bytes + i, (l1_idx << o->geo.l2_bits) + idx, breach))
                return false;
        }
    }
    return true;
}

static bool look_tree(struct oracle *o, const struct state *state, uint64_t l1_off,
    uint32_t l1_size, const struct tree_look *look, struct breach *breach)
{
    for (uint64_t i = 0; i < l1_size; i++) {
        uint64_t at = l1_off + i * 8;
        if (state_sector_hash(state, at / STATE_SECTOR) == STATE_ZERO_HASH) {
            i |= 63; /* the table is cluster-aligned, so sector-aligned */
            continue;
        }
        uint64_t entry = load_be64(state_at(state, at, 8));
        uint64_t host_off = entry & QCOW2_OFFSET_MASK;
        if (host_off == 0 && (entry == 0 || o->lenient))
            continue;
        bool wrong =
            host_off == 0 || !cluster_aligned(&o->geo, host_off) || entry & QCOW2_L1_RESERVED;
        if (o->lenient && (wrong || cluster_of(&o->geo, host_off) >= o->cluster_count))
            continue;
        if (wrong)
            return breach_note(breach, INVARIANT_OPENS,
                "L1 entry %" PRIu64 " has wrong bits: 0x%" PRIx64, i, entry);
        if (!oracle_claim(o, host_off, o->geo.cluster_size, OWNER_L2, i, breach))
            return false;
        if (look->active && entry & QCOW2_ENTRY_COPIED)
            note_copied(o, cluster_of(&o->geo, host_off), i, true);
        if (!look_l2(o, state, look, host_off, i, breach))
            return false;
    }
    return true;
}

/* ---- snapshots ----------------------------------------------------------------------------- */

static struct snapshot_model *next_snapshot(struct oracle *o)
{
    struct model *model = &o->model;
    if (model->snapshot_count == model->snapshot_room) {
        uint32_t room = model->snapshot_room + 8;
        struct snapshot_model *grown = realloc(model->snapshots, room * sizeof(*grown));
        if (!grown) {
            o->no_memory = true;
            return NULL;
        }
        memset(grown + model->snapshot_room, 0, 8 * sizeof(*grown));
        model->snapshots = grown;
        model->snapshot_room = room;
    }
    return &model->snapshots[model->snapshot_count++];
}

static bool look_snapshot(struct oracle *o, const struct state *state,
    const struct qcow2_snapshot *record, const uint8_t *bytes, struct breach *breach)
{
    struct snapshot_model *snap = next_snapshot(o);
    if (!snap)
        return false;
    /* Without the padding, which the end of the file may cut off. */
    size_t length =
        QCOW2_SNAPSHOT_HEAD_BYTES + record->extra_len + (size_t)record->id_len + record->name_len;
    snap->record_hash = state_hash_bytes(bytes + 8, length - 8, 1);
    snap->disk.count = 0;
    snap->disk.size_bytes = record->has_disk_size ? record->disk_size : o->header.size_bytes;
    uint64_t l1_bytes = record->l1_size * UINT64_C(8);
    struct tree_look look = {.limit = UINT64_MAX, .disk = &snap->disk};
    if (record->extra_len > QCOW2_MAX_SNAPSHOT_EXTRA || l1_bytes > QCOW2_MAX_L1_BYTES ||
        !cluster_aligned(&o->geo, record->l1_off) || snap->disk.size_bytes > INT64_MAX ||
        l1_entries_for(&o->geo, snap->disk.size_bytes) > record->l1_size)
        return breach_note(breach, INVARIANT_OPENS, "snapshot %" PRIu32 " does not parse",
            o->model.snapshot_count);
    return oracle_claim(
               o, record->l1_off, l1_bytes, OWNER_SNAPSHOT_L1, o->model.snapshot_count, breach) &&
           look_tree(o, state, record->l1_off, record->l1_size, &look, breach);
}

/* The record at `at`, which ends before `end`; NULL if there is none. */
static const uint8_t *record_at(
    const struct state *state, uint64_t at, uint64_t end, struct qcow2_snapshot *record)
{
    uint64_t left = at < end ? end - at : 0;
    const uint8_t *bytes = state_peek(state, at, left);
    if (!bytes || qcow2_snapshot_decode(bytes, (size_t)left, record) < 0) {
        (void)state_at(state, at, left); /* any of it could have made it one */
        return NULL;
    }
    return state_at(state, at, record->record_len < left ? record->record_len : left);
}

static bool look_snapshots(struct oracle *o, const struct state *state, struct breach *breach)
{
    uint64_t at = o->header.snapshots_off, end = o->size_bytes;
    o->model.snapshot_count = 0;
    if (o->header.snapshot_count == 0)
        return true;
    if (!cluster_aligned(&o->geo, at) || at >= end)
        return breach_note(breach, INVARIANT_OPENS, "the snapshot table is nowhere");
    for (uint32_t i = 0; i < o->header.snapshot_count; i++) {
        struct qcow2_snapshot record;
        const uint8_t *bytes = record_at(state, at, end, &record);
        if (!bytes)
            return breach_note(
                breach, INVARIANT_OPENS, "the snapshot table ends before record %" PRIu32, i);
        if (!look_snapshot(o, state, &record, bytes, breach))
            return false;
        at += record.record_len;
    }
    return oracle_claim(
        o, o->header.snapshots_off, at - o->header.snapshots_off, OWNER_SNAPSHOT_TABLE, 0, breach);
}

/* ---- the whole ----------------------------------------------------------------------------- */

static bool look_header(struct oracle *o, const struct state *state, struct breach *breach)
{
    struct qcow2_header *h = &o->header;
    const uint8_t *bytes = state_at(state, 0, STATE_SECTOR);
    o->size_bytes = state->size_bytes;
    o->cluster_count = 0;
    if (!bytes || state->size_bytes < STATE_SECTOR ||
        qcow2_header_decode(bytes, STATE_SECTOR, h) < 0 || h->magic != QCOW2_MAGIC ||
        h->version < 2 || h->version > 3 || h->incompatible & ~QCOW2_INCOMPAT_KNOWN ||
        h->incompatible & QCOW2_INCOMPAT_DATA_FILE ||
        (!o->lenient && h->incompatible & QCOW2_INCOMPAT_CORRUPT) ||
        qcow2_geometry_init(h, &o->geo) < 0)
        return breach_note(breach, INVARIANT_OPENS, "the header cannot be read");
    if (h->size_bytes > INT64_MAX || h->l1_size * UINT64_C(8) > QCOW2_MAX_L1_BYTES ||
        l1_entries_for(&o->geo, h->size_bytes) > h->l1_size || h->l1_off % o->geo.cluster_size ||
        h->snapshot_count > QCOW2_MAX_SNAPSHOTS || h->reftable_off % o->geo.cluster_size ||
        h->reftable_clusters == 0)
        return breach_note(breach, INVARIANT_OPENS, "the header's fields do not fit each other");
    o->counts_known = !(h->incompatible & QCOW2_INCOMPAT_DIRTY);
    uint64_t count = div_up(state->size_bytes, o->geo.cluster_size);
    return clusters_room(o, count) &&
           oracle_claim(o, 0, o->geo.cluster_size, OWNER_HEADER, 0, breach);
}

static bool look_refcounts(struct oracle *o, const struct state *state, struct breach *breach)
{
    uint64_t off = o->header.reftable_off;
    uint64_t length = (uint64_t)o->header.reftable_clusters << o->geo.cluster_bits;
    if (!oracle_claim(o, off, length, OWNER_REFTABLE, 0, breach))
        return false;
    for (uint64_t i = 0; i < length / 8; i++) {
        if (state_sector_hash(state, (off + i * 8) / STATE_SECTOR) == STATE_ZERO_HASH) {
            i |= 63;
            continue;
        }
        uint64_t entry = load_be64(state_at(state, off + i * 8, 8));
        bool wrong = entry & QCOW2_REFTABLE_RSVD || !cluster_aligned(&o->geo, entry);
        if (entry == 0 || (o->lenient && wrong))
            continue;
        if (wrong)
            return breach_note(
                breach, INVARIANT_OPENS, "refcount table entry %" PRIu64 " is wrong", i);
        if (!oracle_claim(o, entry, o->geo.cluster_size, OWNER_REFBLOCK, i, breach))
            return false;
    }
    return true;
}

uint64_t oracle_stored(const struct oracle *o, const struct state *state, uint64_t cluster)
{
    uint64_t idx = cluster >> o->geo.refblock_bits;
    uint64_t entry_off = o->header.reftable_off + idx * 8;
    if (idx >= ((uint64_t)o->header.reftable_clusters << o->geo.cluster_bits) / 8 ||
        !state_visible(state, entry_off, 8))
        return 0;
    uint64_t block_off = load_be64(state_at(state, entry_off, 8)) & QCOW2_REFTABLE_MASK;
    uint64_t entry = cluster & (o->geo.refblock_entries - 1);
    uint64_t in_block = ((entry << o->geo.refcount_order) / 8) & ~UINT64_C(511);
    if (block_off == 0 || !state_visible(state, block_off + in_block, 1))
        return 0;
    /* Only the entry's own sector counts as looked at. */
    const uint8_t *sector = state_at(state, block_off + in_block, STATE_SECTOR);
    uint64_t per_sector = UINT64_C(4096) >> o->geo.refcount_order;
    return qcow2_refcount_get(sector, o->geo.refcount_order, entry & (per_sector - 1));
}

static bool compare_counts(struct oracle *o, const struct state *state, struct breach *breach)
{
    for (uint64_t c = 0; o->counts_known && c < o->cluster_count; c++) {
        const struct host_cluster *cluster = &o->clusters[c];
        if (cluster->refs == 0)
            continue;
        uint64_t stored = oracle_stored(o, state, c);
        if (stored < cluster->refs)
            return breach_note(breach, stored ? INVARIANT_COUNTED : INVARIANT_OWNED,
                "the cluster at 0x%" PRIx64 " (%s) has %" PRIu32
                " references, but its stored count is %" PRIu64,
                c << o->geo.cluster_bits, owner_name(cluster->owner), cluster->refs, stored);
    }
    for (size_t i = 0; i < o->copied_count; i++) {
        const struct copied_entry *e = &o->copied[i];
        if (o->clusters[e->cluster].refs != 1)
            return breach_note(breach, INVARIANT_COPIED,
                "the active %s %" PRIu64 " has COPIED set, but its cluster at 0x%" PRIx64
                " has %" PRIu32 " references",
                e->l1 ? "L1 entry" : "L2 entry of guest cluster", e->guest_cluster,
                e->cluster << o->geo.cluster_bits, o->clusters[e->cluster].refs);
    }
    return true;
}

bool oracle_look(struct oracle *o, const struct state *state, struct breach *breach)
{
    o->copied_count = 0;
    o->model.active.count = 0;
    if (!look_header(o, state, breach) || !look_refcounts(o, state, breach))
        return false;
    struct tree_look look = {
        .active = true,
        .limit = o->header.size_bytes / STATE_SECTOR,
        .disk = &o->model.active,
    };
    o->model.active.size_bytes = o->header.size_bytes;
    return oracle_claim(
               o, o->header.l1_off, o->header.l1_size * UINT64_C(8), OWNER_L1, 0, breach) &&
           look_tree(o, state, o->header.l1_off, o->header.l1_size, &look, breach) &&
           look_snapshots(o, state, breach) && oracle_look_bitmaps(o, state, breach) &&
           (o->lenient || compare_counts(o, state, breach)) && !o->no_memory;
}
