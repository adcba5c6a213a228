/* SPDX-License-Identifier: MIT
 *
 * --lossy: what can be neither repaired nor found again is given up, so that the rest can be used.
 * Every loss is told, with its guest range. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "repair.h"

static int tell_loss(struct repair *repair, const struct finding *f)
{
    char name[CHECK_NAME_BYTES];
    check_name(f->check, name);
    return plan_remark(&repair->plan, "lost: guest 0x%llx-0x%llx of %s (%s)",
        (unsigned long long)f->guest_off, (unsigned long long)(f->guest_off + f->guest_len - 1),
        f->tree > TREE_ACTIVE ? "a snapshot" : "the disk", name);
}

static int put_zeros(struct repair *repair, enum check_id why, uint64_t host_off)
{
    uint8_t *zeros = calloc(1, repair->walk->geo.cluster_size);
    return zeros ? plan_data(&repair->plan, PHASE_NEW, why, host_off, zeros,
                       repair->walk->geo.cluster_size)
                 : -ENOMEM;
}

/* Makes an entry for a new cluster of zeros; none if there is no room for it. */
static int make_zeros(
    struct repair *repair, const struct finding *f, const struct table *table, uint8_t *entry)
{
    uint64_t cluster;
    if (!plan_takes_field(&repair->plan, repair_entry_off(repair, f)))
        return 0;
    int ret = plan_alloc(&repair->plan, f->check, 1, table->refs, &cluster);
    if (ret < 0)
        return ret == -ENOSPC ? 0 : ret;
    uint64_t host_off = cluster << repair->walk->geo.cluster_bits;
    bool copied = table->refs == 1 && table->active_refs == 1;
    store_be64(entry, host_off | (copied ? QCOW2_ENTRY_COPIED : 0));
    return put_zeros(repair, f->check, host_off);
}

/* Those that the entry did not say to be elsewhere. */
static int zero_subclusters(struct repair *repair, const struct finding *f, uint8_t *entry)
{
    uint8_t bytes[16];
    struct qcow2_l2_entry e;
    int ret = io_read_padded(repair->io, repair_entry_off(repair, f), bytes, sizeof(bytes));
    if (ret < 0)
        return ret;
    qcow2_l2_decode(&repair->walk->geo, bytes, &e);
    uint64_t zeros = e.bitmap & QCOW2_SUBCLUSTER_ZERO, allocated = e.bitmap << QCOW2_SUBCLUSTERS;
    bool tells = e.kind == QCOW2_L2_NORMAL && !(zeros & allocated);
    store_be64(entry + 8, tells ? zeros | allocated : QCOW2_SUBCLUSTER_ZERO);
    return 0;
}

/* An entry without a cluster: zeros where a backing file would show through otherwise.  Version 2
 * has no entry that says so, and needs a cluster of them: if the file was cut off that which was
 * lost, whose place reads as zeros already. */
static int drop_l2_entry(struct repair *repair, const struct finding *f)
{
    const struct walk *walk = repair->walk;
    const struct table *table = table_find(&walk->tables, f->table_off);
    uint8_t bytes[16] = {0};
    bool covers = walk->view.has_backing && f->check != CHECK_l2_entry_past_end;
    bool cut_off = f->check == CHECK_l2_entry_outside && repair_was_cut_off(repair, f->host_off);
    int ret = tell_loss(repair, f);
    if (ret == 0 && covers && walk->geo.version < 3 && cut_off)
        return put_zeros(repair, f->check, f->host_off);
    if (ret == 0 && covers && walk->geo.version < 3 && table)
        ret = make_zeros(repair, f, table, bytes);
    else if (ret == 0 && covers && walk->geo.extended_l2)
        ret = zero_subclusters(repair, f, bytes);
    else if (covers && walk->geo.version >= 3)
        store_be64(bytes, QCOW2_ENTRY_ZERO);
    if (ret == 0)
        ret = plan_bytes(&repair->plan, PHASE_SWITCH, f->check, repair_entry_off(repair, f), bytes,
            walk->geo.l2_entry_size);
    /* Were the file to grow over what it still counts, zeros would pass for what was lost. */
    if (ret == 0 && table && cut_off)
        ret = plan_lower(&repair->plan, f->check, cluster_of(&walk->geo, f->host_off), table->refs);
    return ret;
}

/* No compressed data can be in a data file; where it is here, it is the feature bit that is wrong.
 */
static int drop_compressed(struct repair *repair, const struct finding *f)
{
    uint8_t bytes[16] = {0};
    struct qcow2_l2_entry entry;
    int ret = io_read_padded(repair->io, repair_entry_off(repair, f), bytes, sizeof(bytes));
    if (ret < 0)
        return ret;
    qcow2_l2_decode(&repair->walk->geo, bytes, &entry);
    return repair_decodes(repair, &entry) ? 0 : drop_l2_entry(repair, f);
}

/* The entry with `more` additional sectors. */
static struct qcow2_l2_entry with_sectors(
    const struct qcow2_geometry *geo, uint64_t raw, uint64_t more)
{
    uint64_t sectors = QCOW2_ENTRY_COMPRESSED - (UINT64_C(1) << geo->compressed_shift);
    uint8_t bytes[16] = {0};
    struct qcow2_l2_entry e;
    store_be64(bytes, (raw & ~sectors) | more << geo->compressed_shift);
    qcow2_l2_decode(geo, bytes, &e);
    return e;
}

/* With more than the shortest length it still makes a whole cluster. */
bool repair_shorten(const struct repair *repair, uint64_t *raw)
{
    const struct walk *walk = repair->walk;
    const struct qcow2_geometry *geo = &walk->geo;
    struct qcow2_l2_entry e = with_sectors(geo, *raw, 0);
    uint64_t low = 0,
             high = (geo->cluster_size - 2 + e.host_off % QCOW2_SECTOR_BYTES) / QCOW2_SECTOR_BYTES;
    while (check_outside(&walk->view, e.host_off, with_sectors(geo, *raw, high).length)) {
        if (high-- == 0)
            return false;
    }
    e = with_sectors(geo, *raw, high);
    if (!repair_decodes(repair, &e))
        return false;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        e = with_sectors(geo, *raw, middle);
        if (repair_decodes(repair, &e))
            high = middle;
        else
            low = middle + 1;
    }
    *raw = with_sectors(geo, *raw, high).raw;
    return true;
}

static int shorten_compressed(struct repair *repair, const struct finding *f)
{
    uint64_t raw;
    int ret = plan_peek(&repair->plan, repair_entry_off(repair, f), &raw);
    if (ret < 0)
        return ret;
    return repair_shorten(repair, &raw)
               ? plan_be64(&repair->plan, PHASE_SWITCH, f->check, repair_entry_off(repair, f), raw)
               : drop_l2_entry(repair, f);
}

static int drop_l1_entry(struct repair *repair, const struct finding *f)
{

    int ret = tell_loss(repair, f);
    return ret < 0
               ? ret
               : plan_be64(&repair->plan, PHASE_SWITCH, f->check, repair_entry_off(repair, f), 0);
}

/* The entry, if it makes sense but for its reserved bits or a length; else zeros, or nothing.  The
 * data of some compressed ones is tried, of garbage there may be much. */
static void clean_entry(const struct repair *repair, uint8_t *p, unsigned *tried)
{
    enum { MOST_TRIED = 64 };
    const struct qcow2_geometry *geo = &repair->walk->geo;
    struct qcow2_l2_entry e;
    uint8_t bytes[16] = {0};
    memcpy(bytes, p, geo->l2_entry_size);
    qcow2_l2_decode(geo, bytes, &e);
    if (l2_entry_fits(repair->walk, &e, 0))
        return;
    uint64_t raw = e.raw, zero = 0;
    bool packed = raw & QCOW2_ENTRY_COMPRESSED;
    store_be64(bytes, raw & ~QCOW2_L2_RESERVED);
    qcow2_l2_decode(geo, bytes, &e);
    bool sound = !packed && l2_entry_fits(repair->walk, &e, 0);
    if (packed && (*tried)++ < MOST_TRIED)
        sound = repair_shorten(repair, &raw);
    else
        raw &= ~QCOW2_L2_RESERVED;
    if (geo->version >= 3 && !geo->extended_l2 && !packed && (raw & QCOW2_ENTRY_ZERO))
        zero = QCOW2_ENTRY_ZERO;
    if (!sound)
        memset(p, 0, geo->l2_entry_size);
    store_be64(p, sound ? raw : zero);
}

/* What of the table makes sense, malloc'd; NULL with *ret set, or if there is nothing and it is not
 * to be `even_empty`. */
static uint8_t *cleaned_table(
    struct repair *repair, const struct finding *f, bool even_empty, int *ret)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    unsigned tried = 0;
    uint8_t *bytes = malloc(geo->cluster_size);
    *ret =
        bytes ? io_read_padded(repair->walk->io, f->host_off, bytes, geo->cluster_size) : -ENOMEM;
    for (uint32_t i = 0; *ret == 0 && i < geo->l2_entries; i++)
        clean_entry(repair, bytes + (size_t)i * geo->l2_entry_size, &tried);
    if (*ret == 0 && (even_empty || !walk_bytes_zero(bytes, geo->cluster_size)))
        return bytes;
    free(bytes);
    return NULL;
}

/* Every L1 entry that points to the table gets that value instead. */
static int replace_table(
    struct repair *repair, const struct finding *f, const struct table *table, uint64_t value)
{
    const struct walk *walk = repair->walk;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < walk->tree_count; i++) {
        const struct tree *tree = &walk->trees[i];
        uint64_t off = tree->l1_off + table->l1_idx * UINT64_C(8), raw;
        if (!tree->usable || table->l1_idx >= tree->l1_size ||
            plan_peek(&repair->plan, off, &raw) < 0)
            continue;
        if ((raw & QCOW2_OFFSET_MASK) == table->host_off)
            ret = plan_be64(&repair->plan, PHASE_SWITCH, f->check, off, value);
    }
    return ret;
}

/* L1 entries that point to a table most of which was overwritten: what makes no sense in it goes,
 * where it is, or, if that is somebody's data as well, in a new cluster.  Where nothing is left, or
 * no room, the entries go. */
static int drop_table(struct repair *repair, const struct finding *f)
{
    const struct walk *walk = repair->walk;
    const struct table *table = table_find(&walk->tables, f->host_off);
    struct census_cell cell = census_get(walk->census, cluster_of(&walk->geo, f->host_off));
    int ret = tell_loss(repair, f);
    if (ret < 0 || !table)
        return ret;
    uint64_t cluster = 0, host_off = f->host_off;
    bool keep = !walk->geo.data_file && !table->elsewhere;
    uint8_t *bytes = keep ? cleaned_table(repair, f, !cell.conflict, &ret) : NULL;
    if (bytes && cell.conflict) {
        ret = plan_alloc(&repair->plan, f->check, 1, table->refs, &cluster);
        host_off = cluster << walk->geo.cluster_bits;
    }
    if (bytes && ret == 0) {
        ret = plan_data(&repair->plan, cell.conflict ? PHASE_NEW : PHASE_SWITCH, f->check, host_off,
            bytes, walk->geo.cluster_size);
        return ret == 0 && cell.conflict ? replace_table(repair, f, table, host_off) : ret;
    }
    free(bytes);
    return ret == 0 || ret == -ENOSPC ? replace_table(repair, f, table, 0) : ret;
}

/* Which of the two marks is right nobody knows; data is kept. */
static int settle_subclusters(struct repair *repair, const struct finding *f)
{
    uint64_t off = repair_entry_off(repair, f) + 8, bitmap;
    int ret = plan_peek(&repair->plan, off, &bitmap);
    if (ret < 0)
        return ret;
    uint64_t both = bitmap >> 32 & bitmap;
    bitmap &= f->check == CHECK_l2_subcluster_conflict ? ~(both << 32) : ~QCOW2_SUBCLUSTER_ALLOC;
    ret = tell_loss(repair, f);
    return ret < 0 ? ret : plan_be64(&repair->plan, PHASE_SWITCH, f->check, off, bitmap);
}

/* Owners of one cluster that could not get copies: compressed ones that nobody can decode. */
static int drop_undecodable(struct repair *repair, const struct finding *f)
{
    const struct walk *walk = repair->walk;
    uint8_t bytes[16] = {0};
    struct qcow2_l2_entry e;
    int ret = io_read_padded(walk->io, repair_entry_off(repair, f), bytes, walk->geo.l2_entry_size);
    if (ret < 0)
        return ret;
    qcow2_l2_decode(&walk->geo, bytes, &e);
    return e.kind == QCOW2_L2_COMPRESSED && !repair_decodes(repair, &e) ? drop_l2_entry(repair, f)
                                                                        : 0;
}

/* ---- tables of garbage ---- */

/* What is left of an L1 entry; 0 if it leads nowhere. */
static uint64_t clean_l1_entry(const struct walk *walk, uint64_t raw)
{
    uint64_t off = raw & QCOW2_OFFSET_MASK;
    bool leads = off != 0 && cluster_aligned(&walk->geo, off) &&
                 !check_outside(&walk->view, off, walk->geo.cluster_size);
    return leads ? raw : 0;
}

/* A cluster of an L1 table; *dropped counts what went. */
static int clean_l1_cluster(
    struct repair *repair, enum check_id why, uint64_t host_off, uint64_t bytes, uint64_t *dropped)
{
    uint64_t before = *dropped;
    uint8_t *data = malloc((size_t)bytes);
    int ret = data ? io_read_padded(repair->io, host_off, data, (size_t)bytes) : -ENOMEM;
    for (uint64_t at = 0; ret == 0 && at < bytes; at += 8) {
        uint64_t raw = load_be64(data + at), clean = clean_l1_entry(repair->walk, raw);
        store_be64(data + at, clean);
        *dropped += clean != raw;
    }
    if (ret < 0 || *dropped == before || !plan_writable(&repair->plan, host_off)) {
        free(data);
        return ret;
    }
    return plan_data(&repair->plan, PHASE_SWITCH, why, host_off, data, bytes);
}

static int clean_l1_table(struct repair *repair, enum check_id why, const struct tree *tree)
{
    uint64_t bytes = tree->l1_size * UINT64_C(8), size = repair->walk->geo.cluster_size;
    uint64_t dropped = 0;
    int ret = 0;
    for (uint64_t at = 0; ret == 0 && at < bytes && tree->l1_off + at < repair->file_size;
         at += size)
        ret = clean_l1_cluster(
            repair, why, tree->l1_off + at, bytes - at < size ? bytes - at : size, &dropped);
    return ret < 0 || dropped == 0
               ? ret
               : plan_remark(&repair->plan,
                     "lost: %llu entries of the L1 table at 0x%llx that lead nowhere",
                     (unsigned long long)dropped, (unsigned long long)tree->l1_off);
}

/* More L1 entries lead nowhere than a round goes through one by one, each with a line of its own:
 * what is left of their tables is taken at once. */
static int clean_l1_tables(struct repair *repair)
{
    enum { MANY = 50000 };
    static const enum check_id checks[] = {
        CHECK_l1_entry_outside, CHECK_l1_entry_unaligned, CHECK_l1_flags_without_table};
    int ret = 0;
    for (size_t k = 0; k < sizeof(checks) / sizeof(checks[0]); k++) {
        if (repair->report.hits[checks[k]] <= MANY || ret < 0 || repair->plan.count > 0)
            continue;
        for (size_t i = 0; ret == 0 && i < repair->walk->tree_count; i++) {
            const struct tree *tree = &repair->walk->trees[i];
            if (tree->usable && tree->same_l1 > 0)
                ret = clean_l1_table(repair, checks[k], tree);
        }
    }
    return ret;
}

typedef int loss(struct repair *repair, const struct finding *finding);

static const struct {
    enum check_id check;
    loss *give_up;
} losses[] = {
    {CHECK_l1_entry_unaligned, drop_l1_entry},
    {CHECK_l1_entry_outside, drop_l1_entry},
    {CHECK_l1_entry_into_metadata, drop_l1_entry},
    {CHECK_l1_flags_without_table, drop_l1_entry},
    {CHECK_l1_entry_past_end, drop_l1_entry},
    {CHECK_l2_table_implausible, drop_table},
    {CHECK_l2_entry_unaligned, drop_l2_entry},
    {CHECK_l2_entry_outside, drop_l2_entry},
    {CHECK_l2_entry_into_metadata, drop_l2_entry},
    {CHECK_l2_entry_shared, drop_undecodable},
    {CHECK_l2_compressed_outside, drop_l2_entry},
    {CHECK_l2_entry_past_end, drop_l2_entry},
    {CHECK_l2_compressed_size, shorten_compressed},
    {CHECK_l2_compressed_data_file, drop_compressed},
    {CHECK_compressed_undecodable, drop_l2_entry},
    {CHECK_compressed_short, drop_l2_entry},
    {CHECK_l2_subcluster_conflict, settle_subclusters},
    {CHECK_l2_subcluster_unallocated, settle_subclusters},
};

/* With `nonsense`: what is named is metadata that makes no sense, and goes elsewhere when it can be
 * made anew; else all others. */
static int give_up_all(struct repair *repair, bool nonsense)
{
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        bool on_nonsense =
            f->check == CHECK_l2_entry_into_metadata && repair_on_nonsense(repair, f);
        for (size_t k = 0; ret == 0 && k < sizeof(losses) / sizeof(losses[0]); k++) {
            if (losses[k].check == f->check && on_nonsense == nonsense)
                ret = losses[k].give_up(repair, f);
        }
    }
    return ret;
}

/* All that the table names makes sense, and is nobody else's. */
static bool stands_alone(
    const struct repair *repair, const struct table *table, const uint8_t *bytes)
{
    const struct walk *walk = repair->walk;
    uint64_t named = 0;
    for (uint32_t i = 0; i < walk->geo.l2_entries; i++) {
        struct qcow2_l2_entry e;
        qcow2_l2_decode(&walk->geo, bytes + (size_t)i * walk->geo.l2_entry_size, &e);
        uint64_t cluster = cluster_of(&walk->geo, e.host_off);
        struct census_cell cell = census_get(walk->census, cluster);
        if (!l2_entry_fits(walk, &e, 0) || e.kind == QCOW2_L2_COMPRESSED)
            return false;
        if (e.kind < QCOW2_L2_ZERO_ALLOC || e.host_off == table->host_off)
            continue;
        if (cell.conflict || cell.balance < (table->skip ? 1 : 0) ||
            walk_area_at(walk, cluster, NULL) != AREA_NONE)
            return false;
        named++;
    }
    return named > 0;
}

/* What can be read through guest data that may be a copy of the table goes on being read, through
 * a copy of that.  *copied: there is one. */
static int copy_fake(
    struct repair *repair, const struct finding *f, const struct table *table, bool *copied)
{
    const struct walk *walk = repair->walk;
    uint64_t cluster;
    uint8_t *bytes = malloc(walk->geo.cluster_size);
    *copied = false;
    if (!bytes)
        return -ENOMEM;
    int ret = io_read_padded(walk->io, table->host_off, bytes, walk->geo.cluster_size);
    if (ret == 0 && stands_alone(repair, table, bytes) &&
        !repair_fills_gap(repair, table->host_off)) /* there its clusters go, too */
        ret = plan_alloc(&repair->plan, f->check, 1, table->refs, &cluster);
    else
        ret = -ENOSPC;
    if (ret < 0) {
        free(bytes);
        return ret == -ENOSPC ? 0 : ret;
    }
    uint64_t host_off = cluster << walk->geo.cluster_bits;
    ret = plan_data(&repair->plan, PHASE_NEW, f->check, host_off, bytes, walk->geo.cluster_size);
    *copied = true;
    if (ret == 0)
        ret = plan_remark(&repair->plan,
            "choice: what guest data at 0x%llx says as an L2 table is taken for the lost one",
            (unsigned long long)table->host_off);
    bool alone = table->refs == 1 && table->active_refs == 1;
    return ret < 0 ? ret
                   : replace_table(repair, f, table, host_off | (alone ? QCOW2_ENTRY_COPIED : 0));
}

/* What hangs on guest data that L1 entries name is nobody's loss, and must not be given up with
 * those whose clusters it names.  A flag is left in them: they did have a table. */
static int give_up_fakes(struct repair *repair)
{
    static const struct finding f = {.check = CHECK_l1_entry_into_data};
    const struct walk *walk = repair->walk;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < walk->tables.count; i++) {
        const struct table *table = &walk->tables.items[i];
        bool copied = false;
        if (!table->rather_data)
            continue;
        ret = copy_fake(repair, &f, table, &copied);
        if (ret == 0 && !copied)
            ret = replace_table(repair, &f, table, QCOW2_ENTRY_COPIED);
    }
    return ret;
}

int repair_lossy(struct repair *repair)
{
    if (!repair->lossy)
        return 0;
    int ret = repair->fake_tables ? give_up_fakes(repair) : clean_l1_tables(repair);
    for (int nonsense = 0; ret == 0 && repair->plan.count == 0 && nonsense < 2; nonsense++)
        ret = give_up_all(repair, nonsense);
    repair->plan.needs_mark |= repair->plan.count > 0;
    return ret;
}
