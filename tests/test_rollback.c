/* SPDX-License-Identifier: MIT
 *
 * A way back that is not walked to its end: qcheck --rollback, and the repair before it, killed at
 * each write of theirs, in turn.  The next --rollback gives back every byte. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "corpus.h"
#include "desk.h"

#if defined(__SANITIZE_ADDRESS__)
enum { PRELOAD = 0 };
#else
enum { PRELOAD = 1 };
#endif

/* Images whose repair writes in different ways. */
static const struct row {
    const char *recipe, *repair;
} rows[] = {
    /* counts, in place */
    {"image cluster=4k size=8M\ndata 0 64k\nsnapshot id=1\ndamage refcount[@l2[0][3]] = 0\n"
     "damage refcount[@l2[0][5]] = 7\ndamage l2[0][9] &= 0x7fffffffffffffff\n",
        "--repair"},
    /* a new refcount structure: the file grows */
    {"image cluster=512 size=1M\ndata 0 128k\ndamage reftable[0] = 0\n"
     "damage fill refblock[0].offset 512 0\n",
        "--repair"},
    /* copies of shared clusters, new tables of snapshots and bitmaps */
    {"image cluster=4k size=4M\ndata 0 64k\ncompressed 1M 8k\nsnapshot id=1 name=a\n"
     "snapshot id=1 name=b\nbitmap name=c\nbitmap name=d\ndamage l2[0][9] = l2[0][1]\n"
     "damage bitmap[1].type = 9\n",
        "--repair --lossy"},
    /* a file that was cut off */
    {"image cluster=4k size=4M\ndata 0 64k\ndata 2M 64k\ndamage truncate -20k\n",
        "--repair --lossy"},
};
enum { ROWS = sizeof(rows) / sizeof(rows[0]) };

/* Runs qcheck on the image and has it killed at its n-th call of that kind; false: there are less.
 */
static bool killed_at(const struct desk *desk, const char *kind, int n, const char *arguments)
{
    struct proc_result r = proc_run(
        "cd '%s' && LD_PRELOAD='%s/tests/fail_calls.so' FAIL_MODE=kill FAIL_KIND=%s FAIL_NTH=%d "
        "'%s/qcheck' -q -j 1 %s >/dev/null 2>&1",
        desk->dir, desk->programs, kind, n, desk->programs, arguments);
    bool killed = r.exit_code == 128 + 9;
    ck_assert_msg(killed || r.exit_code <= 3, "%s: exit %d\n%s", arguments, r.exit_code, r.err);
    proc_free(&r);
    return killed;
}

static void expect_way_back(const struct desk *desk)
{
    desk_want(desk,
        "qcheck -q --rollback undo a; cmp a before && qcheck -q --rollback undo a; "
        "cmp a before",
        0, "", "");
}

static const char *const kinds[] = {"write", "torn", "sync", "resize"};
enum { KINDS = sizeof(kinds) / sizeof(kinds[0]) };

START_TEST(the_way_back_is_cut)
{
    const struct row *row = &rows[_i / KINDS];
    const char *kind = kinds[_i % KINDS];
    struct desk desk = desk_open();
    char command[200];
    corpus_make(desk.dir, "before", row->recipe);
    snprintf(command, sizeof(command),
        "cp before a; qcheck -q %s --undo undo a; cp a after; ! cmp -s before after", row->repair);
    desk_works(&desk, command);
    int n = 1;
    while (killed_at(&desk, kind, n, "--rollback undo a")) {
        expect_way_back(&desk);
        desk_works(&desk, "cp after a");
        n++;
    }
    expect_way_back(&desk);
    if (strcmp(kind, "resize") != 0)
        ck_assert_int_gt(n, 1);
    desk_close(&desk);
}
END_TEST

/* Killed before the log was whole nothing was changed, and it is no log yet. */
START_TEST(the_repair_is_cut)
{
    const struct row *row = &rows[_i / KINDS];
    const char *kind = kinds[_i % KINDS];
    struct desk desk = desk_open();
    char arguments[200];
    corpus_make(desk.dir, "before", row->recipe);
    snprintf(arguments, sizeof(arguments), "%s --undo undo a", row->repair);
    desk_works(&desk, "cp before a");
    for (int n = 1; killed_at(&desk, kind, n, arguments); n += n < 40 ? 1 : 7) {
        desk_want(
            &desk, "cmp -s a before || { qcheck -q --rollback undo a; cmp a before; }", 0, "", "");
        desk_works(&desk, "rm -f undo; cp before a");
    }
    desk_close(&desk);
}
END_TEST

Suite *test_rollback(void);
Suite *test_rollback(void)
{
    Suite *suite = suite_create("rollback");
    TCase *tc = tcase_create("rollback");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, the_way_back_is_cut, 0, PRELOAD ? ROWS * KINDS : 0);
    tcase_add_loop_test(tc, the_repair_is_cut, 0, PRELOAD ? ROWS * KINDS : 0);
    suite_add_tcase(suite, tc);
    return suite;
}
