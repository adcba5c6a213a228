/* SPDX-License-Identifier: MIT
 *
 * bench_snap [SIZE [ROUNDS [DIR]]]: qsnap beside qemu-img snapshot, taking turns, each on its own
 * copy of a fully mapped image (preallocation=metadata; 1T, 3 rounds, $TMPDIR).  Both end durable:
 * each flushes before it returns.  Dirty pages are synced before each measurement, so nobody pays
 * for another's; the page cache is warm for both.
 *
 * Prints the best time of each, their ratio, and qsnap's peak memory. */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "options.h"
#include "proc.h"

enum { TARGET_RATIO = 10, TARGET_KIB = 64 << 10 };

struct bench {
    char images[2][PATH_MAX]; /* QEMU's, ours */
    char script[PATH_MAX];    /* qemu-io: one cluster written under each L2 table */
    const char *qsnap, *size;
};

struct result {
    double seconds[2];
    long peak_kib;
};

static void fail(const char *what)
{
    fprintf(stderr, "bench_snap: %s\n", what);
    exit(EXIT_FAILURE);
}

/* Runs it; seconds it took, and its peak memory. */
static double measure(char *const argv[], long *peak_kib)
{
    struct rusage usage;
    int status;
    sync();
    double start = proc_seconds();
    pid_t pid = fork();
    if (pid == 0) {
        execvp(argv[0], argv);
        _exit(127);
    }
    if (pid < 0 || wait4(pid, &status, 0, &usage) < 0 || status != 0)
        fail(argv[0]);
    *peak_kib = usage.ru_maxrss;
    return proc_seconds() - start;
}

/* The same operation by both programs. */
static void measure_both(struct bench *b, const char *option, const char *command, struct result *r)
{
    char *qemu[] = {"qemu-img", "snapshot", (char *)option, "s", b->images[0], NULL};
    char *ours[] = {(char *)b->qsnap, (char *)command, b->images[1], "s", NULL};
    long kib;
    for (int i = 0; i < 2; i++) {
        double seconds = measure(i == 0 ? qemu : ours, &kib);
        if (r->seconds[i] == 0 || seconds < r->seconds[i])
            r->seconds[i] = seconds;
    }
    r->peak_kib = kib > r->peak_kib ? kib : r->peak_kib;
}

static void on_both(const struct bench *b, const char *format)
{
    for (int i = 0; i < 2; i++) {
        char command[3 * PATH_MAX];
        snprintf(command, sizeof(command), format, b->images[i], b->images[i]);
        if (proc_exit("%s", command) != 0)
            fail(command);
    }
}

/* Each L2 table gets changed, so that the disk and its snapshot share clusters but no table. */
static void touch_tables(const struct bench *b)
{
    char format[PATH_MAX + 64];
    snprintf(format, sizeof(format), "qemu-io %%s < '%s' > /dev/null", b->script);
    on_both(b, format);
}

/* The disk is mapped anew: it shares nothing with its snapshot. */
static void map_anew(const struct bench *b)
{
    char format[256];
    snprintf(format, sizeof(format),
        "qemu-img resize -q --shrink %%s 64k && "
        "qemu-img resize -q --preallocation=metadata %%s %s",
        b->size);
    on_both(b, format);
}

static int print(const char *name, const struct result *r)
{
    double ratio = r->seconds[0] / r->seconds[1];
    int missed = ratio < TARGET_RATIO || r->peak_kib >= TARGET_KIB;
    printf("%-32s %10.3f s %10.3f s %7.1f x %7ld KiB%s\n", name, r->seconds[0], r->seconds[1],
        ratio, r->peak_kib, missed ? "  below target" : "");
    fflush(stdout);
    return missed;
}

static void make_images(struct bench *b, const char *dir)
{
    snprintf(b->images[0], PATH_MAX, "%s/qemu.qcow2", dir);
    snprintf(b->images[1], PATH_MAX, "%s/qsnap.qcow2", dir);
    snprintf(b->script, PATH_MAX, "%s/script", dir);
    char format[256];
    snprintf(format, sizeof(format),
        "qemu-img create -q -f qcow2 -o preallocation=metadata %%s %s; : %%s", b->size);
    on_both(b, format);
    FILE *script = fopen(b->script, "w");
    uint64_t size = 0;
    if (!script || size_parse(b->size, &size) < 0)
        fail("cannot write the script");
    for (uint64_t at = 0; at + (64 << 10) <= size; at += 512 << 20)
        fprintf(script, "write -q -P 1 %" PRIu64 " 64k\n", at);
    fclose(script);
}

int main(int argc, char **argv)
{
    struct bench b = {.size = argc > 1 ? argv[1] : "1T", .qsnap = getenv("QSNAP")};
    int rounds = argc > 2 ? atoi(argv[2]) : 3, missed = 0;
    b.qsnap = b.qsnap ? b.qsnap : "build/qsnap";
    if (argc > 3)
        setenv("TMPDIR", argv[3], 1);
    char *dir = proc_mkdir();
    make_images(&b, dir);
    printf("%s, fully mapped, best of %d\n%-32s %12s %12s %9s %11s\n", b.size, rounds, "",
        "qemu-img", "qsnap", "ratio", "peak memory");
    enum { CREATE, APPLY, APPLY_TABLES, DELETE, APPLY_ANEW, DELETE_ANEW, CASES };
    static const char *const names[CASES] = {"create", "apply, all is shared",
        "apply, no table is shared", "delete", "apply, nothing is shared",
        "delete, then, of what is left"};
    struct result results[CASES] = {0};
    for (int i = 0; i < rounds; i++) {
        measure_both(&b, "-c", "create", &results[CREATE]);
        measure_both(&b, "-a", "apply", &results[APPLY]);
        touch_tables(&b);
        measure_both(&b, "-a", "apply", &results[APPLY_TABLES]);
        measure_both(&b, "-d", "delete", &results[DELETE]);
    }
    measure_both(&b, "-c", "create", &results[CREATE]);
    map_anew(&b);
    measure_both(&b, "-a", "apply", &results[APPLY_ANEW]);
    measure_both(&b, "-d", "delete", &results[DELETE_ANEW]);
    for (int i = 0; i < CASES; i++)
        missed += print(names[i], &results[i]);
    proc_rmdir(dir);
    printf(missed ? "%d below the target of %d x in %d MiB\n"
                  : "%d missed the target of %d x in %d MiB\n",
        missed, TARGET_RATIO, TARGET_KIB >> 10);
    return missed ? EXIT_FAILURE : EXIT_SUCCESS;
}
