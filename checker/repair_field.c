/* SPDX-License-Identifier: MIT
 *
 * Repairs of a single field or flag whose right value follows from the format alone. */
#include "repair.h"

/* Bits to clear in the entry that a finding names.  Entries are looked up again, so that several
 * findings about one entry add up. */
struct field_rule {
    enum check_id check;
    uint64_t clear;
};

static const struct field_rule rules[] = {
    {CHECK_l1_reserved_bits, QCOW2_L1_RESERVED},
    {CHECK_l2_zero_flag, QCOW2_ENTRY_ZERO},
    {CHECK_l2_subcluster_zero_flag, QCOW2_ENTRY_ZERO},
    {CHECK_reftable_reserved_bits, QCOW2_REFTABLE_RSVD},
    {CHECK_bitmap_entry_reserved, QCOW2_BITMAP_RESERVED},
};

/* An entry that programs would not follow becomes one that they do: what it names must be counted
 * before that. */
static int count_target(struct repair *repair, enum check_id why, uint64_t value)
{
    struct walk *walk = repair->walk;
    uint64_t host_off = value & QCOW2_OFFSET_MASK;
    if ((value & QCOW2_ENTRY_COMPRESSED) || host_off == 0 || walk->geo.data_file ||
        check_outside(&walk->view, host_off, walk->geo.cluster_size))
        return 0;
    uint64_t cluster = cluster_of(&walk->geo, host_off), max = walk->geo.refcount_max;
    struct cluster_facts facts = walk_facts(walk, cluster);
    uint64_t want = facts.refs < max ? facts.refs : max;
    if (!facts.stored_known || facts.stored >= want ||
        walk_block_off(walk, cluster >> walk->geo.refblock_bits) == 0)
        return 0;
    return plan_refcount(&repair->plan, PHASE_TAKE, why, cluster, want);
}

/* Without those bits the entry names what it may name.  Where not, they are the least of it, and
 * the table in which it stands, or which it names, may be something else. */
static bool makes_sense(const struct repair *repair, enum object_kind kind, uint64_t value)
{
    struct walk *walk = repair->walk;
    bool counts = kind == OBJECT_REFTABLE_ENTRY;
    uint64_t host_off = value & (counts ? QCOW2_REFTABLE_MASK : QCOW2_OFFSET_MASK);
    bool l2 = kind == OBJECT_L2_ENTRY;
    if (host_off == 0 || (l2 && (walk->geo.data_file || (value & QCOW2_ENTRY_COMPRESSED))))
        return true;
    enum area_kind area = walk_area_at(walk, cluster_of(&walk->geo, host_off), NULL);
    bool table = area == AREA_NONE || area == (counts ? AREA_REFCOUNT_BLOCK : AREA_L2_TABLE);
    return table && cluster_aligned(&walk->geo, host_off) &&
           !check_outside(&walk->view, host_off, walk->geo.cluster_size);
}

/* What the header says of the refcount table cannot be: entries of it may be anybody's data. */
static bool doubts_reftable(const struct repair *repair)
{
    return repair->no_reftable || repair_has(repair, CHECK_header_reftable_missing) ||
           repair_has(repair, CHECK_header_reftable_too_large) ||
           repair_has(repair, CHECK_header_reftable_unaligned) ||
           repair_has(repair, CHECK_header_reftable_outside);
}

bool repair_names_block(const struct repair *repair, const struct finding *finding)
{
    uint64_t value = repair->walk->reftable[finding->index];
    return makes_sense(repair, OBJECT_REFTABLE_ENTRY, value & ~QCOW2_REFTABLE_RSVD);
}

static int clear_bits(struct repair *repair, const struct finding *finding, uint64_t clear)
{
    uint64_t off = repair_entry_off(repair, finding), value;
    int ret = plan_peek(&repair->plan, off, &value);
    if (ret < 0 || !(value & clear))
        return ret;
    enum object_kind kind = check_rows[finding->check].kind;
    bool entry = kind == OBJECT_L1_ENTRY || kind == OBJECT_L2_ENTRY;
    if (kind == OBJECT_REFTABLE_ENTRY &&
        (doubts_reftable(repair) || !makes_sense(repair, kind, value & ~clear)))
        return 0; /* it is made anew */
    /* Where a table lies on something else, that may be what the bytes are. */
    uint64_t cluster = cluster_of(&repair->walk->geo, off);
    if (kind == OBJECT_L1_ENTRY && repair->careful &&
        census_get(repair->walk->census, cluster).conflict)
        return 0;
    if (entry && (repair->careful || kind == OBJECT_L1_ENTRY) &&
        !makes_sense(repair, kind, value & ~clear))
        return 0; /* of an L1 table of garbage there are millions; --lossy drops them */
    if (entry)
        ret = count_target(repair, finding->check, value & ~clear);
    return ret < 0 ? ret
                   : plan_be64(&repair->plan, PHASE_SWITCH, finding->check, off, value & ~clear);
}

/* One of two bits too many: data that decodes is compressed, and has neither COPIED nor
 * subclusters; other data is not.  With reserved bits it may be the compressed bit that is missing.
 */
static int settle_compressed(struct repair *repair, const struct finding *finding)
{
    uint64_t off = repair_entry_off(repair, finding), raw;
    uint8_t bytes[16] = {0};
    struct qcow2_l2_entry packed;
    int ret = plan_peek(&repair->plan, off, &raw);
    if (ret < 0)
        return ret;
    store_be64(bytes, (raw | QCOW2_ENTRY_COMPRESSED) & ~QCOW2_ENTRY_COPIED);
    qcow2_l2_decode(&repair->walk->geo, bytes, &packed);
    bool is_plain = cluster_aligned(&repair->walk->geo, raw & QCOW2_OFFSET_MASK) &&
                    !(raw & (QCOW2_L2_RESERVED | QCOW2_ENTRY_ZERO));
    bool decodes = !check_outside(&repair->walk->view, packed.host_off, packed.length) &&
                   repair_decodes(repair, &packed);
    if (finding->check == CHECK_l2_compressed_bitmap && (decodes || (!is_plain && repair->lossy)))
        return plan_be64(&repair->plan, PHASE_SWITCH, finding->check, off + 8, 0);
    if (finding->check == CHECK_l2_compressed_bitmap && !is_plain)
        return 0;
    if (decodes)
        raw = packed.raw;
    else if (finding->check == CHECK_l2_reserved_bits)
        return clear_bits(repair, finding, QCOW2_L2_RESERVED);
    else if (is_plain)
        raw &= ~QCOW2_ENTRY_COMPRESSED;
    else
        raw &= ~QCOW2_ENTRY_COPIED;
    ret = count_target(repair, finding->check, raw);
    return ret < 0 ? ret : plan_be64(&repair->plan, PHASE_SWITCH, finding->check, off, raw);
}

/* All that is counted for the table of an L1 entry are the references of disks that have it at one
 * other place. */
static bool is_odd_one_out(const struct repair *repair, const struct finding *finding)
{
    enum { MANY = 1000 };
    uint64_t stored, there = 0, index = UINT64_MAX;
    if (repair->report.hits[CHECK_l1_entry_shared] > MANY)
        return false; /* each is held against each */
    for (size_t i = 0; i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (f->check != CHECK_l1_entry_shared || f->host_off != finding->host_off ||
            (f->tree == finding->tree && f->index == finding->index))
            continue;
        if (f->index == finding->index || (index != UINT64_MAX && f->index != index))
            return false;
        index = f->index;
        there += repair->walk->trees[f->tree].same_l1;
    }
    uint64_t cluster = cluster_of(&repair->walk->geo, finding->host_off);
    return there > 1 && walk_stored(repair->walk, cluster, &stored) && stored == there;
}

/* An L1 entry of the active disk that was empty, where no table was lost. */
static int drop_stray_bit(struct repair *repair, const struct finding *finding)
{
    uint64_t off = repair_entry_off(repair, finding), raw;
    int ret = plan_peek(&repair->plan, off, &raw);
    if (ret < 0 || finding->table_off != repair->walk->header.l1_off ||
        repair_has(repair, CHECK_orphan_l2_table))
        return ret;
    bool odd = finding->check == CHECK_l1_entry_shared && __builtin_popcountll(raw) == 1 &&
               is_odd_one_out(repair, finding);
    if (!odd && !repair_is_stray_bit(repair, raw))
        return 0;
    return plan_be64(&repair->plan, PHASE_SWITCH, finding->check, off, 0);
}

/* In a data file every guest offset has its own place (spec: external data file bit).  Where the
 * image counts the cluster that the entry names, and nothing uses it, it is that bit which is
 * wrong, and the entry the way to the data.  Of a table that hangs on two places it was judged at
 * the first of them, which may be the wrong one.  Without COPIED the first entry of all, whose
 * offset is 0, would be none. */
static int set_offset(struct repair *repair, const struct finding *finding)
{
    uint64_t off = repair_entry_off(repair, finding), value = 0;
    const struct table *table = table_find(&repair->walk->tables, finding->table_off);
    if (table && table->elsewhere)
        return 0;
    int ret = plan_peek(&repair->plan, off, &value);
    uint64_t cluster = cluster_of(&repair->walk->geo, value & QCOW2_OFFSET_MASK);
    if (ret == 0 && !walk_leaked(repair->walk, cluster))
        ret = plan_be64(&repair->plan, PHASE_SWITCH, finding->check, off,
            (value & ~QCOW2_OFFSET_MASK) | finding->want | QCOW2_ENTRY_COPIED);
    return ret;
}

/* Header fields of which only a bit is wrong. */
static int header_bit(struct repair *repair, const struct finding *finding)
{
    const struct qcow2_header *header = &repair->walk->header;
    uint64_t clear = finding->check == CHECK_header_bitmaps_bit    ? QCOW2_AUTOCLEAR_BITMAPS
                     : finding->check == CHECK_header_raw_data_bit ? QCOW2_AUTOCLEAR_RAW_DATA
                                                                   : 0;
    if (!clear)
        return 0;
    uint64_t value = header->autoclear;
    plan_peek(&repair->plan, QCOW2_HDR_AUTOCLEAR, &value);
    return plan_be64(
        &repair->plan, PHASE_SWITCH, finding->check, QCOW2_HDR_AUTOCLEAR, value & ~clear);
}

int repair_fields(struct repair *repair)
{
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < repair->findings.count; i++) {
        const struct finding *finding = &repair->findings.items[i];
        /* The table is guest data as well: what looks like an entry may be that. */
        if (finding->has_table &&
            repair_has_at(repair, CHECK_l1_entry_into_data, finding->table_off))
            continue;
        ret = header_bit(repair, finding);
        for (size_t k = 0; ret == 0 && k < sizeof(rules) / sizeof(rules[0]); k++) {
            if (rules[k].check == finding->check)
                ret = clear_bits(repair, finding, rules[k].clear);
        }
        if (ret == 0 && (finding->check == CHECK_l2_compressed_copied ||
                            finding->check == CHECK_l2_compressed_bitmap ||
                            finding->check == CHECK_l2_reserved_bits))
            ret = settle_compressed(repair, finding);
        if (ret == 0 && finding->check == CHECK_l2_data_file_offset)
            ret = set_offset(repair, finding);
        if (ret == 0 && (finding->check == CHECK_l1_entry_into_metadata ||
                            finding->check == CHECK_l1_entry_unaligned ||
                            finding->check == CHECK_l1_entry_shared))
            ret = drop_stray_bit(repair, finding);
    }
    return ret;
}

/* It is an L1 entry's, and that may be wrong as a whole: what it names is hardly a table. */
static bool names_doubtful(const struct repair *repair, const struct finding *finding)
{
    const struct table *table = check_rows[finding->check].kind == OBJECT_L1_ENTRY
                                    ? table_find(&repair->walk->tables, finding->host_off)
                                    : NULL;
    return table && (table->implausible || plan_doubts(table));
}

/* COPIED as the stored counts demand, when these are right. */
int repair_copied(struct repair *repair)
{
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < repair->findings.count; i++) {
        const struct finding *finding = &repair->findings.items[i];
        if (!repair->lossy && names_doubtful(repair, finding))
            continue;
        switch (finding->check) {
        case CHECK_l1_copied_set:
        case CHECK_l2_copied_set:
        case CHECK_l2_copied_unallocated: /* and nothing was lost there */
            ret = clear_bits(repair, finding, QCOW2_ENTRY_COPIED);
            break;
        case CHECK_l1_copied_clear:
        case CHECK_l2_copied_clear:
            ret = plan_be64(&repair->plan, PHASE_RELEASE, finding->check,
                repair_entry_off(repair, finding), finding->want);
            break;
        default:
            break;
        }
    }
    return ret;
}
