/* SPDX-License-Identifier: MIT
 *
 * L2 tables that are none: an L1 entry has come to name guest data that looks like a table.  As
 * long as it is believed, its claims hide what was lost, and accuse those who are right.  Here such
 * tables are told by what they claim: nothing of their own, beside somebody who has them for data.
 * The image is then looked at again without them.
 *
 * Invariant: a table that alone has any cluster, which is not that somebody's either, is believed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "repair.h"

/* So many leaks are looked at, tables that may have lost entries, and bytes of all of them. */
enum { MOST_LEAKS = 4096, MOST_TABLES = 4096, MOST_BYTES = 64 << 20 };

/* The clusters that a table names, ascending. */
struct claims {
    uint64_t *clusters;
    size_t count;
};

struct search {
    struct repair *repair;
    uint8_t *bytes, *other; /* a cluster each */
    struct claims claims;
    uint64_t bytes_left; /* that may still be looked at */
};

static bool in_claims(const struct claims *claims, uint64_t cluster)
{
    return claims->count > 0 && bsearch(&cluster, claims->clusters, claims->count,
                                    sizeof(*claims->clusters), repair_compare_offsets);
}

static struct qcow2_l2_entry entry_at(const struct search *s, const uint8_t *table, uint32_t idx)
{
    struct qcow2_l2_entry e;
    qcow2_l2_decode(
        &s->repair->walk->geo, table + (size_t)idx * s->repair->walk->geo.l2_entry_size, &e);
    return e;
}

/* What the entry touches in the file: first to end - 1. */
static void touched(
    const struct search *s, const struct qcow2_l2_entry *e, uint64_t *first, uint64_t *end)
{
    const struct walk *walk = s->repair->walk;
    *first = *end = 0;
    if (e->kind < QCOW2_L2_ZERO_ALLOC || check_outside(&walk->view, e->host_off, e->length))
        return;
    *first = cluster_of(&walk->geo, e->host_off);
    *end = cluster_of(&walk->geo, e->host_off + e->length - 1) + 1;
}

/* Makes s->claims those of the table in `bytes`. */
static void take_claims(struct search *s, const uint8_t *bytes)
{
    const struct qcow2_geometry *geo = &s->repair->walk->geo;
    struct claims *claims = &s->claims;
    claims->count = 0;
    for (uint32_t i = 0; i < geo->l2_entries; i++) {
        struct qcow2_l2_entry e = entry_at(s, bytes, i);
        uint64_t first, end;
        touched(s, &e, &first, &end);
        for (uint64_t c = first; c < end && claims->count < 3 * (size_t)geo->l2_entries; c++)
            claims->clusters[claims->count++] = c;
    }
    qsort(claims->clusters, claims->count, sizeof(*claims->clusters), repair_compare_offsets);
}

/* False also if no more may be looked at. */
static bool read_table(struct search *s, uint64_t host_off, uint8_t *bytes)
{
    uint32_t size = s->repair->walk->geo.cluster_size;
    if (s->bytes_left < size)
        return false;
    s->bytes_left -= size;
    return io_read_padded(s->repair->io, host_off, bytes, size) == 0;
}

static bool is_missed(const struct search *s, uint64_t cluster)
{
    return repair_deficit(s->repair, cluster << s->repair->walk->geo.cluster_bits);
}

static void add_fake(struct search *s, uint64_t host_off, bool is_data)
{
    struct repair *repair = s->repair;
    for (size_t i = 0; i < repair->fake_count; i++) {
        if (repair->fakes[i].host_off == host_off)
            return;
    }
    if (repair->fake_count < REPAIR_MOST_FAKES)
        repair->fakes[repair->fake_count++] =
            (struct no_table){.host_off = host_off, .is_data = is_data};
}

/* ---- what a lost table has for data ---- */

static uint64_t mapped(const struct search *s, uint32_t idx)
{
    struct qcow2_l2_entry e = entry_at(s, s->bytes, idx);
    return e.kind == QCOW2_L2_NORMAL ? e.host_off : 0;
}

/* All that the lost table in s->bytes names is missed, or claimed by the table at `fake_off`. */
static bool replaces(struct search *s, uint64_t fake_off)
{
    const struct walk *walk = s->repair->walk;
    uint64_t fake = cluster_of(&walk->geo, fake_off);
    if (!read_table(s, fake_off, s->other))
        return false;
    take_claims(s, s->other);
    for (uint32_t i = 0; i < walk->geo.l2_entries; i++) {
        struct qcow2_l2_entry e = entry_at(s, s->bytes, i);
        uint64_t first, end;
        touched(s, &e, &first, &end);
        for (uint64_t c = first; c < end; c++) {
            if (c != fake && (walk_area_at(walk, c, NULL) != AREA_NONE ||
                                 (!is_missed(s, c) && !in_claims(&s->claims, c))))
                return false;
        }
    }
    return true;
}

/* A cluster that looks like an L2 table, and maps what an L1 entry names between the clusters of
 * the neighbours.  `fake_off`: only what this entry names; 0: any. */
static void look_at_lost(struct search *s, uint64_t cluster, uint64_t fake_off)
{
    struct walk *walk = s->repair->walk;
    uint64_t size = walk->geo.cluster_size;
    struct l2_look look;
    if (s->bytes_left < size || !walk_look_at_l2(walk, cluster, &look) || look.named == 0 ||
        look.odd > 0 ||
        repair_has_at(s->repair, CHECK_orphan_l1_table, cluster << walk->geo.cluster_bits))
        return;
    s->bytes_left -= size;
    memcpy(s->bytes, walk->buf, size);
    for (uint32_t i = 1; i + 1 < walk->geo.l2_entries; i++) {
        uint64_t off = mapped(s, i);
        const struct table *table = off ? table_find(&walk->tables, off) : NULL;
        if (table && !table->skip && (fake_off == 0 || off == fake_off) &&
            mapped(s, i - 1) == off - size && mapped(s, i + 1) == off + size && replaces(s, off))
            add_fake(s, off, true);
    }
}

static void find_in_leaks(struct search *s)
{
    struct walk *walk = s->repair->walk;
    uint64_t cluster = walk->first_mismatch;
    for (unsigned seen = 0; seen < MOST_LEAKS && census_next_leak(walk->census, cluster, &cluster);
         seen++, cluster++) {
        if (walk_leaked(walk, cluster) &&
            walk_hole(walk, cluster << walk->geo.cluster_bits) < walk->geo.cluster_size)
            look_at_lost(s, cluster, 0);
    }
}

/* ---- what a table has lost ---- */

/* All that the table in s->other names is named by the one in s->bytes, or left out or missed. */
static bool has_nothing(struct search *s, uint64_t gap, uint64_t gap_end)
{
    const struct walk *walk = s->repair->walk;
    take_claims(s, s->bytes);
    for (uint32_t i = 0; i < walk->geo.l2_entries; i++) {
        struct qcow2_l2_entry e = entry_at(s, s->other, i);
        uint64_t first, end;
        touched(s, &e, &first, &end);
        for (uint64_t c = first; c < end; c++) {
            if ((c < gap || c >= gap_end) && !in_claims(&s->claims, c) && !is_missed(s, c))
                return false;
        }
    }
    return true;
}

/* The table shares clusters with others, one of which has lost the table's own. */
static void look_at_shared(struct search *s, uint64_t table_off)
{
    const struct walk *walk = s->repair->walk;
    uint64_t first, end;
    if (!read_table(s, table_off, s->other))
        return;
    for (size_t i = 0; i < walk->tables.count && i < MOST_TABLES; i++) {
        const struct table *table = &walk->tables.items[i];
        if (table->skip || table->host_off == table_off ||
            !read_table(s, table->host_off, s->bytes) ||
            !repair_leaves_out(
                s->repair, s->bytes, cluster_of(&walk->geo, table_off), &first, &end))
            continue;
        if (has_nothing(s, first, end))
            add_fake(s, table_off, true);
    }
}

/* The true one may be among what the table names. */
static void look_at_named(struct search *s, uint64_t table_off)
{
    enum { MOST_NAMED = 64 };
    const struct qcow2_geometry *geo = &s->repair->walk->geo;
    uint64_t named[MOST_NAMED];
    size_t count = 0;
    if (!read_table(s, table_off, s->bytes))
        return;
    for (uint32_t i = 0; i < geo->l2_entries && count < MOST_NAMED; i++) {
        uint64_t off = mapped(s, i);
        if (off != 0 && off != table_off &&
            !check_outside(&s->repair->walk->view, off, geo->cluster_size))
            named[count++] = cluster_of(geo, off);
    }
    for (size_t i = 0; i < count; i++)
        look_at_lost(s, named[i], table_off);
}

/* Tables whose entries meet what others have. */
static void find_by_findings(struct search *s)
{
    const struct finding_set *findings = &s->repair->findings;
    uint64_t seen[REPAIR_MOST_FAKES];
    size_t count = 0;
    for (size_t i = 0; i < findings->count && count < REPAIR_MOST_FAKES; i++) {
        const struct finding *f = &findings->items[i];
        bool known = f->check != CHECK_l2_entry_shared && f->check != CHECK_l2_entry_into_metadata;
        for (size_t k = 0; !known && k < count; k++)
            known = seen[k] == f->table_off;
        if (known)
            continue;
        seen[count++] = f->table_off;
        look_at_shared(s, f->table_off);
        look_at_named(s, f->table_off);
    }
}

/* Tables amid a row of what leaks, which may be a row of data. */
static void find_by_rows(struct search *s)
{
    const struct walk *walk = s->repair->walk;
    size_t count = 0;
    for (size_t i = 0; i < walk->tables.count && count < REPAIR_MOST_FAKES; i++) {
        const struct table *table = &walk->tables.items[i];
        uint64_t cluster = cluster_of(&walk->geo, table->host_off);
        if (table->skip || !walk_leaked(walk, cluster - 1) || !walk_leaked(walk, cluster + 1))
            continue;
        count++;
        look_at_named(s, table->host_off);
    }
}

/* ---- what makes little sense ---- */

/* What the entry says of the cluster is not what is counted for it. */
static bool has_wrong_flag(
    const struct search *s, const struct table *table, const struct qcow2_l2_entry *e)
{
    struct walk *walk = s->repair->walk;
    uint64_t stored;
    return table->active_refs > 0 && e->kind != QCOW2_L2_COMPRESSED &&
           walk_stored(walk, cluster_of(&walk->geo, e->host_off), &stored) &&
           e->copied != (stored == 1);
}

/* Entries of the table that make sense by themselves, but whose cluster is somebody else's, or has
 * another count. */
static uint64_t count_contested(struct search *s, const struct table *table)
{
    const struct walk *walk = s->repair->walk;
    uint64_t count = 0;
    if (!read_table(s, table->host_off, s->bytes))
        return 0;
    for (uint32_t i = 0; i < walk->geo.l2_entries; i++) {
        struct qcow2_l2_entry e = entry_at(s, s->bytes, i);
        uint64_t cluster = cluster_of(&walk->geo, e.host_off);
        if (e.kind < QCOW2_L2_ZERO_ALLOC || !l2_entry_fits(walk, &e, e.host_off))
            continue;
        count += census_get(walk->census, cluster).conflict ||
                 walk_area_at(walk, cluster, NULL) != AREA_NONE || has_wrong_flag(s, table, &e);
    }
    return count;
}

static void find_absurd(struct search *s)
{
    const struct walk *walk = s->repair->walk;
    for (size_t i = 0; i < walk->tables.count; i++) {
        const struct table *table = &walk->tables.items[i];
        if (table->skip)
            continue;
        if (table->rather_data)
            add_fake(s, table->host_off, true);
        else if (plan_doubts(table) &&
                 l2_hardly_sane(table->used, table->absurd + count_contested(s, table)))
            add_fake(s, table->host_off, false);
    }
}

int repair_find_fakes(struct repair *repair)
{
    const struct walk *walk = repair->walk;
    const struct qcow2_geometry *geo = &walk->geo;
    struct search s = {.repair = repair, .bytes_left = MOST_BYTES};
    uint64_t cluster;
    bool counted = !repair->void_counts && !repair->counts_made; /* else nothing is missed */
    if (!walk->judgeable || walk->without_counts || walk->refs_incomplete || walk->unreadable ||
        geo->data_file || !census_next_mismatch(walk->census, 0, &cluster))
        return 0;
    s.bytes = malloc(2 * (size_t)geo->cluster_size);
    s.claims.clusters = calloc(3 * (size_t)geo->l2_entries, sizeof(*s.claims.clusters));
    int ret = s.bytes && s.claims.clusters ? 0 : -ENOMEM;
    if (ret == 0) {
        s.other = s.bytes + geo->cluster_size;
        find_absurd(&s);
    }
    if (ret == 0 && counted) {
        find_in_leaks(&s);
        find_by_findings(&s);
        find_by_rows(&s);
    }
    free(s.bytes);
    free(s.claims.clusters);
    return ret;
}
