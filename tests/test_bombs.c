/* SPDX-License-Identifier: MIT
 *
 * Images of some megabytes at most, made to keep a program busy for hours: one piece of metadata
 * that is named again and again, pairs of things that are each compared with each.  What works at
 * them ends within seconds, or says that the image is none; test_bombs_repair.c has those for
 * the repair's searches, test_crafted.c more for the check alone. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bomb.h"
#include "engine_kit.h"
#include "io_meter.h"

/* ---- the engine ---------------------------------------------------------------------------- */

/* An L1 table of 32 MiB whose entries all name one L2 table: 256 GiB to read. */
START_TEST(one_l2_table_for_everything)
{
    enum { ENTRIES = 1 << 22 };
    struct recipe *recipe = bomb_build(
        "image cluster=64k size=2048T l1_size=%u refcount_bits=64\ndata 0 64k\n", ENTRIES);
    struct image *img;
    struct io *meter;
    bomb_write_entries(
        recipe, bomb_eval(recipe, "l1.offset"), bomb_eval(recipe, "l2[0].offset"), 0, ENTRIES);
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
    struct recipe *recipe = bomb_build("image cluster=2M size=32768T\ndata 0 2M\n"
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

/* Each is compared with those before it: some hundred thousand fit a cluster. */
START_TEST(header_extensions_without_end)
{
    enum { EXTENSIONS = 1001 };
    struct check_options options = {.threads = 1};
    struct report report;
    struct recipe *recipe = bomb_build("image cluster=64k size=%uM\n", 1);
    for (unsigned i = 0; i < EXTENSIONS; i++)
        bomb_write_entries(recipe, 112 + i * UINT64_C(8), (UINT64_C(0xabc00000) + i) << 32, 0, 1);
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
    struct recipe *recipe = bomb_build("image cluster=512 size=512\ndamage truncate %uM\n", 16);
    struct bomb_record records[SNAPSHOTS];
    for (unsigned i = 0; i < SNAPSHOTS; i++) {
        records[i] = (struct bomb_record){.l1_off = l1_off + i * UINT64_C(8) * ENTRIES,
            .l1_size = ENTRIES,
            .id = i,
            .disk_size = i % 2 ? ENTRIES * UINT64_C(32768) : 512};
        for (unsigned e = 0; e < ENTRIES; e += TABLES)
            bomb_write_entries(recipe, records[i].l1_off + e * UINT64_C(8),
                l2_off + (i % 2) * UINT64_C(512) * TABLES, 512, TABLES);
    }
    bomb_write_records(recipe, table_off, records, SNAPSHOTS);
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

/* Each gets a new ID, and none of them twice. */
START_TEST(snapshots_with_one_id)
{
    enum { SNAPSHOTS = 65536 };
    struct recipe *recipe = bomb_build("image cluster=64k size=1M\ndamage truncate %uM\n", 8);
    struct bomb_record *records = calloc(SNAPSHOTS, sizeof(*records));
    ck_assert_ptr_nonnull(records);
    bomb_write_records(recipe, 2 << 20, records, SNAPSHOTS);
    free(records);
    struct report report = bomb_repair(recipe, false);
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
        bomb_build("image cluster=4k size=32M refcount_bits=%u\ndata 0 32M\n", _i ? 8 : 16);
    uint64_t raw = bomb_eval(recipe, "l2[0][0]");
    for (unsigned i = 0; i < TABLES; i++) {
        char table[32];
        snprintf(table, sizeof(table), "l2[%u].offset", i);
        bomb_write_entries(recipe, bomb_eval(recipe, table), raw, 0, ENTRIES);
    }
    struct report report = bomb_repair(recipe, false);
    ck_assert_int_eq(report_exit_code(&report), 0);
    ck_assert_uint_eq(bomb_eval(recipe, "header.cluster_bits"), 12);
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
    struct recipe *recipe = bomb_build(text, 1);
    uint64_t l2_off = bomb_eval(recipe, "l2[0].offset"), raw = bomb_eval(recipe, "l2[0][0]");
    bomb_write_entries(recipe, l2_off, raw, 0, rows[_i].entries);
    struct report report = bomb_repair(recipe, true);
    ck_assert_int_eq(report_exit_code(&report), rows[_i].exit_code);
    if (rows[_i].exit_code == 1)
        ck_assert_ptr_nonnull(strstr(report.problem, "decode"));
    else
        ck_assert_uint_eq(report.data_at_risk, 0); /* nothing was given up */
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* Whether it is VM state that lies behind the end of the disk was found out for each entry there.
 */
START_TEST(entries_behind_the_end)
{
    enum { ENTRIES = 1 << 20 };
    struct recipe *recipe =
        bomb_build("image cluster=64k size=1M l1_size=%u\ndata 0 64k\n", ENTRIES);
    struct check_options options = {.threads = 1};
    struct report report;
    struct io *meter;
    bomb_write_entries(recipe, bomb_eval(recipe, "l1.offset") + 8, 1 << 20, 65536, ENTRIES - 1);
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

Suite *test_bombs(void);
Suite *test_bombs(void)
{
    Suite *suite = suite_create("bombs");
    TCase *tc = tcase_create("bombs");
    tcase_set_timeout(tc, 60 * BOMB_SLOWER);
    tcase_add_test(tc, one_l2_table_for_everything);
    tcase_add_test(tc, one_table_for_all_bitmaps);
    tcase_add_test(tc, header_extensions_without_end);
    tcase_add_test(tc, snapshots_longer_than_their_disk);
    tcase_add_test(tc, snapshots_with_one_id);
    tcase_add_loop_test(tc, one_cluster_for_everything, 0, 2);
    tcase_add_loop_test(tc, compressed_data_that_is_too_long, 0, 2);
    tcase_add_test(tc, entries_behind_the_end);
    suite_add_tcase(suite, tc);
    return suite;
}
