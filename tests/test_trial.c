/* SPDX-License-Identifier: MIT
 *
 * A small trial of the repair, for its hard rules; `make repair-trial` does a large one. */
#include <check.h>
#include <stdlib.h>

#include "oracle_run.h"
#include "trial_run.h"

enum { ITEMS = 40, SEED = 40 };

static void run_items(uint64_t seed, uint64_t first, uint64_t count, uint64_t at_least)
{
    char *qcheck = oracle_find_qcheck();
    struct item_options options = {
        .seed = seed, .first = first, .count = count, .qcheck = qcheck, .log = stderr};
    struct trial_totals totals;
    ck_assert_ptr_nonnull(qcheck);
    ck_assert_int_eq(trial_run(&options, &totals), 0);
    free(qcheck);
    ck_assert_uint_ge(totals.images, at_least);
    for (unsigned rule = 0; rule < TRIAL_RULES; rule++)
        ck_assert_msg(totals.broken[rule] == 0, "%s", trial_rule_name(rule));
}

START_TEST(hard_rules_are_kept)
{
    run_items(SEED, 0, ITEMS, ITEMS / 2 + 1);
}
END_TEST

/* Images that larger trials found, and that no small recipe shows. */
static const struct {
    uint64_t seed, item;
} found[] = {
    {31337, 139}, /* empty entries were filled in a table that lies on guest data */
    {60221, 3},   /* the only leaked cluster was a bitmap's */
    {60221, 379}, /* hundreds of leaked clusters of zeros, each compared with refcount tables */
    {31337, 179}, /* of an L1 table that is said to be longer no size of clusters makes sense */
    {31337, 969}, /* subclusters that nobody can read are no data that was readable */
};

START_TEST(rules_are_kept_for_what_was_found)
{
    run_items(found[_i].seed, found[_i].item, 1, 1);
}
END_TEST

Suite *test_trial(void);
Suite *test_trial(void)
{
    Suite *suite = suite_create("trial");
    TCase *tcase = tcase_create("trial");
    tcase_set_timeout(tcase, 600);
    tcase_add_test(tcase, hard_rules_are_kept);
    tcase_add_loop_test(
        tcase, rules_are_kept_for_what_was_found, 0, sizeof(found) / sizeof(found[0]));
    suite_add_tcase(suite, tcase);
    return suite;
}
