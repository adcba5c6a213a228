/* SPDX-License-Identifier: MIT
 *
 * Many reads at once, going on while the caller does something else; see io.h.
 *
 * How many are under way follows from the device: one that answers from memory is served by those
 * who are there anyway, and each read that keeps its reader waiting doubles the readers. */
#include "io.h"

#include <sys/resource.h>
#include <time.h>

struct moment {
    uint64_t ns;
    long waits; /* times this thread gave up its processor because it had to wait */
};

static struct moment moment_now(void)
{
    struct timespec ts;
    struct rusage usage;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    getrusage(RUSAGE_THREAD, &usage);
    return (struct moment){(uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec, usage.ru_nvcsw};
}

/* The device kept us waiting, and not somebody who took the processor away. */
static bool was_slow(const struct moment *start, size_t length)
{
    /* From memory a read takes some microseconds, and a nanosecond a byte at the very most. */
    enum { SLOW_NS = 250000 };
    struct moment end = moment_now();
    return end.waits > start->waits && end.ns - start->ns > SLOW_NS + length;
}

static void read_one(void *arg, size_t index, unsigned worker)
{
    struct io_batch *batch = arg;
    struct io_read_req *req = &batch->reqs[index];
    (void)worker;
    struct moment start = batch->crew ? moment_now() : (struct moment){0};
    req->result = io_read(batch->io, req->host_off, req->buf, req->length);
    if (batch->crew && was_slow(&start, req->length))
        crew_double(batch->crew);
}

/* Small reads are taken up several at a time, which saves ways to the lock; once there are many
 * readers each read counts. */
static size_t grain(const struct io_batch *batch)
{
    enum { LARGE_BYTES = 16 << 10, SEVERAL = 8, FEW_READERS = 3 };
    size_t length = batch->count > 0 ? batch->reqs[0].length : 0;
    return length < LARGE_BYTES && crew_count(batch->crew) <= FEW_READERS ? SEVERAL : 1;
}

void io_batch_start(struct io_batch *batch)
{
    if (!batch->io->concurrent_reads)
        batch->crew = NULL;
    batch->task = (struct crew_task){.job = read_one,
        .arg = batch,
        .count = batch->count,
        .grain = batch->crew ? grain(batch) : 1};
    crew_start(batch->crew, &batch->task);
}

void io_batch_wait(struct io_batch *batch)
{
    crew_wait(batch->crew, &batch->task);
}
