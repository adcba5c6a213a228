/* SPDX-License-Identifier: MIT
 *
 * Hunting mutants, and the report on flushes. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "mutants.h"
#include "run.h"
#include "text.h"

static const char *const power_models[] = {
    "prefix", "prefix-torn", "omit-one", "write-atomic", "page", "sector"};
enum { POWER_MODELS = 6 };

/* What the hunt found first. */
struct hunt {
    const struct history *history;
    const struct fault_model *model;
    const char *suffix;
    bool found;
    uint64_t states;
    struct explore_counts counts;
    struct story story;
};

static int caught(void *arg, const struct violation *violation)
{
    struct hunt *hunt = arg;
    hunt->found = true;
    hunt->states = hunt->counts.executed;
    int ret = story_make(hunt->history, hunt->model, violation, hunt->suffix, &hunt->story);
    return ret < 0 ? ret : 1;
}

static int hunt_run(
    struct hunt *hunt, const struct recording *recording, const struct explore_options *options)
{
    hunt->found = false;
    hunt->counts = (struct explore_counts){0};
    story_release(&hunt->story);
    int ret =
        explore_run(hunt->history, recording, hunt->model, options, &hunt->counts, caught, hunt);
    return ret > 0 ? 0 : ret;
}

static void print_found(const struct hunt *hunt, const char *by, FILE *out)
{
    const struct story *s = &hunt->story;
    fprintf(out, "    by %s; sector: after %" PRIu64 " states\n    I%d: %s\n", by, hunt->states,
        (int)s->invariant, s->message);
    for (size_t i = 0; i < s->persisted_count; i++)
        fprintf(out, "    persisted: %s\n", s->persisted[i]);
    for (size_t i = 0; i < s->lost_count; i++)
        fprintf(out, "    lost:      %s\n", s->lost[i]);
    for (size_t i = 0; i < s->backtrace_count; i++)
        fprintf(out, "    called by: %s\n", s->backtraces[i]);
    fprintf(out, "    qcrash replay '%s'\n", s->id);
}

static int hunt_one(
    const struct mutant *mutant, const struct explore_options *options, FILE *out, bool *found)
{
    struct history history = {0};
    char by[96] = "";
    size_t used = 0;
    *found = false;
    int ret = mutant_history(mutant, true, &history);
    struct hunt hunt = {.history = &history, .suffix = mutant->name};
    for (int i = 0; ret == 0 && i < POWER_MODELS; i++) {
        hunt.model = fault_model_find(power_models[i]);
        ret = hunt_run(&hunt, &history.recording, options);
        if (hunt.found && used < sizeof(by))
            used += (size_t)snprintf(
                by + used, sizeof(by) - used, "%s%s", used ? ", " : "", power_models[i]);
    }
    if (ret == 0 && !hunt.found && history.live.invariant != INVARIANT_NONE) {
        hunt.found = true;
        snprintf(by, sizeof(by), "none: it needs no power cut");
        story_live(&history, mutant->name, &hunt.story);
    }
    *found = ret == 0 && hunt.found;
    fprintf(out, "%-24s %s %s@%s\n    %s\n", mutant->name,
        *found           ? "found "
        : ret == -ENOENT ? "NOTHING TO CHANGE"
                         : "MISSED",
        mutant->workload, mutant->image, mutant->sentence);
    if (*found)
        print_found(&hunt, by, out);
    story_release(&hunt.story);
    history_release(&history);
    return ret == -ENOENT ? 0 : ret;
}

int mutants_run(const struct explore_options *options, FILE *out, unsigned *missed)
{
    int ret = 0;
    *missed = 0;
    for (size_t i = 0; ret == 0 && i < mutant_count; i++) {
        bool found;
        ret = hunt_one(&mutants[i], options, out, &found);
        *missed += ret == 0 && !found;
        fflush(out);
    }
    if (ret == 0)
        fprintf(out, "%zu mutants, %u missed\n", mutant_count, *missed);
    return ret;
}

/* ---- flushes ------------------------------------------------------------------------------- */

static const char *flush_op(const struct history *h, const struct request *r, char *out, size_t len)
{
    snprintf(out, len, "the end");
    if (r->op < h->workload.count)
        op_text(&h->workload.ops[r->op], out, len);
    return out;
}

/* The log without flush `idx`, which ended epoch `epoch`. */
static int without_flush(struct hunt *hunt, size_t idx, unsigned epoch,
    const struct explore_options *options, FILE *out, struct flush_tally *tally)
{
    struct recording recording;
    struct explore_options one = *options;
    char op[64], suffix[32];
    const struct request *r = &hunt->history->recording.list[idx];
    int ret = recording_copy(&hunt->history->recording, &recording);
    if (ret < 0)
        return ret;
    snprintf(suffix, sizeof(suffix), "flush-%u", epoch);
    hunt->suffix = suffix;
    recording_remove(&recording, idx);
    one.only_epoch = epoch + 1;
    ret = hunt_run(hunt, &recording, &one);
    size_t kind =
        r->op < hunt->history->workload.count ? hunt->history->workload.ops[r->op].kind : OP_CLOSE;
    tally->flushes[kind]++;
    tally->needed[kind] += hunt->found;
    fprintf(out, "  flush %u of %-14s ", epoch, flush_op(hunt->history, r, op, sizeof(op)));
    if (hunt->found)
        fprintf(out, "needed: I%d, %s\n", (int)hunt->story.invariant, hunt->story.message);
    else
        fprintf(out, "NOT needed in %" PRIu64 " states%s%s%s\n", hunt->counts.executed,
            explore_exhaustive(&hunt->counts) ? " (all)" : "", r->backtrace ? ", " : "",
            r->backtrace ? r->backtrace : "");
    recording_release(&recording);
    return ret;
}

int flushes_report(const char *workload, const char *image, const struct explore_options *options,
    FILE *out, struct flush_tally *tally)
{
    struct history history;
    int ret = run_history(workload, image, true, NULL, &history);
    if (ret < 0)
        return ret;
    struct hunt hunt = {.history = &history, .model = fault_model_find("sector")};
    unsigned epoch = 0;
    text_line(out, "%s@%s", workload, image);
    for (size_t i = 0; ret == 0 && i < history.recording.count; i++) {
        const struct request *r = &history.recording.list[i];
        if (r->kind == REQUEST_FLUSH && r->result == 0)
            ret = without_flush(&hunt, i, epoch++, options, out, tally);
    }
    story_release(&hunt.story);
    history_release(&history);
    return ret;
}

void flushes_print(const struct flush_tally *tally, FILE *out)
{
    fprintf(out, "%-10s %8s %8s %8s\n", "operation", "flushes", "needed", "not");
    for (unsigned k = 0; k <= OP_CLOSE; k++) {
        if (tally->flushes[k] > 0)
            fprintf(out, "%-10s %8u %8u %8u\n", op_kind_name((enum op_kind)k), tally->flushes[k],
                tally->needed[k], tally->flushes[k] - tally->needed[k]);
    }
}
