/* SPDX-License-Identifier: MIT
 *
 * The pre-deploy gate: policies by name and from files, the options, and which state wins.  What
 * each rule refuses is in the corpus. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "corpus.h"
#include "deploy.h"
#include "proc.h"

static unsigned count_allowed(const struct deploy_policy *policy)
{
    unsigned count = 0;
    for (int check = 0; check < CHECK_COUNT; check++)
        count += policy->allowed[check];
    return count;
}

START_TEST(policies_by_name)
{
    struct deploy_policy policy = {0};
    char error[DEPLOY_ERROR_BYTES] = "";
    ck_assert_int_eq(deploy_policy_load(NULL, &policy, error), 0);
    ck_assert_int_eq(deploy_policy_load("strict", &policy, error), 0);
    ck_assert_uint_eq(count_allowed(&policy), 0);
    ck_assert_int_eq(deploy_policy_load("local", &policy, error), 0);
    ck_assert_uint_eq(count_allowed(&policy), 4);
    ck_assert(policy.allowed[CHECK_deploy_snapshots] && policy.allowed[CHECK_deploy_leaks]);
    ck_assert_uint_eq(policy.max_size, 0);
}
END_TEST

START_TEST(rules_and_sizes)
{
    static const struct {
        const char *size;
        uint64_t bytes; /* 0: refused */
    } sizes[] = {{"1", 1}, {"3k", 3 << 10}, {"2M", 2 << 20}, {"1G", 1 << 30},
        {"4T", UINT64_C(4) << 40}, {"0", 0}, {"", 0}, {"-1", 0}, {" 1", 0}, {"1kk", 0}, {"1X", 0},
        {"18446744073709551616", 0}, {"99999999999T", 0}};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct deploy_policy policy = {0};
        char error[DEPLOY_ERROR_BYTES] = "";
        int ret = deploy_max_size(&policy, sizes[i].size, error);
        ck_assert_msg((ret == 0) == (sizes[i].bytes != 0), "'%s': %d", sizes[i].size, ret);
        ck_assert_uint_eq(policy.max_size, sizes[i].bytes);
        ck_assert(ret == 0 || strstr(error, "not a size"));
    }
    static const char *const wrong[] = {"", "backing", "backing_file", "deploy-backing-file",
        "header-magic", "a-name-that-is-longer-than-any-name-of-a-check-can-ever-be"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct deploy_policy policy = {0};
        char error[DEPLOY_ERROR_BYTES] = "";
        ck_assert_msg(deploy_allow(&policy, wrong[i], error) < 0, "'%s'", wrong[i]);
        ck_assert_ptr_nonnull(strstr(error, "no such rule"));
        ck_assert_uint_eq(count_allowed(&policy), 0);
    }
}
END_TEST

static void write_bytes(const char *path, const char *bytes, size_t length)
{
    FILE *out = fopen(path, "w");
    ck_assert(out && fwrite(bytes, 1, length, out) == length && fclose(out) == 0);
}

static void write_text(const char *path, const char *text)
{
    write_bytes(path, text, strlen(text));
}

START_TEST(policies_in_files)
{
    static const struct {
        const char *text;
        unsigned allowed; /* UINT_MAX: refused */
        uint64_t max_size;
    } files[] = {
        {"", 0, 0},
        {"# nothing\n\n  \t\n", 0, 0},
        {"allow leaks\nallow\tbitmaps # two\nmax-size 1M", 2, 1 << 20},
        {"allow leaks\nallow leaks\n", 1, 0},
        {"allow\n", UINT32_MAX, 0},
        {"allow leaks bitmaps\n", UINT32_MAX, 0},
        {"allow nonsense\n", UINT32_MAX, 0},
        {"max-size\n", UINT32_MAX, 0},
        {"max-size much\n", UINT32_MAX, 0},
        {"permit leaks\n", UINT32_MAX, 0},
    };
    char *dir = proc_mkdir(), path[4096];
    snprintf(path, sizeof(path), "%s/policy", dir);
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        struct deploy_policy policy = {0};
        char error[DEPLOY_ERROR_BYTES] = "";
        write_text(path, files[i].text);
        int ret = deploy_policy_load(path, &policy, error);
        bool good = files[i].allowed != UINT32_MAX;
        ck_assert_msg((ret == 0) == good, "%s: %d %s", files[i].text, ret, error);
        ck_assert_uint_eq(count_allowed(&policy), good ? files[i].allowed : 0);
        ck_assert_uint_eq(policy.max_size, files[i].max_size);
        ck_assert((error[0] == '\0') == good);
    }
    struct deploy_policy policy = {.max_size = 7};
    char error[DEPLOY_ERROR_BYTES] = "";
    write_text(path, "max-size 9\n");
    ck_assert_int_eq(deploy_policy_load(path, &policy, error), 0);
    ck_assert_uint_eq(policy.max_size, 7); /* what was said on the command line */
    ck_assert_int_lt(deploy_policy_load(dir, &policy, error), 0);
    ck_assert_int_lt(deploy_policy_load("/nonexistent/policy", &policy, error), 0);
    proc_rmdir(dir);
}
END_TEST

/* Files without an end, and such as have no lines. */
START_TEST(policies_that_are_no_text)
{
    enum { MOST_BYTES = 64 << 10 };
    struct deploy_policy policy = {0};
    char *dir = proc_mkdir(), path[4096], error[DEPLOY_ERROR_BYTES] = "", text[MOST_BYTES + 1];
    snprintf(path, sizeof(path), "%s/policy", dir);
    memset(text, '\n', sizeof(text));
    memcpy(text + sizeof(text) - 12, "allow leaks", 11);
    write_bytes(path, text, MOST_BYTES);
    ck_assert_int_eq(deploy_policy_load(path, &policy, error), 0);
    ck_assert_uint_eq(count_allowed(&policy), 1);
    write_bytes(path, text, MOST_BYTES + 1);
    ck_assert_int_eq(deploy_policy_load(path, &policy, error), -EFBIG);
    ck_assert_int_eq(deploy_policy_load("/dev/zero", &policy, error), -EFBIG);
    ck_assert_ptr_nonnull(strstr(error, "longer than 64 KiB"));
    write_bytes(path, "allow leaks\0bitmaps\n", 20);
    ck_assert_int_eq(deploy_policy_load(path, &policy, error), -EINVAL);
    ck_assert_ptr_nonnull(strstr(error, "not a text"));
    ck_assert_int_eq(deploy_policy_load(dir, &policy, error), -EIO);
    ck_assert_ptr_nonnull(strstr(error, "cannot be read"));
    proc_rmdir(dir);
}
END_TEST

/* Order: 1, 2, 63, 3, 4, 0. */
START_TEST(the_worse_state_wins)
{
    static const struct {
        const char *args;
        int exit_code;
    } runs[] = {
        {"--deploy clean", 0},
        {"--deploy snap", 4},
        {"--deploy clean snap", 4},
        {"--deploy leaks snap", 3},
        {"--deploy --allow leaks leaks", 0},
        {"--deploy --allow leaks leaks snap", 4},
        {"--deploy --allow snapshots snap", 0},
        {"--allow snapshots --deploy snap", 0},
        {"--deploy=local leaks snap", 0},
        {"--deploy=local --max-size 64k snap", 4},
        {"--deploy snap raw", 63},
        {"--deploy snap raw corrupt", 2},
        {"--deploy snap missing", 1},
        {"--deploy --repair snap", 4},
        {"snap", 0},
        {"--allow leaks leaks", 1},
        {"--max-size 1M clean", 1},
        {"--deploy --allow nonsense clean", 1},
        {"--deploy=nonsense clean", 1},
    };
    char *dir = proc_mkdir(), *qcheck = realpath(QCHECK_PROGRAM, NULL);
    corpus_make(dir, "clean", "image\ndata 0 64k\n");
    corpus_make(dir, "snap", "image\ndata 0 64k\nsnapshot\n");
    corpus_make(dir, "leaks", "image\ndata 0 64k\ngap 64k\ndata 64k 64k\ndamage refcount[6] = 1\n");
    corpus_make(dir, "corrupt", "image\ndata 0 64k\ndamage refcount[0] = 0\n");
    corpus_make(dir, "raw", "raw size=64k\n");
    for (size_t i = 0; i < sizeof(runs) / sizeof(runs[0]); i++)
        ck_assert_msg(proc_exit("cd %s && %s %s", dir, qcheck, runs[i].args) == runs[i].exit_code,
            "%s is %d", runs[i].args, proc_exit("cd %s && %s %s", dir, qcheck, runs[i].args));
    struct proc_result r = proc_run("cd %s && %s --deploy --output=json snap", dir, qcheck);
    ck_assert_int_eq(r.exit_code, 4);
    ck_assert_ptr_nonnull(strstr(r.out, "\"verdict\":\"refused\""));
    ck_assert_ptr_nonnull(strstr(r.out, "\"check\":\"deploy-snapshots\""));
    proc_free(&r);
    r = proc_run("cd %s && %s --deploy -q snap", dir, qcheck);
    ck_assert_str_eq(r.out, "snap: refused\n");
    proc_free(&r);
    free(qcheck);
    proc_rmdir(dir);
}
END_TEST

Suite *test_deploy(void);
Suite *test_deploy(void)
{
    Suite *suite = suite_create("deploy");
    TCase *tc = tcase_create("deploy");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, policies_by_name);
    tcase_add_test(tc, rules_and_sizes);
    tcase_add_test(tc, policies_in_files);
    tcase_add_test(tc, policies_that_are_no_text);
    tcase_add_test(tc, the_worse_state_wins);
    suite_add_tcase(suite, tc);
    return suite;
}
