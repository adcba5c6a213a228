/* SPDX-License-Identifier: MIT
 *
 * The engine on damaged and odd images: each call, on every image of corpus/, either works or says
 * what is wrong, and leaves the image no worse than it was: the checker finds no damage or danger
 * that was not there before. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "corpus.h"
#include "qcheck.h"
#include "snapshot.h"

enum { FINDINGS_MAX = 20000, PIECE = 1 << 16, READ_MAX = 8 << 20 };

struct trial {
    char name[CORPUS_NAME_BYTES];
    const char *op;
    struct recipe *recipe;
    struct report before;
};

static void judge(struct io *io, struct report *report)
{
    static const struct check_options options = {.threads = 1};
    report_init(report, FINDINGS_MAX);
    check_image(io, NULL, &options, report);
    report_finish(report);
}

/* ---- calls --------------------------------------------------------------------------------- */

static int say(struct image *img, int ret)
{
    ck_assert_msg(ret == 0 || image_error(img)[0], "an error without a word");
    return ret;
}

/* The first and last bytes of a disk, and where the data begins. */
static int read_view(struct image *img, const struct view *view)
{
    uint8_t *buf = malloc(PIECE);
    uint64_t size = view->size_bytes, end = size < READ_MAX ? size : READ_MAX;
    int ret = 0;
    for (uint64_t at = 0; at < end; at += PIECE) {
        int one = say(img,
            view_read(img, view, at, buf, end - at < PIECE ? (size_t)(end - at) : (size_t)PIECE));
        ret = ret < 0 ? ret : one;
    }
    if (size > PIECE)
        (void)say(img, view_read(img, view, size - PIECE, buf, PIECE));
    free(buf);
    return ret;
}

static int op_read(struct image *img)
{
    struct view view = image_view(img);
    uint32_t count;
    int ret = read_view(img, &view);
    snapshot_list(img, &count);
    for (uint32_t i = 0; i < count && i < 8; i++) {
        if (say(img, snapshot_view(img, i, &view)) < 0)
            continue;
        (void)read_view(img, &view);
        view_close(&view);
    }
    return ret;
}

static int op_create(struct image *img)
{
    return say(
        img, snapshot_create(img, &(struct snapshot_info){.name = "new", .icount = UINT64_MAX}));
}

static int op_write(struct image *img)
{
    uint8_t *buf = malloc(3 * PIECE);
    uint64_t size = image_size(img), room = size < 3 * PIECE ? size : 3 * PIECE;
    memset(buf, 0x5a, 3 * PIECE);
    int ret = say(img, image_write(img, 0, buf, (size_t)room));
    if (size > PIECE)
        (void)say(img, image_write(img, size / 2 + 100, buf, 1000));
    free(buf);
    return ret;
}

static int op_discard(struct image *img)
{
    uint64_t size = image_size(img);
    return say(img, image_discard(img, 0, size < READ_MAX ? size : READ_MAX));
}

static int op_apply_first(struct image *img)
{
    return say(img, snapshot_apply(img, 0));
}

static int op_apply_last(struct image *img)
{
    uint32_t count;
    snapshot_list(img, &count);
    return say(img, snapshot_apply(img, count - 1));
}

static int op_delete_first(struct image *img)
{
    return say(img, snapshot_delete(img, 0));
}

static int op_grow(struct image *img)
{
    uint64_t size = image_size(img);
    return say(img,
        image_resize(img, (size < UINT64_C(1) << 50 ? size + (UINT64_C(1) << 30) : 0) / 512 * 512));
}

static int op_shrink(struct image *img)
{
    return say(img, image_resize(img, image_size(img) / 2 / 512 * 512));
}

static int op_all(struct image *img)
{
    (void)op_create(img);
    (void)op_write(img);
    (void)say(img, image_flush(img));
    (void)op_apply_first(img);
    (void)op_write(img);
    (void)op_shrink(img);
    (void)op_grow(img);
    (void)op_delete_first(img);
    (void)op_discard(img);
    return 0;
}

static const struct op {
    const char *name;
    int (*run)(struct image *img);
} ops[] = {
    {"read", op_read},
    {"create", op_create},
    {"write", op_write},
    {"discard", op_discard},
    {"apply the first", op_apply_first},
    {"apply the last", op_apply_last},
    {"delete the first", op_delete_first},
    {"grow", op_grow},
    {"shrink", op_shrink},
    {"all", op_all},
};

/* ---- comparing ----------------------------------------------------------------------------- */

static bool was_there(const struct report *before, const struct finding *finding)
{
    for (size_t i = 0; i < before->sorted.count; i++) {
        const struct finding *old = &before->sorted.items[i];
        if (old->check == finding->check && old->host_off == finding->host_off)
            return true;
    }
    return false;
}

/* What follows from what was wrong before.  Clusters that leak are looked at for lost tables, and
 * deleting leaks more of them.  A table that hangs in two places shows as data shared by two
 * entries once one of its owners has a copy of it.  Where counts are too low, what is in use is
 * taken for free, or freed with its other owner: only a full check would know. */
static bool follows(const struct trial *t, enum check_id check)
{
    static const enum check_id lost[] = {
        CHECK_orphan_l2_table,
        CHECK_orphan_l1_table,
        CHECK_orphan_snapshot_table,
        CHECK_l1_hole,
    };
    for (size_t i = 0; i < sizeof(lost) / sizeof(lost[0]); i++) {
        if (check == lost[i])
            return true;
    }
    if (check == CHECK_l2_entry_shared && t->before.hits[CHECK_l1_entry_shared] > 0)
        return true;
    return t->before.hits[CHECK_refcount_too_low] > 0;
}

static void compare(const struct trial *t, const struct report *after)
{
    for (size_t i = 0; i < after->sorted.count; i++) {
        const struct finding *finding = &after->sorted.items[i];
        enum severity severity = check_rows[finding->check].severity;
        char message[512];
        if ((severity != SEVERITY_DAMAGE && severity != SEVERITY_DANGER) ||
            was_there(&t->before, finding) || follows(t, finding->check) ||
            after->hits[finding->check] <= t->before.hits[finding->check]) /* it moved */
            continue;
        report_message(after, finding, message, sizeof(message));
        ck_abort_msg(
            "corpus/%s: %s: new: %s, %s", t->name, t->op, check_rows[finding->check].name, message);
    }
}

static void try_op(struct trial *t, const struct op *op)
{
    struct io *io;
    struct image *img;
    struct image_error why = {""};
    struct report after;
    t->op = op->name;
    ck_assert_int_eq(recipe_branch(t->recipe, &io), 0);
    int ret = image_open(io, IMAGE_WRITE, &img, &why);
    if (ret < 0) {
        ck_assert_msg(why.text[0], "corpus/%s: no word", t->name);
        io_close(io);
        return;
    }
    ret = op->run(img);
    int closed = image_close(img);
    if (getenv("CORPUS_VERBOSE"))
        printf("%s: %s: %s, %s\n", t->name, op->name, strerror(-ret), strerror(-closed));
    judge(io, &after);
    compare(t, &after);
    report_release(&after);
    io_close(io);
}

START_TEST(no_call_makes_it_worse)
{
    struct trial t = {0};
    struct expect *expect;
    struct io *io;
    corpus_list("", _i, t.name);
    corpus_load(t.name, &t.recipe, &expect);
    ck_assert_int_eq(recipe_branch(t.recipe, &io), 0);
    judge(io, &t.before);
    io_close(io);
    for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++)
        try_op(&t, &ops[i]);
    report_release(&t.before);
    recipe_free(t.recipe);
    expect_free(expect);
}
END_TEST

Suite *test_engine_corpus(void);
Suite *test_engine_corpus(void)
{
    Suite *suite = suite_create("engine_corpus");
    TCase *tc = tcase_create("folders");
    char name[CORPUS_NAME_BYTES];
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, no_call_makes_it_worse, 0, corpus_list("", -1, name));
    suite_add_tcase(suite, tc);
    return suite;
}
