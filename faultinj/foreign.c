/* SPDX-License-Identifier: MIT
 *
 * A history of somebody else's making: a base image and a log of what was written to it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "history.h"

/* Guest sectors that differ. */
static uint64_t differing(const struct disk_model *a, const struct disk_model *b)
{
    uint64_t count = 0;
    for (size_t i = 0, j = 0; i < a->count || j < b->count; count++) {
        uint64_t x = i < a->count ? a->list[i].sector : UINT64_MAX;
        uint64_t y = j < b->count ? b->list[j].sector : UINT64_MAX;
        if (x == y && a->list[i].hash == b->list[j].hash)
            count--;
        uint64_t sector = x < y ? x : y;
        i += x == sector, j += y == sector;
    }
    return count;
}

static uint64_t bytes_written(const struct recording *recording, size_t first, size_t end)
{
    uint64_t written = 0;
    for (size_t i = first; i < end; i++) {
        const struct request *r = &recording->list[i];
        written += r->kind == REQUEST_WRITE ? r->length : 0;
    }
    return written;
}

/* What users see after requests [first, end); `before` is the content before them. */
static int step(struct history *h, struct state *before, struct state *state, struct oracle *oracle,
    size_t first, size_t end)
{
    unsigned now = (unsigned)h->step_count + 1;
    state_copy(before, state);
    int ret = epoch_apply_all(&h->recording, first, end, state);
    for (size_t i = first; i <= end && i < h->recording.count; i++)
        h->recording.list[i].op = now - 1;
    h->step_count = now;
    return ret == 0 ? history_note(h, oracle, before, state, now, first, end) : ret;
}

static int run_log(
    struct history *h, struct state *before, struct state *state, struct oracle *oracle)
{
    const struct recording *r = &h->recording;
    int ret = history_note(h, oracle, NULL, state, 0, 0, 0);
    if (ret == 0 && h->live.invariant != INVARIANT_NONE)
        ret = -EUCLEAN;
    for (size_t first = 0, end; ret == 0 && first <= r->count; first = end + 1) {
        for (end = first; end < r->count && r->list[end].kind != REQUEST_FLUSH;)
            end++;
        ret = step(h, before, state, oracle, first, end);
        if (ret < 0)
            break;
        /* More has changed than was written: a table was switched, not data written. */
        uint64_t changed =
            differing(&h->models[h->step_count - 1].active, &h->models[h->step_count].active);
        h->switched[h->step_count - 1] = changed * STATE_SECTOR > bytes_written(r, first, end);
    }
    return ret;
}

int history_foreign(
    const char *name, struct io *base, struct recording *recording, struct history *out)
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
    if (ret == 0)
        ret = state_open(h.room_bytes, &state);
    if (ret == 0)
        ret = state_open(h.room_bytes, &before);
    if (ret == 0)
        ret = state_load(state, base);
    if (ret == 0)
        ret = run_log(&h, before, state, &oracle);
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
