/* SPDX-License-Identifier: MIT
 *
 * See sweep.h. */
#include "sweep.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

enum { CALLS_MAX = 2000, LOSE_VARIANTS = 6, SWEEP_CAP = 256, REPORTS_PER_KIND = 3 };

static const char *const call_names[] = {"none", "read", "write", "flush", "discard", "alloc"};
static const char *const mode_names[] = {"once", "forgood", "short", "stop", "drop", "lie"};

struct sweep_row {
    enum fault_call call;
    enum fault_mode mode;
    int error;
};

static const struct sweep_row rows[] = {
    {FAULT_READ, FAULT_ONCE, -EIO},
    {FAULT_READ, FAULT_FOR_GOOD, -EIO},
    {FAULT_WRITE, FAULT_ONCE, -EIO},
    {FAULT_WRITE, FAULT_FOR_GOOD, -ENOSPC},
    {FAULT_WRITE, FAULT_SHORT, -ENOSPC},
    {FAULT_WRITE, FAULT_STOP, -EIO},
    {FAULT_FLUSH, FAULT_ONCE, -EIO},
    {FAULT_FLUSH, FAULT_STOP, -EIO},
    {FAULT_FLUSH, FAULT_DROP, -EIO},
    {FAULT_FLUSH, FAULT_LIE, 0},
    {FAULT_DISCARD, FAULT_ONCE, -EOPNOTSUPP},
    {FAULT_DISCARD, FAULT_FOR_GOOD, -EIO},
    {FAULT_ALLOC, FAULT_ONCE, -ENOMEM},
};

const size_t sweep_row_count = sizeof(rows) / sizeof(rows[0]);

void sweep_row_name(size_t idx, char *out, size_t out_len)
{
    snprintf(out, out_len, "%s-%s", call_names[rows[idx].call], mode_names[rows[idx].mode]);
}

const char *sweep_row_sentence(size_t idx)
{
    static const char *const sentences[] = {
        [FAULT_ONCE] = "the n-th call fails, the next one works",
        [FAULT_FOR_GOOD] = "the n-th call and all of its kind after it fail",
        [FAULT_SHORT] = "the n-th call does its first half, then fails",
        [FAULT_STOP] = "the n-th call fails, and nothing works after it",
        [FAULT_DROP] = "the n-th call fails and loses what was not durable; the next one succeeds",
        [FAULT_LIE] = "the n-th call succeeds and does nothing (tells which flushes are needed)",
    };
    return sentences[rows[idx].mode];
}

bool sweep_parse(const char *text, struct fault_plan *plan, unsigned *variant)
{
    char call[16], mode[16];
    unsigned n = 0;
    *variant = 0;
    if (sscanf(text, "fault-%15[a-z]-%15[a-z]-%u-%u", call, mode, &n, variant) < 3)
        return false;
    for (size_t i = 0; i < sweep_row_count; i++) {
        if (strcmp(call, call_names[rows[i].call]) == 0 &&
            strcmp(mode, mode_names[rows[i].mode]) == 0) {
            *plan = (struct fault_plan){
                .call = rows[i].call, .mode = rows[i].mode, .error = rows[i].error, .n = n};
            return true;
        }
    }
    return false;
}

int sweep_lose(struct recording *r, const struct fault_plan *plan, unsigned variant)
{
    size_t flush = 0, first = 0;
    unsigned left = plan->n;
    if (plan->call != FAULT_FLUSH || plan->mode != FAULT_DROP)
        return variant == 0 ? 0 : -ENOENT;
    for (; flush < r->count; flush++) {
        if (r->list[flush].kind != REQUEST_FLUSH)
            continue;
        if (--left == 0)
            break;
        first = flush + 1;
    }
    if (flush < r->count)
        r->list[flush].result = FLUSH_LOST;
    if (flush == r->count || (variant > 0 && first + variant > flush))
        return -ENOENT;
    if (variant > 0) {
        recording_remove(r, first + variant - 1);
        return 0;
    }
    while (flush > first)
        recording_remove(r, --flush);
    return 0;
}

struct sweep {
    const struct explore_options *options;
    struct output *output;
    const char *workload, *image;
    struct explore_counts counts;
    unsigned reported;
    bool lies, needed;
    /* of the current run */
    const struct history *history;
    const struct fault_model *model;
    char suffix[48];
};

static int tell(void *arg, const struct violation *violation)
{
    struct sweep *s = arg;
    struct story story;
    if (s->lies) { /* nothing is promised then: it tells that the flush is needed */
        s->needed = true;
        return 1;
    }
    if (s->reported++ >= REPORTS_PER_KIND)
        return 1;
    int ret = story_make(s->history, s->model, violation, s->suffix, &story);
    return ret == 0 ? output_story(s->output, &story) : ret;
}

/* The power cuts after a fault, with what the fault lost. */
static int cut_power(struct sweep *s, const struct fault_plan *plan, unsigned variant)
{
    struct recording recording;
    int ret = recording_copy(&s->history->recording, &recording);
    if (ret < 0)
        return ret;
    snprintf(s->suffix, sizeof(s->suffix), "fault-%s-%s-%u-%u", call_names[plan->call],
        mode_names[plan->mode], plan->n, variant);
    ret = sweep_lose(&recording, plan, variant);
    if (ret == 0)
        ret = explore_run(s->history, &recording, s->model, s->options, &s->counts, tell, s);
    recording_release(&recording);
    return ret > 0 ? 0 : ret;
}

static int run_plan(struct sweep *s, struct fault_plan *plan)
{
    struct history history;
    int ret = run_history(s->workload, s->image, false, plan, &history);
    if (ret < 0)
        return ret;
    s->history = &history;
    s->lies = plan->mode == FAULT_LIE;
    s->needed = s->lies && history.live.invariant != INVARIANT_NONE;
    if (plan->fired && !s->lies && history.live.invariant != INVARIANT_NONE &&
        s->reported++ < REPORTS_PER_KIND) {
        struct story story;
        snprintf(s->suffix, sizeof(s->suffix), "fault-%s-%s-%u", call_names[plan->call],
            mode_names[plan->mode], plan->n);
        story_live(&history, s->suffix, &story);
        ret = output_story(s->output, &story);
    }
    unsigned variants = plan->mode == FAULT_DROP ? LOSE_VARIANTS : 1;
    for (unsigned v = 0; ret == 0 && plan->fired && v < variants; v++)
        ret = cut_power(s, plan, v);
    s->counts.flushes += s->lies && plan->fired;
    s->counts.flushes_needed += s->needed;
    s->history = NULL;
    history_release(&history);
    return ret == -ENOENT ? 0 : ret;
}

int sweep_run(const struct history *history, const char *workload,
    const struct explore_options *options, struct output *output)
{
    struct explore_options few = *options;
    few.cap = SWEEP_CAP;
    few.samples = 32;
    few.check_full = few.continue_full = 4;
    few.repair_full = 1;
    int ret = 0;
    bool in_time = true;
    for (size_t i = 0; ret == 0 && in_time && i < sweep_row_count; i++) {
        struct sweep s = {.options = &few,
            .output = output,
            .workload = workload,
            .image = history->image,
            .model = fault_model_find("sector")};
        char name[32];
        bool fired = true;
        for (unsigned n = 1; ret == 0 && fired && n < CALLS_MAX; n++) {
            struct fault_plan plan = {
                .call = rows[i].call, .mode = rows[i].mode, .error = rows[i].error, .n = n};
            ret = run_plan(&s, &plan);
            fired = plan.fired;
            if (fired && n + 1 == CALLS_MAX && !output->left_out[0])
                snprintf(output->left_out, sizeof(output->left_out),
                    "calls from the %d-th on of %.60s on %s", CALLS_MAX, workload, history->image);
            if (few.deadline > 0 && monotonic_seconds() > few.deadline) {
                s.counts.out_of_time = true;
                break;
            }
        }
        sweep_row_name(i, name, sizeof(name));
        in_time = !s.counts.out_of_time;
        if (!in_time && !output->left_out[0])
            snprintf(output->left_out, sizeof(output->left_out), "from %s of %.60s on %s on", name,
                workload, history->image);
        if (ret == 0)
            output_line(output, workload, history->image, name, &s.counts);
    }
    return ret;
}
