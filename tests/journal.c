/* SPDX-License-Identifier: MIT */
#include "journal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { SECTOR = 512 };

struct device {
    struct io io;
    struct io *next;
    struct journal *journal;
    unsigned number;
};

static struct device *self(struct io *io)
{
    return (struct device *)io;
}

/* Notes the operation, unless it is to fail. */
static int note(
    struct io *io, enum journal_kind kind, uint64_t host_off, const void *buf, size_t length)
{
    struct journal *journal = self(io)->journal;
    if (journal->fail_from && journal->count + 1 >= journal->fail_from) {
        journal->fired = true;
        return kind == JOURNAL_FLUSH ? -EIO : -ENOSPC;
    }
    if (journal->count == journal->room) {
        journal->room = journal->room ? 2 * journal->room : 64;
        journal->ops = realloc(journal->ops, journal->room * sizeof(*journal->ops));
        if (!journal->ops)
            abort();
    }
    struct journal_op op = {
        .kind = kind, .device = self(io)->number, .host_off = host_off, .length = length};
    if (buf) {
        op.data = malloc(length + 1);
        if (!op.data)
            abort();
        memcpy(op.data, buf, length);
    }
    journal->ops[journal->count++] = op;
    return 0;
}

static int device_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    return io_read(self(io)->next, host_off, buf, length);
}

static int device_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    int ret = note(io, JOURNAL_WRITE, host_off, buf, length);
    return ret < 0 ? ret : io_write(self(io)->next, host_off, buf, length);
}

static int device_flush(struct io *io)
{
    int ret = note(io, JOURNAL_FLUSH, 0, NULL, 0);
    return ret < 0 ? ret : io_flush(self(io)->next);
}

static int device_size(struct io *io, uint64_t *size_bytes)
{
    return io_size(self(io)->next, size_bytes);
}

static int device_resize(struct io *io, uint64_t size_bytes)
{
    int ret = note(io, JOURNAL_RESIZE, size_bytes, NULL, 0);
    return ret < 0 ? ret : io_resize(self(io)->next, size_bytes);
}

static int device_extents(struct io *io, uint64_t host_off, uint64_t *start, uint64_t *end)
{
    return io_extents(self(io)->next, host_off, start, end);
}

static void device_close(struct io *io)
{
    io_close(self(io)->next);
    free(io);
}

static const struct io_ops device_ops = {
    .read = device_read,
    .write = device_write,
    .flush = device_flush,
    .size = device_size,
    .resize = device_resize,
    .extents = device_extents,
    .close = device_close,
};

struct io *journal_open(struct journal *journal, unsigned device, struct io *next)
{
    struct device *d = malloc(sizeof(*d));
    if (!d)
        abort();
    *d = (struct device){
        .io = {.ops = &device_ops}, .next = next, .journal = journal, .number = device};
    return &d->io;
}

void journal_free(struct journal *journal)
{
    for (size_t i = 0; i < journal->count; i++)
        free(journal->ops[i].data);
    free(journal->ops);
    *journal = (struct journal){0};
}

/* Every sector has seen the writes to it up to some point of its own, never a later one without
 * those before. */
struct tear {
    uint64_t seed;
    size_t durable, count; /* operations: all done below the one, perhaps done below the other */
};

static bool tear_has(const struct tear *tear, uint64_t sector, size_t op)
{
    struct rng rng = rng_for(tear->seed, sector);
    return op < tear->durable + rng_below(&rng, tear->count - tear->durable + 1);
}

static void replay_torn(
    const struct journal_op *op, size_t number, const struct tear *tear, struct io *target)
{
    if (op->kind == JOURNAL_RESIZE && tear_has(tear, UINT64_MAX, number))
        (void)io_resize(target, op->host_off);
    if (op->kind != JOURNAL_WRITE)
        return;
    for (size_t at = 0; at < op->length;) {
        uint64_t host_off = op->host_off + at;
        size_t n = SECTOR - (size_t)(host_off % SECTOR);
        n = n < op->length - at ? n : op->length - at;
        if (tear_has(tear, host_off / SECTOR, number))
            (void)io_write(target, host_off, op->data + at, n);
        at += n;
    }
}

void journal_replay(const struct journal *journal, unsigned device, size_t count, struct rng *rng,
    struct io *target)
{
    struct tear tear = {.durable = count, .count = count};
    if (rng) {
        tear.seed = rng_next(rng);
        for (tear.durable = count; tear.durable > 0; tear.durable--) {
            const struct journal_op *op = &journal->ops[tear.durable - 1];
            if (op->device == device && op->kind == JOURNAL_FLUSH)
                break;
        }
    }
    for (size_t i = 0; i < count; i++) {
        const struct journal_op *op = &journal->ops[i];
        if (op->device != device)
            continue;
        if (i >= tear.durable)
            replay_torn(op, i, &tear, target);
        else if (op->kind == JOURNAL_WRITE)
            (void)io_write(target, op->host_off, op->data, op->length);
        else if (op->kind == JOURNAL_RESIZE)
            (void)io_resize(target, op->host_off);
    }
}
