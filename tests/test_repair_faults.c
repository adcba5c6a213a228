/* SPDX-License-Identifier: MIT
 *
 * The repair, interrupted: writes that fail, power cuts with and without torn sectors.  Whatever is
 * left then must read, cluster by cluster, as it did before or as it does after the whole repair;
 * no count may be too low that was not; a second repair must come to the same end; and the undo log
 * must give back every byte. */
#include <check.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "corpus.h"
#include "journal.h"
#include "repair.h"
#include "same.h"
#include "specimen.h"
#include "truth.h"

enum { MAX_STATES = 60, TORN_VARIANTS = 2, IMAGE = 0, LOG = 1 };

/* One image and one kind of repair. */
struct patient {
    char name[CORPUS_NAME_BYTES];
    bool lossy;
    struct io *broken;
    struct truth before, after; /* of the whole repair */
    struct report report;       /* of a check before, */
    struct walk *walk;          /* and what it learnt; may be NULL */
    int exit_code;              /* after the whole repair */
    struct journal journal;     /* of the whole repair */
    bool failed;
    unsigned long states;
};

static void complain(struct patient *s, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void complain(struct patient *s, const char *format, ...)
{
    va_list args;
    if (s->failed)
        return; /* the first is told */
    s->failed = true;
    fprintf(stderr, "repair_faults %s%s: ", s->name, s->lossy ? " --lossy" : "");
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
}

static struct io *branch(struct io *src)
{
    struct io *io;
    ck_assert_int_eq(io_mem_branch(src, &io), 0);
    return io;
}

static int repair(struct patient *s, struct io *io)
{
    struct check_options check = {.threads = 1};
    struct repair_options options = {.lossy = s->lossy};
    struct report report;
    report_init(&report, 100);
    repair_image(io, NULL, &check, &options, &report);
    int exit_code = report_exit_code(&report);
    report_release(&report);
    return exit_code;
}

static void look(struct io *io, struct report *report, struct walk **walk)
{
    struct check_options options = {.threads = 1};
    report_init(report, 100);
    walk_open(io, NULL, &options, report, walk);
}

/* ---- what must hold ---------------------------------------------------------------------------
 */

/* Where a disk becomes longer, a cluster behind its old end reads as zeros, then as nothing that
 * can be read, and at last as what --lossy makes of it. */
static bool shows_damage(const struct patient *s)
{
    return s->lossy && strcmp(s->name, "snapshot-l1-too-small-damaged") == 0;
}

/* Content as before or as after; `what` and n name the state. */
static void judge_content(struct patient *s, struct io *io, const char *what, size_t n)
{
    struct truth now;
    char *why = NULL;
    size_t length;
    FILE *out = open_memstream(&why, &length);
    ck_assert_ptr_nonnull(out);
    truth_read(io, NULL, UINT64_MAX, &now);
    if (truth_between(&s->before, &s->after, &now, shows_damage(s), out) > 0) {
        fflush(out);
        complain(s, "%s %zu: %s", what, n, why);
    }
    fclose(out);
    free(why);
    truth_free(&now);
}

/* Before the repair there was a count of the cluster that could be read: of another one it is not
 * known whether it was too low, and once its block is back, it is. */
static bool was_counted(const struct walk *walk, const struct walk *now, uint64_t host_off)
{
    if (!walk || !walk->census || walk->geo.cluster_size != now->geo.cluster_size ||
        walk->geo.refcount_order != now->geo.refcount_order)
        return false;
    uint64_t cluster = cluster_of(&walk->geo, host_off);
    return census_known(walk->census, cluster) &&
           walk_block_off(walk, cluster >> walk->geo.refblock_bits) != 0;
}

/* Clusters whose count is too low in `now` and could be read in `walk`. */
static uint64_t count_low(const struct walk *walk, const struct walk *now)
{
    uint64_t cluster = 0, low = 0;
    while (now && now->census && census_next_mismatch(now->census, cluster, &cluster) &&
           cluster < now->cluster_end) {
        low += census_get(now->census, cluster).balance < 0 &&
               was_counted(walk, now, cluster << now->geo.cluster_bits);
        cluster++;
    }
    return low;
}

static void judge_counts(struct patient *s, struct io *io, const char *what, size_t n)
{
    struct report report;
    struct walk *now;
    look(io, &report, &now);
    uint64_t before = count_low(s->walk, s->walk), low = count_low(s->walk, now);
    if (low > before)
        complain(s, "%s %zu: %llu counts too low, before the repair %llu", what, n,
            (unsigned long long)low, (unsigned long long)before);
    walk_close(now);
    report_release(&report);
}

/* A second repair comes to the end that the first one would have come to. */
static void judge_again(struct patient *s, struct io *io, const char *what, size_t n)
{
    int exit_code = repair(s, io);
    if (exit_code != s->exit_code)
        complain(s, "%s %zu: repaired again exit %d, without interruption %d", what, n, exit_code,
            s->exit_code);
    judge_content(s, io, "repaired again after", n);
}

static void judge(struct patient *s, struct io *io, const char *what, size_t n)
{
    s->states++;
    judge_content(s, io, what, n);
    judge_counts(s, io, what, n);
    judge_again(s, io, what, n);
}

/* ---- interruptions ----------------------------------------------------------------------------
 */

/* Of many, some: a repair of n operations is cut in at most MAX_STATES places. */
static size_t step(const struct patient *s)
{
    return 1 + s->journal.count / MAX_STATES;
}

static void fail_calls(struct patient *s)
{
    for (size_t n = 1; n <= s->journal.count && !s->failed; n += step(s)) {
        struct journal journal = {.fail_from = n};
        struct io *image = branch(s->broken);
        struct io *device = journal_open(&journal, IMAGE, image);
        int exit_code = repair(s, device);
        if (journal.fired && exit_code != 1 && exit_code != 63)
            complain(s, "call %zu and all later ones fail: exit %d", n, exit_code);
        judge(s, image, "call fails", n);
        io_close(device);
        journal_free(&journal);
    }
}

static void cut_power(struct patient *s)
{
    for (size_t n = 1; n <= s->journal.count && !s->failed; n += step(s)) {
        for (unsigned variant = 0; variant <= TORN_VARIANTS; variant++) {
            struct rng rng = rng_for(variant, n);
            struct io *image = branch(s->broken);
            journal_replay(&s->journal, IMAGE, n, variant ? &rng : NULL, image);
            judge(s, image, variant ? "torn at" : "cut after", n);
            io_close(image);
        }
    }
}

static void roll_back_one(
    struct patient *s, const struct journal *journal, size_t n, struct rng *rng)
{
    struct io *image = branch(s->broken), *log;
    ck_assert_int_eq(io_mem_open(0, &log), 0);
    journal_replay(journal, IMAGE, n, rng, image);
    journal_replay(journal, LOG, n, rng, log);
    s->states++;
    int ret = io_undo_rollback(log, image);
    if (ret < 0 && ret != -EILSEQ) /* no log yet: then there was nothing to undo */
        complain(s, "%s %zu: rollback: %s", rng ? "torn at" : "cut after", n, strerror(-ret));
    else if (!same_image(image, s->broken))
        complain(s, "%s %zu: rollback %d left other bytes", rng ? "torn at" : "cut after", n, ret);
    io_close(image);
    io_close(log);
}

static void roll_back(struct patient *s)
{
    struct journal journal = {0};
    struct io *log, *undo;
    ck_assert_int_eq(io_mem_open(0, &log), 0);
    struct io *image = journal_open(&journal, IMAGE, branch(s->broken));
    ck_assert_int_eq(io_undo_open(image, journal_open(&journal, LOG, log), &undo), 0);
    repair(s, undo);
    size_t most = 1 + journal.count / MAX_STATES;
    for (size_t n = 0; n <= journal.count && !s->failed; n += most) {
        for (unsigned variant = 0; variant <= TORN_VARIANTS; variant++) {
            struct rng rng = rng_for(variant, n);
            roll_back_one(s, &journal, n, variant ? &rng : NULL);
        }
    }
    io_close(undo);
    journal_free(&journal);
}

static void patient_run(struct patient *s)
{
    struct io *whole = branch(s->broken);
    struct io *device = journal_open(&s->journal, IMAGE, whole);
    look(s->broken, &s->report, &s->walk);
    truth_read(s->broken, NULL, UINT64_MAX, &s->before);
    s->exit_code = repair(s, device);
    truth_read(whole, NULL, UINT64_MAX, &s->after);
    fail_calls(s);
    cut_power(s);
    roll_back(s);
    truth_free(&s->before);
    truth_free(&s->after);
    walk_close(s->walk);
    report_release(&s->report);
    io_close(device);
    journal_free(&s->journal);
}

/* ---- images -----------------------------------------------------------------------------------
 */

static unsigned run_both(const char *name, struct io *broken, unsigned long *states)
{
    unsigned failed = 0;
    for (int lossy = 0; lossy < 2; lossy++) {
        struct patient s = {.lossy = lossy, .broken = broken};
        snprintf(s.name, sizeof(s.name), "%s", name);
        patient_run(&s);
        failed += s.failed;
        *states += s.states;
    }
    return failed;
}

/* $REPAIR_FAULTS is "all", or names one folder of the corpus, or one random image as SEED:ITEM.
 * Without it only one in SAMPLE is tried. */
static bool wanted(const char *name, uint64_t number)
{
    enum { SAMPLE = 6 };
    const char *only = getenv("REPAIR_FAULTS");
    if (only)
        return strcmp(only, "all") == 0 || strcmp(only, name) == 0;
    return number % SAMPLE == 0;
}

START_TEST(corpus_images_survive)
{
    char name[CORPUS_NAME_BYTES];
    unsigned long states = 0;
    unsigned failed = 0;
    for (int which = 0; which < corpus_list("", 0, name); which++) {
        struct recipe *recipe;
        struct expect *expect;
        corpus_list("", which, name);
        if (!wanted(name, (uint64_t)which))
            continue;
        corpus_load(name, &recipe, &expect);
        if (!recipe_has_unreadable(recipe))
            failed += run_both(name, recipe_io(recipe), &states);
        recipe_free(recipe);
        expect_free(expect);
    }
    ck_assert_msg(failed == 0, "%u repairs, %lu states", failed, states);
}
END_TEST

static unsigned run_random(struct specimen *s, uint64_t seed, uint64_t item, unsigned long *states)
{
    char name[64], path[4096], *story = NULL;
    struct io *file, *broken;
    snprintf(name, sizeof(name), "%llu:%llu", (unsigned long long)seed, (unsigned long long)item);
    if (!wanted(name, item))
        return 0;
    ck_assert_int_eq(specimen_damage(s, seed, item, "case.qcow2", &story), 0);
    snprintf(path, sizeof(path), "%s/case.qcow2", s->dir);
    ck_assert_int_eq(io_file_open(path, IO_FILE_NO_LOCK, &file, NULL), 0);
    ck_assert_int_eq(io_mem_load(file, &broken), 0);
    io_close(file);
    unsigned failed = run_both(name, broken, states);
    if (failed)
        fprintf(stderr, "%s", story);
    free(story);
    io_close(broken);
    return failed;
}

START_TEST(random_images_survive)
{
    enum { ITEMS = 24, SEED = 7 };
    struct specimen s;
    unsigned long states = 0;
    unsigned failed = 0;
    specimen_open(&s);
    for (uint64_t item = 0; item < ITEMS; item++) {
        if (item % SPECIMEN_SHARE == 0)
            specimen_sound(&s, SEED, item);
        if (s.made)
            failed += run_random(&s, SEED, item, &states);
    }
    specimen_close(&s);
    ck_assert_msg(failed == 0, "%u repairs, %lu states", failed, states);
}
END_TEST

Suite *test_repair_faults(void);
Suite *test_repair_faults(void)
{
    Suite *suite = suite_create("repair_faults");
    TCase *tcase = tcase_create("repair_faults");
    tcase_set_timeout(tcase, 600);
    tcase_add_test(tcase, corpus_images_survive);
    tcase_add_test(tcase, random_images_survive);
    suite_add_tcase(suite, tcase);
    return suite;
}
