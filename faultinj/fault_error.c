/* SPDX-License-Identifier: MIT
 *
 * Calls that fail: EIO and ENOSPC on the n-th read, write, flush or discard, once or for good;
 * short writes; flushes that fail and forget, and flushes that lie.  What was done before survives
 * as the device model says.  Promise: I10; under a lying flush none. */
#include <errno.h>
#include <stdlib.h>

#include "fault.h"

struct fault_error {
    struct io io;
    struct io *next;
    struct fault_plan *plan;
};

static struct fault_error *self(struct io *io)
{
    return (struct fault_error *)io;
}

/* Counts the call; true if it is to fail. */
static bool hit(struct fault_plan *plan, enum fault_call call)
{
    if (plan->dead)
        return true;
    if (plan->call != call || ++plan->seen < plan->n)
        return false;
    if (plan->seen > plan->n && plan->mode != FAULT_FOR_GOOD)
        return false;
    plan->fired = true;
    plan->dead = plan->mode == FAULT_STOP;
    return true;
}

/* What is below is the device: it has memory of its own, and no allocation there may fail. */
struct below {
    struct io *next;
    unsigned alloc_left;
};

static struct below below_enter(struct io *io)
{
    struct below below = {self(io)->next, fault_alloc_left()};
    fault_alloc_arm(0);
    return below;
}

static int below_leave(const struct below *below, int ret)
{
    fault_alloc_arm(below->alloc_left);
    return ret;
}

static int error_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    if (hit(self(io)->plan, FAULT_READ))
        return self(io)->plan->error;
    struct below below = below_enter(io);
    return below_leave(&below, io_read(below.next, host_off, buf, length));
}

static int error_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    struct fault_plan *plan = self(io)->plan;
    struct below below = below_enter(io);
    if (!hit(plan, FAULT_WRITE))
        return below_leave(&below, io_write(below.next, host_off, buf, length));
    /* Devices write whole sectors: up to the last one that begins in the first half, or all. */
    if (plan->mode == FAULT_SHORT) {
        uint64_t cut = (host_off + length / 2) / STATE_SECTOR * STATE_SECTOR;
        size_t part = cut > host_off ? (size_t)(cut - host_off) : length;
        int ret = io_write(below.next, host_off, buf, part);
        if (ret < 0)
            return below_leave(&below, ret);
    }
    return below_leave(&below, plan->error);
}

static int error_flush(struct io *io)
{
    struct fault_plan *plan = self(io)->plan;
    struct below below = below_enter(io);
    int ret = plan->error;
    if (!hit(plan, FAULT_FLUSH)) {
        ret = io_flush(below.next);
    } else if (plan->mode == FAULT_LIE) {
        ret = 0;
    } else if (plan->mode == FAULT_DROP) { /* recorded below; what it lost is taken out there */
        int recorded = io_flush(below.next);
        ret = recorded < 0 ? recorded : ret;
    }
    return below_leave(&below, ret);
}

static int error_size(struct io *io, uint64_t *size_bytes)
{
    return self(io)->plan->dead ? self(io)->plan->error : io_size(self(io)->next, size_bytes);
}

static int error_resize(struct io *io, uint64_t size_bytes)
{
    if (hit(self(io)->plan, FAULT_WRITE))
        return self(io)->plan->error;
    struct below below = below_enter(io);
    return below_leave(&below, io_resize(below.next, size_bytes));
}

static int error_discard(struct io *io, uint64_t host_off, uint64_t length)
{
    if (hit(self(io)->plan, FAULT_DISCARD))
        return self(io)->plan->error;
    struct below below = below_enter(io);
    return below_leave(&below, io_discard(below.next, host_off, length));
}

static void error_close(struct io *io)
{
    io_close(self(io)->next);
    free(io);
}

int fault_error_open(struct io *next, struct fault_plan *plan, struct io **out)
{
    static const struct io_ops ops = {
        .read = error_read,
        .write = error_write,
        .flush = error_flush,
        .size = error_size,
        .resize = error_resize,
        .discard = error_discard,
        .close = error_close,
    };
    struct fault_error *layer = malloc(sizeof(*layer));
    if (!layer)
        return -ENOMEM;
    *layer = (struct fault_error){.io = {.ops = &ops}, .next = next, .plan = plan};
    *out = &layer->io;
    return 0;
}
