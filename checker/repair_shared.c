/* SPDX-License-Identifier: MIT
 *
 * Cross-linked clusters: every owner gets a copy of its own, so that no later write by the guest to
 * one place can change another.  Nothing is lost by that, whoever was right. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "repair.h"

/* The uncompressed content of an entry, malloc'd; NULL with *ret set.  Decoding costs much more
 * than reading does. */
static uint8_t *decode(
    const struct repair *repair, uint32_t type, const struct qcow2_l2_entry *e, int *ret)
{
    enum { READ_BYTES_PER_MADE = 16 };
    const struct walk *walk = repair->walk;
    uint8_t *packed = malloc(e->length), *plain = malloc(walk->geo.cluster_size);
    struct codec *codec = NULL;
    *ret = packed && plain ? 0 : -ENOMEM;
    if (*ret == 0 && type > QCOW2_ZSTD)
        *ret = -ENOTSUP;
    if (*ret == 0)
        *ret = codec_open((enum qcow2_compression)type, &codec);
    if (*ret == 0)
        *ret = io_read_padded(walk->io, e->host_off, packed, e->length);
    if (*ret == 0)
        *ret = codec_decode(codec, packed, e->length, plain, walk->geo.cluster_size);
    if (*ret == -EOVERFLOW)
        *ret = 0;
    repair->decoding->bytes += e->length / READ_BYTES_PER_MADE + (codec ? codec_made(codec) : 0);
    codec_close(codec);
    free(packed);
    if (*ret < 0) {
        free(plain);
        return NULL;
    }
    return plain;
}

bool repair_decodes(const struct repair *repair, const struct qcow2_l2_entry *e)
{
    return repair_decodes_as(repair, repair->walk->header.compression, e);
}

bool repair_decodes_as(const struct repair *repair, uint32_t type, const struct qcow2_l2_entry *e)
{
    /* What does not become smaller is not stored compressed; bytes that repeat may decode to
     * anything, so a length that nobody writes tells. */
    uint32_t most =
        repair->walk->geo.cluster_size - 2 + (uint32_t)(e->host_off % QCOW2_SECTOR_BYTES);
    uint32_t sectors =
        (e->length + (uint32_t)(e->host_off % QCOW2_SECTOR_BYTES)) / QCOW2_SECTOR_BYTES;
    int ret;
    if (sectors > most / QCOW2_SECTOR_BYTES + 1)
        return false;
    uint64_t made = repair->decoding->bytes;
    if (made > REPAIR_MOST_DECODED &&
        made >> repair->walk->geo.cluster_bits > REPAIR_MOST_CLUSTERS) {
        repair->decoding->given_up = true;
        return false;
    }
    uint8_t *plain = decode(repair, type, e, &ret);
    repair->decoding->no_memory |= ret == -ENOMEM;
    free(plain);
    return plain != NULL;
}

/* Gives the entry a new cluster with the same content. */
static int copy_for(struct repair *repair, const struct finding *f, const struct table *table)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    uint64_t entry_off = repair_entry_off(repair, f), cluster;
    uint8_t bytes[16] = {0}, *plain = NULL;
    struct qcow2_l2_entry e;
    int ret = io_read_padded(repair->walk->io, entry_off, bytes, geo->l2_entry_size);
    if (ret < 0 || !plan_takes_field(&repair->plan, entry_off))
        return ret;
    repair->copies_given_up |= repair->copied + geo->cluster_size > repair->most_copied;
    if (repair->copies_given_up)
        return 0;
    qcow2_l2_decode(geo, bytes, &e);
    if (e.kind == QCOW2_L2_COMPRESSED) {
        plain = decode(repair, repair->walk->header.compression, &e, &ret);
        if (!plain) /* nobody can copy it: left to --lossy */
            return ret == -ENOMEM ? ret : 0;
    } else if (!cluster_aligned(geo, e.host_off)) {
        return 0;
    }
    ret = plan_alloc(&repair->plan, f->check, 1, table->refs, &cluster);
    if (ret < 0) {
        free(plain);
        return ret;
    }
    repair->copied += geo->cluster_size;
    uint64_t host_off = cluster << geo->cluster_bits;
    if (plain)
        ret = plan_data(&repair->plan, PHASE_NEW, f->check, host_off, plain, geo->cluster_size);
    else
        ret = plan_copy(&repair->plan, PHASE_NEW, f->check, e.host_off, host_off);
    uint64_t raw = host_off;
    if (!plain && !geo->extended_l2)
        raw |= e.raw & QCOW2_ENTRY_ZERO;
    if (table->refs == 1 && table->active_refs == 1)
        raw |= QCOW2_ENTRY_COPIED;
    store_be64(bytes, raw);
    if (plain && geo->extended_l2) /* all 32 subclusters are there */
        store_be64(bytes + 8, QCOW2_SUBCLUSTER_ALLOC);
    if (ret == 0)
        ret =
            plan_bytes(&repair->plan, PHASE_SWITCH, f->check, entry_off, bytes, geo->l2_entry_size);
    for (uint64_t off = e.host_off & ~(uint64_t)(geo->cluster_size - 1);
         ret == 0 && off < e.host_off + e.length; off += geo->cluster_size)
        ret = plan_lower(&repair->plan, f->check, cluster_of(geo, off), table->refs);
    return ret;
}

/* Compressed data among what is shared. */
struct packed_ranges {
    struct packed_range {
        uint64_t host_off, end; /* end: the highest of this one and those before it */
    } * items;                  /* by host offset */
    size_t count;
};

static bool is_packed(const struct repair *repair, const struct finding *f)
{
    uint64_t raw;
    return plan_peek(&repair->plan, repair_entry_off(repair, f), &raw) == 0 &&
           (raw & QCOW2_ENTRY_COMPRESSED);
}

/* Findings of one check are sorted by host offset. */
static int find_packed(const struct repair *repair, struct packed_ranges *packed)
{
    uint64_t end = 0;
    packed->items = calloc(repair->findings.count + 1, sizeof(*packed->items));
    if (!packed->items)
        return -ENOMEM;
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (f->check != CHECK_l2_entry_shared || !is_packed(repair, f))
            continue;
        end = f->host_off + f->length > end ? f->host_off + f->length : end;
        packed->items[packed->count++] = (struct packed_range){f->host_off, end};
    }
    return 0;
}

/* Compressed data lies in the cluster, too. */
static bool meets_packed(const struct packed_ranges *packed, const struct finding *f)
{
    size_t low = 0, high = packed->count; /* the first that begins behind it */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (packed->items[middle].host_off < f->host_off + f->length)
            low = middle + 1;
        else
            high = middle;
    }
    return low > 0 && packed->items[low - 1].end > f->host_off;
}

/* The first owner of a cluster, by guest place, keeps it; so do others at the same place.  Beside
 * compressed data, which lies where it does together with other such data, nobody else does. */
static bool keeps_it(const struct repair *repair, const struct packed_ranges *packed,
    const struct finding *f, const struct finding *first)
{
    if (meets_packed(packed, f) && !is_packed(repair, f))
        return false;
    return first->guest_off == f->guest_off;
}

/* What is wrong with the entry is put right by a cluster of its own. */
static int separate(struct repair *repair, const struct finding *f)
{
    const struct table *table = table_find(&repair->walk->tables, f->table_off);
    size_t edits = repair->plan.count;
    int ret = table ? copy_for(repair, f, table) : 0;
    if (ret < 0 || repair->plan.count == edits || f->check != CHECK_l2_entry_shared)
        return ret;
    return plan_remark(&repair->plan,
        "guest 0x%llx gets its own copy of the cluster at 0x%llx; which owner's content it "
        "is cannot be told",
        (unsigned long long)f->guest_off, (unsigned long long)f->host_off);
}

static int separate_data(struct repair *repair)
{
    struct packed_ranges packed = {0};
    int ret = find_packed(repair, &packed);
    const struct finding *first = NULL; /* of those that share a cluster */
    for (size_t i = 0; ret == 0 && i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (!first || first->check != f->check || first->host_off != f->host_off)
            first = f;
        if (repair->lossy && f->host_off == f->table_off && !repair_goes_on(repair, f))
            continue; /* a table is no data of its own: that goes */
        if (f->check == CHECK_l2_entry_into_metadata ||
            (f->check == CHECK_l2_entry_shared && !keeps_it(repair, &packed, f, first)))
            ret = separate(repair, f);
    }
    free(packed.items);
    return ret;
}

/* A second L2 table with the same entries, so that its data is cross-linked next and separated in
 * the next round. */
static int copy_table(struct repair *repair, const struct finding *f, const struct table *table)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    uint64_t cluster, refs = repair->walk->trees[f->tree].same_l1;
    if (!plan_takes_field(&repair->plan, repair_entry_off(repair, f)))
        return 0;
    uint8_t *bytes = malloc(geo->cluster_size);
    if (!bytes)
        return -ENOMEM;
    int ret = io_read_padded(repair->walk->io, table->host_off, bytes, geo->cluster_size);
    if (ret == 0)
        ret = plan_alloc(&repair->plan, f->check, 1, refs, &cluster);
    if (ret < 0) {
        free(bytes);
        return ret;
    }
    for (uint32_t i = 0; i < geo->l2_entries; i++) {
        uint8_t *p = bytes + (size_t)i * geo->l2_entry_size;
        store_be64(p, load_be64(p) & ~QCOW2_ENTRY_COPIED);
    }
    uint64_t host_off = cluster << geo->cluster_bits;
    ret = plan_data(&repair->plan, PHASE_NEW, f->check, host_off, bytes, geo->cluster_size);
    bool copied = f->tree == TREE_ACTIVE && refs == 1;
    if (ret == 0)
        ret = plan_be64(&repair->plan, PHASE_SWITCH, f->check, repair_entry_off(repair, f),
            host_off | (copied ? QCOW2_ENTRY_COPIED : 0));
    return ret < 0 ? ret
                   : plan_lower(&repair->plan, f->check, cluster_of(geo, table->host_off), refs);
}

static int separate_tables(struct repair *repair)
{
    int ret = 0;
    if (!repair->lossy && repair_has(repair, CHECK_orphan_l2_table))
        return 0; /* one of the places may have lost that one: a choice */
    for (size_t i = 0; ret == 0 && i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        const struct table *table = f->check == CHECK_l1_entry_shared
                                        ? table_find(&repair->walk->tables, f->host_off)
                                        : NULL;
        if (table && f->index != table->l1_idx)
            ret = copy_table(repair, f, table);
    }
    return ret;
}

int repair_shared(struct repair *repair)
{
    int ret = separate_tables(repair);
    if (ret == 0 && repair->plan.count == 0)
        ret = separate_data(repair);
    if (ret != -ENOSPC)
        return ret;
    /* No cluster with a count to set: make room in the refcounts first. */
    repair_new_plan(repair);
    return repair_make_room(repair);
}
