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

#include "engine_kit.h"
#include "io_meter.h"
#include "recipe.h"
#include "repair.h"

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
    struct recipe *recipe = build("image cluster=2M size=32768T\n"
                                  "bitmap name=a granularity=512 fill=none auto\n"
                                  "bitmap name=b granularity=512 fill=none auto\n"
                                  "bitmap name=c granularity=512 fill=none auto\n"
                                  "damage bitmap[1].table_offset = bitmap[0].table_offset\n"
                                  "damage bitmap[2].table_offset = bitmap[0].table_offset\n"
                                  "damage truncate bitmap[0].table_offset + %uM\n",
        32);
    struct image_error why;
    struct image *img;
    ck_assert_int_eq(image_open(recipe_io(recipe), IMAGE_WRITE, &img, &why), -EUCLEAN);
    ck_assert_msg(strstr(why.text, "run qcheck") != NULL, "%s", why.text);
    ck_assert_int_eq(image_open(recipe_io(recipe), 0, &img, &why), 0);
    image_abandon(img);
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
    suite_add_tcase(suite, tc);
    return suite;
}
