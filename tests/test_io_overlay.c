/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io.h"

enum { BASE_BYTES = 40000, ROOM = 100000 };

static struct io *new_base(void)
{
    struct io *base;
    uint8_t bytes[BASE_BYTES];
    memset(bytes, 0xaa, sizeof(bytes));
    ck_assert_int_eq(io_mem_open(0, &base), 0);
    ck_assert_int_eq(io_write(base, 0, bytes, sizeof(bytes)), 0);
    return base;
}

static uint8_t byte_at(struct io *io, uint64_t host_off)
{
    uint8_t byte = 1;
    ck_assert_int_eq(io_read(io, host_off, &byte, 1), 0);
    return byte;
}

START_TEST(the_base_never_changes)
{
    struct io *base = new_base(), *view;
    uint64_t size;
    ck_assert_int_eq(io_overlay_open(base, &view), 0);
    ck_assert_int_eq(io_write(view, 100, "xyz", 3), 0);
    ck_assert_int_eq(io_write(view, 50000, "end", 3), 0);
    ck_assert_int_eq(io_resize(view, 60000), 0);
    ck_assert_int_eq(io_discard(view, 0, 8192), 0);
    ck_assert_int_eq(io_flush(view), 0);
    ck_assert_int_eq(io_size(view, &size), 0);
    ck_assert_uint_eq(size, 60000);
    io_close(view);
    ck_assert_int_eq(io_size(base, &size), 0);
    ck_assert_uint_eq(size, BASE_BYTES);
    for (uint64_t at = 0; at < BASE_BYTES; at++)
        ck_assert_uint_eq(byte_at(base, at), 0xaa);
    io_close(base);
}
END_TEST

START_TEST(zeros_hide_what_is_below)
{
    struct io *base = new_base(), *view;
    uint8_t zeros[8192] = {0};
    ck_assert_int_eq(io_overlay_open(base, &view), 0);
    ck_assert_int_eq(io_write(view, 4096, zeros, sizeof(zeros)), 0);
    ck_assert_int_eq(io_write(view, 20001, zeros, 1), 0);
    ck_assert_uint_eq(byte_at(view, 4095), 0xaa);
    ck_assert_uint_eq(byte_at(view, 4096), 0);
    ck_assert_uint_eq(byte_at(view, 12287), 0);
    ck_assert_uint_eq(byte_at(view, 12288), 0xaa);
    ck_assert_uint_eq(byte_at(view, 20000), 0xaa);
    ck_assert_uint_eq(byte_at(view, 20001), 0);
    ck_assert_uint_eq(byte_at(view, 20002), 0xaa);
    io_close(view);
    io_close(base);
}
END_TEST

START_TEST(what_was_cut_off_does_not_come_back)
{
    struct io *base = new_base(), *view;
    uint8_t byte;
    ck_assert_int_eq(io_overlay_open(base, &view), 0);
    ck_assert_int_eq(io_resize(view, 10000), 0);
    ck_assert_int_eq(io_read(view, 10000, &byte, 1), -ERANGE);
    ck_assert_int_eq(io_resize(view, 30000), 0);
    ck_assert_uint_eq(byte_at(view, 9999), 0xaa);
    ck_assert_uint_eq(byte_at(view, 10000), 0);
    ck_assert_uint_eq(byte_at(view, 29999), 0);
    io_close(view);
    io_close(base);
}
END_TEST

/* What lies in no extent is zeros. */
static void check_extents(struct io *view, const uint8_t *want, uint64_t size)
{
    uint64_t start, end;
    for (uint64_t at = 0; at < size; at = end) {
        ck_assert_int_eq(io_extents(view, at, &start, &end), 0);
        ck_assert_uint_ge(start, at);
        ck_assert(end > at && end <= size && start <= end);
        while (at < start && want[at] == 0)
            at++;
        ck_assert_msg(at == start, "0x%x is said to be in a hole", (unsigned)at);
    }
}

static struct io *base_with_holes(uint8_t *want)
{
    struct io *base = new_base();
    ck_assert_int_eq(io_discard(base, 8192, 20480), 0);
    memset(want, 0xaa, BASE_BYTES);
    memset(want + 8192, 0, 20480);
    return base;
}

/* Random calls on a view and on a plain array. */
START_TEST(like_a_plain_array)
{
    uint8_t *want = calloc(1, ROOM), *got = malloc(ROOM), *buf = malloc(ROOM);
    struct io *base = base_with_holes(want), *view;
    uint64_t size = BASE_BYTES;
    unsigned seed = 7;
    ck_assert_int_eq(io_overlay_open(base, &view), 0);
    for (int step = 0; step < 3000; step++) {
        uint64_t at = (uint64_t)rand_r(&seed) % (ROOM - 9000);
        size_t length = (size_t)rand_r(&seed) % 9000;
        if (rand_r(&seed) % 8 == 0) {
            ck_assert_int_eq(io_resize(view, at), 0);
            if (at < size)
                memset(want + at, 0, size - at);
            size = at;
        } else {
            memset(buf, rand_r(&seed) % 3, length);
            ck_assert_int_eq(io_write(view, at, buf, length), 0);
            memcpy(want + at, buf, length);
            size = length > 0 && at + length > size ? at + length : size;
        }
        ck_assert_int_eq(io_read(view, 0, got, size), 0);
        ck_assert_msg(memcmp(want, got, size) == 0, "step %d of seed 7", step);
        check_extents(view, want, size);
    }
    free(want);
    free(got);
    free(buf);
    io_close(view);
    io_close(base);
}
END_TEST

/* A view of an image of TiB with something written at its end is as fast as the image. */
START_TEST(holes_cost_nothing)
{
    const uint64_t size = UINT64_C(1) << 42;
    struct io *base, *view;
    uint64_t start, end;
    ck_assert_int_eq(io_mem_open(size, &base), 0);
    ck_assert_int_eq(io_write(base, size / 2, "x", 1), 0);
    ck_assert_int_eq(io_overlay_open(base, &view), 0);
    ck_assert_int_eq(io_write(view, size - 1, "y", 1), 0);
    for (int i = 0; i < 100000; i++)
        ck_assert_uint_eq(byte_at(view, size / 2 + (uint64_t)i % 2), i % 2 ? 0 : 'x');
    ck_assert_int_eq(io_extents(view, 0, &start, &end), 0);
    ck_assert_uint_eq(start, size / 2);
    ck_assert_int_eq(io_extents(view, end, &start, &end), 0);
    ck_assert_uint_eq(start, size - 4096);
    ck_assert_uint_eq(end, size);
    io_close(view);
    io_close(base);
}
END_TEST

Suite *test_io_overlay(void);
Suite *test_io_overlay(void)
{
    Suite *suite = suite_create("io_overlay");
    TCase *tc = tcase_create("io_overlay");
    tcase_add_test(tc, the_base_never_changes);
    tcase_add_test(tc, zeros_hide_what_is_below);
    tcase_add_test(tc, what_was_cut_off_does_not_come_back);
    tcase_add_test(tc, like_a_plain_array);
    tcase_add_test(tc, holes_cost_nothing);
    suite_add_tcase(suite, tc);
    return suite;
}
