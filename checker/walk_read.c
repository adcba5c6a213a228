/* SPDX-License-Identifier: MIT
 *
 * Reading: what cannot be read is reported, holes of a sparse file are not read, and where the
 * places are known beforehand reads go on ahead of those who use the bytes.
 *
 * Invariant: what is used, and in which order, does not depend on how it was read. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "walk.h"

/* ---- what cannot be read ---- */

static void report_unreadable(
    struct walk *walk, const struct table *table, const struct io_read_req *piece)
{
    walk->report->check_errors++;
    walk->report->incomplete = true;
    walk->unreadable = true;
    struct subject subject = {
        .kind = OBJECT_REGION,
        .tree = table ? table->tree : TREE_NONE,
        .has_host = true,
        .host_off = piece->host_off,
        .length = piece->length,
        .region.error = -piece->result,
    };
    if (table) {
        const struct qcow2_geometry *geo = &walk->geo;
        uint64_t first = (piece->host_off - table->host_off) / geo->l2_entry_size;
        subject.guest_off = (uint64_t)table->l1_idx * geo->l2_span + (first << geo->cluster_bits);
        subject.guest_len = div_up(piece->length, geo->l2_entry_size) << geo->cluster_bits;
    }
    walk_show(walk, &subject);
}

/* Saves what can be read, piece by piece, zeros the rest, and hands each stretch that fails to
 * report_unreadable(). */
static bool read_pieces(struct walk *walk, const struct table *table, uint64_t host_off, void *buf,
    size_t length, bool silent)
{
    enum { PIECE_BYTES = 4096 };
    struct io_read_req bad = {0};
    bool complete = true;
    for (size_t done = 0; done < length;) {
        size_t n = PIECE_BYTES - (size_t)((host_off + done) % PIECE_BYTES);
        n = n < length - done ? n : length - done;
        int ret = io_read_padded(walk->io, host_off + done, (uint8_t *)buf + done, n);
        if (ret < 0) {
            memset((uint8_t *)buf + done, 0, n);
            if (bad.length == 0)
                bad.host_off = host_off + done;
            bad.length += n;
            bad.result = ret;
        }
        done += n;
        if (bad.length > 0 && (ret == 0 || done == length)) {
            if (!silent)
                report_unreadable(walk, table, &bad);
            complete = false;
            bad.length = 0;
        }
    }
    return complete;
}

void walk_read(struct walk *walk, uint64_t host_off, void *buf, size_t length, bool *complete)
{
    if (io_read_padded(walk->io, host_off, buf, length) < 0 &&
        !read_pieces(walk, NULL, host_off, buf, length, false))
        *complete = false;
}

void walk_read_table(struct walk *walk, const struct table *table, void *buf, bool *complete)
{
    if (io_read_padded(walk->io, table->host_off, buf, walk->geo.cluster_size) < 0 &&
        !read_pieces(walk, table, table->host_off, buf, walk->geo.cluster_size, false))
        *complete = false;
}

void walk_read_again(struct walk *walk, uint64_t host_off, void *buf, size_t length)
{
    if (io_read_padded(walk->io, host_off, buf, length) < 0)
        read_pieces(walk, NULL, host_off, buf, length, true);
}

/* ---- holes ---- */

bool walk_bytes_zero(const uint8_t *bytes, size_t length)
{
    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

uint64_t walk_known_hole(const struct walk *walk, uint64_t host_off)
{
    const struct extent *extent = &walk->extent;
    return host_off >= extent->hole_off && host_off < extent->data_off ? extent->data_off - host_off
                                                                       : 0;
}

uint64_t walk_hole(struct walk *walk, uint64_t host_off)
{
    struct extent *extent = &walk->extent;
    uint64_t start, end;
    if (host_off >= extent->hole_off && host_off < extent->data_end)
        return walk_known_hole(walk, host_off);
    *extent = (struct extent){host_off, host_off, UINT64_MAX};
    if (io_extents(walk->io, host_off, &start, &end) < 0)
        return 0;     /* nothing is known: all of it may be data */
    if (start >= end) /* zeros up to the end of the file, and so is what is read behind it */
        start = end = UINT64_MAX;
    extent->data_off = start;
    extent->data_end = end;
    return walk_known_hole(walk, host_off);
}

/* ---- reading ahead ---- */

enum { MOST_READERS = 63, SCRATCH_BYTES = 64 << 20, AHEAD_FROM_BYTES = 512 << 10 };

int walk_open_crew(struct walk *walk)
{
    unsigned threads = walk->options->threads;
    if (threads <= 1)
        return 0;
    /* Readers mostly wait, so there may be more of them than of processors; but each may need
     * room for two clusters and a decoded one. */
    unsigned most = SCRATCH_BYTES / 3 / walk->geo.cluster_size;
    most = most < MOST_READERS ? most : MOST_READERS;
    return crew_open(most > threads - 1 ? most : threads - 1, &walk->crew);
}

/* One half of what is under way: while one is used, the other is read. */
struct half {
    struct io_batch batch; /* one request an item */
    size_t first, count;   /* items */
    bool tall;             /* more that belong together than fit: they are not read here */
    uint8_t *buf;
};

static size_t together(const struct walk *walk, const struct stream *stream, size_t item)
{
    return stream->together ? stream->together(walk, item) : 1;
}

/* Asks for items from half->first on, as many as fit; returns the bytes to read. */
static size_t half_plan(
    struct walk *walk, const struct stream *stream, struct half *half, size_t most)
{
    uint32_t size = walk->geo.cluster_size;
    size_t bytes = 0, n;
    half->count = 0;
    half->tall = together(walk, stream, half->first) > most;
    if (half->tall)
        half->count = together(walk, stream, half->first);
    for (; !half->tall && half->first + half->count < stream->count; half->count += n) {
        n = together(walk, stream, half->first + half->count);
        if (half->count + n > most)
            break;
        for (size_t i = half->count; i < half->count + n; i++) {
            struct io_read_req *req = &half->batch.reqs[i];
            *req = (struct io_read_req){.buf = half->buf + i * size};
            if (stream->place(walk, stream->arg, half->first + i, &req->host_off) &&
                walk_known_hole(walk, req->host_off) < size)
                req->length = size;
            bytes += req->length;
        }
    }
    return bytes;
}

static void half_start(
    struct walk *walk, const struct stream *stream, struct half *half, size_t most)
{
    size_t bytes = half_plan(walk, stream, half, most);
    half->batch.io = walk->io;
    half->batch.crew = walk->crew;
    half->batch.count = half->tall ? 0 : half->count;
    if (bytes >= AHEAD_FROM_BYTES)
        crew_grow(walk->crew, walk->options->threads - 1);
    io_batch_start(&half->batch);
}

/* Uses what a half has read, item by item, or those that belong together. */
static int half_use(struct walk *walk, const struct stream *stream, struct half *half)
{
    int ret = 0;
    io_batch_wait(&half->batch);
    for (size_t i = 0, n; ret == 0 && i < half->count; i += n) {
        n = together(walk, stream, half->first + i);
        ret = stream->use(
            walk, stream->arg, half->first + i, n, half->tall ? NULL : half->batch.reqs + i);
    }
    return ret;
}

int walk_stream(struct walk *walk, const struct stream *stream)
{
    size_t most = WALK_BUF_BYTES / walk->geo.cluster_size, started = 0;
    /* Small images, and those who read one by one, need no second half. */
    size_t half_count = walk->crew && stream->count > most ? 2 : 1;
    if (half_count == 2 && !walk->ahead_buf && !(walk->ahead_buf = malloc(WALK_BUF_BYTES)))
        half_count = 1;
    struct io_read_req *reqs = calloc(half_count * most, sizeof(*reqs));
    struct half halves[2] = {{.buf = walk->buf}, {.buf = walk->ahead_buf}};
    size_t filled = 0, used = 0;
    int ret = reqs ? 0 : -ENOMEM;
    while (ret == 0 && (used < filled || started < stream->count)) {
        for (; filled - used < half_count && started < stream->count; filled++) {
            struct half *half = &halves[filled % half_count];
            half->batch.reqs = reqs + filled % half_count * most;
            half->first = started;
            half_start(walk, stream, half, most);
            started += half->count;
        }
        ret = half_use(walk, stream, &halves[used++ % half_count]);
    }
    for (; used < filled; used++) /* all ends early */
        io_batch_wait(&halves[used % half_count].batch);
    free(reqs);
    return ret;
}
