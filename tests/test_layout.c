/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <string.h>

#include "engine_kit.h"
#include "layout.h"

enum { CLUSTER = 4096 };

struct seen {
    struct image *img;
    unsigned kinds; /* bit per region */
    unsigned count;
};

/* Each structure is found again where the walk says it is, and is none of its own business. */
static int look(void *arg, enum region region, uint64_t host_off, uint64_t length)
{
    struct seen *seen = arg;
    seen->kinds |= 1u << region;
    seen->count++;
    ck_assert_uint_eq(host_off % CLUSTER, 0);
    ck_assert_int_eq(layout_overlap(seen->img, region, host_off, length), REGION_NONE);
    ck_assert_int_eq(layout_overlap(seen->img, REGION_NONE, host_off, 1), region);
    ck_assert_int_eq(
        layout_overlap(seen->img, REGION_NONE, host_off + length - 1, 100 * CLUSTER) != REGION_NONE,
        true);
    ck_assert_int_eq(layout_overlap_fixed(seen->img, host_off, length),
        region == REGION_L2 ? REGION_NONE : region);
    return 0;
}

static struct image *image_with_everything(struct io **io)
{
    struct image *img = kit_new(64 << 20, "cluster_size=4k", io);
    kit_put(img, 0, 1, 3 * CLUSTER);
    kit_put(img, 40 << 20, 1, CLUSTER);
    kit_snap(img, "one");
    kit_put(img, 0, 2, CLUSTER);
    kit_must(img, image_flush(img));
    return img;
}

START_TEST(every_structure_is_found)
{
    struct io *io;
    struct image *img = image_with_everything(&io);
    for (int indexed = 0; indexed < 2; indexed++) {
        struct seen seen = {.img = img};
        if (indexed)
            layout_index_build(img);
        ck_assert_int_eq(layout_walk(img, true, look, &seen), 0);
        for (int region = REGION_HEADER; region <= REGION_L2; region++) {
            if (region != REGION_BITMAP_DIRECTORY && region != REGION_BITMAP_TABLE)
                ck_assert_msg(seen.kinds >> region & 1, "%s", layout_name((enum region)region));
        }
        layout_index_drop(img);
    }
    kit_close(img, io);
}
END_TEST

static int stop_at(void *arg, enum region region, uint64_t host_off, uint64_t length)
{
    (void)host_off, (void)length;
    return region == *(enum region *)arg ? 77 : 0;
}

START_TEST(a_walk_can_be_ended)
{
    struct io *io;
    struct image *img = image_with_everything(&io);
    enum region l1 = REGION_L1, l2 = REGION_L2;
    ck_assert_int_eq(layout_walk(img, true, stop_at, &l1), 77);
    ck_assert_int_eq(layout_walk(img, true, stop_at, &l2), 77);
    ck_assert_int_eq(layout_walk(img, false, stop_at, &l2), 0);
    kit_close(img, io);
}
END_TEST

START_TEST(ranges_of_tables)
{
    struct io *io;
    struct image *img = image_with_everything(&io);
    uint64_t end = img->file_size;
    ck_assert_int_eq(layout_check_range(img, "x", CLUSTER, CLUSTER), 0);
    ck_assert_int_eq(layout_check_range(img, "x", end - CLUSTER, CLUSTER), 0);
    static const uint64_t bad[] = {0, 512, CLUSTER + 1, UINT64_MAX - CLUSTER + 1};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_int_eq(layout_check_range(img, "the thing", bad[i], CLUSTER), -EUCLEAN);
        ck_assert_ptr_nonnull(strstr(image_error(img), "the thing"));
    }
    ck_assert_int_eq(layout_check_range(img, "x", end + CLUSTER, CLUSTER), -EUCLEAN);
    ck_assert_int_eq(layout_check_range(img, "x", CLUSTER, end + CLUSTER), -EUCLEAN);
    ck_assert_int_eq(layout_check_range(img, "x", CLUSTER, UINT64_MAX), -EUCLEAN);
    kit_close(img, io);
}
END_TEST

/* An L1 table on a cluster that is counted as free: a writer must not begin there. */
START_TEST(structures_that_count_as_free)
{
    struct io *io;
    struct image *img = image_with_everything(&io);
    uint64_t block = kit_peek64(io, kit_peek64(io, QCOW2_HDR_REFTABLE_OFF));
    uint64_t l1_cluster = kit_peek64(io, QCOW2_HDR_L1_OFF) / CLUSTER;
    image_abandon(img);
    uint8_t zero[2] = {0};
    ck_assert_int_eq(io_write(io, block + l1_cluster * 2, zero, 2), 0);
    struct image_error why;
    int ret = image_open(io, IMAGE_WRITE, &img, &why);
    if (ret == 0) {
        uint8_t byte = 1;
        ck_assert_int_eq(image_write(img, 20 << 20, &byte, 1), -EUCLEAN);
        image_abandon(img);
    }
    io_close(io);
}
END_TEST

Suite *test_layout(void);
Suite *test_layout(void)
{
    Suite *suite = suite_create("layout");
    TCase *tc = tcase_create("layout");
    tcase_add_test(tc, every_structure_is_found);
    tcase_add_test(tc, a_walk_can_be_ended);
    tcase_add_test(tc, ranges_of_tables);
    tcase_add_test(tc, structures_that_count_as_free);
    suite_add_tcase(suite, tc);
    return suite;
}
