/* SPDX-License-Identifier: MIT
 *
 * Ways of the repair that take an image of their own, one row each: what is found again, what is
 * left alone because the image does not tell, what is given up.  The corpus has the cases that each
 * check is about; these are about what speaks for and against a repair. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault_io.h"
#include "recipe.h"
#include "repair.h"
#include "same.h"

enum { MOST_PAIRS = 3 };

enum mode { SAFE, LOSSY, LEAKS };

/* A cluster of the disk behind one that nobody uses, so that only each second one is named; sixteen
 * of them. */
#define APART(k)               "gap 4k\ndata " #k "k 4k\n"
#define FOUR_APART(a, b, c, d) APART(a) APART(b) APART(c) APART(d)
#define ALL_APART            \
    FOUR_APART(4, 8, 12, 16) \
    FOUR_APART(20, 24, 28, 32) FOUR_APART(36, 40, 44, 48) FOUR_APART(52, 56, 60, 64)

static const struct row {
    const char *recipe;
    enum mode mode;
    int exit_code;
    const char *remark; /* "": any, or none */
    struct {
        const char *is, *should_be; /* expressions on the repaired image */
    } pairs[MOST_PAIRS];
} rows[] = {
#include "recovery.def"
};

static int run_repair(struct io *io, const struct row *row, FILE *remarks, struct report *report)
{
    const struct repair_options how = {
        .lossy = row->mode == LOSSY, .leaks_only = row->mode == LEAKS, .remarks = remarks};
    struct check_options options = {.threads = 1};
    report_init(report, 10);
    repair_image(io, NULL, &options, &how, report);
    return report_exit_code(report);
}

static uint64_t value_of(struct recipe *recipe, const char *expression)
{
    char error[RECIPE_ERROR_BYTES];
    uint64_t value = 0;
    ck_assert_msg(recipe_eval(recipe, expression, &value, error) == 0, "%s", error);
    return value;
}

static void expect_repair(const struct row *row)
{
    char error[RECIPE_ERROR_BYTES], *remarks;
    size_t length;
    struct recipe *recipe;
    struct report report;
    struct io *once;
    ck_assert_msg(recipe_text("row", row->recipe, &recipe, error) == 0, "%s", error);
    FILE *out = open_memstream(&remarks, &length);
    int exit_code = run_repair(recipe_io(recipe), row, out, &report);
    fclose(out);
    ck_assert_msg(exit_code == row->exit_code, "%s\nexit %d %s\n%s", row->recipe, exit_code,
        report.problem, remarks);
    report_release(&report);
    ck_assert_msg(strstr(remarks, row->remark) != NULL, "%s\n%s", row->recipe, remarks);
    for (int i = 0; i < MOST_PAIRS && row->pairs[i].is; i++) {
        uint64_t is = value_of(recipe, row->pairs[i].is);
        uint64_t should_be = value_of(recipe, row->pairs[i].should_be);
        ck_assert_msg(is == should_be, "%s\n%s is 0x%llx, not 0x%llx\n%s", row->recipe,
            row->pairs[i].is, (unsigned long long)is, (unsigned long long)should_be, remarks);
    }
    ck_assert_int_eq(io_mem_branch(recipe_io(recipe), &once), 0);
    run_repair(recipe_io(recipe), row, NULL, &report);
    ck_assert_msg(
        same_image(once, recipe_io(recipe)), "%s\na second repair changed it", row->recipe);
    report_release(&report);
    io_close(once);
    free(remarks);
    recipe_free(recipe);
}

START_TEST(a_repair)
{
    expect_repair(&rows[_i]);
}
END_TEST

/* A device that fails once, at each call in turn: what the repair then says of the image is what a
 * check of it says, or that it does not know. */
START_TEST(a_repair_on_a_failing_device)
{
    enum { ALL = 150, SAMPLE = 25 };
    char error[RECIPE_ERROR_BYTES];
    struct recipe *recipe;
    bool fired = true;
    ck_assert_int_eq(recipe_text("row", rows[_i].recipe, &recipe, error), 0);
    for (unsigned long n = 1; fired; n += n < ALL ? 1 : n / SAMPLE) {
        const struct check_options options = {.threads = 1};
        struct fault_io device;
        struct report report;
        struct io *image;
        ck_assert_int_eq(io_mem_branch(recipe_io(recipe), &image), 0);
        fault_io_init(&device, image);
        device.left = n;
        int exit_code = run_repair(&device.io, &rows[_i], NULL, &report);
        report_release(&report);
        fired = device.fired;
        report_init(&report, 10);
        check_image(image, NULL, &options, &report);
        ck_assert_msg(
            exit_code == 1 || exit_code == report_exit_code(&report), "call %lu: %d", n, exit_code);
        report_release(&report);
        io_close(image);
    }
    recipe_free(recipe);
}
END_TEST

/* More of it is never less, however much an image can make of it. */
START_TEST(what_is_wrong_is_summed_without_wrapping)
{
    static const uint64_t counts[] = {
        0, 1, 1000, UINT64_C(1) << 60, UINT64_C(1) << 62, UINT64_C(1) << 63, UINT64_MAX};
    uint64_t before = 0;
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        struct report report = {.corruptions = counts[i], .leaks = i % 2 ? 0 : counts[i]};
        uint64_t wrong = repair_wrong(&report);
        ck_assert_uint_ge(wrong, before);
        ck_assert_uint_lt(wrong, UINT64_C(1) << 62);
        before = wrong;
    }
}
END_TEST

/* With more tables at one place than are compared nobody knows whose cluster it is. */
START_TEST(one_of_many_tables)
{
    enum { SNAPSHOTS = 70 };
    char *text;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    fprintf(out, "image cluster=4k size=2M refcount_bits=16\ndata 0 256k\n");
    for (int i = 0; i < SNAPSHOTS; i++)
        fprintf(out, "snapshot id=%d\ndata 1M 4k seed=%d\n", i + 1, i);
    fprintf(out, "discard 20k 4k\ndata 24k 4k\ndamage l2[0][6] = 0\ndamage l2[0][7] = 0\n");
    fclose(out);
    expect_repair(
        &(struct row){.recipe = text, .mode = LOSSY, .pairs = {{"l2[0][6]", "0"}}, .remark = ""});
    free(text);
}
END_TEST

/* Of more disks than are looked at for each place those nearest to it tell which table it lost. */
START_TEST(tables_of_one_of_many_disks)
{
    enum { SNAPSHOTS = 70 };
    char *text;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    fprintf(out, "image cluster=4k size=4M refcount_bits=16\ndata 0 4k\ndata 2M 32k\n");
    for (int i = 0; i < SNAPSHOTS; i++)
        fprintf(out, "snapshot id=%d\ndata 2M 28k pattern=0\n", i + 1);
    fprintf(out, "damage snapshot[35].l1[1] = 0x10000000\ndamage l1[1] = 0x20000000\n");
    fclose(out);
    expect_repair(&(struct row){.recipe = text,
        .remark = "",
        .pairs = {{"snapshot[35].l1[1]", "was(snapshot[35].l1[1])"}, {"l1[1]", "was(l1[1])"}}});
    free(text);
}
END_TEST

Suite *test_recovery(void);
Suite *test_recovery(void)
{
    Suite *suite = suite_create("recovery");
    TCase *tc = tcase_create("recovery");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, a_repair, 0, (int)(sizeof(rows) / sizeof(rows[0])));
    tcase_add_loop_test(tc, a_repair_on_a_failing_device, 0, (int)(sizeof(rows) / sizeof(rows[0])));
    tcase_add_test(tc, what_is_wrong_is_summed_without_wrapping);
    tcase_add_test(tc, one_of_many_tables);
    tcase_add_test(tc, tables_of_one_of_many_disks);
    suite_add_tcase(suite, tc);
    return suite;
}
