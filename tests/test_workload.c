/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "history.h"
#include "qcheck.h"
#include "run.h"

START_TEST(text_becomes_operations)
{
    struct workload w;
    char error[WORKLOAD_ERROR_BYTES], text[64];
    ck_assert_int_eq(
        workload_parse(
            "t", "image c4k\nwrite 4k 1k 7 # a comment; dance\n\nresize -2c; flush", &w, error),
        0);
    ck_assert_str_eq(w.image, "c4k");
    ck_assert_uint_eq(w.count, 3);
    ck_assert_uint_eq(w.ops[0].guest_off, 4096);
    ck_assert_uint_eq(w.ops[0].length, 1024);
    ck_assert_int_eq(w.ops[1].relative, -1);
    op_text(&w.ops[1], text, sizeof(text));
    ck_assert_str_eq(text, "resize -2c");
    workload_release(&w);
}
END_TEST

START_TEST(wrong_text_is_refused)
{
    static const char *const texts[] = {"write", "write 0 1", "write a b c", "create", "flush 1",
        "dance", "resize", "write -1 2 3", "create 123456789012345678901234567890"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct workload w;
        char error[WORKLOAD_ERROR_BYTES];
        ck_assert_int_eq(workload_parse("t", texts[i], &w, error), -EINVAL);
        ck_assert_ptr_nonnull(strstr(error, "t:1:"));
    }
}
END_TEST

START_TEST(every_kind_of_image_is_healthy)
{
    static const struct check_options options = {.threads = 1, .deep = true};
    for (size_t i = 0; i < image_kind_count; i++) {
        struct io *io;
        struct report report;
        ck_assert_int_eq(image_kind_build(&image_kinds[i], &io), 0);
        report_init(&report, 10);
        check_image(io, NULL, &options, &report);
        ck_assert_msg(report_verdict(&report) <= VERDICT_LEAKS ||
                          strcmp(image_kinds[i].name, "lazy-dirty") == 0,
            "%s: %s", image_kinds[i].name, verdict_name(report_verdict(&report)));
        report_release(&report);
        io_close(io);
    }
}
END_TEST

START_TEST(every_workload_does_what_it_means)
{
    for (size_t i = 0; i < workload_row_count; i++) {
        struct history h;
        ck_assert_int_eq(run_history(workload_rows[i].name, "c512", false, NULL, &h), 0);
        ck_assert_msg(h.live.invariant == INVARIANT_NONE, "%s: %s", h.workload.name, h.live.text);
        bool repair = strcmp(workload_rows[i].name, "repair") == 0; /* of a sound image: nothing */
        ck_assert(repair == (h.recording.count == 0));
        history_release(&h);
    }
}
END_TEST

START_TEST(one_bit_refcounts_hold_no_snapshot)
{
    struct history h;
    ck_assert_int_eq(run_history("seq-cw", "rc1", false, NULL, &h), 0);
    ck_assert_int_eq(h.results[0], -EOVERFLOW);
    ck_assert_int_eq(h.results[1], 0);
    history_release(&h);
}
END_TEST

START_TEST(random_workloads_repeat)
{
    struct workload a, b, c;
    char error[WORKLOAD_ERROR_BYTES];
    ck_assert_int_eq(workload_find("rnd-5-20", &a, error), 0);
    ck_assert_int_eq(workload_find("rnd-5-20", &b, error), 0);
    ck_assert_int_eq(workload_find("rnd-6-20", &c, error), 0);
    ck_assert_uint_eq(a.count, 20);
    ck_assert_mem_eq(a.ops, b.ops, a.count * sizeof(*a.ops));
    ck_assert_mem_ne(a.ops, c.ops, a.count * sizeof(*a.ops));
    workload_release(&a);
    workload_release(&b);
    workload_release(&c);
}
END_TEST

Suite *test_workload(void);
Suite *test_workload(void)
{
    Suite *suite = suite_create("workload");
    TCase *tcase = tcase_create("workload");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, text_becomes_operations);
    tcase_add_test(tcase, wrong_text_is_refused);
    tcase_add_test(tcase, every_kind_of_image_is_healthy);
    tcase_add_test(tcase, every_workload_does_what_it_means);
    tcase_add_test(tcase, one_bit_refcounts_hold_no_snapshot);
    tcase_add_test(tcase, random_workloads_repeat);
    suite_add_tcase(suite, tcase);
    return suite;
}
