/* SPDX-License-Identifier: MIT
 *
 * The programs in a failing world.  The n-th call of a kind fails, for n = 1, 2, 3 ... until there
 * are no more: the failure is told by the exit code, or it made no difference to what was printed
 * and done; the image is no worse; a second run, undisturbed, comes to the same end.  Then reads
 * and writes that do a part, or are interrupted; files that shrink, grow or vanish; a full disk.
 *
 * The failures come from a library that is preloaded (fail_calls.c); sanitizers do not stand that,
 * so under them only the calls inside this process fail. */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calls_images.h"
#include "corpus.h"
#include "fault.h"
#include "fault_io.h"
#include "proc.h"
#include "qcheck.h"
#include "recipe.h"
#include "repair.h"
#include "same.h"

#if defined(__SANITIZE_ADDRESS__)
enum { PRELOAD = 0 };
#else
enum { PRELOAD = 1 };
#endif

/* ---- one command ------------------------------------------------------------------------------
 */

static const struct command {
    const char *image;  /* "" for none of its own */
    const char *text;   /* @ stands for the folder of the programs; the image is called image */
    const char *before; /* undisturbed, NULL: nothing */
    enum { SAME_ALL, SAME_OUTPUT, SAME_EXIT } same; /* of two runs that both went well */
} commands[] = {
    {"sound", "@/qcheck -j 1 image", NULL, SAME_ALL},
    {"packed", "@/qcheck -j 1 --deep --output=json image", NULL, SAME_ALL},
    {"old", "@/qcheck -j 1 image", NULL, SAME_ALL},
    {"broken", "@/qcheck -j 1 --output=json image", NULL, SAME_ALL},
    {"lost", "@/qcheck -j 1 image", NULL, SAME_ALL},
    {"chain", "@/qcheck -j 1 --backing image", NULL, SAME_ALL},
    {"sound", "@/qcheck -j 1 --deploy=policy image", "echo allow snapshots > policy", SAME_ALL},
    {"broken", "@/qcheck -j 1 --repair image", NULL, SAME_ALL},
    {"lost", "@/qcheck -j 1 --repair image", NULL, SAME_ALL},
    {"broken", "@/qcheck -j 1 --repair --dry-run image", NULL, SAME_EXIT},
    {"broken", "@/qcheck -j 1 --repair --undo undo image", "rm -f undo", SAME_ALL},
    {"broken", "@/qcheck -j 1 --rollback undo image",
        "rm -f undo; @/qcheck -q --repair --undo undo image", SAME_ALL},
    {"lost", "@/qcheck -j 1 --repair=leaks image", NULL, SAME_ALL},
    {"parts", "@/qcheck -j 1 --repair --lossy image", NULL, SAME_ALL},
    {"split", "@/qcheck -j 1 --repair image", NULL, SAME_ALL},
    {"locked", "@/qcheck -j 1 --repair image", NULL, SAME_ALL},
    {"narrow", "@/qcheck -j 1 --repair image", NULL, SAME_ALL},
    {"wide", "@/qcheck -j 1 --repair image", NULL, SAME_ALL},
    /* A second try puts the new table elsewhere. */
    {"marks", "@/qcheck -j 1 --repair --lossy image", NULL, SAME_EXIT},
    {"sound", "@/qcheck -j 2 image packed old", NULL, SAME_ALL},
    {"sound", "@/qsnap create image new", NULL, SAME_OUTPUT},
    {"sound", "@/qsnap delete image 1", NULL, SAME_OUTPUT},
    {"sound", "@/qsnap apply image 1", NULL, SAME_OUTPUT},
    {"sound", "@/qsnap list image", NULL, SAME_ALL},
    {"sound", "@/qsnap diff image 1", NULL, SAME_ALL},
    {"sound", "@/qsnap read image 0 8k", NULL, SAME_ALL},
    {"sound", "@/qsnap write image 16k 8k --pattern 3", NULL, SAME_OUTPUT},
    {"sound", "@/qsnap discard image 0 16k", NULL, SAME_OUTPUT},
    {"sound", "@/qsnap resize image 512k", NULL, SAME_OUTPUT},
    {"sound", "@/qsnap export image 1 out", "rm -f out", SAME_ALL},
    {"sound", "@/qsnap new made 256k -o cluster_size=4k && rm made", "rm -f made", SAME_ALL},
    {"packed", "@/qsnap write image 0 4k --pattern 3", NULL, SAME_OUTPUT},
    {"", "@/qcrash explore --base base --log log", NULL, SAME_EXIT},
    {"", "@/qcrash run create --image c512 --cap 16 --samples 4", NULL, SAME_EXIT},
    {"", "@/qcrash flushes create --image c512", NULL, SAME_EXIT},
};

static const char *const kinds[] = {"alloc", "open", "read", "write", "sync", "resize", "lock"};

struct world {
    char *dir, *programs, *library;
    const struct command *command;
    struct proc_result calm; /* the same, undisturbed */
    struct io *calm_image;
    int before, after; /* exit codes of a check */
    unsigned long runs;
};

/* The text with each @ replaced. */
static char *expand(const struct world *w, const char *text)
{
    char *out = NULL;
    size_t length;
    FILE *stream = open_memstream(&out, &length);
    ck_assert_ptr_nonnull(stream);
    for (; *text; text++) {
        if (*text == '@')
            fputs(w->programs, stream);
        else
            fputc(*text, stream);
    }
    fclose(stream);
    return out;
}

static void prepare(struct world *w)
{
    if (w->command->image[0])
        proc_exit("cd %s && rm -f fired && cp %s image", w->dir, w->command->image);
    else
        proc_exit("cd %s && rm -f fired", w->dir);
    if (w->command->before) {
        char *before = expand(w, w->command->before);
        proc_exit("cd %s && %s", w->dir, before);
        free(before);
    }
}

static struct proc_result run(struct world *w, const char *environment)
{
    char *command = expand(w, w->command->text);
    struct proc_result result =
        proc_run("cd %s && %s timeout -s KILL 60 %s", w->dir, environment, command);
    free(command);
    return result;
}

static struct io *load(struct world *w)
{
    char path[4096];
    struct io *file = NULL, *image = NULL;
    snprintf(path, sizeof(path), "%s/image", w->dir);
    if (!w->command->image[0])
        return NULL;
    ck_assert_int_eq(io_file_open(path, IO_FILE_NO_LOCK, &file, NULL), 0);
    ck_assert_int_eq(io_mem_load(file, &image), 0);
    io_close(file);
    return image;
}

/* Exit code of a check.  COPIED that is missing counts as a corruption, though it does no harm; of
 * what has lost its counts it is set again last of all. */
static int check_now(struct world *w)
{
    if (!w->command->image[0])
        return 0;
    int exit_code = proc_exit("cd %s && %s/qcheck -q image", w->dir, w->programs);
    bool harm =
        exit_code == 2 && proc_exit("cd %s && %s/qcheck image | grep -qE '^  (damage|danger): '",
                              w->dir, w->programs) == 0;
    return exit_code == 2 && !harm ? 3 : exit_code;
}

static bool was_fired(struct world *w)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/fired", w->dir);
    return access(path, F_OK) == 0;
}

/* Nothing went wrong that shows. */
static bool is_like_calm(struct world *w, const struct proc_result *r)
{
    if (r->exit_code != w->calm.exit_code)
        return false;
    if (w->command->same == SAME_EXIT || r->exit_code != 0)
        return true; /* damage is told; of what is left out there is a count */
    struct io *image = load(w);
    bool same = strcmp(r->out, w->calm.out) == 0 &&
                (!image || w->command->same == SAME_OUTPUT || same_image(image, w->calm_image));
    io_close(image);
    return same;
}

/* Told, or without effect. */
static void judge_outcome(struct world *w, const struct proc_result *r, const char *kind, int n)
{
    const char *text = w->command->text;
    ck_assert_msg(r->exit_code < 128, "%s: %s %d fails: signal %d\n%s", text, kind, n,
        r->exit_code - 128, r->err);
    if (r->exit_code == 1) {
        ck_assert_msg(r->out[0] || r->err[0], "%s: %s %d fails: not a word", text, kind, n);
        return;
    }
    ck_assert_msg(is_like_calm(w, r),
        "%s: %s %d fails: exit %d, and not the same as undisturbed\n%s%s", text, kind, n,
        r->exit_code, r->out, r->err);
}

/* No worse than before, or than after the whole command; at worst with leaks. */
static void judge_image(struct world *w, const char *kind, int n)
{
    int now = check_now(w), least = w->before == 0 ? 3 : w->before;
    least = worse_exit_code(least, w->after);
    ck_assert_msg(worse_exit_code(now, least) == least, "%s: %s %d fails: a check says %d, was %d",
        w->command->text, kind, n, now, w->before);
}

/* What it says to do about it helps. */
static void judge_advice(struct world *w, const struct proc_result *r, const char *kind, int n)
{
    if (!strstr(r->err, "qcheck --repair gets it back"))
        return;
    int exit_code = proc_exit("cd %s && %s/qcheck -q --repair image", w->dir, w->programs);
    ck_assert_msg(exit_code == 0, "%s: %s %d fails: repaired, a check says %d", w->command->text,
        kind, n, exit_code);
}

static void fail_each(struct world *w, const char *kind)
{
    enum { ALL = 60, SAMPLE = 24 }; /* all of the first ones, then some of the many */
    int all = w->command->image[0] ? ALL : 5 * ALL; /* qcrash's oracle grows late */
    char environment[4096], program[16] = "";
    bool fired = true, every = getenv("FAIL_EVERY");
    ck_assert_int_eq(sscanf(w->command->text, "@/%15[a-z]", program), 1);
    for (int n = 1; fired; n += n < all || every ? 1 : n / SAMPLE) {
        snprintf(environment, sizeof(environment),
            "LD_PRELOAD=%s FAIL_PROGRAM=%s FAIL_KIND=%s FAIL_NTH=%d FAIL_FIRED=fired", w->library,
            program, kind, n);
        prepare(w);
        struct proc_result r = run(w, environment);
        fired = was_fired(w);
        w->runs++;
        judge_outcome(w, &r, kind, n);
        judge_image(w, kind, n);
        judge_advice(w, &r, kind, n);
        proc_free(&r);
    }
}

static struct world world_open(const struct command *command)
{
    struct world w = {.dir = proc_mkdir(), .command = command};
    char *qcheck = realpath(QCHECK_PROGRAM, NULL);
    ck_assert_ptr_nonnull(qcheck);
    *strrchr(qcheck, '/') = '\0';
    w.programs = qcheck;
    ck_assert(asprintf(&w.library, "%s/tests/fail_calls.so", qcheck) > 0);
    calls_build_all(w.dir);
    calls_build_log(w.dir);
    prepare(&w);
    w.before = check_now(&w);
    w.calm = run(&w, "");
    w.calm_image = load(&w);
    w.after = check_now(&w);
    return w;
}

static void world_close(struct world *w)
{
    io_close(w->calm_image);
    proc_free(&w->calm);
    proc_rmdir(w->dir);
    free(w->programs);
    free(w->library);
}

START_TEST(the_nth_call_fails)
{
    struct world w = world_open(&commands[_i]);
    ck_assert_int_ne(w.calm.exit_code, 1);
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++)
        fail_each(&w, kinds[k]);
    ck_assert_uint_gt(w.runs, 20);
    world_close(&w);
}
END_TEST

/* What the kernel may do at any time changes nothing. */
START_TEST(parts_and_interruptions)
{
    static const char *const modes[] = {"short", "eintr"};
    struct world w = world_open(&commands[_i]);
    for (int m = 0; m < 2; m++) {
        char environment[4096];
        snprintf(
            environment, sizeof(environment), "LD_PRELOAD=%s FAIL_MODE=%s", w.library, modes[m]);
        prepare(&w);
        struct proc_result r = run(&w, environment);
        ck_assert_msg(is_like_calm(&w, &r), "%s %s: exit %d\n%s%s", modes[m], w.command->text,
            r.exit_code, r.out, r.err);
        proc_free(&r);
    }
    world_close(&w);
}
END_TEST

/* ---- inside this process ----------------------------------------------------------------------
 */

static int open_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int count = 0;
    while (dir && readdir(dir))
        count++;
    if (dir)
        closedir(dir);
    return count;
}

static int check_or_repair(struct io *io, const char *path, bool repairs)
{
    struct check_options options = {.threads = 1, .deep = true, .backing = true};
    struct repair_options how = {0};
    struct report report;
    report_init(&report, 100);
    if (repairs)
        repair_image(io, path, &options, &how, &report);
    else
        check_image(io, path, &options, &report);
    int exit_code = report_exit_code(&report);
    report_release(&report);
    return exit_code;
}

/* Memory runs out at the n-th allocation: incomplete, or as if nothing had been.  What leaks shows
 * under a sanitizer. */
START_TEST(the_nth_allocation_fails)
{
    char *dir = proc_mkdir(), path[4096];
    calls_build_all(dir);
    for (size_t i = 0; i < CALLS_IMAGES; i++) {
        struct io *file, *image;
        snprintf(path, sizeof(path), "%s/%s", dir, calls_images[i].name);
        ck_assert_int_eq(io_file_open(path, IO_FILE_NO_LOCK, &file, NULL), 0);
        ck_assert_int_eq(io_mem_load(file, &image), 0);
        io_close(file);
        for (int repairs = 0; repairs < 2; repairs++) {
            struct io *calm, *io;
            ck_assert_int_eq(io_mem_branch(image, &calm), 0);
            int good = check_or_repair(calm, path, repairs), descriptors = open_descriptors();
            bool fired = true;
            for (unsigned n = 1; fired; n++) {
                ck_assert_int_eq(io_mem_branch(image, &io), 0);
                fault_alloc_arm(n);
                int exit_code = check_or_repair(io, path, repairs);
                fired = fault_alloc_left() == 0;
                fault_alloc_arm(0);
                ck_assert_msg(exit_code == 1 || exit_code == good,
                    "%s, %d, allocation %u: %d not %d", calls_images[i].name, repairs, n, exit_code,
                    good);
                io_close(io);
            }
            ck_assert_int_eq(open_descriptors(), descriptors);
            io_close(calm);
        }
        io_close(image);
    }
    proc_rmdir(dir);
}
END_TEST

/* One call fails: told, or made good by a second try.  All fail from then on: always told. */
START_TEST(the_nth_device_call_fails)
{
    for (size_t i = 0; i < CALLS_IMAGES; i++) {
        char error[RECIPE_ERROR_BYTES];
        struct recipe *recipe = NULL;
        ck_assert_msg(
            recipe_text("image", calls_images[i].recipe, &recipe, error) == 0, "%s", error);
        for (int way = 0; way < 4; way++) {
            bool repairs = way & 1, lasting = way & 2;
            struct fault_io fault = {.fired = true};
            int calm = -1;
            for (unsigned long n = 0; fault.fired || n < 2; n++) {
                struct io *io;
                ck_assert_int_eq(io_mem_branch(recipe_io(recipe), &io), 0);
                fault_io_init(&fault, io);
                fault.left = n;
                fault.lasting = lasting;
                int exit_code = check_or_repair(&fault.io, NULL, repairs);
                calm = n == 0 ? exit_code : calm;
                bool good = exit_code == 1 || (!lasting && exit_code == calm);
                ck_assert_msg(!fault.fired || good, "%s, %d, call %lu: exit %d, undisturbed %d",
                    calls_images[i].name, way, n, exit_code, calm);
                io_close(io);
            }
        }
        recipe_free(recipe);
    }
}
END_TEST

/* ---- files that change ------------------------------------------------------------------------
 */

/* While a check runs the file loses and regains its end, grows, and in the end is gone: it never
 * crashes, and what it says of the sound image is never damage that is not there. */
START_TEST(files_that_change_while_they_are_read)
{
    struct world w = world_open(&commands[0]);
    char path[4096];
    snprintf(path, sizeof(path), "%s/image", w.dir);
    corpus_make(w.dir, "large", "image cluster=4k size=16M\ndata 0 4M\n");
    proc_exit("cd %s && cp large image", w.dir);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        for (;;) {
            if (truncate(path, 40 << 10) < 0 || truncate(path, 5 << 20) < 0)
                _exit(0);
        }
    }
    for (int i = 0; i < 60; i++) {
        int exit_code =
            proc_exit("cd %s && timeout -s KILL 20 %s/qcheck --deep image", w.dir, w.programs);
        ck_assert_msg(exit_code >= 1 && exit_code <= 63, "exit %d", exit_code);
    }
    unlink(path);
    ck_assert_int_eq(proc_exit("cd %s && %s/qcheck image", w.dir, w.programs), 1);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    world_close(&w);
}
END_TEST

/* A file without room for another byte: the undo log cannot be written, so nothing is changed. */
START_TEST(a_full_disk_during_undo)
{
    struct world w = world_open(&commands[10]);
    for (int blocks = 0; blocks < 60; blocks += blocks < 8 ? 1 : 5) {
        prepare(&w);
        struct io *old = load(&w);
        /* The limit holds for every file the program writes, and the image is longer. */
        int exit_code = proc_exit("cd %s && (ulimit -f %d; exec %s/qcheck -j 1 "
                                  "--repair --undo undo image > /dev/null 2>&1)",
            w.dir, blocks, w.programs);
        struct io *now = load(&w);
        ck_assert_msg(exit_code == 1 || exit_code == w.calm.exit_code, "%d blocks: exit %d", blocks,
            exit_code);
        judge_image(&w, "block", blocks);
        if (!same_image(old, now)) { /* then the log can take it back */
            int back = proc_exit("cd %s && %s/qcheck -q --rollback undo image", w.dir, w.programs);
            struct io *again = load(&w);
            ck_assert_msg(same_image(old, again), "%d blocks: rollback %d", blocks, back);
            io_close(again);
        }
        io_close(old);
        io_close(now);
    }
    world_close(&w);
}
END_TEST

Suite *test_calls(void);
Suite *test_calls(void)
{
    Suite *suite = suite_create("calls");
    TCase *tc = tcase_create("calls");
    int count = PRELOAD ? (int)(sizeof(commands) / sizeof(commands[0])) : 0;
    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, the_nth_allocation_fails);
    tcase_add_test(tc, the_nth_device_call_fails);
    tcase_add_test(tc, files_that_change_while_they_are_read);
    tcase_add_test(tc, a_full_disk_during_undo);
    tcase_add_loop_test(tc, parts_and_interruptions, 0, count);
    tcase_add_loop_test(tc, the_nth_call_fails, 0, count);
    suite_add_tcase(suite, tc);
    return suite;
}
