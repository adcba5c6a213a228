/* SPDX-License-Identifier: MIT
 *
 * See leaks.h. */
#include "leaks.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static uint32_t clip(uint64_t count)
{
    return count < UINT32_MAX ? (uint32_t)count : UINT32_MAX - 1;
}

void leaks_release(struct leak_note *note)
{
    free(note->refs);
    free(note->stored);
    free(note->touched);
    free(note->blocks);
    *note = (struct leak_note){0};
}

static int note_blocks(const struct oracle *o, const struct state *state, struct leak_note *note)
{
    note->block_count = ((uint64_t)o->header.reftable_clusters << o->geo.cluster_bits) / 8;
    note->blocks = calloc(note->block_count + 1, sizeof(*note->blocks));
    if (!note->blocks)
        return -ENOMEM;
    for (uint64_t i = 0; i < note->block_count; i++) {
        const uint8_t *entry = state_at(state, o->header.reftable_off + i * 8, 8);
        note->blocks[i] = entry ? load_be64(entry) & QCOW2_REFTABLE_MASK : 0;
    }
    return 0;
}

int leaks_note(const struct oracle *o, const struct state *state, const struct leak_note *before,
    struct leak_note *out)
{
    struct leak_note note = {.cluster_count = o->cluster_count};
    uint64_t count = o->cluster_count;
    if (before && before->cluster_count > count)
        count = note.cluster_count = before->cluster_count;
    note.refs = calloc(count + 1, sizeof(*note.refs));
    note.stored = calloc(count + 1, sizeof(*note.stored));
    note.touched = calloc(count + 1, sizeof(*note.touched));
    int ret = note.refs && note.stored && note.touched ? note_blocks(o, state, &note) : -ENOMEM;
    for (uint64_t c = 0; ret == 0 && c < count; c++) {
        note.refs[c] = c < o->cluster_count ? o->clusters[c].refs : 0;
        note.stored[c] = clip(oracle_stored(o, state, c));
        bool there = before && c < before->cluster_count;
        note.touched[c] = before && (note.refs[c] != (there ? before->refs[c] : 0) ||
                                        note.stored[c] != (there ? before->stored[c] : 0));
    }
    if (ret < 0)
        leaks_release(&note);
    else
        *out = note;
    return ret;
}

/* Entries of the block at `block_off` that the write changes. */
static void touch_block(const struct oracle *o, struct leak_note *after, uint64_t idx,
    uint64_t block_off, const struct state *now, const struct request *write)
{
    unsigned order = o->geo.refcount_order;
    uint64_t length = order < 3 ? 1 : UINT64_C(1) << (order - 3);
    for (uint64_t i = 0; i < o->geo.refblock_entries; i++) {
        uint64_t cluster = (idx << o->geo.refblock_bits) + i, at = block_off + ((i << order) / 8);
        uint64_t in_byte = order < 3 ? i & ((8u >> order) - 1) : 0;
        if (cluster >= after->cluster_count)
            break;
        if (at < write->host_off || at + length > write->host_off + write->length)
            continue;
        const uint8_t *old = state_at(now, at, length);
        const uint8_t *new = write->data + (at - write->host_off);
        if (!old ||
            qcow2_refcount_get(old, order, in_byte) != qcow2_refcount_get(new, order, in_byte))
            after->touched[cluster] = true;
    }
}

static void touch(const struct oracle *o, const struct leak_note *const notes[2],
    struct leak_note *after, const struct state *now, const struct request *write)
{
    for (unsigned n = 0; n < 2; n++) {
        for (uint64_t i = 0; i < notes[n]->block_count; i++) {
            uint64_t off = notes[n]->blocks[i];
            if (off && ranges_overlap(off, o->geo.cluster_size, write->host_off, write->length))
                touch_block(o, after, i, off, now, write);
        }
    }
}

int leaks_touched(const struct oracle *o, const struct recording *recording, size_t first,
    size_t end, const struct state *start, const struct leak_note *before, struct leak_note *after)
{
    const struct leak_note *const notes[] = {before, after};
    uint64_t room = start->room_bytes;
    struct state *now;
    for (size_t i = first; i < end; i++) {
        const struct request *r = &recording->list[i];
        uint64_t to = r->host_off + (r->kind == REQUEST_WRITE ? r->length : 0);
        room = r->kind != REQUEST_DISCARD && to > room ? to : room;
    }
    int ret = state_open(room, &now);
    if (ret < 0)
        return ret;
    state_copy(now, start);
    for (size_t i = first; ret == 0 && i < end; i++) {
        const struct request *r = &recording->list[i];
        if (r->kind == REQUEST_WRITE && r->result == 0)
            touch(o, notes, after, now, r);
        ret = epoch_apply_all(recording, i, i + 1, now);
    }
    state_close(now);
    return ret;
}

/* ---- limits -------------------------------------------------------------------------------- */

static int limits_room(struct leak_limits *limits, uint64_t count)
{
    if (count > limits->room) {
        uint32_t *grown = realloc(limits->limit, count * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        limits->limit = grown;
        limits->room = count;
    }
    if (count > 0)
        memset(limits->limit, 0, count * sizeof(*limits->limit));
    limits->cluster_count = count;
    return 0;
}

int leaks_limits(const struct leak_note *notes, unsigned first, unsigned floor, unsigned ceil,
    struct leak_limits *limits)
{
    uint64_t count = 0;
    unsigned from = first < floor ? first : floor;
    for (unsigned n = from; n <= ceil; n++)
        count = notes[n].cluster_count > count ? notes[n].cluster_count : count;
    int ret = limits_room(limits, count);
    for (unsigned n = from; ret == 0 && n <= ceil; n++) {
        const struct leak_note *note = &notes[n];
        for (uint64_t c = 0; c < note->cluster_count; c++) {
            uint32_t excess = note->stored[c] > note->refs[c] ? note->stored[c] - note->refs[c] : 0;
            if (n > first && note->touched[c])
                limits->limit[c] = UINT32_MAX;
            else if (n >= floor && excess > limits->limit[c])
                limits->limit[c] = excess;
        }
    }
    return ret;
}

void leaks_limits_release(struct leak_limits *limits)
{
    free(limits->limit);
    *limits = (struct leak_limits){0};
}

bool leaks_allowed(const struct leak_limits *limits, const struct oracle *o,
    const struct state *state, struct breach *breach)
{
    for (uint64_t c = 0; o->counts_known && c < o->cluster_count; c++) {
        uint32_t limit = c < limits->cluster_count ? limits->limit[c] : 0;
        if (limit == UINT32_MAX)
            continue;
        uint64_t stored = oracle_stored(o, state, c);
        if (stored > o->clusters[c].refs && stored - o->clusters[c].refs > limit)
            return breach_note(breach, INVARIANT_LEAKS,
                "the cluster at 0x%" PRIx64 " leaks (counted %" PRIu64 ", used %" PRIu32
                "), but nothing that was interrupted touched it",
                c << o->geo.cluster_bits, stored, o->clusters[c].refs);
    }
    return true;
}
