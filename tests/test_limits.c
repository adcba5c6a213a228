/* SPDX-License-Identifier: MIT
 *
 * The program on images that are as large as the format allows, or claim to be: under limits of the
 * kernel (address space, CPU time) that are stated here case by case.  test_crafted.c has more of
 * them, inside this process.  With LIMITS=print in the environment each case prints what it took,
 * as a row of a table (`make limits`). */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "bigimage.h"
#include "corpus.h"
#include "proc.h"
#include "qcheck.h"

/* A sanitizer reserves terabytes of addresses and takes its time. */
#if defined(__SANITIZE_ADDRESS__)
enum { SANITIZED = 1, SLOWER = 10 };
#else
enum { SANITIZED = 0, SLOWER = 1 };
#endif

static const struct limit {
    const char *name, *recipe, *args;
    int exit_code; /* -1: any but 0 */
    unsigned mib, cpu_seconds;
    struct bigimage big; /* if it has clusters, the image is this one, of real records and tables */
    bool huge;           /* the file is made as long as files can be */
} limits[] = {
    {"65536 snapshots, each with its record and L1 table", NULL, "", 0, 128, 5,
        {.cluster_bits = 9, .size_bytes = 64 << 10, .percent = 100, .snapshots = 65536}, false},
    {"65536 snapshots in a table of 64 MiB", NULL, "", 0, 256, 5,
        {.cluster_bits = 9, .size_bytes = 64 << 10, .snapshots = 65536, .record_bytes = 1024},
        false},
    {"65535 bitmaps, each with its entry and table", NULL, "", 0, 128, 5,
        {.cluster_bits = 9, .size_bytes = 64 << 10, .percent = 100, .bitmaps = 65535}, false},
    {"an L1 table of 32 MiB, each entry with an L2 table of its own", NULL, "", 0, 400, 30,
        {.cluster_bits = 9, .size_bytes = UINT64_C(128) << 30}, false},
    {"a file as long as files can be", "image cluster=64k size=1M\ndata 0 64k\n", "--deep", 0, 128,
        5, {0}, true},
    {"the same, with a lost refcount block, repaired",
        "image cluster=64k size=1M\ndata 0 64k\ndamage reftable[0] = 0\n", "--repair --dry-run", 0,
        128, 5, {0}, true},
    {"the same, of small clusters, with an L2 table at its end",
        "image cluster=512 size=1M\ndata 0 64k\ndamage l1[0] = 0x80fffffffffffe00\n",
        "--repair --lossy --dry-run", -1, 128, 5, {0}, true},
    {"an L1 table of 32 MiB, all of it used by one disk",
        "image cluster=512 size=128M l1_size=4194304\ndata 0 64k\n", "", 0, 256, 5, {0}, false},
    {"an L1 table of 32 MiB that points to one place",
        "image cluster=64k size=1M l1_size=4194304\ndata 0 64k\n"
        "damage fill l1.offset 32M 0x80\n",
        "", -1, 384, 20, {0}, false},
    {"a refcount table of 8 MiB", "image cluster=64k size=1M reftable_clusters=128\ndata 0 64k\n",
        "", 0, 256, 5, {0}, false},
    {"a refcount table of 8 MiB of ones",
        "image cluster=64k size=1M reftable_clusters=128\ndata 0 64k\n"
        "damage fill reftable.offset 8M 0x01\n",
        "", -1, 512, 20, {0}, false},
    {"65536 snapshots in a hole",
        "image cluster=512 size=64k\ndata 0 2k\ndamage header.snapshot_count = 65536\n"
        "damage header.snapshots_offset = 1G\ndamage truncate 8G\n",
        "", -1, 384, 10, {0}, false},
    {"a snapshot table of 64 MiB",
        "image cluster=64k size=1M\ndata 0 64k\ndamage header.snapshot_count = 65536\n"
        "damage header.snapshots_offset = 1M\ndamage fill 1M 64M 0x04\n",
        "", -1, 512, 20, {0}, false},
    {"65535 bitmaps",
        "image cluster=64k size=1M\ndata 0 64k\nbitmap\ndamage bitmaps.count = 65535\n"
        "damage bitmaps.directory_size = 2M\ndamage truncate 1G\n",
        "", -1, 384, 10, {0}, false},
    {"a bitmap table of 1 GiB in a hole",
        "image cluster=64k size=1M\ndata 0 64k\nbitmap\n"
        "damage bitmap[0].table_size = 0x8000000\ndamage truncate 4G\n",
        "", -1, 512, 20, {0}, false},
    {"a file of nearly 16 TiB", "image cluster=64k size=1M\ndata 0 64k\ndamage truncate 15T\n", "",
        0, 768, 20, {0}, false},
    {"a file of nearly 16 TiB, repaired",
        "image cluster=64k size=1M\ndata 0 64k\ndamage reftable[0] = 0\ndamage truncate 15T\n",
        "--repair --dry-run", 0, 1024, 60, {0}, false},
    {"offsets near 2^63",
        "image cluster=512 size=64k\ndata 0 2k\ndamage l1[0] = 0x807ffffffffffe00\n"
        "damage header.snapshots_offset = 0x7ffffffffffffe00\ndamage header.snapshot_count = 1\n",
        "", -1, 128, 5, {0}, false},
    {"offsets near 2^64",
        "image cluster=512 size=64k\ndata 0 2k\ndamage header.l1_offset = 0xfffffffffffffe00\n"
        "damage header.reftable_offset = 0xfffffffffffffe00\n",
        "", -1, 128, 5, {0}, false},
    {"a disk of nearly 2^63 bytes",
        "image cluster=2M size=1M\ndata 0 1M\ndamage header.size = 0x7fffffffffffffff\n", "", -1,
        128, 5, {0}, false},
    {"a LUKS header of 4 GiB",
        "image cluster=512 luks=4k\ndamage truncate 8G\ndamage crypto.header_length = 4G\n", "", -1,
        256, 20, {0}, false},
};

/* One thread: each has a stack and an arena of its own, which the kernel counts as addresses. */
static struct proc_result run(const char *dir, const struct limit *limit)
{
    char *qcheck = realpath(QCHECK_PROGRAM, NULL), memory[64] = "";
    ck_assert_ptr_nonnull(qcheck);
    if (!SANITIZED)
        snprintf(memory, sizeof(memory), "ulimit -v %u &&", limit->mib << 10);
    struct proc_result r = proc_run("cd %s && %s ulimit -t %u && exec %s -j 1 %s image", dir,
        memory, limit->cpu_seconds * SLOWER, qcheck, limit->args);
    free(qcheck);
    return r;
}

/* As far as the file system of the directory goes: tmpfs and XFS to 2^63 - 1 bytes, ext4 to 16 TiB.
 */
static off_t make_huge(const char *path)
{
    off_t size = INT64_MAX;
    while (size > INT64_C(1) << 40 && truncate(path, size) < 0)
        size /= 2;
    ck_assert_int_gt(size, INT64_C(1) << 40);
    return size;
}

static char *make_image(const struct limit *limit)
{
    char path[4096];
    if (limit->huge && access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 1);
    char *dir = proc_mkdir();
    snprintf(path, sizeof(path), "%s/image", dir);
    if (limit->big.cluster_bits)
        ck_assert_int_eq(bigimage_save(path, &limit->big), 0);
    else
        corpus_make(dir, "image", limit->recipe);
    if (limit->huge)
        make_huge(path);
    return dir;
}

static void print_row(const struct limit *limit, double seconds)
{
    const char *wish = getenv("LIMITS");
    struct rusage usage;
    if (!wish || strcmp(wish, "print") != 0 || getrusage(RUSAGE_CHILDREN, &usage) < 0)
        return;
    printf("| %s%s%s | %.2f s | %.1f MiB | %u s, %u MiB of addresses |\n", limit->name,
        *limit->args ? ", " : "", limit->args, seconds, (double)usage.ru_maxrss / 1024,
        limit->cpu_seconds, limit->mib);
    fflush(stdout);
}

START_TEST(a_case_stays_within_its_limits)
{
    const struct limit *limit = &limits[_i];
    char *dir = make_image(limit);
    double start = proc_seconds();
    struct proc_result r = run(dir, limit);
    print_row(limit, proc_seconds() - start);
    ck_assert_msg(r.exit_code < 128, "%s: signal %d\n%s", limit->name, r.exit_code - 128, r.err);
    ck_assert_msg(limit->exit_code < 0 ? r.exit_code != 0 : r.exit_code == limit->exit_code,
        "%s: exit %d\n%s", limit->name, r.exit_code, r.out);
    ck_assert_msg(!strstr(r.out, "Cannot allocate memory"), "%s: %s", limit->name, r.out);
    proc_free(&r);
    proc_rmdir(dir);
}
END_TEST

/* What hangs on an L1 table of 2^22 entries that nine disks share is more than 2^64 bytes. */
START_TEST(guest_data_at_risk_does_not_wrap)
{
    enum { DISKS = 9, L1_ENTRIES = 1 << 22 };
    char *dir = proc_mkdir(), *qcheck = realpath(QCHECK_PROGRAM, NULL), text[2000];
    int n = snprintf(
        text, sizeof(text), "image cluster=2M size=2097152T l1_size=%d\ndata 0 64k\n", L1_ENTRIES);
    for (int i = 1; i < DISKS; i++)
        n += snprintf(text + n, sizeof(text) - (size_t)n, "snapshot id=%d name=s%d\n", i, i);
    for (int i = 1; i < DISKS; i++)
        n += snprintf(text + n, sizeof(text) - (size_t)n,
            "damage snapshot[%d].l1_offset = l1.offset\n", i - 1);
    snprintf(text + n, sizeof(text) - (size_t)n, "damage fill l1.offset 32M 0x80\n");
    corpus_make(dir, "image", text);
    struct proc_result r = proc_run("cd %s && ulimit -t %d && exec %s -j 1 --output=json "
                                    "--max-findings 1 image",
        dir, 60 * SLOWER, qcheck);
    ck_assert_int_eq(r.exit_code, 2);
    ck_assert_msg(strstr(r.out, "\"data-at-risk\":\"18446744073709551615\"") != NULL, "%s", r.out);
    proc_free(&r);
    free(qcheck);
    proc_rmdir(dir);
}
END_TEST

/* Too little memory is said, not died of. */
START_TEST(too_little_memory)
{
    char *dir = proc_mkdir();
    corpus_make(dir, "image", "image cluster=512 size=128M l1_size=4194304\ndata 0 64k\n");
    bool enough = false;
    for (unsigned mib = 5; mib <= 128 && !SANITIZED; mib += mib < 16 ? 1 : 8) {
        struct limit limit = {.args = "", .mib = mib, .cpu_seconds = 10};
        struct proc_result r = run(dir, &limit);
        /* 127: not even the libraries found room. */
        ck_assert_msg(r.exit_code == 0 || r.exit_code == 1 || r.exit_code == 127,
            "%u MiB: exit %d\n%s%s", mib, r.exit_code, r.out, r.err);
        enough |= r.exit_code == 0;
        proc_free(&r);
    }
    ck_assert(enough || SANITIZED);
    proc_rmdir(dir);
}
END_TEST

/* Chains of backing files: the last one is a loop or simply one more. */
START_TEST(long_chains)
{
    enum { DEPTH = 230 };
    char *dir = proc_mkdir(), *qcheck = realpath(QCHECK_PROGRAM, NULL);
    for (int n = 0; n < DEPTH; n++) {
        char name[32], text[200];
        snprintf(name, sizeof(name), "%d", n);
        snprintf(text, sizeof(text),
            "image cluster=512 size=64k backing=%d backing_format=qcow2\ndata 0 512\n", n + 1);
        corpus_make(dir, n ? name : "image", text);
    }
    static const struct {
        const char *last, *finding;
    } ends[] = {{"ln -s image", "backing-depth"}, {"ln -s 100", "backing-depth"}};
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        struct proc_result r =
            proc_run("cd %s && rm -f %d && %s %d && ulimit -t %d && %s --backing image", dir, DEPTH,
                ends[i].last, DEPTH, 10 * SLOWER, qcheck);
        ck_assert_int_eq(r.exit_code, 2);
        ck_assert_ptr_nonnull(strstr(r.out, ends[i].finding));
        proc_free(&r);
    }
    struct proc_result r = proc_run("cd %s && rm -f 150 && ln -s 120 150 && ulimit -t %d && "
                                    "%s --backing image",
        dir, 10 * SLOWER, qcheck);
    ck_assert_int_eq(r.exit_code, 2);
    ck_assert_ptr_nonnull(strstr(r.out, "backing-loop"));
    proc_free(&r);
    free(qcheck);
    proc_rmdir(dir);
}
END_TEST

Suite *test_limits(void);
Suite *test_limits(void)
{
    Suite *suite = suite_create("limits");
    TCase *tc = tcase_create("limits");
    tcase_set_timeout(tc, 600);
    tcase_add_loop_test(
        tc, a_case_stays_within_its_limits, 0, (int)(sizeof(limits) / sizeof(limits[0])));
    tcase_add_test(tc, guest_data_at_risk_does_not_wrap);
    tcase_add_test(tc, too_little_memory);
    tcase_add_test(tc, long_chains);
    suite_add_tcase(suite, tc);
    return suite;
}
