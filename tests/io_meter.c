/* SPDX-License-Identifier: MIT */
#include "io_meter.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

struct io_meter {
    struct io io;
    struct io *next;
    uint64_t delay_ns;
    _Atomic uint64_t reads, bytes, under_way, at_once;
};

static struct io_meter *self(struct io *io)
{
    return (struct io_meter *)io;
}

static int meter_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    struct io_meter *meter = self(io);
    uint64_t under_way = atomic_fetch_add(&meter->under_way, 1) + 1;
    uint64_t most = atomic_load(&meter->at_once);
    while (under_way > most && !atomic_compare_exchange_weak(&meter->at_once, &most, under_way))
        ;
    atomic_fetch_add(&meter->reads, 1);
    atomic_fetch_add(&meter->bytes, length);
    if (meter->delay_ns > 0) {
        struct timespec delay = {
            (time_t)(meter->delay_ns / 1000000000), (long)(meter->delay_ns % 1000000000)};
        nanosleep(&delay, NULL);
    }
    int ret = io_read(meter->next, host_off, buf, length);
    atomic_fetch_sub(&meter->under_way, 1);
    return ret;
}

static int meter_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    return io_write(self(io)->next, host_off, buf, length);
}

static int meter_flush(struct io *io)
{
    return io_flush(self(io)->next);
}

static int meter_size(struct io *io, uint64_t *size_bytes)
{
    return io_size(self(io)->next, size_bytes);
}

static int meter_resize(struct io *io, uint64_t size_bytes)
{
    return io_resize(self(io)->next, size_bytes);
}

static int meter_extents(struct io *io, uint64_t host_off, uint64_t *start, uint64_t *end)
{
    return io_extents(self(io)->next, host_off, start, end);
}

static void meter_close(struct io *io)
{
    free(io);
}

int io_meter_open(struct io *next, uint64_t delay_ns, struct io **out)
{
    static const struct io_ops ops = {
        .read = meter_read,
        .write = meter_write,
        .flush = meter_flush,
        .size = meter_size,
        .resize = meter_resize,
        .close = meter_close,
        .extents = meter_extents,
    };
    struct io_meter *meter = calloc(1, sizeof(*meter));
    if (!meter)
        return -ENOMEM;
    meter->io.ops = &ops;
    meter->io.concurrent_reads = next->concurrent_reads;
    meter->next = next;
    meter->delay_ns = delay_ns;
    *out = &meter->io;
    return 0;
}

struct io_meter_counts io_meter_counts(struct io *io)
{
    struct io_meter *meter = self(io);
    return (struct io_meter_counts){
        atomic_load(&meter->reads), atomic_load(&meter->bytes), atomic_load(&meter->at_once)};
}
