/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <string.h>

#include "engine_kit.h"
#include "fault_io.h"
#include "options.h"

/* Opens with that header field changed; the result and what was said. */
static int open_poked(unsigned at, unsigned bytes, uint64_t value, struct image_error *why)
{
    struct io *io;
    struct image *img = kit_new(1 << 20, "cluster_size=4k", &io);
    image_abandon(img);
    if (bytes == 4)
        kit_poke32(io, at, (uint32_t)value);
    else
        kit_poke64(io, at, value);
    int ret = image_open(io, IMAGE_WRITE, &img, why);
    uint8_t byte = 1;
    if (ret == 0) {
        ret = image_write(img, 0, &byte, 1);
        *why = img->error;
        image_abandon(img);
    }
    io_close(io);
    return ret;
}

START_TEST(what_cannot_be_handled_is_refused_with_a_reason)
{
    static const struct {
        unsigned at, bytes;
        uint64_t value;
        int err;
        const char *says;
    } rows[] = {
        {0, 4, 1, -EILSEQ, "not a qcow2"},
        {QCOW2_HDR_VERSION, 4, 4, -ENOTSUP, "version 4"},
        {QCOW2_HDR_CLUSTER_BITS, 4, 40, -EUCLEAN, "impossible"},
        {QCOW2_HDR_REFCOUNT_ORDER, 4, 7, -EUCLEAN, "impossible"},
        {QCOW2_HDR_CRYPT_METHOD, 4, 1, -ENOTSUP, "encrypted"},
        {QCOW2_HDR_SIZE, 8, UINT64_MAX, -EUCLEAN, "does not fit"},
        {QCOW2_HDR_SIZE, 8, UINT64_C(1) << 40, -EUCLEAN, "does not fit"},
        {QCOW2_HDR_L1_SIZE, 4, UINT32_MAX, -EUCLEAN, "does not fit"},
        {QCOW2_HDR_L1_OFF, 8, 12345, -EUCLEAN, "L1 table"},
        {QCOW2_HDR_L1_OFF, 8, UINT64_MAX << 12, -EUCLEAN, "L1 table"},
        {QCOW2_HDR_REFTABLE_OFF, 8, UINT64_C(1) << 50, -EUCLEAN, "refcount table"},
        {QCOW2_HDR_REFTABLE_CLUSTERS, 4, UINT32_MAX, -EUCLEAN, "refcount table"},
        {QCOW2_HDR_SNAPSHOT_COUNT, 4, UINT32_MAX, -EUCLEAN, "too many"},
        {QCOW2_HDR_SNAPSHOT_COUNT, 4, 3, -EUCLEAN, "snapshot table"},
        {QCOW2_HDR_INCOMPATIBLE, 8, 1, -EUCLEAN, "qcheck --repair"},
        {QCOW2_HDR_INCOMPATIBLE, 8, 2, -EUCLEAN, "qcheck --repair"},
        {QCOW2_HDR_INCOMPATIBLE, 8, 4, -ENOTSUP, "data file"},
        {QCOW2_HDR_INCOMPATIBLE, 8, 1 << 9, -ENOTSUP, "incompatible"},
        {QCOW2_HDR_LENGTH, 4, 107, -EUCLEAN, "header length"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct image_error why = {""};
        int ret = open_poked(rows[i].at, rows[i].bytes, rows[i].value, &why);
        ck_assert_msg(ret == rows[i].err, "row %zu: %d %s", i, ret, why.text);
        ck_assert_msg(strstr(why.text, rows[i].says), "row %zu: %s", i, why.text);
    }
}
END_TEST

START_TEST(unknown_autoclear_bits_go_before_the_first_change)
{
    struct io *io;
    struct image *img = kit_new(1 << 20, "", &io);
    image_abandon(img);
    kit_poke64(io, QCOW2_HDR_AUTOCLEAR, 0xf0);
    img = kit_open(io);
    ck_assert(kit_is(img, 0, 0, 100));
    ck_assert_uint_eq(kit_peek64(io, QCOW2_HDR_AUTOCLEAR), 0xf0);
    kit_put(img, 0, 1, 1);
    ck_assert_uint_eq(kit_peek64(io, QCOW2_HDR_AUTOCLEAR), 0);
    kit_close(img, io);
}
END_TEST

START_TEST(lazy_images_are_dirty_between_the_first_change_and_the_end)
{
    struct io *io;
    struct image *img = kit_new(1 << 20, "lazy_refcounts=on", &io);
    ck_assert_uint_eq(kit_peek64(io, QCOW2_HDR_INCOMPATIBLE), 0);
    kit_put(img, 0, 1, 1);
    ck_assert_uint_eq(kit_peek64(io, QCOW2_HDR_INCOMPATIBLE), QCOW2_INCOMPAT_DIRTY);
    kit_snap(img, "a");
    kit_must(img, image_flush(img));
    ck_assert_uint_eq(kit_peek64(io, QCOW2_HDR_INCOMPATIBLE), QCOW2_INCOMPAT_DIRTY);
    kit_close(img, io);
}
END_TEST

/* The write of the dirty bit fails: counts must not lag behind before it is there. */
START_TEST(lazy_images_try_again_for_the_dirty_bit)
{
    struct io *io;
    struct fault_io fault;
    struct image *img = kit_new(1 << 20, "lazy_refcounts=on", &io);
    image_abandon(img);
    fault_io_init(&fault, io);
    img = kit_open(&fault.io);
    fault.left = 2; /* after the question for the size */
    uint8_t byte = 1;
    ck_assert_int_eq(image_write(img, 0, &byte, 1), -ENOSPC);
    ck_assert_uint_eq(kit_peek64(io, QCOW2_HDR_INCOMPATIBLE), 0);
    kit_put(img, 0, 1, 1);
    ck_assert_uint_eq(kit_peek64(io, QCOW2_HDR_INCOMPATIBLE), QCOW2_INCOMPAT_DIRTY);
    kit_close(img, io);
}
END_TEST

START_TEST(shrinking_leaves_nothing_mapped_behind_the_end)
{
    struct io *io;
    struct image *img = kit_new(40 << 10, "cluster_size=512", &io);
    kit_must(img, image_resize(img, 80 << 10));
    kit_put(img, 50 << 10, 7, 4096);
    kit_must(img, image_resize(img, 20 << 10));
    for (uint32_t i = 1; i < img->header.l1_size; i++)
        ck_assert_uint_eq(img->l1[i], 0);
    kit_close(img, io);
}
END_TEST

static void expect_barriers(const struct fault_io *count, unsigned long *seen, unsigned expected)
{
    ck_assert_msg(count->flushes - *seen == expected, "after %lu barriers: %lu, not %u", *seen,
        count->flushes - *seen, expected);
    *seen = count->flushes;
}

/* Barriers are counted so that one more or one less is noticed; the reasons are in the engine. */
START_TEST(barriers_per_call)
{
    struct io *io;
    struct fault_io count;
    struct image *img = kit_new(4 << 20, "", &io);
    image_abandon(img);
    fault_io_init(&count, io);
    img = kit_open(&count.io);
    unsigned long seen = 0;
    kit_put(img, 0, 1, 1 << 20); /* 16 new clusters */
    expect_barriers(&count, &seen, 1);
    kit_put(img, 5, 2, 1 << 19); /* in place */
    expect_barriers(&count, &seen, 0);
    kit_must(img, image_flush(img));
    kit_must(img, image_flush(img));
    expect_barriers(&count, &seen, 1);
    kit_snap(img, "a");
    expect_barriers(&count, &seen, 2);
    kit_put(img, 0, 3, 1 << 20); /* copies */
    expect_barriers(&count, &seen, 1);
    kit_snap(img, "b"); /* one for what was written before */
    expect_barriers(&count, &seen, 3);
    kit_must(img, snapshot_apply(img, 0));
    expect_barriers(&count, &seen, 2);
    kit_must(img, snapshot_delete(img, 0));
    expect_barriers(&count, &seen, 3); /* one for the counts that apply lowered */
    kit_must(img, image_discard(img, 0, 1 << 20));
    expect_barriers(&count, &seen, 0); /* nothing new is pointed to */
    kit_must(img, image_resize(img, 8 << 20));
    expect_barriers(&count, &seen, 2);
    image_abandon(img);
    io_close(io);
}
END_TEST

START_TEST(sizes_as_people_write_them)
{
    uint64_t size;
    ck_assert_int_eq(size_parse("12", &size), 0);
    ck_assert_uint_eq(size, 12);
    ck_assert_int_eq(size_parse("0x10k", &size), 0);
    ck_assert_uint_eq(size, 16384);
    ck_assert_int_eq(size_parse("010", &size), 0); /* not octal */
    ck_assert_uint_eq(size, 10);
    ck_assert_int_eq(size_parse("0x", &size), -EINVAL);
    ck_assert_int_eq(size_parse("08k", &size), 0);
    ck_assert_uint_eq(size, 8192);
    ck_assert_int_eq(size_parse("3T", &size), 0);
    ck_assert_uint_eq(size, UINT64_C(3) << 40);
    ck_assert_int_eq(size_parse("-1", &size), -EINVAL);
    ck_assert_int_eq(size_parse("1kk", &size), -EINVAL);
    ck_assert_int_eq(size_parse("", &size), -EINVAL);
    ck_assert_int_eq(size_parse("99999999999999999999", &size), -ERANGE);
    ck_assert_int_eq(size_parse("20000000T", &size), -ERANGE);
}
END_TEST

START_TEST(new_images_of_all_shapes_are_clean)
{
    static const char *const options[] = {"cluster_size=512", "cluster_size=2M", "refcount_bits=1",
        "refcount_bits=64,cluster_size=512", "compat=0.10", "extended_l2=on,cluster_size=16k",
        "compression_type=zstd,lazy_refcounts=on"};
    static const uint64_t sizes[] = {0, 512, 1 << 20, UINT64_C(100) << 30};
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        for (size_t j = 0; j < sizeof(sizes) / sizeof(sizes[0]); j++) {
            struct io *io;
            struct image *img = kit_new(sizes[j], options[i], &io);
            ck_assert_uint_eq(image_size(img), sizes[j]);
            kit_close(img, io);
        }
    }
    static const char *const bad[] = {"cluster_size=1000", "cluster_size=4M", "refcount_bits=3",
        "refcount_bits=128", "compat=0.10,refcount_bits=8", "extended_l2=on,cluster_size=8k"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct image_options o = image_options_default(1 << 20);
        struct image_error why;
        struct io *io;
        ck_assert_int_eq(io_mem_open(0, &io), 0);
        ck_assert_int_eq(image_options_parse(bad[i], &o, &why), 0);
        ck_assert_int_eq(image_create(io, &o, &why), -EINVAL);
        io_close(io);
    }
}
END_TEST

Suite *test_image(void);
Suite *test_image(void)
{
    Suite *suite = suite_create("image");
    TCase *tc = tcase_create("image");
    tcase_add_test(tc, what_cannot_be_handled_is_refused_with_a_reason);
    tcase_add_test(tc, unknown_autoclear_bits_go_before_the_first_change);
    tcase_add_test(tc, lazy_images_are_dirty_between_the_first_change_and_the_end);
    tcase_add_test(tc, lazy_images_try_again_for_the_dirty_bit);
    tcase_add_test(tc, shrinking_leaves_nothing_mapped_behind_the_end);
    tcase_add_test(tc, barriers_per_call);
    tcase_add_test(tc, sizes_as_people_write_them);
    tcase_add_test(tc, new_images_of_all_shapes_are_clean);
    suite_add_tcase(suite, tc);
    return suite;
}
