/* SPDX-License-Identifier: MIT
 *
 * Epochs: from requests to units and their versions.  Units whose bytes do not change are dropped,
 * versions that come again are one. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "qcow2.h"

enum { UNIT_SECTORS_MAX = 8 };

void epoch_release(struct epoch *epoch)
{
    for (size_t i = 0; i < epoch->unit_count; i++) {
        for (unsigned v = 0; v < epoch->units[i].count; v++) {
            free(epoch->units[i].versions[v].bytes);
            free(epoch->units[i].versions[v].hashes);
        }
        free(epoch->units[i].versions);
    }
    free(epoch->units);
    free(epoch->sizes);
    free(epoch->size_requests);
    free(epoch->events);
    free(epoch->by_idx.slots);
    free(epoch->by_size.slots);
    free(epoch->by_content.slots);
    *epoch = (struct epoch){0};
}

/* ---- lists that are searched --------------------------------------------------------------- */

static void *grown(void *list, size_t count, size_t item, size_t *room)
{
    if (count < *room)
        return list;
    size_t more = *room ? *room * 2 : 16;
    void *bigger = realloc(list, more * item);
    if (bigger)
        *room = more;
    return bigger;
}

static struct place_slot *slot_of(const struct places *places, uint64_t key)
{
    size_t i = (size_t)state_mix(key);
    do
        i &= places->size - 1;
    while (places->slots[i].at != 0 && places->slots[i].key != key && ++i);
    return &places->slots[i];
}

/* SIZE_MAX: nowhere. */
static size_t find_place(const struct places *places, uint64_t key)
{
    return places->size > 0 ? slot_of(places, key)->at - 1 : SIZE_MAX;
}

static int note_place(struct places *places, uint64_t key, size_t at)
{
    if (places->count * 2 >= places->size) {
        struct places more = {.size = places->size ? places->size * 2 : 64, .count = places->count};
        more.slots = calloc(more.size, sizeof(*more.slots));
        if (!more.slots)
            return -ENOMEM;
        for (size_t i = 0; i < places->size; i++) {
            if (places->slots[i].at != 0)
                *slot_of(&more, places->slots[i].key) = places->slots[i];
        }
        free(places->slots);
        *places = more;
    }
    struct place_slot *slot = slot_of(places, key);
    places->count += slot->at == 0;
    *slot = (struct place_slot){key, at + 1};
    return 0;
}

/* ---- requests ------------------------------------------------------------------------------ */

static int add_event(struct epoch *epoch, size_t request, size_t factor, unsigned version)
{
    struct event *events =
        grown(epoch->events, epoch->event_count, sizeof(*events), &epoch->event_room);
    if (!events)
        return -ENOMEM;
    epoch->events = events;
    events[epoch->event_count++] = (struct event){request, (uint32_t)factor, (uint32_t)version};
    return 0;
}

static bool has_bytes(
    const struct epoch *epoch, const struct unit *unit, size_t v, const uint8_t *bytes)
{
    return v < unit->count && memcmp(unit->versions[v].bytes, bytes, epoch->unit_bytes) == 0;
}

int epoch_add_version(
    struct epoch *epoch, size_t unit_idx, const uint8_t *bytes, int64_t request, bool worse)
{
    struct unit *unit = &epoch->units[unit_idx];
    unsigned sectors = epoch->unit_bytes / STATE_SECTOR;
    uint64_t hashes[UNIT_SECTORS_MAX];
    struct version version = {.request = request, .worse = worse};
    for (unsigned s = 0; s < sectors; s++) {
        hashes[s] = state_hash_sector(bytes + (size_t)s * STATE_SECTOR);
        version.hash ^= state_mix(hashes[s] + (unit->idx * sectors + s) * 0x9e3779b9u);
    }
    size_t known = find_place(&epoch->by_content, version.hash);
    if (has_bytes(epoch, unit, known, bytes))
        return (int)known;
    size_t room = unit->room;
    struct version *versions = grown(unit->versions, unit->count, sizeof(*versions), &room);
    if (!versions)
        return -ENOMEM;
    unit->versions = versions;
    unit->room = (unsigned)room;
    version.bytes = malloc(epoch->unit_bytes);
    version.hashes = malloc(sectors * sizeof(*version.hashes));
    if (!version.bytes || !version.hashes ||
        note_place(&epoch->by_content, version.hash, unit->count) < 0) {
        free(version.bytes);
        free(version.hashes);
        return -ENOMEM;
    }
    memcpy(version.bytes, bytes, epoch->unit_bytes);
    memcpy(version.hashes, hashes, sectors * sizeof(*hashes));
    versions[unit->count] = version;
    return (int)unit->count++;
}

/* The unit at that place, made with its durable version if it is new. */
static int unit_at(struct epoch *epoch, const struct state *durable, uint64_t idx, size_t *out)
{
    *out = find_place(&epoch->by_idx, idx);
    if (*out != SIZE_MAX)
        return 0;
    struct unit *units = grown(epoch->units, epoch->unit_count, sizeof(*units), &epoch->unit_room);
    if (!units)
        return -ENOMEM;
    epoch->units = units;
    if (note_place(&epoch->by_idx, idx, epoch->unit_count) < 0)
        return -ENOMEM;
    units[epoch->unit_count] = (struct unit){.idx = idx};
    *out = epoch->unit_count++;
    const uint8_t *bytes = durable->bytes + idx * epoch->unit_bytes;
    int ret = epoch_add_version(epoch, *out, bytes, NO_REQUEST, false);
    return ret < 0 ? ret : 0;
}

static int note_size(struct epoch *epoch, uint64_t size, size_t request)
{
    size_t found = find_place(&epoch->by_size, size);
    if (found >= epoch->size_count || epoch->sizes[found] != size) {
        size_t room = epoch->size_room, same = room;
        uint64_t *sizes = grown(epoch->sizes, epoch->size_count, sizeof(*sizes), &room);
        if (!sizes)
            return -ENOMEM;
        epoch->sizes = sizes;
        int64_t *requests =
            grown(epoch->size_requests, epoch->size_count, sizeof(*requests), &same);
        if (!requests)
            return -ENOMEM;
        epoch->size_requests = requests;
        if (note_place(&epoch->by_size, size, epoch->size_count) < 0)
            return -ENOMEM;
        epoch->size_room = (unsigned)room;
        found = epoch->size_count;
        sizes[found] = size;
        requests[found] = request == SIZE_MAX ? NO_REQUEST : (int64_t)request;
        epoch->size_count++;
    }
    epoch->final_size = size;
    return add_event(epoch, request, SIZE_MAX, (unsigned)found);
}

/* One request on the running content `now`; the units it touches get their new versions. */
static int apply(struct epoch *epoch, const struct request *r, size_t request,
    const struct state *durable, struct state *now)
{
    uint64_t from = r->host_off, to = r->host_off + r->length;
    if (r->kind == REQUEST_RESIZE) { /* what is cut off becomes zeros */
        from = r->host_off < now->size_bytes ? r->host_off : now->size_bytes;
        to = now->size_bytes;
    } else if (r->kind == REQUEST_DISCARD) {
        to = to < now->size_bytes ? to : now->size_bytes;
    }
    if (from < to && r->kind == REQUEST_WRITE)
        memcpy(now->bytes + from, r->data, (size_t)r->length);
    else if (from < to)
        memset(now->bytes + from, 0, (size_t)(to - from));
    uint64_t size = r->kind == REQUEST_RESIZE ? r->host_off : now->size_bytes;
    if (r->kind == REQUEST_WRITE && to > size)
        size = to;
    now->size_bytes = size;
    if (!epoch)
        return 0;
    int ret = size != epoch->final_size ? note_size(epoch, size, request) : 0;
    for (uint64_t u = from / epoch->unit_bytes; ret == 0 && u * epoch->unit_bytes < to; u++) {
        size_t unit;
        ret = unit_at(epoch, durable, u, &unit);
        if (ret < 0)
            return ret;
        int v = epoch_add_version(
            epoch, unit, now->bytes + u * epoch->unit_bytes, (int64_t)request, false);
        ret = v < 0 ? v : add_event(epoch, request, unit, (unsigned)v);
    }
    return ret;
}

static void keep_only(struct unit *unit, size_t which)
{
    struct version kept = unit->versions[which];
    for (unsigned v = 0; v < unit->count; v++) {
        if (v == which)
            continue;
        free(unit->versions[v].bytes);
        free(unit->versions[v].hashes);
    }
    unit->versions[0] = kept;
    unit->count = 1;
}

/* What the units that the write touched hold now is durable, and the size. */
static int settle(struct epoch *epoch, const struct request *r, const struct state *now)
{
    uint64_t end = r->host_off + r->length;
    int ret = 0;
    for (uint64_t u = r->host_off / epoch->unit_bytes; ret == 0 && u * epoch->unit_bytes < end;
         u++) {
        struct unit *unit = &epoch->units[find_place(&epoch->by_idx, u)];
        size_t v = unit->count - 1; /* a version that comes again keeps its place */
        while (v > 0 && !has_bytes(epoch, unit, v, now->bytes + u * epoch->unit_bytes))
            v--;
        keep_only(unit, v);
        unit->settled = epoch->event_count;
        ret = note_place(&epoch->by_content, unit->versions[0].hash, 0);
    }
    epoch->sizes[0] = epoch->durable_size = now->size_bytes;
    epoch->size_count = 1;
    epoch->sizes_settled = epoch->event_count;
    return ret < 0 ? ret : note_place(&epoch->by_size, now->size_bytes, 0);
}

/* Units of one version are none, unless a write with FUA made it; events follow the new numbers. */
static int drop_unchanged(struct epoch *epoch)
{
    size_t *place = calloc(epoch->unit_count + 1, sizeof(*place));
    size_t kept = 0, events = 0;
    if (!place)
        return -ENOMEM;
    epoch->touched = epoch->unit_count;
    for (size_t i = 0; i < epoch->unit_count; i++) {
        struct unit unit = epoch->units[i];
        bool keep = unit.count > 1 || unit.versions[0].request != NO_REQUEST;
        place[i] = keep ? kept : SIZE_MAX;
        if (keep) {
            epoch->units[kept++] = unit;
        } else {
            free(unit.versions[0].bytes);
            free(unit.versions[0].hashes);
            free(unit.versions);
        }
    }
    epoch->unit_count = kept;
    for (size_t i = 0; i < epoch->event_count; i++) {
        struct event event = epoch->events[i];
        bool is_size = event.factor == UINT32_MAX;
        size_t factor = is_size ? kept : place[event.factor];
        if (factor == SIZE_MAX ||
            i < (is_size ? epoch->sizes_settled : epoch->units[factor].settled))
            continue;
        event.factor = (uint32_t)factor;
        epoch->events[events++] = event;
    }
    epoch->event_count = events;
    free(place);
    return 0;
}

static bool counts(const struct request *r)
{
    return r->kind != REQUEST_FLUSH && r->result == 0;
}

static uint64_t room_needed(
    const struct recording *recording, size_t first, size_t end, uint64_t room)
{
    for (size_t i = first; i < end; i++) {
        const struct request *r = &recording->list[i];
        uint64_t to = r->host_off + (r->kind == REQUEST_WRITE ? r->length : 0);
        if (counts(r) && to > room && r->kind != REQUEST_DISCARD)
            room = to;
    }
    return room;
}

int epoch_build(const struct recording *recording, size_t first, size_t end,
    const struct state *durable, unsigned unit_bytes, struct epoch *out)
{
    struct epoch epoch = {.unit_bytes = unit_bytes, .first = first, .end = end};
    struct state *now;
    if (room_needed(recording, first, end, 0) > durable->room_bytes)
        return -EFBIG;
    int ret = state_open(durable->room_bytes - 1, &now);
    if (ret < 0)
        return ret;
    memcpy(now->bytes, durable->bytes, (size_t)durable->room_bytes);
    now->size_bytes = epoch.durable_size = durable->size_bytes;
    epoch.final_size = UINT64_MAX;
    ret = note_size(&epoch, durable->size_bytes, SIZE_MAX);
    epoch.event_count = 0;
    for (size_t i = first; ret == 0 && i < end; i++) {
        const struct request *r = &recording->list[i];
        if (counts(r))
            ret = apply(&epoch, r, i, durable, now);
        if (ret == 0 && counts(r) && r->fua && i + 1 < end)
            ret = settle(&epoch, r, now);
    }
    if (ret == 0)
        ret = drop_unchanged(&epoch);
    state_close(now);
    if (ret < 0)
        epoch_release(&epoch);
    else
        *out = epoch;
    return ret;
}

int epoch_apply_all(
    const struct recording *recording, size_t first, size_t end, struct state *state)
{
    int ret = 0;
    if (room_needed(recording, first, end, 0) > state->room_bytes)
        return -EFBIG;
    for (size_t i = first; ret == 0 && i < end; i++) {
        const struct request *r = &recording->list[i];
        if (!counts(r))
            continue;
        uint64_t before = state->size_bytes, from = r->host_off, to = r->host_off + r->length;
        ret = apply(NULL, r, i, NULL, state);
        if (r->kind == REQUEST_RESIZE)
            to = before;
        for (uint64_t s = from / STATE_SECTOR;
             s * STATE_SECTOR < to && s * STATE_SECTOR < state->room_bytes; s++)
            state->hashes[s] = state_hash_sector(state->bytes + s * STATE_SECTOR);
    }
    return ret;
}

bool epoch_ends(const struct recording *recording, size_t cut)
{
    return cut >= recording->count ||
           (recording->list[cut].kind == REQUEST_FLUSH && recording->list[cut].result >= 0);
}

size_t epoch_cut(const struct recording *recording, size_t from)
{
    size_t cut = from;
    while (!epoch_ends(recording, cut)) {
        cut++;
        if (recording->list[cut - 1].fua && !epoch_ends(recording, cut))
            break;
    }
    return cut;
}

uint64_t epoch_product(const struct epoch *epoch)
{
    uint64_t product = 1;
    for (size_t f = 0; f < epoch_factors(epoch); f++) {
        if (__builtin_mul_overflow(product, epoch_choices(epoch, f), &product))
            return UINT64_MAX;
    }
    return product;
}

long double epoch_product_log2(const struct epoch *epoch)
{
    long double sum = 0;
    for (size_t f = 0; f < epoch_factors(epoch); f++)
        sum += log2l(epoch_choices(epoch, f));
    return sum;
}
