/* SPDX-License-Identifier: MIT
 *
 * A history of somebody else's making: a base image and a log of what was written to it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "explore_impl.h"
#include "history.h"

/* The run through the log. */
struct replay {
    struct history *h;
    struct state *before, *state;
    struct oracle *oracle;
    struct hash_set written; /* contents of sectors that the log has written so far */
    double deadline;
    uint64_t kept; /* bytes of the models so far */
};

/* Whether `b` shows something that `a` did not, and that nobody wrote: then it was there before,
 * and a table was switched. */
static int shows_unwritten(
    struct replay *r, const struct disk_model *a, const struct disk_model *b, bool *unwritten)
{
    size_t i = 0;
    *unwritten = false;
    for (size_t j = 0; j < b->count; j++) {
        bool added;
        while (i < a->count && a->list[i].sector < b->list[j].sector)
            i++;
        if (i < a->count && a->list[i].sector == b->list[j].sector &&
            a->list[i].hash == b->list[j].hash)
            continue;
        int ret = hash_set_add(&r->written, b->list[j].hash, &added);
        if (ret < 0)
            return ret;
        *unwritten |= added;
    }
    return 0;
}

static int apply(struct replay *r, size_t first, size_t end)
{
    const struct recording *recording = &r->h->recording;
    int ret = 0;
    for (size_t i = first; ret == 0 && i < end; i++) {
        const struct request *w = &recording->list[i];
        ret = epoch_apply_all(recording, i, i + 1, r->state);
        for (uint64_t s = w->host_off / STATE_SECTOR;
             ret == 0 && w->kind == REQUEST_WRITE && s * STATE_SECTOR < w->host_off + w->length;
             s++) {
            bool added;
            ret = hash_set_add(&r->written, r->state->hashes[s], &added);
        }
    }
    return ret;
}

/* Size and place of the active L1. */
static bool header_switched(const struct replay *r)
{
    return memcmp(r->before->bytes + QCOW2_HDR_SIZE, r->state->bytes + QCOW2_HDR_SIZE, 24) != 0;
}

/* What users see after requests [first, end), which end with a flush. */
static int step(struct replay *r, size_t first, size_t end)
{
    struct history *h = r->h;
    unsigned now = (unsigned)h->step_count + 1;
    bool unwritten = false;
    state_copy(r->before, r->state);
    int ret = apply(r, first, end);
    for (size_t i = first; i <= end && i < h->recording.count; i++)
        h->recording.list[i].op = now - 1;
    h->step_count = now;
    if (ret == 0)
        ret = history_note(h, r->oracle, r->before, r->state, now, first, end);
    if (ret == 0)
        ret = shows_unwritten(r, &h->models[now - 1].active, &h->models[now].active, &unwritten);
    h->switched[now - 1] = unwritten || header_switched(r);
    return ret;
}

static uint64_t bytes_of(const struct model *model, const struct leak_note *leaks)
{
    uint64_t sectors = model->active.count;
    for (uint32_t i = 0; i < model->snapshot_count; i++)
        sectors += model->snapshots[i].disk.count;
    return sectors * sizeof(struct guest_sector) +
           leaks->cluster_count *
               (sizeof(*leaks->refs) + sizeof(*leaks->stored) + sizeof(*leaks->touched)) +
           leaks->block_count * sizeof(*leaks->blocks);
}

/* What each step costs is in proportion to the image: a log of hundreds of thousands would take
 * hours, and all memory. */
static int may_go_on(struct replay *r)
{
    r->kept += bytes_of(&r->h->models[r->h->step_count], &r->h->leaks[r->h->step_count]);
    if (r->deadline > 0 && monotonic_seconds() > r->deadline)
        return -ETIME;
    return r->kept > HISTORY_MOST_BYTES ? -E2BIG : 0;
}

static int run_log(struct replay *r)
{
    const struct recording *recording = &r->h->recording;
    int ret = history_note(r->h, r->oracle, NULL, r->state, 0, 0, 0);
    if (ret == 0 && r->h->live.invariant != INVARIANT_NONE)
        ret = -EUCLEAN;
    for (size_t first = 0, end; ret == 0 && first <= recording->count; first = end + 1) {
        for (end = first; end < recording->count && recording->list[end].kind != REQUEST_FLUSH;)
            end++;
        ret = step(r, first, end);
        if (ret == 0)
            ret = may_go_on(r);
    }
    return ret;
}

int history_foreign(const char *name, struct io *base, struct recording *recording, double deadline,
    struct history *out)
{
    struct history h = {.base = base, .recording = *recording};
    struct state *state = NULL, *before = NULL;
    struct oracle oracle;
    *recording = (struct recording){0};
    strncpy(h.workload.name, name, sizeof(h.workload.name) - 1);
    strncpy(h.image, "log", sizeof(h.image) - 1);
    oracle_init(&oracle);
    h.models = calloc(h.recording.count + 2, sizeof(*h.models));
    h.switched = calloc(h.recording.count + 2, sizeof(*h.switched));
    h.leaks = calloc(h.recording.count + 2, sizeof(*h.leaks));
    int ret = h.models && h.leaks && h.switched ? io_size(base, &h.room_bytes) : -ENOMEM;
    for (size_t i = 0; i < h.recording.count; i++) {
        const struct request *r = &h.recording.list[i];
        if (r->kind == REQUEST_WRITE && r->host_off + r->length > h.room_bytes)
            h.room_bytes = r->host_off + r->length;
    }
    if (ret == 0 && h.room_bytes > HISTORY_MOST_BYTES)
        ret = -EFBIG;
    if (ret == 0)
        ret = state_open(h.room_bytes, &state);
    if (ret == 0)
        ret = state_open(h.room_bytes, &before);
    if (ret == 0)
        ret = state_load(state, base);
    struct replay replay = {
        .h = &h, .before = before, .state = state, .oracle = &oracle, .deadline = deadline};
    if (ret == 0)
        ret = run_log(&replay);
    hash_set_release(&replay.written);
    state_close(state);
    state_close(before);
    oracle_release(&oracle);
    if (ret < 0) {
        h.base = NULL;
        history_release(&h);
        return ret;
    }
    *out = h;
    return 0;
}
