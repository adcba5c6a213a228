/* SPDX-License-Identifier: MIT
 *
 * Every call fails once: the engine's operations leave before or after, and can be gone on with. */
#include <check.h>
#include <stdio.h>

#include "run.h"
#include "sweep.h"

static void sweep(const char *workload, const char *image)
{
    FILE *sink = fopen("/dev/null", "w");
    struct output output = {.style = OUTPUT_TAP, .out = sink};
    struct explore_options options = explore_options_default();
    struct history h;
    ck_assert_int_eq(run_history(workload, image, false, NULL, &h), 0);
    ck_assert_int_eq(sweep_run(&h, workload, &options, &output), 0);
    if (output.story_count > 0)
        ck_abort_msg("%s: %s", output.stories[0].id, output.stories[0].message);
    output_release(&output);
    history_release(&h);
    fclose(sink);
}

START_TEST(every_call_may_fail)
{
    static const char *const names[] = {
        "write", "overwrite", "discard", "create", "apply", "delete", "grow", "shrink", "reopen"};
    static const char *const images[] = {"c512", "lazy", "blockgrow"};
    sweep(names[_i % 9], images[_i / 9]);
}
END_TEST

START_TEST(a_lost_flush_is_seen_by_one_handle_only)
{
    sweep("reopen", "shared");
}
END_TEST

START_TEST(writes_of_many_pages_may_fail)
{
    sweep("write", "extl2");
}
END_TEST

START_TEST(plans_have_names)
{
    struct fault_plan plan;
    unsigned variant;
    ck_assert(sweep_parse("fault-flush-drop-3-2", &plan, &variant));
    ck_assert_int_eq(plan.call, FAULT_FLUSH);
    ck_assert_int_eq(plan.mode, FAULT_DROP);
    ck_assert_uint_eq(plan.n, 3);
    ck_assert_uint_eq(variant, 2);
    ck_assert(!sweep_parse("apply_counts_early", &plan, &variant));
    ck_assert(!sweep_parse("fault-flush-dance-3", &plan, &variant));
}
END_TEST

Suite *test_sweep(void);
Suite *test_sweep(void)
{
    Suite *suite = suite_create("sweep");
    TCase *tcase = tcase_create("sweep");
    tcase_set_timeout(tcase, 400);
    tcase_add_loop_test(tcase, every_call_may_fail, 0, 27);
    tcase_add_test(tcase, a_lost_flush_is_seen_by_one_handle_only);
    tcase_add_test(tcase, writes_of_many_pages_may_fail);
    tcase_add_test(tcase, plans_have_names);
    suite_add_tcase(suite, tcase);
    return suite;
}
