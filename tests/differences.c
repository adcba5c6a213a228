/* SPDX-License-Identifier: MIT */
#include "differences.h"

#include <string.h>

#include "check.h"
#include "neutral.h"

const char *difference_name(enum difference difference)
{
    static const char *const names[] = {
#define DIFFERENCE(name, why) #name,
#include "differences.def"
#undef DIFFERENCE
    };
    return difference < DIFFERENCE_COUNT ? names[difference] : NULL;
}

/* ---- findings -------------------------------------------------------------------------------- */

static const char *finding_check(const json_t *finding)
{
    const char *name = json_string_value(json_object_get(finding, "check"));
    return name ? name : "";
}

static bool has_finding(const struct verdict *v, const char *check)
{
    size_t idx;
    json_t *finding;
    json_array_foreach(json_object_get(v->json, "findings"), idx, finding)
    {
        if (strcmp(finding_check(finding), check) == 0)
            return true;
    }
    return false;
}

/* What findings of checks that qemu-img does not have added to the two counters. */
static void own_share(const struct verdict *v, int64_t *corruptions, int64_t *leaks)
{
    size_t idx;
    json_t *finding;
    *corruptions = *leaks = 0;
    json_array_foreach(json_object_get(v->json, "findings"), idx, finding)
    {
        int check = check_find(finding_check(finding));
        json_t *count = json_object_get(finding, "count");
        int64_t adds = count ? json_integer_value(count) : 1;
        if (check >= 0 && check_rows[check].tally == TALLY_CORRUPTION_OWN)
            *corruptions += adds;
        if (check >= 0 && check_rows[check].tally == TALLY_LEAK_OWN)
            *leaks += adds;
    }
}

/* ---- reasons that need no copy ----------------------------------------------------------------
 */

static int exit_of(const struct verdict *v)
{
    if (v->counts[COUNT_CHECK_ERRORS])
        return 1;
    return v->counts[COUNT_CORRUPTIONS] ? 2 : v->counts[COUNT_LEAKS] ? 3 : 0;
}

/* The counts that remain are equal, apart from those in the set `but` (1 << enum compare_count). */
static bool agree_but(const struct comparison *c, unsigned but)
{
    int64_t expect[COMPARE_COUNTS], corruptions, leaks;
    if (!c->qemu.json || !c->own.json)
        return false;
    own_share(&c->own, &corruptions, &leaks);
    memcpy(expect, c->own.counts, sizeof(expect));
    expect[COUNT_CORRUPTIONS] -= corruptions;
    expect[COUNT_LEAKS] -= leaks;
    for (unsigned i = 0; i < COMPARE_COUNTS; i++) {
        if (!(but >> i & 1) && expect[i] != c->qemu.counts[i])
            return false;
    }
    return c->qemu.exit_code == exit_of(&c->qemu) && c->own.exit_code == exit_of(&c->own);
}

/* How often qemu-img counted a reference beyond the largest refcount; qcheck says so only where it
 * knows what is stored. */
static int64_t overflows(const struct comparison *c)
{
    static const char words[] = "ERROR: overflow cluster offset";
    int64_t count = 0;
    for (const char *p = c->qemu.err; p && (p = strstr(p, words)); p += sizeof(words) - 1)
        count++;
    return has_finding(&c->own, "refcount-overflow") ? 0 : count;
}

static int64_t copied_in_l2(const struct comparison *c)
{
    size_t idx;
    json_t *finding;
    int64_t count = 0;
    json_array_foreach(json_object_get(c->own.json, "findings"), idx, finding) count +=
        strncmp(finding_check(finding), "l2-copied-", strlen("l2-copied-")) == 0;
    return count;
}

static bool unreadable_refcounts(const struct comparison *c)
{
    const unsigned but = 1u << COUNT_CHECK_ERRORS | 1u << COUNT_IMAGE_END;
    struct comparison without = *c, skipped;
    without.qemu.counts[COUNT_CORRUPTIONS] -= overflows(c);
    skipped = without;
    skipped.own.counts[COUNT_CORRUPTIONS] -= copied_in_l2(c);
    bool entry = has_finding(&c->own, "reftable-entry-unaligned") ||
                 has_finding(&c->own, "reftable-reserved-bits") ||
                 has_finding(&c->own, "reftable-entry-outside");
    return entry && c->qemu.counts[COUNT_CHECK_ERRORS] > 0 &&
           c->own.counts[COUNT_CHECK_ERRORS] == 0 &&
           (agree_but(&without, but) || agree_but(&skipped, but));
}

static bool exit_fits(const struct comparison *c, enum difference difference)
{
    int own = c->own.exit_code;
    if (difference == DIFFERENCE_unsupported_image)
        return own == 63;
    if (difference == DIFFERENCE_other_file_or_secret || difference == DIFFERENCE_refused_backing)
        return own == 0 || own == 2 || own == 3;
    return own == 1 || own == 2;
}

/* qemu-img gave up; which row of the REFUSAL table tells why, and does qcheck say the same? */
static enum difference refusal(const struct comparison *c)
{
    static const struct row {
        const char *words, *check;
        enum difference difference;
    } rows[] = {
#define REFUSAL(words, check, reason) {words, check, DIFFERENCE_##reason},
#include "differences.def"
#undef REFUSAL
    };
    if (c->qemu.exit_code != 1 || c->qemu.json || !c->own.json)
        return DIFFERENCE_NONE;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        const struct row *row = &rows[i];
        if (strstr(c->qemu.err, row->words) && exit_fits(c, row->difference) &&
            (!row->check || has_finding(&c->own, row->check)))
            return row->difference;
    }
    return DIFFERENCE_NONE;
}

/* Something is taken out of a copy for these, and the outputs suggest one when... */
enum suggestion {
    ALONE,   /* never: no copy is needed */
    REFUSED, /* qemu-img refused the image for that reason */
    FOUND,   /* qcheck has a finding of the check */
    ALWAYS,  /* both judged the image: nothing in the output tells */
};

static const struct {
    enum suggestion when;
    const char *check;
} suggestions[DIFFERENCE_COUNT] = {
    [DIFFERENCE_refused_bitmaps] = {REFUSED, NULL},
    [DIFFERENCE_refused_snapshots] = {REFUSED, NULL},
    [DIFFERENCE_refused_backing] = {REFUSED, NULL},
    [DIFFERENCE_not_a_table] = {ALWAYS, NULL},
    [DIFFERENCE_not_an_l1] = {ALWAYS, NULL},
    [DIFFERENCE_bitmap_table_shared] = {FOUND, "area-shared"},
    [DIFFERENCE_bitmap_table_outside] = {FOUND, "bitmap-table-range"},
    [DIFFERENCE_snapshot_table_cut] = {ALWAYS, NULL},
    [DIFFERENCE_no_refcount_table] = {FOUND, "header-reftable-missing"},
    [DIFFERENCE_backing_name_in_header] = {FOUND, "header-backing-name"},
    [DIFFERENCE_flags_without_offset] = {ALWAYS, NULL},
};

static bool suggested(const struct comparison *c, enum difference difference)
{
    bool both = c->qemu.json && c->own.json;
    switch (suggestions[difference].when) {
    case REFUSED:
        return refusal(c) == difference;
    case FOUND:
        return both && has_finding(&c->own, suggestions[difference].check);
    case ALWAYS:
        return both;
    default:
        return false;
    }
}

/* Checks after which an L2 table is not interpreted. */
static bool is_no_table(const char *check)
{
    return strcmp(check, "l1-entry-unaligned") == 0 ||
           strcmp(check, "l1-entry-into-metadata") == 0 ||
           strcmp(check, "l2-table-implausible") == 0;
}

/* A refcount block is what an entry takes for an L2 table, and both programs say corrupt. */
static bool refcounts_on_table(const struct comparison *c)
{
    size_t i, k;
    json_t *block, *entry, *findings = json_object_get(c->own.json, "findings");
    if (c->qemu.exit_code != 2 || c->own.exit_code != 2)
        return false;
    json_array_foreach(findings, i, block)
    {
        if (strcmp(finding_check(block), "refblock-shared") != 0)
            continue;
        json_array_foreach(findings, k, entry)
        {
            if (is_no_table(finding_check(entry)) &&
                json_equal(
                    json_object_get(entry, "host-offset"), json_object_get(block, "host-offset")))
                return true;
        }
    }
    return false;
}

enum difference difference_alone(const struct comparison *c)
{
    if (agree_but(c, 0))
        return DIFFERENCE_only_qcheck_knows;
    if (unreadable_refcounts(c))
        return DIFFERENCE_unreadable_refcounts;
    if (refcounts_on_table(c))
        return DIFFERENCE_refcounts_on_table;
    enum difference difference = refusal(c);
    return difference == DIFFERENCE_NONE || suggestions[difference].when == ALONE ? difference
                                                                                  : DIFFERENCE_NONE;
}

/* ---- reasons that need one --------------------------------------------------------------------
 */

bool difference_told_of_table(const struct comparison *c)
{
    size_t idx;
    json_t *finding;
    json_array_foreach(json_object_get(c->own.json, "findings"), idx, finding)
    {
        json_int_t off = json_integer_value(json_object_get(finding, "host-offset"));
        json_int_t length = json_integer_value(json_object_get(finding, "length"));
        char words[64];
        if (!is_no_table(finding_check(finding)) || length == 0)
            continue;
        snprintf(words, sizeof(words), "ERROR cluster %lld refcount=", (long long)(off / length));
        if (c->qemu.err && strstr(c->qemu.err, words))
            return true;
    }
    return false;
}

/* Checks after which an L1 table is not interpreted. */
static bool is_no_l1(const char *check)
{
    return strcmp(check, "area-shared") == 0 || strcmp(check, "header-l1-outside") == 0 ||
           strcmp(check, "snapshot-l1-outside") == 0;
}

typedef bool check_set(const char *check);
typedef int drop_fn(struct io *image, uint64_t host_off);

/* Drops what each finding of those checks is about. */
static int drop_found(
    const struct comparison *c, struct io *image, check_set *wanted, drop_fn *drop)
{
    size_t idx;
    json_t *finding;
    int changed = 0;
    json_array_foreach(json_object_get(c->own.json, "findings"), idx, finding)
    {
        if (!wanted(finding_check(finding)))
            continue;
        int ret =
            drop(image, (uint64_t)json_integer_value(json_object_get(finding, "host-offset")));
        if (ret < 0)
            return ret;
        changed += ret;
    }
    return changed;
}

static int drop_l1s(const struct comparison *c, struct io *image)
{
    if (has_finding(&c->own, "header-l1-outside"))
        return neutral_drop_active_l1(image);
    return drop_found(c, image, is_no_l1, neutral_drop_l1);
}

enum difference difference_next(const struct comparison *c, enum difference from)
{
    for (unsigned i = from; i < DIFFERENCE_COUNT; i++) {
        if (suggested(c, i))
            return i;
    }
    return DIFFERENCE_NONE;
}

int difference_take_out(enum difference difference, const struct comparison *c, struct io *image)
{
    switch (difference) {
    case DIFFERENCE_refused_bitmaps:
    case DIFFERENCE_bitmap_table_shared:
    case DIFFERENCE_bitmap_table_outside:
        return neutral_drop_bitmaps(image);
    case DIFFERENCE_refused_snapshots:
        return neutral_drop_snapshots(image);
    case DIFFERENCE_snapshot_table_cut:
        return has_finding(&c->own, "snapshot-table-truncated") ||
                       has_finding(&c->own, "header-snapshots-outside")
                   ? neutral_drop_snapshots(image)
                   : 0;
    case DIFFERENCE_refused_backing:
    case DIFFERENCE_backing_name_in_header:
        return neutral_drop_backing(image);
    case DIFFERENCE_not_a_table:
        return drop_found(c, image, is_no_table, neutral_drop_l2);
    case DIFFERENCE_not_an_l1:
        return drop_l1s(c, image);
    case DIFFERENCE_no_refcount_table:
        return neutral_drop_reftable(image);
    case DIFFERENCE_flags_without_offset:
        return neutral_drop_bare_flags(image);
    default:
        return 0;
    }
}
