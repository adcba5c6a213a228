/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine_kit.h"
#include "map.h"

/* Reads and writes at every kind of boundary against a plain array. */
static void random_writes(const char *options, uint64_t size, unsigned seed)
{
    struct io *io;
    struct image *img = kit_new(size, options, &io);
    uint8_t *model = calloc(1, size), *buf = malloc(size);
    for (int i = 0; i < 150; i++) {
        uint64_t at = (unsigned)rand_r(&seed) % size;
        uint64_t length = 1 + (unsigned)rand_r(&seed) % 20000;
        length = length < size - at ? length : size - at;
        unsigned what = (unsigned)rand_r(&seed) % 8;
        int byte = 1 + rand_r(&seed) % 255;
        if (what == 0 && img->snaps.count < 3) {
            kit_snap(img, "s");
        } else if (what == 1 && img->snaps.count > 0) {
            kit_must(img, snapshot_delete(img, 0));
        } else {
            kit_put(img, at, byte, length);
            memset(model + at, byte, length);
        }
        if (what == 2)
            kit_must(img, image_flush(img));
        kit_must(img, image_read(img, 0, buf, size));
        ck_assert_msg(memcmp(buf, model, size) == 0, "%s: step %d", options, i);
    }
    free(model), free(buf);
    kit_close(img, io);
}

START_TEST(writes_at_any_boundary)
{
    static const char *const options[] = {"cluster_size=512", "cluster_size=4k,refcount_bits=8", "",
        "cluster_size=16k,extended_l2=on", "lazy_refcounts=on,cluster_size=1k"};
    random_writes(options[_i], 500000 / 512 * 512, 77);
}
END_TEST

START_TEST(subclusters)
{
    struct io *io;
    struct image *img = kit_new(1 << 20, "extended_l2=on", &io); /* 2 KiB each */
    struct qcow2_l2_entry entry;
    uint8_t l2[65536];
    kit_put(img, 5000, 1, 100);
    kit_must(img, map_read_l2(img, img->l1[0], l2));
    kit_must(img, map_entry(img, l2, 0, &entry));
    ck_assert_uint_eq(entry.bitmap, 1 << 2);
    kit_put(img, 6100, 2, 100); /* touches the next one */
    kit_must(img, map_read_l2(img, img->l1[0], l2));
    kit_must(img, map_entry(img, l2, 0, &entry));
    ck_assert_uint_eq(entry.bitmap, 3 << 2);
    kit_must(img, image_discard(img, 4096, 2048));
    ck_assert(kit_is(img, 0, 0, 6144) && kit_is(img, 6144, 2, 56));
    kit_must(img, image_discard(img, 0, 65536)); /* nothing is left: the cluster goes */
    kit_must(img, map_read_l2(img, img->l1[0], l2));
    ck_assert_uint_eq(load_be64(l2), 0);
    ck_assert_uint_eq(map_subclusters(&img->geo, 0, 65536), UINT32_MAX);
    ck_assert_uint_eq(map_subclusters(&img->geo, 2047, 2), 3);
    kit_close(img, io);
}
END_TEST

START_TEST(damaged_entries_are_errors)
{
    static const uint64_t entries[] = {
        UINT64_C(0x8000000000000000) | UINT64_C(1) << 40, /* outside the file */
        UINT64_C(0x8000000000010200),                     /* not aligned */
        UINT64_C(0x2000000000010000),                     /* reserved */
        UINT64_C(0x7fffffffffffffff),                     /* compressed, anywhere */
        UINT64_C(0xc000000000010000),                     /* compressed and COPIED */
    };
    uint8_t byte = 1;
    for (size_t i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
        struct io *io;
        struct image *img = kit_new(1 << 20, "", &io);
        kit_put(img, 0, 1, 1);
        kit_must(img, image_flush(img));
        kit_poke64(io, img->l1[0] & QCOW2_OFFSET_MASK, entries[i]);
        struct snapshot_info info = {.name = "s"};
        ck_assert_int_eq(image_read(img, 0, &byte, 1), -EUCLEAN);
        ck_assert_int_eq(image_write(img, 0, &byte, 1), -EUCLEAN);
        ck_assert_int_eq(snapshot_create(img, &info), -EUCLEAN);
        ck_assert_ptr_nonnull(strstr(image_error(img), "qcheck"));
        image_abandon(img);
        io_close(io);
    }
}
END_TEST

/* Whatever an entry claims, metadata is never written over. */
START_TEST(data_over_metadata_is_refused)
{
    struct io *io;
    struct image *img = kit_new(1 << 20, "", &io);
    kit_put(img, 0, 1, 1);
    kit_must(img, image_flush(img));
    uint64_t l2_off = img->l1[0] & QCOW2_OFFSET_MASK;
    uint64_t targets[] = {img->header.reftable_off, img->header.l1_off, l2_off, img->refs.table[0]};
    for (size_t i = 0; i < sizeof(targets) / sizeof(targets[0]); i++) {
        uint8_t byte = 1;
        kit_poke64(io, l2_off, targets[i] | QCOW2_ENTRY_COPIED);
        ck_assert_int_eq(image_write(img, 0, &byte, 1), -EUCLEAN);
        ck_assert_ptr_nonnull(strstr(image_error(img), "qcheck"));
    }
    image_abandon(img);
    io_close(io);
}
END_TEST

START_TEST(ranges_past_the_end)
{
    struct io *io;
    struct image *img = kit_new(1024, "", &io);
    uint8_t byte = 0;
    ck_assert_int_eq(image_read(img, 1024, &byte, 1), -ERANGE);
    ck_assert_int_eq(image_write(img, UINT64_MAX, &byte, 1), -ERANGE);
    ck_assert_int_eq(image_discard(img, 1000, 25), -ERANGE);
    ck_assert_int_eq(image_resize(img, 1000), -EINVAL);
    ck_assert_int_eq(image_resize(img, UINT64_C(1) << 62), -EFBIG);
    kit_must(img, image_read(img, 1024, &byte, 0));
    kit_close(img, io);
}
END_TEST

Suite *test_map(void);
Suite *test_map(void)
{
    Suite *suite = suite_create("map");
    TCase *tc = tcase_create("map");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, writes_at_any_boundary, 0, 5);
    tcase_add_test(tc, subclusters);
    tcase_add_test(tc, damaged_entries_are_errors);
    tcase_add_test(tc, data_over_metadata_is_refused);
    tcase_add_test(tc, ranges_past_the_end);
    suite_add_tcase(suite, tc);
    return suite;
}
