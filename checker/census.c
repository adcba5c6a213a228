/* SPDX-License-Identifier: MIT
 *
 * The census: stored counts are loaded, references are taken off; see census.h, and census_tree.h
 * for its parts. */
#include "census.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "census_tree.h"
#include "qcow2.h"
#include "vector.h"

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

void census_close(struct census *census)
{
    if (!census)
        return;
    pages_free(census);
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

bool census_has_refused(const struct census *census)
{
    return census->has_refused;
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
    census->has_refused |= how == CLAIM_REFUSED;
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

/* Claims one byte cell that nobody claimed before; false, and nothing done, if it is another one or
 * there is no memory. */
static bool byte_claim(
    struct census *census, struct page *page, uint32_t i, uint8_t refs, bool *exact)
{
    uint8_t stored = page->cell[i];
    if ((stored & BYTE_CLAIMED) || !balance_fits(1, (int64_t)stored - refs) ||
        (stored > refs && page_mark(page, MARK_ODD, i, &census->memory) < 0))
        return false;
    page->cell[i] = (uint8_t)((uint8_t)(stored - refs) | BYTE_CLAIMED);
    *exact &= stored == refs;
    return true;
}

static uint32_t bytes_claim(
    struct census *census, struct page *page, uint32_t i, uint32_t count, uint8_t refs, bool *exact)
{
    uint32_t done = 0;
    while (done < count) {
        uint8_t *cell = page->cell + i + done;
        uint8_t stored = *cell;
        if (!byte_claim(census, page, i + done++, refs, exact))
            return done - 1;
        /* What comes next is mostly alike; only marks are set one by one. */
        if (stored <= refs) {
            uint32_t n = bytes_like(cell + 1, count - done, page->cells - i - done, stored);
            memset(cell + 1, *cell, n);
            done += n;
        }
    }
    return done;
}

uint64_t census_claim_run(
    struct census *census, uint64_t first, uint64_t count, uint64_t refs, bool *exact)
{
    uint64_t done = 0;
    struct page *page;
    while (refs <= BYTE_MAX && done < count) {
        uint32_t i = (uint32_t)((first + done) & (PAGE_CELLS - 1));
        if (page_for_claim(census, first + done, &page) < 0 || page->cell_bytes != 1)
            break;
        uint64_t span = page->cells - i < count - done ? page->cells - i : count - done;
        uint32_t n = bytes_claim(census, page, i, (uint32_t)span, (uint8_t)refs, exact);
        census->claims += n;
        done += n;
        if (n < span)
            break;
    }
    return done;
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
