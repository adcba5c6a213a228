/* SPDX-License-Identifier: MIT
 *
 * The cost model of README, counted: how many reads a check issues, of how many bytes, and how much
 * memory its census takes, as formulas of the image.  With any number of threads. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "bigimage.h"
#include "io_meter.h"
#include "qcheck.h"
#include "walk.h"

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

enum { PIECE_BYTES = 2 << 20, FIRST_BYTES = 112, RECORD_BYTES = 64 };

static const struct bigimage images[] = {
    {.cluster_bits = 16, .size_bytes = 64 * GIB, .percent = 100},
    {.cluster_bits = 16, .size_bytes = 64 * GIB, .percent = 100, .snapshots = 8},
    {.cluster_bits = 16, .size_bytes = 16 * GIB, .percent = 100, .snapshots = 64},
    {.cluster_bits = 16, .size_bytes = 32 * GIB, .percent = 25, .shuffled = true},
    {.cluster_bits = 12, .size_bytes = 1 * GIB, .percent = 25, .shuffled = true},
    {.cluster_bits = 12, .size_bytes = 2 * GIB, .percent = 100, .snapshots = 3},
    {.cluster_bits = 9, .size_bytes = 64 * MIB, .percent = 100},
    {.cluster_bits = 21, .size_bytes = 512 * GIB, .percent = 100},
    {.cluster_bits = 16, .size_bytes = 1 * GIB, .percent = 100, .compressed = 300},
};
enum { IMAGES = sizeof(images) / sizeof(images[0]) };

/* An image in memory behind a meter. */
struct bench {
    const struct bigimage *image;
    struct bigimage_parts parts;
    struct io *mem, *meter;
    uint64_t cluster;
};

static void bench_open(struct bench *b, const struct bigimage *image)
{
    *b = (struct bench){.image = image, .cluster = UINT64_C(1) << image->cluster_bits};
    ck_assert_int_eq(io_mem_open(0, &b->mem), 0);
    ck_assert_int_eq(bigimage_write(b->mem, image, &b->parts), 0);
    ck_assert_int_eq(io_meter_open(b->mem, 0, &b->meter), 0);
}

static void bench_close(struct bench *b)
{
    io_close(b->meter);
    io_close(b->mem);
}

static struct io_meter_counts check_counts(
    struct bench *b, const struct check_options *options, int exit_code)
{
    struct io_meter_counts before = io_meter_counts(b->meter), after;
    struct report report;
    report_init(&report, 10);
    check_image(b->meter, NULL, options, &report);
    ck_assert_int_eq(report_exit_code(&report), exit_code);
    report_release(&report);
    after = io_meter_counts(b->meter);
    return (struct io_meter_counts){
        .reads = after.reads - before.reads, .bytes = after.bytes - before.bytes};
}

static void add(struct io_meter_counts *counts, uint64_t bytes, uint64_t piece)
{
    counts->reads += div_up(bytes, piece);
    counts->bytes += bytes;
}

/* The formula of README. */
static struct io_meter_counts model(const struct bench *b)
{
    const struct bigimage_parts *parts = &b->parts;
    struct io_meter_counts counts = {.reads = 1, .bytes = FIRST_BYTES};
    add(&counts, b->cluster, b->cluster);                        /* header */
    add(&counts, parts->reftable * b->cluster, PIECE_BYTES);     /* refcount table */
    add(&counts, parts->refblocks * b->cluster, b->cluster);     /* refcount blocks */
    for (unsigned disk = 0; disk <= b->image->snapshots; disk++) /* L1 tables */
        add(&counts, parts->l2_tables * 8, PIECE_BYTES);
    add(&counts, parts->l2_tables * b->cluster, b->cluster); /* L2 tables: each once */
    if (b->image->snapshots)
        add(&counts, 4 * KIB, 4 * KIB); /* snapshot table: more when it is longer */
    return counts;
}

START_TEST(healthy)
{
    struct bench b;
    bench_open(&b, &images[_i]);
    struct io_meter_counts want = model(&b);
    for (unsigned threads = 1; threads <= 4; threads += 3) {
        struct check_options options = {.threads = threads};
        struct io_meter_counts got = check_counts(&b, &options, 0);
        ck_assert_uint_eq(got.reads, want.reads);
        ck_assert_uint_eq(got.bytes, want.bytes);
    }
    bench_close(&b);
}
END_TEST

/* --deep: the tables once more, and each range of compressed data once. */
START_TEST(decoding)
{
    const struct bigimage image = {
        .cluster_bits = 16, .size_bytes = 1 * GIB, .percent = 100, .compressed = 10000};
    struct bench b;
    bench_open(&b, &image);
    struct io_meter_counts want = model(&b);
    uint64_t packed_tables = div_up(image.compressed, b.cluster / 8);
    want.reads += packed_tables + image.compressed;
    for (unsigned threads = 1; threads <= 4; threads += 3) {
        struct check_options options = {.threads = threads, .deep = true};
        struct io_meter_counts got = check_counts(&b, &options, 0);
        ck_assert_uint_eq(got.reads, want.reads);
        /* What is read of a range ends with its last sector. */
        uint64_t data = got.bytes - want.bytes - packed_tables * b.cluster;
        ck_assert_uint_ge(data, b.parts.packed_bytes);
        ck_assert_uint_lt(data, b.parts.packed_bytes + image.compressed * QCOW2_SECTOR_BYTES);
    }
    bench_close(&b);
}
END_TEST

/* Where counts are wrong the tables are looked at once more: those that a few runs tell without
 * being read, the others read again.  Of the stored counts the pieces of 4 KiB in which one is
 * wrong are read again, here all of them, and before that those of the L2 tables. */
START_TEST(damaged)
{
    const struct bigimage mapped = {
        .cluster_bits = 16, .size_bytes = 64 * GIB, .percent = 100, .wrong_every = 16};
    const struct bigimage scattered = {.cluster_bits = 16,
        .size_bytes = 64 * GIB,
        .percent = 25,
        .shuffled = true,
        .wrong_every = 16};
    for (int i = 0; i < 2; i++) {
        struct bench b;
        bench_open(&b, i ? &scattered : &mapped);
        struct io_meter_counts want = model(&b);
        add(&want, b.parts.refblocks * b.cluster + b.parts.l2_tables * 4 * KIB, 4 * KIB);
        if (i)
            add(&want, b.parts.l2_tables * b.cluster, b.cluster);
        for (unsigned threads = 1; threads <= 4; threads += 3) {
            struct check_options options = {.threads = threads};
            struct io_meter_counts got = check_counts(&b, &options, 2);
            ck_assert_uint_le(got.reads, want.reads);
            ck_assert_uint_le(got.bytes, want.bytes);
        }
        bench_close(&b);
    }
}
END_TEST

/* A byte for each host cluster, in pages of 32 KiB and three levels of pointers to them. */
START_TEST(memory)
{
    enum { PAGE = 32 << 10, PAGE_EXTRA = 64, POINTERS = 256 << 10, SMALL_EXTRA = 8192 };
    struct bench b;
    struct report report;
    struct walk *walk;
    struct check_options options = {.threads = 1};
    bench_open(&b, &images[_i]);
    report_init(&report, 10);
    ck_assert_int_eq(walk_open(b.meter, NULL, &options, &report, &walk), 0);
    uint64_t pages = div_up(b.parts.total, PAGE);
    ck_assert_uint_ge(census_memory(walk->census), b.parts.total);
    if (pages > 1)
        ck_assert_uint_le(census_memory(walk->census), pages * (PAGE + PAGE_EXTRA) + POINTERS + 64);
    else
        ck_assert_uint_le(census_memory(walk->census), PAGE + SMALL_EXTRA);
    walk_close(walk);
    report_release(&report);
    bench_close(&b);
}
END_TEST

/* Storage that is slow is asked for many things at a time, and told no more than once. */
START_TEST(slow_storage)
{
    enum { DELAY_NS = 500000 };
    struct bench b;
    struct io *slow;
    struct report report;
    bench_open(&b, &images[0]);
    ck_assert_int_eq(io_meter_open(b.mem, DELAY_NS, &slow), 0);
    struct check_options options = {.threads = 2};
    report_init(&report, 10);
    check_image(slow, NULL, &options, &report);
    ck_assert_int_eq(report_exit_code(&report), 0);
    struct io_meter_counts want = model(&b), got = io_meter_counts(slow);
    ck_assert_uint_eq(got.reads, want.reads);
    ck_assert_uint_eq(got.bytes, want.bytes);
    ck_assert_uint_ge(got.at_once, 8); /* 64, if the machine has nothing else to do */
    report_release(&report);
    io_close(slow);
    bench_close(&b);
}
END_TEST

/* All L2 tables of a disk of guest data are lost: each leaked cluster is looked at once, what looks
 * like a table once more for what it is, once for its data, and once for an L1 table. */
START_TEST(leaks_are_read_ahead)
{
    enum { DELAY_NS = 500000, FULL = 0x5a };
    const struct bigimage image = {.cluster_bits = 12, .size_bytes = 8 * MIB, .percent = 100};
    const uint64_t tables = 4;
    struct bench b;
    bench_open(&b, &image);
    struct io_meter_counts want = model(&b);
    uint8_t *bytes = calloc(1, b.cluster);
    ck_assert_int_eq(io_write(b.mem, b.parts.l1_off, bytes, tables * 8), 0);
    memset(bytes, FULL, b.cluster);
    for (uint64_t table = b.parts.l2_off, n = 0; n < tables; n++, table += b.cluster) {
        for (uint64_t i = 0; i < b.cluster / 8; i++)
            ck_assert_int_eq(io_write(b.mem, table += b.cluster, bytes, b.cluster), 0);
    }
    uint64_t leaks = tables + image.size_bytes / b.cluster, pieces = div_up(leaks * 2, 4 * KIB) + 1;
    add(&want, (leaks + 3 * tables) * b.cluster, b.cluster);
    want.reads -= tables; /* they are found as leaks only */
    want.bytes -= tables * b.cluster;
    for (unsigned threads = 1; threads <= 4; threads += 3) {
        struct check_options options = {.threads = threads};
        struct io_meter_counts got = check_counts(&b, &options, 2);
        ck_assert_uint_ge(got.reads, want.reads);
        ck_assert_uint_le(got.reads, want.reads + pieces + 1); /* counts, and the L1 table again */
        ck_assert_uint_le(got.bytes, want.bytes + pieces * 4 * KIB + tables * 8);
    }
    io_close(b.meter);
    ck_assert_int_eq(io_meter_open(b.mem, DELAY_NS, &b.meter), 0);
    struct check_options options = {.threads = 2};
    check_counts(&b, &options, 2);
    ck_assert_uint_ge(io_meter_counts(b.meter).at_once, 8);
    free(bytes);
    bench_close(&b);
}
END_TEST

Suite *test_cost(void);
Suite *test_cost(void)
{
    Suite *suite = suite_create("cost");
    TCase *tc = tcase_create("cost");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, healthy, 0, IMAGES);
    tcase_add_test(tc, decoding);
    tcase_add_test(tc, damaged);
    tcase_add_test(tc, leaks_are_read_ahead);
    tcase_add_loop_test(tc, memory, 0, IMAGES);
    tcase_add_test(tc, slow_storage);
    suite_add_tcase(suite, tc);
    return suite;
}
