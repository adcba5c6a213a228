/* SPDX-License-Identifier: MIT
 *
 * What the programs do not do: arguments that make no sense, or that contradict one another, are
 * refused with exit 1 and a line that says why, before any file is touched. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "corpus.h"
#include "proc.h"
#include "qcheck.h"

static const struct refusal {
    const char *command, *says; /* @ is the folder of the programs */
    int exit_code;
} refusals[] = {
    {"@/qcheck --repair=some image", "either of leaks or of all", 1},
    {"@/qcheck --repair -U image", "-U is for looking only", 1},
    {"@/qcheck --rollback undo -U image", "-U is for looking only", 1},
    {"@/qcheck --lossy image", "belong to --repair", 1},
    {"@/qcheck --dry-run image", "belong to --repair", 1},
    {"@/qcheck --undo undo image", "belong to --repair", 1},
    {"@/qcheck --repair --rollback undo image", "exclude each other", 1},
    {"@/qcheck --repair --undo undo image image", "belongs to one image", 1},
    {"@/qcheck --rollback undo image image", "belongs to one image", 1},
    {"@/qcheck --rollback image image", "no undo log", 1},
    {"@/qsnap create --help", "usage: qsnap", 0},
    {"@/qsnap create --what image a", "--what; usage: qsnap create", 1},
    {"@/qsnap --version", "qsnap 1.0", 0},
    {"@/qsnap new made 18446744073709551615", "too large", 1},
    {"@/qsnap new made 1M -o compat=2", "compat", 1},
    {"@/qsnap new made 1M -o cluster_size", "cluster_size", 1},
    {"@/qsnap new made 1M -o cluster_size=4G", "cluster_size", 1},
    {"@/qsnap new made 1M -o cluster_size=00000000000000000000000000000065536", "cluster_size", 1},
    {"@/qsnap new made 1M -o cluster_size=64k,colour=red", "colour", 1},
    {"@/qsnap new made 1M -o compat=0.10,refcount_bits=8", "0.10", 1},
    {"@/qsnap new made 4194304T -o cluster_size=512", "too large", 1},
    {"@/qsnap write image 0 4k --pattern 256", "not a byte", 1},
    {"@/qsnap write image 0 x", "not a size", 1},
    {"@/qsnap write image 0 64k --from short", "shorter than the range", 1},
    {"@/qsnap list image --output=xml", "not an output format", 1},
    {"@/qsnap list --output=json image > /dev/full", "No space left", 1},
    {"@/qsnap read image 0 4k > /dev/full", "No space left", 1},
    {"@/qsnap --help > /dev/full", "No space left", 1},
    {"@/qsnap list --help > /dev/full", "No space left", 1},
    {"@/qsnap --version > /dev/full", "No space left", 1},
    {"@/qcrash list > /dev/full", "No space left", 1},
    {"@/qcrash --help > /dev/full", "No space left", 1},
    {"@/qcrash list --help > /dev/full", "No space left", 1},
    {"@/qcrash run shrink > /dev/full", "No space left", 1},
    {"@/qcrash run shrink --output=json > /dev/full", "No space left", 1},
    {"@/qcrash run shrink --output=tap > /dev/full", "No space left", 1},
    {"@/qcrash replay apply@c512/sector/1/p0.1+apply_counts_early > /dev/full", "No space left", 1},
    {"@/qcrash flushes shrink > /dev/full", "No space left", 1},
};

START_TEST(is_refused)
{
    const struct refusal *refusal = &refusals[_i];
    char *dir = proc_mkdir(), *programs = realpath(QCHECK_PROGRAM, NULL);
    *strrchr(programs, '/') = '\0';
    corpus_make(dir, "image", "image cluster=4k size=256k\ndata 0 64k pattern=7\n");
    struct proc_result r = proc_run(
        "cd %s && printf x >short && cp image before && %s%s", dir, programs, refusal->command + 1);
    ck_assert_msg(r.exit_code == refusal->exit_code, "%s: exit %d\n%s%s", refusal->command,
        r.exit_code, r.out, r.err);
    ck_assert_msg(strstr(refusal->exit_code ? r.err : r.out, refusal->says) != NULL ||
                      (refusal->exit_code && strstr(r.out, refusal->says)),
        "%s: says\n%s%s", refusal->command, r.out, r.err);
    ck_assert_msg(
        proc_exit("cd %s && cmp -s image before && [ ! -e made ] && [ ! -e undo ]", dir) == 0,
        "%s: something was written", refusal->command);
    proc_free(&r);
    free(programs);
    proc_rmdir(dir);
}
END_TEST

Suite *test_refusals(void);
Suite *test_refusals(void)
{
    Suite *suite = suite_create("refusals");
    TCase *tc = tcase_create("refusals");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, is_refused, 0, (int)(sizeof(refusals) / sizeof(refusals[0])));
    suite_add_tcase(suite, tc);
    return suite;
}
