/* SPDX-License-Identifier: MIT
 *
 * qcrash as a user or a CI job calls it: arguments that make no sense, exit codes, what each output
 * style says of a promise that was broken. */
#include <check.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "desk.h"
#include "output.h"

#define LONG                                                                        \
    "./a-folder-of-this-name/with-another-one-inside/and-one-more/so-that-this-is/" \
    "a-long-path-indeed"

/* A wrong engine: its replay breaks a promise. */
#define BROKEN "apply@c512/sector/1/p0.1+apply_counts_early"

START_TEST(arguments_that_make_no_sense)
{
    static const struct {
        const char *args, *words;
    } bad[] = {
        {"", "must be run, explore, replay, flushes, mutants or list"},
        {"frobnicate", "must be run, explore, replay, flushes, mutants or list"},
        {"run nope", "there is no workload 'nope'"},
        {"run create --image nope", "No such file"},
        {"run create --model nope", "nope"},
        {"run create --unit 7", "--unit: no such option"},
        {"run --sequences 99", "--sequences: must be 1 to 6, not '99'"},
        {"run --random 5", "--random: must be two numbers"},
        {"run --random 5,7x", "--random: must be two numbers"},
        {"run --random=-5,7", "--random: must be two numbers"},
        {"run create --cap 99999999999999999999", "--cap: must be a number"},
        {"run create --budget 0", "--budget: must be a number above 0"},
        {"run create --output=xml", "--output: must be human, json, tap or table"},
        {"run create --cap", "--cap: needs a value"},
        {"run create --save x", "run: has no option --save"},
        {"run create --record nothere/log", "nothere/log: No such file"},
        {"mutants --deep", "mutants: has no option --deep"},
        {"list extra", "extra: too much"},
        {"replay", "replay: something is missing"},
        {"replay create@c512", "is not an ID"},
        {"replay create@c512/sector/999/p0", "has no such state"},
        {"replay create@nope/sector/1/p0", "nope"},
        {"explore", "explore needs --base and --log"},
        {"explore --base empty --log empty", "not a dm-log-writes log"},
        {"explore --base empty --log /dev/null", "/dev/null"},
        {"flushes nope", "there is no workload 'nope'"},
        {"run ./empty", "./empty: no operation in it"},
        {"run ./binary", "./binary: not a text"},
        {"run ./", "./: Is a directory"},
        {"run " LONG "/works", "File name too long"},
        {"run create --image " LONG LONG LONG LONG, "File name too long"},
        {"run ./third", "./third:3: not an operation"},
    };
    struct desk desk = desk_open();
    desk_works(&desk, "printf '# nothing; dance' > empty; printf 'fl\\0ush' > binary");
    desk_works(&desk, "mkdir -p " LONG " && echo flush > " LONG "/works");
    desk_works(&desk, "printf 'flush; flush\\n\\ndance' > third");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        char command[600];
        snprintf(command, sizeof(command), "qcrash %s", bad[i].args);
        desk_want(&desk, command, 1, "", bad[i].words);
    }
    desk_close(&desk);
}
END_TEST

START_TEST(exit_codes_and_styles)
{
    struct desk desk = desk_open();
    desk_want(&desk, "qcrash run create", 0, "every promise kept", "");
    desk_want(&desk, "qcrash run create --output=tap", 0, "ok 1 - create on c512", "");
    desk_want(&desk, "qcrash run create --output=table", 0, "| create | 1 |", "");
    desk_want(&desk, "qcrash replay " BROKEN, 2, "must be durable before", "");
    desk_want(&desk, "qcrash replay " BROKEN " --output=tap", 2, "not ok 1 ", "");
    desk_want(&desk, "qcrash replay " BROKEN " --output=json", 2, "\"id\": \"" BROKEN "\"", "");
    desk_want(&desk, "qcrash replay " BROKEN " --save s.qcow2; qcheck s.qcow2", 2, "damage:", "");
    desk_want(&desk, "qcrash list", 0, "apply_counts_early", "");
    desk_want(&desk, "qcrash --help", 0, "usage: qcrash run", "");
    desk_want(&desk, "qcrash --version", 0, "qcrash ", "");
    desk_close(&desk);
}
END_TEST

START_TEST(json_has_the_keys_that_scripts_need)
{
    static const char *const keys[] = {"states-legal", "states-certified", "states-executed",
        "states-distinct", "states-per-second", "violations", "exhaustive", "seed"};
    struct desk desk = desk_open();
    struct proc_result r = desk_run(&desk, "qcrash run create --output=json --seed 7");
    json_t *o = json_loads(r.out, 0, NULL);
    ck_assert_ptr_nonnull(o);
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        ck_assert_msg(json_object_get(o, keys[i]) != NULL, "no %s in %s", keys[i], r.out);
    ck_assert_int_eq(json_integer_value(json_object_get(o, "seed")), 7);
    ck_assert(json_is_true(json_object_get(o, "exhaustive")));
    json_decref(o);
    proc_free(&r);
    desk_close(&desk);
}
END_TEST

/* An image may be a file anywhere; what is found on it is found again by its path. */
START_TEST(images_with_long_paths)
{
    struct desk desk = desk_open();
    desk_works(&desk, "mkdir -p " LONG " && qsnap new " LONG "/i 256k -o cluster_size=512");
    desk_works(&desk, "qsnap write " LONG "/i 0 4k --pattern 1");
    desk_want(&desk, "qcrash run create --image " LONG "/i --faults", 0,
        "create    " LONG "/i write-stop ", "");
    desk_want(&desk, "qcrash replay create@" LONG "/i/sector/1/p0.0", 0, "kept", "");
    desk_close(&desk);
}
END_TEST

/* Names of files may be any bytes, several states may shrink to one; none gets lost. */
START_TEST(each_violation_is_told_once)
{
    char *text;
    size_t length;
    struct output output = {.style = OUTPUT_JSON, .out = open_memstream(&text, &length)};
    static const char *const ids[] = {"a@\xff/sector/1/l", "a@\xff/sector/1/l", "a@b/sector/1/l"};
    for (int i = 0; i < 3; i++) {
        struct story story = {.invariant = INVARIANT_COPIED};
        snprintf(story.id, sizeof(story.id), "%s", ids[i]);
        ck_assert_int_eq(output_story(&output, &story), 0);
    }
    ck_assert_int_eq(output_finish(&output), 0);
    fclose(output.out);
    json_t *o = json_loads(text, 0, NULL), *list = json_object_get(o, "violations");
    ck_assert_uint_eq(json_array_size(list), 2);
    ck_assert_str_eq(
        json_string_value(json_object_get(json_array_get(list, 0), "id")), "a@\\xff/sector/1/l");
    json_decref(o);
    free(text);
    output_release(&output);
}
END_TEST

START_TEST(a_budget_that_does_not_suffice_is_said)
{
    struct desk desk = desk_open();
    desk_want(&desk, "qcrash run --sequences 4 --budget 1", 0, "NOT complete; left out: from ", "");
    desk_want(
        &desk, "qcrash run --sequences 4 --budget 1 --output=json", 0, "\"exhaustive\": false", "");
    desk_close(&desk);
}
END_TEST

Suite *test_qcrash(void);
Suite *test_qcrash(void)
{
    Suite *suite = suite_create("qcrash");
    TCase *tcase = tcase_create("command line");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, arguments_that_make_no_sense);
    tcase_add_test(tcase, exit_codes_and_styles);
    tcase_add_test(tcase, json_has_the_keys_that_scripts_need);
    tcase_add_test(tcase, images_with_long_paths);
    tcase_add_test(tcase, each_violation_is_told_once);
    tcase_add_test(tcase, a_budget_that_does_not_suffice_is_said);
    suite_add_tcase(suite, tcase);
    return suite;
}
