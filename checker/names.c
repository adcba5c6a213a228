/* SPDX-License-Identifier: MIT */
#include "names.h"

#include <stdlib.h>
#include <string.h>

static int compare_bytes(const uint8_t *a, size_t a_len, const uint8_t *b, size_t b_len)
{
    size_t n = a_len < b_len ? a_len : b_len;
    int order = n ? memcmp(a, b, n) : 0;
    return order ? order : (a_len > b_len) - (a_len < b_len);
}

static int compare_named(const void *a, const void *b)
{
    const struct named *x = a, *y = b;
    int order = compare_bytes(x->name, x->length, y->name, y->length);
    return order ? order : (x->idx > y->idx) - (x->idx < y->idx);
}

void names_sort(struct named *names, size_t count)
{
    qsort(names, count, sizeof(*names), compare_named);
}

/* The first one not below it. */
static size_t lower_bound(
    const struct named *names, size_t count, const uint8_t *name, size_t length)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (compare_bytes(names[middle].name, names[middle].length, name, length) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool is_named(const struct named *named, const uint8_t *name, size_t length)
{
    return compare_bytes(named->name, named->length, name, length) == 0;
}

bool names_other_has(
    const struct named *names, size_t count, const uint8_t *name, size_t length, size_t idx)
{
    size_t at = lower_bound(names, count, name, length);
    if (at < count && names[at].idx == idx)
        at++;
    return at < count && is_named(&names[at], name, length);
}

size_t names_first(const struct named *names, size_t count, const uint8_t *name, size_t length)
{
    size_t at = lower_bound(names, count, name, length);
    return at < count && is_named(&names[at], name, length) ? names[at].idx : SIZE_MAX;
}
