/* SPDX-License-Identifier: MIT
 *
 * Images of some megabytes at most that take a repair what its rounds, its searches and its trials
 * may take at most: seconds, of which each case states how many. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "bomb.h"
#include "io_meter.h"
#include "rng.h"

/* An L1 table of garbage: each round mended a few of its entries, and with --lossy each was dropped
 * on its own. */
START_TEST(an_l1_table_of_garbage)
{
    enum { ENTRIES = 1 << 20, L1_BYTES = 8 * ENTRIES };
    struct recipe *recipe = bomb_build("image cluster=64k size=1M l1_size=%u\ndata 0 64k\n"
                                       "damage fill (l1.offset + 1M) 7M 0xc0\n",
        ENTRIES);
    struct check_options options = {.threads = 1};
    const struct repair_options how = {.lossy = _i};
    struct report report;
    struct io *meter;
    ck_assert_int_eq(io_meter_open(recipe_io(recipe), 0, &meter), 0);
    report_init(&report, 10);
    double before = bomb_seconds();
    repair_image(meter, NULL, &options, &how, &report);
    ck_assert_msg(report_exit_code(&report) == (_i ? 0 : 2), "exit %d %s",
        report_exit_code(&report), report.problem);
    bomb_within(before, 10,
        _i ? "repair --lossy: a million L1 entries of garbage"
           : "repair: a million L1 entries of garbage");
    ck_assert_uint_lt(io_meter_counts(meter).bytes, 80 * (uint64_t)L1_BYTES);
    ck_assert_uint_eq(bomb_eval(recipe, "l2[0][0]"), bomb_eval(recipe, "was(l2[0][0])"));
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
    struct recipe *recipe = bomb_build("image cluster=512 size=1M\ndata 0 4k\n"
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
        bomb_write_entries(recipe, tables_off + i * UINT64_C(512), 1 << 30, 0, 1);
    }
    ck_assert_int_eq(
        io_write(recipe_io(recipe), directory_off, bytes, (size_t)BITMAPS * RECORD_BYTES), 0);
    free(bytes);
    struct report report =
        bomb_repair_within(recipe, false, 0, 5, "repair: 65535 bitmaps, all broken");
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
        bomb_build("image cluster=4k size=1G l1_size=512\ndamage truncate %uM\n", 16);
    struct rng rng = rng_for(1, 1);
    bomb_write_entries(
        recipe, bomb_eval(recipe, "l1.offset"), l2_off | QCOW2_ENTRY_COPIED, 4096, TABLES);
    for (uint64_t i = 0; i < TABLES * ENTRIES; i++) {
        uint64_t kind = rng_below(&rng, 16), data = data_off + rng_below(&rng, CLUSTERS) * 4096;
        uint64_t raw = kind == 0   ? (UINT64_C(1) << 45) + rng_below(&rng, 1 << 20) * 4096
                       : kind < 4  ? data + 512
                       : kind < 7  ? rng_below(&rng, data_off / 4096) * 4096
                       : kind < 10 ? data | 0x3e
                       : kind < 12 ? QCOW2_ENTRY_COMPRESSED | rng_below(&rng, UINT64_C(1) << 40)
                                   : data | rng_below(&rng, 2) << 63;
        bomb_write_entries(recipe, l2_off + i * 8, raw, 0, 1);
    }
    struct report report =
        bomb_repair_within(recipe, true, 1, 20, "repair: 262144 L2 entries of garbage");
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
        bomb_build("image cluster=512 size=32k refcount_bits=64\ndamage truncate %uM\n", 65);
    struct bomb_record *records = calloc(DISKS, sizeof(*records));
    ck_assert_ptr_nonnull(records);
    for (unsigned i = 0; i < DISKS; i++) {
        /* The first ones have the last tables. */
        uint64_t l2 = l2_off + (uint64_t)(DISKS - i) * 512;
        records[i] = (struct bomb_record){
            .l1_off = l1_off + i * UINT64_C(512), .l1_size = 1, .id = i, .disk_size = 32768};
        bomb_write_entries(recipe, records[i].l1_off, l2, 0, 1);
        for (unsigned e = 0; e < HOLES; e++)
            for (unsigned k = 0; k < 3; k += i == 0 ? 1 : 2)
                bomb_write_entries(recipe, l2 + (e * 3 + k) * UINT64_C(8),
                    data_off + (e * 3 + k) * UINT64_C(512), 0, 1);
    }
    bomb_write_records(recipe, table_off, records, DISKS);
    free(records);
    struct report report = bomb_repair(recipe, true); /* all counts are right then */
    ck_assert_int_eq(report_exit_code(&report), 0);
    report_release(&report);
    for (unsigned e = 0; e < HOLES; e++)
        bomb_write_entries(recipe, l2_off + DISKS * 512 + (e * 3 + 1) * UINT64_C(8), 0, 0, 1);
    double before = bomb_seconds();
    report = bomb_repair(recipe, true);
    bomb_within(before, 10, "repair: 20000 tables at one place, all with the same holes");
    ck_assert_uint_eq(report.snapshot_count, DISKS);
    ck_assert_uint_eq(report.leaks_fixed, HOLES);
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* Hundreds of disks, each with an L1 table of 32 MiB that lies in a hole but for an entry that may
 * be damaged, and something lost that may be any one's: each table was read entry by entry. */
START_TEST(long_l1_tables_in_holes)
{
    enum { DISKS = 600, ENTRIES = 1 << 22 };
    static const struct {
        bool lossy, counted; /* counted: at first all counts are right */
        uint64_t entry;      /* in the middle of each table */
        const char *lost;    /* place of the only pointer to what gets lost, */
        uint64_t by;         /* and what is there then */
        int exit_code;
        const char *what;
    } rows[] = {
        {true, false, 0, "l1.offset", 0, 0,
            "repair --lossy: 600 L1 tables of 32 MiB in holes, a lost L2 table"},
        {false, true, 0x1234567, "&header.l1_offset", 32 << 20, 2,
            "repair: 600 L1 tables of 32 MiB in holes, an entry of each damaged, a lost L1 table"},
    };
    const uint64_t table_off = 16 << 20, l1_off = 64 << 20, l1_bytes = UINT64_C(8) * ENTRIES;
    struct recipe *recipe = bomb_build("image cluster=64k size=1M\ndata 0 64k\n"
                                       "damage truncate %uM\n",
        64 + DISKS * 32);
    struct bomb_record *records = calloc(DISKS, sizeof(*records));
    ck_assert_ptr_nonnull(records);
    for (unsigned i = 0; i < DISKS; i++)
        records[i] = (struct bomb_record){
            .l1_off = l1_off + i * l1_bytes, .l1_size = ENTRIES, .id = i, .disk_size = 1 << 20};
    bomb_write_records(recipe, table_off, records, DISKS);
    free(records);
    if (rows[_i].counted) {
        struct report before = bomb_repair(recipe, true);
        ck_assert_int_eq(report_exit_code(&before), 0);
        report_release(&before);
    }
    for (unsigned i = 0; i < DISKS && rows[_i].entry; i++)
        bomb_write_entries(recipe, l1_off + i * l1_bytes + l1_bytes / 2, rows[_i].entry, 0, 1);
    bomb_write_entries(recipe, bomb_eval(recipe, rows[_i].lost), rows[_i].by, 0, 1);
    struct report report =
        bomb_repair_within(recipe, rows[_i].lossy, rows[_i].exit_code, 20, rows[_i].what);
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* Entries that are damaged in every other one of many disks' tables at one place, while all that
 * they may have named misses a reference: for each, the entries of all others were proposed, and
 * for each of these it was asked whose it is. */
START_TEST(entries_of_many_disks)
{
    enum { DISKS = 20000, ENTRIES = 8, DAMAGED = 6 };
    const uint64_t table_off = 1 << 20, l1_off = 8 << 20, l2_off = 32 << 20, data_off = 64 << 20;
    struct recipe *recipe =
        bomb_build("image cluster=512 size=32k refcount_bits=64\ndamage truncate %uM\n", 150);
    struct bomb_record *records = calloc(2 * DISKS, sizeof(*records));
    ck_assert_ptr_nonnull(records);
    for (unsigned i = 0; i < 2 * DISKS; i++) { /* two have the same data each */
        uint64_t l2 = l2_off + i * UINT64_C(512);
        records[i] = (struct bomb_record){
            .l1_off = l1_off + i * UINT64_C(512), .l1_size = 1, .id = i, .disk_size = 32768};
        bomb_write_entries(recipe, records[i].l1_off, l2, 0, 1);
        bomb_write_entries(
            recipe, l2, data_off + i % DISKS * UINT64_C(512) * ENTRIES, 512, ENTRIES);
    }
    bomb_write_records(recipe, table_off, records, 2 * DISKS);
    struct report report = bomb_repair(recipe, true); /* all counts are right then */
    ck_assert_int_eq(report_exit_code(&report), 0);
    report_release(&report);
    for (unsigned i = DISKS; i < 2 * DISKS; i++)
        bomb_write_entries(recipe, l2_off + i * UINT64_C(512), 0, 0, ENTRIES);
    free(records);
    for (unsigned i = 0; i < DISKS; i++) {
        for (unsigned e = i % 2; e < DAMAGED; e += 2) {
            uint64_t raw = data_off + (i * UINT64_C(8) + e) * 512;
            const uint64_t damaged[] = {raw + 2, raw | UINT64_C(1) << 50, e * 512};
            bomb_write_entries(
                recipe, l2_off + i * UINT64_C(512) + e * UINT64_C(8), damaged[e / 2], 0, 1);
        }
    }
    report = bomb_repair_within(
        recipe, false, 0, 20, "repair: 60000 damaged entries, 20000 tables at one place");
    ck_assert_uint_eq(report.snapshot_count, 2 * DISKS);
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* As many disks that each may have lost any of as many tables: each pair was weighed by what each
 * other disk has there. */
START_TEST(tables_of_many_disks)
{
    enum { DISKS = 20000, ENTRIES = 8 };
    const uint64_t table_off = 1 << 20, l1_off = 8 << 20, l2_off = 32 << 20, data_off = 64 << 20;
    struct recipe *recipe =
        bomb_build("image cluster=512 size=32k refcount_bits=64\ndamage truncate %uM\n", 150);
    struct bomb_record *records = calloc(2 * DISKS, sizeof(*records));
    ck_assert_ptr_nonnull(records);
    for (unsigned i = 0; i < 2 * DISKS; i++) { /* two have the same table each */
        uint64_t l2 = l2_off + i % DISKS * UINT64_C(512);
        records[i] = (struct bomb_record){
            .l1_off = l1_off + i * UINT64_C(512), .l1_size = 1, .id = i, .disk_size = 32768};
        bomb_write_entries(recipe, records[i].l1_off, l2, 0, 1);
        bomb_write_entries(
            recipe, l2, data_off + i % DISKS * UINT64_C(512) * ENTRIES, 512, ENTRIES);
    }
    bomb_write_records(recipe, table_off, records, 2 * DISKS);
    struct report report = bomb_repair(recipe, true); /* all counts are right then */
    ck_assert_int_eq(report_exit_code(&report), 0);
    report_release(&report);
    for (unsigned i = DISKS; i < 2 * DISKS; i++)
        bomb_write_entries(recipe, records[i].l1_off, 0, 0, 1);
    free(records);
    report = bomb_repair_within(
        recipe, true, 0, 30, "repair --lossy: 20000 empty L1 entries, 20000 tables that one lost");
    ck_assert_uint_eq(report.snapshot_count, 2 * DISKS);
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* An L1 table said to go on over all that is behind it: that is no more than a number, and nothing
 * there is an L1 entry.  It fits among more findings than are kept, and more trials than come to an
 * end. */
START_TEST(an_l1_table_said_to_be_longer)
{
    static const unsigned sizes[] = {0x4004, 0x8004, 0x20004};
    struct recipe *recipe =
        bomb_build("image cluster=4k size=8M\ndata 0 1M\ncompressed 4M 64k\ndata 5M 1M\n"
                   "damage header.l1_size = %u\n",
            sizes[_i]);
    uint64_t guest = bomb_eval(recipe, "l2[0][9]");
    struct report report =
        bomb_repair_within(recipe, false, 0, 20, "repair: an L1 table said to be longer");
    report_release(&report);
    ck_assert_uint_eq(bomb_eval(recipe, "header.l1_size"), 4);
    ck_assert_uint_eq(bomb_eval(recipe, "l2[0][9]"), guest);
    recipe_free(recipe);
}
END_TEST

/* Tables most of whose entries make no sense, more than are read once more to tell whether others
 * have their clusters: the rest keeps the benefit of the doubt. */
START_TEST(more_doubtful_tables_than_are_read_again)
{
    enum { TABLES = 36, ODD = 4, CLUSTER = 2 << 20 };
    const uint64_t l2_off = 8 * CLUSTER, once = 0x0001000100010001; /* counts of four clusters */
    struct recipe *recipe = bomb_build("image cluster=2M size=18T\ndamage truncate %uM\n", 160);
    bomb_write_entries(
        recipe, bomb_eval(recipe, "l1.offset"), l2_off | QCOW2_ENTRY_COPIED, 2 * CLUSTER, TABLES);
    bomb_write_entries(recipe, bomb_eval(recipe, "refblock[0].offset") + 16, once, 0, TABLES / 2);
    for (uint64_t i = 0; i < TABLES; i++) {
        uint64_t table = l2_off + i * 2 * CLUSTER;
        bomb_write_entries(recipe, table, (table + CLUSTER) | QCOW2_ENTRY_COPIED, 0, 1);
        bomb_write_entries(recipe, table + 512, (i + 1) << 40 | 0x10, CLUSTER, ODD);
    }
    bomb_write_entries(recipe, bomb_eval(recipe, "&refcount[0]"), 0x0000000100010001, 0, 1);
    struct report report = bomb_repair_within(
        recipe, true, 0, 5, "repair --lossy: 36 tables of 2 MiB that hardly make sense");
    report_release(&report);
    for (uint64_t i = 0; i < TABLES; i++) {
        char entry[64];
        uint64_t table = l2_off + i * 2 * CLUSTER;
        snprintf(entry, sizeof(entry), "u64[%llu]", (unsigned long long)table);
        ck_assert_uint_eq(bomb_eval(recipe, entry), (table + CLUSTER) | QCOW2_ENTRY_COPIED);
        snprintf(entry, sizeof(entry), "u64[%llu]", (unsigned long long)table + 512);
        ck_assert_uint_eq(bomb_eval(recipe, entry), 0);
    }
    recipe_free(recipe);
}
END_TEST

/* Every entry of some tables of a large disk has one bit wrong: each was weighed on its own. */
START_TEST(a_bit_of_each_entry)
{
    enum { TABLES = 128, ENTRIES = 8192, CLUSTER = 65536, DAMAGED = 4 };
    const uint64_t l2_off = 8 << 20, data_off = 64 << 20;
    struct recipe *recipe = bomb_build("image cluster=64k size=64G\ndamage truncate %uG\n", 66);
    struct rng rng = rng_for(1, 1);
    bomb_write_entries(
        recipe, bomb_eval(recipe, "l1.offset"), l2_off | QCOW2_ENTRY_COPIED, CLUSTER, TABLES);
    bomb_write_entries(
        recipe, l2_off, data_off | QCOW2_ENTRY_COPIED, CLUSTER, (size_t)TABLES * ENTRIES);
    struct report report = bomb_repair(recipe, true); /* all counts are right then */
    ck_assert_int_eq(report_exit_code(&report), 0);
    report_release(&report);
    for (uint64_t i = 0; i < (uint64_t)DAMAGED * ENTRIES; i++) {
        uint64_t raw = (data_off + i * CLUSTER) | QCOW2_ENTRY_COPIED;
        raw ^= UINT64_C(1) << (16 + rng_below(&rng, 24));
        bomb_write_entries(recipe, l2_off + i * 8, raw, 0, 1);
    }
    report = bomb_repair_within(recipe, _i, _i ? 0 : 2, _i ? 60 : 30,
        _i ? "repair --lossy: 32768 entries with a wrong bit"
           : "repair: 32768 entries with a wrong bit");
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* One cluster that all entries of a table name: copies for each would fill the disk. */
START_TEST(one_cluster_for_everything)
{
    enum { ENTRIES = 262144 };
    struct recipe *recipe = bomb_build("image cluster=%uM size=512G\ndata 0 2M\n", 2);
    uint64_t raw = bomb_eval(recipe, "l2[0][0]"), size;
    bomb_write_entries(recipe, bomb_eval(recipe, "l2[0].offset"), raw, 0, ENTRIES);
    struct report report =
        bomb_repair_within(recipe, _i, 1, 40, "repair: 262144 entries name one cluster");
    ck_assert_msg(strstr(report.problem, "more than the file has") != NULL, "%s", report.problem);
    report_release(&report);
    ck_assert_int_eq(io_size(recipe_io(recipe), &size), 0);
    ck_assert_uint_le(size, 128 << 20);
    recipe_free(recipe);
}
END_TEST

Suite *test_bombs_repair(void);
Suite *test_bombs_repair(void)
{
    Suite *suite = suite_create("bombs_repair");
    TCase *tc = tcase_create("bombs_repair");
    tcase_set_timeout(tc, 120 * BOMB_SLOWER);
    tcase_add_loop_test(tc, an_l1_table_of_garbage, 0, 2);
    tcase_add_loop_test(tc, an_l1_table_said_to_be_longer, 0, 3);
    tcase_add_loop_test(tc, one_cluster_for_everything, 0, 2);
    tcase_add_loop_test(tc, a_bit_of_each_entry, 0, 2);
    tcase_add_test(tc, holes_of_many_disks);
    tcase_add_test(tc, bitmaps_that_are_all_broken);
    tcase_add_test(tc, more_than_can_be_mended);
    tcase_add_test(tc, entries_of_many_disks);
    tcase_add_test(tc, tables_of_many_disks);
    tcase_add_test(tc, more_doubtful_tables_than_are_read_again);
    tcase_add_loop_test(tc, long_l1_tables_in_holes, 0, 2);
    suite_add_tcase(suite, tc);
    return suite;
}
