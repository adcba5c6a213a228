/* SPDX-License-Identifier: MIT
 *
 * A small trial of the repair, for its hard rules; `make repair-trial` does a large one. */
#include <check.h>
#include <stdlib.h>

#include "oracle_run.h"
#include "trial_run.h"

enum { ITEMS = 40, SEED = 40 };

START_TEST(hard_rules_are_kept)
{
    char *qcheck = oracle_find_qcheck();
    struct item_options options = {.seed = SEED, .count = ITEMS, .qcheck = qcheck, .log = stderr};
    struct trial_totals totals;
    ck_assert_ptr_nonnull(qcheck);
    ck_assert_int_eq(trial_run(&options, &totals), 0);
    free(qcheck);
    ck_assert_uint_gt(totals.images, ITEMS / 2);
    for (unsigned rule = 0; rule < TRIAL_RULES; rule++)
        ck_assert_msg(totals.broken[rule] == 0, "%s", trial_rule_name(rule));
}
END_TEST

Suite *test_trial(void);
Suite *test_trial(void)
{
    Suite *suite = suite_create("trial");
    TCase *tcase = tcase_create("trial");
    tcase_set_timeout(tcase, 600);
    tcase_add_test(tcase, hard_rules_are_kept);
    suite_add_tcase(suite, tcase);
    return suite;
}
