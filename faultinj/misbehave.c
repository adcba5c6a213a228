/* SPDX-License-Identifier: MIT
 *
 * See misbehave.h. */
#include "misbehave.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- flushes ------------------------------------------------------------------------------- */

struct careless {
    struct io io;
    struct io *next;
    bool retries;
};

static struct io *next_of(struct io *io)
{
    return ((struct careless *)io)->next;
}

static int careless_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    return io_read(next_of(io), host_off, buf, length);
}

static int careless_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    return io_write(next_of(io), host_off, buf, length);
}

static int careless_flush(struct io *io)
{
    int ret = io_flush(next_of(io));
    if (ret == 0)
        return 0;
    return ((struct careless *)io)->retries ? io_flush(next_of(io)) : 0;
}

static int careless_size(struct io *io, uint64_t *size_bytes)
{
    return io_size(next_of(io), size_bytes);
}

static int careless_resize(struct io *io, uint64_t size_bytes)
{
    return io_resize(next_of(io), size_bytes);
}

static int careless_discard(struct io *io, uint64_t host_off, uint64_t length)
{
    return io_discard(next_of(io), host_off, length);
}

static void careless_close(struct io *io)
{
    io_close(next_of(io));
    free(io);
}

static int open_careless(struct io *next, bool retries, struct io **out)
{
    static const struct io_ops ops = {
        .read = careless_read,
        .write = careless_write,
        .flush = careless_flush,
        .size = careless_size,
        .resize = careless_resize,
        .discard = careless_discard,
        .close = careless_close,
    };
    struct careless *layer = malloc(sizeof(*layer));
    if (!layer)
        return -ENOMEM;
    *layer = (struct careless){.io = {.ops = &ops}, .next = next, .retries = retries};
    *out = &layer->io;
    return 0;
}

static int open_ignoring(struct io *next, struct io **out)
{
    return open_careless(next, false, out);
}

static int open_retrying(struct io *next, struct io **out)
{
    return open_careless(next, true, out);
}

/* ---- memory -------------------------------------------------------------------------------- */

/* What a failed delete leaves if the list is changed before the table is written: the first
 * snapshot is gone. */
static void forget_first(struct image *img, int result)
{
    struct snapshot_table *snaps = &img->snaps;
    if (result >= 0 || snaps->count == 0)
        return;
    uint64_t gone = snaps->list[0].record_len;
    snaps->count--;
    snaps->length -= gone;
    memmove(snaps->list, snaps->list + 1, snaps->count * sizeof(*snaps->list));
    memmove(snaps->bytes, snaps->bytes + gone, (size_t)snaps->length);
    img->stale = false;
}

const struct misbehaviour misbehaviour_none = {NULL, NULL};
const struct misbehaviour misbehaviour_flush_ignored = {open_ignoring, NULL};
const struct misbehaviour misbehaviour_flush_retried = {open_retrying, NULL};
const struct misbehaviour misbehaviour_list_changed = {NULL, forget_first};
