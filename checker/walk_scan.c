/* SPDX-License-Identifier: MIT
 *
 * What the fast paths over L2 tables recognise: whole blocks of entries at a time, in loops of
 * fixed length that compilers make vectors of.
 *
 * Invariant: these functions say what the entries are, never whether that is right, and say it
 * exactly; a block that is not wholly alike is gone through entry by entry. */
#include <stdlib.h>
#include <string.h>

#include "vector.h"
#include "walk.h"

enum { BLOCK = 64 }; /* entries; the smallest table has as many */

/* Blocks of entries that go on like the first of them, which is `want`. */
VECTOR_LOOPS static uint32_t run_blocks(
    const uint8_t *bytes, uint32_t blocks, uint64_t want, uint64_t step)
{
    for (uint32_t block = 0; block < blocks; block++) {
        uint64_t differs = 0;
        for (uint32_t i = 0; i < BLOCK; i++)
            differs |= load_be64(bytes + (size_t)(block * BLOCK + i) * 8) ^ (want + i * step);
        if (differs != 0)
            return block;
        want += BLOCK * step;
    }
    return blocks;
}

static uint64_t run_step(const struct qcow2_geometry *geo, uint64_t raw)
{
    return raw & QCOW2_OFFSET_MASK ? geo->cluster_size : 0;
}

static struct l2_run run_from(const struct qcow2_geometry *geo, const uint8_t *bytes, uint32_t idx)
{
    const uint8_t *first = bytes + (size_t)idx * 8;
    uint64_t want = load_be64(first), step = run_step(geo, want);
    uint32_t length = 1, most = geo->l2_entries - idx;
    /* Most runs are either very short or go on for blocks. */
    if (most >= BLOCK && load_be64(first + 8) == want + step)
        length = BLOCK * run_blocks(first, most / BLOCK, want, step);
    length = length ? length : 1;
    while (length < most && load_be64(first + (size_t)length * 8) == want + length * step)
        length++;
    return (struct l2_run){idx, length, want};
}

VECTOR_LOOPS static void scan_block(const uint8_t *bytes, uint64_t *any_bits, int64_t *highest_off)
{
    uint64_t any = *any_bits;
    int64_t highest = *highest_off;
    for (uint32_t i = 0; i < BLOCK; i++) {
        uint64_t raw = load_be64(bytes + (size_t)i * 8);
        int64_t off = (int64_t)(raw & QCOW2_OFFSET_MASK);
        any |= raw;
        highest = off > highest ? off : highest;
    }
    *any_bits = any;
    *highest_off = highest;
}

static void scan_entry(const uint8_t *bytes, uint64_t *any_bits, int64_t *highest_off)
{
    uint64_t raw = load_be64(bytes);
    int64_t off = (int64_t)(raw & QCOW2_OFFSET_MASK);
    *any_bits |= raw;
    *highest_off = off > *highest_off ? off : *highest_off;
}

void l2_scan(const struct qcow2_geometry *geo, const uint8_t *bytes, struct l2_digest *digest)
{
    enum { MOST_RUNS = sizeof(digest->runs) / sizeof(digest->runs[0]) };
    uint32_t count = geo->l2_entries;
    uint64_t any = 0;
    int64_t highest = 0;
    digest->run_count = 0;
    for (uint32_t i = 0, n; i < count; i += n) {
        const uint8_t *p = bytes + (size_t)i * geo->l2_entry_size;
        struct l2_run run = {0};
        if (!geo->extended_l2 && digest->run_count < MOST_RUNS)
            run = run_from(geo, bytes, i);
        n = run.length;
        if (n >= BLOCK) {
            /* Offsets in a row only grow, so what is between them has no other flags. */
            digest->runs[digest->run_count++] = run;
            scan_entry(p, &any, &highest);
            scan_entry(p + (size_t)(n - 1) * 8, &any, &highest);
        } else if (!geo->extended_l2 && count - i >= BLOCK) {
            n = BLOCK;
            scan_block(p, &any, &highest);
        } else {
            n = 1;
            scan_entry(p, &any, &highest);
        }
    }
    digest->flags = any & ~(QCOW2_OFFSET_MASK & ~(uint64_t)(geo->cluster_size - 1));
    digest->highest_off = (uint64_t)highest;
}

uint32_t l2_run_at(const struct qcow2_geometry *geo, const uint8_t *bytes, uint32_t idx,
    const struct l2_run *known, uint32_t known_count, struct l2_run *run)
{
    if (idx - run->idx >= run->length) {
        *run = (struct l2_run){0};
        for (uint32_t i = 0; i < known_count; i++) {
            if (idx - known[i].idx < known[i].length)
                *run = known[i];
        }
        if (run->length == 0)
            *run = run_from(geo, bytes, idx);
    }
    return run->idx + run->length - idx;
}

/* ---- tables that a few runs tell ---- */

struct l2_shape *l2_shape_of(const struct qcow2_geometry *geo, const struct l2_digest *digest)
{
    enum { BYTES_EACH = 128 }; /* of the table, for each byte that is kept */
    size_t bytes = sizeof(struct l2_shape) + digest->run_count * sizeof(struct l2_run);
    uint32_t told = 0;
    for (uint32_t i = 0; i < digest->run_count; i++)
        told += digest->runs[i].length;
    if (told < geo->l2_entries || bytes > geo->cluster_size / BYTES_EACH)
        return NULL;
    struct l2_shape *shape = malloc(bytes);
    if (shape) {
        shape->run_count = digest->run_count;
        memcpy(shape->runs, digest->runs, digest->run_count * sizeof(struct l2_run));
    }
    return shape;
}

void l2_shape_entry(const struct qcow2_geometry *geo, const struct l2_shape *shape, uint32_t idx,
    struct l2_run *run, struct qcow2_l2_entry *entry)
{
    uint8_t bytes[8];
    l2_run_at(geo, NULL, idx, shape->runs, shape->run_count, run);
    store_be64(bytes, run->raw + (idx - run->idx) * run_step(geo, run->raw));
    qcow2_l2_decode(geo, bytes, entry);
}
