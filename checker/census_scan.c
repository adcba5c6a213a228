/* SPDX-License-Identifier: MIT
 *
 * Going through a census: what is right, and what is not; see census.h. */
#include "census.h"
#include "census_tree.h"

/* How many of `count` clusters from i on do not have the mark. */
static uint32_t unmarked_run(const struct page *page, enum mark mark, uint32_t i, uint32_t count)
{
    const uint8_t *bits = page->marks[mark];
    uint32_t k = 0;
    while (bits && k < count) {
        unsigned byte = (unsigned)bits[(i + k) / 8] >> (i + k) % 8;
        if (byte) {
            k += (uint32_t)__builtin_ctz(byte);
            return k < count ? k : count;
        }
        k += 8 - (i + k) % 8;
    }
    return count;
}

uint64_t census_right_run(const struct census *census, uint64_t first, uint64_t count)
{
    const struct page *page = page_find(census, first);
    uint32_t i = (uint32_t)(first & (PAGE_CELLS - 1));
    if (!page || page->cell_bytes != 1 || i >= page->cells || count == 0)
        return 0;
    uint32_t n = page->cells - i < count ? page->cells - i : (uint32_t)count;
    n = bytes_like(page->cell + i, n, page->cells - i, BYTE_CLAIMED);
    n = unmarked_run(page, MARK_CONFLICT, i, n);
    return unmarked_run(page, MARK_ODD, i, n);
}

uint64_t census_like_run(const struct census *census, uint64_t first, uint64_t count)
{
    const struct page *page = page_find(census, first);
    uint32_t i = (uint32_t)(first & (PAGE_CELLS - 1));
    if (!page || page->cell_bytes != 1 || i >= page->cells)
        return 1;
    uint32_t n = page->cells - i < count ? page->cells - i : (uint32_t)count;
    return bytes_like(page->cell + i, n, page->cells - i, page->cell[i]);
}

/* What is looked for: cells whose balance is not 0, or of these the ones that nobody claimed. */
enum wanted { WANT_MISMATCH, WANT_LEAK };

enum { SCAN_BLOCK = 128 };

/* Skips blocks of byte cells that are right. */
static uint32_t skip_right(const struct page *page, uint32_t i)
{
    for (; i + SCAN_BLOCK <= page->cells; i += SCAN_BLOCK) {
        uint64_t any = 0;
        for (uint32_t k = 0; k < SCAN_BLOCK; k += 8) {
            uint64_t eight;
            memcpy(&eight, page->cell + i + k, 8);
            any |= eight;
        }
        if (any & UINT64_C(0x7f7f7f7f7f7f7f7f))
            break;
    }
    return i;
}

/* Byte cells, eight at a time: there are always multiples of that. */
static uint32_t next_byte(const struct page *page, uint32_t from, enum wanted wanted)
{
    const uint64_t values = UINT64_C(0x7f7f7f7f7f7f7f7f);
    uint64_t asked = UINT64_MAX << from % 8 * 8; /* not of what is before it */
    for (uint32_t i = from - from % 8; i < page->cells; i += 8, asked = UINT64_MAX) {
        if (i % SCAN_BLOCK == 0 && (i = skip_right(page, i)) == page->cells)
            break;
        uint64_t eight;
        memcpy(&eight, page->cell + i, 8);
        eight = le64toh(eight);
        /* The top bit of each byte, which marks claims, says whether other bits are set in it. */
        uint64_t hits = ((eight & values) + values) & ~values & asked;
        if (wanted == WANT_LEAK)
            hits &= ~eight;
        if (hits)
            return i + (uint32_t)__builtin_ctzll(hits) / 8;
    }
    return page->cells;
}

/* The first cell at or after i that is wanted; page->cells if there is none. */
static uint32_t next_in_page(const struct page *page, uint32_t i, enum wanted wanted)
{
    if (page->cell_bytes == 1)
        return i < page->cells ? next_byte(page, i, wanted) : page->cells;
    for (; i < page->cells; i++) {
        uint64_t cell = cell_load(page, i);
        if (cell_balance(page, cell) != 0 && (wanted == WANT_MISMATCH || !cell_claimed(page, cell)))
            break;
    }
    return i;
}

static bool next_wanted(const struct census *census, uint64_t from, enum wanted wanted,
    uint64_t *cluster, int64_t *balance)
{
    uint64_t page_idx = from >> PAGE_BITS;
    uint32_t i = (uint32_t)(from & (PAGE_CELLS - 1));
    for (uint64_t at = page_idx;; at = page_idx + 1, i = 0) {
        page_idx = at;
        const struct page *page = page_next(census, &page_idx);
        if (!page)
            return false;
        if (page_idx != at)
            i = 0;
        i = next_in_page(page, i, wanted);
        if (i < page->cells) {
            *cluster = page_idx << PAGE_BITS | i;
            *balance = cell_balance(page, cell_load(page, i));
            return true;
        }
    }
}

bool census_next_wrong(
    const struct census *census, uint64_t from, uint64_t *cluster, int64_t *balance)
{
    return next_wanted(census, from, WANT_MISMATCH, cluster, balance);
}

bool census_next_mismatch(const struct census *census, uint64_t from, uint64_t *cluster)
{
    int64_t balance;
    return census_next_wrong(census, from, cluster, &balance);
}

bool census_next_leak(const struct census *census, uint64_t from, uint64_t *cluster)
{
    int64_t balance;
    return next_wanted(census, from, WANT_LEAK, cluster, &balance);
}

uint64_t census_end(const struct census *census, uint64_t limit)
{
    uint64_t end = 0, page_idx = 0;
    for (const struct page *page; (page = page_next(census, &page_idx)); page_idx++) {
        uint64_t first = page_idx << PAGE_BITS;
        if (first >= limit)
            break;
        uint32_t i = limit - first < page->cells ? (uint32_t)(limit - first) : page->cells;
        while (i > 0 && cell_load(page, i - 1) == 0)
            i--;
        if (i > 0)
            end = first + i;
    }
    return end;
}
