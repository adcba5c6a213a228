/* SPDX-License-Identifier: MIT
 *
 * The oracle of the crash harness, which judges a million states a second, against the checker: the
 * same verdict, and the same number of clusters that leak or are counted too low.
 *
 * The states are random vectors of whole runs in which no flush is obeyed, so that broken ones are
 * as many as sound ones.  $AGREEMENT is how many distinct ones to compare; `make agreement` takes a
 * million. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "explore_impl.h"
#include "oracle_impl.h"
#include "qcheck.h"
#include "run.h"

enum { USUAL_STATES = 20000 };

struct agreement {
    struct oracle oracle;
    struct state *durable, *state;
    struct hash_set seen;
    uint64_t states, sound, broken, wanted;
};

struct miscounts {
    uint64_t low, high, leaked;
};

static struct miscounts tally_oracle(const struct agreement *a)
{
    struct miscounts t = {0};
    for (uint64_t c = 0; c < a->oracle.cluster_count; c++) {
        uint64_t refs = a->oracle.clusters[c].refs, stored = oracle_stored(&a->oracle, a->state, c);
        t.low += stored < refs;
        t.high += refs > 0 && stored > refs;
        t.leaked += refs == 0 && stored > 0;
    }
    return t;
}

/* What the checker says that a power cut may not leave, COPIED flags apart; NULL: nothing. */
static const char *objection(const struct report *report, bool dirty)
{
    if (report->incomplete || report->unsupported)
        return "not judged";
    for (int check = 0; check < CHECK_COUNT; check++) {
        if (report->hits[check] > 0 && !explorer_allows((enum check_id)check, dirty))
            return check_rows[check].name;
    }
    return NULL;
}

static void compare(struct agreement *a, const char *where)
{
    static const struct check_options how = {.threads = 1};
    struct breach breach = {0};
    struct report report;
    bool good = oracle_look(&a->oracle, a->state, &breach);
    ck_assert(!a->oracle.no_memory);
    report_init(&report, 1);
    check_image(&a->state->io, NULL, &how, &report);
    const char *why = objection(&report, !a->oracle.counts_known);
    bool objects = why != NULL;
    if (breach.invariant == INVARIANT_COPIED)
        objects |= report.hits[CHECK_l1_copied_set] || report.hits[CHECK_l2_copied_set] ||
                   report.hits[CHECK_l2_compressed_copied] ||
                   /* where counts lag behind, flags fit them and not the references */
                   (!a->oracle.counts_known && report.hits[CHECK_refcount_too_low]);
    if (breach.invariant != INVARIANT_DISK) /* decoding is not asked for */
        ck_assert_msg(good != objects, "%s: oracle '%s', checker %s", where, breach.text,
            why ? why : verdict_name(report_verdict(&report)));
    if (good || breach.invariant == INVARIANT_COUNTED) {
        struct miscounts t = tally_oracle(a);
        ck_assert_msg(report.hits[CHECK_refcount_too_low] == t.low, "%s: too low", where);
        ck_assert_msg(report.hits[CHECK_refcount_too_high] == t.high, "%s: too high", where);
        ck_assert_msg(report.hits[CHECK_cluster_leaked] == t.leaked, "%s: leaked", where);
    }
    report_release(&report);
    a->states++;
    a->sound += good;
    a->broken += !good;
}

/* One vector; each sector of the run at any version of itself. */
static void visit(struct agreement *a, const struct epoch *epoch, uint64_t seed, const char *where)
{
    uint64_t hash = state_hash_bytes(where, strlen(where), 0);
    bool added;
    state_copy(a->state, a->durable);
    io_resize(
        &a->state->io, epoch->final_size); /* what is past it goes; sizes grow in these runs */
    for (size_t f = 0; f < epoch->unit_count; f++) {
        const struct unit *unit = &epoch->units[f];
        uint64_t r = state_mix(seed + f * UINT64_C(0x9e3779b97f4a7c15));
        /* All at once is nearly always broken: most units follow one of two bounds. */
        unsigned v = (r & 15) == 0 ? (unsigned)(r >> 8) % unit->count
                     : seed & 1    ? unit->count - 1
                                   : 0;
        if (unit->idx * STATE_SECTOR < epoch->final_size)
            state_put(a->state, unit->idx, unit->versions[v].bytes, unit->versions[v].hashes[0]);
        hash = state_mix(hash ^ unit->versions[v].hash);
    }
    ck_assert_int_eq(hash_set_add(&a->seen, hash, &added), 0);
    if (added)
        compare(a, where);
}

static void compare_run(
    struct agreement *a, const char *workload, const char *image, uint64_t round)
{
    struct history h;
    struct epoch epoch;
    char where[96];
    snprintf(where, sizeof(where), "%s@%s", workload, image);
    ck_assert_int_eq(run_history(workload, image, false, NULL, &h), 0);
    ck_assert_int_eq(state_open(h.room_bytes, &a->durable), 0);
    ck_assert_int_eq(state_open(h.room_bytes, &a->state), 0);
    ck_assert_int_eq(state_load(a->durable, h.base), 0);
    state_allow_writes(a->state);
    ck_assert_int_eq(
        epoch_build(&h.recording, 0, h.recording.count, a->durable, STATE_SECTOR, &epoch), 0);
    for (uint64_t i = 0; i < UINT64_C(64) << round && a->states < a->wanted; i++)
        visit(a, &epoch, state_mix(round << 32 | i), where);
    epoch_release(&epoch);
    state_close(a->durable);
    state_close(a->state);
    history_release(&h);
}

START_TEST(oracle_and_checker_agree)
{
    const char *asked = getenv("AGREEMENT");
    struct agreement a = {.wanted = asked ? strtoull(asked, NULL, 0) : USUAL_STATES};
    oracle_init(&a.oracle);
    for (uint64_t round = 0; a.states < a.wanted && round < 16; round++) {
        for (size_t k = 0; k < image_kind_count; k++) {
            /* Where tables are larger than a few sectors there is nothing new but time. */
            if (image_kinds[k].options.size_bytes > 1 << 20 && round > 2)
                continue;
            for (size_t w = 0; w < workload_row_count; w++)
                compare_run(&a, workload_rows[w].name, image_kinds[k].name, round);
        }
    }
    ck_assert_uint_eq(a.states, a.wanted);
    ck_assert_uint_gt(a.sound, a.states / 20);
    ck_assert_uint_gt(a.broken, a.states / 20);
    printf("%llu distinct states, %llu sound, %llu broken: oracle and checker agree on all\n",
        (unsigned long long)a.states, (unsigned long long)a.sound, (unsigned long long)a.broken);
    hash_set_release(&a.seen);
    oracle_release(&a.oracle);
}
END_TEST

Suite *test_agreement(void);
Suite *test_agreement(void)
{
    Suite *suite = suite_create("agreement");
    TCase *tcase = tcase_create("agreement");
    tcase_set_timeout(tcase, 1200);
    tcase_add_test(tcase, oracle_and_checker_agree);
    suite_add_tcase(suite, tcase);
    return suite;
}
