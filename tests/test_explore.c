/* SPDX-License-Identifier: MIT
 *
 * A short exploration of every workload on every kind of image, and the promises of the exploration
 * itself: what is replayed is what was found, the tree of choices agrees with the whole product. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

static int fail_on(void *arg, const struct violation *v)
{
    struct story story;
    story_make(arg, fault_model_find("sector"), v, "", &story);
    ck_abort_msg("%s: I%d: %s", story.id, (int)v->breach.invariant, v->breach.text);
    return 1;
}

static struct explore_counts explore(
    const char *workload, const char *image, const char *model, uint64_t cap)
{
    struct history h;
    struct explore_counts counts = {0};
    struct explore_options options = explore_options_default();
    options.cap = cap;
    options.samples = 64;
    options.check_full = options.continue_full = 8;
    options.repair_full = 2;
    ck_assert_int_eq(run_history(workload, image, false, NULL, &h), 0);
    ck_assert_int_eq(
        explore_run(&h, &h.recording, fault_model_find(model), &options, &counts, fail_on, &h), 0);
    history_release(&h);
    return counts;
}

START_TEST(every_workload_on_this_image)
{
    const struct image_kind *kind = &image_kinds[_i];
    for (size_t i = 0; i < workload_row_count; i++)
        explore(workload_rows[i].name, kind->name, "sector",
            kind->options.size_bytes > 1 << 20 ? 32 : 512);
}
END_TEST

START_TEST(every_model_keeps_what_it_promises)
{
    for (size_t m = 0; m < fault_model_count; m++) {
        for (size_t i = 0; i < workload_row_count; i++)
            explore(workload_rows[i].name, "c512", fault_models[m].name, 1024);
    }
}
END_TEST

/* Power cuts inside the repair of damaged images. */
START_TEST(repairs_make_nothing_worse)
{
    for (size_t i = 0; i < image_kind_hurt_count; i++)
        explore("repair", image_kinds_hurt[i].name, "sector", 1 << 12);
}
END_TEST

/* States that broke a promise once. */
static const char *const mended[] = {
    /* the second block of a new refcount table passed for guest data of a lost L2 table */
    "repair@hurt-block/sector/1/l1.0",
    /* --lossy put L2 tables of an orphaned L1 table, in use elsewhere, into empty L1 entries */
    "create@shared/sector/2/l0.0+fault-write-once-6-0",
    "delete@shared/sector/2/l0.0+fault-write-short-3-0",
    "full-turn@shared/sector/9/p+fault-write-short-23-0",
    "full-turn@shared/sector/8/l0.0-2.0+fault-alloc-once-36-0",
};

START_TEST(what_was_mended_stays_so)
{
    struct run_options options = {.explore = explore_options_default()};
    struct output output = {.out = stdout};
    ck_assert_int_eq(run_replay(mended[_i], NULL, &options, &output), 0);
    ck_assert_uint_eq(output.story_count, 0);
    output_release(&output);
}
END_TEST

START_TEST(sequences_of_two)
{
    size_t letters = strlen(workload_letters);
    for (size_t i = 0; i < letters * letters; i++) {
        char name[] = "seq-xx";
        name[4] = workload_letters[i / letters];
        name[5] = workload_letters[i % letters];
        struct explore_counts counts = explore(name, "c512", "sector", 1 << 16);
        ck_assert(explore_exhaustive(&counts));
        ck_assert(counts.legal == (long double)counts.executed + counts.certified);
    }
}
END_TEST

START_TEST(the_tree_covers_the_product)
{
    struct explore_counts whole = explore("delete", "c512", "sector", 1 << 16);
    struct explore_counts tree = explore("delete", "c512", "sector", 300);
    ck_assert(whole.legal == tree.legal);
    ck_assert(whole.certified == 0);
    ck_assert(explore_exhaustive(&tree));
    ck_assert_uint_lt(tree.executed, whole.executed);
    ck_assert(tree.legal <= (long double)tree.executed + tree.certified);
}
END_TEST

START_TEST(the_same_twice)
{
    struct explore_counts a = explore("mixed", "c512", "sector", 4096);
    struct explore_counts b = explore("mixed", "c512", "sector", 4096);
    ck_assert_uint_eq(a.executed, b.executed);
    ck_assert_uint_eq(a.distinct, b.distinct);
}
END_TEST

START_TEST(vectors_survive_text)
{
    struct history h;
    struct state *durable;
    struct epoch epoch;
    char text[128];
    ck_assert_int_eq(run_history("create", "c512", false, NULL, &h), 0);
    ck_assert_int_eq(state_open(h.room_bytes, &durable), 0);
    ck_assert_int_eq(state_load(durable, h.base), 0);
    ck_assert_int_eq(epoch_build(&h.recording, 0, 5, durable, 512, &epoch), 0);
    size_t factors = epoch_factors(&epoch);
    unsigned *choice = calloc(factors, sizeof(*choice)), *again = calloc(factors, sizeof(*again));
    for (unsigned round = 0; round < 64; round++) {
        for (size_t f = 0; f < factors; f++)
            choice[f] = (unsigned)(state_mix(round * 100 + f) % epoch_choices(&epoch, f));
        choices_print(&epoch, choice, text, sizeof(text));
        ck_assert_int_eq(choices_parse(&epoch, text, again), 0);
        ck_assert_mem_eq(choice, again, factors * sizeof(*choice));
    }
    ck_assert_int_eq(choices_parse(&epoch, "p99.1", again), -ENOENT);
    ck_assert_int_eq(choices_parse(&epoch, "x", again), -ENOENT);
    free(choice);
    free(again);
    epoch_release(&epoch);
    state_close(durable);
    history_release(&h);
}
END_TEST

START_TEST(ids_are_taken_apart)
{
    struct story_id id;
    ck_assert_int_eq(story_id_parse("create@c512/sector/3/p1.1-2.2+mutant_x", &id), 0);
    ck_assert_str_eq(id.workload, "create");
    ck_assert_str_eq(id.image, "c512");
    ck_assert_str_eq(id.model, "sector");
    ck_assert_uint_eq(id.epoch, 3);
    ck_assert_str_eq(id.choices, "p1.1-2.2");
    ck_assert_str_eq(id.mutant, "mutant_x");
    ck_assert_int_eq(story_id_parse("a/b.txt@dir/image.qcow2/page/0/l", &id), 0);
    ck_assert_str_eq(id.image, "dir/image.qcow2");
    ck_assert_int_eq(story_id_parse("create", &id), -EINVAL);
    ck_assert_int_eq(story_id_parse("create@c512/sector", &id), -EINVAL);
    ck_assert_int_eq(story_id_parse("create@c512/sector/x/p", &id), -EINVAL);
}
END_TEST

Suite *test_explore(void);
Suite *test_explore(void)
{
    Suite *suite = suite_create("explore");
    TCase *tcase = tcase_create("explore");
    tcase_set_timeout(tcase, 400);
    tcase_add_loop_test(tcase, every_workload_on_this_image, 0, (int)image_kind_count);
    tcase_add_test(tcase, every_model_keeps_what_it_promises);
    tcase_add_test(tcase, repairs_make_nothing_worse);
    tcase_add_test(tcase, sequences_of_two);
    tcase_add_loop_test(
        tcase, what_was_mended_stays_so, 0, (int)(sizeof(mended) / sizeof(mended[0])));
    tcase_add_test(tcase, the_tree_covers_the_product);
    tcase_add_test(tcase, the_same_twice);
    tcase_add_test(tcase, vectors_survive_text);
    tcase_add_test(tcase, ids_are_taken_apart);
    suite_add_tcase(suite, tcase);
    return suite;
}
