/* SPDX-License-Identifier: MIT
 *
 * One bit anywhere in the metadata of an image is wrong.  A repair that asks nobody makes nothing
 * worse, shows nothing that is neither right nor was there before, and ends clean only where all
 * is as it was before the bit was wrong, or where a check had found nothing at all, or where
 * nothing can tell, or it is told.  Every so many bits of an image; all of them with FLIPS=all in
 * the environment.
 */
#include <check.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "recipe.h"
#include "repair.h"
#include "rng.h"
#include "survey.h"
#include "truth.h"

static const char *const kinds[] = {
    "image cluster=4k size=8M\ndata 0 128k\ndata 3M 64k\ncompressed 4M 16k seed=1\nzero 5M 16k\n"
    "snapshot id=1 name=one\ndata 16k 32k\ndata 5M 8k\nbitmap name=b auto\n",
    "image cluster=64k size=700M\ndata 0 1M\ndata 600M 512k\n",
    "image cluster=16k extended_l2 size=64M\ndata 0 256k\ndata 1M 4k\ndata 33M 24k\n"
    "zero 40M 16k prealloc\nsnapshot id=1 name=first\ndata 32k 32k\nsnapshot id=2 name=second\n"
    "data 48k 4k\n",
    "image version=2 cluster=1k size=1M\ndata 0 64k\nsnapshot id=1 extra=0\ndata 2k 8k\n",
    "image cluster=512 size=256k refcount_bits=1\ndata 0 32k\ndata 128k 8k\nbitmap name=b "
    "fill=ones\n",
    "image cluster=2M size=1G refcount_bits=64\ndata 0 16M\nsnapshot id=1\ndata 0 4M\n",
};

struct flip {
    struct io *healthy;
    struct truth truth;
    const struct survey *survey;
    unsigned runs, broken;
};

/* `told`: that of those who share a cluster one may have what is another one's. */
static int run(struct io *io, bool repair, bool *told)
{
    char *remarks;
    size_t length;
    FILE *out = open_memstream(&remarks, &length);
    const struct repair_options how = {.remarks = out};
    struct check_options options = {.threads = 1};
    struct report report;
    report_init(&report, 10);
    if (repair)
        repair_image(io, NULL, &options, &how, &report);
    else
        check_image(io, NULL, &options, &report);
    int exit_code = report_exit_code(&report);
    report_release(&report);
    fclose(out);
    *told = strstr(remarks, "cannot be told");
    free(remarks);
    return exit_code;
}

/* Clean though not as it was: the owners of a shared cluster got one each, where the entry was
 * empty; the discard of the one cluster was interrupted; what compressed data is only --deep
 * asks. */
static bool nothing_tells(const struct survey_value *v, unsigned bit)
{
    bool entry = v->array->traits & SURVEY_ENTRY;
    return entry && (v->value == 0 || (v->value & ~QCOW2_ENTRY_COPIED) == UINT64_C(1) << bit ||
                        (v->value & QCOW2_ENTRY_COMPRESSED));
}

/* A line about a rule that is broken, and its name. */
static void judge(const struct flip *flip, struct io *io, bool known, FILE *out)
{
    struct truth before, after;
    uint64_t most = truth_size(&flip->truth);
    truth_read(io, NULL, most, &before);
    bool told;
    int found = run(io, false, &told), left = run(io, true, &told);
    truth_read(io, NULL, most, &after);
    if (truth_worse(&flip->truth, &before, &after, false, out) > 0)
        fprintf(out, "worse");
    else if (truth_foreign(&flip->truth, &before, &after, false, out) > 0)
        fprintf(out, "foreign");
    else if (found != 0 && left == 0 && known && !told &&
             truth_worse(&flip->truth, &flip->truth, &after, false, out) > 0)
        fprintf(out, "clean, not as it was");
    truth_free(&before);
    truth_free(&after);
}

static void try_bit(struct flip *flip, const struct survey_value *v, unsigned bit)
{
    struct io *io;
    char *text;
    size_t length;
    ck_assert_int_eq(io_mem_branch(flip->healthy, &io), 0);
    ck_assert_int_eq(survey_write(flip->survey, io, v, v->value ^ UINT64_C(1) << bit), 0);
    FILE *out = open_memstream(&text, &length);
    judge(flip, io, !nothing_tells(v, bit), out);
    fclose(out);
    flip->runs++;
    if (length > 0) {
        flip->broken++;
        fprintf(stderr, "%s[%" PRIu64 "] bit %u: %s\n", v->array->label, v->idx, bit, text);
    }
    free(text);
    io_close(io);
}

START_TEST(a_bit_is_wrong)
{
    enum { VALUES = 24, MOST = 1 << 16, EACH = 61 };
    const char *wish = getenv("FLIPS");
    unsigned each = wish && strcmp(wish, "all") == 0 ? 1 : EACH, n = (unsigned)_i;
    char error[RECIPE_ERROR_BYTES];
    struct recipe *recipe = NULL;
    struct survey *survey;
    struct flip flip = {0};
    ck_assert_msg(recipe_text("flips", kinds[_i], &recipe, error) == 0, "%s", error);
    flip.healthy = recipe_io(recipe);
    ck_assert_int_eq(survey_open(flip.healthy, &survey), 0);
    flip.survey = survey;
    truth_read(flip.healthy, NULL, UINT64_MAX, &flip.truth);
    for (size_t a = 0; a < survey->array_count; a++) {
        struct survey_value v = {.array = &survey->arrays[a]};
        unsigned tried = 0;
        bool used = true;
        for (; v.idx < v.array->count && v.idx < MOST && tried < VALUES; v.idx++) {
            ck_assert_int_eq(survey_read(survey, flip.healthy, &v), 0);
            if (v.value == 0 && !used)
                continue; /* the first one of several */
            used = v.value != 0;
            tried++;
            for (unsigned bit = 0; bit < v.bits; bit++) {
                if (++n % each == 0)
                    try_bit(&flip, &v, bit);
            }
        }
    }
    truth_free(&flip.truth);
    survey_close(survey);
    recipe_free(recipe);
    ck_assert_uint_gt(flip.runs, 10);
    ck_assert_uint_eq(flip.broken, 0);
}
END_TEST

Suite *test_flips(void);
Suite *test_flips(void)
{
    Suite *suite = suite_create("flips");
    TCase *tc = tcase_create("flips");
    tcase_set_timeout(tc, 3600);
    tcase_add_loop_test(tc, a_bit_is_wrong, 0, (int)(sizeof(kinds) / sizeof(kinds[0])));
    suite_add_tcase(suite, tc);
    return suite;
}
