/* SPDX-License-Identifier: MIT
 *
 * Where the pages of a census hang; see census_tree.h. */
#include "census_tree.h"

#include <stdlib.h>

static void *census_alloc(struct census *census, size_t bytes)
{
    void *p = calloc(1, bytes);
    if (p)
        census->memory += bytes;
    return p;
}

static struct page **page_slot(struct census *census, uint64_t cluster)
{
    uint64_t page_idx = cluster >> PAGE_BITS;
    if (page_idx == 0)
        return &census->first_page;
    uint64_t root_idx = page_idx >> (MID_BITS + TOP_BITS);
    if (root_idx >= 1 << ROOT_BITS)
        return NULL;
    if (!census->root && !(census->root = census_alloc(census, sizeof(struct root))))
        return NULL;
    struct top **top = &census->root->tops[root_idx];
    if (!*top && !(*top = census_alloc(census, sizeof(struct top))))
        return NULL;
    struct mid **mid = &(*top)->mids[page_idx >> MID_BITS & ((1 << TOP_BITS) - 1)];
    if (!*mid && !(*mid = census_alloc(census, sizeof(struct mid))))
        return NULL;
    return &(*mid)->pages[page_idx & ((1 << MID_BITS) - 1)];
}

struct page *page_make(struct census *census, uint64_t cluster)
{
    struct page **slot = page_slot(census, cluster);
    if (!slot)
        return NULL;
    uint32_t i = (uint32_t)(cluster & (PAGE_CELLS - 1));
    if (!*slot) {
        struct page *page = census_alloc(census, sizeof(*page));
        if (!page)
            return NULL;
        page->cell_bytes = 1;
        page->cells = PAGE_CELLS;
        if (cluster >> PAGE_BITS == 0 && census->cluster_count < PAGE_CELLS / 2)
            page->cells = (uint32_t)(census->cluster_count + 64) & ~UINT32_C(63);
        page->cell = census_alloc(census, page->cells);
        if (!page->cell) {
            free(page);
            return NULL;
        }
        *slot = page;
    }
    if (i >= (*slot)->cells &&
        page_resize(*slot, PAGE_CELLS, (*slot)->cell_bytes, &census->memory) < 0)
        return NULL;
    return *slot;
}

static void mid_free(struct mid *mid)
{
    for (size_t i = 0; mid && i < 1 << MID_BITS; i++)
        page_free(mid->pages[i]);
    free(mid);
}

static void top_free(struct top *top)
{
    for (size_t i = 0; top && i < 1 << TOP_BITS; i++)
        mid_free(top->mids[i]);
    free(top);
}

void pages_free(struct census *census)
{
    page_free(census->first_page);
    for (size_t i = 0; census->root && i < 1 << ROOT_BITS; i++)
        top_free(census->root->tops[i]);
    free(census->root);
}

const struct page *page_next(const struct census *census, uint64_t *page_idx)
{
    if (*page_idx == 0) {
        if (census->first_page)
            return census->first_page;
        ++*page_idx;
    }
    if (!census->root)
        return NULL;
    const uint64_t mids = UINT64_C(1) << MID_BITS, tops = UINT64_C(1) << (MID_BITS + TOP_BITS);
    while (*page_idx >> (MID_BITS + TOP_BITS) < 1 << ROOT_BITS) {
        uint64_t idx = *page_idx;
        const struct top *top = census->root->tops[idx >> (MID_BITS + TOP_BITS)];
        if (!top) {
            *page_idx = (idx / tops + 1) * tops;
            continue;
        }
        const struct mid *mid = top->mids[idx >> MID_BITS & ((1 << TOP_BITS) - 1)];
        if (!mid) {
            *page_idx = (idx / mids + 1) * mids;
            continue;
        }
        if (mid->pages[idx & (mids - 1)])
            return mid->pages[idx & (mids - 1)];
        ++*page_idx;
    }
    return NULL;
}
