/* SPDX-License-Identifier: MIT
 *
 * Every field of every kind of metadata with values at the edges, one at a time: check, repair and
 * engine keep what the fuzz targets ask of them (no crash, no hang, one verdict with and without
 * fast paths, JSON that is JSON, a repair that comes to rest and can be taken back, a sound image
 * not damaged).  A part of the combinations; all of them with FIELDS=all in the environment. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "recipe.h"
#include "survey.h"

enum { ROOM = 4 << 20 };

static const struct {
    unsigned each; /* one of so many combinations, if not all are wanted */
    const char *recipe;
} kinds[] = {
    {5, "image cluster=4k size=1M\ndata 0 32k\ncompressed 32k 8k seed=1\nzero 48k 4k\n"
        "zero 52k 4k prealloc\nsnapshot id=1 name=one vmstate=8k\ndata 4k 8k\nbitmap name=b "
        "auto\n"},
    {5, "image extended_l2 cluster=16k size=2M\ndata 0 48k\ndata 100k 1000\nzero 128k 16k "
        "prealloc\n"
        "compressed 192k 32k seed=3\nsnapshot id=1 name=first\ndata 0 20k\n"},
    {5, "image version=2 cluster=1k size=256k backing=base backing_format=raw\ndata 0 16k\n"
        "snapshot id=1 extra=0\ndata 2k 2k\n"},
    {5, "image cluster=512 size=64k luks=4k\ndata 0 4k\n"},
    {5, "image cluster=4k size=1M data_file=data.raw data_file_raw\ndata 0 64k\n"},
    {5, "image cluster=512 size=64k refcount_bits=1\ndata 0 8k\nbitmap name=b fill=ones\n"},
    {60, "image cluster=2M size=8M refcount_bits=64\ndata 0 2M\nsnapshot id=1\ndata 0 2M\n"},
};

/* The edges of a field of that many bits, and places that are none for what it names. */
static size_t edge_values(const struct survey *survey, const struct survey_value *v, uint64_t *out)
{
    uint64_t all = UINT64_MAX >> (64 - v->bits), top = UINT64_C(1) << (v->bits - 1);
    uint64_t size = survey->geo.cluster_size;
    uint64_t end = div_up(survey->file_bytes, size) * size;
    const uint64_t values[] = {0, 1, all, top, top >> 1, all >> 1, v->value ^ top, v->value ^ 1,
        v->value + size, v->value + 512, survey->header.l1_off, survey->header.reftable_off, end,
        end + size, QCOW2_ENTRY_COPIED | survey->header.l1_off, QCOW2_ENTRY_COMPRESSED | end,
        UINT64_C(0x00fffffffffffe00), UINT64_C(1) << 31, 65536, 22};
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++)
        out[i] = values[i] & all;
    return sizeof(values) / sizeof(values[0]);
}

/* The first value in use, and the last one of all. */
static uint64_t place_of(
    const struct survey *survey, struct io *io, const struct survey_array *array, bool last)
{
    enum { MOST = 4096 };
    struct survey_value v = {.array = array};
    if (last)
        return array->count - 1;
    for (; v.idx < array->count && v.idx < MOST; v.idx++) {
        if (survey_read(survey, io, &v) == 0 && v.value != 0)
            return v.idx;
    }
    return 0;
}

static const struct {
    const char *name;
    fuzz_target *run;
} targets[] = {{"check", fuzz_check}, {"repair", fuzz_repair}, {"engine", fuzz_engine}};

/* For `fuzz_tool run`, as the file $FUZZ_KEEP. */
static void keep(const uint8_t *data, size_t size)
{
    const char *path = getenv("FUZZ_KEEP");
    FILE *out = path ? fopen(path, "wb") : NULL;
    if (out && (fwrite(data, 1, size, out) != size || fclose(out) != 0))
        fprintf(stderr, "%s could not be written\n", path);
}

/* `n` numbers the combinations: it also picks the options. */
static void run_targets(struct io *io, unsigned n, const char *label, uint64_t value, uint8_t *data)
{
    for (size_t t = 0; t < sizeof(targets) / sizeof(targets[0]); t++) {
        char why[FUZZ_WHY_BYTES] = "";
        size_t size;
        ck_assert_int_eq(fuzz_pack(io, (uint8_t)n, data, ROOM, &size), 0);
        bool good = targets[t].run(data, size, why);
        if (!good)
            keep(data, size);
        ck_assert_msg(good, "%s: %s = 0x%llx, options %u: %s", targets[t].name, label,
            (unsigned long long)value, n & 0xff, why);
    }
}

START_TEST(a_field_at_an_edge)
{
    const char *wish = getenv("FIELDS");
    bool everything = wish && strcmp(wish, "all") == 0;
    char error[RECIPE_ERROR_BYTES];
    struct recipe *recipe = NULL;
    struct survey *survey;
    unsigned n = 0, runs = 0;
    uint8_t *data = malloc(ROOM);
    ck_assert_msg(recipe_text("fields", kinds[_i].recipe, &recipe, error) == 0, "%s", error);
    struct io *io = recipe_io(recipe);
    ck_assert(data && survey_open(io, &survey) == 0);
    for (size_t a = 0; a < survey->array_count; a++) {
        const struct survey_array *array = &survey->arrays[a];
        for (int last = 0; last < 2 && array->count > (uint64_t)last; last++) {
            struct survey_value v = {.array = array, .idx = place_of(survey, io, array, last == 1)};
            uint64_t values[32];
            ck_assert_int_eq(survey_read(survey, io, &v), 0);
            for (size_t i = edge_values(survey, &v, values); i-- > 0;) {
                if (values[i] == v.value || (++n % kinds[_i].each != 0 && !everything))
                    continue;
                ck_assert_int_eq(survey_write(survey, io, &v, values[i]), 0);
                run_targets(io, n, array->label, values[i], data);
                ck_assert_int_eq(survey_write(survey, io, &v, v.value), 0);
                runs++;
            }
        }
    }
    ck_assert_uint_gt(runs, 10);
    survey_close(survey);
    recipe_free(recipe);
    free(data);
}
END_TEST

Suite *test_fields(void);
Suite *test_fields(void)
{
    Suite *suite = suite_create("fields");
    TCase *tc = tcase_create("fields");
    tcase_set_timeout(tc, 1200);
    tcase_add_loop_test(tc, a_field_at_an_edge, 0, (int)(sizeof(kinds) / sizeof(kinds[0])));
    suite_add_tcase(suite, tc);
    return suite;
}
