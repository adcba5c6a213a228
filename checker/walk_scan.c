/* SPDX-License-Identifier: MIT
 *
 * What the fast paths over L2 tables recognise: whole blocks of entries at a time, in loops of
 * fixed length that compilers make vectors of.
 *
 * Invariant: these functions say what the entries are, never whether that is right, and say it
 * exactly; a block that is not wholly alike is gone through entry by entry. */
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

static uint32_t run_length(const uint8_t *bytes, uint32_t idx, uint32_t end, uint32_t cluster_size)
{
    const uint8_t *first = bytes + (size_t)idx * 8;
    uint64_t want = load_be64(first);
    uint32_t length = 1;
    /* Most runs are either very short or go on for blocks. */
    if (idx + BLOCK <= end && load_be64(first + 8) == want + cluster_size)
        length = BLOCK * run_blocks(first, (end - idx) / BLOCK, want, cluster_size);
    length = length ? length : 1;
    while (idx + length < end &&
           load_be64(first + (size_t)length * 8) == want + (uint64_t)length * cluster_size)
        length++;
    return length;
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
    uint32_t count = geo->l2_entries, step = geo->cluster_size;
    uint64_t any = 0;
    int64_t highest = 0;
    digest->run_count = 0;
    for (uint32_t i = 0, n; i < count; i += n) {
        const uint8_t *p = bytes + (size_t)i * geo->l2_entry_size;
        n = geo->extended_l2 || digest->run_count == sizeof(digest->runs) / sizeof(digest->runs[0])
                ? 1
                : run_length(bytes, i, count, step);
        if (n >= BLOCK) {
            /* Offsets in a row only grow, so what is between them has no other flags. */
            digest->runs[digest->run_count++] = (struct l2_run){i, n};
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
    digest->flags = any & ~(QCOW2_OFFSET_MASK & ~(uint64_t)(step - 1));
    digest->highest_off = (uint64_t)highest;
}

uint32_t l2_run_at(const struct qcow2_geometry *geo, const uint8_t *bytes, uint32_t idx,
    const struct l2_digest *digest, struct l2_run *run)
{
    if (idx - run->idx >= run->length) {
        *run = (struct l2_run){idx, 0};
        for (uint32_t i = 0; digest && i < digest->run_count; i++) {
            if (idx - digest->runs[i].idx < digest->runs[i].length)
                *run = digest->runs[i];
        }
        if (run->length == 0)
            run->length = run_length(bytes, idx, geo->l2_entries, geo->cluster_size);
    }
    return run->idx + run->length - idx;
}
