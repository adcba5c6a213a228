/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <string.h>

#include "fault.h"
#include "record.h"

START_TEST(everything_is_recorded_in_order)
{
    struct recording r = {.op = 3};
    struct io *mem, *io;
    uint8_t back[4];
    ck_assert_int_eq(io_mem_open(1024, &mem), 0);
    ck_assert_int_eq(record_open(mem, &r, &io), 0);
    ck_assert_int_eq(io_write(io, 100, "abcd", 4), 0);
    ck_assert_int_eq(io_flush(io), 0);
    ck_assert_int_eq(io_discard(io, 512, 512), 0);
    ck_assert_int_eq(io_resize(io, 2048), 0);
    ck_assert_int_eq(io_read(io, 100, back, 4), 0);
    ck_assert_mem_eq(back, "abcd", 4);
    ck_assert_uint_eq(r.count, 4);
    ck_assert_int_eq(r.list[0].kind, REQUEST_WRITE);
    ck_assert_mem_eq(r.list[0].data, "abcd", 4);
    ck_assert_uint_eq(r.list[0].op, 3);
    ck_assert_int_eq(r.list[1].kind, REQUEST_FLUSH);
    ck_assert_int_eq(r.list[2].kind, REQUEST_DISCARD);
    ck_assert_uint_eq(r.list[3].host_off, 2048);
    ck_assert_ptr_null(r.list[0].backtrace);
    io_close(io);
    recording_release(&r);
}
END_TEST

#ifdef HAVE_LIBUNWIND
START_TEST(backtraces_name_the_callers)
{
    struct recording r = {.backtraces = true};
    struct io *mem, *io;
    ck_assert_int_eq(io_mem_open(0, &mem), 0);
    ck_assert_int_eq(record_open(mem, &r, &io), 0);
    ck_assert_int_eq(io_write(io, 0, "x", 1), 0);
    ck_assert_ptr_nonnull(strstr(r.list[0].backtrace, "backtraces_name_the_callers"));
    io_close(io);
    recording_release(&r);
}
END_TEST
#endif

START_TEST(requests_move_and_go)
{
    struct recording r = {0}, copy;
    for (uint64_t i = 0; i < 5; i++) {
        struct request write = {
            .kind = REQUEST_WRITE, .host_off = i, .length = 1, .data = (uint8_t *)&i};
        ck_assert_int_eq(recording_add(&r, &write), 0);
    }
    ck_assert_int_eq(recording_copy(&r, &copy), 0);
    recording_move(&copy, 4, 1); /* 0 4 1 2 3 */
    recording_move(&copy, 0, 3); /* 4 1 0 2 3 */
    recording_remove(&copy, 1);  /* 4 0 2 3 */
    static const uint64_t want[] = {4, 0, 2, 3};
    ck_assert_uint_eq(copy.count, 4);
    for (unsigned i = 0; i < 4; i++)
        ck_assert_uint_eq(copy.list[i].host_off, want[i]);
    recording_release(&copy);
    recording_release(&r);
}
END_TEST

Suite *test_record(void);
Suite *test_record(void)
{
    Suite *suite = suite_create("record");
    TCase *tcase = tcase_create("record");
    tcase_add_test(tcase, everything_is_recorded_in_order);
#ifdef HAVE_LIBUNWIND
    tcase_add_test(tcase, backtraces_name_the_callers);
#endif
    tcase_add_test(tcase, requests_move_and_go);
    suite_add_tcase(suite, tcase);
    return suite;
}
