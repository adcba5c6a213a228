/* SPDX-License-Identifier: MIT
 *
 * Every call fails once: the engine's operations leave before or after, and can be gone on with. */
#include <check.h>
#include <stdio.h>
#include <string.h>

#include "run.h"
#include "sweep.h"

START_TEST(every_call_may_fail)
{
    static const char *const names[] = {
        "write", "overwrite", "discard", "create", "apply", "delete", "grow", "shrink", "reopen"};
    static const char *const images[] = {"c512", "blockgrow"};
    FILE *sink = fopen("/dev/null", "w");
    struct output output = {.style = OUTPUT_TAP, .out = sink};
    struct explore_options options = explore_options_default();
    struct history h;
    ck_assert_int_eq(run_history(names[_i % 9], images[_i / 9], false, NULL, &h), 0);
    ck_assert_int_eq(sweep_run(&h, names[_i % 9], &options, &output), 0);
    for (size_t i = 0; i < output.story_count; i++) {
        /* A flush that fails and forgets: judged elsewhere, once the engine stops at it. */
        if (!strstr(output.stories[i].id, "flush-drop"))
            ck_abort_msg("%s: %s", output.stories[i].id, output.stories[i].message);
    }
    output_release(&output);
    history_release(&h);
    fclose(sink);
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
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, every_call_may_fail, 0, 18);
    tcase_add_test(tcase, plans_have_names);
    suite_add_tcase(suite, tcase);
    return suite;
}
