/* SPDX-License-Identifier: MIT
 *
 * What a census consists of, for the files that are its parts:
 *
 *   census_page.c   a page: the cells of 2^15 clusters in a row
 *   census_tree.c   where the pages hang
 *   census.c        stored counts are loaded, references taken off
 *   census_scan.c   what is right and what is not is looked for
 *
 * Pages hang in a radix tree of three levels, so that a sparse file of exabytes costs what is
 * referenced in it and a small one a few pointers. */
#ifndef CHECKER_CENSUS_TREE_H
#define CHECKER_CENSUS_TREE_H

#include "census_page.h"

enum {
    MID_BITS = 13,
    TOP_BITS = 13,
    ROOT_BITS = 14, /* 15 + 13 + 13 + 14 = 55 */
};

struct mid {
    struct page *pages[1 << MID_BITS];
};

struct top {
    struct mid *mids[1 << TOP_BITS];
};

struct root {
    struct top *tops[1 << ROOT_BITS];
};

struct unknown_range {
    uint64_t first, count;
};

struct census {
    uint64_t cluster_count;
    size_t memory;
    bool has_conflicts, has_refused;
    uint64_t claims, loose_pages;  /* pages made for references where nothing is counted */
    struct unknown_range *unknown; /* ascending */
    size_t unknown_count;
    struct page *first_page; /* images up to 2^15 clusters need no more */
    struct root *root;
};

static inline struct page *page_find(const struct census *census, uint64_t cluster)
{
    uint64_t page_idx = cluster >> PAGE_BITS;
    if (page_idx == 0)
        return census->first_page;
    uint64_t root_idx = page_idx >> (MID_BITS + TOP_BITS);
    if (root_idx >= 1 << ROOT_BITS || !census->root)
        return NULL;
    const struct top *top = census->root->tops[root_idx];
    const struct mid *mid = top ? top->mids[page_idx >> MID_BITS & ((1 << TOP_BITS) - 1)] : NULL;
    return mid ? mid->pages[page_idx & ((1 << MID_BITS) - 1)] : NULL;
}

/* The page of a cluster with a cell for it, made if need be; NULL when out of memory.  Only the
 * first page of a small image is shorter than others, and grows when more is referenced. */
struct page *page_make(struct census *census, uint64_t cluster);

/* The first page at or after *page_idx, NULL if there is none; *page_idx becomes its index. */
const struct page *page_next(const struct census *census, uint64_t *page_idx);

void pages_free(struct census *census); /* all of them */

#endif
