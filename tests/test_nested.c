/* SPDX-License-Identifier: MIT
 *
 * What a guest writes is no metadata: each content of nested.c in each kind of image, sound and
 * with each damage, repaired.
 *
 * A quick run tries each pair of content and damage in one of the images; with NESTED_ALL=1 it is
 * tried in all of them.  NESTED_BASE, NESTED_CONTENT and NESTED_DAMAGE (names) choose some,
 * NESTED_OPEN=1 also demands what is not demanded yet, NESTED_DUMP=1 prints the recipes,
 * NESTED_REMARKS=1 what the repair said. */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nested.h"
#include "recipe.h"
#include "repair.h"
#include "same.h"
#include "truth.h"

/* ---- damages ---- */

#define S NESTED_SPOT_TEXT

/* Rules for both: nothing that could be read reads wrong, a second repair changes nothing.  For a
 * safe repair: nothing reads as anything but what it should or did.  For a lossy one: such a choice
 * is told, and no less is kept than without the content. */
enum { SAFE = 1, LOSSY = 2 };

static const struct damage {
    const char *name, *recipe;
    bool snapshots, bitmap, wide; /* what it takes; wide: counts above 1 */
    unsigned open;                /* the repairs that do not keep the rules yet */
} damages[] = {
    {.name = "l2-zero", .recipe = "damage fill l2[0].offset cluster 0\n"},
    {.name = "l2-garbage", .recipe = "damage fill l2[0].offset cluster 0x5a\n"},
    {.name = "l2-sector-zero", .recipe = "damage fill l2[0].offset 512 0\n"},
    {.name = "l2-sector-garbage", .recipe = "damage fill l2[0].offset 512 0xa5\n", .open = LOSSY},
    {.name = "l2-run-zero", .recipe = "damage fill &l2[0][4] (&l2[0][20] - &l2[0][4]) 0\n"},
    {.name = "l2-spot-zero", .recipe = "damage l2[0][" S "] = 0\n"},
    {.name = "l2-spot-bit", .recipe = "damage l2[0][" S "] ^= 0x1000000\n"},
    {.name = "l2-into-spot", .recipe = "damage l2[0][30].offset = l2[0][" S "].offset\n"},
    {.name = "l2-run-zero-hole-outside",
        .recipe = "damage fill &l2[0][4] (&l2[0][20] - &l2[0][4]) 0\n"
                  "damage l1[3] = 0x8000000100000000\n"},
    {.name = "l2-run-zero-hole-spot",
        .recipe = "damage u64[&l1[3]] = 0x8000000000000000 | l2[0][" S "].offset\n"
                  "damage fill &l2[0][4] (&l2[0][20] - &l2[0][4]) 0\n",
        .open = LOSSY},
    {.name = "l1-hole-outside", .recipe = "damage l1[3] = 0x8000000100000000\n"},
    {.name = "l1-hole-spot", .recipe = "damage l1[3] = 0x8000000000000000 | l2[0][" S "].offset\n"},
    {.name = "count-raised", .recipe = "damage refcount[@l2[0][" S "].offset] = 3\n", .wide = true},
    {.name = "counts-raised",
        .recipe = "damage bytes (&refcount[@l2[0][4].offset]) = 0003000300030003000300030003000300"
                  "0300030003000300030003\n",
        .wide = true},
    {.name = "counts-raised-hole-outside",
        .recipe = "damage bytes (&refcount[@l2[0][4].offset]) = 0003000300030003000300030003000300"
                  "0300030003000300030003\n"
                  "damage l1[3] = 0x8000000100000000\n",
        .wide = true},
    {.name = "l2-both-zero",
        .recipe = "damage fill l2[0].offset cluster 0\ndamage fill l2[1].offset cluster 0\n",
        .open = LOSSY},
    {.name = "l1-zero", .recipe = "damage l1[0] = 0\n"},
    {.name = "l1-outside", .recipe = "damage l1[0] = 0x8000000100000000\n"},
    {.name = "l1-unaligned", .recipe = "damage l1[0] = l1[0] | 0x200\n"},
    {.name = "l1-bit", .recipe = "damage l1[0] ^= 0x40000\n"},
    {.name = "l1-high-bit", .recipe = "damage l1[0] ^= 0x1000000000\n"},
    {.name = "l1-into-spot",
        .recipe = "damage l1[0].offset = l2[0][" S "].offset\n",
        .open = LOSSY},
    {.name = "l1-into-other-spot", .recipe = "damage l1[0].offset = l2[1][" S "].offset\n"},
    {.name = "l1-same", .recipe = "damage l1[0] = l1[1]\n"},
    {.name = "l1-both-zero", .recipe = "damage l1[0] = 0\ndamage l1[1] = 0\n"},
    {.name = "l1-both-outside",
        .recipe = "damage l1[0] = 0x8000000100000000\ndamage l1[1] = 0x8000000200000000\n"},
    {.name = "l1-swapped",
        .recipe = "damage l1[0] ^= l1[1]\ndamage l1[1] ^= l1[0]\ndamage l1[0] ^= l1[1]\n"},
    {.name = "l1-table-zero", .recipe = "damage fill l1.offset cluster 0\n"},
    {.name = "l1-table-garbage", .recipe = "damage fill l1.offset cluster 0x3c\n"},
    {.name = "gone-zero", .recipe = "damage fill l2[0].offset cluster 0\ndamage l1[0] = 0\n"},
    {.name = "gone-zero-outside",
        .recipe = "damage fill l2[0].offset cluster 0\ndamage l1[0] = 0x8000000100000000\n"},
    {.name = "gone-garbage-outside",
        .recipe = "damage fill l2[0].offset cluster 0x5a\ndamage l1[0] = 0x8000000100000000\n"},
    {.name = "gone-zero-unaligned",
        .recipe = "damage fill l2[0].offset cluster 0\ndamage l1[0] = l1[0] | 0x200\n"},
    {.name = "gone-garbage-unaligned",
        .recipe = "damage fill l2[0].offset cluster 0x5a\ndamage l1[0] = l1[0] | 0x200\n"},
    {.name = "gone-garbage-spot",
        .recipe =
            "damage l1[0].offset = l2[0][" S "].offset\ndamage fill l2[0].offset cluster 0x5a\n",
        .open = LOSSY},
    {.name = "gone-both",
        .recipe = "damage fill l2[0].offset cluster 0x5a\ndamage l1[0] = 0x8000000100000000\n"
                  "damage fill l2[1].offset cluster 0x5a\ndamage l1[1] = 0x8000000200000000\n"},
    {.name = "header-l1-zero", .recipe = "damage header.l1_offset = 0\n"},
    {.name = "header-l1-outside", .recipe = "damage header.l1_offset = 1G\n"},
    {.name = "header-l1-unaligned", .recipe = "damage header.l1_offset |= 0x200\n"},
    {.name = "header-l1-spot",
        .recipe = "damage header.l1_offset = l2[0][" S "].offset\n",
        .open = LOSSY},
    {.name = "header-l1-other-spot", .recipe = "damage header.l1_offset = l2[1][" S "].offset\n"},
    {.name = "header-l1-bit", .recipe = "damage header.l1_offset ^= 0x20000\n"},
    {.name = "header-l1-gone",
        .recipe = "damage header.l1_offset = 1G\ndamage fill l1.offset cluster 0\n"},
    {.name = "header-l1-size", .recipe = "damage header.l1_size = 1\n"},
    {.name = "header-l1-long", .recipe = "damage header.l1_size = 0x200\n"},
    {.name = "header-size", .recipe = "damage header.size = 2M\n"},
    {.name = "header-size-huge", .recipe = "damage header.size = 1G\n"},
    {.name = "header-cluster-bits", .recipe = "damage header.cluster_bits ^= 1\n"},
    {.name = "header-cluster-512", .recipe = "damage header.cluster_bits = 9\n"},
    {.name = "header-version", .recipe = "damage header.version = 2\n"},
    {.name = "header-order", .recipe = "damage header.refcount_order = 6\n"},
    {.name = "header-incompatible", .recipe = "damage header.incompatible ^= 0x10\n"},
    {.name = "counts-zero", .recipe = "damage fill refblock[0].offset cluster 0\n"},
    {.name = "counts-garbage", .recipe = "damage fill refblock[0].offset cluster 0x77\n"},
    {.name = "counts-ones", .recipe = "damage fill refblock[0].offset cluster 0xff\n"},
    {.name = "count-spot-zero", .recipe = "damage refcount[@l2[0][" S "].offset] = 0\n"},
    {.name = "reftable-zero", .recipe = "damage fill reftable.offset cluster 0\n"},
    {.name = "reftable-garbage", .recipe = "damage fill reftable.offset cluster 0x77\n"},
    {.name = "reftable-entry-spot", .recipe = "damage reftable[0] = l2[0][" S "].offset\n"},
    {.name = "header-reftable-zero", .recipe = "damage header.reftable_offset = 0\n"},
    {.name = "header-reftable-outside", .recipe = "damage header.reftable_offset = 1G\n"},
    {.name = "header-reftable-spot",
        .recipe = "damage header.reftable_offset = l2[0][" S "].offset\n"},
    {.name = "header-reftable-other-spot",
        .recipe = "damage header.reftable_offset = l2[1][" S "].offset\n"},
    {.name = "reftable-gone",
        .recipe = "damage header.reftable_offset = 1G\ndamage fill reftable.offset cluster 0\n"
                  "damage fill refblock[0].offset cluster 0\n"},
    {.name = "counts-and-l1",
        .recipe = "damage fill refblock[0].offset cluster 0\ndamage l1[0] = 0\n"},
    {.name = "counts-and-l1-outside",
        .recipe = "damage fill refblock[0].offset cluster 0\ndamage l1[0] = 0x8000000100000000\n"},
    {.name = "counts-and-l2",
        .recipe = "damage fill refblock[0].offset cluster 0\n"
                  "damage fill l2[0].offset cluster 0\n"},
    {.name = "cut-table", .recipe = "damage truncate l2[1].offset\n"},
    {.name = "cut-half", .recipe = "damage truncate l2[0][40].offset\n"},
    {.name = "cut-spot", .recipe = "damage truncate l2[0][" S "].offset + cluster\n"},
    {.name = "snapshots-count-zero",
        .recipe = "damage header.snapshot_count = 0\n",
        .snapshots = true},
    {.name = "snapshots-offset-zero",
        .recipe = "damage header.snapshots_offset = 0\n",
        .snapshots = true},
    {.name = "snapshots-both-zero",
        .recipe = "damage header.snapshot_count = 0\ndamage header.snapshots_offset = 0\n",
        .snapshots = true},
    {.name = "snapshots-offset-outside",
        .recipe = "damage header.snapshots_offset = 1G\n",
        .snapshots = true},
    {.name = "snapshots-offset-spot",
        .recipe = "damage header.snapshots_offset = l2[0][" S "].offset\n",
        .snapshots = true},
    {.name = "snapshots-offset-spot-8",
        .recipe = "damage header.snapshots_offset = l2[0][16].offset\n",
        .snapshots = true},
    {.name = "snapshots-zero",
        .recipe = "damage fill snapshots.offset cluster 0\n",
        .snapshots = true},
    {.name = "snapshots-garbage",
        .recipe = "damage fill snapshots.offset cluster 0x5a\n",
        .snapshots = true},
    {.name = "snapshots-gone",
        .recipe = "damage fill snapshots.offset cluster 0\ndamage header.snapshots_offset = 1G\n",
        .snapshots = true},
    {.name = "snapshots-more", .recipe = "damage header.snapshot_count = 4\n", .snapshots = true},
    {.name = "snapshot-l1-zero", .recipe = "damage snapshot[0].l1_offset = 0\n", .snapshots = true},
    {.name = "snapshot-l1-outside",
        .recipe = "damage snapshot[0].l1_offset = 1G\n",
        .snapshots = true},
    {.name = "snapshot-l1-spot",
        .recipe = "damage snapshot[0].l1_offset = l2[0][" S "].offset\n",
        .snapshots = true},
    {.name = "snapshot-l1-entry", .recipe = "damage snapshot[0].l1[0] = 0\n", .snapshots = true},
    {.name = "snapshot-l1-entry-outside",
        .recipe = "damage snapshot[0].l1[0] = 0x100000000\n",
        .snapshots = true},
    {.name = "snapshot-l1-table",
        .recipe = "damage fill snapshot[0].l1.offset cluster 0\n",
        .snapshots = true},
    {.name = "snapshot-l2-zero",
        .recipe = "damage fill snapshot[0].l2[0].offset cluster 0\n",
        .snapshots = true},
    {.name = "snapshot-l2-gone",
        .recipe = "damage fill snapshot[0].l2[0].offset cluster 0x5a\n"
                  "damage snapshot[0].l1[0] = 0x100000000\n",
        .snapshots = true},
    {.name = "bitmaps-offset",
        .recipe = "damage bitmaps.directory_offset = l2[0][" S "].offset\n",
        .bitmap = true},
    {.name = "bitmap-table",
        .recipe = "damage bitmap[0].table_offset = l2[0][" S "].offset\n",
        .bitmap = true},
    {.name = "bitmap-table-zero",
        .recipe = "damage fill bitmap[0].table.offset cluster 0\n",
        .bitmap = true},
};

enum { DAMAGE_COUNT = sizeof(damages) / sizeof(damages[0]) };

/* ---- running ---- */

/* One image with its guest's content, and what all of its disks are. */
struct sound {
    const struct nested_base *base;
    const struct nested_content *content; /* NULL: nothing special */
    char *text;
    struct recipe *recipe;
    struct truth truth;
};

/* What a repair came to. */
struct result {
    int exit_code;
    char *remarks;
    struct truth before, after;
    struct truth_share share;
    bool again; /* a second one changed something */
};

static bool is_wanted(const char *variable, const char *name)
{
    const char *only = getenv(variable);
    return !only || strcmp(only, name) == 0;
}

static struct recipe *build(const char *text)
{
    char error[RECIPE_ERROR_BYTES];
    struct recipe *recipe;
    ck_assert_msg(recipe_text("nested", text, &recipe, error) == 0, "%s", error);
    return recipe;
}

static void sound_open(
    struct sound *s, const struct nested_base *base, const struct nested_content *content)
{
    size_t length;
    *s = (struct sound){.base = base, .content = content};
    FILE *out = open_memstream(&s->text, &length);
    fputs(base->recipe, out);
    if (content)
        content->write(out, base);
    fclose(out);
    s->recipe = build(s->text);
    truth_read(recipe_io(s->recipe), NULL, UINT64_MAX, &s->truth);
}

static void sound_close(struct sound *s)
{
    truth_free(&s->truth);
    recipe_free(s->recipe);
    free(s->text);
}

static int run_repair(struct io *io, bool lossy, FILE *remarks)
{
    const struct repair_options how = {.lossy = lossy, .remarks = remarks};
    struct check_options options = {.threads = 1};
    struct report report;
    report_init(&report, 10);
    repair_image(io, NULL, &options, &how, &report);
    int exit_code = report_exit_code(&report);
    report_release(&report);
    return exit_code;
}

static void result_open(
    struct result *r, const struct sound *s, const struct damage *damage, bool lossy)
{
    struct io *damaged, *once;
    uint64_t most = truth_size(&s->truth);
    size_t length;
    char *text;
    ck_assert_int_gt(asprintf(&text, "%s%s", s->text, damage->recipe), 0);
    if (getenv("NESTED_DUMP") && s->content && !lossy)
        printf("%s\n", text);
    struct recipe *recipe = build(text);
    struct io *io = recipe_io(recipe);
    ck_assert_int_eq(io_mem_branch(io, &damaged), 0);
    truth_read(damaged, NULL, most, &r->before);
    FILE *remarks = open_memstream(&r->remarks, &length);
    r->exit_code = run_repair(io, lossy, remarks);
    fclose(remarks);
    truth_read(io, NULL, most, &r->after);
    truth_kept(&s->truth, recipe_io(s->recipe), damaged, &r->after, &r->share);
    ck_assert_int_eq(io_mem_branch(io, &once), 0);
    run_repair(io, lossy, NULL);
    r->again = !same_image(once, io);
    io_close(once);
    io_close(damaged);
    recipe_free(recipe);
    free(text);
}

static void result_close(struct result *r)
{
    truth_free(&r->before);
    truth_free(&r->after);
    free(r->remarks);
}

/* ---- judging ---- */

/* Adds the first line of what a comparison told, if it told any. */
static void tell(FILE *out, const char *rule, FILE *told, char *const *text)
{
    fclose(told);
    if (**text)
        fprintf(out, "%s: %.*s\n", rule, (int)strcspn(*text, "\n"), *text);
    free(*text);
}

/* A line about each rule that is broken. */
static void judge(const struct sound *s, const struct result *r, const struct result *control,
    bool lossy, FILE *out)
{
    bool is_told = strstr(r->remarks, "choice") || strstr(r->remarks, "lost");
    char *text;
    size_t length;
    FILE *told = open_memstream(&text, &length);
    truth_worse(&s->truth, &r->before, &r->after, lossy, told);
    tell(out, "worse", told, &text);
    told = open_memstream(&text, &length);
    if (!lossy || !is_told)
        truth_foreign(&s->truth, &r->before, &r->after, lossy, told);
    tell(out, lossy ? "untold" : "foreign", told, &text);
    if (r->again)
        fprintf(out, "again: a second repair changes it\n");
    if (control && r->share.kept < control->share.kept)
        fprintf(out, "less: %" PRIu64 " bytes, without the content %" PRIu64 "\n", r->share.kept,
            control->share.kept);
}

static bool is_kept(
    const struct sound *s, const struct damage *d, bool lossy, const struct result *control)
{
    struct result r = {0};
    char *broken = NULL;
    size_t length;
    result_open(&r, s, d, lossy);
    FILE *out = open_memstream(&broken, &length);
    judge(s, &r, control, lossy, out);
    fclose(out);
    bool kept = length == 0;
    if (!kept)
        fprintf(stderr, "NESTED_BASE=%s NESTED_CONTENT=%s NESTED_DAMAGE=%s %s: exit %d\n%s%s",
            s->base->name, s->content ? s->content->name : "none", d->name,
            lossy ? "lossy" : "safe", r.exit_code, broken,
            getenv("NESTED_REMARKS") ? r.remarks : "");
    free(broken);
    result_close(&r);
    return kept;
}

/* All contents, or those that are this image's turn; returns how often a rule was broken. */
static unsigned try_damage(size_t base_idx, size_t damage_idx, bool lossy,
    const struct sound *plain, const struct sound *all)
{
    const struct damage *d = &damages[damage_idx];
    struct result control = {0};
    unsigned broken = 0;
    if (is_wanted("NESTED_CONTENT", "none"))
        broken += !is_kept(plain, d, lossy, NULL);
    if (lossy)
        result_open(&control, plain, d, lossy);
    for (size_t i = 0; i < nested_content_count; i++) {
        bool turn = (damage_idx + i) % nested_base_count == base_idx || getenv("NESTED_ALL");
        if (turn && is_wanted("NESTED_CONTENT", nested_contents[i].name))
            broken += !is_kept(&all[i], d, lossy, lossy ? &control : NULL);
    }
    result_close(&control);
    return broken;
}

static bool is_demanded(const struct nested_base *base, const struct damage *d, unsigned mode)
{
    return (base->snapshots || !d->snapshots) && (base->bitmap || !d->bitmap) &&
           (!base->narrow || !d->wide) && (!(d->open & mode) || getenv("NESTED_OPEN")) &&
           is_wanted("NESTED_DAMAGE", d->name);
}

START_TEST(what_a_guest_writes_is_no_metadata)
{
    size_t base_idx = (size_t)_i;
    const struct nested_base *base = &nested_bases[base_idx];
    struct sound plain, *all = calloc(nested_content_count, sizeof(*all));
    unsigned broken = 0;
    if (!is_wanted("NESTED_BASE", base->name)) {
        free(all);
        return;
    }
    sound_open(&plain, base, NULL);
    for (size_t i = 0; i < nested_content_count; i++)
        sound_open(&all[i], base, &nested_contents[i]);
    for (size_t i = 0; i < DAMAGE_COUNT; i++) {
        if (is_demanded(base, &damages[i], SAFE))
            broken += try_damage(base_idx, i, false, &plain, all);
        if (is_demanded(base, &damages[i], LOSSY))
            broken += try_damage(base_idx, i, true, &plain, all);
    }
    for (size_t i = 0; i < nested_content_count; i++)
        sound_close(&all[i]);
    sound_close(&plain);
    free(all);
    ck_assert_uint_eq(broken, 0);
}
END_TEST

START_TEST(a_sound_image_stays_as_it_is)
{
    const struct nested_base *base = &nested_bases[_i];
    for (size_t i = 0; i < 2 * nested_content_count; i++) {
        const struct nested_content *content = &nested_contents[i / 2];
        struct sound s;
        struct io *was;
        sound_open(&s, base, content);
        ck_assert_int_eq(io_mem_branch(recipe_io(s.recipe), &was), 0);
        int exit_code = run_repair(recipe_io(s.recipe), i % 2, NULL);
        ck_assert_msg(exit_code == 0, "%s %s: exit %d", base->name, content->name, exit_code);
        ck_assert_msg(
            same_image(was, recipe_io(s.recipe)), "%s %s: changed", base->name, content->name);
        io_close(was);
        sound_close(&s);
    }
}
END_TEST

Suite *test_nested(void);
Suite *test_nested(void)
{
    Suite *suite = suite_create("nested");
    TCase *tc = tcase_create("nested");
    tcase_set_timeout(tc, 600);
    tcase_add_loop_test(tc, a_sound_image_stays_as_it_is, 0, (int)nested_base_count);
    tcase_add_loop_test(tc, what_a_guest_writes_is_no_metadata, 0, (int)nested_base_count);
    suite_add_tcase(suite, tc);
    return suite;
}
