/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>

#include "engine_kit.h"
#include "refcount.h"

static uint64_t count_of(struct image *img, uint64_t host_off)
{
    uint64_t count = 0;
    kit_must(img, refcount_get(img, cluster_of(&img->geo, host_off), &count));
    return count;
}

/* 64-bit counts in 512-byte clusters: a block covers 32 KiB, a table cluster 2 MiB. */
START_TEST(blocks_and_table_grow)
{
    struct io *io;
    struct image *img = kit_new(6 << 20, "cluster_size=512,refcount_bits=64", &io);
    uint64_t before = img->header.reftable_off;
    for (uint64_t at = 0; at < 6 << 20; at += 1 << 20)
        kit_put(img, at, 1 + (int)(at >> 20), 1 << 20);
    ck_assert_uint_ne(img->header.reftable_off, before);
    kit_must(img, image_flush(img));
    ck_assert_uint_eq(count_of(img, before), 0); /* the old table is free again */
    for (uint64_t at = 0; at < 6 << 20; at += 1 << 20)
        ck_assert(kit_is(img, at, 1 + (int)(at >> 20), 1 << 20));
    kit_close(img, io);
}
END_TEST

/* A run that is longer than what a block covers. */
START_TEST(runs_cross_blocks)
{
    struct io *io;
    struct image *img = kit_new(1 << 20, "cluster_size=512,refcount_bits=64", &io);
    uint64_t host_off;
    kit_must(img, image_begin(img, true));
    kit_must(img, refcount_alloc(img, 5000, &host_off));
    for (uint64_t i = 0; i < 5000; i++)
        ck_assert_uint_eq(count_of(img, host_off + i * 512), 1);
    kit_must(img, refcount_write(img));
    kit_must(img, refcount_add(img, cluster_of(&img->geo, host_off), 5000, -1));
    kit_must(img, image_end(img, refcount_write(img)));
    kit_close(img, io);
}
END_TEST

START_TEST(what_is_staged_can_be_forgotten)
{
    struct io *io;
    struct image *img = kit_new(1 << 20, "", &io);
    uint64_t a, b;
    kit_must(img, image_begin(img, true));
    kit_must(img, refcount_alloc(img, 3, &a));
    ck_assert_uint_eq(count_of(img, a), 1);
    image_end(img, -EIO);
    ck_assert_uint_eq(count_of(img, a), 0);
    kit_must(img, refcount_alloc(img, 1, &b));
    ck_assert_uint_eq(b, a);
    image_end(img, -EIO);
    ck_assert_int_eq(refcount_add(img, 1000, 1, -1), -EUCLEAN); /* below 0 */
    image_end(img, -EIO);
    kit_close(img, io);
}
END_TEST

/* What a write gave up is not used again before it is durable. */
START_TEST(dropped_clusters_wait_for_the_barrier)
{
    struct io *io;
    struct image *img = kit_new(1 << 20, "", &io);
    kit_put(img, 0, 1, 65536);
    kit_must(img, image_flush(img));
    uint8_t l2[65536];
    ck_assert_int_eq(io_read(io, img->l1[0] & QCOW2_OFFSET_MASK, l2, sizeof(l2)), 0);
    uint64_t host_off = load_be64(l2) & QCOW2_OFFSET_MASK;
    kit_must(img, image_discard(img, 0, 65536));
    ck_assert_uint_eq(count_of(img, host_off), 1);
    kit_must(img, image_flush(img));
    ck_assert_uint_eq(count_of(img, host_off), 0);
    kit_put(img, 1 << 19, 2, 1);
    ck_assert_uint_eq(count_of(img, host_off), 1);
    kit_close(img, io);
}
END_TEST

START_TEST(a_table_that_lies_is_an_error)
{
    struct io *io;
    struct image *img = kit_new(1 << 20, "", &io);
    image_abandon(img);
    uint64_t entry = 65536;
    static const uint64_t lies[] = {1, UINT64_C(1) << 50, 0x10200, 0x30000 | 7};
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        uint8_t byte = 1;
        kit_poke64(io, entry, lies[i]);
        img = kit_open(io);
        ck_assert_int_eq(image_write(img, 0, &byte, 1), -EUCLEAN);
        image_abandon(img);
    }
    io_close(io);
}
END_TEST

Suite *test_refcount(void);
Suite *test_refcount(void)
{
    Suite *suite = suite_create("refcount");
    TCase *tc = tcase_create("refcount");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, blocks_and_table_grow);
    tcase_add_test(tc, runs_cross_blocks);
    tcase_add_test(tc, what_is_staged_can_be_forgotten);
    tcase_add_test(tc, dropped_clusters_wait_for_the_barrier);
    tcase_add_test(tc, a_table_that_lies_is_an_error);
    suite_add_tcase(suite, tc);
    return suite;
}
