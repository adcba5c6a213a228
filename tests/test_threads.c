/* SPDX-License-Identifier: MIT
 *
 * Threads: the crew, reads that go on ahead, and -j.  That no finding depends on them is in
 * test_fastpath.c; how many reads there are, in test_cost.c. */
#include <check.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bigimage.h"
#include "corpus.h"
#include "crew.h"
#include "io_meter.h"
#include "proc.h"

/* ---- the crew ---- */

enum { JOBS = 1000 };

struct tally {
    _Atomic unsigned done[JOBS];
    _Atomic unsigned busy[16]; /* by worker */
    unsigned workers;
};

static void count_job(void *arg, size_t index, unsigned worker)
{
    struct tally *tally = arg;
    ck_assert_uint_lt(worker, tally->workers);
    ck_assert_uint_eq(atomic_fetch_add(&tally->busy[worker], 1), 0); /* one job at a time */
    atomic_fetch_add(&tally->done[index], 1);
    atomic_fetch_sub(&tally->busy[worker], 1);
}

START_TEST(each_job_is_done_once)
{
    static const unsigned most[] = {0, 1, 3, 15};
    static const size_t grains[] = {0, 1, 7, 5000};
    for (size_t m = 0; m < 4; m++) {
        for (size_t g = 0; g < 4; g++) {
            struct crew *crew;
            ck_assert_int_eq(crew_open(most[m], &crew), 0);
            struct tally tallies[2] = {
                {.workers = crew_workers(crew)}, {.workers = crew_workers(crew)}};
            struct crew_task tasks[2];
            crew_grow(crew, 2);
            for (size_t i = 0; i < 2; i++) {
                tasks[i] = (struct crew_task){
                    .job = count_job, .arg = &tallies[i], .count = JOBS, .grain = grains[g]};
                crew_start(crew, &tasks[i]);
            }
            crew_double(crew);
            crew_wait(crew, &tasks[1]); /* in any order */
            crew_wait(crew, &tasks[0]);
            for (size_t i = 0; i < (size_t)2 * JOBS; i++)
                ck_assert_uint_eq(tallies[i / JOBS].done[i % JOBS], 1);
            ck_assert_uint_le(crew_count(crew), most[m]);
            crew_close(crew);
        }
    }
}
END_TEST

START_TEST(no_crew_does_the_same)
{
    struct tally tally = {.workers = crew_workers(NULL)};
    struct crew_task task = {.job = count_job, .arg = &tally, .count = JOBS};
    crew_start(NULL, &task);
    ck_assert_uint_eq(tally.done[0], 0); /* whoever waits works */
    crew_wait(NULL, &task);
    for (size_t i = 0; i < JOBS; i++)
        ck_assert_uint_eq(tally.done[i], 1);
    crew_close(NULL);
}
END_TEST

/* ---- batches ---- */

/* Reads `count` sectors of a slow device; returns how many were under way at a time. */
static uint64_t read_batch(bool concurrent)
{
    enum { COUNT = 64, DELAY_NS = 2000000 };
    uint8_t bytes[COUNT][512];
    struct io_read_req reqs[COUNT];
    struct io *mem, *meter;
    struct crew *crew;
    ck_assert_int_eq(io_mem_open((uint64_t)(COUNT - 1) * 512, &mem), 0);
    ck_assert_int_eq(io_meter_open(mem, DELAY_NS, &meter), 0);
    ck_assert_int_eq(crew_open(31, &crew), 0);
    meter->concurrent_reads = concurrent;
    for (unsigned i = 0; i < COUNT; i++) {
        memset(bytes[i], (int)i + 1, 512);
        if (i + 1 < COUNT)
            ck_assert_int_eq(io_write(mem, i * UINT64_C(512), bytes[i], 512), 0);
        reqs[i] =
            (struct io_read_req){.host_off = i * UINT64_C(512), .length = 512, .buf = bytes[i]};
        memset(bytes[i], 0, 512);
    }
    struct io_batch batch = {.io = meter, .crew = crew, .reqs = reqs, .count = COUNT};
    io_batch_start(&batch);
    io_batch_wait(&batch);
    for (unsigned i = 0; i + 1 < COUNT; i++) {
        ck_assert_int_eq(reqs[i].result, 0);
        ck_assert_uint_eq(bytes[i][511], i + 1);
    }
    ck_assert_int_eq(reqs[COUNT - 1].result, -ERANGE); /* past the end: its own error */
    struct io_meter_counts counts = io_meter_counts(meter);
    ck_assert_uint_eq(counts.reads, COUNT);
    crew_close(crew);
    io_close(meter);
    io_close(mem);
    return counts.at_once;
}

START_TEST(slow_reads_bring_more_readers)
{
    ck_assert_uint_ge(read_batch(true), 8);
}
END_TEST

START_TEST(a_layer_for_one_thread_sees_one)
{
    ck_assert_uint_eq(read_batch(false), 1);
}
END_TEST

/* ---- the command line ---- */

static const char *const kinds[] = {
    "image\ndata 0 64k\n",
    "image\ndata 0 64k\ngap 64k\ndata 64k 64k\ndamage refcount[6] = 1\n",
    "image\ndata 0 64k\ndamage refcount[0] = 0\n",
    "raw size=64k\n",
    "image\ndamage truncate 100\n",
    "image cluster=4k size=16M\ncompressed 0 1M seed=1\ndamage bytes l2[0][3].offset = ffffffff\n",
};
enum { KINDS = sizeof(kinds) / sizeof(kinds[0]), COPIES = 8 };

static void fill(const char *dir)
{
    for (size_t i = 0; i < (size_t)KINDS * COPIES; i++) {
        char name[24];
        snprintf(name, sizeof(name), "%02zu", i);
        corpus_make(dir, name, kinds[i % KINDS]);
    }
}

START_TEST(output_in_the_order_of_the_images)
{
    static const char *const styles[] = {"--output=json --deep", "-v --deep", "--repair --dry-run"};
    char *dir = proc_mkdir(), *qcheck = realpath(QCHECK_PROGRAM, NULL);
    fill(dir);
    for (size_t i = 0; i < sizeof(styles) / sizeof(styles[0]); i++) {
        struct proc_result first = proc_run("cd '%s' && '%s' -j1 %s *", dir, qcheck, styles[i]);
        ck_assert_int_eq(first.exit_code, 1);
        for (int threads = 2; threads <= 64; threads *= 2) {
            struct proc_result r =
                proc_run("cd '%s' && '%s' -j%d %s *", dir, qcheck, threads, styles[i]);
            ck_assert_int_eq(r.exit_code, first.exit_code);
            ck_assert_str_eq(r.out, first.out);
            ck_assert_str_eq(r.err, first.err);
            proc_free(&r);
        }
        proc_free(&first);
    }
    ck_assert_int_eq(proc_exit("cd '%s' && '%s' -j0 00", dir, qcheck), 1);
    ck_assert_int_eq(proc_exit("cd '%s' && '%s' -j many 00", dir, qcheck), 1);
    free(qcheck);
    proc_rmdir(dir);
}
END_TEST

/* Signals while all threads decode: it ends at once, and does not say that all is well. */
START_TEST(signals)
{
    const struct bigimage image = {
        .cluster_bits = 16, .size_bytes = UINT64_C(256) << 20, .compressed = 4096};
    char *dir = proc_mkdir(), *qcheck = realpath(QCHECK_PROGRAM, NULL), path[4096];
    snprintf(path, sizeof(path), "%s/packed", dir);
    ck_assert_int_eq(bigimage_save(path, &image), 0);
    for (int same = 1; same <= 2; same++) { /* one image; many side by side */
        const char *names = same == 1 ? "packed" : "packed packed packed packed packed packed";
        struct proc_result r = proc_run("cd '%s' && '%s' -j4 --deep --output=json %s & pid=$!; "
                                        "sleep 0.05; kill -USR1 $pid; sleep 0.05; kill -INT $pid; "
                                        "wait $pid",
            dir, qcheck, names);
        ck_assert_int_eq(r.exit_code, 1);
        ck_assert_ptr_nonnull(strstr(r.out, "\"incomplete\""));
        proc_free(&r);
        ck_assert_int_eq(proc_exit("cd '%s' && '%s' -j4 --deep packed", dir, qcheck), 0);
    }
    free(qcheck);
    proc_rmdir(dir);
}
END_TEST

Suite *test_threads(void);
Suite *test_threads(void)
{
    Suite *suite = suite_create("threads");
    TCase *tc = tcase_create("threads");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, each_job_is_done_once);
    tcase_add_test(tc, no_crew_does_the_same);
    tcase_add_test(tc, slow_reads_bring_more_readers);
    tcase_add_test(tc, a_layer_for_one_thread_sees_one);
    tcase_add_test(tc, output_in_the_order_of_the_images);
    tcase_add_test(tc, signals);
    suite_add_tcase(suite, tc);
    return suite;
}
