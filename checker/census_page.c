/* SPDX-License-Identifier: MIT */
#include "census_page.h"

#include <errno.h>
#include <stdlib.h>

int page_resize(struct page *page, uint32_t cells, unsigned cell_bytes, size_t *memory)
{
    struct page next = *page;
    next.cells = cells;
    next.cell_bytes = cell_bytes;
    next.cell = calloc(cells, cell_bytes);
    if (!next.cell)
        return -ENOMEM;
    for (uint32_t i = 0; i < page->cells; i++) {
        uint64_t cell = cell_load(page, i);
        cell_store(
            &next, i, cell_make(cell_bytes, cell_balance(page, cell), cell_claimed(page, cell)));
    }
    *memory += (size_t)cells * cell_bytes - (size_t)page->cells * page->cell_bytes;
    uint8_t *old = page->cell;
    page->cell = next.cell;
    page->cells = cells;
    page->cell_bytes = cell_bytes;
    free(old);
    return 0;
}

void page_free(struct page *page)
{
    if (!page)
        return;
    for (unsigned mark = 0; mark < MARK_COUNT; mark++)
        free(page->marks[mark]);
    free(page->cell);
    free(page);
}

int page_mark(struct page *page, enum mark mark, uint32_t i, size_t *memory)
{
    if (!page->marks[mark]) {
        page->marks[mark] = calloc(PAGE_CELLS / 8, 1);
        if (!page->marks[mark])
            return -ENOMEM;
        *memory += PAGE_CELLS / 8;
    }
    page->marks[mark][i / 8] |= (uint8_t)(1u << (i % 8));
    return 0;
}

void page_unmark(struct page *page, enum mark mark, uint32_t i)
{
    if (page->marks[mark])
        page->marks[mark][i / 8] &= (uint8_t) ~(1u << (i % 8));
}

int page_set(struct page *page, uint32_t i, int64_t balance, bool claimed, size_t *memory)
{
    unsigned width = page->cell_bytes;
    while (!balance_fits(width, balance) && width < 8)
        width = width == 1 ? 2 : 8;
    if (width != page->cell_bytes) {
        int ret = page_resize(page, page->cells, width, memory);
        if (ret < 0)
            return ret;
    }
    cell_store(page, i, cell_make(width, balance, claimed));
    return 0;
}
