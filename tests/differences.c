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

static bool unreadable_refcounts(const struct comparison *c)
{
    return c->qemu.counts[COUNT_CHECK_ERRORS] > 0 && c->own.counts[COUNT_CHECK_ERRORS] == 0 &&
           has_finding(&c->own, "reftable-entry-unaligned") &&
           agree_but(c, 1u << COUNT_CHECK_ERRORS | 1u << COUNT_IMAGE_END);
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

static bool needs_copy(enum difference difference)
{
    switch (difference) {
    case DIFFERENCE_refused_bitmaps:
    case DIFFERENCE_refused_snapshots:
    case DIFFERENCE_refused_backing:
    case DIFFERENCE_not_a_table:
    case DIFFERENCE_flags_without_offset:
        return true;
    default:
        return false;
    }
}

enum difference difference_alone(const struct comparison *c)
{
    if (agree_but(c, 0))
        return DIFFERENCE_only_qcheck_knows;
    if (unreadable_refcounts(c))
        return DIFFERENCE_unreadable_refcounts;
    enum difference difference = refusal(c);
    return needs_copy(difference) ? DIFFERENCE_NONE : difference;
}

/* ---- reasons that need one --------------------------------------------------------------------
 */

/* Checks after which an L2 table is not interpreted. */
static bool is_no_table(const char *check)
{
    return strcmp(check, "l1-entry-unaligned") == 0 ||
           strcmp(check, "l1-entry-into-metadata") == 0 ||
           strcmp(check, "l2-table-implausible") == 0;
}

static int take_out_tables(const struct comparison *c, struct io *image)
{
    size_t idx;
    json_t *finding;
    int changed = 0;
    json_array_foreach(json_object_get(c->own.json, "findings"), idx, finding)
    {
        uint64_t host_off = (uint64_t)json_integer_value(json_object_get(finding, "host-offset"));
        const char *check = finding_check(finding);
        int ret = is_no_table(check) ? neutral_drop_l2(image, host_off) : 0;
        if (strcmp(check, "area-shared") == 0)
            ret = neutral_drop_l1(image, host_off);
        if (ret < 0)
            return ret;
        changed += ret;
    }
    return changed;
}

enum difference difference_next(const struct comparison *c, enum difference from)
{
    enum difference refused = refusal(c);
    for (unsigned i = from; i < DIFFERENCE_COUNT; i++) {
        bool refusing = i != DIFFERENCE_not_a_table && i != DIFFERENCE_flags_without_offset;
        if (needs_copy(i) && (refusing ? i == refused : c->qemu.json && c->own.json))
            return i;
    }
    return DIFFERENCE_NONE;
}

int difference_take_out(enum difference difference, const struct comparison *c, struct io *image)
{
    switch (difference) {
    case DIFFERENCE_refused_bitmaps:
        return neutral_drop_bitmaps(image);
    case DIFFERENCE_refused_snapshots:
        return neutral_drop_snapshots(image);
    case DIFFERENCE_refused_backing:
        return neutral_drop_backing(image);
    case DIFFERENCE_not_a_table:
        return take_out_tables(c, image);
    case DIFFERENCE_flags_without_offset:
        return neutral_drop_bare_flags(image);
    default:
        return 0;
    }
}
