/* SPDX-License-Identifier: MIT
 *
 * A short run of tests/interplay.c, over all its kinds of images. */
#include <check.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "proc.h"

START_TEST(a_run_over_all_kinds)
{
    char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
    ck_assert_int_gt(length, 0);
    path[length] = '\0';
    *strrchr(path, '/') = '\0';
    struct proc_result result = proc_run("%s/interplay 420 1", path);
    ck_assert_msg(result.exit_code == 0, "%s%s", result.out, result.err);
    proc_free(&result);
}
END_TEST

Suite *test_interplay(void);
Suite *test_interplay(void)
{
    Suite *suite = suite_create("interplay");
    TCase *tc = tcase_create("interplay");
    tcase_set_timeout(tc, 600);
    tcase_add_test(tc, a_run_over_all_kinds);
    suite_add_tcase(suite, tc);
    return suite;
}
