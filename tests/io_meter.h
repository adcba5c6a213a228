/* SPDX-License-Identifier: MIT
 *
 * A layer that counts what is read, and may make each read take a while: storage that is far away,
 * but answers any number of reads at a time. */
#ifndef TESTS_IO_METER_H
#define TESTS_IO_METER_H

#include "io.h"

struct io_meter_counts {
    uint64_t reads, bytes;
    uint64_t at_once; /* most reads that were under way at a time */
};

/* A filter over `next`, which stays the caller's; each read takes `delay_ns` longer. */
int io_meter_open(struct io *next, uint64_t delay_ns, struct io **out);

/* Of a meter, since it was opened. */
struct io_meter_counts io_meter_counts(struct io *meter);

#endif
