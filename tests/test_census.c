/* SPDX-License-Identifier: MIT
 *
 * The census (checker/census.h): cells of every width and their limits, far clusters, claims, and
 * the fast paths against a plain model of what they mean. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "census.h"
#include "census_page.h"
#include "qcow2.h"
#include "rng.h"

#define FAR (UINT64_C(1) << 54)

static struct census *open_census(uint64_t cluster_count)
{
    struct census *census = NULL;
    ck_assert_int_eq(census_open(cluster_count, &census), 0);
    return census;
}

static void load_one(struct census *census, uint64_t cluster, uint64_t stored)
{
    uint8_t block[8];
    store_be64(block, stored);
    ck_assert_int_eq(census_load(census, cluster, 1, block, 6), 0);
}

static bool claim(struct census *census, uint64_t cluster, uint64_t refs, enum claim how)
{
    bool conflict = true;
    ck_assert_int_eq(census_claim(census, cluster, refs, how, &conflict), 0);
    return conflict;
}

static int64_t balance(const struct census *census, uint64_t cluster)
{
    return census_get(census, cluster).balance;
}

/* ---- cells ---------------------------------------------------------------------------------- */

START_TEST(an_empty_census_knows_nothing)
{
    struct census *census = open_census(100);
    uint64_t cluster = 77;
    struct census_cell cell = census_get(census, FAR);
    ck_assert(!cell.claimed && !cell.conflict && !cell.odd && cell.balance == 0);
    ck_assert(!census_next_mismatch(census, 0, &cluster));
    ck_assert_uint_eq(census_end(census, UINT64_MAX), 0);
    ck_assert(census_known(census, 0) && !census_has_conflicts(census));
    ck_assert(!census_claim_exact(census, 5, 1));
    bool exact = true;
    ck_assert_uint_eq(census_claim_run(census, 5, 0, 1, &exact), 0);
    ck_assert(exact);
    ck_assert_uint_eq(census_claim_run(census, 5, 3, 1, &exact), 3);
    ck_assert(!exact && balance(census, 5) == -1 && balance(census, 8) == 0);
    census_close(census);
    census_close(NULL);
}
END_TEST

/* Around every limit of every width: what goes in comes out, also after its page has widened. */
static const int64_t edges[] = {0, 1, 2, 110, 111, 112, 113, 127, 128, 255, 256, 28671, 28672,
    28673, 32767, 32768, 65535, 65536, UINT32_MAX, (INT64_C(1) << 59) - 1, INT64_C(1) << 59};
enum { EDGES = sizeof(edges) / sizeof(edges[0]) };

START_TEST(stored_counts_come_out_as_they_went_in)
{
    struct census *census = open_census(64);
    for (unsigned i = 0; i < EDGES; i++)
        load_one(census, i, (uint64_t)edges[i]);
    for (unsigned i = 0; i < EDGES; i++) {
        ck_assert_int_eq(balance(census, i), edges[i]);
        ck_assert(!census_get(census, i).claimed);
        ck_assert(!claim(census, i, (uint64_t)edges[i], CLAIM_ALONE));
        ck_assert_int_eq(balance(census, i), 0);
        ck_assert(census_get(census, i).claimed);
    }
    census_close(census);
}
END_TEST

START_TEST(balances_may_be_negative)
{
    struct census *census = open_census(64);
    for (unsigned i = 0; i < EDGES; i++) {
        claim(census, i, (uint64_t)edges[i], CLAIM_ALONE);
        ck_assert_int_eq(balance(census, i), -edges[i]);
    }
    for (unsigned i = 0; i < EDGES; i++) { /* widened by later ones */
        ck_assert_int_eq(balance(census, i), -edges[i]);
        ck_assert(census_get(census, i).claimed);
    }
    census_close(census);
}
END_TEST

START_TEST(one_cluster_from_limit_to_limit)
{
    struct census *census = open_census(4);
    load_one(census, 1, 111);
    for (int64_t want = 110; want > -40000; want--) {
        claim(census, 1, 1, CLAIM_PACKED);
        ck_assert_int_eq(balance(census, 1), want);
    }
    ck_assert_int_eq(balance(census, 0), 0);
    ck_assert_int_eq(balance(census, 2), 0);
    census_close(census);
}
END_TEST

START_TEST(the_largest_counts_are_cut)
{
    struct census *census = open_census(4);
    load_one(census, 0, UINT64_MAX);
    load_one(census, 1, (uint64_t)CENSUS_STORED_MAX + 1);
    ck_assert_int_eq(balance(census, 0), CENSUS_STORED_MAX);
    ck_assert_int_eq(balance(census, 1), CENSUS_STORED_MAX);
    claim(census, 0, 3, CLAIM_ALONE);
    ck_assert_int_eq(balance(census, 0), CENSUS_STORED_MAX - 3);
    census_close(census);
}
END_TEST

/* The page's own arithmetic, for each width. */
START_TEST(cells_hold_what_fits)
{
    static const unsigned widths[] = {1, 2, 8};
    static const int64_t highest[] = {111, 28671, INT64_C(7) * (INT64_C(1) << 60) - 1};
    static const int64_t lowest[] = {-16, -4096, -(INT64_C(1) << 60)};
    for (int w = 0; w < 3; w++) {
        struct page page = {.cell_bytes = widths[w]};
        ck_assert(balance_fits(widths[w], highest[w]));
        ck_assert(!balance_fits(widths[w], highest[w] + 1));
        ck_assert(balance_fits(widths[w], lowest[w]));
        ck_assert(!balance_fits(widths[w], lowest[w] - 1));
        for (int claimed = 0; claimed < 2; claimed++) {
            int64_t some[] = {highest[w], lowest[w], 0, 1, -1};
            for (int i = 0; i < 5; i++) {
                uint64_t cell = cell_make(widths[w], some[i], claimed);
                ck_assert_int_eq(cell_balance(&page, cell), some[i]);
                ck_assert_int_eq(cell_claimed(&page, cell), claimed);
            }
        }
    }
}
END_TEST

/* ---- loading -------------------------------------------------------------------------------- */

START_TEST(blocks_of_every_order)
{
    unsigned order = (unsigned)_i;
    enum { COUNT = 300 };
    uint8_t block[COUNT * 8];
    struct rng rng = rng_for(order, 1);
    uint64_t max = order == 6 ? (uint64_t)CENSUS_STORED_MAX : (UINT64_C(1) << (1u << order)) - 1;
    for (unsigned round = 0; round < 20; round++) {
        /* Mostly small counts, so that fast ways through are taken as well. */
        bool small = round % 2;
        uint64_t first = (UINT64_C(1) << PAGE_BITS) * round - (round ? 160 : 0);
        struct census *census = open_census(round % 3 ? 1 << 20 : 10);
        memset(block, 0, sizeof(block));
        for (uint64_t i = 0; i < COUNT; i++)
            qcow2_refcount_set(
                block, order, i, (small ? rng_below(&rng, 3) : rng_next(&rng)) & max);
        ck_assert_int_eq(census_load(census, first, COUNT, block, order), 0);
        for (uint64_t i = 0; i < COUNT; i++) {
            uint64_t want = qcow2_refcount_get(block, order, i);
            ck_assert_int_eq(balance(census, first + i), (int64_t)want);
        }
        ck_assert_int_eq(balance(census, first + COUNT), 0);
        census_close(census);
    }
}
END_TEST

START_TEST(free_blocks_cost_nothing)
{
    struct census *census = open_census(UINT64_C(1) << 40);
    uint8_t *block = calloc(1, 65536);
    ck_assert_ptr_nonnull(block);
    size_t before = census_memory(census);
    for (uint64_t i = 0; i < 1000; i++)
        ck_assert_int_eq(census_load(census, i * 32768, 32768, block, 4), 0);
    ck_assert_uint_eq(census_memory(census), before);
    free(block);
    census_close(census);
}
END_TEST

START_TEST(memory_follows_what_is_referenced)
{
    struct census *census = open_census(FAR);
    static const uint64_t far[] = {
        0, 1, PAGE_CELLS - 1, PAGE_CELLS, UINT64_C(1) << 28, (UINT64_C(1) << 41) + 5, FAR - 1, FAR};
    for (size_t i = 0; i < sizeof(far) / sizeof(far[0]); i++) {
        load_one(census, far[i], i + 1);
        ck_assert_int_eq(balance(census, far[i]), (int64_t)i + 1);
    }
    ck_assert_uint_lt(census_memory(census), 2 << 20);
    uint64_t cluster = 0;
    for (size_t i = 0; i < sizeof(far) / sizeof(far[0]); i++, cluster++) {
        ck_assert(census_next_mismatch(census, cluster, &cluster));
        ck_assert_uint_eq(cluster, far[i]);
    }
    ck_assert(!census_next_mismatch(census, cluster, &cluster));
    ck_assert_uint_eq(census_end(census, UINT64_MAX), FAR + 1);
    ck_assert_uint_eq(census_end(census, FAR), FAR);
    ck_assert_uint_eq(census_end(census, FAR - 1), (UINT64_C(1) << 41) + 6);
    ck_assert_uint_eq(census_end(census, PAGE_CELLS), PAGE_CELLS);
    ck_assert_uint_eq(census_end(census, 1), 1);
    ck_assert_uint_eq(census_end(census, 0), 0);
    census_close(census);
}
END_TEST

/* ---- claims --------------------------------------------------------------------------------- */

START_TEST(only_packed_owners_share)
{
    struct census *census = open_census(64);
    ck_assert(!claim(census, 1, 1, CLAIM_PACKED));
    ck_assert(!claim(census, 1, 1, CLAIM_PACKED));
    ck_assert(!census_get(census, 1).conflict);
    ck_assert(claim(census, 1, 1, CLAIM_ALONE));
    ck_assert(census_get(census, 1).conflict);
    ck_assert_int_eq(balance(census, 1), -3);

    ck_assert(!claim(census, 2, 1, CLAIM_ALONE));
    ck_assert(!census_get(census, 2).conflict);
    ck_assert(claim(census, 2, 1, CLAIM_PACKED));
    ck_assert(claim(census, 2, 1, CLAIM_PACKED)); /* it is alone's still */
    ck_assert(census_get(census, 2).conflict && census_has_conflicts(census));
    ck_assert(!census_get(census, 3).conflict);

    load_one(census, 4, 2);
    ck_assert(census_claim_exact(census, 4, 2));
    ck_assert(!census_claim_exact(census, 4, 2));
    ck_assert(claim(census, 4, 1, CLAIM_PACKED));
    census_close(census);
}
END_TEST

START_TEST(entries_that_are_refused_are_at_odds_with_nobody)
{
    struct census *census = open_census(64);
    ck_assert(!claim(census, 1, 1, CLAIM_ALONE));
    ck_assert(!claim(census, 1, 1, CLAIM_REFUSED));
    ck_assert(!census_get(census, 1).conflict);
    ck_assert(claim(census, 1, 1, CLAIM_ALONE)); /* the first one owns it all the same */

    load_one(census, 2, 1);
    ck_assert(!claim(census, 2, 1, CLAIM_REFUSED));
    ck_assert(!claim(census, 2, 1, CLAIM_REFUSED));
    ck_assert(census_get(census, 2).claimed); /* not free, whatever the balance */
    ck_assert_int_eq(balance(census, 2), -1);
    ck_assert(!claim(census, 2, 1, CLAIM_ALONE));
    ck_assert(claim(census, 2, 1, CLAIM_PACKED));

    ck_assert(!claim(census, 3, 1, CLAIM_REFUSED));
    ck_assert(!claim(census, 3, 1, CLAIM_PACKED));
    ck_assert(!claim(census, 3, 1, CLAIM_PACKED));
    ck_assert(!census_get(census, 4).claimed);
    census_close(census);
}
END_TEST

START_TEST(marks_are_of_one_cluster)
{
    struct census *census = open_census(64);
    ck_assert_int_eq(census_mark_odd(census, 9), 0);
    ck_assert_int_eq(census_mark_odd(census, FAR), 0);
    load_one(census, 10, 70000); /* widens the page */
    ck_assert(census_get(census, 9).odd && census_get(census, FAR).odd);
    ck_assert(!census_get(census, 8).odd && !census_get(census, 10).odd);
    ck_assert(!census_get(census, 9).claimed && balance(census, 9) == 0);
    census_close(census);
}
END_TEST

START_TEST(unknown_ranges)
{
    struct census *census = open_census(1000);
    ck_assert_int_eq(census_unknown(census, 10, 5), 0);
    ck_assert_int_eq(census_unknown(census, 15, 1), 0);
    ck_assert_int_eq(census_unknown(census, 100, 0), 0);
    ck_assert_int_eq(census_unknown(census, 1 << 20, UINT64_MAX), 0);
    static const uint64_t known[] = {0, 9, 16, 99, 100, 101, (1 << 20) - 1};
    static const uint64_t unknown[] = {10, 12, 14, 15, 1 << 20, FAR};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        ck_assert(census_known(census, known[i]));
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++)
        ck_assert(!census_known(census, unknown[i]));
    census_close(census);

    census = open_census(1000);
    ck_assert_int_eq(census_unknown(census, 0, UINT64_MAX), 0);
    ck_assert(!census_known(census, 0) && !census_known(census, FAR));
    census_close(census);
}
END_TEST

/* ---- fast paths against the slow ones ------------------------------------------------------- */

/* Two pages and a bit, so that runs cross the border. */
enum { SPAN = 96, FIRST = PAGE_CELLS - SPAN / 2 };

static struct census *random_census(struct rng *rng)
{
    struct census *census = open_census(rng_chance(rng, 50) ? 16 : 1 << 20);
    bool wide = rng_chance(rng, 20);
    for (uint64_t i = 0; i < SPAN; i++) {
        uint64_t stored = rng_chance(rng, 85) ? 1 : rng_below(rng, wide ? 300 : 4);
        load_one(census, FIRST + i, stored);
    }
    for (uint64_t n = rng_below(rng, 5); n > 0; n--)
        claim(census, FIRST + rng_below(rng, SPAN), 1 + rng_below(rng, 2), CLAIM_PACKED);
    return census;
}

static bool same(const struct census *a, const struct census *b)
{
    for (uint64_t i = FIRST - 8; i < FIRST + SPAN + 8; i++) {
        struct census_cell x = census_get(a, i), y = census_get(b, i);
        if (x.balance != y.balance || x.claimed != y.claimed || x.conflict != y.conflict ||
            x.odd != y.odd)
            return false;
    }
    return true;
}

START_TEST(runs_are_what_single_claims_are)
{
    for (uint64_t seed = 0; seed < 400; seed++) {
        struct rng fast_rng = rng_for(seed, 0), slow_rng = rng_for(seed, 0), rng = rng_for(seed, 1);
        struct census *fast = random_census(&fast_rng), *slow = random_census(&slow_rng);
        for (int step = 0; step < 12; step++) {
            uint64_t first = FIRST + rng_below(&rng, SPAN);
            uint64_t count = 1 + rng_below(&rng, FIRST + SPAN - first + 4);
            uint64_t refs = rng_chance(&rng, 80) ? 1 : rng_below(&rng, 200);
            uint64_t free_run = 0; /* what the contract says a run is */
            while (free_run < count && !census_get(slow, first + free_run).claimed)
                free_run++;
            bool exact = true, want_exact = true;
            uint64_t taken = census_claim_run(fast, first, count, refs, &exact);
            ck_assert_msg(taken <= free_run, "seed %d: a run that is none", (int)seed);
            for (uint64_t i = 0; i < count; i++) {
                bool fast_conflict = false;
                int64_t stored = balance(slow, first + i);
                bool slow_conflict = claim(slow, first + i, refs, CLAIM_ALONE);
                if (i < taken && stored > (int64_t)refs)
                    census_mark_odd(slow, first + i);
                want_exact &= i >= taken || stored == (int64_t)refs;
                if (i >= taken && !census_claim_exact(fast, first + i, refs))
                    fast_conflict = claim(fast, first + i, refs, CLAIM_ALONE);
                ck_assert_msg(fast_conflict == slow_conflict, "seed %d", (int)seed);
            }
            ck_assert_msg(exact == want_exact, "seed %d", (int)seed);
            ck_assert_msg(same(fast, slow), "seed %d: different after step %d", (int)seed, step);
        }
        census_close(fast);
        census_close(slow);
    }
}
END_TEST

START_TEST(a_run_ends_at_what_was_claimed)
{
    struct census *census = open_census(1 << 20);
    bool exact = true;
    for (uint64_t i = 0; i < SPAN; i++)
        load_one(census, FIRST + i, i == SPAN - 2 ? 2 : 1);
    claim(census, FIRST + SPAN - 1, 1, CLAIM_ALONE);
    ck_assert_uint_eq(census_claim_run(census, FIRST, SPAN - 2, 1, &exact), SPAN - 2);
    ck_assert(exact);
    ck_assert_uint_eq(census_claim_run(census, FIRST + SPAN - 2, 1000000, 1, &exact), 1);
    ck_assert(!exact && census_get(census, FIRST + SPAN - 2).odd);
    for (uint64_t i = 0; i < SPAN; i++)
        ck_assert_int_eq(balance(census, FIRST + i), i == SPAN - 2);
    ck_assert_uint_eq(census_claim_run(census, FIRST, 1, 1, &exact), 0);
    ck_assert_uint_eq(census_claim_run(census, FIRST, 1, 0, &exact), 0); /* claimed is not free */
    ck_assert_uint_eq(census_claim_run(census, FIRST + SPAN, 4, BYTE_MAX + 1, &exact), 0);
    census_close(census);
}
END_TEST

/* References where nothing is counted may be as many as there are clusters: they come in runs. */
START_TEST(runs_without_counts_are_no_scattered_references)
{
    enum { PAGES = 5000, CROWD = 128 };
    struct census *census = open_census((uint64_t)PAGES << PAGE_BITS);
    for (uint64_t page = 0; page < PAGES; page++) {
        bool exact = true;
        ck_assert_uint_eq(
            census_claim_run(census, page << PAGE_BITS, CROWD, 1, &exact), (uint64_t)CROWD);
        ck_assert_int_eq(balance(census, page << PAGE_BITS), -1);
    }
    census_close(census);
}
END_TEST

/* Every mismatch and no other, in order, from everywhere; the same of leaks and of runs. */
START_TEST(what_is_looked_for_is_found)
{
    for (uint64_t seed = 0; seed < 80; seed++) {
        struct rng rng = rng_for(seed, 2);
        struct census *census = random_census(&rng);
        for (int n = 0; n < 60; n++)
            claim(census, FIRST + rng_below(&rng, SPAN), 1, CLAIM_ALONE);
        if (rng_chance(&rng, 50))
            census_mark_odd(census, FIRST + rng_below(&rng, SPAN));
        for (uint64_t from = FIRST - 3; from < FIRST + SPAN + 3; from++) {
            uint64_t want = from, leak = from, right = from, like = from, got = 0;
            int64_t of_it = 0;
            while (want < FIRST + SPAN && balance(census, want) == 0)
                want++;
            while (leak < FIRST + SPAN &&
                   (census_get(census, leak).claimed || balance(census, leak) == 0))
                leak++;
            bool found = census_next_wrong(census, from, &got, &of_it);
            ck_assert_msg(found == (want < FIRST + SPAN), "seed %d", (int)seed);
            ck_assert_msg(
                !found || (got == want && of_it == balance(census, want)), "seed %d", (int)seed);
            found = census_next_leak(census, from, &got);
            ck_assert_msg(found == (leak < FIRST + SPAN), "seed %d", (int)seed);
            ck_assert_msg(!found || got == leak, "seed %d", (int)seed);
            struct census_cell cell = census_get(census, from), next;
            for (; right < from + SPAN; right++) {
                next = census_get(census, right);
                if (!next.claimed || next.balance != 0 || next.conflict || next.odd)
                    break;
            }
            ck_assert_uint_le(census_right_run(census, from, SPAN), right - from);
            do
                next = census_get(census, ++like);
            while (
                like < from + SPAN && next.claimed == cell.claimed && next.balance == cell.balance);
            ck_assert_uint_le(census_like_run(census, from, SPAN), like - from);
            ck_assert_uint_ge(census_like_run(census, from, SPAN), 1);
        }
        census_close(census);
    }
}
END_TEST

Suite *test_census(void);
Suite *test_census(void)
{
    Suite *suite = suite_create("census");
    TCase *tc = tcase_create("census");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, an_empty_census_knows_nothing);
    tcase_add_test(tc, stored_counts_come_out_as_they_went_in);
    tcase_add_test(tc, balances_may_be_negative);
    tcase_add_test(tc, one_cluster_from_limit_to_limit);
    tcase_add_test(tc, the_largest_counts_are_cut);
    tcase_add_test(tc, cells_hold_what_fits);
    tcase_add_loop_test(tc, blocks_of_every_order, 0, 7);
    tcase_add_test(tc, free_blocks_cost_nothing);
    tcase_add_test(tc, memory_follows_what_is_referenced);
    tcase_add_test(tc, only_packed_owners_share);
    tcase_add_test(tc, entries_that_are_refused_are_at_odds_with_nobody);
    tcase_add_test(tc, marks_are_of_one_cluster);
    tcase_add_test(tc, unknown_ranges);
    tcase_add_test(tc, runs_are_what_single_claims_are);
    tcase_add_test(tc, a_run_ends_at_what_was_claimed);
    tcase_add_test(tc, runs_without_counts_are_no_scattered_references);
    tcase_add_test(tc, what_is_looked_for_is_found);
    suite_add_tcase(suite, tc);
    return suite;
}
