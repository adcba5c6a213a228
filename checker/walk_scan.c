/* SPDX-License-Identifier: MIT
 *
 * What the fast paths over L2 tables recognise: whole blocks of entries at a time, in loops of
 * fixed length that compilers make vectors of.
 *
 * Invariant: these functions say what the entries are, never whether that is right, and say it
 * exactly; a block that is not wholly alike is gone through entry by entry. */
#include "walk.h"

/* On x86 the loops are compiled twice, and the processor chooses; elsewhere once. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__)
#define SCAN_FAST __attribute__((target_clones("avx2", "default")))
#else
#define SCAN_FAST
#endif

enum { BLOCK = 64 }; /* entries; the smallest table has as many */

SCAN_FAST static void scan_blocks(
    const uint8_t *bytes, uint32_t count, uint64_t *any_bits, uint64_t *highest_off)
{
    uint64_t any = 0;
    int64_t highest = 0;
    for (uint32_t first = 0; first < count; first += BLOCK) {
        for (uint32_t i = 0; i < BLOCK; i++) {
            uint64_t raw = load_be64(bytes + (size_t)(first + i) * 8);
            int64_t off = (int64_t)(raw & QCOW2_OFFSET_MASK);
            any |= raw;
            highest = off > highest ? off : highest;
        }
    }
    *any_bits = any;
    *highest_off = (uint64_t)highest;
}

void l2_scan(const struct qcow2_geometry *geo, const uint8_t *bytes, uint64_t *any_bits,
    uint64_t *highest_off)
{
    if (!geo->extended_l2) {
        scan_blocks(bytes, geo->l2_entries, any_bits, highest_off);
        return;
    }
    *any_bits = *highest_off = 0;
    for (uint32_t i = 0; i < geo->l2_entries; i++) {
        uint64_t raw = load_be64(bytes + (size_t)i * geo->l2_entry_size);
        *any_bits |= raw;
        if ((raw & QCOW2_OFFSET_MASK) > *highest_off)
            *highest_off = raw & QCOW2_OFFSET_MASK;
    }
}

/* Blocks of entries that go on like the first of them, which is `want`. */
SCAN_FAST static uint32_t run_blocks(
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

uint32_t l2_run_length(const uint8_t *bytes, uint32_t idx, uint32_t end, uint32_t cluster_size)
{
    uint64_t first = load_be64(bytes + (size_t)idx * 8);
    uint32_t length = 1;
    /* Most runs are either very short or go on for blocks. */
    if (idx + 1 < end && load_be64(bytes + (size_t)idx * 8 + 8) == first + cluster_size)
        length =
            BLOCK * run_blocks(bytes + (size_t)idx * 8, (end - idx) / BLOCK, first, cluster_size);
    length = length ? length : 1;
    while (idx + length < end &&
           load_be64(bytes + (size_t)(idx + length) * 8) == first + (uint64_t)length * cluster_size)
        length++;
    return length;
}
