/* SPDX-License-Identifier: MIT
 *
 * The fuzz targets without a fuzzer: every seed, and mutations of each that follow from a fixed
 * seed; and the inputs' format and the limits themselves. */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "corpus.h"
#include "fuzz.h"
#include "qcow2.h"
#include "rng.h"
#include "same.h"

enum { ROOM = 64 << 10, SEED_BYTES = 16 << 10 };

/* Under sanitizers, where each input takes ten times as long, one mutation of each seed must do. */
#ifdef __SANITIZE_ADDRESS__
enum { MOST_MUTATIONS = 1 };
#else
enum { MOST_MUTATIONS = 1000 };
#endif

struct target {
    const char *name;
    fuzz_target *run;
    unsigned mutations; /* of each seed */
};

static const struct target targets[] = {
    {"check", fuzz_check, 4}, {"repair", fuzz_repair, 2}, {"engine", fuzz_engine, 2},
    {"dmlog", fuzz_dmlog, 0}, /* no images: only what was found */
};
enum { IMAGE_TARGETS = 3 };

/* Input number `idx` of the corpus; 0 if it is too large for a seed. */
static size_t take_seed(int idx, uint8_t *data, char name[CORPUS_NAME_BYTES])
{
    struct recipe *recipe;
    struct expect *expect;
    size_t size;
    corpus_list("", idx, name);
    corpus_load(name, &recipe, &expect);
    int ret = fuzz_pack(recipe_io(recipe), 1, data, SEED_BYTES, &size);
    ck_assert(ret == 0 || ret == -ENOSPC);
    recipe_free(recipe);
    expect_free(expect);
    return ret == 0 ? size : 0;
}

/* Several mutations on top of each other, drawn from the seed's number and n. */
static size_t mutated(const uint8_t *seed, size_t size, int idx, unsigned n, uint8_t *data)
{
    struct rng rng = rng_for((uint64_t)idx, n);
    memcpy(data, seed, size);
    data[0] = (uint8_t)n;
    for (unsigned i = 0; i <= n % 3; i++) {
        size_t changed = fuzz_mutate(data, size, ROOM, rng_next(&rng));
        size = changed ? changed : size;
    }
    return size;
}

/* For `fuzz_tool run`, in the folder $FUZZ_KEEP. */
static void keep(const char *name, unsigned n, const uint8_t *data, size_t size)
{
    const char *dir = getenv("FUZZ_KEEP");
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s-%u", dir, name, n);
    FILE *out = dir ? fopen(path, "wb") : NULL;
    if (out && (fwrite(data, 1, size, out) != size || fclose(out) != 0))
        fprintf(stderr, "%s could not be written\n", path);
}

START_TEST(no_promise_is_broken)
{
    const struct target *target = &targets[_i];
    uint8_t *seed = malloc(SEED_BYTES), *data = malloc(ROOM);
    char name[CORPUS_NAME_BYTES], why[FUZZ_WHY_BYTES];
    unsigned long runs = 0, broken = 0;
    unsigned mutations = target->mutations < MOST_MUTATIONS ? target->mutations : MOST_MUTATIONS;
    ck_assert(seed && data);
    for (int idx = 0; idx < corpus_list("", 0, name); idx++) {
        size_t size = take_seed(idx, seed, name);
        for (unsigned n = 0; size > 0 && n <= mutations; n++) {
            memcpy(data, seed, size);
            size_t length = n == 0 ? size : mutated(seed, size, idx, n, data);
            bool good = target->run(data, length, why);
            if (!good) {
                fprintf(stderr, "fuzz %s: %s, mutation %u: %s\n", target->name, name, n, why);
                keep(name, n, data, length);
                broken++;
            }
            runs++;
        }
    }
    ck_assert_uint_gt(runs, 500);
    ck_assert_msg(broken == 0, "%lu of %lu inputs broke a promise", broken, runs);
    free(seed);
    free(data);
}
END_TEST

/* Inputs that broke a promise once: corpus/found/NAME/input.TARGET, with a story beside them. */
START_TEST(what_was_found_stays_mended)
{
    unsigned runs = 0;
    DIR *found = opendir("corpus/found");
    ck_assert_ptr_nonnull(found);
    for (struct dirent *entry; (entry = readdir(found));) {
        for (size_t t = 0; t < sizeof(targets) / sizeof(targets[0]); t++) {
            char path[600], why[FUZZ_WHY_BYTES];
            snprintf(
                path, sizeof(path), "corpus/found/%s/input.%s", entry->d_name, targets[t].name);
            FILE *in = fopen(path, "rb");
            if (!in)
                continue;
            uint8_t *data = malloc(ROOM);
            ck_assert_ptr_nonnull(data);
            size_t size = fread(data, 1, ROOM, in);
            fclose(in);
            ck_assert_msg(targets[t].run(data, size, why), "%s: %s", path, why);
            free(data);
            runs++;
        }
    }
    closedir(found);
    ck_assert_uint_gt(runs, 0);
}
END_TEST

START_TEST(logs_of_any_bytes)
{
    enum { RUNS = 3000, LOG_BYTES = 8 << 10 };
    uint8_t *data = calloc(1, LOG_BYTES);
    char why[FUZZ_WHY_BYTES];
    ck_assert_ptr_nonnull(data);
    for (uint64_t n = 0; n < RUNS; n++) {
        struct rng rng = rng_for(7, n);
        static const uint8_t super[] = {0x72, 0x73, 0x68, 0x77, 0x66, 0x73, 0x6a, 0, 1, 0, 0, 0, 0,
            0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0};
        memset(data, 0, LOG_BYTES);
        memcpy(data, super, sizeof(super));
        for (size_t at = 512; at < LOG_BYTES; at += 512) {
            data[at] = (uint8_t)rng_below(&rng, 16);
            data[at + 8] = (uint8_t)rng_below(&rng, 4);
            data[at + 16] = (uint8_t)rng_below(&rng, 8);
        }
        for (uint64_t i = rng_below(&rng, 6); i > 0; i--)
            data[rng_below(&rng, LOG_BYTES)] = (uint8_t)rng_next(&rng);
        size_t size = (size_t)rng_below(&rng, LOG_BYTES);
        ck_assert_msg(fuzz_dmlog(data, size, why), "log %d: %s", (int)n, why);
    }
    free(data);
}
END_TEST

/* Any bytes are an input; what was packed comes out again. */
START_TEST(packing_keeps_the_image)
{
    uint8_t *seed = malloc(SEED_BYTES), *again = malloc(ROOM);
    char name[CORPUS_NAME_BYTES];
    ck_assert(seed && again);
    for (int idx = 0; idx < corpus_list("healthy", 0, name); idx++) {
        struct recipe *recipe;
        struct expect *expect;
        struct fuzz_image image;
        size_t size;
        corpus_list("healthy", idx, name);
        corpus_load(name, &recipe, &expect);
        if (fuzz_pack(recipe_io(recipe), 5, again, ROOM, &size) == 0) {
            ck_assert_int_eq(fuzz_unpack(again, size, &image), 0);
            ck_assert_msg(same_image(image.io, recipe_io(recipe)), "%s", name);
            ck_assert_int_eq(image.options, 5);
            io_close(image.io);
        }
        recipe_free(recipe);
        expect_free(expect);
    }
    free(seed);
    free(again);
}
END_TEST

/* The recipe of an input makes the same image. */
START_TEST(an_input_as_a_recipe)
{
    uint8_t *seed = malloc(SEED_BYTES);
    char name[CORPUS_NAME_BYTES], error[RECIPE_ERROR_BYTES] = "", *text = NULL;
    size_t length, size = take_seed(0, seed, name);
    struct fuzz_image image;
    struct recipe *recipe;
    FILE *out = open_memstream(&text, &length);
    ck_assert_ptr_nonnull(out);
    ck_assert_int_eq(fuzz_print_recipe(seed, size, out), 0);
    fclose(out);
    ck_assert_msg(recipe_text("input", text, &recipe, error) == 0, "%s", error);
    ck_assert_int_eq(fuzz_unpack(seed, size, &image), 0);
    ck_assert(same_image(image.io, recipe_io(recipe)));
    io_close(image.io);
    recipe_free(recipe);
    free(text);
    free(seed);
}
END_TEST

/* The limits do bite. */
START_TEST(limits_bite)
{
    char why[FUZZ_WHY_BYTES] = "";
    struct fuzz_io limits;
    struct io *io;
    uint8_t byte = 1;
    ck_assert_int_eq(io_mem_open(0, &io), 0);
    fuzz_io_init(&limits, io, 0);
    ck_assert(fuzz_io_within(&limits, 1, why));
    ck_assert_int_eq(io_write(&limits.io, FUZZ_GROWTH, &byte, 1), -ENOSPC);
    ck_assert(limits.full);
    void *much = calloc(1, 512 << 20);
    ck_assert_ptr_nonnull(much);
    for (int i = 0; i < 100; i++)
        ck_assert_int_eq(io_write(&limits.io, 0, &byte, 1), 0);
    ck_assert(!fuzz_io_within(&limits, 1, why));
    free(much);
    limits.memory_peak = 0;
    limits.cpu_before -= 1000;
    ck_assert(!fuzz_io_within(&limits, 1, why));
    io_close(io);
}
END_TEST

Suite *test_fuzz(void);
Suite *test_fuzz(void)
{
    Suite *suite = suite_create("fuzz");
    TCase *tc = tcase_create("fuzz");
    tcase_set_timeout(tc, 900);
    tcase_add_loop_test(tc, no_promise_is_broken, 0, IMAGE_TARGETS);
    tcase_add_test(tc, what_was_found_stays_mended);
    tcase_add_test(tc, logs_of_any_bytes);
    tcase_add_test(tc, packing_keeps_the_image);
    tcase_add_test(tc, an_input_as_a_recipe);
    tcase_add_test(tc, limits_bite);
    suite_add_tcase(suite, tc);
    return suite;
}
