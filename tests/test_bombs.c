/* SPDX-License-Identifier: MIT
 *
 * Images of some megabytes at most, made to keep a program busy for hours: one piece of metadata
 * that is named again and again, pairs of things that are each compared with each.  What works at
 * them ends within seconds, or says that the image is none; test_crafted.c has more, for the check
 * alone. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine_kit.h"
#include "io_meter.h"
#include "recipe.h"
#include "repair.h"
#include "rng.h"

#ifdef __SANITIZE_ADDRESS__
enum { SLOWER = 10 };
#else
enum { SLOWER = 1 };
#endif

static struct recipe *build(const char *format, unsigned number)
{
    char error[RECIPE_ERROR_BYTES], text[1000];
    struct recipe *recipe = NULL;
    snprintf(text, sizeof(text), format, number);
    ck_assert_msg(recipe_text("bomb", text, &recipe, error) == 0, "%s", error);
    return recipe;
}

static uint64_t eval(struct recipe *recipe, const char *expression)
{
    char error[RECIPE_ERROR_BYTES];
    uint64_t value = 0;
    ck_assert_msg(recipe_eval(recipe, expression, &value, error) == 0, "%s", error);
    return value;
}

/* 64-bit entries from `raw` on, `step` apart. */
static void write_entries(
    struct recipe *recipe, uint64_t host_off, uint64_t raw, uint64_t step, size_t count)
{
    uint8_t *bytes = malloc(count * 8);
    ck_assert_ptr_nonnull(bytes);
    for (size_t i = 0; i < count; i++)
        store_be64(bytes + i * 8, raw + i * step);
    ck_assert_int_eq(io_write(recipe_io(recipe), host_off, bytes, count * 8), 0);
    free(bytes);
}

/* ---- the engine ---------------------------------------------------------------------------- */

/* An L1 table of 32 MiB whose entries all name one L2 table: 256 GiB to read. */
START_TEST(one_l2_table_for_everything)
{
    enum { ENTRIES = 1 << 22 };
    struct recipe *recipe =
        build("image cluster=64k size=2048T l1_size=%u refcount_bits=64\ndata 0 64k\n", ENTRIES);
    struct image *img;
    struct io *meter;
    write_entries(recipe, eval(recipe, "l1.offset"), eval(recipe, "l2[0].offset"), 0, ENTRIES);
    ck_assert_int_eq(io_meter_open(recipe_io(recipe), 0, &meter), 0);
    ck_assert_int_eq(image_open(meter, IMAGE_WRITE, &img, NULL), 0);
    struct snapshot_info info = {.name = "a"};
    ck_assert_int_eq(snapshot_create(img, &info), -EUCLEAN);
    ck_assert_ptr_nonnull(strstr(image_error(img), "run qcheck"));
    ck_assert_uint_lt(io_meter_counts(meter).bytes, 64 << 20);
    image_abandon(img);
    io_close(meter);
    recipe_free(recipe);
}
END_TEST

/* Bitmaps that all have one table: each would be filled when a snapshot is applied. */
START_TEST(one_table_for_all_bitmaps)
{
    struct recipe *recipe = build("image cluster=2M size=32768T\ndata 0 2M\n"
                                  "bitmap name=a granularity=512 fill=none auto\n"
                                  "bitmap name=b granularity=512 fill=none auto\n"
                                  "bitmap name=c granularity=512 fill=none auto\n"
                                  "damage bitmap[1].table_offset = bitmap[0].table_offset\n"
                                  "damage bitmap[2].table_offset = bitmap[0].table_offset\n"
                                  "damage copy bitmaps.offset l2[0][0].offset 512\n"
                                  "damage bitmaps.directory_offset = l2[0][0].offset\n"
                                  "damage truncate bitmap[0].table_offset + %uM\n",
        32);
    struct image_error why;
    struct image *img;
    ck_assert_int_eq(image_open(recipe_io(recipe), IMAGE_WRITE, &img, &why), -EUCLEAN);
    ck_assert_msg(strstr(why.text, "tables lie on each other") != NULL, "%s", why.text);
    ck_assert_int_eq(image_open(recipe_io(recipe), 0, &img, &why), 0);
    image_abandon(img);
    recipe_free(recipe);
}
END_TEST

/* ---- check and repair ---------------------------------------------------------------------- */

struct record {
    uint64_t l1_off, disk_size;
    uint32_t l1_size;
    unsigned id;
};

/* Snapshot records that follow each other from `host_off` on, and the header that names them. */
static void write_records(
    struct recipe *recipe, uint64_t host_off, const struct record *records, unsigned count)
{
    enum { RECORD_BYTES = 64 };
    uint8_t *bytes = calloc(count, RECORD_BYTES), head[12];
    ck_assert_ptr_nonnull(bytes);
    for (unsigned i = 0; i < count; i++) {
        uint8_t *p = bytes + (size_t)i * RECORD_BYTES;
        char id[16];
        snprintf(id, sizeof(id), "%08u", records[i].id);
        store_be64(p, records[i].l1_off);
        store_be32(p + 8, records[i].l1_size);
        store_be16(p + 12, 8);  /* length of the ID */
        store_be32(p + 36, 16); /* extra data: VM state size, then the disk's */
        store_be64(p + 48, records[i].disk_size);
        memcpy(p + 56, id, 8);
    }
    ck_assert_int_eq(io_write(recipe_io(recipe), host_off, bytes, (size_t)count * RECORD_BYTES), 0);
    store_be32(head, count);
    store_be64(head + 4, host_off);
    ck_assert_int_eq(io_write(recipe_io(recipe), QCOW2_HDR_SNAPSHOT_COUNT, head, sizeof(head)), 0);
    free(bytes);
}

/* Each is compared with those before it: some hundred thousand fit a cluster. */
START_TEST(header_extensions_without_end)
{
    enum { EXTENSIONS = 1001 };
    struct check_options options = {.threads = 1};
    struct report report;
    struct recipe *recipe = build("image cluster=64k size=%uM\n", 1);
    for (unsigned i = 0; i < EXTENSIONS; i++)
        write_entries(recipe, 112 + i * UINT64_C(8), (UINT64_C(0xabc00000) + i) << 32, 0, 1);
    report_init(&report, 10);
    ck_assert_int_eq(check_image(recipe_io(recipe), NULL, &options, &report), 0);
    ck_assert_int_eq(report_exit_code(&report), 1);
    ck_assert_ptr_nonnull(strstr(report.problem, "more than 1000 header extensions"));
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* Half of the snapshots have L2 tables behind their end, where the others have their data: whether
 * any has the same one was asked for each entry of all of them. */
START_TEST(snapshots_longer_than_their_disk)
{
    enum { SNAPSHOTS = 400, ENTRIES = 512, TABLES = 32 };
    const uint64_t table_off = 1 << 20, l1_off = 2 << 20, l2_off = 8 << 20;
    struct recipe *recipe = build("image cluster=512 size=512\ndamage truncate %uM\n", 16);
    struct record records[SNAPSHOTS];
    for (unsigned i = 0; i < SNAPSHOTS; i++) {
        records[i] = (struct record){.l1_off = l1_off + i * UINT64_C(8) * ENTRIES,
            .l1_size = ENTRIES,
            .id = i,
            .disk_size = i % 2 ? ENTRIES * UINT64_C(32768) : 512};
        for (unsigned e = 0; e < ENTRIES; e += TABLES)
            write_entries(recipe, records[i].l1_off + e * UINT64_C(8),
                l2_off + (i % 2) * UINT64_C(512) * TABLES, 512, TABLES);
    }
    write_records(recipe, table_off, records, SNAPSHOTS);
    struct check_options options = {.threads = 1};
    struct report report;
    struct io *meter;
    ck_assert_int_eq(io_meter_open(recipe_io(recipe), 0, &meter), 0);
    report_init(&report, 10);
    ck_assert_int_eq(check_image(meter, NULL, &options, &report), 0);
    ck_assert_uint_eq(report.hits[CHECK_l1_entry_shared], SNAPSHOTS * ENTRIES);
    ck_assert_uint_eq(report.hits[CHECK_l1_entry_past_end], 0);
    ck_assert_uint_lt(io_meter_counts(meter).reads, 20 * SNAPSHOTS);
    report_release(&report);
    io_close(meter);
    recipe_free(recipe);
}
END_TEST

/* Processor time, which does not depend on what else the machine does. */
static double seconds_used(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

/* Fails the test if that took longer; with LIMITS=print a row of the table of `make limits`. */
static void within(double before, unsigned seconds, const char *what)
{
    double took = seconds_used() - before;
    const char *limits = getenv("LIMITS");
    ck_assert_msg(took < seconds * SLOWER, "%s: %f s", what, took);
    if (limits && strcmp(limits, "print") == 0)
        printf("| %s | %.1f s | | %u s |\n", what, took, seconds);
    fflush(stdout);
}

static struct report repair(struct recipe *recipe, bool lossy)
{
    const struct repair_options how = {.lossy = lossy};
    struct check_options options = {.threads = 1};
    struct report report;
    report_init(&report, 10);
    repair_image(recipe_io(recipe), NULL, &options, &how, &report);
    return report;
}

/* Each gets a new ID, and none of them twice. */
START_TEST(snapshots_with_one_id)
{
    enum { SNAPSHOTS = 65536 };
    struct recipe *recipe = build("image cluster=64k size=1M\ndamage truncate %uM\n", 8);
    struct record *records = calloc(SNAPSHOTS, sizeof(*records));
    ck_assert_ptr_nonnull(records);
    write_records(recipe, 2 << 20, records, SNAPSHOTS);
    free(records);
    struct report report = repair(recipe, false);
    ck_assert_uint_eq(report.snapshot_count, SNAPSHOTS);
    ck_assert_uint_eq(report.hits[CHECK_snapshot_id_repeated], 0);
    ck_assert_int_eq(report_exit_code(&report), 0);
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* Each owner was compared with each other one.  That there are more of them than a count can say is
 * no sign of another size of clusters, with which much less would be mapped. */
START_TEST(one_cluster_for_everything)
{
    enum { TABLES = 16, ENTRIES = 512 };
    struct recipe *recipe =
        build("image cluster=4k size=32M refcount_bits=%u\ndata 0 32M\n", _i ? 8 : 16);
    uint64_t raw = eval(recipe, "l2[0][0]");
    for (unsigned i = 0; i < TABLES; i++) {
        char table[32];
        snprintf(table, sizeof(table), "l2[%u].offset", i);
        write_entries(recipe, eval(recipe, table), raw, 0, ENTRIES);
    }
    struct report report = repair(recipe, false);
    ck_assert_int_eq(report_exit_code(&report), 0);
    ck_assert_uint_eq(eval(recipe, "header.cluster_bits"), 12);
    ck_assert_uint_ge(report.corruptions_fixed, TABLES * ENTRIES);
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* Entries that are longer than what they name: each length used to be tried. */
START_TEST(compressed_data_that_is_too_long)
{
    static const struct {
        unsigned entries;
        int exit_code;
    } rows[] = {{4, 0}, {262144, 1}};
    const char *text = "image cluster=2M size=512G refcount_bits=64\ncompressed 0 2M seed=%u\n"
                       "damage l2[0][0] |= 0x3ffe000000000000\ndamage truncate 64M\n";
    struct recipe *recipe = build(text, 1);
    uint64_t l2_off = eval(recipe, "l2[0].offset"), raw = eval(recipe, "l2[0][0]");
    write_entries(recipe, l2_off, raw, 0, rows[_i].entries);
    struct report report = repair(recipe, true);
    ck_assert_int_eq(report_exit_code(&report), rows[_i].exit_code);
    if (rows[_i].exit_code == 1)
        ck_assert_ptr_nonnull(strstr(report.problem, "decode"));
    else
        ck_assert_uint_eq(report.data_at_risk, 0); /* nothing was given up */
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* An L1 table of garbage: each round mended a few of its entries, and with --lossy each was dropped
 * on its own. */
START_TEST(an_l1_table_of_garbage)
{
    enum { ENTRIES = 1 << 20, L1_BYTES = 8 * ENTRIES };
    struct recipe *recipe = build("image cluster=64k size=1M l1_size=%u\ndata 0 64k\n"
                                  "damage fill (l1.offset + 1M) 7M 0xc0\n",
        ENTRIES);
    struct check_options options = {.threads = 1};
    const struct repair_options how = {.lossy = _i};
    struct report report;
    struct io *meter;
    ck_assert_int_eq(io_meter_open(recipe_io(recipe), 0, &meter), 0);
    report_init(&report, 10);
    double before = seconds_used();
    repair_image(meter, NULL, &options, &how, &report);
    ck_assert_msg(report_exit_code(&report) == (_i ? 0 : 2), "exit %d %s",
        report_exit_code(&report), report.problem);
    within(before, 10,
        _i ? "repair --lossy: a million L1 entries of garbage"
           : "repair: a million L1 entries of garbage");
    ck_assert_uint_lt(io_meter_counts(meter).bytes, 80 * (uint64_t)L1_BYTES);
    ck_assert_uint_eq(eval(recipe, "l2[0][0]"), eval(recipe, "was(l2[0][0])"));
    report_release(&report);
    io_close(meter);
    recipe_free(recipe);
}
END_TEST

/* Whether it is VM state that lies behind the end of the disk was found out for each entry there.
 */
START_TEST(entries_behind_the_end)
{
    enum { ENTRIES = 1 << 20 };
    struct recipe *recipe = build("image cluster=64k size=1M l1_size=%u\ndata 0 64k\n", ENTRIES);
    struct check_options options = {.threads = 1};
    struct report report;
    struct io *meter;
    write_entries(recipe, eval(recipe, "l1.offset") + 8, 1 << 20, 65536, ENTRIES - 1);
    ck_assert_int_eq(io_meter_open(recipe_io(recipe), 0, &meter), 0);
    report_init(&report, 10);
    ck_assert_int_eq(check_image(meter, NULL, &options, &report), 0);
    ck_assert_uint_eq(report.hits[CHECK_l1_entry_past_end], ENTRIES - 1);
    ck_assert_uint_lt(io_meter_counts(meter).reads, 1000);
    report_release(&report);
    io_close(meter);
    recipe_free(recipe);
}
END_TEST

/* All broken: each was looked for among all findings and all pieces of metadata. */
START_TEST(bitmaps_that_are_all_broken)
{
    enum { BITMAPS = 65535, RECORD_BYTES = 32 };
    const uint64_t directory_off = 4 << 20, tables_off = 8 << 20;
    struct recipe *recipe = build("image cluster=512 size=1M\ndata 0 4k\n"
                                  "bitmap name=a granularity=64k fill=none auto\n"
                                  "damage bitmaps.count = 65535\n"
                                  "damage bitmaps.directory_size = 2097120\n"
                                  "damage bitmaps.directory_offset = 4M\n"
                                  "damage truncate %uM\n",
        48);
    uint8_t *bytes = calloc(BITMAPS, RECORD_BYTES);
    ck_assert_ptr_nonnull(bytes);
    for (unsigned i = 0; i < BITMAPS; i++) {
        uint8_t *p = bytes + (size_t)i * RECORD_BYTES;
        char name[8];
        snprintf(name, sizeof(name), "%06u", i);
        store_be64(p, tables_off + i * UINT64_C(512));
        store_be32(p + 8, 1);
        p[16] = 1;  /* dirty tracking */
        p[17] = 16; /* granularity bits */
        store_be16(p + 18, 6);
        memcpy(p + 24, name, 6);
        write_entries(recipe, tables_off + i * UINT64_C(512), 1 << 30, 0, 1);
    }
    ck_assert_int_eq(
        io_write(recipe_io(recipe), directory_off, bytes, (size_t)BITMAPS * RECORD_BYTES), 0);
    free(bytes);
    double before = seconds_used();
    struct report report = repair(recipe, false);
    within(before, 5, "repair: 65535 bitmaps, all broken");
    ck_assert_msg(
        report_exit_code(&report) == 0, "exit %d %s", report_exit_code(&report), report.problem);
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* More findings than a round keeps, and hardly one of them can be mended: the repair says so
 * instead of going on for hundreds of rounds. */
START_TEST(more_than_can_be_mended)
{
    enum { TABLES = 512, ENTRIES = 512, CLUSTERS = 2048 };
    const uint64_t l2_off = 4 << 20, data_off = 8 << 20;
    struct recipe *recipe =
        build("image cluster=4k size=1G l1_size=512\ndamage truncate %uM\n", 16);
    struct rng rng = rng_for(1, 1);
    write_entries(recipe, eval(recipe, "l1.offset"), l2_off | QCOW2_ENTRY_COPIED, 4096, TABLES);
    for (uint64_t i = 0; i < TABLES * ENTRIES; i++) {
        uint64_t kind = rng_below(&rng, 16), data = data_off + rng_below(&rng, CLUSTERS) * 4096;
        uint64_t raw = kind == 0   ? (UINT64_C(1) << 45) + rng_below(&rng, 1 << 20) * 4096
                       : kind < 4  ? data + 512
                       : kind < 7  ? rng_below(&rng, data_off / 4096) * 4096
                       : kind < 10 ? data | 0x3e
                       : kind < 12 ? QCOW2_ENTRY_COMPRESSED | rng_below(&rng, UINT64_C(1) << 40)
                                   : data | rng_below(&rng, 2) << 63;
        write_entries(recipe, l2_off + i * 8, raw, 0, 1);
    }
    double before = seconds_used();
    struct report report = repair(recipe, true);
    within(before, 20, "repair: 262144 L2 entries of garbage");
    ck_assert_int_eq(report_exit_code(&report), 1);
    ck_assert_msg(strstr(report.problem, "so much is wrong") != NULL, "%s", report.problem);
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* Disks that all have a table of their own at one place, each with the same holes in it, of which
 * any may have lost what leaks: for each hole of each table all others were looked at, and for each
 * of these all disks. */
START_TEST(holes_of_many_disks)
{
    enum { DISKS = 20000, HOLES = 20 };
    const uint64_t table_off = 1 << 20, l1_off = 8 << 20, l2_off = 32 << 20, data_off = 64 << 20;
    struct recipe *recipe =
        build("image cluster=512 size=32k refcount_bits=64\ndamage truncate %uM\n", 65);
    struct record *records = calloc(DISKS, sizeof(*records));
    ck_assert_ptr_nonnull(records);
    for (unsigned i = 0; i < DISKS; i++) {
        /* The first ones have the last tables. */
        uint64_t l2 = l2_off + (uint64_t)(DISKS - i) * 512;
        records[i] = (struct record){
            .l1_off = l1_off + i * UINT64_C(512), .l1_size = 1, .id = i, .disk_size = 32768};
        write_entries(recipe, records[i].l1_off, l2, 0, 1);
        for (unsigned e = 0; e < HOLES; e++)
            for (unsigned k = 0; k < 3; k += i == 0 ? 1 : 2)
                write_entries(recipe, l2 + (e * 3 + k) * UINT64_C(8),
                    data_off + (e * 3 + k) * UINT64_C(512), 0, 1);
    }
    write_records(recipe, table_off, records, DISKS);
    free(records);
    struct report report = repair(recipe, true); /* all counts are right then */
    ck_assert_int_eq(report_exit_code(&report), 0);
    report_release(&report);
    for (unsigned e = 0; e < HOLES; e++)
        write_entries(recipe, l2_off + DISKS * 512 + (e * 3 + 1) * UINT64_C(8), 0, 0, 1);
    double before = seconds_used();
    report = repair(recipe, true);
    within(before, 10, "repair: 20000 tables at one place, all with the same holes");
    ck_assert_uint_eq(report.snapshot_count, DISKS);
    ck_assert_uint_eq(report.leaks_fixed, HOLES);
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

Suite *test_bombs(void);
Suite *test_bombs(void)
{
    Suite *suite = suite_create("bombs");
    TCase *tc = tcase_create("bombs");
    tcase_set_timeout(tc, 60 * SLOWER);
    tcase_add_test(tc, one_l2_table_for_everything);
    tcase_add_test(tc, one_table_for_all_bitmaps);
    tcase_add_test(tc, header_extensions_without_end);
    tcase_add_test(tc, snapshots_longer_than_their_disk);
    tcase_add_test(tc, snapshots_with_one_id);
    tcase_add_loop_test(tc, one_cluster_for_everything, 0, 2);
    tcase_add_loop_test(tc, compressed_data_that_is_too_long, 0, 2);
    suite_add_tcase(suite, tc);
    tc = tcase_create("garbage");
    tcase_set_timeout(tc, 120 * SLOWER);
    tcase_add_loop_test(tc, an_l1_table_of_garbage, 0, 2);
    tcase_add_test(tc, holes_of_many_disks);
    tcase_add_test(tc, entries_behind_the_end);
    tcase_add_test(tc, bitmaps_that_are_all_broken);
    tcase_add_test(tc, more_than_can_be_mended);
    suite_add_tcase(suite, tc);
    return suite;
}
