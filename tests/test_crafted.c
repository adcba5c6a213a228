/* SPDX-License-Identifier: MIT
 *
 * Small images made to cost much: fields that claim more than there is, one piece of metadata that
 * is referred to a thousand times, sparse files.  Each is checked within seconds and little memory;
 * what was not looked at is said. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "qcheck.h"
#include "recipe.h"

enum { MOST_MEMORY = 512 << 20, MOST_SECONDS = 60 };

static struct recipe *build(const char *text)
{
    char error[RECIPE_ERROR_BYTES];
    struct recipe *recipe = NULL;
    ck_assert_msg(recipe_text("crafted", text, &recipe, error) == 0, "%s", error);
    return recipe;
}

static long peak_bytes(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss * 1024;
}

/* Checks the image; at most `max_findings` are kept. */
static struct report check_it(struct recipe *recipe, size_t max_findings)
{
    struct check_options options = {.threads = 1};
    struct report report;
    long before = peak_bytes();
    report_init(&report, max_findings);
    check_image(recipe_io(recipe), NULL, &options, &report);
    ck_assert_int_ne(report_exit_code(&report), 0);
    ck_assert_int_lt(peak_bytes() - before, MOST_MEMORY);
    return report;
}

/* Copies the first entry of the refcount table over all 2^bits. */
static char *fill_reftable(const char *head, unsigned bits, const char *tail)
{
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    ck_assert_ptr_nonnull(out);
    fputs(head, out);
    for (unsigned i = 0; i < bits; i++)
        fprintf(out, "damage copy reftable.offset reftable.offset + %u %u\n", 8u << i, 8u << i);
    fputs(tail, out);
    fclose(out);
    return text;
}

START_TEST(one_refcount_block_for_everything)
{
    char *text = fill_reftable("image reftable_clusters=2\n", 14,
        "damage fill refblock[0].offset 64k 1\ndamage truncate 4T\n");
    struct recipe *recipe = build(text);
    struct report report = check_it(recipe, 10);
    ck_assert_uint_gt(report.hits[CHECK_refblock_shared], 16000);
    ck_assert_uint_eq(report.sorted.count, 10);
    report_release(&report);
    recipe_free(recipe);
    free(text);
}
END_TEST

START_TEST(a_luks_header_in_a_hole)
{
    struct recipe *recipe = build("image cluster=512 luks=4k\ndamage truncate 1T\n"
                                  "damage crypto.header_length = 256G\n");
    struct report report = check_it(recipe, 10);
    ck_assert_int_eq(report_exit_code(&report), 1);
    ck_assert_ptr_nonnull(strstr(report.problem, "more metadata"));
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

/* Sizes and counts at their highest in a file of nearly 8 EiB. */
START_TEST(every_field_at_its_highest)
{
    static const struct {
        const char *name;
        unsigned bits;
    } fields[] = {{"backing_offset", 64}, {"backing_length", 32}, {"cluster_bits", 32},
        {"size", 64}, {"crypt_method", 32}, {"l1_size", 32}, {"l1_offset", 64},
        {"reftable_offset", 64}, {"reftable_clusters", 32}, {"snapshot_count", 32},
        {"snapshots_offset", 64}, {"incompatible", 64}, {"compatible", 64}, {"autoclear", 64},
        {"refcount_order", 32}, {"length", 32}, {"compression", 8}};
    static const uint64_t values[] = {UINT64_MAX, UINT64_C(1) << 63, INT64_MAX, UINT64_C(1) << 62,
        0xfffffffffffffe00, UINT64_C(1) << 31, INT32_MAX, 1 << 22, 1 << 16, 1, 0};
    for (size_t f = 0; f < sizeof(fields) / sizeof(fields[0]); f++) {
        for (size_t v = 0; v < sizeof(values) / sizeof(values[0]); v++) {
            char text[400];
            snprintf(text, sizeof(text),
                "image cluster=512 size=64k\ndata 0 2k\nsnapshot\ndamage header.%s = %#llx\n%s",
                fields[f].name,
                (unsigned long long)(values[v] & (UINT64_MAX >> (64 - fields[f].bits))),
                _i ? "damage truncate 0x7ffffffffffff000\n" : "");
            struct recipe *recipe = build(text);
            struct check_options options = {.threads = 1, .deep = true};
            struct report report;
            report_init(&report, 10);
            check_image(recipe_io(recipe), NULL, &options, &report);
            report_release(&report);
            recipe_free(recipe);
        }
    }
}
END_TEST

/* The header names more snapshots than there is table, in a hole that reads as empty records. */
START_TEST(snapshots_in_a_hole)
{
    struct recipe *recipe = build("image cluster=512 size=64k\ndata 0 2k\n"
                                  "damage header.snapshot_count = 65536\n"
                                  "damage header.snapshots_offset = 1G\ndamage truncate 8G\n");
    struct report report = check_it(recipe, 10);
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

Suite *test_crafted(void);
Suite *test_crafted(void)
{
    Suite *suite = suite_create("crafted");
    TCase *tc = tcase_create("crafted");
    tcase_set_timeout(tc, MOST_SECONDS);
    tcase_add_test(tc, one_refcount_block_for_everything);
    tcase_add_test(tc, a_luks_header_in_a_hole);
    tcase_add_loop_test(tc, every_field_at_its_highest, 0, 2);
    tcase_add_test(tc, snapshots_in_a_hole);
    suite_add_tcase(suite, tc);
    return suite;
}
