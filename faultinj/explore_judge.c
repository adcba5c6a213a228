/* SPDX-License-Identifier: MIT
 *
 * Judging a state: oracle and history, the checker, going on, repairing. */
#include <errno.h>

#include "explore_impl.h"
#include "oracle_impl.h"
#include "qcheck.h"

bool explorer_allows(enum check_id check, bool dirty)
{
    switch (check) {
    case CHECK_cluster_leaked:
    case CHECK_refcount_too_high:
    case CHECK_l1_copied_clear:
    case CHECK_l2_copied_clear:
    case CHECK_l1_copied_set:
    case CHECK_l2_copied_set:
    case CHECK_orphan_l1_table:
    case CHECK_orphan_l2_table:
    case CHECK_orphan_snapshot_table:
    case CHECK_l1_hole:
        return true;
    case CHECK_refcount_too_low:
    case CHECK_header_dirty:
        return dirty;
    default:
        return check_rows[check].severity == SEVERITY_NOTE ||
               check_rows[check].severity == SEVERITY_WASTE;
    }
}

/* -ENOMEM, or 0. */
static int run_checker(const struct state *state, struct report *report)
{
    static const struct check_options options = {.threads = 1};
    report_init(report, 8);
    int ret = check_image((struct io *)(uintptr_t)&state->io, NULL, &options, report);
    return ret == -ENOMEM ? ret : 0; /* what else it met is the image's */
}

static enum invariant invariant_of(enum check_id check)
{
    switch (check_rows[check].kind) {
    case OBJECT_CLUSTER:
        return INVARIANT_COUNTED;
    case OBJECT_AREA:
        return INVARIANT_OWNED;
    default:
        return INVARIANT_OPENS;
    }
}

/* -errno of the machine; else the breach tells. */
static int ask_checker(struct explorer *ex, struct breach *breach)
{
    struct report report;
    int ret = run_checker(ex->state, &report);
    if (ret < 0) {
        report_release(&report);
        return ret;
    }
    bool good = !report.incomplete && !report.unsupported;
    if (!good)
        breach_note(breach, INVARIANT_OPENS, "qcheck cannot judge it: %s", report.problem);
    for (int check = 0; good && check < CHECK_COUNT; check++) {
        if (report.hits[check] == 0 ||
            explorer_allows((enum check_id)check, !ex->oracle.counts_known))
            continue;
        char name[CHECK_NAME_BYTES];
        check_name((enum check_id)check, name);
        good = breach_note(breach, invariant_of((enum check_id)check), "qcheck finds %s: %s", name,
            check_rows[check].sentence);
    }
    report_release(&report);
    return 0;
}

/* An image that was damaged before the run: no worse than it was, and on the way to being well. */
static int judge_hurt(struct explorer *ex, bool repair, struct breach *breach)
{
    ex->oracle.lenient = true;
    bool good = oracle_look(&ex->oracle, ex->state, breach) &&
                hurt_no_worse(&ex->history->hurt, &ex->oracle, ex->state, breach) &&
                history_allows(ex->history, ex->window, &ex->oracle.model, breach);
    ex->oracle.lenient = false;
    if (ex->oracle.no_memory)
        return -ENOMEM;
    if (!good || !repair)
        return 0;
    ex->counts->repaired++;
    return repairing_again(&ex->repairing, ex->state, ex->history, ex->window, breach);
}

int explorer_judge(struct explorer *ex, bool check, bool go_on, bool repair, struct breach *breach)
{
    const struct explore_options *options = ex->options;
    if (ex->history->is_hurt)
        return judge_hurt(ex, repair, breach);
    bool good = oracle_look(&ex->oracle, ex->state, breach);
    if (ex->oracle.no_memory)
        return -ENOMEM;
    if (!good || options->metadata_only)
        return 0;
    if (!history_allows(ex->history, ex->window, &ex->oracle.model, breach))
        return 0;
    /* Not where it would count as looked at: the tree of choices covers I1 to I7. */
    if (!ex->state->marks && !leaks_allowed(&ex->limits, &ex->oracle, ex->state, breach))
        return 0;
    int ret = 0;
    if (check) {
        ex->counts->checked++;
        ret = ask_checker(ex, breach);
        if (ret < 0 || breach->invariant != INVARIANT_NONE)
            return ret;
    }
    if (go_on && !options->no_continuation) {
        ret = continuation_run(&ex->continuation, ex->state, &ex->oracle.model, breach);
        ex->counts->continued += !ex->continuation.refused;
        ex->counts->refused += ex->continuation.refused;
    }
    if (ret == 0 && repair && breach->invariant == INVARIANT_NONE) {
        uint64_t before = ex->repairing.cuts;
        struct repairing_promise promise = {&ex->limits, &ex->oracle.model};
        ret = repairing_run(&ex->repairing, ex->state, &promise, breach);
        ex->counts->repaired++;
        ex->counts->orphaned += ex->repairing.orphaned;
        ex->counts->adopted += ex->repairing.adopted;
        ex->counts->repair_cuts += ex->repairing.cuts - before;
    }
    return ret;
}

int explorer_judge_lightly(struct explorer *ex)
{
    struct breach breach = {0};
    struct report report;
    bool good = oracle_look(&ex->oracle, ex->state, &breach) &&
                history_allows(ex->history, ex->window, &ex->oracle.model, &breach);
    int ret = run_checker(ex->state, &report);
    enum verdict verdict = report_verdict(&report);
    report_release(&report);
    if (ret < 0)
        return ret;
    ex->counts->checked++;
    ex->counts->harmed += !good;
    ex->counts->silent += !good && (verdict == VERDICT_CLEAN || verdict == VERDICT_LEAKS);
    return ex->oracle.no_memory ? -ENOMEM : 0;
}
