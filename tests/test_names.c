/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <string.h>

#include "names.h"
#include "rng.h"

static struct named named(const char *name, size_t idx)
{
    return (struct named){.name = (const uint8_t *)name, .length = strlen(name), .idx = idx};
}

static bool other_has(const struct named *names, size_t count, const char *name, size_t idx)
{
    return names_other_has(names, count, (const uint8_t *)name, strlen(name), idx);
}

START_TEST(names_of_others)
{
    struct named names[] = {
        named("b", 0), named("a", 1), named("ab", 2), named("a", 3), named("", 4), named("c", 5)};
    names_sort(names, 6);
    ck_assert_uint_eq(names[0].idx, 4);
    ck_assert_uint_eq(names[1].idx, 1);
    ck_assert_uint_eq(names[2].idx, 3);
    ck_assert_uint_eq(names_first(names, 6, (const uint8_t *)"a", 1), 1);
    ck_assert_uint_eq(names_first(names, 6, (const uint8_t *)"bb", 2), SIZE_MAX);
    ck_assert(other_has(names, 6, "a", 1) && other_has(names, 6, "a", 3));
    ck_assert(!other_has(names, 6, "b", 0) && other_has(names, 6, "b", 7));
    ck_assert(!other_has(names, 6, "", 4) && other_has(names, 6, "", 0));
    ck_assert(!other_has(names, 6, "abc", 9) && !other_has(names, 6, "zz", 9));
    ck_assert(!other_has(names, 0, "a", 0));
    names_sort(names, 0);
}
END_TEST

START_TEST(names_are_any_bytes)
{
    struct named names[] = {{(const uint8_t *)"\0\xff", 2, 0}, {(const uint8_t *)"\0\xff", 2, 1},
        {(const uint8_t *)"\0", 1, 2}, {NULL, 0, 3}, {NULL, 0, 4}};
    names_sort(names, 5);
    ck_assert(names_other_has(names, 5, (const uint8_t *)"\0\xff", 2, 0));
    ck_assert(names_other_has(names, 5, NULL, 0, 3));
    ck_assert(!names_other_has(names, 5, (const uint8_t *)"\0", 1, 2));
    ck_assert(!names_other_has(names, 5, (const uint8_t *)"\xff", 1, 0));
}
END_TEST

/* Against looking at all of them. */
START_TEST(random_names)
{
    enum { COUNT = 40 };
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct rng rng = rng_for(seed, 0);
        uint8_t bytes[COUNT];
        struct named names[COUNT], sorted[COUNT];
        for (size_t i = 0; i < COUNT; i++) {
            bytes[i] = (uint8_t)rng_below(&rng, 30);
            names[i] = (struct named){&bytes[i], rng_below(&rng, 10) ? 1 : 0, i};
        }
        memcpy(sorted, names, sizeof(names));
        names_sort(sorted, COUNT);
        for (size_t i = 0; i < COUNT; i++) {
            bool want = false;
            for (size_t k = 0; k < COUNT; k++)
                want |= k != i && names[k].length == names[i].length &&
                        (names[i].length == 0 || bytes[k] == bytes[i]);
            ck_assert(names_other_has(sorted, COUNT, names[i].name, names[i].length, i) == want);
        }
    }
}
END_TEST

Suite *test_names(void);
Suite *test_names(void)
{
    Suite *suite = suite_create("names");
    TCase *tc = tcase_create("names");
    tcase_add_test(tc, names_of_others);
    tcase_add_test(tc, names_are_any_bytes);
    tcase_add_test(tc, random_names);
    suite_add_tcase(suite, tc);
    return suite;
}
