/* SPDX-License-Identifier: MIT
 *
 * See explore.h: epochs one after the other, and setting a state. */
#include "explore.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "explore_impl.h"
#include "oracle_impl.h"

enum { REPORTS_PER_EPOCH = 3, SAMPLE_ONE_IN = 64 };

double monotonic_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

struct explore_options explore_options_default(void)
{
    return (struct explore_options){
        .cap = 1 << 20,
        .samples = 4096,
        .seed = 1,
        .check_full = 256,
        .continue_full = 256,
        .repair_full = 16,
    };
}

void explore_counts_add(struct explore_counts *sum, const struct explore_counts *more)
{
    sum->legal += more->legal;
    sum->certified += more->certified;
    sum->executed += more->executed;
    sum->distinct += more->distinct;
    sum->checked += more->checked;
    sum->continued += more->continued;
    sum->refused += more->refused;
    sum->repaired += more->repaired;
    sum->orphaned += more->orphaned;
    sum->adopted += more->adopted;
    sum->repair_cuts += more->repair_cuts;
    sum->harmed += more->harmed;
    sum->silent += more->silent;
    sum->epochs += more->epochs;
    sum->epochs_exhaustive += more->epochs_exhaustive;
    sum->units += more->units;
    sum->units_touched += more->units_touched;
    if (sum->largest_epoch_units < more->largest_epoch_units)
        sum->largest_epoch_units = more->largest_epoch_units;
    sum->flushes += more->flushes;
    sum->flushes_needed += more->flushes_needed;
    sum->seconds += more->seconds;
    sum->out_of_time |= more->out_of_time;
}

bool explore_exhaustive(const struct explore_counts *counts)
{
    return counts->epochs == counts->epochs_exhaustive && !counts->out_of_time;
}

/* ---- a set of hashes ----------------------------------------------------------------------- */

void hash_set_release(struct hash_set *set)
{
    free(set->slots);
    *set = (struct hash_set){0};
}

static bool put(struct hash_set *set, uint64_t hash)
{
    for (size_t i = hash & (set->size - 1);; i = (i + 1) & (set->size - 1)) {
        if (set->slots[i] == hash)
            return false;
        if (set->slots[i] == 0) {
            set->slots[i] = hash;
            return true;
        }
    }
}

int hash_set_add(struct hash_set *set, uint64_t hash, bool *added)
{
    if (set->count * 2 >= set->size) {
        struct hash_set bigger = {.size = set->size ? set->size * 2 : 4096};
        bigger.slots = calloc(bigger.size, sizeof(*bigger.slots));
        if (!bigger.slots)
            return -ENOMEM;
        for (size_t i = 0; i < set->size; i++) {
            if (set->slots[i])
                put(&bigger, set->slots[i]);
        }
        bigger.count = set->count;
        free(set->slots);
        *set = bigger;
    }
    *added = put(set, hash ? hash : 1);
    set->count += *added;
    return 0;
}

/* ---- setting a state ----------------------------------------------------------------------- */

static void set_factor(struct explorer *ex, size_t factor, unsigned choice)
{
    const struct epoch *epoch = &ex->epoch;
    if (factor == epoch->unit_count) {
        ex->state->size_bytes = epoch->sizes[choice];
        return;
    }
    const struct unit *unit = &epoch->units[factor];
    const struct version *version = &unit->versions[choice];
    unsigned sectors = epoch->unit_bytes / STATE_SECTOR;
    for (unsigned s = 0; s < sectors; s++) {
        uint64_t sector = unit->idx * sectors + s;
        state_put(ex->state, sector, version->bytes + (size_t)s * STATE_SECTOR, version->hashes[s]);
        if (ex->state->unreadable)
            ex->state->unreadable[sector] = version->unreadable;
    }
}

void explorer_set(struct explorer *ex, const unsigned *choice)
{
    for (size_t f = 0; f < epoch_factors(&ex->epoch); f++) {
        if (ex->current[f] == choice[f])
            continue;
        set_factor(ex, f, choice[f]);
        ex->current[f] = choice[f];
    }
}

/* By content: what lies past the size does not count. */
static uint64_t vector_hash(const struct explorer *ex, const unsigned *choice)
{
    const struct epoch *epoch = &ex->epoch;
    uint64_t size = epoch->sizes[choice[epoch->unit_count]];
    uint64_t hash = ex->base_hash ^ state_mix(size);
    for (size_t f = 0; f < epoch->unit_count; f++) {
        const struct unit *unit = &epoch->units[f];
        if (choice[f] && unit->idx * epoch->unit_bytes < size)
            hash ^= unit->versions[0].hash ^ unit->versions[choice[f]].hash;
    }
    return hash;
}

/* ---- visiting ------------------------------------------------------------------------------ */

static bool sampled(uint64_t seen, uint64_t full)
{
    return seen <= full || full == UINT64_MAX ||
           (seen % SAMPLE_ONE_IN == 0 && seen / SAMPLE_ONE_IN <= full);
}

static int report_vector(struct explorer *ex, const unsigned *choice, struct breach *breach)
{
    size_t factors = epoch_factors(&ex->epoch);
    unsigned *small = malloc(factors * sizeof(*small));
    bool *needed = calloc(factors, sizeof(*needed));
    int ret = small && needed ? 0 : -ENOMEM;
    if (ret == 0) {
        memcpy(small, choice, factors * sizeof(*small));
        ret = explorer_shrink(ex, small, needed, breach);
    }
    if (ret == 0) {
        struct violation violation = {
            .epoch = ex->epoch.number,
            .first = ex->epoch.first,
            .end = ex->epoch.end,
            .window = ex->window,
            .breach = *breach,
            .choice = small,
            .needed = needed,
            .units = &ex->epoch,
            .recording = ex->recording,
        };
        ret = ex->report ? ex->report(ex->report_arg, &violation) : 0;
    }
    free(small);
    free(needed);
    return ret;
}

int explorer_visit(void *arg, const unsigned *choice)
{
    struct explorer *ex = arg;
    bool added;
    ex->counts->executed++;
    ex->executed_here++;
    uint64_t context = (uint64_t)ex->window.floor << 32 | ex->window.ceil;
    int ret = hash_set_add(&ex->seen, vector_hash(ex, choice) ^ state_mix(context + 1), &added);
    if (ret < 0 || !added)
        return ret;
    ex->counts->distinct++;
    ex->seen_here++;
    explorer_set(ex, choice);
    if (ex->model->promise != PROMISE_FULL)
        return explorer_judge_lightly(ex);
    struct breach breach = {0};
    ret = explorer_judge(ex, sampled(ex->seen_here, ex->options->check_full),
        sampled(ex->seen_here, ex->options->continue_full),
        sampled(ex->seen_here, ex->options->repair_full), &breach);
    if (ret < 0 || breach.invariant == INVARIANT_NONE)
        return ret;
    if (ex->reported_here++ >= REPORTS_PER_EPOCH)
        return -ECANCELED; /* this epoch is broken, no use in going on */
    return report_vector(ex, choice, &breach);
}

/* ---- epochs -------------------------------------------------------------------------------- */

/* Noise in a sector of guest data is nobody's to notice: such versions are taken out. */
static void spare_guest_data(struct explorer *ex)
{
    struct breach ignored = {0};
    if (ex->model->promise == PROMISE_FULL || !oracle_look(&ex->oracle, ex->durable, &ignored))
        return;
    for (size_t i = 0; i < ex->epoch.unit_count; i++) {
        struct unit *unit = &ex->epoch.units[i];
        uint64_t cluster = cluster_of(&ex->oracle.geo, unit->idx * ex->epoch.unit_bytes);
        if (cluster < ex->oracle.cluster_count &&
            ex->oracle.clusters[cluster].owner != OWNER_NONE &&
            ex->oracle.clusters[cluster].owner != OWNER_DATA)
            continue; /* metadata */
        while (unit->count > 1 && unit->versions[unit->count - 1].worse) {
            unit->count--;
            free(unit->versions[unit->count].bytes);
            free(unit->versions[unit->count].hashes);
        }
    }
}

static int prepare_epoch(struct explorer *ex, unsigned number, size_t first, size_t end)
{
    struct epoch *epoch = &ex->epoch;
    int ret = epoch_build(ex->recording, first, end, ex->durable, ex->model->unit_bytes, epoch);
    if (ret < 0)
        return ret;
    epoch->number = number;
    if (ex->model->extend)
        ret = ex->model->extend(epoch, ex->recording, ex->options->seed);
    if (ret == 0)
        spare_guest_data(ex);
    ex->window = history_window(ex->history, ex->recording, first, end);
    if (ret == 0)
        ret = history_leak_limits(ex->history, ex->recording, first, ex->window, &ex->limits);
    memcpy(ex->state->bytes, ex->durable->bytes, (size_t)ex->state->room_bytes);
    memcpy(ex->state->hashes, ex->durable->hashes,
        (size_t)(ex->state->room_bytes / STATE_SECTOR) * sizeof(uint64_t));
    if (ex->state->unreadable)
        memset(ex->state->unreadable, 0, (size_t)(ex->state->room_bytes / STATE_SECTOR));
    free(ex->current);
    ex->current = calloc(epoch_factors(epoch), sizeof(*ex->current));
    for (size_t f = 0; f < epoch_factors(epoch); f++)
        set_factor(ex, f, 0); /* durable, some of it by writes with FUA */
    ex->seen_here = ex->executed_here = ex->reported_here = 0;
    ex->base_hash = 0;
    for (uint64_t s = 0; s < ex->state->room_bytes / STATE_SECTOR; s++)
        ex->base_hash ^= state_mix(ex->state->hashes[s] + s * 0x9e3779b9u);
    return ret < 0 ? ret : ex->current ? 0 : -ENOMEM;
}

static int run_epoch(struct explorer *ex, unsigned number, size_t first, size_t end)
{
    ex->counts->epochs++;
    if (explorer_out_of_time(ex)) /* to prepare it may take long */
        return 0;
    int ret = prepare_epoch(ex, number, first, end);
    if (ret == 0) {
        ex->counts->units += ex->epoch.unit_count;
        ex->counts->units_touched += ex->epoch.touched;
        if (ex->counts->largest_epoch_units < ex->epoch.unit_count)
            ex->counts->largest_epoch_units = ex->epoch.unit_count;
        ret = explorer_walk(ex);
        ret = ret == -ECANCELED ? 0 : ret;
    }
    epoch_release(&ex->epoch);
    return ret;
}

static int explorer_open(struct explorer *ex)
{
    uint64_t room = ex->history->room_bytes;
    for (size_t i = 0; i < ex->recording->count; i++) {
        const struct request *r = &ex->recording->list[i];
        if (r->kind == REQUEST_WRITE && r->host_off + r->length > room)
            room = r->host_off + r->length;
    }
    oracle_init(&ex->oracle);
    continuation_init(&ex->continuation);
    repairing_init(&ex->repairing);
    int ret = state_open(room, &ex->durable);
    if (ret == 0)
        ret = state_open(room, &ex->state);
    if (ret == 0 && ex->model->extend == fault_unreadable) {
        ex->state->unreadable = calloc((size_t)(ex->state->room_bytes / STATE_SECTOR), 1);
        ret = ex->state->unreadable ? 0 : -ENOMEM;
    }
    return ret == 0 ? state_load(ex->durable, ex->history->base) : ret;
}

static void explorer_close(struct explorer *ex)
{
    state_close(ex->durable);
    state_close(ex->state);
    free(ex->current);
    oracle_release(&ex->oracle);
    continuation_release(&ex->continuation);
    repairing_release(&ex->repairing);
    hash_set_release(&ex->seen);
    leaks_limits_release(&ex->limits);
}

/* Where the exploration is: requests [first, end), of which those from `from` on are new. */
struct place {
    size_t first, from, end;
    unsigned number;
};

/* Behind a flush a new epoch begins; behind a write with FUA the same one goes on. */
static int go_on(struct explorer *ex, struct place *at)
{
    at->number++;
    at->from = at->end;
    if (!epoch_ends(ex->recording, at->end))
        return 0;
    int ret = epoch_apply_all(ex->recording, at->first, at->end, ex->durable);
    at->first = at->from = at->end + 1;
    return ret;
}

int explore_run(const struct history *history, const struct recording *recording,
    const struct fault_model *model, const struct explore_options *options,
    struct explore_counts *counts, explore_report *report, void *arg)
{
    struct explorer ex = {.history = history,
        .recording = recording,
        .model = model,
        .options = options,
        .counts = counts,
        .report = report,
        .report_arg = arg};
    double start = monotonic_seconds();
    int ret = explorer_open(&ex);
    struct place at = {0};
    for (; ret == 0 && at.first <= recording->count; ret = ret == 0 ? go_on(&ex, &at) : ret) {
        at.end = epoch_cut(recording, at.from);
        if (!options->only_epoch || options->only_epoch == at.number + 1)
            ret = run_epoch(&ex, at.number, at.first, at.end);
    }
    explorer_close(&ex);
    counts->seconds += monotonic_seconds() - start;
    return ret;
}

int explore_replay(const struct history *history, const struct recording *recording,
    const struct fault_model *model, const struct explore_options *options, unsigned epoch,
    const char *choices, struct state **state, explore_report *report, void *arg)
{
    struct explore_counts counts = {0};
    struct explorer ex = {.history = history,
        .recording = recording,
        .model = model,
        .options = options,
        .counts = &counts,
        .report = report,
        .report_arg = arg};
    unsigned *choice = NULL;
    struct breach breach = {0};
    struct place at = {.end = epoch_cut(recording, 0)};
    int ret = explorer_open(&ex);
    while (ret == 0 && at.number < epoch && at.end < recording->count) {
        ret = go_on(&ex, &at);
        at.end = epoch_cut(recording, at.from);
    }
    if (ret == 0)
        ret = at.number == epoch ? prepare_epoch(&ex, epoch, at.first, at.end) : -ENOENT;
    if (ret == 0) {
        choice = calloc(epoch_factors(&ex.epoch), sizeof(*choice));
        ret = choice ? choices_parse(&ex.epoch, choices, choice) : -ENOMEM;
    }
    if (ret == 0) {
        explorer_set(&ex, choice);
        ret = explorer_judge(&ex, true, true, true, &breach);
    }
    if (ret == 0 && breach.invariant != INVARIANT_NONE)
        ret = report_vector(&ex, choice, &breach);
    if (ret == 0) {
        explorer_set(&ex, choice);
        *state = ex.state;
        ex.state = NULL;
    }
    free(choice);
    epoch_release(&ex.epoch);
    explorer_close(&ex);
    return ret;
}
