/* SPDX-License-Identifier: MIT
 *
 * A layer that writes down what is done to devices below it, so that the state after a power cut at
 * any point can be made again; and that fails on demand. */
#ifndef TESTS_JOURNAL_H
#define TESTS_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io.h"
#include "rng.h"

enum journal_kind { JOURNAL_WRITE, JOURNAL_RESIZE, JOURNAL_FLUSH };

struct journal_op {
    enum journal_kind kind;
    unsigned device;
    uint64_t host_off; /* resize: the new size */
    size_t length;
    uint8_t *data;
};

/* What happened to all its devices, in order. */
struct journal {
    struct journal_op *ops;
    size_t count, room;
    size_t fail_from; /* writes, resizes and flushes fail from the n-th on; 0: none does */
    bool fired;
};

void journal_free(struct journal *journal);

/* A device of the journal over `next`, which it owns from then on; aborts without memory. */
struct io *journal_open(struct journal *journal, unsigned device, struct io *next);

/* Does to `target` what the first `count` operations did to `device`.  With `rng` each sector
 * has, of the writes that no flush of that device has followed, only the first few, by chance. */
void journal_replay(const struct journal *journal, unsigned device, size_t count, struct rng *rng,
    struct io *target);

#endif
