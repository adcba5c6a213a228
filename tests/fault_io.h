/* SPDX-License-Identifier: MIT
 *
 * A layer over an image in memory whose n-th call fails. */
#ifndef TESTS_FAULT_IO_H
#define TESTS_FAULT_IO_H

#include <stdbool.h>

#include "io.h"

struct fault_io {
    struct io io;
    struct io *next;    /* not owned */
    unsigned long left; /* calls until one fails; 0: none does */
    unsigned long flushes, writes;
    bool fired, tear; /* tear: the failing write leaves its first half behind */
    bool flush_fired; /* what failed was a flush */
    bool lasting;     /* from the first that fails on all fail */
};

void fault_io_init(struct fault_io *fault, struct io *next);

#endif
