/* SPDX-License-Identifier: MIT
 *
 * What the engine does to persistent bitmaps: a change of the disk is recorded before it is made,
 * nothing else of a bitmap changes. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "engine_kit.h"
#include "recipe.h"

static struct image *open_recipe(const char *text, struct io **io)
{
    char error[RECIPE_ERROR_BYTES];
    struct recipe *recipe = NULL;
    struct image *img = NULL;
    struct image_error why = {""};
    ck_assert_msg(recipe_text("bitmap", text, &recipe, error) == 0, "%s", error);
    ck_assert_int_eq(recipe_branch(recipe, io), 0);
    recipe_free(recipe);
    ck_assert_msg(image_open(*io, IMAGE_WRITE, &img, &why) == 0, "%s", why.text);
    return img;
}

/* Bit `bit` of bitmap `idx`, as the device has it. */
static bool bit_of(struct image *img, struct io *io, uint32_t idx, uint64_t bit)
{
    uint64_t per_cluster = UINT64_C(8) << img->geo.cluster_bits;
    uint64_t entry =
        kit_peek64(io, img->bitmaps.list[idx].entry.table_off + bit / per_cluster * UINT64_C(8));
    uint64_t off = entry & QCOW2_OFFSET_MASK;
    uint8_t byte;
    if (off == 0)
        return entry & 1;
    ck_assert_int_eq(io_read_padded(io, off + bit % per_cluster / 8, &byte, 1), 0);
    return byte >> (bit % 8) & 1;
}

static void expect_bits(
    struct image *img, struct io *io, uint32_t idx, uint64_t first, uint64_t last, uint64_t count)
{
    for (uint64_t bit = 0; bit < count; bit++)
        ck_assert_msg(bit_of(img, io, idx, bit) == (bit >= first && bit <= last), "bit %llu",
            (unsigned long long)bit);
}

static const char auto_bitmap[] = "image cluster=4k size=4M\ndata 0 64k\n"
                                  "bitmap name=a granularity=4k fill=none auto\n"
                                  "bitmap name=b granularity=64k fill=none\n";

START_TEST(changes_are_recorded)
{
    struct io *io;
    struct image *img = open_recipe(auto_bitmap, &io);
    kit_put(img, 8191, 1, 4098); /* the last byte of granule 1, the first of granule 3 */
    expect_bits(img, io, 0, 1, 3, 1024);
    expect_bits(img, io, 1, 1, 0, 64); /* this one is not asked to record */
    kit_close(img, io);

    img = open_recipe(auto_bitmap, &io);
    kit_must(img, image_discard(img, 16384, 8192));
    expect_bits(img, io, 0, 4, 5, 1024);
    kit_close(img, io);
}
END_TEST

START_TEST(apply_may_change_all)
{
    struct io *io;
    struct image *img = open_recipe(auto_bitmap, &io);
    kit_snap(img, "s");
    expect_bits(img, io, 0, 1, 0, 1024); /* a snapshot changes nothing that a guest sees */
    kit_must(img, snapshot_apply(img, kit_find(img, "s")));
    expect_bits(img, io, 0, 0, 1023, 1024);
    expect_bits(img, io, 1, 1, 0, 64);
    kit_must(img, snapshot_delete(img, kit_find(img, "s")));
    kit_close(img, io);
}
END_TEST

START_TEST(bitmaps_out_of_use_are_left_alone)
{
    struct io *io;
    struct image *img =
        open_recipe("image cluster=4k size=4M\nbitmap granularity=4k fill=none auto in_use\n", &io);
    kit_put(img, 0, 1, 8192);
    expect_bits(img, io, 0, 1, 0, 1024);
    kit_close(img, io);
}
END_TEST

START_TEST(all_ones_stay_all_ones)
{
    struct io *io;
    struct image *img =
        open_recipe("image cluster=4k size=4M\nbitmap granularity=4k fill=ones auto\n", &io);
    uint64_t entry = kit_peek64(io, img->bitmaps.list[0].entry.table_off);
    kit_put(img, 0, 1, 8192);
    ck_assert_uint_eq(kit_peek64(io, img->bitmaps.list[0].entry.table_off), entry);
    kit_close(img, io);
}
END_TEST

START_TEST(a_disk_with_bitmaps_keeps_its_size)
{
    struct io *io;
    struct image *img = open_recipe(auto_bitmap, &io);
    ck_assert_int_eq(image_resize(img, 8 << 20), -ENOTSUP);
    ck_assert_ptr_nonnull(strstr(image_error(img), "bitmap"));
    ck_assert_int_eq(bitmap_check_resize(img, image_size(img)), 0);
    kit_close(img, io);
}
END_TEST

START_TEST(broken_bitmaps_are_refused)
{
    static const char *const damage[] = {
        "damage bitmap[0].table_offset = 1G\n",
        "damage bitmap[0].table_offset = bitmap[0].table_offset + 512\n",
        "damage bitmap[0].table_size = 0x7fffffff\n",
        "damage bitmap[0].granularity_bits = 40\n",
        "damage bitmaps.directory_offset = 3\n",
        "damage bitmaps.count = 70000\n",
    };
    for (size_t i = 0; i < sizeof(damage) / sizeof(damage[0]); i++) {
        char text[1024], error[RECIPE_ERROR_BYTES];
        struct recipe *recipe = NULL;
        struct image *img = NULL;
        struct image_error why = {""};
        struct io *io;
        snprintf(text, sizeof(text), "%s%s", auto_bitmap, damage[i]);
        ck_assert_msg(recipe_text("bitmap", text, &recipe, error) == 0, "%s%s", damage[i], error);
        ck_assert_int_eq(recipe_branch(recipe, &io), 0);
        recipe_free(recipe);
        int ret = image_open(io, IMAGE_WRITE, &img, &why);
        ck_assert_msg(ret == -EUCLEAN, "%s: %d", damage[i], ret);
        ck_assert_msg(strstr(why.text, "bitmap"), "%s: %s", damage[i], why.text);
        io_close(io);
    }
}
END_TEST

Suite *test_bitmap(void);
Suite *test_bitmap(void)
{
    Suite *suite = suite_create("bitmap");
    TCase *tc = tcase_create("bitmap");
    tcase_add_test(tc, changes_are_recorded);
    tcase_add_test(tc, apply_may_change_all);
    tcase_add_test(tc, bitmaps_out_of_use_are_left_alone);
    tcase_add_test(tc, all_ones_stay_all_ones);
    tcase_add_test(tc, a_disk_with_bitmaps_keeps_its_size);
    tcase_add_test(tc, broken_bitmaps_are_refused);
    suite_add_tcase(suite, tc);
    return suite;
}
