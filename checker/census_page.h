/* SPDX-License-Identifier: MIT
 *
 * One page of the census: the cells of 2^15 clusters in a row.
 *
 * A cell is one unsigned number of 1, 2 or 8 bytes: its top bit is the claimed mark, the others
 * hold the balance modulo 2^(bits - 1), of which the uppermost eighth stands for negative balances.
 * A cell of 0 is a cluster nobody counted and nobody claimed.  When a balance does not fit its
 * page, the page is made wider as a whole.
 *
 * `memory` is where the functions keep the bytes in use; they return 0 or -ENOMEM. */
#ifndef CHECKER_CENSUS_PAGE_H
#define CHECKER_CENSUS_PAGE_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    PAGE_BITS = 15,
    PAGE_CELLS = 1 << PAGE_BITS,
    BYTE_CLAIMED = 0x80, /* in a cell of one byte */
    BYTE_MAX = 0x6f,     /* highest balance in it */
};

enum mark { MARK_PACKED, MARK_REFUSED, MARK_CONFLICT, MARK_ODD, MARK_COUNT };

struct page {
    unsigned cell_bytes;        /* 1, 2 or 8 */
    uint32_t cells;             /* PAGE_CELLS, fewer in a small image */
    uint8_t *marks[MARK_COUNT]; /* bitmaps, NULL: none is set */
    uint8_t *cell;
};

/* Gives the page more or wider cells; those that are there keep their meaning. */
int page_resize(struct page *page, uint32_t cells, unsigned cell_bytes, size_t *memory);
void page_free(struct page *page); /* NULL is allowed */

int page_mark(struct page *page, enum mark mark, uint32_t i, size_t *memory);
void page_unmark(struct page *page, enum mark mark, uint32_t i);

/* Sets a cell, widening the page if need be. */
int page_set(struct page *page, uint32_t i, int64_t balance, bool claimed, size_t *memory);

/* How many byte cells from the first on are `value`, up to `count`.  Eight at a time where `room`,
 * the cells there are, allows. */
static inline uint32_t bytes_like(const uint8_t *cell, uint32_t count, uint32_t room, uint8_t value)
{
    uint64_t want = value * UINT64_C(0x0101010101010101), eight;
    uint32_t k = 0;
    for (; k < count && k + 8 <= room; k += 8) {
        memcpy(&eight, cell + k, 8);
        if (eight != want) {
            k += (uint32_t)__builtin_ctzll(le64toh(eight ^ want)) / 8;
            return k < count ? k : count;
        }
    }
    while (k < count && cell[k] == value)
        k++;
    return k < count ? k : count;
}

static inline unsigned value_bits(unsigned cell_bytes)
{
    return cell_bytes * 8 - 1;
}

/* The least value that stands for a negative balance. */
static inline uint64_t negative_from(unsigned cell_bytes)
{
    return (UINT64_C(1) << value_bits(cell_bytes)) / 8 * 7;
}

static inline uint64_t cell_load(const struct page *page, uint32_t i)
{
    switch (page->cell_bytes) {
    case 1:
        return page->cell[i];
    case 2:
        return ((const uint16_t *)(const void *)page->cell)[i];
    default:
        return ((const uint64_t *)(const void *)page->cell)[i];
    }
}

static inline void cell_store(struct page *page, uint32_t i, uint64_t value)
{
    switch (page->cell_bytes) {
    case 1:
        page->cell[i] = (uint8_t)value;
        break;
    case 2:
        ((uint16_t *)(void *)page->cell)[i] = (uint16_t)value;
        break;
    default:
        ((uint64_t *)(void *)page->cell)[i] = value;
    }
}

static inline bool cell_claimed(const struct page *page, uint64_t cell)
{
    return cell >> value_bits(page->cell_bytes);
}

static inline int64_t cell_balance(const struct page *page, uint64_t cell)
{
    unsigned bits = value_bits(page->cell_bytes);
    uint64_t value = cell & ((UINT64_C(1) << bits) - 1);
    if (value < negative_from(page->cell_bytes))
        return (int64_t)value;
    return (int64_t)value - (int64_t)((UINT64_C(1) << bits) - 1) - 1;
}

static inline bool balance_fits(unsigned cell_bytes, int64_t balance)
{
    unsigned bits = value_bits(cell_bytes);
    if (balance >= 0)
        return (uint64_t)balance < negative_from(cell_bytes);
    return (uint64_t)-balance <= (UINT64_C(1) << bits) / 8;
}

static inline uint64_t cell_make(unsigned cell_bytes, int64_t balance, bool claimed)
{
    unsigned bits = value_bits(cell_bytes);
    return ((uint64_t)balance & ((UINT64_C(1) << bits) - 1)) | (uint64_t)claimed << bits;
}

static inline bool mark_get(const struct page *page, enum mark mark, uint32_t i)
{
    return page->marks[mark] && (page->marks[mark][i / 8] >> (i % 8) & 1);
}

#endif
