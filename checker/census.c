/* SPDX-License-Identifier: MIT
 *
 * The census; see census.h; what a page is, is in census_page.h.
 *
 * Pages hang in a radix tree of three levels, so that a sparse file of exabytes costs what is
 * referenced in it and a small one a few pointers. */
#include "census.h"
#include "census_page.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2.h"
#include "vector.h"

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
    bool has_conflicts;
    uint64_t claims, loose_pages;  /* pages made for references where nothing is counted */
    struct unknown_range *unknown; /* ascending */
    size_t unknown_count;
    struct page *first_page; /* images up to 2^15 clusters need no more */
    struct root *root;
};

/* ---- pages ---- */

static void *census_alloc(struct census *census, size_t bytes)
{
    void *p = calloc(1, bytes);
    if (p)
        census->memory += bytes;
    return p;
}

static struct page *page_find(const struct census *census, uint64_t cluster)
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

/* The page of a cluster with a cell for it, made if need be; NULL when out of memory.  Only the
 * first page of a small image is shorter than others, and grows when more is referenced. */
static struct page *page_make(struct census *census, uint64_t cluster)
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

/* ---- the census ---- */

int census_open(uint64_t cluster_count, struct census **out)
{
    struct census *census = calloc(1, sizeof(*census));
    if (!census)
        return -ENOMEM;
    census->cluster_count = cluster_count;
    census->memory = sizeof(*census);
    *out = census;
    return 0;
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

void census_close(struct census *census)
{
    if (!census)
        return;
    page_free(census->first_page);
    for (size_t i = 0; census->root && i < 1 << ROOT_BITS; i++)
        top_free(census->root->tops[i]);
    free(census->root);
    free(census->unknown);
    free(census);
}

size_t census_memory(const struct census *census)
{
    return census->memory;
}

bool census_has_conflicts(const struct census *census)
{
    return census->has_conflicts;
}

int census_unknown(struct census *census, uint64_t first, uint64_t count)
{
    if (census->unknown_count > 0) {
        struct unknown_range *last = &census->unknown[census->unknown_count - 1];
        if (last->first + last->count == first && first + count > first) {
            last->count += count;
            return 0;
        }
    }
    struct unknown_range *ranges =
        realloc(census->unknown, (census->unknown_count + 1) * sizeof(*census->unknown));
    if (!ranges)
        return -ENOMEM;
    ranges[census->unknown_count++] = (struct unknown_range){first, count};
    census->unknown = ranges;
    return 0;
}

bool census_known(const struct census *census, uint64_t cluster)
{
    size_t low = 0, high = census->unknown_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const struct unknown_range *range = &census->unknown[middle];
        if (cluster < range->first)
            high = middle;
        else if (cluster - range->first >= range->count)
            low = middle + 1;
        else
            return false;
    }
    return true;
}

/* ---- loading stored counts ---- */

/* Packs 16-bit big-endian counts into byte cells; false if one does not fit (cells are rubbish
 * then). */
VECTOR_LOOPS static bool pack_order4(const uint8_t *block, uint8_t *cell, size_t count)
{
    enum { STEP = 64 };
    const uint16_t over = (uint16_t)~0x7f, shift = BYTE_CLAIMED - BYTE_MAX - 1;
    uint16_t any = 0;
    size_t i = 0;
    for (; i + STEP <= count; i += STEP) {
        uint16_t stored[STEP];
        memcpy(stored, block + 2 * i, sizeof(stored));
        for (size_t k = 0; k < STEP; k++) {
            uint16_t value = be16toh(stored[k]);
            any |= (value | (uint16_t)(value + shift)) & over;
            cell[i + k] = (uint8_t)value;
        }
    }
    for (; i < count; i++) {
        uint16_t value = load_be16(block + 2 * i);
        any |= (value | (uint16_t)(value + shift)) & over;
        cell[i] = (uint8_t)value;
    }
    return any == 0;
}

static int load_slow(struct census *census, struct page *page, uint32_t i, uint64_t count,
    const uint8_t *block, unsigned order, uint64_t entry)
{
    for (uint64_t k = 0; k < count; k++) {
        uint64_t stored = qcow2_refcount_get(block, order, entry + k);
        int64_t balance = stored < CENSUS_STORED_MAX ? (int64_t)stored : CENSUS_STORED_MAX;
        int ret = page_set(page, i + (uint32_t)k, balance, false, &census->memory);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* True if a part of a block holds only zero counts: no page is made for it then. */
static bool all_free(const uint8_t *block, unsigned order, uint64_t entry, uint64_t count)
{
    size_t first = (size_t)((entry << order) / 8), end = (size_t)(((entry + count) << order) / 8);
    return end > first && block[first] == 0 &&
           memcmp(block + first, block + first + 1, end - first - 1) == 0 &&
           ((entry << order) | (count << order)) % 8 == 0;
}

int census_load(
    struct census *census, uint64_t first, uint64_t count, const uint8_t *block, unsigned order)
{
    uint64_t entry = 0;
    while (entry < count) {
        uint64_t cluster = first + entry;
        uint32_t i = (uint32_t)(cluster & (PAGE_CELLS - 1));
        uint64_t n = PAGE_CELLS - i < count - entry ? PAGE_CELLS - i : count - entry;
        if (!all_free(block, order, entry, n)) {
            struct page *page = page_make(census, cluster + n - 1);
            if (!page)
                return -ENOMEM;
            bool done = order == 4 && page->cell_bytes == 1 &&
                        pack_order4(block + entry * 2, page->cell + i, (size_t)n);
            int ret = done ? 0 : load_slow(census, page, i, n, block, order, entry);
            if (ret < 0)
                return ret;
        }
        entry += n;
    }
    return 0;
}

/* ---- claims ---- */

/* The page of a cluster that is referred to.  In a sound image its clusters are counted, so it is
 * there; where counts are lost references still come in crowds.  A few of them each at places far
 * apart are made to cost memory. */
static int page_for_claim(struct census *census, uint64_t cluster, struct page **page)
{
    enum { LOOSE_AT_LEAST = 4096, CLAIMS_A_PAGE = 64 };
    census->claims++;
    *page = page_find(census, cluster);
    if (!*page) {
        if (census->loose_pages >= LOOSE_AT_LEAST + census->claims / CLAIMS_A_PAGE)
            return -E2BIG;
        census->loose_pages++;
    }
    if (!*page || (cluster & (PAGE_CELLS - 1)) >= (*page)->cells)
        *page = page_make(census, cluster);
    return *page ? 0 : -ENOMEM;
}

static int note_conflict(struct census *census, struct page *page, uint32_t i)
{
    census->has_conflicts = true;
    return page_mark(page, MARK_CONFLICT, i, &census->memory);
}

int census_claim(
    struct census *census, uint64_t cluster, uint64_t refs, enum claim how, bool *conflict)
{
    struct page *page;
    int ret = page_for_claim(census, cluster, &page);
    if (ret < 0)
        return ret;
    uint32_t i = (uint32_t)(cluster & (PAGE_CELLS - 1));
    uint64_t cell = cell_load(page, i);
    bool owned = cell_claimed(page, cell) && !mark_get(page, MARK_REFUSED, i);
    int64_t balance = cell_balance(page, cell) - (int64_t)refs;
    *conflict =
        owned && how != CLAIM_REFUSED && (how == CLAIM_ALONE || !mark_get(page, MARK_PACKED, i));
    if (*conflict)
        ret = note_conflict(census, page, i);
    else if (how == CLAIM_PACKED)
        ret = page_mark(page, MARK_PACKED, i, &census->memory);
    else if (how == CLAIM_REFUSED && !owned)
        ret = page_mark(page, MARK_REFUSED, i, &census->memory);
    if (ret == 0)
        ret = page_set(page, i, balance, true, &census->memory);
    if (ret == 0 && how != CLAIM_REFUSED)
        page_unmark(page, MARK_REFUSED, i);
    return ret;
}

bool census_claim_exact(struct census *census, uint64_t cluster, uint64_t refs)
{
    struct page *page = page_find(census, cluster);
    uint32_t i = (uint32_t)(cluster & (PAGE_CELLS - 1));
    if (!page || i >= page->cells || refs >= negative_from(page->cell_bytes) ||
        cell_load(page, i) != refs)
        return false;
    cell_store(page, i, UINT64_C(1) << value_bits(page->cell_bytes));
    return true;
}

/* How many bytes from the first on are `value`. */
static size_t bytes_like(const uint8_t *p, size_t count, uint8_t value)
{
    if (p[0] != value)
        return 0;
    if (memcmp(p, p + 1, count - 1) == 0)
        return count;
    size_t i = 1;
    while (p[i] == value)
        i++;
    return i;
}

uint64_t census_claim_run(struct census *census, uint64_t first, uint64_t count, uint64_t refs)
{
    uint64_t done = 0;
    if (refs > BYTE_MAX)
        return 0;
    while (done < count) {
        struct page *page = page_find(census, first + done);
        uint32_t i = (uint32_t)((first + done) & (PAGE_CELLS - 1));
        if (!page || page->cell_bytes != 1 || i >= page->cells)
            break;
        uint64_t span = page->cells - i < count - done ? page->cells - i : count - done;
        size_t n = bytes_like(page->cell + i, (size_t)span, (uint8_t)refs);
        memset(page->cell + i, BYTE_CLAIMED, n);
        done += n;
        if (n < span)
            break;
    }
    return done;
}

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

int census_mark_odd(struct census *census, uint64_t cluster)
{
    struct page *page;
    int ret = page_for_claim(census, cluster, &page);
    if (ret < 0)
        return ret == -E2BIG ? 0 : ret;
    return page_mark(page, MARK_ODD, (uint32_t)(cluster & (PAGE_CELLS - 1)), &census->memory);
}

struct census_cell census_get(const struct census *census, uint64_t cluster)
{
    const struct page *page = page_find(census, cluster);
    uint32_t i = (uint32_t)(cluster & (PAGE_CELLS - 1));
    if (!page || i >= page->cells)
        return (struct census_cell){0};
    uint64_t cell = cell_load(page, i);
    return (struct census_cell){
        .balance = cell_balance(page, cell),
        .claimed = cell_claimed(page, cell),
        .conflict = mark_get(page, MARK_CONFLICT, i),
        .odd = mark_get(page, MARK_ODD, i),
    };
}

/* ---- going through it ---- */

/* The first page at or after *page_idx, NULL if there is none; *page_idx becomes its index. */
static const struct page *page_next(const struct census *census, uint64_t *page_idx)
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
