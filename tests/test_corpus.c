/* SPDX-License-Identifier: MIT
 *
 * Every folder of corpus/ (corpus/README.md): its recipe's image is judged by the program as a user
 * calls it, and by qemu-img where the folder says what that finds; a folder with `repair-exit` is
 * repaired, judged again, repaired again without a byte changed, and read. */
#include <check.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "corpus.h"
#include "guest.h"
#include "proc.h"
#include "qcheck.h"

/* One folder at work.  Differences are collected in `text` and told all at once. */
struct bench {
    char name[CORPUS_NAME_BYTES];
    char *dir; /* temporary; the image is image.qcow2 there */
    struct recipe *recipe;
    struct expect *expect;
    FILE *out;
    char *text;
    size_t text_len;
    bool failed;
};

static void complain(struct bench *b, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void complain(struct bench *b, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(b->out, format, args);
    va_end(args);
    b->failed = true;
}

static void bench_open(struct bench *b, int which)
{
    *b = (struct bench){0};
    corpus_list("", which, b->name);
    corpus_load(b->name, &b->recipe, &b->expect);
    b->dir = proc_mkdir();
    b->out = open_memstream(&b->text, &b->text_len);
    ck_assert_ptr_nonnull(b->out);
    corpus_save(b->name, b->recipe, b->dir);
}

static void bench_close(struct bench *b)
{
    fclose(b->out);
    proc_rmdir(b->dir);
    recipe_free(b->recipe);
    expect_free(b->expect);
    ck_assert_msg(!b->failed, "corpus/%s:\n%s", b->name, b->text);
    free(b->text);
}

/* ---- steps ---------------------------------------------------------------------------------- */

static void check_exit(struct bench *b, const char *what, int want, const struct proc_result *r)
{
    if (want != EXPECT_ANY && r->exit_code != want)
        complain(
            b, "  %s: expected exit %d, got %d\n%s%s", what, want, r->exit_code, r->err, r->out);
}

/* The program, as a user calls it. */
static struct proc_result check_by_program(struct bench *b)
{
    return proc_run("Q=$(realpath %s); cd '%s' && $Q --output=json %s image.qcow2", QCHECK_PROGRAM,
        b->dir, b->expect->args ? b->expect->args : "");
}

/* The same from the library, for an image with a bad spot: no file has one on demand. */
static struct proc_result check_by_library(struct bench *b)
{
    const char *args = b->expect->args ? b->expect->args : "";
    struct check_options options = {
        .deep = strstr(args, "--deep"), .backing = strstr(args, "--backing"), .threads = 1};
    struct proc_result result = {.err = calloc(1, 1)};
    size_t length;
    FILE *out = open_memstream(&result.out, &length);
    char path[4096];
    struct io *io;
    struct report report;
    snprintf(path, sizeof(path), "%s/image.qcow2", b->dir);
    ck_assert(out && result.err);
    ck_assert_int_eq(recipe_branch(b->recipe, &io), 0);
    report_init(&report, DEFAULT_MAX_FINDINGS);
    check_image(io, path, &options, &report);
    ck_assert_int_eq(report_print_json(&report, path, out), 0);
    result.exit_code = report_exit_code(&report);
    report_release(&report);
    io_close(io);
    fclose(out);
    return result;
}

static void run_check(struct bench *b)
{
    struct proc_result r =
        recipe_has_unreadable(b->recipe) ? check_by_library(b) : check_by_program(b);
    check_exit(b, "check", b->expect->exit_code, &r);
    json_error_t error;
    json_t *report = json_loads(r.out, 0, &error);
    if (!report)
        complain(b, "  no JSON: %s: %s%s\n", error.text, r.out, r.err);
    else if (expect_compare(b->expect, b->recipe, report, b->out) > 0)
        b->failed = true;
    json_decref(report);
    proc_free(&r);
}

static void run_repair(struct bench *b, const char *what)
{
    struct proc_result r = proc_run("Q=$(realpath %s); cd '%s' && $Q --repair %s image.qcow2",
        QCHECK_PROGRAM, b->dir, b->expect->repair_args ? b->expect->repair_args : "");
    check_exit(b, what, b->expect->repair_exit, &r);
    proc_free(&r);
}

static void run_check_again(struct bench *b)
{
    struct proc_result r = proc_run(
        "%s %s '%s/image.qcow2'", QCHECK_PROGRAM, b->expect->args ? b->expect->args : "", b->dir);
    check_exit(b, "check after the repair", b->expect->repair_exit, &r);
    proc_free(&r);
}

static void run_qemu(struct bench *b, const char *what, int want)
{
    if (want == EXPECT_ANY || proc_exit("command -v qemu-img") != 0)
        return;
    struct proc_result r = proc_run("cd '%s' && qemu-img check -f qcow2 image.qcow2", b->dir);
    check_exit(b, what, want, &r);
    proc_free(&r);
}

static void compare_content(struct bench *b, struct io *io, const struct expect_content *content)
{
    char error[RECIPE_ERROR_BYTES] = "";
    uint64_t guest_off, length;
    if (recipe_eval(b->recipe, content->guest_off, &guest_off, error) < 0 ||
        recipe_eval(b->recipe, content->length, &length, error) < 0) {
        complain(b, "  after: %s\n", error);
        return;
    }
    uint8_t *want = malloc(length + 1), *got = malloc(length + 1);
    ck_assert(want && got);
    recipe_pattern_fill(&content->pattern, guest_off, want, length);
    int ret =
        guest_read(io, recipe_data_io(b->recipe), content->snapshot_id, guest_off, got, length);
    if (ret < 0)
        complain(b, "  after: data %s: %s\n", content->guest_off, strerror(-ret));
    for (uint64_t i = 0; ret == 0 && i < length; i++) {
        if (got[i] == want[i])
            continue;
        complain(b, "  after: data %s: at %#llx expected %#x, got %#x\n", content->guest_off,
            (unsigned long long)guest_off + i, want[i], got[i]);
        break;
    }
    free(want);
    free(got);
}

static void compare_contents(struct bench *b)
{
    char path[4096];
    struct io *io;
    snprintf(path, sizeof(path), "%s/image.qcow2", b->dir);
    ck_assert_int_eq(io_file_open(path, IO_FILE_NO_LOCK, &io, NULL), 0);
    for (size_t i = 0; i < b->expect->content_count; i++)
        compare_content(b, io, &b->expect->contents[i]);
    io_close(io);
}

static void keep_copy(const struct bench *b)
{
    ck_assert_int_eq(proc_exit("cd '%s' && cp image.qcow2 before", b->dir), 0);
}

static void want_unchanged(struct bench *b, const char *what)
{
    if (proc_exit("cd '%s' && cmp image.qcow2 before", b->dir) != 0)
        complain(b, "  %s changed the image\n", what);
}

START_TEST(corpus)
{
    struct bench b;
    bench_open(&b, _i);
    run_qemu(&b, "qemu-img check", b.expect->qemu_exit);
    keep_copy(&b);
    run_check(&b);
    want_unchanged(&b, "the check");
    if (b.expect->repair_exit != EXPECT_ANY) {
        run_repair(&b, "repair");
        run_check_again(&b);
        int sound = b.expect->repair_exit == 0 ? 0 : EXPECT_ANY;
        run_qemu(&b, "qemu-img check after the repair",
            b.expect->repair_qemu_exit != EXPECT_ANY ? b.expect->repair_qemu_exit : sound);
        keep_copy(&b);
        run_repair(&b, "second repair");
        want_unchanged(&b, "a second repair");
    }
    compare_contents(&b);
    bench_close(&b);
}
END_TEST

Suite *test_corpus(void);
Suite *test_corpus(void)
{
    Suite *suite = suite_create("corpus");
    TCase *tc = tcase_create("folders");
    char name[CORPUS_NAME_BYTES];
    tcase_set_timeout(tc, 60);
    if (access(QCHECK_PROGRAM, X_OK) == 0)
        tcase_add_loop_test(tc, corpus, 0, corpus_list("", -1, name));
    suite_add_tcase(suite, tc);
    return suite;
}
