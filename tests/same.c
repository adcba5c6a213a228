/* SPDX-License-Identifier: MIT */
#include "same.h"

#include <stdlib.h>
#include <string.h>

bool same_image(struct io *a, struct io *b)
{
    enum { CHUNK = 1 << 16 };
    uint64_t size, other, pos = 0, start[2], end[2];
    if (io_size(a, &size) < 0 || io_size(b, &other) < 0 || size != other)
        return false;
    uint8_t *x = malloc(CHUNK), *y = malloc(CHUNK);
    bool same = x && y;
    while (same && pos < size) {
        same = io_extents(a, pos, &start[0], &end[0]) == 0 &&
               io_extents(b, pos, &start[1], &end[1]) == 0;
        uint64_t next = start[0] < start[1] ? start[0] : start[1];
        if (next >= size)
            break;
        same = same && io_read_padded(a, next, x, CHUNK) == 0 &&
               io_read_padded(b, next, y, CHUNK) == 0 && memcmp(x, y, CHUNK) == 0;
        pos = next + CHUNK;
    }
    free(x);
    free(y);
    return same;
}
