/* SPDX-License-Identifier: MIT
 *
 * The snapshot table read again.  One damaged length hides every record behind it, and a damaged
 * count or offset all of them; but records are told by their looks, and their L1 tables by missing
 * a reference.  Each mend is one write of one field, so that nothing else of the table changes. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "repair.h"

enum {
    MAX_TABLE_BYTES = 4 << 20,
    MAX_PATCHES = 8,
    MAX_SCANNED = 1024,
    MAX_ID = 32,
    ID_LEN_AT = 12, /* in a record */
    NAME_LEN_AT = 14,
    EXTRA_LEN_AT = 36,
};

/* What is at some place, taken for the snapshot table. */
struct reading {
    uint64_t table_off;
    uint8_t *bytes;
    size_t length;
    uint64_t count;  /* records */
    uint64_t missed; /* of them, whose L1 table misses a reference */
    bool ended;      /* nothing but zeros behind the last one */
    bool unsure;     /* a mend was as good as another one */
    size_t next;     /* where another record is, by the lengths as stored; 0: nowhere, or unknown */
    struct patch patches[MAX_PATCHES];
    size_t patch_count;
};

/* ---- what a record looks like ---- */

static bool head_fits(const struct walk *walk, const struct qcow2_snapshot *s)
{
    return s->l1_off != 0 && cluster_aligned(&walk->geo, s->l1_off) && s->l1_size > 0 &&
           s->l1_size <= QCOW2_MAX_L1_BYTES / 8 && s->date_nsec < 1000000000 &&
           !check_outside(&walk->view, s->l1_off, s->l1_size * UINT64_C(8));
}

static bool is_number(const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (bytes[i] < '0' || bytes[i] > '9')
            return false;
    }
    return true;
}

/* Decodes as far as the table reaches; false if not even the head is there. */
static bool decode_at(const struct reading *r, size_t pos, struct qcow2_snapshot *s)
{
    return pos < r->length &&
           (qcow2_snapshot_decode(r->bytes + pos, r->length - pos, s) == 0 || s->record_len > 0);
}

enum {
    IMPOSSIBLE = 100000,
    NO_TEXT = 5000,
    UNFIT = 1000, /* from here on other lengths are tried */
    PADDING = 200,
    NO_NUMBER = 100,
    DISK_SIZE = 50,
    MORE_EXTRA = 50,
    STALE = 1,        /* bytes follow: zeros are better */
    KNOWN_EXTRA = 24, /* bytes */
};

/* ID and name are text, and lie in the table. */
static bool text_fits(const struct reading *r, size_t pos, const struct qcow2_snapshot *s)
{
    uint64_t text = (uint64_t)QCOW2_SNAPSHOT_HEAD_BYTES + s->extra_len;
    uint64_t end = text + s->id_len + s->name_len;
    return s->extra_len <= QCOW2_MAX_SNAPSHOT_EXTRA && end <= r->length - pos &&
           walk_is_text(r->bytes + pos + text, s->id_len + (size_t)s->name_len);
}

static bool record_at(const struct walk *walk, const struct reading *r, size_t pos)
{
    struct qcow2_snapshot s;
    return decode_at(r, pos, &s) &&
           (head_fits(walk, &s) || (s.id_len > 0 && text_fits(r, pos, &s)));
}

/* What speaks against the record at `pos` as decoded; `last`: none needs to follow. */
static unsigned doubts(const struct walk *walk, const struct reading *r, size_t pos,
    const struct qcow2_snapshot *s, bool last)
{
    uint64_t text = (uint64_t)QCOW2_SNAPSHOT_HEAD_BYTES + s->extra_len, end = text + s->id_len;
    end += s->name_len;
    if (end > r->length - pos)
        return IMPOSSIBLE;
    size_t next = pos + (size_t)(end + 7) / 8 * 8, behind = pos + (size_t)end;
    size_t padding =
        next > behind ? next - behind : behind < r->length; /* or the next offset's top */
    unsigned sum = s->id_len == 0 ? UNFIT : 0;
    if (!text_fits(r, pos, s))
        sum += NO_TEXT;
    if (s->extra_len > KNOWN_EXTRA)
        sum += MORE_EXTRA;
    if (behind + padding > r->length || !walk_bytes_zero(r->bytes + behind, padding))
        sum += PADDING;
    if (!is_number(r->bytes + pos + text, s->id_len))
        sum += NO_NUMBER;
    uint64_t disk = s->extra_len < QCOW2_SNAPSHOT_EXTRA_V3
                        ? 0
                        : load_be64(r->bytes + pos + QCOW2_SNAPSHOT_HEAD_BYTES + 8);
    if (disk > capped_product(s->l1_size, walk->geo.l2_span))
        sum += DISK_SIZE;
    bool zeros = next + QCOW2_SNAPSHOT_HEAD_BYTES > r->length ||
                 walk_bytes_zero(r->bytes + next, QCOW2_SNAPSHOT_HEAD_BYTES);
    if (!last && !record_at(walk, r, next))
        sum += UNFIT;
    else if (last && !zeros && !record_at(walk, r, next))
        sum += STALE;
    return sum;
}

/* ---- lengths ---- */

struct choice {
    struct patch patch; /* length 0: none is needed */
    struct qcow2_snapshot record;
    unsigned doubts;
    bool tie;
};

/* As stored the record ends before another one, which the choice would take for a part of it. */
static bool swallows_next(const struct reading *r, size_t pos, const struct choice *choice)
{
    return r->next != 0 && pos + choice->record.record_len > r->next;
}

static void weigh(const struct walk *walk, struct reading *r, size_t pos, bool last,
    struct patch patch, struct choice *best)
{
    uint8_t old[8] = {0}, *place = r->bytes + patch.off;
    struct choice choice = {.patch = patch};
    unsigned bits = 0;
    memcpy(old, place, patch.length);
    memcpy(place, patch.bytes, patch.length);
    for (size_t i = 0; i < patch.length; i++)
        bits += (unsigned)__builtin_popcount((unsigned)(old[i] ^ patch.bytes[i]));
    decode_at(r, pos, &choice.record);
    choice.doubts = doubts(walk, r, pos, &choice.record, last) + bits;
    if (swallows_next(r, pos, &choice))
        choice.doubts += IMPOSSIBLE;
    memcpy(place, old, patch.length);
    if (choice.doubts < best->doubts)
        *best = choice;
    else if (choice.doubts == best->doubts)
        best->tie = true;
}

static struct patch patch_be16(uint64_t off, uint32_t value)
{
    struct patch patch = {.off = off, .length = 2};
    store_be16(patch.bytes, (uint16_t)value);
    return patch;
}

/* Both lengths of text are wrong: the ID is a number, and the name goes on behind it.  Where the
 * name may begin with digits, IDs count the records. */
static void weigh_both(
    const struct walk *walk, struct reading *r, size_t pos, bool last, struct choice *best)
{
    struct qcow2_snapshot s;
    char nth[24];
    size_t text = pos + QCOW2_SNAPSHOT_HEAD_BYTES, digits = 0;
    if (!decode_at(r, pos, &s) || s.extra_len > QCOW2_MAX_SNAPSHOT_EXTRA)
        return;
    text += s.extra_len;
    while (digits < MAX_ID && text + digits < r->length && is_number(r->bytes + text + digits, 1))
        digits++;
    size_t id = (size_t)snprintf(nth, sizeof(nth), "%llu", (unsigned long long)r->count + 1);
    if (digits == 0 || (digits > 1 && (id > digits || memcmp(r->bytes + text, nth, id) != 0)))
        return;
    id = digits == 1 ? 1 : id;
    for (uint32_t name = 0; name <= QCOW2_MAX_BACKING_NAME; name++)
        weigh(walk, r, pos, last, patch_be32(pos + ID_LEN_AT, (uint32_t)id << 16 | name), best);
}

/* The lengths of the record at `pos` that make most sense: as they stand, or some of them changed.
 */
static struct choice choose_lengths(
    const struct walk *walk, struct reading *r, size_t pos, bool last)
{
    struct choice best = {.doubts = UINT32_MAX}, as_stored;
    r->next = 0;
    weigh(walk, r, pos, last, (struct patch){.off = pos}, &best);
    as_stored = best;
    if (best.doubts < UNFIT || r->patch_count == MAX_PATCHES)
        return best;
    size_t next = pos + (size_t)best.record.record_len;
    struct qcow2_snapshot behind;
    if (best.doubts < IMPOSSIBLE && !last && decode_at(r, next, &behind) &&
        head_fits(walk, &behind))
        r->next = next;
    for (uint32_t value = 0; value <= QCOW2_MAX_SNAPSHOT_EXTRA; value += 8)
        weigh(walk, r, pos, last, patch_be32(pos + EXTRA_LEN_AT, value), &best);
    for (uint32_t value = 1; value <= MAX_ID; value++)
        weigh(walk, r, pos, last, patch_be16(pos + ID_LEN_AT, value), &best);
    for (uint32_t value = 0; value <= QCOW2_MAX_BACKING_NAME; value++)
        weigh(walk, r, pos, last, patch_be16(pos + NAME_LEN_AT, value), &best);
    if (best.doubts >= NO_NUMBER)
        weigh_both(walk, r, pos, last, &best);
    /* Padding may be what was there before, if the record behind it bears the lengths out, or a bit
     * alone makes text of what is none. */
    bool by_a_bit = as_stored.doubts >= NO_TEXT && !best.tie && best.doubts <= PADDING + STALE + 1;
    return best.doubts < (last ? PADDING : UNFIT) || by_a_bit ? best : as_stored;
}

/* ---- the table ---- */

static int load(struct repair *repair, uint64_t table_off, struct reading *r)
{
    const struct walk *walk = repair->walk;
    uint64_t end = clusters_for(&walk->geo, walk->file_size) << walk->geo.cluster_bits;
    *r = (struct reading){.table_off = table_off};
    if (table_off == 0 || !cluster_aligned(&walk->geo, table_off) || table_off >= walk->file_size)
        return 0;
    r->length = end - table_off < MAX_TABLE_BYTES ? (size_t)(end - table_off) : MAX_TABLE_BYTES;
    r->bytes = malloc(r->length);
    int ret = r->bytes ? io_read_padded(walk->io, table_off, r->bytes, r->length) : -ENOMEM;
    if (ret < 0) {
        free(r->bytes);
        *r = (struct reading){.table_off = table_off};
    }
    return ret == -ENOMEM ? ret : 0;
}

/* Reads records while there are any; behind the `known` first ones only such as are missed. */
static int read_table(struct repair *repair, uint64_t table_off, uint64_t known, struct reading *r)
{
    const struct walk *walk = repair->walk;
    int ret = load(repair, table_off, r);
    size_t pos = 0;
    while (ret == 0 && r->bytes && r->count < QCOW2_MAX_SNAPSHOTS) {
        struct qcow2_snapshot s;
        if (pos + QCOW2_SNAPSHOT_HEAD_BYTES > r->length ||
            walk_bytes_zero(r->bytes + pos, QCOW2_SNAPSHOT_HEAD_BYTES)) {
            r->ended = table_off + pos + QCOW2_SNAPSHOT_HEAD_BYTES <= walk->file_size;
            break;
        }
        decode_at(r, pos, &s); /* its head is there */
        /* Or the header takes it for the table of snapshots. */
        bool missed =
            head_fits(walk, &s) && (repair_deficit(repair, s.l1_off) ||
                                       repair_has_at(repair, CHECK_orphan_l1_table, s.l1_off) ||
                                       s.l1_off == walk->header.snapshots_off);
        if (r->count >= known && !missed)
            break;
        struct choice choice = choose_lengths(walk, r, pos, r->count + 1 >= known);
        if (choice.doubts >= IMPOSSIBLE ||
            (r->count == 0 && !head_fits(walk, &s) && choice.doubts >= NO_TEXT))
            break;
        if (choice.patch.length > 0) {
            memcpy(r->bytes + choice.patch.off, choice.patch.bytes, choice.patch.length);
            r->patches[r->patch_count++] = choice.patch;
            r->unsure |= choice.tie;
        }
        r->count++;
        r->missed += missed;
        pos += (size_t)choice.record.record_len;
    }
    return ret;
}

static int plan_lengths(struct repair *repair, const struct reading *r)
{
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < r->patch_count; i++) {
        uint64_t host_off = r->table_off + r->patches[i].off;
        if (r->unsure)
            ret = plan_remark(&repair->plan,
                "choice: more than one length fits the snapshot record at 0x%llx",
                (unsigned long long)host_off);
        if (ret == 0)
            ret = plan_bytes(&repair->plan, PHASE_SWITCH, CHECK_snapshot_table_truncated, host_off,
                r->patches[i].bytes, r->patches[i].length);
    }
    return ret;
}

/* The table is where the header says: its records, then the count of them. */
static int mend_table(struct repair *repair, const struct reading *r)
{
    uint32_t count = repair->walk->header.snapshot_count;
    bool lossy = repair->lossy;
    if (r->patch_count > 0)
        return r->unsure && !lossy ? 0 : plan_lengths(repair, r);
    if (r->count == count)
        return 0;
    bool fewer = r->count < count && count <= QCOW2_MAX_SNAPSHOTS &&
                 (!r->ended || repair_has(repair, CHECK_orphan_l1_table));
    if (fewer && (!lossy || !repair_has(repair, CHECK_snapshot_table_truncated)))
        return 0;
    int ret = fewer ? plan_remark(&repair->plan, "lost: %llu snapshots behind the end of the table",
                          (unsigned long long)(count - r->count))
                    : 0;
    return ret < 0 ? ret
                   : plan_be32(&repair->plan, PHASE_SWITCH, CHECK_snapshot_table_truncated,
                         QCOW2_HDR_SNAPSHOT_COUNT, (uint32_t)r->count);
}

/* ---- its place ---- */

static void take_better(struct reading *best, struct reading *r, bool *tie)
{
    if (r->missed > best->missed) {
        struct reading worse = *best;
        *best = *r;
        *r = worse;
        *tie = false;
    } else if (r->missed > 0 && r->missed == best->missed) {
        *tie |= r->table_off != best->table_off;
    }
    free(r->bytes);
}

static bool is_leaked(const struct walk *walk, uint64_t cluster)
{
    struct census_cell cell = census_get(walk->census, cluster);
    return !cell.claimed && cell.balance > 0 && cluster < walk->cluster_end;
}

/* What looks like the table, among orphans, what is a bit away from the header's offset, and all
 * that nobody uses. */
static int find_table(struct repair *repair, struct reading *best, bool *tie)
{
    const struct walk *walk = repair->walk;
    const struct qcow2_header *header = &walk->header;
    uint64_t known = header->snapshot_count <= QCOW2_MAX_SNAPSHOTS ? header->snapshot_count : 0;
    struct reading r;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < repair->findings.count; i++) {
        const struct finding *f = &repair->findings.items[i];
        if (f->check != CHECK_orphan_snapshot_table || repair_is_no_root(repair, f->host_off))
            continue;
        ret = read_table(repair, f->host_off, known, &r);
        take_better(best, &r, tie);
    }
    for (unsigned bit = 0; ret == 0 && best->missed == 0 && bit < 63; bit++) {
        ret = read_table(repair, header->snapshots_off ^ UINT64_C(1) << bit, known, &r);
        take_better(best, &r, tie);
    }
    uint64_t cluster = 0;
    for (unsigned seen = 0; ret == 0 && best->missed == 0 && seen < MAX_SCANNED &&
                            census_next_mismatch(walk->census, cluster, &cluster);
         seen++, cluster++) {
        if (!is_leaked(walk, cluster) ||
            repair_is_no_root(repair, cluster << walk->geo.cluster_bits))
            continue;
        ret = read_table(repair, cluster << walk->geo.cluster_bits, known, &r);
        take_better(best, &r, tie);
    }
    return ret;
}

/* Entries that name what was cut off are still to go: until then nothing is put there. */
static bool room_will_come(const struct repair *repair)
{
    const uint64_t *hits = repair->report.hits;
    return hits[CHECK_l1_entry_outside] + hits[CHECK_l2_entry_outside] +
               hits[CHECK_l2_compressed_outside] >
           0;
}

static int give_up_table(struct repair *repair, enum check_id why)
{
    uint8_t none[12] = {0};
    repair->plan.alloc_end = repair->named_end; /* the pointer is no obstacle: it goes */
    int ret = repair_adopt_snapshots(repair, why);
    if (ret == -ENOSPC) {
        repair_new_plan(repair);
        if (room_will_come(repair))
            return 0;
        return repair_make_room(repair);
    }
    if (ret < 0 || repair->plan.count > 0)
        return ret;
    ret = plan_remark(&repair->plan, "lost: all %u snapshots, whose table cannot be found",
        repair->walk->header.snapshot_count);
    return ret < 0 ? ret
                   : plan_bytes(&repair->plan, PHASE_SWITCH, why, QCOW2_HDR_SNAPSHOT_COUNT, none,
                         sizeof(none));
}

/* The pointer is no good; `why` tells in which way, or that there is only an orphan. */
static int mend_pointer(struct repair *repair, enum check_id why)
{
    const struct qcow2_header *header = &repair->walk->header;
    struct reading best = {0};
    uint8_t bytes[12];
    bool tie = false;
    /* What was cut off with the file is nowhere else. */
    bool gone = repair_was_cut_off(repair, header->snapshots_off);
    int ret = gone ? 0 : find_table(repair, &best, &tie);
    store_be32(bytes, (uint32_t)best.count);
    store_be64(bytes + 4, best.table_off);
    bool found = best.missed > 0 && (!tie || repair->lossy);
    if (ret == 0 && found && tie)
        ret = plan_remark(&repair->plan,
            "choice: more than one place looks like the table of snapshots; it is the one at "
            "0x%llx",
            (unsigned long long)best.table_off);
    if (ret == 0 && found)
        ret = plan_bytes(
            &repair->plan, PHASE_SWITCH, why, QCOW2_HDR_SNAPSHOT_COUNT, bytes, sizeof(bytes));
    else if (ret == 0 && header->snapshot_count == 0 && why != CHECK_orphan_snapshot_table)
        ret = plan_be64(&repair->plan, PHASE_SWITCH, why, QCOW2_HDR_SNAPSHOTS_OFF, 0);
    else if (ret == 0 && repair->lossy && why != CHECK_orphan_snapshot_table)
        ret = give_up_table(repair, why);
    free(best.bytes);
    return ret;
}

/* The finding that says that the table is not where the header looks for it. */
static enum check_id pointer_finding(const struct repair *repair)
{
    static const enum check_id checks[] = {
        CHECK_header_snapshots_unaligned, CHECK_header_snapshots_outside};
    for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
        if (repair_has(repair, checks[i]))
            return checks[i];
    }
    return repair->fake_records ? CHECK_area_shared : CHECK_COUNT;
}

/* A header without snapshots is what an interrupted create began with and a delete ended with, and
 * either leaves a table behind: putting that back takes --lossy, or a header that says more. */
static bool says_more(const struct repair *repair)
{
    const struct qcow2_header *header = &repair->walk->header;
    return repair->lossy || header->snapshot_count > 0 || header->snapshots_off != 0;
}

/* Its first record is none that a program would write: it is something else that lies there. */
static bool starts_oddly(const struct walk *walk, const struct reading *r)
{
    struct qcow2_snapshot s;
    return !decode_at(r, 0, &s) ||
           (!head_fits(walk, &s) && (s.id_len == 0 || !text_fits(r, 0, &s)));
}

/* Not even a length: there is nothing in it to mend. */
static bool starts_empty(const struct reading *r)
{
    struct qcow2_snapshot s;
    return r->count > 0 && decode_at(r, 0, &s) && s.l1_size == 0 && s.id_len == 0;
}

int repair_records(struct repair *repair)
{
    const struct walk *walk = repair->walk;
    const struct qcow2_header *header = &walk->header;
    struct reading r;
    uint64_t mismatch;
    if (!walk->judgeable || walk->left ||
        (header->snapshot_count == 0 && header->snapshots_off == 0 &&
            !repair_has(repair, CHECK_orphan_snapshot_table)))
        return 0;
    enum check_id why = pointer_finding(repair);
    if (why != CHECK_COUNT)
        return mend_pointer(repair, why);
    if (repair->report.corruptions == 0 && !census_next_mismatch(walk->census, 0, &mismatch))
        return 0;
    uint64_t known = header->snapshot_count <= QCOW2_MAX_SNAPSHOTS ? header->snapshot_count : 0;
    int ret = read_table(repair, header->snapshots_off, known, &r);
    bool odd = r.count == 0 || starts_oddly(walk, &r);
    bool elsewhere = repair_has(repair, CHECK_orphan_snapshot_table) || (r.count > 0 && odd);
    if (ret == 0 && odd && elsewhere && says_more(repair))
        ret = mend_pointer(repair, CHECK_orphan_snapshot_table);
    bool empty = starts_empty(&r);
    if (ret == 0 && repair->plan.count == 0 && r.count > 0 && !empty)
        ret = mend_table(repair, &r);
    else if (ret == 0 && repair->plan.count == 0 && (!elsewhere || empty) && repair->lossy &&
             (repair_has(repair, CHECK_snapshot_table_truncated) ||
                 repair_has(repair, CHECK_snapshot_id_empty)))
        ret = give_up_table(repair, CHECK_snapshot_table_truncated);
    free(r.bytes);
    return ret;
}
