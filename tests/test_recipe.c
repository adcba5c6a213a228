/* SPDX-License-Identifier: MIT
 *
 * The recipe language: what it says no to, what its names mean, and, with qemu-img as the judge,
 * that what it calls healthy is. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "corpus.h"
#include "guest.h"
#include "proc.h"
#include "recipe.h"

static struct recipe *build(const char *text)
{
    char error[RECIPE_ERROR_BYTES] = "";
    struct recipe *recipe = NULL;
    recipe_text("recipe", text, &recipe, error);
    ck_assert_msg(recipe, "%s", error);
    return recipe;
}

static uint64_t eval(struct recipe *recipe, const char *expression)
{
    char error[RECIPE_ERROR_BYTES] = "";
    uint64_t value = 0;
    ck_assert_msg(recipe_eval(recipe, expression, &value, error) == 0, "%s", error);
    return value;
}

/* ---- the parser ----------------------------------------------------------------------------- */

static const struct {
    const char *text, *error;
} wrong[] = {
    {"", "a recipe starts with image or raw"},
    {"data 0 64k\n", "recipe:1: a recipe starts with image or raw"},
    {"# none\nimage\nimage\n", "recipe:3: one image is enough"},
    {"image\nfrobnicate\n", "recipe:2: \"frobnicate\" is no statement"},
    {"image colour=red\n", "recipe:1: \"colour\" is not known here"},
    {"image cluster=65k\n", "recipe:1: cluster is a power of two"},
    {"image cluster=4M\n", "recipe:1: no image can be like that"},
    {"image version=2 lazy_refcounts\n",
        "recipe:1: version 2 has no features and 16-bit refcounts"},
    {"image size=1Q\n", "recipe:1: not a number: \"1Q\""},
    {"image\ndata 1M 1\n", "recipe:2: this passes the end of the disk"},
    {"image\ndata 0 64k pattern=256\n", "recipe:2: a pattern is a byte"},
    {"image\ndata 0 64k what\n", "recipe:2: \"what\" is not known here"},
    {"image\nzero 4k 64k\n", "recipe:2: zero and discard want whole clusters"},
    {"image\nsnapshot id=\"1\n", "recipe:2: a quote is missing"},
    {"image\ndamage l1[0] = 0\ndata 0 1k\n", "recipe:3: only damage and set may follow damage"},
    {"image\ndamage l2[0][0] = 0\n", "recipe:2: l2[0] was not allocated"},
    {"image\ndata 0 1k\ndamage l2[1][0] = 0\n", "recipe:3: l2[1]: there are only 1"},
    {"image\ndamage header.colour = 1\n", "recipe:2: there is no field \"colour\""},
    {"image\ndamage header.l1_size = 4G\n", "recipe:2: 0x100000000 does not fit there"},
    {"image\ndamage header.l1_size 4\n", "recipe:2: =, |=, &= or ^= is missing at \"4\""},
    {"image\ndamage l1.offset = 4\n",
        "recipe:2: this is where something is; it cannot be assigned to"},
    {"image\ndamage header.size = (1 + 2\n", "recipe:2: ) is missing"},
    {"image\ndamage truncate 1k 2k\n", "recipe:2: what is \"2k\"?"},
    {"image\ndamage bytes 0 = 0g\n", "recipe:2: hex bytes expected at \"g\""},
    {"image refcount_bits=1 cluster=512 size=1k\ndata 0 1k\nsnapshot id=1\n", "do not fit 1 bits"},
};

START_TEST(mistakes_are_told_with_their_line)
{
    char error[RECIPE_ERROR_BYTES] = "";
    struct recipe *recipe = NULL;
    ck_assert_int_lt(recipe_text("recipe", wrong[_i].text, &recipe, error), 0);
    ck_assert_msg(strstr(error, wrong[_i].error), "\"%s\" gave: %s", wrong[_i].text, error);
}
END_TEST

START_TEST(expressions)
{
    struct recipe *recipe = build("image size=64k\n");
    const struct {
        const char *text;
        uint64_t value;
    } rows[] = {
        {"0", 0},
        {"0x10", 16},
        {"2k+3", 2051},
        {"1 + 2 * 3", 9}, /* from left to right */
        {"1 + (2 * 3)", 7},
        {"~0 & ~0xff", UINT64_MAX - 255},
        {"1T >> 40 | 6", 7},
        {"-1", UINT64_MAX},
        {"cluster - 1", 65535},
        {"&header.size", 24},
        {"header.size", 65536},
        {"u32[0]", 0x514649fb},
        {"file.size", 4 * 65536},
        {"refcount[3]", 1},
        {"refcount[@l1.offset]", 1},
        {"reftable[0].offset", 2 * 65536},
        {"refblock[0].offset + 6 - &refcount[3]", 0},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        ck_assert_msg(eval(recipe, rows[i].text) == rows[i].value, "%s is %#llx", rows[i].text,
            (unsigned long long)eval(recipe, rows[i].text));
    recipe_free(recipe);
}
END_TEST

START_TEST(damage_hits_what_it_names)
{
    struct recipe *recipe = build("image refcount_bits=2\n"
                                  "data 0 128k pattern=0x11\n"
                                  "snapshot id=7 name=first\n"
                                  "data 0 64k pattern=0x22\n"
                                  "bitmap name=b fill=data\n"
                                  "ext 0x1234 \"hello\"\n"
                                  "damage l2[0][3] = l2[0][1] # another's value\n"
                                  "damage l2[0][1].offset = l2[0].offset\n"
                                  "damage l1[0] |= 1\n"
                                  "damage refcount[@l2[0][0]] = 2\n"
                                  "damage snapshot[0].name = \"FIRST\"\n"
                                  "damage snapshot[0].l2[0][1] ^= 2\n"
                                  "damage bitmap[0].table[0] = 1\n"
                                  "damage bitmaps.count = 9\n"
                                  "damage ext[1].length = 99\n"
                                  "damage copy l1.offset file.size 8\n"
                                  "damage append 8 0xff\n"
                                  "damage truncate -4\n");
    ck_assert_uint_eq(eval(recipe, "l2[0][3]"), eval(recipe, "was(l2[0][1])"));
    ck_assert_uint_eq(eval(recipe, "l2[0][1]"), eval(recipe, "l2[0].offset"));
    ck_assert_uint_eq(eval(recipe, "l1[0]"), eval(recipe, "was(l1[0]) + 1"));
    ck_assert_uint_eq(eval(recipe, "refcount[@l2[0][0]]"), 2);
    ck_assert_uint_eq(eval(recipe, "was(refcount[@l2[0][1]])"), 2);
    ck_assert_uint_eq(eval(recipe, "u8[&snapshot[0].name + 4]"), 'T');
    ck_assert_uint_eq(
        eval(recipe, "snapshot[0].l2[0][1]"), eval(recipe, "was(snapshot[0].l2[0][1])^2"));
    ck_assert_uint_eq(eval(recipe, "bitmap[0].table[0]"), 1);
    ck_assert_uint_eq(eval(recipe, "bitmaps.count"), 9);
    ck_assert_uint_eq(eval(recipe, "ext[1].length"), 99);
    ck_assert_uint_eq(eval(recipe, "file.size - was(file.size)"), 12);
    ck_assert_uint_eq(eval(recipe, "u64[was(file.size)]"), eval(recipe, "l1[0]"));
    recipe_free(recipe);
}
END_TEST

START_TEST(unreadable_ranges_fail_and_only_they)
{
    struct recipe *recipe = build("image\ndata 0 64k\ndamage unreadable l2[0].offset cluster\n");
    struct io *io;
    uint8_t bytes[512];
    ck_assert(recipe_has_unreadable(recipe));
    ck_assert_int_eq(recipe_branch(recipe, &io), 0);
    uint64_t l2_off = eval(recipe, "l2[0].offset");
    ck_assert_int_eq(io_read(io, l2_off - 512, bytes, 512), 0);
    ck_assert_int_ne(io_read(io, l2_off - 511, bytes, 512), 0);
    ck_assert_int_eq(io_read(recipe_io(recipe), l2_off, bytes, 512), 0);
    io_close(io);
    recipe_free(recipe);
}
END_TEST

/* ---- healthy images ------------------------------------------------------------------------- */

static void compare_with_qemu(struct recipe *recipe, const char *dir, const char *snapshot_id)
{
    uint64_t size = eval(recipe, "header.size"); /* also of a snapshot: so convert does it */
    struct proc_result r =
        proc_run("cd '%s' && qemu-img convert %s%s -f qcow2 -O raw image.qcow2 raw", dir,
            snapshot_id ? "-l snapshot.id=" : "", snapshot_id ? snapshot_id : "");
    ck_assert_msg(r.exit_code == 0, "convert: %s", r.err);
    proc_free(&r);
    char path[4096];
    snprintf(path, sizeof(path), "%s/raw", dir);
    struct io *raw;
    ck_assert_int_eq(io_file_open(path, IO_FILE_NO_LOCK, &raw, NULL), 0);
    uint8_t *want = malloc(size + 1), *got = malloc(size + 1);
    ck_assert_int_eq(io_read_padded(raw, 0, want, size), 0);
    ck_assert_int_eq(
        guest_read(recipe_io(recipe), recipe_data_io(recipe), snapshot_id, 0, got, size), 0);
    ck_assert_msg(memcmp(want, got, size) == 0, "content of %s differs",
        snapshot_id ? snapshot_id : "the disk");
    free(want);
    free(got);
    io_close(raw);
}

/* What qemu-img convert makes of the disk and the first two snapshots. */
static void compare_all_with_qemu(struct recipe *recipe, const char *dir)
{
    enum { MAX_BYTES = 64 << 20 }; /* of a disk to be read as a whole */
    if (eval(recipe, "header.size") > MAX_BYTES || eval(recipe, "header.backing_length"))
        return; /* our reader does not know backing files */
    compare_with_qemu(recipe, dir, NULL);
    if (eval(recipe, "header.snapshot_count") > 0)
        compare_with_qemu(recipe, dir, "1");
    if (eval(recipe, "header.snapshot_count") > 1)
        compare_with_qemu(recipe, dir, "2");
}

START_TEST(healthy_images_are_healthy_to_qemu)
{
    struct recipe *recipe;
    struct expect *expect;
    char name[CORPUS_NAME_BYTES];
    corpus_list("healthy-", _i, name);
    corpus_load(name, &recipe, &expect);
    char *dir = proc_mkdir();
    corpus_save(name, recipe, dir);
    if (expect->qemu_exit != EXPECT_ANY && proc_exit("command -v qemu-img") == 0) {
        struct proc_result r = proc_run("cd '%s' && qemu-img check -f qcow2 image.qcow2", dir);
        ck_assert_msg(r.exit_code == 0, "corpus/%s\n%s%s", name, r.out, r.err);
        proc_free(&r);
        compare_all_with_qemu(recipe, dir);
    }
    expect_free(expect);
    recipe_free(recipe);
    proc_rmdir(dir);
}
END_TEST

START_TEST(patterns_come_back_through_snapshots)
{
    struct recipe *recipe = build("image\ndata 0 128k pattern=0x11\nsnapshot id=x\n"
                                  "compressed 0 64k seed=5\n");
    uint8_t got[200], want[200];
    struct recipe_pattern seed = {.seeded = true, .value = 5};
    ck_assert_int_eq(guest_read(recipe_io(recipe), NULL, "x", 65500, got, 200), 0);
    for (int i = 0; i < 200; i++)
        ck_assert_uint_eq(got[i], 0x11);
    ck_assert_int_eq(guest_read(recipe_io(recipe), NULL, NULL, 301, got, 200), 0);
    recipe_pattern_fill(&seed, 301, want, 200);
    ck_assert_mem_eq(got, want, 200);
    ck_assert_int_lt(guest_read(recipe_io(recipe), NULL, "y", 0, got, 1), 0);
    recipe_free(recipe);
}
END_TEST

Suite *test_recipe(void);
Suite *test_recipe(void)
{
    Suite *suite = suite_create("recipe");
    TCase *tc = tcase_create("language");
    tcase_add_loop_test(tc, mistakes_are_told_with_their_line, 0, sizeof(wrong) / sizeof(wrong[0]));
    tcase_add_test(tc, expressions);
    tcase_add_test(tc, damage_hits_what_it_names);
    tcase_add_test(tc, unreadable_ranges_fail_and_only_they);
    tcase_add_test(tc, patterns_come_back_through_snapshots);
    suite_add_tcase(suite, tc);
    tc = tcase_create("healthy");
    char name[CORPUS_NAME_BYTES];
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(
        tc, healthy_images_are_healthy_to_qemu, 0, corpus_list("healthy-", -1, name));
    suite_add_tcase(suite, tc);
    return suite;
}
