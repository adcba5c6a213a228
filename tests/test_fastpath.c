/* SPDX-License-Identifier: MIT
 *
 * Fast paths may only skip what every check would accept, and threads may only save time: however
 * an image is checked the findings are the same, one for one and in the same order, and so are all
 * counts. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "bigimage.h"
#include "corpus.h"
#include "damage.h"
#include "qcheck.h"

static void tell(void *arg, const struct finding *f)
{
    char check[CHECK_NAME_BYTES];
    check_name(f->check, check);
    fprintf(arg, "%s host %d %#llx+%#llx table %d %#llx[%llu] guest %d:%#llx+%#llx x%llu ", check,
        f->has_host, (unsigned long long)f->host_off, (unsigned long long)f->length, f->has_table,
        (unsigned long long)f->table_off, (unsigned long long)f->index, f->tree,
        (unsigned long long)f->guest_off, (unsigned long long)f->guest_len,
        (unsigned long long)f->weight);
    fprintf(arg, "got %d %#llx want %d %#llx %s\n", f->has_got, (unsigned long long)f->got,
        f->has_want, (unsigned long long)f->want, f->detail);
}

/* All that a check says, as text; `told`: also each finding as it comes, which then come one after
 * the other. */
static char *verdict_on(struct io *io, const struct check_options *how, bool told)
{
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    struct report report;
    struct check_options options = *how;
    ck_assert_ptr_nonnull(out);
    options.found = told ? tell : NULL;
    options.found_arg = out;
    report_init(&report, 20);
    check_image(io, NULL, &options, &report);
    const uint64_t counts[] = {report.corruptions, report.leaks, report.check_errors,
        report.image_end_off, report.total_clusters, report.allocated_clusters,
        report.fragmented_clusters, report.compressed_clusters, report.data_at_risk,
        report.omitted};
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        fprintf(out, "count %d: %llu\n", (int)i, (unsigned long long)counts[i]);
    for (size_t i = 0; i < report.sorted.count; i++)
        tell(out, &report.sorted.items[i]);
    fprintf(out, "%s %s\n", verdict_name(report_verdict(&report)), report.problem);
    report_release(&report);
    fclose(out);
    return text;
}

/* The first line that is not the same in both. */
static const char *difference(const char *a, const char *b)
{
    size_t line = 0;
    for (size_t i = 0; a[i] && a[i] == b[i]; i++) {
        if (a[i] == '\n')
            line = i + 1;
    }
    return a + line;
}

/* How the same verdict may be reached; the first is what the others are compared with. */
static const struct {
    const char *name;
    struct check_options options;
} ways[] = {
    {"entry by entry", {.threads = 1, .no_fast_paths = true, .deep = true}},
    {"with fast paths", {.threads = 1, .deep = true}},
    {"with 2 threads", {.threads = 2, .deep = true}},
    {"with 5 threads", {.threads = 5, .deep = true}},
    {"with 16 threads", {.threads = 16, .deep = true}},
    {"entry by entry with 3 threads", {.threads = 3, .no_fast_paths = true, .deep = true}},
};

static void compare_told(struct io *io, const char *what, const char *story, bool told)
{
    char *first = verdict_on(io, &ways[0].options, told);
    for (size_t i = 1; i < sizeof(ways) / sizeof(ways[0]); i++) {
        char *text = verdict_on(io, &ways[i].options, told);
        ck_assert_msg(strcmp(first, text) == 0, "%s\n%s%s:\n%.300s\n%s:\n%.300s", what, story,
            ways[0].name, difference(first, text), ways[i].name, difference(text, first));
        free(text);
    }
    free(first);
}

static void compare(struct io *io, const char *what, const char *story)
{
    compare_told(io, what, story, true);
    compare_told(io, what, story, false);
}

START_TEST(corpus_images)
{
    char name[CORPUS_NAME_BYTES];
    struct recipe *recipe;
    struct expect *expect;
    struct io *io;
    corpus_list("", _i, name);
    corpus_load(name, &recipe, &expect);
    ck_assert_int_eq(recipe_branch(recipe, &io), 0);
    compare(io, name, "");
    io_close(io);
    recipe_free(recipe);
    expect_free(expect);
}
END_TEST

/* Healthy images of every kind, each damaged at random many times. */
START_TEST(random_damage)
{
    enum { ROUNDS = 12 };
    char name[CORPUS_NAME_BYTES], what[CORPUS_NAME_BYTES + 40];
    struct recipe *recipe;
    struct expect *expect;
    corpus_list("healthy-", _i, name);
    corpus_load(name, &recipe, &expect);
    for (uint64_t seed = 0; seed < ROUNDS; seed++) {
        struct io *io;
        char *story = NULL;
        ck_assert_int_eq(io_mem_branch(recipe_io(recipe), &io), 0);
        int ret = damage_image(io, seed, 1 + (unsigned)(seed % 4), &story);
        ck_assert_msg(ret == 0, "%s seed %d: %s", name, (int)seed, strerror(-ret));
        snprintf(what, sizeof(what), "%s damaged with seed %d", name, (int)seed);
        compare(io, what, story);
        free(story);
        io_close(io);
    }
    recipe_free(recipe);
    expect_free(expect);
}
END_TEST

/* More tables, leaks and wrong counts than are taken at a time, and the limits of clusters. */
static const struct bigimage large[] = {
    {.cluster_bits = 9, .size_bytes = 8 << 20, .percent = 100},
    {.cluster_bits = 9, .size_bytes = 8 << 20, .percent = 60, .shuffled = true, .wrong_every = 9},
    {.cluster_bits = 12, .size_bytes = 128 << 20, .percent = 100, .snapshots = 3, .wrong_every = 7},
    {.cluster_bits = 16, .size_bytes = UINT64_C(4) << 30, .percent = 100, .wrong_every = 16},
    {.cluster_bits = 21, .size_bytes = UINT64_C(256) << 30, .percent = 100, .wrong_every = 1000},
};
enum { LARGE = sizeof(large) / sizeof(large[0]) };

static void lose(struct io *io, uint64_t host_off, uint64_t length)
{
    uint8_t *zeros = calloc(1, length);
    ck_assert_int_eq(io_write(io, host_off, zeros, length), 0);
    free(zeros);
}

/* Behind the first L2 table lie bytes, so that they are looked at when they leak. */
static void fill(struct io *io, const struct bigimage *image, const struct bigimage_parts *parts)
{
    enum { MOST = 10000 };
    uint64_t cluster = UINT64_C(1) << image->cluster_bits, per_table = cluster / 8 + 1;
    uint8_t bytes[QCOW2_SECTOR_BYTES];
    memset(bytes, 0x5a, sizeof(bytes));
    for (uint64_t i = 0; !image->shuffled && i < MOST && i < parts->l2_tables * per_table; i++) {
        if (i % per_table != 0)
            ck_assert_int_eq(io_write(io, parts->l2_off + i * cluster, bytes, sizeof(bytes)), 0);
    }
}

START_TEST(large_images)
{
    static const char *const damages[] = {"as it is", "L1 entries lost", "L1 table lost",
        "refcount blocks lost", "refcounts lost", "cut off"};
    for (size_t d = 0; d < sizeof(damages) / sizeof(damages[0]); d++) {
        const struct bigimage *image = &large[_i];
        uint64_t cluster = UINT64_C(1) << image->cluster_bits;
        struct bigimage_parts parts;
        struct io *io;
        ck_assert_int_eq(io_mem_open(0, &io), 0);
        ck_assert_int_eq(bigimage_write(io, image, &parts), 0);
        if (d > 0)
            fill(io, image, &parts);
        for (uint64_t i = 1; d == 1 && i < parts.l2_tables; i += 3)
            lose(io, parts.l1_off + i * 8, 8);
        if (d == 2)
            lose(io, parts.l1_off, parts.l2_tables * 8);
        for (uint64_t i = 1; d == 3 && i < parts.refblocks; i += 2)
            lose(io, cluster + i * 8, 8);
        if (d == 4)
            lose(io, cluster, parts.reftable * cluster);
        if (d == 5)
            ck_assert_int_eq(io_resize(io, parts.total / 3 * 2 * cluster + 700), 0);
        compare(io, damages[d], "a large image\n");
        io_close(io);
    }
}
END_TEST

Suite *test_fastpath(void);
Suite *test_fastpath(void)
{
    Suite *suite = suite_create("fastpath");
    TCase *tc = tcase_create("fastpath");
    char name[CORPUS_NAME_BYTES];
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, corpus_images, 0, corpus_list("", -1, name));
    tcase_add_loop_test(tc, random_damage, 0, corpus_list("healthy-", -1, name));
    tcase_add_loop_test(tc, large_images, 0, LARGE);
    suite_add_tcase(suite, tc);
    return suite;
}
