/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io.h"

enum { ROOM = 5 << 20 };

/* Random calls on an image and on branches of it, against plain arrays. */
START_TEST(branches_are_independent)
{
    struct io *io[3];
    uint8_t *model[3], *buf = malloc(ROOM);
    uint64_t size[3] = {3 << 20, 3 << 20, 3 << 20};
    unsigned seed = 5;
    ck_assert_int_eq(io_mem_open(size[0], &io[0]), 0);
    ck_assert_int_eq(io_mem_branch(io[0], &io[1]), 0);
    ck_assert_int_eq(io_mem_branch(io[1], &io[2]), 0);
    for (int i = 0; i < 3; i++)
        model[i] = calloc(1, ROOM);
    for (int step = 0; step < 600; step++) {
        int i = rand_r(&seed) % 3;
        uint64_t at = (unsigned)rand_r(&seed) % (4 << 20), length = (unsigned)rand_r(&seed) % 20000;
        switch (rand_r(&seed) % 4) {
        case 0:
            ck_assert_int_eq(io_resize(io[i], at), 0);
            size[i] = at;
            memset(model[i] + at, 0, ROOM - at);
            break;
        case 1:
            ck_assert_int_eq(io_discard(io[i], at, length), 0);
            memset(model[i] + at, 0, length);
            break;
        default:
            memset(buf, step, length);
            ck_assert_int_eq(io_write(io[i], at, buf, length), 0);
            memset(model[i] + at, step, length);
            size[i] = length && at + length > size[i] ? at + length : size[i];
        }
        uint64_t now;
        ck_assert_int_eq(io_size(io[i], &now), 0);
        ck_assert_uint_eq(now, size[i]);
    }
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(io_read(io[i], 0, buf, size[i]), 0);
        ck_assert_mem_eq(buf, model[i], size[i]);
        free(model[i]);
        io_close(io[i]);
    }
    free(buf);
}
END_TEST

START_TEST(ends_and_holes)
{
    struct io *io;
    uint8_t bytes[10] = {1};
    uint64_t start, end;
    ck_assert_int_eq(io_mem_open(100, &io), 0);
    ck_assert_int_eq(io_read(io, 95, bytes, 10), -ERANGE);
    ck_assert_int_eq(io_read_padded(io, 95, bytes, 10), 0);
    ck_assert_int_eq(io_write(io, UINT64_MAX - 3, bytes, 10), -EFBIG);
    ck_assert_int_eq(io_write(io, (5 << 20) + 17, "x", 1), 0);
    ck_assert_int_eq(io_extents(io, 0, &start, &end), 0);
    ck_assert_uint_eq(start, 5 << 20);
    ck_assert_uint_eq(end, (5 << 20) + 18);
    ck_assert_int_eq(io_extents(io, end, &start, &end), 0);
    ck_assert_uint_eq(start, (5 << 20) + 18);
    io_close(io);
}
END_TEST

/* What was never written costs nothing when it goes, however long it is. */
START_TEST(holes_are_discarded)
{
    const uint64_t size = UINT64_C(1) << 40;
    struct io *io;
    uint64_t start, end;
    ck_assert_int_eq(io_mem_open(size, &io), 0);
    ck_assert_int_eq(io_write(io, 0, "a", 1), 0);
    ck_assert_int_eq(io_write(io, size - 1, "z", 1), 0);
    ck_assert_int_eq(io_discard(io, 1 << 20, size - (2 << 20)), 0);
    ck_assert_int_eq(io_extents(io, 4096, &start, &end), 0);
    ck_assert_uint_eq(start, size - 4096);
    ck_assert_int_eq(io_discard(io, 0, size), 0);
    ck_assert_int_eq(io_extents(io, 0, &start, &end), 0);
    ck_assert_uint_eq(start, size);
    io_close(io);
}
END_TEST

Suite *test_io_mem(void);
Suite *test_io_mem(void)
{
    Suite *suite = suite_create("io_mem");
    TCase *tc = tcase_create("io_mem");
    tcase_add_test(tc, branches_are_independent);
    tcase_add_test(tc, ends_and_holes);
    tcase_add_test(tc, holes_are_discarded);
    suite_add_tcase(suite, tc);
    return suite;
}
