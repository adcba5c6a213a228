/* SPDX-License-Identifier: MIT
 *
 * The harness bites: every mutant is found, whatever the seed, and its ID finds it again. */
#include <check.h>
#include <stdio.h>

#include "mutants.h"
#include "run.h"

static int first(void *arg, const struct violation *violation)
{
    struct story *story = arg;
    (void)violation;
    story->invariant = violation->breach.invariant;
    return 1;
}

static bool found(const struct mutant *mutant, uint64_t seed)
{
    struct history h;
    struct story story = {0};
    struct explore_counts counts = {0};
    struct explore_options options = explore_options_default();
    options.seed = seed;
    options.check_full = options.continue_full = 8;
    options.repair_full = 1;
    options.cap = 256;
    options.samples = 64;
    ck_assert_int_eq(mutant_history(mutant, false, &h), 0);
    if (h.live.invariant != INVARIANT_NONE)
        story.invariant = h.live.invariant;
    ck_assert_int_ge(
        explore_run(&h, &h.recording, fault_model_find("sector"), &options, &counts, first, &story),
        0);
    history_release(&h);
    return story.invariant != INVARIANT_NONE;
}

START_TEST(every_mutant_is_found)
{
    for (uint64_t seed = 1; seed <= 3; seed++)
        ck_assert_msg(found(&mutants[_i], seed), "%s, seed %d", mutants[_i].name, (int)seed);
}
END_TEST

START_TEST(an_id_finds_it_again)
{
    struct run_options options = {.explore = explore_options_default()};
    struct output output = {.out = stdout};
    ck_assert_int_eq(
        run_replay("apply@c512/sector/1/p0.1+apply_counts_early", NULL, &options, &output), 0);
    ck_assert_uint_eq(output.story_count, 1);
    ck_assert_int_eq(output.stories[0].invariant, INVARIANT_OWNED);
    ck_assert_uint_gt(output.stories[0].lost_count, 0);
    ck_assert_uint_gt(output.stories[0].persisted_count, 0);
    output_release(&output);
    ck_assert_int_eq(run_replay("apply@c512/sector/1/p0.1", NULL, &options, &output), 0);
    ck_assert_uint_eq(output.story_count, 0);
    output_release(&output);
}
END_TEST

START_TEST(flushes_are_needed)
{
    struct flush_tally tally = {0};
    struct explore_options options = explore_options_default();
    FILE *sink = fopen("/dev/null", "w");
    options.cap = 1024;
    options.repair_full = 1;
    ck_assert_int_eq(flushes_report("create", "c512", &options, sink, &tally), 0);
    ck_assert_int_eq(flushes_report("apply", "c512", &options, sink, &tally), 0);
    ck_assert_int_eq(flushes_report("delete", "c512", &options, sink, &tally), 0);
    ck_assert_uint_eq(tally.flushes[OP_CREATE] + tally.flushes[OP_APPLY], 4);
    for (unsigned k = 0; k <= OP_CLOSE; k++)
        ck_assert_uint_eq(tally.flushes[k], tally.needed[k]);
    fclose(sink);
}
END_TEST

Suite *test_mutants(void);
Suite *test_mutants(void)
{
    Suite *suite = suite_create("mutants");
    TCase *tcase = tcase_create("mutants");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, every_mutant_is_found, 0, (int)mutant_count);
    tcase_add_test(tcase, an_id_finds_it_again);
    tcase_add_test(tcase, flushes_are_needed);
    suite_add_tcase(suite, tcase);
    return suite;
}
