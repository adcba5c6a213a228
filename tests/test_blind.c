/* SPDX-License-Identifier: MIT
 *
 * A repair that could not see: an allocation or a call of the device fails, once, somewhere.  What
 * was not seen must not be taken for something that is not there: the repair says that it could not
 * go on, or all disks read as after a repair of which nothing failed.
 *
 * Some of the calls on some images of the corpus; with FAIL_EVERY in the environment each call on
 * all of them, with BLIND=NAME on that one.  Of more than a thousand calls of a repair the later
 * ones are a sample: some images take ten thousands of them. */
#include <check.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "corpus.h"
#include "fault.h"
#include "fault_io.h"
#include "repair.h"
#include "truth.h"

enum { ALLOC, DEVICE, KINDS };

struct patient {
    char name[CORPUS_NAME_BYTES];
    struct io *broken;
    bool lossy;
    int calm_exit;
    struct truth calm;
};

/* Exit code of the repair of a fresh copy, *io; the n-th call of a kind fails, none if n is 0. */
static int repair_copy(
    const struct patient *p, unsigned kind, unsigned long n, bool *fired, struct io **io)
{
    const struct check_options check = {.threads = 1};
    const struct repair_options how = {.lossy = p->lossy};
    struct report report;
    struct fault_io fault;
    ck_assert_int_eq(io_mem_branch(p->broken, io), 0);
    fault_io_init(&fault, *io);
    fault.left = kind == DEVICE ? n : 0;
    report_init(&report, 0);
    if (kind == ALLOC)
        fault_alloc_arm((unsigned)n);
    repair_image(&fault.io, NULL, &check, &how, &report);
    *fired = kind == DEVICE ? fault.fired : fault_alloc_left() == 0;
    fault_alloc_arm(0);
    int exit_code = report_exit_code(&report);
    report_release(&report);
    return exit_code;
}

static unsigned expect_told(const struct patient *p, unsigned kind, unsigned long n, bool *fired)
{
    static const char *const names[KINDS] = {"alloc", "call"};
    struct truth now;
    struct io *io;
    unsigned failed = 0;
    int exit_code = repair_copy(p, kind, n, fired, &io);
    if (exit_code != 1) {
        char *why = NULL;
        size_t length;
        FILE *stream = open_memstream(&why, &length);
        ck_assert_ptr_nonnull(stream);
        truth_read(io, NULL, UINT64_MAX, &now);
        failed =
            exit_code != p->calm_exit || truth_between(&p->calm, &p->calm, &now, false, stream);
        truth_free(&now);
        fclose(stream);
        if (failed)
            fprintf(stderr, "blind %s%s: %s %lu fails: exit %d, undisturbed %d %s\n", p->name,
                p->lossy ? " --lossy" : "", names[kind], n, exit_code, p->calm_exit, why);
        free(why);
    }
    io_close(io);
    return failed;
}

/* How many of the calls up to `most` end in something else.  `step` is from one to the next. */
static unsigned fail_calls(struct patient *p, unsigned long step, unsigned long most)
{
    enum { ALL = 1000 };
    bool fired;
    struct io *io;
    unsigned failed = 0;
    p->calm_exit = repair_copy(p, KINDS, 0, &fired, &io);
    truth_read(io, NULL, UINT64_MAX, &p->calm);
    for (unsigned kind = 0; kind < KINDS; kind++) {
        fired = true;
        for (unsigned long n = 1; fired && n <= most; n += n < ALL ? step : step * n / ALL * 2)
            failed += expect_told(p, kind, n, &fired);
    }
    truth_free(&p->calm);
    io_close(io);
    return failed;
}

static unsigned fail_calls_of(const char *name, bool lossy, unsigned long step, unsigned long most)
{
    struct patient p = {.lossy = lossy};
    struct recipe *recipe;
    struct expect *expect;
    unsigned failed = 0;
    snprintf(p.name, sizeof(p.name), "%s", name);
    corpus_load(name, &recipe, &expect);
    p.broken = recipe_io(recipe);
    if (!recipe_has_unreadable(recipe))
        failed = fail_calls(&p, step, most);
    recipe_free(recipe);
    expect_free(expect);
    return failed;
}

START_TEST(what_was_not_seen_is_not_missing)
{
    enum { SAMPLE = 24, STEP = 5 };
    const char *only = getenv("BLIND");
    bool every = getenv("FAIL_EVERY") || only;
    char name[CORPUS_NAME_BYTES];
    unsigned failed = 0;
    for (int which = 0; which < corpus_list("", 0, name); which++) {
        corpus_list("", which, name);
        if (only ? strcmp(only, name) == 0 : every || which % SAMPLE == 0)
            failed += fail_calls_of(name, _i, every ? 1 : STEP, ULONG_MAX);
    }
    ck_assert_msg(failed == 0, "%u calls", failed);
}
END_TEST

/* What a lossy repair once took for missing: the first calls, all of them. */
START_TEST(what_was_found_before)
{
    enum { FIRST = 100 };
    static const char *const names[] = {
        "refblock-shared-table",       /* a block of counts that could not be read was made anew */
        "refblock-shared-void",        /* the same */
        "ext-bitmaps-stale-directory", /* the table of a bitmap was taken for a lost L2 table */
    };
    ck_assert_uint_eq(fail_calls_of(names[_i], true, 1, FIRST), 0);
}
END_TEST

Suite *test_blind(void);
Suite *test_blind(void)
{
    Suite *suite = suite_create("blind");
    TCase *tcase = tcase_create("blind");
    tcase_set_timeout(tcase, 600);
    tcase_add_loop_test(tcase, what_was_not_seen_is_not_missing, 0, 2);
    tcase_add_loop_test(tcase, what_was_found_before, 0, 3);
    suite_add_tcase(suite, tcase);
    return suite;
}
