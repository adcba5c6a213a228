/* SPDX-License-Identifier: MIT
 *
 * A device with a bad spot, for recipes that say `unreadable`. */
#ifndef TESTS_IO_UNREADABLE_H
#define TESTS_IO_UNREADABLE_H

#include "io.h"

/* A filter over `next` on which every read that touches the range fails with -EIO; all else passes.
 * Owns `next` when it succeeds. */
int io_unreadable_open(struct io *next, uint64_t host_off, uint64_t length, struct io **out);

#endif
