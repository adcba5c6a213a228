/* SPDX-License-Identifier: MIT
 *
 * What is kept, counted, sorted and said (checker/report.h). */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"
#include "rng.h"

/* A check of that severity; the first one of the table. */
static enum check_id check_of(enum severity severity)
{
    for (int check = 0; check < CHECK_COUNT; check++) {
        if (check_rows[check].severity == severity)
            return (enum check_id)check;
    }
    ck_abort_msg("no check is a %s", severity_name(severity));
}

static void add(struct report *report, enum check_id check, uint64_t host_off)
{
    struct finding finding = {
        .check = check, .has_host = true, .host_off = host_off, .weight = 1, .tree = TREE_NONE};
    report_add(report, &finding);
}

static size_t kept(const struct report *report, enum severity severity)
{
    return report->by_severity[severity].count;
}

/* ---- the cap -------------------------------------------------------------------------------- */

START_TEST(worse_findings_push_out_milder_ones)
{
    struct report report;
    report_init(&report, 10);
    for (int severity = 0; severity < SEVERITY_COUNT; severity++) {
        for (uint64_t i = 0; i < 6; i++)
            add(&report, check_of((enum severity)severity), i);
    }
    report_finish(&report);
    ck_assert_uint_eq(kept(&report, SEVERITY_DAMAGE), 6);
    ck_assert_uint_eq(kept(&report, SEVERITY_DANGER), 4);
    ck_assert_uint_eq(kept(&report, SEVERITY_WASTE), 0);
    ck_assert_uint_eq(kept(&report, SEVERITY_NOTE), 0);
    ck_assert_uint_eq(report.sorted.count, 10);
    ck_assert_uint_eq(report.omitted, 14);
    report_release(&report);
}
END_TEST

START_TEST(the_cap_holds_in_any_order)
{
    for (uint64_t seed = 0; seed < 300; seed++) {
        struct rng rng = rng_for(seed, 0);
        struct report report;
        size_t cap = rng_below(&rng, 20), total = rng_below(&rng, 60);
        uint64_t added[SEVERITY_COUNT] = {0};
        report_init(&report, cap);
        for (size_t i = 0; i < total; i++) {
            enum severity severity = (enum severity)rng_below(&rng, SEVERITY_COUNT);
            added[severity]++;
            add(&report, check_of(severity), i);
        }
        report_finish(&report);
        size_t room = cap, want_total = total < cap ? total : cap;
        for (int s = SEVERITY_COUNT - 1; s >= 0; s--) {
            size_t want = added[s] < room ? added[s] : room;
            ck_assert_msg(kept(&report, (enum severity)s) == want, "seed %d", (int)seed);
            room -= want;
        }
        ck_assert_uint_eq(report.sorted.count, want_total);
        ck_assert_uint_eq(report.omitted, total - want_total);
        report_release(&report);
    }
}
END_TEST

START_TEST(counts_are_complete_whatever_is_kept)
{
    struct report report;
    report_init(&report, 0);
    for (uint64_t i = 0; i < 1000; i++) {
        add(&report, CHECK_refcount_too_low, i);
        add(&report, CHECK_cluster_leaked, i);
        add(&report, CHECK_file_trailing, i);
    }
    struct finding heavy = {.check = CHECK_l2_copied_set, .weight = 7};
    report_add(&report, &heavy);
    report_finish(&report);
    ck_assert_uint_eq(report.corruptions, 1007);
    ck_assert_uint_eq(report.leaks, 1000);
    ck_assert_uint_eq(report.hits[CHECK_refcount_too_low], 1000);
    ck_assert_uint_eq(report.hits[CHECK_l2_copied_set], 1);
    ck_assert_uint_eq(report.omitted, 3001);
    ck_assert_uint_eq(report.sorted.count, 0);
    report_release(&report);
}
END_TEST

/* ---- order ---------------------------------------------------------------------------------- */

START_TEST(findings_are_sorted)
{
    struct report report;
    struct rng rng = rng_for(5, 0);
    report_init(&report, 1000);
    for (int i = 0; i < 500; i++) {
        struct finding finding = {
            .check = (enum check_id)rng_below(&rng, CHECK_COUNT),
            .host_off = rng_below(&rng, 6),
            .guest_off = rng_below(&rng, 3),
            .tree = (int)rng_below(&rng, 3) - 1,
            .index = rng_below(&rng, 4),
        };
        report_add(&report, &finding);
    }
    report_finish(&report);
    ck_assert_uint_eq(report.sorted.count, 500);
    for (size_t i = 1; i < report.sorted.count; i++) {
        const struct finding *a = &report.sorted.items[i - 1], *b = a + 1;
        uint64_t x[] = {a->host_off, a->check, a->guest_off, (uint64_t)(a->tree + 1), a->index};
        uint64_t y[] = {b->host_off, b->check, b->guest_off, (uint64_t)(b->tree + 1), b->index};
        for (size_t k = 0; k < 5 && x[k] >= y[k]; k++)
            ck_assert_msg(x[k] == y[k], "finding %d comes too early", (int)i);
    }
    report_release(&report);
}
END_TEST

/* ---- verdict -------------------------------------------------------------------------------- */

static int exit_code_with(uint64_t corruptions, uint64_t leaks, uint64_t errors, bool incomplete,
    bool unsupported, const char *verdict)
{
    struct report report;
    report_init(&report, 10);
    report.corruptions = corruptions;
    report.leaks = leaks;
    report.check_errors = errors;
    report.incomplete = incomplete;
    report.unsupported = unsupported;
    ck_assert_str_eq(verdict_name(report_verdict(&report)), verdict);
    int exit_code = report_exit_code(&report);
    report_release(&report);
    return exit_code;
}

START_TEST(verdicts_and_exit_codes)
{
    ck_assert_int_eq(exit_code_with(0, 0, 0, false, false, "clean"), 0);
    ck_assert_int_eq(exit_code_with(0, 1, 0, false, false, "leaks"), 3);
    ck_assert_int_eq(exit_code_with(1, 0, 0, false, false, "corrupt"), 2);
    ck_assert_int_eq(exit_code_with(1, 1, 0, false, false, "corrupt"), 2);
    ck_assert_int_eq(exit_code_with(0, 0, 1, false, false, "incomplete"), 1);
    ck_assert_int_eq(exit_code_with(0, 0, 0, true, false, "incomplete"), 1);
    ck_assert_int_eq(exit_code_with(1, 1, 1, true, false, "incomplete"), 1);
    ck_assert_int_eq(exit_code_with(1, 0, 0, false, true, "unsupported"), 63);
}
END_TEST

/* 1, 2, 63, 3, 4, 0: the worst first. */
START_TEST(the_worse_of_two_exit_codes)
{
    static const int order[] = {1, 2, 63, 3, 4, 0};
    for (int i = 0; i < 6; i++) {
        for (int k = 0; k < 6; k++)
            ck_assert_int_eq(worse_exit_code(order[i], order[k]), order[i < k ? i : k]);
    }
}
END_TEST

START_TEST(a_note_leaves_the_image_clean)
{
    struct report report;
    report_init(&report, 10);
    add(&report, CHECK_file_trailing, 0);
    ck_assert_int_eq(report_exit_code(&report), 0);
    report_release(&report);
}
END_TEST

START_TEST(the_first_problem_is_told)
{
    struct report report;
    report_init(&report, 10);
    report_problem(&report, "the %s", "first");
    report_problem(&report, "the second");
    ck_assert_str_eq(report.problem, "the first");
    ck_assert_int_eq(report_exit_code(&report), 1);
    report_release(&report);

    char longest[1000];
    memset(longest, 'x', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = '\0';
    report_init(&report, 10);
    report_problem(&report, "%s", longest);
    ck_assert_uint_eq(strlen(report.problem), sizeof(report.problem) - 1);
    report_release(&report);
}
END_TEST

/* ---- words ---------------------------------------------------------------------------------- */

START_TEST(escaping)
{
    char out[64];
    report_escape((const uint8_t *)"plain", 5, out, sizeof(out));
    ck_assert_str_eq(out, "plain");
    report_escape((const uint8_t *)"a\"b\\c\n\0\x7f\xff", 9, out, sizeof(out));
    ck_assert_str_eq(out, "a\\x22b\\x5cc\\x0a\\x00\\x7f\\xff");
    report_escape(NULL, 0, out, sizeof(out));
    ck_assert_str_eq(out, "");
    uint8_t bytes[300];
    memset(bytes, 0xee, sizeof(bytes));
    for (size_t room = 1; room < sizeof(out); room++) {
        memset(out, 'Z', sizeof(out));
        report_escape(bytes, sizeof(bytes), out, room);
        ck_assert_uint_lt(strlen(out), room);
        ck_assert_uint_eq(strlen(out) % 4, 0); /* no half of an escape */
        ck_assert_int_eq(out[room], 'Z');
    }
}
END_TEST

static const char *message(
    const struct report *report, const struct finding *finding, char out[512])
{
    report_message(report, finding, out, 512);
    return out;
}

START_TEST(messages_say_where_and_whose)
{
    char out[512];
    uint8_t id[] = {'n', 'o', '"', 0x80};
    struct report_snapshot snapshots[] = {{id, sizeof(id)}};
    struct report report = {.snapshots = snapshots, .snapshot_count = 1};
    struct finding finding = {.check = CHECK_l2_entry_shared,
        .has_host = true,
        .has_table = true,
        .has_got = true,
        .host_off = 0x10000,
        .table_off = 0x40000,
        .index = 3,
        .guest_off = 0x30000,
        .guest_len = 0x10000,
        .got = 0x8000000000010000};
    ck_assert_str_eq(message(&report, &finding, out),
        "L2 entry 3 of the table at 0x40000, guest 0x30000-0x3ffff: the data cluster is also used "
        "at "
        "another place: is 0x8000000000010000");
    finding.tree = 1;
    ck_assert_ptr_nonnull(strstr(message(&report, &finding, out), " of snapshot \"no\\x22\\x80\""));
    finding.tree = 2; /* unknown: not said, not read */
    ck_assert_ptr_null(strstr(message(&report, &finding, out), "snapshot"));

    finding = (struct finding){.check = CHECK_refcount_too_low,
        .has_host = true,
        .has_got = true,
        .has_want = true,
        .want = 1,
        .tree = TREE_NONE};
    ck_assert_str_eq(message(&report, &finding, out),
        "cluster at 0x0: the stored refcount is lower than the number of references: is 0, should "
        "be "
        "1");
    finding = (struct finding){.check = CHECK_snapshot_id_empty, .tree = 1};
    ck_assert_ptr_nonnull(strstr(message(&report, &finding, out), " of snapshot "));
    finding = (struct finding){.check = CHECK_header_incompatible_unknown};
    memset(finding.detail, 0xff, sizeof(finding.detail) - 1);
    ck_assert_ptr_nonnull(strstr(message(&report, &finding, out), "(\\xff"));
}
END_TEST

/* For every check and every size of the buffer. */
START_TEST(messages_fit)
{
    struct report report = {0};
    struct finding finding = {.check = (enum check_id)_i,
        .has_host = true,
        .has_table = true,
        .has_got = true,
        .has_want = true,
        .host_off = UINT64_MAX,
        .table_off = UINT64_MAX,
        .index = UINT64_MAX,
        .guest_off = UINT64_MAX,
        .guest_len = UINT64_MAX,
        .got = 5,
        .want = UINT64_MAX};
    memset(finding.detail, 1, sizeof(finding.detail) - 1);
    char whole[1024], out[1024];
    report_message(&report, &finding, whole, sizeof(whole));
    ck_assert_uint_lt(strlen(whole), sizeof(whole) - 1);
    for (size_t room = 1; room < 700; room += 13) {
        memset(out, 'Z', sizeof(out));
        report_message(&report, &finding, out, room);
        ck_assert_uint_lt(strlen(out), room);
        ck_assert_int_eq(strncmp(out, whole, strlen(out)), 0);
        ck_assert_int_eq(out[room], 'Z');
    }
}
END_TEST

static char *printed(const struct report *report, const struct report_style *style)
{
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    ck_assert_ptr_nonnull(out);
    report_print(report, "a\nname", style, out);
    fclose(out);
    return text;
}

START_TEST(text_for_people)
{
    struct report report;
    struct report_style style = {0}, quiet = {.quiet = true}, verbose = {.verbose = true};
    report_init(&report, 1000);
    for (uint64_t i = 0; i < 30; i++)
        add(&report, CHECK_refcount_too_low, i);
    add(&report, CHECK_file_trailing, 0);
    report_finish(&report);
    char *text = printed(&report, &style);
    ck_assert_ptr_nonnull(strstr(text, "a\\x0aname: corrupt\n"));
    ck_assert_ptr_nonnull(strstr(text, "refcount-too-low (30)"));
    ck_assert_ptr_nonnull(strstr(text, "... and 20 more"));
    ck_assert_ptr_nonnull(strstr(text, check_rows[CHECK_refcount_too_low].meaning));
    free(text);
    text = printed(&report, &verbose);
    ck_assert_ptr_null(strstr(text, "more"));
    ck_assert_ptr_nonnull(strstr(text, "cluster at 0x1d:"));
    free(text);
    text = printed(&report, &quiet);
    ck_assert_str_eq(text, "a\\x0aname: corrupt\n");
    free(text);
    report_release(&report);

    report_init(&report, 1000);
    report_finish(&report);
    text = printed(&report, &quiet);
    ck_assert_str_eq(text, "");
    free(text);
    report_release(&report);
}
END_TEST

Suite *test_report(void);
Suite *test_report(void)
{
    Suite *suite = suite_create("report");
    TCase *tc = tcase_create("report");
    tcase_add_test(tc, worse_findings_push_out_milder_ones);
    tcase_add_test(tc, the_cap_holds_in_any_order);
    tcase_add_test(tc, counts_are_complete_whatever_is_kept);
    tcase_add_test(tc, findings_are_sorted);
    tcase_add_test(tc, verdicts_and_exit_codes);
    tcase_add_test(tc, the_worse_of_two_exit_codes);
    tcase_add_test(tc, a_note_leaves_the_image_clean);
    tcase_add_test(tc, the_first_problem_is_told);
    tcase_add_test(tc, escaping);
    tcase_add_test(tc, messages_say_where_and_whose);
    tcase_add_loop_test(tc, messages_fit, 0, CHECK_COUNT);
    tcase_add_test(tc, text_for_people);
    suite_add_tcase(suite, tc);
    return suite;
}
