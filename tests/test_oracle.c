/* SPDX-License-Identifier: MIT
 *
 * A small run of the oracle; `make oracle` does a large one. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "damage.h"
#include "imgmake.h"
#include "oracle_run.h"
#include "proc.h"
#include "specimen.h"

enum { ITEMS = 60, SEED = 26 };

START_TEST(verdicts_equal_those_of_qemu_img)
{
    char *qcheck = oracle_find_qcheck();
    struct item_options options = {.seed = SEED, .count = ITEMS, .qcheck = qcheck, .log = stderr};
    struct oracle_totals totals;
    ck_assert_int_eq(oracle_run(&options, &totals), 0);
    free(qcheck);
    ck_assert_uint_eq(totals.not_made, 0);
    ck_assert_uint_eq(totals.unsound, 0);
    ck_assert_uint_eq(totals.damaged, ITEMS);
    ck_assert_uint_eq(totals.sound, ITEMS / SPECIMEN_SHARE);
    ck_assert_uint_eq(totals.differ, 0);
}
END_TEST

static struct io *load(const char *dir, const char *name)
{
    char path[4096];
    struct io *file, *image;
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    ck_assert_int_eq(io_file_open(path, IO_FILE_NO_LOCK, &file, NULL), 0);
    ck_assert_int_eq(io_mem_load(file, &image), 0);
    io_close(file);
    return image;
}

/* The same damage twice gives the same bytes and the same words. */
static void damage_twice(struct io *healthy, uint64_t seed)
{
    struct io *a, *b;
    char *story_a, *story_b;
    uint64_t size_a, size_b;
    ck_assert_int_eq(io_mem_branch(healthy, &a), 0);
    ck_assert_int_eq(io_mem_branch(healthy, &b), 0);
    ck_assert_int_eq(damage_image(a, seed, 3, &story_a), 0);
    ck_assert_int_eq(damage_image(b, seed, 3, &story_b), 0);
    ck_assert_str_eq(story_a, story_b);
    ck_assert_str_ne(story_a, "");
    io_size(a, &size_a);
    io_size(b, &size_b);
    ck_assert_uint_eq(size_a, size_b);
    uint8_t piece_a[4096], piece_b[4096];
    for (uint64_t host_off = 0; host_off < size_a; host_off += sizeof(piece_a)) {
        ck_assert_int_eq(io_read_padded(a, host_off, piece_a, sizeof(piece_a)), 0);
        ck_assert_int_eq(io_read_padded(b, host_off, piece_b, sizeof(piece_b)), 0);
        ck_assert_int_eq(memcmp(piece_a, piece_b, sizeof(piece_a)), 0);
    }
    free(story_a);
    free(story_b);
    io_close(a);
    io_close(b);
}

START_TEST(damage_is_replayable)
{
    char *dir = proc_mkdir();
    struct imgmake image;
    ck_assert_int_eq(imgmake(dir, 4, &image), 0);
    struct io *healthy = load(dir, image.name);
    for (uint64_t seed = 0; seed < 20; seed++)
        damage_twice(healthy, seed);
    io_close(healthy);
    imgmake_free(&image);
    proc_rmdir(dir);
}
END_TEST

Suite *test_oracle(void);
Suite *test_oracle(void)
{
    Suite *suite = suite_create("oracle");
    TCase *tcase = tcase_create("oracle");
    tcase_set_timeout(tcase, 180);
    tcase_add_test(tcase, verdicts_equal_those_of_qemu_img);
    tcase_add_test(tcase, damage_is_replayable);
    suite_add_tcase(suite, tcase);
    return suite;
}
