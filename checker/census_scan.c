/* SPDX-License-Identifier: MIT
 *
 * Going through a census: what is right, and what is not; see census.h. */
#include <string.h>

#include "census.h"
#include "census_tree.h"

uint64_t census_right_run(const struct census *census, uint64_t first, uint64_t count)
{
    const struct page *page = page_find(census, first);
    uint32_t i = (uint32_t)(first & (PAGE_CELLS - 1));
    if (!page || page->cell_bytes != 1 || i >= page->cells || count == 0)
        return 0;
    uint64_t span = page->cells - i < count ? page->cells - i : count;
    size_t n = bytes_like(page->cell + i, (size_t)span, BYTE_CLAIMED), k = 0;
    if (!page->marks[MARK_CONFLICT] && !page->marks[MARK_ODD])
        return n;
    while (k < n && !mark_get(page, MARK_CONFLICT, i + (uint32_t)k) &&
           !mark_get(page, MARK_ODD, i + (uint32_t)k))
        k++;
    return k;
}

/* Skips cells that are right, a block at a time. */
static uint32_t skip_right(const struct page *page, uint32_t i)
{
    enum { BLOCK = 128 };
    const uint64_t claimed = UINT64_C(0x8080808080808080);
    if (page->cell_bytes != 1 || i % BLOCK != 0)
        return i;
    for (; i + BLOCK <= page->cells; i += BLOCK) {
        uint64_t any = 0;
        for (uint32_t k = 0; k < BLOCK; k += 8) {
            uint64_t eight;
            memcpy(&eight, page->cell + i + k, 8);
            any |= eight;
        }
        if (any & ~claimed)
            break;
    }
    return i;
}

bool census_next_mismatch(const struct census *census, uint64_t from, uint64_t *cluster)
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
        while ((i = skip_right(page, i)) < page->cells) {
            if (cell_balance(page, cell_load(page, i)) != 0) {
                *cluster = page_idx << PAGE_BITS | i;
                return true;
            }
            i++;
        }
    }
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
