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
    if (io_read_padded(walk->io, host_off, buf, length) < 0 &&
        !read_pieces(walk, NULL, host_off, buf, length, true))
        walk_lost_again(walk);
}

void walk_lost_again(struct walk *walk)
{
    if (walk->unreadable)
        return;
    walk->unreadable = true;
    report_problem(walk->report, "what was read once cannot be read again");
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

enum { MOST_READERS = 63, SCRATCH_BYTES = 64 << 20 };

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

/* A part of what is under way: while one is used, others are read. */
struct chunk {
    struct io_batch batch; /* one request an item */
    size_t first, count;   /* items */
    bool tall;             /* more that belong together than fit: they are not read here */
    bool busy;
    uint8_t *buf;
};

/* Chunks that fit the cache of a processor are used fastest; few of them do where a read takes
 * microseconds, and where it takes long there are many under way. */
enum { CHUNK_BYTES = 512 << 10, MOST_CHUNKS = 2 * WALK_BUF_BYTES / CHUNK_BYTES, FEW_CHUNKS = 3 };

struct line {
    struct chunk chunks[MOST_CHUNKS];
    size_t chunk_count, most; /* most: items a chunk */
    struct chunk *queue[MOST_CHUNKS];
    size_t head, pending; /* of the queue: in the order in which they are used */
};

static uint32_t item_bytes(const struct walk *walk, const struct stream *stream)
{
    return stream->bytes ? stream->bytes : walk->geo.cluster_size;
}

static size_t together(const struct walk *walk, const struct stream *stream, size_t item)
{
    return stream->together ? stream->together(walk, item) : 1;
}

/* Asks for items from chunk->first on, as many as fit; returns the bytes to read. */
static size_t chunk_plan(
    struct walk *walk, const struct stream *stream, struct chunk *chunk, size_t most)
{
    uint32_t size = item_bytes(walk, stream);
    size_t bytes = 0, n;
    chunk->count = 0;
    chunk->tall = together(walk, stream, chunk->first) > most;
    if (chunk->tall)
        chunk->count = together(walk, stream, chunk->first);
    for (; !chunk->tall && chunk->first + chunk->count < stream->count; chunk->count += n) {
        n = together(walk, stream, chunk->first + chunk->count);
        if (chunk->count + n > most)
            break;
        for (size_t i = chunk->count; i < chunk->count + n; i++) {
            struct io_read_req *req = &chunk->batch.reqs[i];
            *req = (struct io_read_req){.buf = chunk->buf + i * size};
            if (stream->place(walk, stream->arg, chunk->first + i, &req->host_off) &&
                walk_known_hole(walk, req->host_off) < size)
                req->length = size;
            bytes += req->length;
        }
    }
    return bytes;
}

/* Starts to read items from `first` on; returns how many. */
static size_t line_push(
    struct walk *walk, const struct stream *stream, struct line *line, size_t first)
{
    struct chunk *chunk = line->chunks;
    while (chunk->busy)
        chunk++;
    chunk->busy = true;
    chunk->first = first;
    size_t bytes = chunk_plan(walk, stream, chunk, line->most);
    chunk->batch.io = walk->io;
    chunk->batch.crew = walk->crew;
    chunk->batch.count = bytes > 0 ? chunk->count : 0;
    if (bytes >= CHUNK_BYTES)
        crew_grow(walk->crew, walk->options->threads - 1);
    io_batch_start(&chunk->batch);
    line->queue[(line->head + line->pending++) % MOST_CHUNKS] = chunk;
    return chunk->count;
}

static struct chunk *line_pop(struct line *line)
{
    struct chunk *chunk = line->queue[line->head];
    line->head = (line->head + 1) % MOST_CHUNKS;
    line->pending--;
    io_batch_wait(&chunk->batch);
    chunk->busy = false;
    return chunk;
}

/* Uses what was read, item by item, or those that belong together. */
static int chunk_use(struct walk *walk, const struct stream *stream, const struct chunk *chunk)
{
    int ret = 0;
    for (size_t i = 0, n; ret == 0 && i < chunk->count; i += n) {
        n = together(walk, stream, chunk->first + i);
        ret = stream->use(
            walk, stream->arg, chunk->first + i, n, chunk->tall ? NULL : chunk->batch.reqs + i);
    }
    return ret;
}

/* How many chunks are to be under way now. */
static size_t line_depth(const struct walk *walk, const struct line *line)
{
    if (!walk->crew)
        return 1;
    size_t depth = crew_count(walk->crew) < walk->options->threads ? FEW_CHUNKS : MOST_CHUNKS;
    return depth < line->chunk_count ? depth : line->chunk_count;
}

static int line_open(struct walk *walk, const struct stream *stream, struct line *line)
{
    uint32_t bytes = item_bytes(walk, stream);
    size_t size = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;
    size_t in_buf = WALK_BUF_BYTES / size;
    line->most = size / bytes;
    /* Small images, and those who read one by one, need no more room. */
    bool more = walk->crew && stream->count > line->most * in_buf;
    if (more && !walk->ahead_buf)
        walk->ahead_buf = malloc(WALK_BUF_BYTES);
    line->chunk_count = more && walk->ahead_buf ? 2 * in_buf : in_buf;
    struct io_read_req *reqs = calloc(line->chunk_count * line->most, sizeof(*reqs));
    for (size_t i = 0; reqs && i < line->chunk_count; i++) {
        line->chunks[i].batch.reqs = reqs + i * line->most;
        line->chunks[i].buf =
            i < in_buf ? walk->buf + i * size : walk->ahead_buf + (i - in_buf) * size;
    }
    return reqs ? 0 : -ENOMEM;
}

int walk_stream(struct walk *walk, const struct stream *stream)
{
    struct line line = {0};
    size_t started = 0;
    int ret = line_open(walk, stream, &line);
    while (ret == 0 && (line.pending > 0 || started < stream->count)) {
        while (started < stream->count &&
               (line.pending == 0 || line.pending < line_depth(walk, &line)))
            started += line_push(walk, stream, &line, started);
        const struct chunk *chunk = line_pop(&line);
        ret = chunk_use(walk, stream, chunk);
    }
    while (line.pending > 0) /* all ends early */
        line_pop(&line);
    free(line.chunks[0].batch.reqs);
    return ret;
}
