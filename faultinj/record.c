/* SPDX-License-Identifier: MIT
 *
 * See record.h. */
#include "record.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct record {
    struct io io;
    struct io *next;
    struct recording *recording;
};

static struct record *self(struct io *io)
{
    return (struct record *)io;
}

const char *request_kind_name(enum request_kind kind)
{
    static const char *const names[] = {"write", "resize", "discard", "flush"};
    return names[kind];
}

static void request_release(struct request *request)
{
    free(request->data);
    free(request->backtrace);
}

void recording_release(struct recording *recording)
{
    for (size_t i = 0; i < recording->count; i++)
        request_release(&recording->list[i]);
    free(recording->list);
    *recording = (struct recording){0};
}

static int copy_request(const struct request *from, struct request *to)
{
    *to = *from;
    to->data = NULL;
    to->backtrace = from->backtrace ? strdup(from->backtrace) : NULL;
    if (from->data) {
        to->data = malloc((size_t)from->length + 1);
        if (!to->data) {
            free(to->backtrace);
            return -ENOMEM;
        }
        memcpy(to->data, from->data, (size_t)from->length);
    }
    return 0;
}

int recording_add(struct recording *recording, const struct request *request)
{
    if (recording->count == recording->room) {
        size_t room = recording->room ? recording->room * 2 : 64;
        struct request *grown = realloc(recording->list, room * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        recording->list = grown;
        recording->room = room;
    }
    int ret = copy_request(request, &recording->list[recording->count]);
    recording->count += ret == 0;
    return ret;
}

int recording_copy(const struct recording *from, struct recording *to)
{
    *to = (struct recording){.op = from->op};
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < from->count; i++)
        ret = recording_add(to, &from->list[i]);
    if (ret < 0)
        recording_release(to);
    return ret;
}

void recording_remove(struct recording *recording, size_t idx)
{
    request_release(&recording->list[idx]);
    memmove(&recording->list[idx], &recording->list[idx + 1],
        (recording->count - idx - 1) * sizeof(struct request));
    recording->count--;
}

void recording_move(struct recording *recording, size_t from, size_t to)
{
    struct request moved = recording->list[from];
    if (from > to) {
        memmove(
            &recording->list[to + 1], &recording->list[to], (from - to) * sizeof(struct request));
    } else if (from < to) {
        to--;
        memmove(&recording->list[from], &recording->list[from + 1],
            (to - from) * sizeof(struct request));
    }
    recording->list[to] = moved;
}

/* ---- the layer ----------------------------------------------------------------------------- */

static void note(struct record *record, struct request request)
{
    struct recording *recording = record->recording;
    request.op = recording->op;
    if (recording->backtraces)
        request.backtrace = backtrace_text();
    if (recording_add(recording, &request) < 0)
        recording->no_memory = true;
    free(request.backtrace);
}

static int record_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    return io_read(self(io)->next, host_off, buf, length);
}

static int record_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    int ret = io_write(self(io)->next, host_off, buf, length);
    note(self(io), (struct request){.kind = REQUEST_WRITE,
                       .host_off = host_off,
                       .length = length,
                       .data = (uint8_t *)(uintptr_t)buf,
                       .result = ret});
    return ret;
}

static int record_flush(struct io *io)
{
    int ret = io_flush(self(io)->next);
    note(self(io), (struct request){.kind = REQUEST_FLUSH, .result = ret});
    return ret;
}

static int record_size(struct io *io, uint64_t *size_bytes)
{
    return io_size(self(io)->next, size_bytes);
}

static int record_resize(struct io *io, uint64_t size_bytes)
{
    int ret = io_resize(self(io)->next, size_bytes);
    note(self(io), (struct request){.kind = REQUEST_RESIZE, .host_off = size_bytes, .result = ret});
    return ret;
}

static int record_discard(struct io *io, uint64_t host_off, uint64_t length)
{
    int ret = io_discard(self(io)->next, host_off, length);
    note(self(io),
        (struct request){
            .kind = REQUEST_DISCARD, .host_off = host_off, .length = length, .result = ret});
    return ret;
}

static int record_extents(struct io *io, uint64_t host_off, uint64_t *start, uint64_t *end)
{
    return io_extents(self(io)->next, host_off, start, end);
}

static void record_close(struct io *io)
{
    io_close(self(io)->next);
    free(io);
}

int record_open(struct io *next, struct recording *recording, struct io **out)
{
    static const struct io_ops ops = {
        .read = record_read,
        .write = record_write,
        .flush = record_flush,
        .size = record_size,
        .resize = record_resize,
        .discard = record_discard,
        .close = record_close,
        .extents = record_extents,
    };
    struct record *record = malloc(sizeof(*record));
    if (!record)
        return -ENOMEM;
    *record = (struct record){.io = {.ops = &ops}, .next = next, .recording = recording};
    *out = &record->io;
    return 0;
}
