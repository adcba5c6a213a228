/* SPDX-License-Identifier: MIT
 *
 * The JSON report is one that any reader can read: whole, with all keys, valid UTF-8 whatever names
 * hold, and numbers that fit. */
#include <check.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

static const char *const number_keys[] = {"check-errors", "image-end-offset", "total-clusters",
    "allocated-clusters", "fragmented-clusters", "compressed-clusters", "corruptions", "leaks",
    "corruptions-fixed", "leaks-fixed", "data-at-risk", "findings-omitted"};
enum { NUMBER_KEYS = sizeof(number_keys) / sizeof(number_keys[0]) };

/* Prints and reads again; there is one line. */
static json_t *printed(const struct report *report, const char *filename)
{
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    json_error_t error;
    ck_assert_ptr_nonnull(out);
    ck_assert_int_eq(report_print_json(report, filename, out), 0);
    fclose(out);
    ck_assert_uint_eq(strcspn(text, "\n"), length - 1);
    json_t *object = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    ck_assert_msg(object != NULL, "%s: %s", error.text, text);
    free(text);
    return object;
}

static const char *string_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static void has_all_keys(const json_t *object)
{
    for (size_t i = 0; i < NUMBER_KEYS; i++) {
        const json_t *value = json_object_get(object, number_keys[i]);
        ck_assert_msg(json_is_integer(value) || json_is_string(value), "%s", number_keys[i]);
    }
    ck_assert_str_eq(string_of(object, "format"), "qcow2");
    ck_assert_ptr_nonnull(string_of(object, "filename"));
    ck_assert_ptr_nonnull(string_of(object, "verdict"));
    ck_assert(json_is_array(json_object_get(object, "findings")));
}

START_TEST(all_keys_are_there)
{
    struct report report;
    report_init(&report, 10);
    json_t *object = printed(&report, "disk.qcow2");
    has_all_keys(object);
    ck_assert_str_eq(string_of(object, "verdict"), "clean");
    ck_assert_ptr_null(json_object_get(object, "problem"));
    json_decref(object);

    report_problem(&report, "it is \"%s\"", "in use");
    object = printed(&report, "disk.qcow2");
    has_all_keys(object);
    ck_assert_str_eq(string_of(object, "verdict"), "incomplete");
    ck_assert_str_eq(string_of(object, "problem"), "it is \"in use\"");
    json_decref(object);
    report_release(&report);
}
END_TEST

START_TEST(counters_have_their_keys)
{
    struct report report;
    report_init(&report, 10);
    uint64_t *const counters[NUMBER_KEYS] = {&report.check_errors, &report.image_end_off,
        &report.total_clusters, &report.allocated_clusters, &report.fragmented_clusters,
        &report.compressed_clusters, &report.corruptions, &report.leaks, &report.corruptions_fixed,
        &report.leaks_fixed, &report.data_at_risk, &report.omitted};
    for (size_t i = 0; i < NUMBER_KEYS; i++)
        *counters[i] = i + 100;
    json_t *object = printed(&report, "x");
    for (size_t i = 0; i < NUMBER_KEYS; i++)
        ck_assert_int_eq(
            json_integer_value(json_object_get(object, number_keys[i])), (json_int_t)i + 100);
    json_decref(object);
    report_release(&report);
}
END_TEST

/* JSON readers have signed 64-bit numbers; what does not fit is a string of digits. */
START_TEST(large_numbers_are_strings)
{
    struct report report;
    report_init(&report, 10);
    report.data_at_risk = UINT64_MAX;
    report.leaks = (uint64_t)INT64_MAX + 1;
    report.corruptions = INT64_MAX;
    json_t *object = printed(&report, "x");
    ck_assert_str_eq(string_of(object, "data-at-risk"), "18446744073709551615");
    ck_assert_str_eq(string_of(object, "leaks"), "9223372036854775808");
    ck_assert_int_eq(json_integer_value(json_object_get(object, "corruptions")), INT64_MAX);
    json_decref(object);
    report_release(&report);
}
END_TEST

/* ---- findings ------------------------------------------------------------------------------- */

/* The one finding of a report made of it. */
static json_t *one_finding(struct report *report, const struct finding *finding, json_t **object)
{
    report_add(report, finding);
    report_finish(report);
    *object = printed(report, "x");
    json_t *findings = json_object_get(*object, "findings");
    ck_assert_uint_eq(json_array_size(findings), 1);
    return json_array_get(findings, 0);
}

START_TEST(finding_with_all_it_can_have)
{
    struct report report;
    struct finding finding = {.check = CHECK_l2_copied_set,
        .has_host = true,
        .has_table = true,
        .has_got = true,
        .has_want = true,
        .host_off = 1,
        .length = 2,
        .table_off = 3,
        .index = 4,
        .guest_off = 5,
        .guest_len = 6,
        .got = 7,
        .want = 8,
        .weight = 9,
        .fixed = true,
        .tree = TREE_ACTIVE};
    report_init(&report, 10);
    json_t *object, *json = one_finding(&report, &finding, &object);
    static const char *const keys[] = {"host-offset", "length", "table", "index", "guest-offset",
        "guest-length", "got", "want", "count"};
    for (int i = 0; i < 9; i++)
        ck_assert_int_eq(json_integer_value(json_object_get(json, keys[i])), i + 1);
    ck_assert_str_eq(string_of(json, "check"), "l2-copied-set");
    ck_assert_str_eq(string_of(json, "severity"), "danger");
    ck_assert_ptr_nonnull(string_of(json, "repair"));
    ck_assert_ptr_nonnull(string_of(json, "message"));
    ck_assert(json_is_true(json_object_get(json, "fixed")));
    ck_assert_ptr_null(json_object_get(json, "snapshot"));
    json_decref(object);
    report_release(&report);
}
END_TEST

START_TEST(finding_with_nothing)
{
    struct report report;
    struct finding finding = {.check = CHECK_backing_missing, .tree = TREE_NONE, .weight = 1};
    report_init(&report, 10);
    json_t *object, *json = one_finding(&report, &finding, &object);
    static const char *const absent[] = {"host-offset", "length", "table", "index", "guest-offset",
        "guest-length", "got", "want", "count", "snapshot"};
    for (int i = 0; i < 10; i++)
        ck_assert_ptr_null(json_object_get(json, absent[i]));
    ck_assert(json_is_false(json_object_get(json, "fixed")));
    json_decref(object);
    report_release(&report);
}
END_TEST

static const struct {
    const char *bytes;
    size_t length;
    const char *want;
} ids[] = {
    {"1", 1, "1"}, {"", 0, ""}, {"gr\xc3\xbc\xc3\x9f", 6, "gr\xc3\xbc\xc3\x9f"}, /* UTF-8 stays */
    {"a\"b\\\n\x01", 6, "a\"b\\\n\x01"},                 /* JSON's own escapes */
    {"\xff\xfe", 2, "\\xff\\xfe"}, {"\xc3", 1, "\\xc3"}, /* cut short */
    {"\xed\xa0\x80", 3, "\\xed\\xa0\\x80"},              /* a surrogate */
    {"\xc0\xaf", 2, "\\xc0\\xaf"},                       /* overlong */
    {"\xf5\x80\x80\x80", 4, "\\xf5\\x80\\x80\\x80"},
    {"a\0b", 3, "a\\x00b"}, /* many readers refuse NUL */
};

START_TEST(snapshot_ids_of_any_bytes)
{
    struct report report;
    report_init(&report, 10);
    report.snapshots = calloc(1, sizeof(*report.snapshots));
    ck_assert_ptr_nonnull(report.snapshots);
    report.snapshot_count = 1;
    report.snapshots[0].id = (const uint8_t *)ids[_i].bytes;
    report.snapshots[0].id_len = ids[_i].length;
    struct finding finding = {.check = CHECK_snapshot_id_repeated, .tree = 1, .weight = 1};
    json_t *object, *json = one_finding(&report, &finding, &object);
    ck_assert_str_eq(string_of(json, "snapshot"), ids[_i].want);
    json_decref(object);
    report_release(&report);
}
END_TEST

START_TEST(file_names_of_any_bytes)
{
    struct report report;
    report_init(&report, 10);
    json_t *object = printed(&report, "a\"\\\n.qcow2");
    ck_assert_str_eq(string_of(object, "filename"), "a\"\\\n.qcow2");
    json_decref(object);
    object = printed(&report, "\xff.qcow2");
    ck_assert_str_eq(string_of(object, "filename"), "\\xff.qcow2");
    json_decref(object);
    object = printed(&report, "");
    ck_assert_str_eq(string_of(object, "filename"), "");
    json_decref(object);
    report_release(&report);
}
END_TEST

/* Every byte in the words that come from the image. */
START_TEST(details_of_any_bytes)
{
    for (int byte = 1; byte < 256; byte++) {
        struct report report;
        struct finding finding = {.check = CHECK_backing_missing, .tree = TREE_NONE, .weight = 1};
        memset(finding.detail, byte, 3);
        report_init(&report, 10);
        json_t *object, *json = one_finding(&report, &finding, &object);
        ck_assert_ptr_nonnull(strchr(string_of(json, "message"), '('));
        json_decref(object);
        report_release(&report);
    }
}
END_TEST

START_TEST(output_that_fails_is_told)
{
    struct report report;
    report_init(&report, 10);
    FILE *full = fopen("/dev/full", "w");
    ck_assert_ptr_nonnull(full);
    setvbuf(full, NULL, _IONBF, 0);
    ck_assert_int_lt(report_print_json(&report, "x", full), 0);
    fclose(full);
    report_release(&report);
}
END_TEST

Suite *test_json(void);
Suite *test_json(void)
{
    Suite *suite = suite_create("json");
    TCase *tc = tcase_create("json");
    tcase_add_test(tc, all_keys_are_there);
    tcase_add_test(tc, counters_have_their_keys);
    tcase_add_test(tc, large_numbers_are_strings);
    tcase_add_test(tc, finding_with_all_it_can_have);
    tcase_add_test(tc, finding_with_nothing);
    tcase_add_loop_test(tc, snapshot_ids_of_any_bytes, 0, (int)(sizeof(ids) / sizeof(ids[0])));
    tcase_add_test(tc, file_names_of_any_bytes);
    tcase_add_test(tc, details_of_any_bytes);
    tcase_add_test(tc, output_that_fails_is_told);
    suite_add_tcase(suite, tc);
    return suite;
}
