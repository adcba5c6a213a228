/* SPDX-License-Identifier: MIT
 *
 * bench_check [ROW...]: qcheck beside qemu-img check and beside the bare reading of the same
 * metadata, taking turns in one run; the table it prints is the one in README.
 *
 * Bare reading: the L2 tables and refcount blocks of the image, copied into a file of their own,
 * are read by 1 MiB and their words summed; for --deep its compressed clusters are decoded, on all
 * processors.  All are whole processes, the page cache is warm.  Of several rounds the best counts.
 * Images are made in $TMPDIR by the project's own maker, or by qemu-img.
 *
 * bench_check --read FILE, --decode IMAGE: the bare programs.  */
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench_bare.h"
#include "bigimage.h"
#include "io_meter.h"
#include "proc.h"
#include "qcheck.h"

enum {
    ROUNDS = 7,
    TURNS = 25,       /* of two images that are compared with one another */
    TIME_ENOUGH = 15, /* seconds; no new round of a row after them */
    TIME_MOST = 60,   /* a peer that takes longer is ended */
    SMALL_IMAGES = 1000,
};
#define TIME_MOST_TEXT "60"
#define GIB            (UINT64_C(1) << 30)
#define TIB            (UINT64_C(1) << 40)

struct bench {
    const char *qcheck, *self; /* programs */
    char *dir;
};

/* What one program took. */
struct cost {
    double seconds; /* 0: was not run */
    long peak_kib;
    bool ended; /* it would have taken longer */
};

struct result {
    struct cost bare, qcheck, qemu;
};

static void fail(const char *what)
{
    fprintf(stderr, "bench_check: %s\n", what);
    exit(EXIT_FAILURE);
}

/* Runs it with nothing printed, and keeps what it took if that is the least so far. */
static void measure(const char *const argv[], struct cost *best)
{
    struct rusage usage;
    int status;
    double start = proc_seconds();
    pid_t pid = fork();
    if (pid == 0) {
        if (!freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr))
            _exit(127);
        execvp(argv[0], (char *const *)argv);
        _exit(127);
    }
    if (pid < 0 || wait4(pid, &status, 0, &usage) < 0)
        fail(argv[0]);
    double seconds = proc_seconds() - start;
    bool ended = seconds > TIME_MOST;
    if (!ended && (!WIFEXITED(status) || WEXITSTATUS(status) == 1 || WEXITSTATUS(status) == 127))
        fail(argv[0]);
    if (best->seconds == 0 || seconds < best->seconds)
        *best = (struct cost){ended ? TIME_MOST : seconds, usage.ru_maxrss, ended};
}

/* The three programs on one image, in turns.  `bare` is what the bare program reads, NULL: none. */
static struct result measure_all(const struct bench *b, const char *image, const char *mode,
    const char *bare, const char *option)
{
    const char *const read[] = {b->self, mode, bare, NULL};
    const char *const ours[] = {b->qcheck, "-q", image, option, NULL};
    const char *const qemu[] = {
        "timeout", "-s", "KILL", TIME_MOST_TEXT, "qemu-img", "check", image, NULL};
    struct result r = {0};
    double start = proc_seconds();
    for (int i = 0; i < ROUNDS && (i == 0 || proc_seconds() - start < TIME_ENOUGH); i++) {
        for (int k = 0; k < 2; k++) { /* the short ones twice */
            if (bare)
                measure(read, &r.bare);
            measure(ours, &r.qcheck);
        }
        measure(qemu, &r.qemu);
    }
    return r;
}

/* ---- the table ---- */

/* Times; how often qcheck's time goes into the peer's, and the bare one into qcheck's. */
static void print_row(const char *name, const struct result *r, const char *target)
{
    printf("| %s | ", name);
    if (r->bare.seconds == 0)
        printf(" | ");
    else
        printf("%.3f s | ", r->bare.seconds);
    printf("%.3f s | ", r->qcheck.seconds);
    if (r->bare.seconds == 0)
        printf(" | ");
    else
        printf("%.2f | ", r->qcheck.seconds / r->bare.seconds);
    if (r->qemu.seconds == 0)
        printf(" | | ");
    else
        printf("%s%.3f s | %.1f | ", r->qemu.ended ? "> " : "", r->qemu.seconds,
            r->qemu.seconds / r->qcheck.seconds);
    printf("%.1f MiB | %s |\n", (double)r->qcheck.peak_kib / 1024, target);
    fflush(stdout);
}

/* ---- images ---- */

static void in_dir(const struct bench *b, const char *name, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/%s", b->dir, name);
}

static void shell(const struct bench *b, const char *command)
{
    if (proc_exit("cd '%s' && %s", b->dir, command) != 0)
        fail(command);
}

static void make(const struct bench *b, const char *name, const struct bigimage *settings)
{
    char path[PATH_MAX];
    in_dir(b, name, path);
    if (bigimage_save(path, settings) < 0)
        fail(name);
}

/* Measures an image of the directory and lets go of it. */
static struct result row(
    const struct bench *b, const char *label, const char *image, const char *target)
{
    char path[PATH_MAX], bare[PATH_MAX];
    in_dir(b, image, path);
    in_dir(b, "bare", bare);
    if (bench_copy_metadata(path, bare) < 0)
        fail("copying the metadata");
    struct result r = measure_all(b, path, "--read", bare, NULL);
    print_row(label, &r, target);
    unlink(bare);
    return r;
}

/* How much longer qcheck takes for one image than for another, both many times in turns. */
static double compare(const struct bench *b, const char *image, const char *other)
{
    char path[PATH_MAX], other_path[PATH_MAX];
    in_dir(b, image, path);
    in_dir(b, other, other_path);
    const char *const one[] = {b->qcheck, "-q", path, NULL};
    const char *const two[] = {b->qcheck, "-q", other_path, NULL};
    struct cost cost = {0}, other_cost = {0};
    for (int i = 0; i < TURNS; i++) {
        measure(one, &cost);
        measure(two, &other_cost);
    }
    return cost.seconds / other_cost.seconds;
}

/* A row whose target is a ratio to the time of another image. */
static void row_beside(const struct bench *b, const char *label, const char *image,
    const char *other, const char *target)
{
    char text[96];
    snprintf(text, sizeof(text), "%s: %.2f in turns", target, compare(b, image, other));
    row(b, label, image, text);
}

/* ---- rows ---- */

static void row_mapped(struct bench *b)
{
    shell(b, "qemu-img create -q -f qcow2 -o preallocation=metadata 1t 1T");
    row(b, "1 TiB, all mapped", "1t", "bare 2, qemu-img 18, 24 MiB");
    shell(b, "rm 1t");
}

static void row_snapshots(struct bench *b)
{
    static const char *const steps[][2] = {
        {"for i in $(seq 8); do qemu-img snapshot -c a$i s1t; done", "1 TiB, 8 snapshots"},
        {"for i in $(seq 56); do qemu-img snapshot -c b$i s1t; done", "1 TiB, 64 snapshots"}};
    shell(b, "qemu-img create -q -f qcow2 -o preallocation=metadata 1t 1T");
    shell(b, "cp --sparse=always 1t s1t");
    for (int i = 0; i < 2; i++) {
        shell(b, steps[i][0]);
        row_beside(b, steps[i][1], "s1t", "1t", "1.5 times that without");
    }
    shell(b, "rm 1t s1t");
}

/* Longer than some file systems allow: in memory then. */
static void row_huge(struct bench *b)
{
    struct bigimage huge = {.cluster_bits = 16, .size_bytes = 16 * TIB, .percent = 100};
    struct bench in_memory = *b;
    char path[PATH_MAX];
    in_dir(b, "16t", path);
    bool fits = bigimage_save(path, &huge) == 0;
    if (!fits) {
        unlink(path);
        setenv("TMPDIR", "/dev/shm", 1);
        in_memory.dir = proc_mkdir();
        unsetenv("TMPDIR");
        make(&in_memory, "16t", &huge);
    }
    row(&in_memory, "16 TiB, all mapped", "16t", "linear (bare 2), 300 MiB");
    shell(&in_memory, "rm 16t");
    if (!fits)
        proc_rmdir(in_memory.dir);
}

static void row_scattered(struct bench *b)
{
    make(b, "s64k",
        &(struct bigimage){.cluster_bits = 16, .size_bytes = TIB, .percent = 25, .shuffled = true});
    row(b, "1 TiB, 25 % mapped, shuffled", "s64k", "qemu-img 5");
    make(b, "s4k",
        &(struct bigimage){
            .cluster_bits = 12, .size_bytes = 64 * GIB, .percent = 25, .shuffled = true});
    row(b, "64 GiB of 4 KiB clusters, 25 % mapped, shuffled", "s4k", "qemu-img 5");
    shell(b, "rm s64k s4k");
}

static void row_deep(struct bench *b)
{
    enum { COUNT = 100000 };
    char path[PATH_MAX];
    make(b, "packed",
        &(struct bigimage){
            .cluster_bits = 16, .size_bytes = COUNT * UINT64_C(65536), .compressed = COUNT});
    in_dir(b, "packed", path);
    struct result r = measure_all(b, path, "--decode", path, "--deep");
    r.qemu = (struct cost){0}; /* does not decode */
    print_row("100,000 compressed clusters, --deep", &r, "bare decoding on all processors");
    shell(b, "rm packed");
}

static void row_damaged(struct bench *b)
{
    struct bigimage mapped = {.cluster_bits = 16, .size_bytes = TIB, .percent = 100};
    make(b, "healthy", &mapped);
    mapped.wrong_every = 16;
    make(b, "damaged", &mapped);
    row_beside(b, "1 TiB, every 16th count wrong (a million)", "damaged", "healthy",
        "3 times the healthy one");
    shell(b, "rm healthy damaged");
}

/* One process for all of them, against one for each. */
static void row_small(struct bench *b)
{
    struct result r;
    char path[PATH_MAX], name[32];
    shell(b, "qemu-img create -q -f qcow2 -o preallocation=metadata small 1G");
    row(b, "1 GiB, all mapped", "small", "qemu-img 1");
    const char **ours = calloc(SMALL_IMAGES + 3, sizeof(*ours));
    char command[PATH_MAX + 64];
    if (!ours)
        fail("memory");
    ours[0] = b->qcheck;
    ours[1] = "-q";
    shell(b, "for i in $(seq 0 999); do cp --sparse=always small small-$i; done");
    for (int i = 0; i < SMALL_IMAGES; i++) {
        snprintf(name, sizeof(name), "small-%d", i);
        in_dir(b, name, path);
        if (!(ours[i + 2] = strdup(path)))
            fail(name);
    }
    snprintf(command, sizeof(command),
        "for i in %s/small-*; do qemu-img check -q $i || exit 1; done", b->dir);
    const char *const qemu[] = {"sh", "-c", command, NULL};
    r = (struct result){0};
    for (int i = 0; i < 3; i++) {
        measure(ours, &r.qcheck);
        measure(qemu, &r.qemu);
    }
    print_row("1,000 images of 1 GiB, one qcheck", &r, "qemu-img 10");
    for (int i = 0; i < SMALL_IMAGES; i++)
        free((char *)ours[i + 2]);
    free(ours);
    shell(b, "rm -f small small-*");
}

/* Checks in process, each read taking a millisecond longer. */
static double check_cold(const char *path, unsigned threads, struct io_meter_counts *counts)
{
    enum { DELAY_NS = 1000000 };
    struct check_options options = {.threads = threads};
    struct report report;
    struct io *file = NULL, *meter = NULL;
    if (io_file_open(path, IO_FILE_NO_LOCK, &file, NULL) < 0 ||
        io_meter_open(file, DELAY_NS, &meter) < 0)
        fail(path);
    double start = proc_seconds();
    report_init(&report, DEFAULT_MAX_FINDINGS);
    check_image(meter, NULL, &options, &report);
    double seconds = proc_seconds() - start;
    if (report_exit_code(&report) != 0)
        fail("the image is not clean");
    *counts = io_meter_counts(meter);
    report_release(&report);
    io_close(meter);
    io_close(file);
    return seconds;
}

static void row_cold(struct bench *b)
{
    char path[PATH_MAX];
    struct io_meter_counts one, many;
    make(b, "cold", &(struct bigimage){.cluster_bits = 16, .size_bytes = TIB, .percent = 100});
    in_dir(b, "cold", path);
    double slow = check_cold(path, 1, &one), fast = check_cold(path, 2, &many);
    for (int i = 1; i < ROUNDS; i++) {
        double seconds = check_cold(path, 2, &many);
        fast = seconds < fast ? seconds : fast;
    }
    printf("\nStorage that takes 1 ms a read, 1 TiB, all mapped: one read at a time %.3f s "
           "(%" PRIu64 " reads), ahead %.3f s (%" PRIu64 " reads, up to %" PRIu64
           " at a time): %.1f times faster (target 20).\n",
        slow, one.reads, fast, many.reads, many.at_once, slow / fast);
    shell(b, "rm cold");
}

/* Starts the file system of bench_slow; its process, and the path of the image there; 0 if this is
 * not to be had here. */
static pid_t mount_slow(const struct bench *b, const char *file, char path[PATH_MAX])
{
    enum { WAIT_MS = 5000 };
    char program[PATH_MAX], dir[PATH_MAX];
    snprintf(
        program, sizeof(program), "%.*s_slow", (int)(strrchr(b->self, '_') - b->self), b->self);
    in_dir(b, "slow", dir);
    shell(b, "mkdir slow");
    pid_t pid = fork();
    if (pid == 0) {
        execl(program, program, file, dir, (char *)NULL);
        _exit(127);
    }
    in_dir(b, "slow/image", path);
    for (int i = 0; pid > 0 && i < WAIT_MS / 10; i++) {
        if (access(path, R_OK) == 0)
            return pid;
        if (waitpid(pid, NULL, WNOHANG) != 0)
            return 0;
        usleep(10000);
    }
    if (pid > 0 && kill(pid, SIGTERM) == 0)
        waitpid(pid, NULL, 0);
    return 0;
}

/* One read at a time, and ahead. */
static void print_slow(const struct bench *b, const char *label, const char *path)
{
    const char *const one[] = {b->qcheck, "-q", "-j1", path, NULL};
    const char *const many[] = {b->qcheck, "-q", path, NULL};
    struct cost slow = {0}, fast = {0};
    for (int i = 0; i < ROUNDS; i++) {
        if (i < 2)
            measure(one, &slow);
        measure(many, &fast);
    }
    printf("%s: qcheck -j 1 %.3f s, qcheck %.3f s: %.1f times faster", label, slow.seconds,
        fast.seconds, slow.seconds / fast.seconds);
}

/* A block device whose sectors are that file's, where the machine lends one. */
static void row_loop(const struct bench *b, const char *path)
{
    struct proc_result r = proc_run("losetup --read-only --direct-io=on --find --show '%s'", path);
    if (r.exit_code == 0) {
        r.out[strcspn(r.out, "\n")] = '\0';
        print_slow(b, "\nA block device upon that file (a loop device)", r.out);
        puts(".");
        proc_exit("losetup --detach %s", r.out);
    } else {
        printf("\nA block device: skipped, there is none to be had. %s", r.err);
    }
    proc_free(&r);
}

static void row_fuse(struct bench *b)
{
    char file[PATH_MAX], path[PATH_MAX];
    make(b, "cold", &(struct bigimage){.cluster_bits = 16, .size_bytes = TIB, .percent = 100});
    in_dir(b, "cold", file);
    pid_t pid = mount_slow(b, file, path);
    if (pid > 0) {
        print_slow(b, "\nThe same through the kernel, a FUSE file that takes 1 ms a read", path);
        puts(" (target 20).");
        row_loop(b, path);
    } else {
        printf("\nThrough the kernel: skipped, for bench_slow was not built (it needs libfuse3) or "
               "may not mount here.\n");
    }
    if (pid > 0 && kill(pid, SIGTERM) == 0)
        waitpid(pid, NULL, 0);
    shell(b, "rmdir slow && rm cold");
}

/* ---- all of them ---- */

static const struct {
    const char *name;
    void (*run)(struct bench *b);
} rows[] = {
    {"mapped", row_mapped},
    {"snapshots", row_snapshots},
    {"huge", row_huge},
    {"scattered", row_scattered},
    {"deep", row_deep},
    {"damaged", row_damaged},
    {"small", row_small},
    {"cold", row_cold},
    {"fuse", row_fuse},
};

static bool wanted(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], name) == 0)
            return true;
    }
    return argc == 1;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--read") == 0)
        return bench_read(argv[2]);
    if (argc == 3 && strcmp(argv[1], "--decode") == 0)
        return bench_decode(argv[2]);
    struct bench b = {.qcheck = getenv("QCHECK"), .self = argv[0], .dir = proc_mkdir()};
    b.qcheck = b.qcheck ? b.qcheck : "build/qcheck";
    printf("| image | bare reading | qcheck | x bare | qemu-img check | x qcheck | peak memory "
           "| target |\n|---|---|---|---|---|---|---|---|\n");
    fflush(stdout);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (wanted(rows[i].name, argc, argv))
            rows[i].run(&b);
    }
    proc_rmdir(b.dir);
    return EXIT_SUCCESS;
}
