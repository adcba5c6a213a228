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

/* What users see after requests [first, end). */
static int step(struct history *h, struct state *state, struct oracle *oracle, size_t first,
    size_t end, uint64_t *written)
{
    struct breach breach = {0};
    int ret = epoch_apply_all(&h->recording, first, end, state);
    if (ret < 0)
        return ret;
    *written = 0;
    for (size_t i = first; i < end; i++) {
        struct request *r = &h->recording.list[i];
        r->op = (unsigned)h->step_count;
        *written += r->kind == REQUEST_WRITE ? r->length : 0;
    }
    if (!oracle_look(oracle, state, &breach) && h->live.invariant == INVARIANT_NONE) {
        h->live = breach;
        h->live_step = (unsigned)h->step_count + 1;
    }
    if (oracle->no_memory)
        return -ENOMEM;
    ret = model_copy(&oracle->model, &h->models[h->step_count + 1]);
    h->step_count += ret == 0;
    return ret;
}

static int run_log(struct history *h, struct state *state, struct oracle *oracle)
{
    struct breach breach = {0};
    const struct recording *r = &h->recording;
    if (!oracle_look(oracle, state, &breach))
        return oracle->no_memory ? -ENOMEM : -EUCLEAN;
    int ret = model_copy(&oracle->model, &h->models[0]);
    for (size_t first = 0, end; ret == 0 && first <= r->count; first = end + 1) {
        uint64_t written;
        for (end = first; end < r->count && r->list[end].kind != REQUEST_FLUSH;)
            end++;
        ret = step(h, state, oracle, first, end, &written);
        if (ret < 0)
            break;
        if (end < r->count)
            r->list[end].op = (unsigned)h->step_count - 1;
        /* More has changed than was written: a table was switched, not data written. */
        uint64_t changed =
            differing(&h->models[h->step_count - 1].active, &h->models[h->step_count].active);
        h->switched[h->step_count - 1] = changed * STATE_SECTOR > written;
    }
    return ret;
}

int history_foreign(
    const char *name, struct io *base, struct recording *recording, struct history *out)
{
    struct history h = {.base = base, .recording = *recording};
    struct state *state = NULL;
    struct oracle oracle;
    *recording = (struct recording){0};
    strncpy(h.workload.name, name, sizeof(h.workload.name) - 1);
    strncpy(h.image, "log", sizeof(h.image) - 1);
    oracle_init(&oracle);
    h.models = calloc(h.recording.count + 2, sizeof(*h.models));
    h.switched = calloc(h.recording.count + 2, sizeof(*h.switched));
    int ret = h.models && h.switched ? io_size(base, &h.room_bytes) : -ENOMEM;
    for (size_t i = 0; i < h.recording.count; i++) {
        const struct request *r = &h.recording.list[i];
        if (r->kind == REQUEST_WRITE && r->host_off + r->length > h.room_bytes)
            h.room_bytes = r->host_off + r->length;
    }
    if (ret == 0)
        ret = state_open(h.room_bytes, &state);
    if (ret == 0)
        ret = state_load(state, base);
    if (ret == 0)
        ret = run_log(&h, state, &oracle);
    state_close(state);
    oracle_release(&oracle);
    if (ret < 0) {
        h.base = NULL;
        history_release(&h);
        return ret;
    }
    *out = h;
    return 0;
}
