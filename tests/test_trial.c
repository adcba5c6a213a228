/* SPDX-License-Identifier: MIT
 *
 * A small trial of the repair, for its hard rules; `make repair-trial` does a large one. */
#include <check.h>
#include <stdlib.h>

#include "oracle_run.h"
#include "trial_run.h"

enum { ITEMS = 40, SEED = 40 };

static struct trial_totals run_items(
    uint64_t seed, uint64_t first, uint64_t count, uint64_t at_least)
{
    char *qcheck = oracle_find_qcheck();
    struct item_options options = {
        .seed = seed, .first = first, .count = count, .qcheck = qcheck, .log = stderr};
    struct trial_totals totals;
    ck_assert_ptr_nonnull(qcheck);
    ck_assert_int_eq(trial_run(&options, &totals), 0);
    free(qcheck);
    ck_assert_uint_ge(totals.images, at_least);
    for (unsigned rule = 0; rule < TRIAL_RULES; rule++)
        ck_assert_msg(totals.broken[rule] == 0, "%s", trial_rule_name(rule));
    return totals;
}

START_TEST(hard_rules_are_kept)
{
    run_items(SEED, 0, ITEMS, ITEMS / 2 + 1);
}
END_TEST

/* Images that larger trials found, and that no small recipe shows. */
static const struct {
    uint64_t seed, item;
} found[] = {
    {31337, 139}, /* empty entries were filled in a table that lies on guest data */
    {60221, 3},   /* the only leaked cluster was a bitmap's */
    {60221, 379}, /* hundreds of leaked clusters of zeros, each compared with refcount tables */
    {31337, 179}, /* of an L1 table that is said to be longer no size of clusters makes sense */
    {31337, 969}, /* subclusters that nobody can read are no data that was readable */
    {71723, 162}, /* an entry that read as zeros got the cluster that a bitmap had lost */
    {71723, 203}, /* a longer L1 table showed an entry that nobody can read */
    {71723, 295}, /* what a broken bitmap left was put into an L1 table as an L2 table */
    {71723, 516}, /* a cluster without a place was given to the only subcluster that missed one */
    {71723,
        631}, /* flags were cleared in a snapshot table to which an L1 entry had come to point */
    {71723, 1186}, /* an entry got what a lost table of another disk had */
    {71723, 1511}, /* a snapshot's table was a bit away from what the disk's entry named */
    {71723, 1813}, /* of two disks that disagree the wrong one was believed */
    {80021, 1741}, /* for one entry that named it the LUKS header was looked for elsewhere */
    {80021, 1999}, /* flags were cleared in an entry that named its own table */
    {55511, 32},   /* a snapshot's empty table was taken for a lost one */
    {55511, 48},   /* flags were cleared in guest data that was taken for an L1 table */
    {55511, 771},  /* zeros got what the repair itself had put out of use */
    {55511, 784},  /* a snapshot whose table was said to be longer was given up */
    {55511, 826},  /* an L1 table said to be longer went on over data, where flags were cleared */
    {123457, 250}, /* the first entry of a data file lost its flag, and was none any more */
    {700001, 52},  /* what the repair itself had put out of use was taken for lost data */
    {700001, 134}, /* an entry of zeros, overwritten with garbage, got its stale cluster back */
    {700001, 435}, /* of two entries that name one table the right one was changed */
    {123457, 745}, /* the same where the order of the tables spoke for the wrong one */
    {424243, 249}, /* an entry got a refcount block that nothing named any more: in a second run */
    {424243, 577}, /* so much was wrong that the length of the L1 table was not tried */
    {90011, 22},   /* a flag alone on an empty entry got a table that leaked */
    {90011, 345},  /* data on which a refcount block was said to lie was given up */
    {90011, 724},  /* as 784, with the refcount table lost */
    {90011, 630},  /* a hundred places for a LUKS header, each with a refcount table of 2 MiB */
    {80021, 430},  /* bitmaps whose directory is lost leave what looks like L2 tables */
    {80021, 448},  /* data of a snapshot was taken for the table that a bit had been flipped from */
    {80021, 779},  /* an L2 table that passes the end of the file */
    {80021, 890},  /* of a bitmap and two L1 entries the bitmap was wrong */
    {424243, 818}, /* entries shared with a table that stands in its place were moved */
    {424243, 961}, /* each round copied a cluster for an entry that was not to be changed */
    {424243, 974}, /* counts too low before copies were made passed for lost references behind */
    {55511, 572},  /* what was found again was itself damaged: two entries swapped */
    {161803, 311}, /* where counts were lost an entry a bit away from another disk's was changed */
    {161803, 581}, /* a count of more than there are disks passed for a lost reference */
    {161803, 685}, /* new counts were put over zeros that a table named which was not followed */
    {161803, 724}, /* of two header lengths the one that hid the compression type was taken */
    {161803, 831}, /* garbage beside clusters of 2 MiB used up what may be decoded */
    {271828,
        801}, /* tables too short for all disks, and much else: half a cluster was taken for one */
    {577215, 527}, /* an entry with flags that did not fit got the cluster of a bitmap */
    {20261123,
        872}, /* the table of snapshots was given up for a length that laid it over guest data */
    {880331,
        134}, /* a snapshot's L1 entries were written into guest data where they were said to be */
    {123457, 811},  /* of two snapshots with an empty entry the older one got the table */
    {314159, 827},  /* an entry of zeros got compressed data, another one a lost table for data */
    {314159, 904},  /* an empty entry got the only table that a damaged one could have had */
    {314159, 1117}, /* a snapshot had come to point to a table of zeros, one bit away */
    {314159, 1293}, /* of two entries that named one table the right one was changed */
    {80021, 1410},  /* with the data file's bit zeroed counts make sense */
};

START_TEST(rules_are_kept_for_what_was_found)
{
    run_items(found[_i].seed, found[_i].item, 1, 1);
}
END_TEST

/* Images of which all that is in the file is kept, where it was not. */
static const struct {
    uint64_t seed, item;
    enum trial_tool by;
} kept[] = {
    {577215, 743, TRIAL_SAFE},    /* a lost table was said to lie between data of a row by chance */
    {20261123, 138, TRIAL_LOSSY}, /* a disk's only table was put at its end, not at its start */
    {20261123, 640, TRIAL_LOSSY}, /* one table was taken for the L1 table that names it */
    {20261123, 771, TRIAL_LOSSY}, /* clusters taken for half of theirs, and two damages more */
    {20261123, 900, TRIAL_LOSSY}, /* the same, where a table is lost as well */
    {577215, 140, TRIAL_SAFE},    /* a table whose only cluster is cut by the end of the file */
    {577215, 933, TRIAL_LOSSY},   /* a compressed entry named the directory of bitmaps */
    {20261123, 518,
        TRIAL_SAFE},           /* a length of a record, one bit wrong, and stale bytes behind it */
    {661177, 791, TRIAL_SAFE}, /* an L1 entry named the compressed data of its own lost table */
    {909083, 296,
        TRIAL_LOSSY},        /* the holes of a snapshot passed for places that had lost a table */
    {40, 3, TRIAL_LOSSY},    /* of two snapshots the later one got the earlier one's table */
    {880331, 4, TRIAL_SAFE}, /* beside a count of 32769 nobody looked for a lost cluster */
    {880331, 213, TRIAL_LOSSY},   /* a snapshot's lost table was given to the disk for its flags */
    {20261123, 901, TRIAL_LOSSY}, /* as 743 */
};

START_TEST(what_was_lost_once_is_kept)
{
    struct trial_totals totals = run_items(kept[_i].seed, kept[_i].item, 1, 1);
    const struct truth_share *share = &totals.tools[kept[_i].by].share;
    ck_assert_uint_eq(share->kept, share->in_file);
}
END_TEST

Suite *test_trial(void);
Suite *test_trial(void)
{
    Suite *suite = suite_create("trial");
    TCase *tcase = tcase_create("trial");
    tcase_set_timeout(tcase, 600);
    tcase_add_test(tcase, hard_rules_are_kept);
    tcase_add_loop_test(
        tcase, rules_are_kept_for_what_was_found, 0, sizeof(found) / sizeof(found[0]));
    tcase_add_loop_test(tcase, what_was_lost_once_is_kept, 0, sizeof(kept) / sizeof(kept[0]));
    suite_add_tcase(suite, tcase);
    return suite;
}
