/* SPDX-License-Identifier: MIT
 *
 * What an L2 entry tells by itself, and a table by all of its entries: whether a program would have
 * written them.  Who else uses the clusters is not asked here, and nothing is claimed. */
#include "walk.h"

/* The last cluster of a file need not be whole. */
static bool in_file(const struct walk *walk, uint64_t off, uint64_t length)
{
    return off < walk->view.file_size && !check_outside(&walk->view, off, length);
}

bool l2_bitmap_like_entry(const struct walk *walk, const struct qcow2_l2_entry *e)
{
    const struct qcow2_geometry *geo = &walk->geo;
    uint64_t off = e->bitmap & QCOW2_OFFSET_MASK;
    return geo->extended_l2 && !geo->data_file &&
           (e->bitmap & ~QCOW2_OFFSET_MASK) == QCOW2_ENTRY_COPIED && off != 0 &&
           cluster_aligned(geo, off) && in_file(walk, off, geo->cluster_size);
}

bool l2_entry_fits(const struct walk *walk, const struct qcow2_l2_entry *e, uint64_t guest_off)
{
    const struct qcow2_geometry *geo = &walk->geo;
    switch (e->kind) {
    case QCOW2_L2_UNALLOCATED:
        return e->raw == 0 && !(e->bitmap & QCOW2_SUBCLUSTER_ALLOC);
    case QCOW2_L2_ZERO_PLAIN:
        return e->raw == QCOW2_ENTRY_ZERO && geo->version >= 3;
    case QCOW2_L2_COMPRESSED:
        return !e->copied && !e->bitmap && !geo->data_file &&
               e->length <= geo->cluster_size + QCOW2_SECTOR_BYTES &&
               in_file(walk, e->host_off, e->length);
    case QCOW2_L2_ZERO_ALLOC:
        if (geo->version < 3)
            return false;
        break;
    case QCOW2_L2_NORMAL:
        if (e->raw & QCOW2_ENTRY_ZERO)
            return false;
        break;
    }
    if ((e->raw & QCOW2_L2_RESERVED) || !cluster_aligned(geo, e->host_off) ||
        (e->bitmap >> 32 & e->bitmap) || l2_bitmap_like_entry(walk, e))
        return false;
    return geo->data_file ? e->copied && e->host_off == guest_off
                          : in_file(walk, e->host_off, geo->cluster_size);
}

bool l2_entry_plain(const struct walk *walk, const struct qcow2_l2_entry *e, uint64_t guest_off)
{
    uint64_t length = e->kind == QCOW2_L2_COMPRESSED ? e->length : (uint64_t)walk->geo.cluster_size;
    bool names = e->kind >= QCOW2_L2_ZERO_ALLOC && !walk->geo.data_file;
    return l2_entry_fits(walk, e, guest_off) &&
           (!names || e->host_off + length <= walk->view.file_size);
}

/* Could not have been written by anybody who meant it. */
static bool entry_absurd(const struct walk *walk, const struct qcow2_l2_entry *e)
{
    if (e->kind == QCOW2_L2_COMPRESSED)
        return check_outside(&walk->view, e->host_off, e->length);
    if ((e->raw & QCOW2_L2_RESERVED) || !cluster_aligned(&walk->geo, e->host_off))
        return true;
    return !walk->geo.data_file && e->host_off != 0 &&
           check_outside(&walk->view, e->host_off, walk->geo.cluster_size);
}

/* A few bad entries, or a sector of them, are damage to a table.  It is no table if nothing in it
 * makes sense: in other data hardly one in ten thousand entries would. */
enum { ABSURD_ENTRIES = 8 };

bool l2_hardly_sane(uint64_t used, uint64_t absurd)
{
    enum { ABSURD_PER_SANE = 16 };
    return (used - absurd) * ABSURD_PER_SANE <= absurd;
}

/* One of those that are not believed; NULL: it is none. */
static const struct no_table *find_no_table(const struct walk *walk, uint64_t host_off)
{
    for (size_t i = 0; i < walk->options->no_table_count; i++) {
        if (walk->options->no_tables[i].host_off == host_off)
            return &walk->options->no_tables[i];
    }
    return NULL;
}

void walk_test_plausible(const struct walk *walk, struct table *table, const uint8_t *bytes,
    const struct l2_digest *digest)
{
    const struct qcow2_geometry *geo = &walk->geo;
    uint64_t unaligned = QCOW2_OFFSET_MASK & (geo->cluster_size - 1);
    const struct no_table *no_table = find_no_table(walk, table->host_off);
    table->rather_data = no_table && no_table->is_data;
    if (!no_table && !(digest->flags & (QCOW2_L2_RESERVED | QCOW2_ENTRY_COMPRESSED | unaligned)) &&
        (geo->data_file || !check_outside(&walk->view, digest->highest_off, geo->cluster_size)))
        return;
    table->absurd = table->used = 0;
    for (uint32_t i = 0; i < geo->l2_entries; i++) {
        struct qcow2_l2_entry e;
        qcow2_l2_decode(geo, bytes + (size_t)i * geo->l2_entry_size, &e);
        table->used += e.raw != 0;
        table->absurd += e.raw != 0 && entry_absurd(walk, &e);
    }
    table->implausible =
        no_table || (table->absurd >= ABSURD_ENTRIES && l2_hardly_sane(table->used, table->absurd));
    struct subject subject = {.kind = OBJECT_L2_TABLE,
        .l2_table = {
            .implausible = table->implausible, .absurd = table->absurd, .used = table->used}};
    table->skip |= walk_after(walk, &subject) >= AFTER_SKIP;
}
