/* SPDX-License-Identifier: MIT
 *
 * See history.h. */
#include "history.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "map.h"
#include "misbehave.h"
#include "qcheck.h"
#include "snapshot.h"

void history_release(struct history *history)
{
    for (size_t i = 0; history->models && i <= history->step_count; i++)
        model_release(&history->models[i]);
    for (size_t i = 0; history->leaks && i <= history->step_count; i++)
        leaks_release(&history->leaks[i]);
    free(history->models);
    free(history->leaks);
    hurt_release(&history->hurt);
    free(history->results);
    free(history->switched);
    recording_release(&history->recording);
    workload_release(&history->workload);
    io_close(history->base);
    *history = (struct history){0};
}

/* ---- running ------------------------------------------------------------------------------- */

/* What the oracle does not look at may need repair, too. */
static bool corrupt(const struct state *state)
{
    static const struct check_options how = {.threads = 1};
    struct report report;
    report_init(&report, 1);
    check_image((struct io *)(uintptr_t)&state->io, NULL, &how, &report);
    bool found = report.corruptions > 0;
    report_release(&report);
    return found;
}

int history_note(struct history *h, struct oracle *oracle, const struct state *before,
    const struct state *state, unsigned step, size_t first, size_t end)
{
    struct breach breach = {0};
    bool repaired_next = step == 0 && h->workload.count > 0 && h->workload.ops[0].kind == OP_REPAIR;
    const struct leak_note *last = step > 0 ? &h->leaks[step - 1] : NULL;
    bool good = oracle_look(oracle, state, &breach);
    if (repaired_next && !oracle->no_memory && (!good || corrupt(state))) {
        struct breach again = {0};
        oracle->lenient = true;
        good = h->is_hurt = oracle_look(oracle, state, &again);
        oracle->lenient = false;
    }
    if (oracle->no_memory)
        return -ENOMEM;
    if (!good && h->live.invariant == INVARIANT_NONE) {
        h->live = breach;
        h->live_step = step;
    }
    int ret = model_copy(&oracle->model, &h->models[step]);
    if (ret < 0 || !good)
        return ret;
    ret = leaks_note(oracle, state, last, &h->leaks[step]);
    if (ret == 0 && step == 0 && h->is_hurt)
        ret = hurt_note(oracle, state, &h->hurt);
    if (ret == 0 && before)
        ret = leaks_touched(oracle, &h->recording, first, end, before, last, &h->leaks[step]);
    return ret;
}

/* What users see now; *seen is the content then, and becomes what it is now. */
static int look(struct history *h, struct io *io, struct oracle *oracle, unsigned step,
    size_t first, struct state **seen)
{
    uint64_t size;
    struct state *state = NULL;
    int ret = io_size(io, &size);
    if (ret == 0)
        ret = state_open(size, &state);
    if (ret == 0)
        ret = state_load(state, io);
    if (ret == 0)
        ret = history_note(h, oracle, *seen, state, step, first, h->recording.count);
    if (ret == 0 && size > h->room_bytes)
        h->room_bytes = size;
    state_close(*seen);
    *seen = state;
    return ret;
}

/* Sectors of the active disk at which handle or device may have something. */
struct handle_walk {
    struct image *img;
    const struct disk_model *disk;
    size_t at;                       /* in the disk's list */
    uint64_t mapped_from, mapped_to; /* bytes that the handle maps */
};

/* The first sector from `sector` on that the handle maps or the device has; UINT64_MAX: none.  A
 * disk may be of petabytes. */
static int next_sector(struct handle_walk *w, uint64_t sector, uint64_t *out)
{
    struct view view = image_view(w->img);
    while (w->at < w->disk->count && w->disk->list[w->at].sector < sector)
        w->at++;
    uint64_t next = w->at < w->disk->count ? w->disk->list[w->at].sector : UINT64_MAX;
    if (sector * STATE_SECTOR >= w->mapped_to) {
        int ret =
            map_next_data(w->img, &view, sector * STATE_SECTOR, &w->mapped_from, &w->mapped_to);
        if (ret < 0)
            return ret;
    }
    uint64_t mapped = w->mapped_from / STATE_SECTOR;
    mapped = mapped > sector ? mapped : sector;
    if ((mapped + 1) * STATE_SECTOR <= w->mapped_to && mapped < next)
        next = mapped;
    *out = next;
    return 0;
}

/* What the handle says is what the device says. */
static void compare_handle(
    struct history *h, struct image *img, const struct model *seen, unsigned step)
{
    struct handle_walk w = {.img = img, .disk = &seen->active};
    uint8_t sector[STATE_SECTOR];
    uint32_t count;
    if (h->live.invariant != INVARIANT_NONE)
        return;
    for (uint64_t s = 0;; s++) {
        if (next_sector(&w, s, &s) < 0)
            return; /* refusing is allowed */
        if (s >= seen->active.size_bytes / STATE_SECTOR)
            break;
        if (image_read(img, s * STATE_SECTOR, sector, sizeof(sector)) < 0)
            return;
        bool there = w.at < w.disk->count && w.disk->list[w.at].sector == s;
        if (state_hash_sector(sector) != (there ? w.disk->list[w.at].hash : STATE_ZERO_HASH)) {
            breach_note(&h->live, INVARIANT_DURABLE,
                "the open handle reads something else than the device has at guest sector %" PRIu64,
                s);
            break;
        }
    }
    snapshot_list(img, &count);
    if (count != seen->snapshot_count)
        breach_note(&h->live, INVARIANT_DURABLE,
            "the open handle has %" PRIu32 " snapshots, the device %" PRIu32, count,
            seen->snapshot_count);
    if (h->live.invariant != INVARIANT_NONE)
        h->live_step = step;
}

/* The device has lost writes, said so once, and still shows them (as a page cache does): the handle
 * that was told keeps its hands off, but one opened now would build on what is not there.  No
 * program can tell, so none is opened; opening what is left after a restart is I8. */
static bool nobody_knows(const struct fault_plan *plan, const struct image *img)
{
    return plan && plan->mode == FAULT_DROP && plan->fired && !img;
}

/* One operation, and whether the image is then what it should be. */
static int run_step(struct history *h, struct io *io, struct fault_plan *plan,
    struct oracle *oracle, struct image **img, unsigned step, struct state **seen)
{
    size_t first = h->recording.count;
    const struct op *op = &h->workload.ops[step];
    bool allocs = plan && plan->call == FAULT_ALLOC && !plan->fired;
    uint64_t unit = op->in_clusters ? UINT64_C(1) << oracle->header.cluster_bits : 1;
    h->recording.op = step;
    if (allocs)
        fault_alloc_arm(plan->n - plan->seen);
    h->results[step] = nobody_knows(plan, *img) ? -EIO : op_apply(img, io, op);
    if (allocs) {
        plan->seen = plan->n - fault_alloc_left();
        plan->fired = plan->seen == plan->n;
        fault_alloc_arm(0);
    }
    if (*img && plan && plan->bug && plan->bug->after)
        plan->bug->after(*img, h->results[step]);
    int ret = look(h, h->disk, oracle, step + 1, first, seen);
    if (ret == 0 && h->live.invariant == INVARIANT_NONE &&
        !history_follows(
            op, unit, h->results[step], &h->models[step], &h->models[step + 1], &h->live))
        h->live_step = step + 1;
    if (ret == 0 && plan && plan->fired && plan->mode != FAULT_FOR_GOOD && !plan->dead && *img)
        compare_handle(h, *img, &h->models[step + 1], step + 1);
    return ret;
}

static int run_steps(
    struct history *h, struct io *io, struct fault_plan *plan, struct oracle *oracle)
{
    struct image *img = NULL;
    struct state *seen = NULL;
    int ret = look(h, h->base, oracle, 0, 0, &seen);
    if (ret == 0 && h->live.invariant != INVARIANT_NONE)
        ret = -EUCLEAN; /* broken before the first step: nothing can be promised */
    for (unsigned i = 0; ret == 0 && i < h->step_count; i++)
        ret = run_step(h, io, plan, oracle, &img, i, &seen);
    image_abandon(img);
    state_close(seen);
    return ret;
}

/* Room for the results, and OP_CLOSE as the last operation. */
static int make_room(struct history *h)
{
    size_t count = h->workload.count + 1;
    struct op *ops = realloc(h->workload.ops, count * sizeof(*ops));
    if (!ops)
        return -ENOMEM;
    ops[count - 1] = (struct op){.kind = OP_CLOSE};
    h->workload.ops = ops;
    h->workload.count = h->step_count = count;
    h->models = calloc(count + 1, sizeof(*h->models));
    h->leaks = calloc(count + 1, sizeof(*h->leaks));
    h->results = calloc(count + 1, sizeof(*h->results));
    return h->models && h->leaks && h->results ? 0 : -ENOMEM;
}

/* Faults over the recorder over the disk: what is recorded is what reached the device. */
static int stack_layers(struct history *h, struct fault_plan *plan, struct io **out)
{
    struct io *recorder, *top;
    int ret = io_mem_branch(h->base, &h->disk);
    if (ret < 0)
        return ret;
    ret = record_open(h->disk, &h->recording, &recorder);
    if (ret < 0) {
        io_close(h->disk);
        return ret;
    }
    top = recorder;
    if (plan)
        ret = fault_error_open(recorder, plan, &top);
    if (ret == 0 && plan && plan->bug && plan->bug->layer)
        ret = plan->bug->layer(top, &top);
    if (ret < 0)
        io_close(top);
    else
        *out = top;
    return ret;
}

int history_run(struct workload *workload, const char *image, struct io *base, bool backtraces,
    struct fault_plan *plan, struct history *out)
{
    struct history h = {.workload = *workload, .base = base};
    struct io *io = NULL;
    struct oracle oracle;
    *workload = (struct workload){0};
    strncpy(h.image, image, sizeof(h.image) - 1);
    oracle_init(&oracle);
    h.recording.backtraces = backtraces;
    int ret = make_room(&h);
    if (ret == 0)
        ret = stack_layers(&h, plan, &io);
    if (ret == 0)
        ret = run_steps(&h, io, plan, &oracle);
    io_close(io);
    h.disk = NULL;
    oracle_release(&oracle);
    if (ret == 0 && h.recording.no_memory)
        ret = -ENOMEM;
    if (ret < 0) {
        h.base = NULL; /* stays the caller's */
        history_release(&h);
        return ret;
    }
    h.recording.backtraces = false;
    *out = h;
    return 0;
}

/* ---- judging ------------------------------------------------------------------------------- */

struct window history_window(
    const struct history *h, const struct recording *recording, size_t first, size_t end)
{
    unsigned steps = (unsigned)h->step_count;
    unsigned begun = 0; /* operation of the last flush that told the truth */
    for (size_t i = first; begun == 0 && i-- > 0;) {
        if (recording->list[i].kind == REQUEST_FLUSH && recording->list[i].result == 0)
            begun = recording->list[i].op;
    }
    unsigned now = end < recording->count ? recording->list[end].op : steps;
    struct window window = {.floor = begun, .ceil = now < steps ? now + 1 : steps};
    for (unsigned i = 0; i < now && i < h->workload.count; i++) {
        if (i >= begun && op_commits(h->workload.ops[i].kind) && h->results[i] == 0)
            window.floor = i + 1;
        /* A handle that could not be closed takes what it promised with it, and the next one cannot
         * know what the device has forgotten. */
        if (h->results[i] < 0 && h->workload.ops[i].kind == OP_REOPEN) {
            window.floor = 0;
            for (unsigned j = 0; j < i; j++) {
                if (op_commits(h->workload.ops[j].kind) && h->results[j] == 0)
                    window.floor = j + 1;
            }
            break;
        }
    }
    return window;
}

/* The first operation whose requests may be lost after a cut in the epoch that starts at `first`.
 */
static unsigned first_unsettled(const struct recording *recording, size_t first, unsigned floor)
{
    unsigned op = first < recording->count ? recording->list[first].op : floor;
    unsigned flushed = 0; /* operation of the last flush before one that lost its requests */
    for (size_t i = 0; i < recording->count; i++) {
        if (recording->list[i].kind != REQUEST_FLUSH)
            continue;
        if (recording->list[i].result == FLUSH_LOST && flushed < op)
            op = flushed;
        else if (recording->list[i].result == 0)
            flushed = recording->list[i].op;
        if (i >= first)
            break;
    }
    return op < floor ? op : floor;
}

int history_leak_limits(const struct history *h, const struct recording *recording, size_t first,
    struct window window, struct leak_limits *limits)
{
    return leaks_limits(h->leaks, first_unsettled(recording, first, window.floor), window.floor,
        window.ceil, limits);
}

/* From one model to the next everything changes at once, not sector by sector.  A resize does not:
 * guest writes before it that were not flushed may still be lost, whatever the size is. */
static bool switches(const struct history *h, unsigned step)
{
    uint64_t sector;
    const struct disk_model *a = &h->models[step].active, *b = &h->models[step + 1].active;
    if (h->switched && h->switched[step])
        return true;
    return step < h->workload.count && h->workload.ops[step].kind == OP_APPLY &&
           !disk_same(a, b, &sector);
}

static uint64_t hash_at(const struct disk_model *disk, size_t *at, uint64_t sector)
{
    while (*at < disk->count && disk->list[*at].sector < sector)
        ++*at;
    return *at < disk->count && disk->list[*at].sector == sector ? disk->list[*at].hash
                                                                 : STATE_ZERO_HASH;
}

/* Each sector as in one of models[first..last]. */
static bool disk_among(const struct history *h, unsigned first, unsigned last,
    const struct disk_model *seen, uint64_t *bad)
{
    enum { MODELS_MAX = 64 };
    size_t at[MODELS_MAX] = {0}, at_seen = 0;
    uint64_t sector = 0;
    if (disk_same(seen, &h->models[first].active, bad))
        return true;
    bool size_known = false;
    for (unsigned i = first; i <= last; i++)
        size_known |= seen->size_bytes == h->models[i].active.size_bytes;
    *bad = seen->size_bytes / STATE_SECTOR;
    if (last - first >= MODELS_MAX || !size_known)
        return false;
    for (;;) {
        uint64_t next = UINT64_MAX;
        hash_at(seen, &at_seen, sector);
        if (at_seen < seen->count)
            next = seen->list[at_seen].sector;
        for (unsigned i = first; i <= last; i++) {
            const struct disk_model *model = &h->models[i].active;
            hash_at(model, &at[i - first], sector);
            if (at[i - first] < model->count && model->list[at[i - first]].sector < next)
                next = model->list[at[i - first]].sector;
        }
        if (next == UINT64_MAX || next >= seen->size_bytes / STATE_SECTOR)
            return true;
        bool found = false;
        uint64_t hash = hash_at(seen, &at_seen, next);
        for (unsigned i = first; !found && i <= last; i++)
            found = hash_at(&h->models[i].active, &at[i - first], next) == hash;
        if (!found) {
            *bad = next;
            return false;
        }
        sector = next + 1;
    }
}

bool history_allows_sector(const struct history *h, struct window w, uint64_t sector, uint64_t hash)
{
    for (unsigned i = w.floor; i < w.ceil; i++) {
        if (switches(h, i))
            return false; /* then it depends on the rest */
    }
    for (unsigned i = w.floor; i <= w.ceil; i++) {
        const struct disk_model *disk = &h->models[i].active;
        size_t low = 0, high = disk->count;
        while (low < high) {
            size_t middle = (low + high) / 2;
            if (disk->list[middle].sector < sector)
                low = middle + 1;
            else
                high = middle;
        }
        bool there = low < disk->count && disk->list[low].sector == sector;
        if (hash == (there ? disk->list[low].hash : STATE_ZERO_HASH))
            return true;
    }
    return false;
}

/* One stretch of models between two switches. */
static bool stretch_allows(const struct history *h, unsigned first, unsigned last,
    const struct model *seen, bool *list_known, struct breach *why)
{
    uint64_t sector = 0;
    uint32_t snapshot = 0;
    for (unsigned i = first; i <= last; i++) {
        if (!snapshots_same_records(seen, &h->models[i]))
            continue;
        *list_known = true;
        if (!snapshots_same_disks(seen, &h->models[i], &snapshot, &sector)) {
            breach_note(why, INVARIANT_SNAPSHOTS,
                "snapshot number %" PRIu32 " differs at guest sector %" PRIu64, snapshot, sector);
            continue;
        }
        if (disk_among(h, first, last, &seen->active, &sector))
            return true;
        breach_note(why, INVARIANT_DISK,
            "the active disk (%" PRIu64 " bytes) is neither old nor new at guest sector %" PRIu64,
            seen->active.size_bytes, sector);
    }
    return false;
}

static bool any_stretch(const struct history *h, struct window w, const struct model *seen,
    bool *list_known, struct breach *why)
{
    for (unsigned first = w.floor, last; first <= w.ceil; first = last + 1) {
        for (last = first; last < w.ceil && !switches(h, last);)
            last++;
        if (stretch_allows(h, first, last, seen, list_known, why))
            return true;
    }
    return false;
}

bool history_allows(
    const struct history *h, struct window window, const struct model *seen, struct breach *breach)
{
    struct breach why = {0}, ignored = {0};
    bool list_known = false, known_before = false;
    if (any_stretch(h, window, seen, &list_known, &why))
        return true;
    struct window before = {0, window.ceil};
    if (window.floor > 0 && any_stretch(h, before, seen, &known_before, &ignored))
        return breach_note(
            breach, INVARIANT_DURABLE, "an operation that returned success is not durable");
    if (!list_known)
        return breach_note(breach, INVARIANT_SNAPSHOT_LIST,
            "the list of %" PRIu32 " snapshots is neither the one before nor the one after",
            seen->snapshot_count);
    return breach_note(breach, why.invariant, "%s", why.text);
}
