/* SPDX-License-Identifier: MIT
 *
 * qcheck as a user or a script calls it: arguments, exit codes, several images, images in use, and
 * that a check writes nothing. */
#include <check.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "corpus.h"
#include "proc.h"
#include "qcheck.h"
#include "recipe.h"

/* One of each kind in a directory of its own. */
struct shelf {
    char *dir, *qcheck;
};

static const struct {
    const char *name, *recipe;
    int exit_code;
    const char *verdict;
} images[] = {
    {"clean", "image\ndata 0 64k\n", 0, "clean"},
    {"leaks", "image\ndata 0 64k\ngap 64k\ndata 64k 64k\ndamage refcount[6] = 1\n", 3, "leaks"},
    {"corrupt", "image\ndata 0 64k\ndamage refcount[0] = 0\n", 2, "corrupt"},
    {"raw", "raw size=64k\n", 63, "unsupported"},
    {"short", "image\ndamage truncate 100\n", 1, "incomplete"},
    {"notes", "image\next 0x11223344 \"x\"\n", 0, "clean"},
};
enum { IMAGES = sizeof(images) / sizeof(images[0]) };

static struct shelf shelf_open(void)
{
    struct shelf shelf = {proc_mkdir(), realpath(QCHECK_PROGRAM, NULL)};
    ck_assert_ptr_nonnull(shelf.qcheck);
    for (int i = 0; i < IMAGES; i++)
        corpus_make(shelf.dir, images[i].name, images[i].recipe);
    return shelf;
}

static void shelf_close(struct shelf *shelf)
{
    proc_rmdir(shelf->dir);
    free(shelf->qcheck);
}

/* Runs it there; the result must be freed.  Nothing here may take long: hanging is failing. */
static struct proc_result run(const struct shelf *shelf, const char *args)
{
    return proc_run("cd '%s' && timeout 20 '%s' %s", shelf->dir, shelf->qcheck, args);
}

static void want(
    const struct shelf *shelf, const char *args, int exit_code, const char *out, const char *err)
{
    struct proc_result r = run(shelf, args);
    ck_assert_msg(
        r.exit_code == exit_code, "qcheck %s: exit %d\n%s%s", args, r.exit_code, r.out, r.err);
    ck_assert_msg(strstr(r.out, out) != NULL, "qcheck %s: printed\n%s", args, r.out);
    ck_assert_msg(strstr(r.err, err) != NULL, "qcheck %s: said\n%s", args, r.err);
    proc_free(&r);
}

/* ---- arguments ------------------------------------------------------------------------------ */

START_TEST(bad_arguments)
{
    struct shelf shelf = shelf_open();
    static const char *const bad[] = {"", "--no-such-option clean", "-x clean",
        "--output=xml clean", "--output clean", "--max-findings=many clean",
        "--max-findings=-1 clean", "--max-findings= clean",
        "--max-findings=99999999999999999999999 clean", "--explain=no-such-check",
        "--explain no-such-check", "--deep=3 clean"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct proc_result r = run(&shelf, bad[i]);
        ck_assert_msg(r.exit_code == 1, "qcheck %s: exit %d", bad[i], r.exit_code);
        ck_assert_msg(r.err[0] != '\0', "qcheck %s: no word about it", bad[i]);
        ck_assert_msg(r.out[0] == '\0', "qcheck %s: printed %s", bad[i], r.out);
        proc_free(&r);
    }
    shelf_close(&shelf);
}
END_TEST

START_TEST(help_and_version)
{
    struct shelf shelf = shelf_open();
    want(&shelf, "--help", 0, "usage: qcheck", "");
    want(&shelf, "--version", 0, "qcheck ", "");
    want(&shelf, "--help >/dev/full", 1, "", "writing the output");
    want(&shelf, "clean leaks -v >/dev/full", 1, "", "writing the output");
    want(&shelf, "--output=json clean >/dev/full", 1, "", "");
    shelf_close(&shelf);
}
END_TEST

START_TEST(explanations)
{
    struct shelf shelf = shelf_open();
    want(&shelf, "--explain", 0, "header-magic (header, damage; repair:", "");
    want(&shelf, "--explain=l1-hole", 0, "l1-hole (", "");
    want(&shelf, "--explain l1-hole", 0, "l1-hole (", "");
    struct proc_result r = run(&shelf, "--explain l1-hole");
    ck_assert_ptr_null(strstr(r.out, "header-magic"));
    proc_free(&r);
    shelf_close(&shelf);
}
END_TEST

/* ---- images --------------------------------------------------------------------------------- */

START_TEST(each_verdict_has_its_exit_code)
{
    struct shelf shelf = shelf_open();
    char line[64];
    snprintf(line, sizeof(line), "%s: %s", images[_i].name, images[_i].verdict);
    want(&shelf, images[_i].name, images[_i].exit_code, line, "");
    char args[64];
    snprintf(args, sizeof(args), "-q %s", images[_i].name);
    want(&shelf, args, images[_i].exit_code, images[_i].exit_code ? line : "", "");
    shelf_close(&shelf);
}
END_TEST

START_TEST(the_worst_of_several_images)
{
    struct shelf shelf = shelf_open();
    want(&shelf, "clean clean", 0, "", "");
    want(&shelf, "clean leaks", 3, "", "");
    want(&shelf, "leaks raw", 63, "", "");
    want(&shelf, "raw corrupt leaks", 2, "", "");
    want(&shelf, "short corrupt raw", 1, "", "");
    want(&shelf, "corrupt no-such-file clean", 1, "clean: clean", "");
    shelf_close(&shelf);
}
END_TEST

/* An image that is named twice must not be repaired twice at once, whatever else is named. */
START_TEST(repairs_of_several_images)
{
    struct shelf shelf = shelf_open();
    want(&shelf, "-j4 --repair /dev/null corrupt leaks", 1, "corrupt: clean", "");
    want(&shelf, "corrupt leaks", 0, "", "");
    corpus_make(shelf.dir, "again", images[2].recipe);
    ck_assert_int_eq(proc_exit("ln '%s/again' '%s/name'", shelf.dir, shelf.dir), 0);
    want(&shelf, "-j4 --repair again name /dev/null again ./name", 1, "name: clean", "");
    want(&shelf, "again", 0, "", "");
    shelf_close(&shelf);
}
END_TEST

START_TEST(json_has_one_line_for_each)
{
    struct shelf shelf = shelf_open();
    struct proc_result r =
        run(&shelf, "--output=json clean leaks corrupt raw short notes - . gone");
    ck_assert_int_eq(r.exit_code, 1);
    const char *line = r.out;
    int count = 0;
    for (; *line; line += strcspn(line, "\n") + 1, count++) {
        json_error_t error;
        json_t *object = json_loads(line, JSON_DISABLE_EOF_CHECK, &error);
        ck_assert_msg(object != NULL, "line %d: %s", count, error.text);
        const char *verdict = json_string_value(json_object_get(object, "verdict"));
        ck_assert_str_eq(verdict, count < IMAGES ? images[count].verdict : "incomplete");
        ck_assert(json_is_integer(json_object_get(object, "check-errors")));
        json_decref(object);
    }
    ck_assert_int_eq(count, IMAGES + 3);
    proc_free(&r);
    shelf_close(&shelf);
}
END_TEST

START_TEST(things_that_are_no_images)
{
    struct shelf shelf = shelf_open();
    proc_exit("mkfifo '%s/fifo'", shelf.dir);
    proc_exit("ln -s nowhere '%s/dangling'", shelf.dir);
    want(&shelf, "-", 1, "standard input", "");
    want(&shelf, ".", 1, "Is a directory", "");
    want(&shelf, "fifo", 1, "neither a regular file nor a block device", "");
    want(&shelf, "/dev/null", 1, "neither a regular file nor a block device", "");
    want(&shelf, "gone", 1, "No such file", "");
    want(&shelf, "dangling", 1, "No such file", "");
    want(&shelf, "''", 1, "", "");
    want(&shelf, "-- -U", 1, "No such file", "");
    shelf_close(&shelf);
}
END_TEST

START_TEST(the_cap_on_findings)
{
    struct shelf shelf = shelf_open();
    struct proc_result r = run(&shelf, "--output=json --max-findings 0 corrupt");
    ck_assert_int_eq(r.exit_code, 2);
    ck_assert_ptr_nonnull(strstr(r.out, "\"findings\":[]"));
    ck_assert_ptr_nonnull(strstr(r.out, "\"findings-omitted\":1"));
    ck_assert_ptr_nonnull(strstr(r.out, "\"corruptions\":1"));
    proc_free(&r);
    shelf_close(&shelf);
}
END_TEST

START_TEST(progress_is_for_people)
{
    struct shelf shelf = shelf_open();
    struct proc_result r = run(&shelf, "--progress clean");
    ck_assert_int_eq(r.exit_code, 0);
    ck_assert_ptr_null(strchr(r.out, '%'));
    proc_free(&r);
    r = run(&shelf, "--no-progress clean");
    ck_assert_str_eq(r.err, "");
    proc_free(&r);
    shelf_close(&shelf);
}
END_TEST

/* ---- nothing is written --------------------------------------------------------------------- */

static struct stat stat_of(const char *path)
{
    struct stat st;
    ck_assert_int_eq(stat(path, &st), 0);
    return st;
}

START_TEST(nothing_is_written)
{
    struct shelf shelf = shelf_open();
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", shelf.dir, images[_i].name);
    ck_assert_int_eq(proc_exit("cp '%s' '%s/copy' && chmod 444 '%s'", path, shelf.dir, path), 0);
    struct stat before = stat_of(path);
    want(&shelf, images[_i].name, images[_i].exit_code, "", "");
    char args[100];
    snprintf(args, sizeof(args), "--deep --backing -U --output=json %s", images[_i].name);
    want(&shelf, args, images[_i].exit_code, "", "");
    struct stat after = stat_of(path);
    ck_assert_int_eq(memcmp(&before.st_mtim, &after.st_mtim, sizeof(before.st_mtim)), 0);
    ck_assert_int_eq(memcmp(&before.st_ctim, &after.st_ctim, sizeof(before.st_ctim)), 0);
    ck_assert_int_eq(before.st_size, after.st_size);
    ck_assert_int_eq(before.st_blocks, after.st_blocks);
    ck_assert_int_eq(proc_exit("cmp '%s' '%s/copy'", path, shelf.dir), 0);
    shelf_close(&shelf);
}
END_TEST

/* An image must not take the place of a stream that is closed: words would be written into it. */
START_TEST(closed_streams)
{
    static const char *const closed[] = {"<&-", ">&-", "2>&-", "<&- >&- 2>&-"};
    struct shelf shelf = shelf_open();
    proc_exit("cd '%s' && cp corrupt copy && '%s' --repair copy", shelf.dir, shelf.qcheck);
    ck_assert_int_eq(
        proc_exit(
            "cd '%s' && '%s' --repair --undo undo -v --output=json corrupt %s; cmp corrupt copy",
            shelf.dir, shelf.qcheck, closed[_i]),
        0);
    shelf_close(&shelf);
}
END_TEST

/* ---- images in use -------------------------------------------------------------------------- */

/* A process that holds lock bytes of an image as QEMU would, until its pipe is closed. */
struct holder {
    pid_t pid;
    int pipe;
};

static struct holder hold(const char *path, const int *bytes, size_t count)
{
    int ready[2], end[2];
    ck_assert(pipe(ready) == 0 && pipe(end) == 0);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        char c = 'x';
        int fd = open(path, O_RDWR);
        close(end[1]);
        for (size_t i = 0; i < count; i++) {
            struct flock lock = {
                .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = bytes[i], .l_len = 1};
            if (fcntl(fd, F_OFD_SETLK, &lock) < 0)
                c = '!';
        }
        if (write(ready[1], &c, 1) != 1 || read(end[0], &c, 1) != 0)
            _exit(1);
        _exit(0);
    }
    char c = 0;
    ck_assert_int_eq(read(ready[0], &c, 1), 1);
    ck_assert_int_eq(c, 'x');
    close(ready[0]);
    close(ready[1]);
    close(end[0]);
    return (struct holder){pid, end[1]};
}

static void let_go(struct holder *holder)
{
    close(holder->pipe);
    waitpid(holder->pid, NULL, 0);
}

static const struct {
    int bytes[5];
    size_t count;
    bool refused;
} holders[] = {
    {{100, 101, 103, 201, 203}, 5, true}, /* a program that writes */
    {{101, 201}, 2, true},                /* the least of it */
    {{103}, 1, true},                     /* may resize */
    {{200}, 1, true},                     /* lets nobody read */
    {{100, 201, 203}, 3, false},          /* reads, and lets others read */
    {{100}, 1, false},                    /* looks although others write */
    {{100, 102}, 2, false},               /* writes what is there already */
};

START_TEST(images_in_use)
{
    struct shelf shelf = shelf_open();
    char path[4096], pid[32];
    snprintf(path, sizeof(path), "%s/clean", shelf.dir);
    struct holder holder = hold(path, holders[_i].bytes, holders[_i].count);
    if (holders[_i].refused) {
        snprintf(pid, sizeof(pid), "%ld", (long)holder.pid);
        want(&shelf, "clean", 1, "in use", "");
        want(&shelf, "clean", 1, pid, "");
        want(&shelf, "--output=json clean", 1, "\"problem\":\"in use", "");
    } else {
        want(&shelf, "clean", 0, "clean: clean", "");
    }
    want(&shelf, "-U clean", 0, "clean: clean", "");
    want(&shelf, "--force-share clean", 0, "clean: clean", "");
    let_go(&holder);
    want(&shelf, "clean", 0, "clean: clean", "");
    shelf_close(&shelf);
}
END_TEST

START_TEST(qemu_has_it_open)
{
    if (proc_exit("command -v qemu-io") != 0)
        return;
    struct shelf shelf = shelf_open();
    struct proc_result r =
        proc_run("cd '%s' && { qemu-io -f qcow2 -c 'sleep 1500' clean & sleep 0.5; '%s' clean; "
                 "echo \"exit $?\"; '%s' -U clean; echo \"shared $?\"; wait; }",
            shelf.dir, shelf.qcheck, shelf.qcheck);
    ck_assert_msg(strstr(r.out, "in use") && strstr(r.out, "exit 1") && strstr(r.out, "shared 0"),
        "%s%s", r.out, r.err);
    proc_free(&r);
    shelf_close(&shelf);
}
END_TEST

/* ---- stopping ------------------------------------------------------------------------------- */

START_TEST(a_signal_ends_it)
{
    static const char *const signals[] = {"INT", "TERM", "HUP"};
    struct shelf shelf = shelf_open();
    struct proc_result r =
        proc_run("cd '%s' && ln -s clean i && images=$(yes i | head -n 100000) && "
                 "timeout --preserve-status -s %s 0.8 '%s' --output=json $images",
            shelf.dir, signals[_i], shelf.qcheck);
    ck_assert_msg(r.exit_code == 1, "exit %d %s", r.exit_code, r.err);
    size_t length = strlen(r.out), lines = 0;
    ck_assert(length > 0 && r.out[length - 1] == '\n' && r.out[length - 2] == '}');
    for (const char *at = r.out; (at = strchr(at, '\n')) != NULL; at++)
        lines++;
    ck_assert_uint_eq(lines, 100000); /* also of those that were not looked at */
    ck_assert_ptr_nonnull(strstr(r.out, "\"problem\":\"stopped before it was looked at\""));
    proc_free(&r);
    shelf_close(&shelf);
}
END_TEST

/* Nobody reads the output any more: that ends no repair at just any point. */
START_TEST(a_closed_pipe_ends_it)
{
    struct shelf shelf = shelf_open();
    struct proc_result r =
        proc_run("cd '%s' && cp corrupt copy && trap - PIPE && "
                 "{ { sleep 0.5; '%s' -q %s corrupt; echo \"exit $?\" >&2; } | true; } && "
                 "{ [ ! -e undo ] || '%s' -q --rollback undo corrupt; cmp corrupt copy; }",
            shelf.dir, shelf.qcheck, _i ? "--repair -v --undo undo" : "", shelf.qcheck);
    ck_assert_msg(r.exit_code == 0 && strstr(r.err, "exit 1\n"), "%d %s", r.exit_code, r.err);
    proc_free(&r);
    shelf_close(&shelf);
}
END_TEST

START_TEST(sigusr1_asks_how_far_it_is)
{
    struct shelf shelf = shelf_open();
    struct proc_result r =
        proc_run("cd '%s' && ln -s clean i && images=$(yes i | head -n 30000) && "
                 "timeout --preserve-status -s USR1 0.4 '%s' -q $images",
            shelf.dir, shelf.qcheck);
    ck_assert_msg(r.exit_code == 0, "exit %d %s", r.exit_code, r.err);
    ck_assert_msg(strstr(r.err, " %, ") && strstr(r.err, "MiB/s") && strstr(r.err, " s left\n"),
        "said %s", r.err);
    ck_assert_str_eq(r.out, "");
    proc_free(&r);
    shelf_close(&shelf);
}
END_TEST

/* In the middle of a check: what was found so far is told. */
static volatile sig_atomic_t *stop_of(void *arg)
{
    return arg;
}

static void stop_at_a_finding(void *arg, const struct finding *finding)
{
    (void)finding;
    *stop_of(arg) = 1;
}

START_TEST(a_check_can_be_stopped)
{
    char error[RECIPE_ERROR_BYTES];
    struct recipe *recipe = NULL;
    volatile sig_atomic_t stop = 0;
    struct check_options options = {.threads = 1,
        .stop = &stop,
        .found = stop_at_a_finding,
        .found_arg = (void *)(uintptr_t)&stop};
    struct report report;
    ck_assert_msg(recipe_text("stop",
                      "image cluster=4k size=64M\ndata 0 16M\ndamage header.compatible |= 2\n"
                      "damage refcount[@l2[0][1].offset] = 0\n",
                      &recipe, error) == 0,
        "%s", error);
    report_init(&report, 100);
    check_image(recipe_io(recipe), NULL, &options, &report);
    ck_assert_int_eq(report_exit_code(&report), 1);
    ck_assert_uint_eq(report.sorted.count, 1);
    ck_assert_ptr_nonnull(strstr(report.problem, "stopped"));
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

Suite *test_cli(void);
Suite *test_cli(void)
{
    Suite *suite = suite_create("cli");
    TCase *tc = tcase_create("cli");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, bad_arguments);
    tcase_add_test(tc, help_and_version);
    tcase_add_test(tc, explanations);
    tcase_add_loop_test(tc, each_verdict_has_its_exit_code, 0, IMAGES);
    tcase_add_test(tc, the_worst_of_several_images);
    tcase_add_test(tc, repairs_of_several_images);
    tcase_add_test(tc, json_has_one_line_for_each);
    tcase_add_test(tc, things_that_are_no_images);
    tcase_add_test(tc, the_cap_on_findings);
    tcase_add_test(tc, progress_is_for_people);
    tcase_add_loop_test(tc, nothing_is_written, 0, IMAGES);
    tcase_add_loop_test(tc, closed_streams, 0, 4);
    tcase_add_loop_test(tc, images_in_use, 0, (int)(sizeof(holders) / sizeof(holders[0])));
    tcase_add_test(tc, qemu_has_it_open);
    tcase_add_loop_test(tc, a_signal_ends_it, 0, 3);
    tcase_add_loop_test(tc, a_closed_pipe_ends_it, 0, 2);
    tcase_add_test(tc, sigusr1_asks_how_far_it_is);
    tcase_add_test(tc, a_check_can_be_stopped);
    suite_add_tcase(suite, tc);
    return suite;
}
