/* SPDX-License-Identifier: MIT
 *
 * The table of checks is closed: every row is explained, shown by a recipe, healed by one if it can
 * be repaired, and stands where it takes effect; every recipe belongs to a row. */
#include <check.h>
#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "corpus.h"
#include "proc.h"

/* The folder is that of the check, or of a variant of it. */
static bool belongs(const char *folder, const char *check)
{
    size_t length = strlen(check);
    return strncmp(folder, check, length) == 0 && (folder[length] == '\0' || folder[length] == '-');
}

static bool has_finding(const struct expect *expect, const char *check)
{
    for (size_t i = 0; i < expect->finding_count; i++) {
        if (strcmp(expect->findings[i].check, check) == 0)
            return true;
    }
    return false;
}

static struct expect *load_expect(const char *folder)
{
    char path[600], error[RECIPE_ERROR_BYTES] = "";
    struct expect *expect = NULL;
    snprintf(path, sizeof(path), "corpus/%s/expect", folder);
    ck_assert_msg(expect_load(path, &expect, error) == 0, "%s", error);
    return expect;
}

/* ---- rows ----------------------------------------------------------------------------------- */

START_TEST(row_is_shown_and_healed)
{
    char check[CHECK_NAME_BYTES], folder[CORPUS_NAME_BYTES];
    check_name((enum check_id)_i, check);
    int shown = 0, healed = 0, count = corpus_list(check, -1, folder);
    for (int i = 0; i < count; i++) {
        corpus_list(check, i, folder);
        struct expect *expect = load_expect(folder);
        bool hit = has_finding(expect, check);
        shown += hit && belongs(folder, check);
        healed += hit && expect->repair_exit == 0;
        expect_free(expect);
    }
    ck_assert_msg(shown > 0, "no folder corpus/%s* expects a finding of this check", check);
    if (check_rows[_i].repair != REPAIR_NONE)
        ck_assert_msg(healed > 0, "repair is %s, but no folder corpus/%s* has repair-exit 0",
            repair_class_name(check_rows[_i].repair), check);
}
END_TEST

START_TEST(row_is_explained)
{
    const struct check_row *row = &check_rows[_i];
    char check[CHECK_NAME_BYTES];
    check_name((enum check_id)_i, check);
    ck_assert_msg(strlen(row->sentence) > 10 && strlen(row->meaning) > 10, "%s says little", check);
    /* A clause and sentences: they are put together in messages. */
    ck_assert_msg(
        !isupper((unsigned char)row->sentence[0]) || isupper((unsigned char)row->sentence[1]),
        "%s: the sentence is a clause", check);
    ck_assert_msg(row->sentence[strlen(row->sentence) - 1] != '.', "%s: no full stop", check);
    ck_assert_msg(
        row->meaning[strlen(row->meaning) - 1] == '.', "%s: ends with a full stop", check);
    struct proc_result r = proc_run("%s --explain %s", QCHECK_PROGRAM, check);
    ck_assert_int_eq(r.exit_code, 0);
    ck_assert_msg(strstr(r.out, check) == r.out, "--explain %s says: %s", check, r.out);
    ck_assert_ptr_nonnull(strstr(r.out, row->sentence));
    ck_assert_ptr_nonnull(strstr(r.out, row->meaning));
    proc_free(&r);
}
END_TEST

START_TEST(names_are_unique_kebab_case)
{
    for (int check = 0; check < CHECK_COUNT; check++) {
        char name[CHECK_NAME_BYTES];
        check_name((enum check_id)check, name);
        ck_assert_msg(strlen(name) < CHECK_NAME_BYTES - 1, "%s is too long", name);
        for (const char *p = name; *p; p++)
            ck_assert_msg(islower((unsigned char)*p) || isdigit((unsigned char)*p) ||
                              (*p == '-' && p > name && p[-1] != '-' && p[1] != '\0'),
                "%s is not kebab-case", name);
        ck_assert_msg(check_find(name) == check, "%s is there twice", name);
    }
    ck_assert_int_lt(check_find(""), 0);
    ck_assert_int_lt(check_find("header"), 0);
    ck_assert_int_lt(check_find("header_magic"), 0);
    ck_assert_int_lt(check_find("header-magic-"), 0);
}
END_TEST

/* walk_show() ends with the first row that stops: no other finding of that object may come before
 * it, since its predicate could not rely on what that row has yet to rule out. */
START_TEST(rows_that_stop_come_first)
{
    bool others[OBJECT_KIND_COUNT] = {false};
    for (int check = 0; check < CHECK_COUNT; check++) {
        const struct check_row *row = &check_rows[check];
        if (row->after < AFTER_STOP)
            others[row->kind] = true;
        else
            ck_assert_msg(
                !others[row->kind], "%s stops, but comes after one that does not", row->name);
    }
}
END_TEST

START_TEST(columns_agree)
{
    for (int check = 0; check < CHECK_COUNT; check++) {
        const struct check_row *row = &check_rows[check];
        bool leak = row->tally == TALLY_LEAK_QEMU || row->tally == TALLY_LEAK_OWN;
        ck_assert_msg(!leak || row->severity == SEVERITY_WASTE, "%s: a leak is waste", row->name);
        ck_assert_msg(row->severity != SEVERITY_DAMAGE || row->tally != TALLY_NONE,
            "%s: damage counts", row->name);
        ck_assert_msg(row->severity != SEVERITY_NOTE || row->tally != TALLY_CORRUPTION_OWN,
            "%s: a note of our own must not change the exit code", row->name);
        ck_assert(row->hit != NULL);
    }
}
END_TEST

/* ---- folders -------------------------------------------------------------------------------- */

static bool folder_has_check(const char *folder)
{
    for (int check = 0; check < CHECK_COUNT; check++) {
        char name[CHECK_NAME_BYTES];
        check_name((enum check_id)check, name);
        if (belongs(folder, name))
            return true;
    }
    return false;
}

START_TEST(folders_belong_to_something)
{
    DIR *corpus = opendir("corpus");
    ck_assert_ptr_nonnull(corpus);
    for (struct dirent *entry; (entry = readdir(corpus));) {
        const char *name = entry->d_name;
        if (name[0] == '.' || strcmp(name, "README.md") == 0 || strcmp(name, "found") == 0)
            continue;
        bool free_name = strncmp(name, "healthy-", 8) == 0 || strncmp(name, "unreadable-", 11) == 0;
        ck_assert_msg(free_name || folder_has_check(name), "corpus/%s is about no check", name);
    }
    closedir(corpus);
}
END_TEST

/* What a line of an expect file asks for must be a check there is; and healthy is healthy. */
START_TEST(folder_expects_known_checks)
{
    char folder[CORPUS_NAME_BYTES];
    corpus_list("", _i, folder);
    struct expect *expect = load_expect(folder);
    for (size_t i = 0; i < expect->finding_count; i++)
        ck_assert_msg(check_find(expect->findings[i].check) >= 0, "corpus/%s: no check %s", folder,
            expect->findings[i].check);
    ck_assert_msg(expect->exit_code != EXPECT_ANY, "corpus/%s: no exit code", folder);
    if (strncmp(folder, "healthy-", 8) == 0)
        ck_assert_msg(expect->exit_code == 0, "corpus/%s: exit %d", folder, expect->exit_code);
    expect_free(expect);
}
END_TEST

Suite *test_table(void);
Suite *test_table(void)
{
    Suite *suite = suite_create("table");
    TCase *rows = tcase_create("rows"), *folders = tcase_create("folders");
    char name[CORPUS_NAME_BYTES];
    tcase_add_loop_test(rows, row_is_shown_and_healed, 0, CHECK_COUNT);
    tcase_add_loop_test(rows, row_is_explained, 0, CHECK_COUNT);
    tcase_add_test(rows, names_are_unique_kebab_case);
    tcase_add_test(rows, rows_that_stop_come_first);
    tcase_add_test(rows, columns_agree);
    tcase_add_test(folders, folders_belong_to_something);
    tcase_add_loop_test(folders, folder_expects_known_checks, 0, corpus_list("", -1, name));
    suite_add_tcase(suite, rows);
    suite_add_tcase(suite, folders);
    return suite;
}
