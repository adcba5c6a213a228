/* SPDX-License-Identifier: MIT
 *
 * What the stages of a repair ask about the round: which findings there are, and what is missing by
 * the counts.  Nothing is planned here. */
#include "repair.h"

uint64_t repair_entry_off(const struct repair *repair, const struct finding *finding)
{
    enum object_kind kind = check_rows[finding->check].kind;
    unsigned size =
        kind == OBJECT_L2_ENTRY || kind == OBJECT_COMPRESSED ? repair->walk->geo.l2_entry_size : 8;
    return finding->table_off + finding->index * size;
}

/* The first of the round's findings, which are sorted, that does not come before these. */
static size_t first_finding(const struct repair *repair, enum check_id check, uint64_t host_off)
{
    size_t low = 0, high = repair->findings.count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct finding *f = &repair->findings.items[middle];
        if (f->check < check || (f->check == check && f->host_off < host_off))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

bool repair_has(const struct repair *repair, enum check_id check)
{
    size_t at = first_finding(repair, check, 0);
    return at < repair->findings.count && repair->findings.items[at].check == check;
}

bool repair_has_at(const struct repair *repair, enum check_id check, uint64_t host_off)
{
    size_t at = first_finding(repair, check, host_off);
    return at < repair->findings.count && repair->findings.items[at].check == check &&
           repair->findings.items[at].host_off == host_off;
}

/* A count beyond all that the disks can have lost is itself what is damaged. */
static bool is_believable(const struct repair *repair, uint64_t count)
{
    enum { MOST_A_DISK = 128 };
    return count > 0 && count <= repair->walk->tree_count * MOST_A_DISK;
}

bool repair_deficit(const struct repair *repair, uint64_t host_off)
{
    const struct walk *walk = repair->walk;
    if (host_off == 0 || !cluster_aligned(&walk->geo, host_off) || host_off >= walk->file_size)
        return false;
    uint64_t cluster = cluster_of(&walk->geo, host_off);
    int64_t balance = census_get(walk->census, cluster).balance;
    return !repair->void_counts && census_known(walk->census, cluster) && balance > 0 &&
           is_believable(repair, (uint64_t)balance);
}

bool repair_counted(const struct repair *repair, uint64_t host_off)
{
    const struct walk *walk = repair->walk;
    uint64_t cluster = cluster_of(&walk->geo, host_off);
    return census_known(walk->census, cluster) &&
           walk_block_off(walk, cluster >> walk->geo.refblock_bits) != 0;
}

bool repair_is_stray_bit(const struct repair *repair, uint64_t raw)
{
    uint64_t stored, cluster = cluster_of(&repair->walk->geo, raw);
    return (raw & QCOW2_OFFSET_MASK) == raw && __builtin_popcountll(raw) == 1 &&
           walk_stored(repair->walk, cluster, &stored) && stored == 1;
}

bool repair_was_cut_off(const struct repair *repair, uint64_t host_off)
{
    struct walk *walk = repair->walk;
    uint64_t stored;
    return host_off >= walk->view.file_size && host_off <= INT64_MAX &&
           census_known(walk->census, cluster_of(&walk->geo, host_off)) &&
           walk_stored(walk, cluster_of(&walk->geo, host_off), &stored) &&
           is_believable(repair, stored);
}

/* Where something read as zeros, say, and that may have been right. */
bool repair_shows_more(const struct repair *repair, const struct report *report)
{
    for (int check = 0; check < CHECK_COUNT; check++) {
        bool orphan = check == CHECK_orphan_l2_table || check == CHECK_orphan_l1_table;
        if (check_rows[check].severity == SEVERITY_DAMAGE &&
            !(orphan && repair->orphans_may_show) &&
            report->hits[check] > repair->report.hits[check])
            return true;
    }
    return false;
}

int repair_take(struct repair *repair, uint64_t host_off, uint64_t refs)
{
    bool conflict;
    return census_claim(repair->walk->census, cluster_of(&repair->walk->geo, host_off), refs,
        CLAIM_PACKED, &conflict);
}
