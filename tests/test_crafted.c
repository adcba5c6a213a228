/* SPDX-License-Identifier: MIT
 *
 * Small images made to cost much: fields that claim more than there is, one piece of metadata that
 * is referred to a thousand times, sparse files.  Each is checked within seconds and little memory;
 * what was not looked at is said. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "bomb.h"
#include "io_meter.h"
#include "qcheck.h"
#include "recipe.h"
#include "repair.h"

enum { MOST_MEMORY = 512 << 20, MOST_SECONDS = 60 };

static long peak_bytes(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss * 1024;
}

/* Checks the image; at most `max_findings` are kept.  *counts of what was read may be NULL. */
static struct report check_how(struct recipe *recipe, const struct check_options *options,
    size_t max_findings, struct io_meter_counts *counts)
{
    struct report report;
    struct io *meter;
    long before = peak_bytes();
    ck_assert_int_eq(io_meter_open(recipe_io(recipe), 0, &meter), 0);
    report_init(&report, max_findings);
    check_image(meter, NULL, options, &report);
    if (counts)
        *counts = io_meter_counts(meter);
    io_close(meter);
    ck_assert_int_lt(peak_bytes() - before, MOST_MEMORY);
    return report;
}

static struct report check_it(struct recipe *recipe, size_t max_findings)
{
    struct check_options options = {.threads = 1};
    struct report report = check_how(recipe, &options, max_findings, NULL);
    ck_assert_int_ne(report_exit_code(&report), 0);
    return report;
}

/* Copies the first entry of the refcount table over all 2^bits. */
static char *fill_reftable(const char *head, unsigned bits, const char *tail)
{
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    ck_assert_ptr_nonnull(out);
    fputs(head, out);
    for (unsigned i = 0; i < bits; i++)
        fprintf(out, "damage copy reftable.offset reftable.offset + %u %u\n", 8u << i, 8u << i);
    fputs(tail, out);
    fclose(out);
    return text;
}

START_TEST(one_refcount_block_for_everything)
{
    char *text = fill_reftable("image reftable_clusters=2\n", 14,
        "damage fill refblock[0].offset 64k 1\ndamage truncate 4T\n");
    struct recipe *recipe = bomb_text(text);
    struct report report = check_it(recipe, 10);
    ck_assert_uint_gt(report.hits[CHECK_refblock_shared], 16000);
    ck_assert_uint_eq(report.sorted.count, 10);
    report_release(&report);
    recipe_free(recipe);
    free(text);
}
END_TEST

START_TEST(a_luks_header_in_a_hole)
{
    struct recipe *recipe = bomb_text("image cluster=512 luks=4k\ndamage truncate 1T\n"
                                      "damage crypto.header_length = 256G\n");
    struct report report = check_it(recipe, 10);
    ck_assert_int_eq(report_exit_code(&report), 1);
    ck_assert_ptr_nonnull(strstr(report.problem, "more metadata"));
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* Sizes and counts at their highest in a file of nearly 8 EiB. */
START_TEST(every_field_at_its_highest)
{
    static const struct {
        const char *name;
        unsigned bits;
    } fields[] = {{"backing_offset", 64}, {"backing_length", 32}, {"cluster_bits", 32},
        {"size", 64}, {"crypt_method", 32}, {"l1_size", 32}, {"l1_offset", 64},
        {"reftable_offset", 64}, {"reftable_clusters", 32}, {"snapshot_count", 32},
        {"snapshots_offset", 64}, {"incompatible", 64}, {"compatible", 64}, {"autoclear", 64},
        {"refcount_order", 32}, {"length", 32}, {"compression", 8}};
    static const uint64_t values[] = {UINT64_MAX, UINT64_C(1) << 63, INT64_MAX, UINT64_C(1) << 62,
        0xfffffffffffffe00, UINT64_C(1) << 31, INT32_MAX, 1 << 22, 1 << 16, 1, 0};
    for (size_t f = 0; f < sizeof(fields) / sizeof(fields[0]); f++) {
        for (size_t v = 0; v < sizeof(values) / sizeof(values[0]); v++) {
            char text[400];
            snprintf(text, sizeof(text),
                "image cluster=512 size=64k\ndata 0 2k\nsnapshot\ndamage header.%s = %#llx\n%s",
                fields[f].name,
                (unsigned long long)(values[v] & (UINT64_MAX >> (64 - fields[f].bits))),
                _i ? "damage truncate 0x7ffffffffffff000\n" : "");
            struct recipe *recipe = bomb_text(text);
            struct check_options options = {.threads = 1, .deep = true};
            struct report report;
            report_init(&report, 10);
            check_image(recipe_io(recipe), NULL, &options, &report);
            report_release(&report);
            recipe_free(recipe);
        }
    }
}
END_TEST

/* The header names more snapshots than there is table, in a hole that reads as empty records. */
START_TEST(snapshots_in_a_hole)
{
    struct recipe *recipe = bomb_text("image cluster=512 size=64k\ndata 0 2k\n"
                                      "damage header.snapshot_count = 65536\n"
                                      "damage header.snapshots_offset = 1G\ndamage truncate 8G\n");
    struct report report = check_it(recipe, 10);
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* ---- what is not there need not be read ---- */

enum { CLUSTER = 64 << 10 };

/* The image has, in its real clusters, some megabytes at most; what it names lies in holes. */
static void expect_few_reads(struct recipe *recipe, uint64_t most_reads, uint64_t most_bytes,
    enum check_id check, uint64_t hits)
{
    static const unsigned threads[] = {1, 4};
    for (size_t i = 0; i < 2; i++) {
        struct check_options options = {.threads = threads[i]};
        struct io_meter_counts counts;
        struct report report = check_how(recipe, &options, 10, &counts);
        ck_assert_uint_eq(report.hits[check], hits); /* it is what it was made to be */
        ck_assert_uint_le(counts.reads, most_reads);
        ck_assert_uint_le(counts.bytes, most_bytes);
        report_release(&report);
    }
    recipe_free(recipe);
}

START_TEST(l2_tables_in_a_hole)
{
    enum { TABLES = 262144 };
    struct recipe *recipe = bomb_text("image size=128T l1_size=262144\ndamage truncate 32G\n");
    bomb_write_entries(
        recipe, 3 * CLUSTER, QCOW2_ENTRY_COPIED | UINT64_C(1) << 30, CLUSTER, TABLES);
    expect_few_reads(recipe, 400, 32 << 20, CHECK_l1_copied_set, TABLES);
}
END_TEST

START_TEST(refcount_blocks_in_a_hole)
{
    enum { BLOCKS = 262144 };
    struct recipe *recipe =
        bomb_text("image reftable_clusters=32\ndata 0 64k\ndamage truncate 32G\n");
    bomb_write_entries(recipe, CLUSTER + 8, UINT64_C(1) << 30, CLUSTER, BLOCKS - 1);
    expect_few_reads(recipe, 400, 32 << 20, CHECK_refcount_too_low, BLOCKS - 1);
}
END_TEST

/* All clusters of a large hole are counted as used. */
START_TEST(leaks_in_a_hole)
{
    struct recipe *recipe = bomb_text("image refcount_bits=1\ngap 32G\ndata 0 64k\n"
                                      "damage fill refblock[0].offset 64k 0xff\n");
    expect_few_reads(recipe, 200, 32 << 20, CHECK_cluster_leaked, 524288 - 4);
}
END_TEST

/* Most spans of refcount blocks count nothing, and get no block when counts are made anew. */
START_TEST(counts_made_anew_in_a_sparse_file)
{
    const struct repair_options how = {0};
    struct check_options options = {.threads = 1};
    struct report report;
    struct recipe *recipe = bomb_text("image\ndata 0 256k\ndamage truncate 8T\n"
                                      "damage fill reftable.offset 64k 0\n"
                                      "damage fill refblock[0].offset 64k 0\n");
    uint64_t before, after;
    ck_assert_int_eq(io_size(recipe_io(recipe), &before), 0);
    report_init(&report, 10);
    ck_assert_int_eq(repair_image(recipe_io(recipe), NULL, &options, &how, &report), 0);
    ck_assert_int_eq(report_exit_code(&report), 0);
    ck_assert_uint_gt(report.corruptions_fixed, 0);
    ck_assert_int_eq(io_size(recipe_io(recipe), &after), 0);
    ck_assert_uint_ge(before, UINT64_C(1) << 43);
    ck_assert_uint_le(after - before, 8 * 65536);
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* Snapshot records that follow each other from `host_off` on; record i has its L1 table of `size`
 * entries at l1_off + i * step. */
static void write_snapshots(struct recipe *recipe, uint64_t host_off, unsigned count,
    uint64_t l1_off, uint64_t step, uint32_t size)
{
    struct bomb_record *records = calloc(count, sizeof(*records));
    ck_assert_ptr_nonnull(records);
    for (unsigned i = 0; i < count; i++)
        records[i] = (struct bomb_record){l1_off + i * step, 1 << 20, size, i};
    bomb_write_records(recipe, host_off, records, count);
    free(records);
}

START_TEST(l1_tables_in_a_hole)
{
    enum { SNAPSHOTS = 4096, L1_BYTES = 32 << 20 };
    struct recipe *recipe = bomb_text("image\ndata 0 64k\ndamage truncate 3T\n");
    write_snapshots(
        recipe, UINT64_C(1) << 30, SNAPSHOTS, UINT64_C(1) << 40, L1_BYTES, L1_BYTES / 8);
    expect_few_reads(recipe, 400, 32 << 20, CHECK_refcount_too_low, UINT64_C(512) * SNAPSHOTS + 4);
}
END_TEST

/* Snapshots whose L2 tables of one guest place are all different: looked at side by side, but not
 * by a read for a handful of entries. */
START_TEST(many_tables_at_one_place)
{
    enum { SNAPSHOTS = 4096 };
    const uint64_t l1_off = UINT64_C(2) << 30, l2_off = UINT64_C(4) << 30;
    struct recipe *recipe = bomb_text("image\ndata 0 64k\ndamage truncate 8G\n");
    write_snapshots(recipe, UINT64_C(1) << 30, SNAPSHOTS, l1_off, CLUSTER, 1);
    for (unsigned i = 0; i < SNAPSHOTS; i++) {
        bomb_write_entries(
            recipe, l1_off + (uint64_t)i * CLUSTER, l2_off + (uint64_t)i * CLUSTER, 0, 1);
        bomb_write_entries(recipe, l2_off + (uint64_t)i * CLUSTER, UINT64_C(6) << 30, CLUSTER, 2);
    }
    expect_few_reads(recipe, 24 * SNAPSHOTS, UINT64_C(4) * SNAPSHOTS * CLUSTER,
        CHECK_refcount_too_low, 2 * SNAPSHOTS + 4 + 2);
}
END_TEST

START_TEST(bitmap_tables_in_a_hole)
{
    struct recipe *recipe =
        bomb_text("image cluster=2M\nbitmap fill=none\ndamage bitmap[0].table_offset = 1T\n"
                  "damage bitmap[0].table_size = 0x8000000\ndamage truncate 3T\n");
    expect_few_reads(recipe, 200, 64 << 20, CHECK_refcount_too_low, 512);
}
END_TEST

/* Entries that each name a cluster far from all others, in a file of exabytes. */
START_TEST(references_all_over_the_place)
{
    enum { TABLES = 8, ENTRIES = 8192 };
    struct recipe *recipe = bomb_text("image size=4T\ndamage truncate 0x4000000000000000\n");
    bomb_write_entries(recipe, 3 * CLUSTER, UINT64_C(1) << 30, CLUSTER, TABLES);
    for (uint64_t t = 0; t < TABLES; t++)
        bomb_write_entries(recipe, (UINT64_C(1) << 30) + t * CLUSTER,
            (UINT64_C(1) << 40) + (t << 44), UINT64_C(1) << 31, ENTRIES);
    struct report report = check_it(recipe, 10); /* within the memory */
    ck_assert_int_eq(report_exit_code(&report), 1);
    ck_assert_ptr_nonnull(strstr(report.problem, "more places"));
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* One range of compressed data that all entries of a table share. */
START_TEST(one_compressed_range_for_everything)
{
    struct recipe *recipe = bomb_text("image cluster=2M size=512G\ncompressed 0 2M seed=1\n");
    uint8_t first[8];
    uint64_t l2_off = bomb_eval(recipe, "l2[0].offset");
    ck_assert_int_eq(io_read(recipe_io(recipe), l2_off, first, 8), 0);
    bomb_write_entries(recipe, l2_off, load_be64(first), 0, 262144);
    for (unsigned threads = 1; threads <= 4; threads += 3) {
        struct check_options options = {.threads = threads, .deep = true};
        struct io_meter_counts counts;
        struct report report = check_how(recipe, &options, 10, &counts);
        ck_assert_uint_eq(report.hits[CHECK_compressed_undecodable], 0);
        ck_assert_uint_le(counts.bytes, 64 << 20);
        report_release(&report);
    }
    recipe_free(recipe);
}
END_TEST

Suite *test_crafted(void);
Suite *test_crafted(void)
{
    Suite *suite = suite_create("crafted");
    TCase *tc = tcase_create("crafted");
    tcase_set_timeout(tc, MOST_SECONDS);
    tcase_add_test(tc, one_refcount_block_for_everything);
    tcase_add_test(tc, a_luks_header_in_a_hole);
    tcase_add_loop_test(tc, every_field_at_its_highest, 0, 2);
    tcase_add_test(tc, snapshots_in_a_hole);
    tcase_add_test(tc, l2_tables_in_a_hole);
    tcase_add_test(tc, refcount_blocks_in_a_hole);
    tcase_add_test(tc, leaks_in_a_hole);
    tcase_add_test(tc, l1_tables_in_a_hole);
    tcase_add_test(tc, many_tables_at_one_place);
    tcase_add_test(tc, bitmap_tables_in_a_hole);
    tcase_add_test(tc, counts_made_anew_in_a_sparse_file);
    tcase_add_test(tc, references_all_over_the_place);
    tcase_add_test(tc, one_compressed_range_for_everything);
    suite_add_tcase(suite, tc);
    return suite;
}
