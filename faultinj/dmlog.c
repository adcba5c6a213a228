/* SPDX-License-Identifier: MIT
 *
 * See dmlog.h.  The log is foreign: every length is checked against the file. */
#include "dmlog.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DMLOG_MAGIC   UINT64_C(0x6a736677736872)
#define DMLOG_VERSION UINT64_C(1)

enum { SUPER_BYTES = 28, ENTRY_BYTES = 32, SECTOR_MIN = 32, SECTOR_MAX = 4096, OUT_SECTOR = 512 };

enum dmlog_flags {
    DMLOG_FLUSH = 1,
    DMLOG_FUA = 2,
    DMLOG_DISCARD = 4,
    DMLOG_MARK = 8,
    DMLOG_METADATA = 16,
    DMLOG_KNOWN = 31,
};

static uint64_t load_le(const uint8_t *p, unsigned bytes)
{
    uint64_t v = 0;
    for (unsigned i = bytes; i-- > 0;)
        v = v << 8 | p[i];
    return v;
}

static void store_le(uint8_t *p, uint64_t v, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++, v >>= 8)
        p[i] = (uint8_t)v;
}

/* ---- reading ------------------------------------------------------------------------------- */

struct reader {
    struct io *log;
    uint64_t size, at, sector_bytes, count, written;
    struct recording *out;
};

static int read_super(struct reader *r)
{
    uint8_t super[SUPER_BYTES];
    int ret = io_size(r->log, &r->size);
    if (ret == 0)
        ret = r->size < SUPER_BYTES ? -EILSEQ : io_read(r->log, 0, super, sizeof(super));
    if (ret < 0)
        return ret;
    r->count = load_le(super + 16, 8);
    r->sector_bytes = load_le(super + 24, 4);
    r->at = r->sector_bytes;
    if (load_le(super, 8) != DMLOG_MAGIC || load_le(super + 8, 8) != DMLOG_VERSION ||
        r->sector_bytes < SECTOR_MIN || r->sector_bytes > SECTOR_MAX ||
        (r->sector_bytes & (r->sector_bytes - 1)))
        return -EILSEQ;
    return 0;
}

/* A flush right behind another one has nothing to do, but each would be a step of its own. */
static int add_flush(struct reader *r)
{
    if (r->out->count > 0 && r->out->list[r->out->count - 1].kind == REQUEST_FLUSH)
        return 0;
    struct request flush = {.kind = REQUEST_FLUSH};
    return recording_add(r->out, &flush);
}

static int add_write(struct reader *r, uint64_t host_off, uint64_t length, bool fua)
{
    struct request write = {
        .kind = REQUEST_WRITE, .host_off = host_off, .length = length, .fua = fua};
    write.data = malloc((size_t)length);
    r->written += length;
    int ret = write.data ? io_read(r->log, r->at, write.data, (size_t)length) : -ENOMEM;
    if (ret == 0)
        ret = recording_add(r->out, &write);
    free(write.data);
    r->at += length;
    return ret;
}

/* One entry; *more becomes false at the end of what makes sense. */
static int read_entry(struct reader *r, bool promised, bool *more)
{
    uint8_t head[ENTRY_BYTES];
    uint64_t host_off, length, end;
    int no = promised ? -ENODATA : 0; /* what to say where the log ends early */
    *more = false;
    if (r->size - r->at < r->sector_bytes || r->size < r->at)
        return no;
    int ret = io_read(r->log, r->at, head, sizeof(head));
    if (ret < 0)
        return ret;
    uint64_t count = load_le(head + 8, 8), flags = load_le(head + 16, 8);
    bool data = !(flags & (DMLOG_DISCARD | DMLOG_MARK)) && count > 0;
    if (__builtin_mul_overflow(load_le(head, 8), r->sector_bytes, &host_off) ||
        __builtin_mul_overflow(count, r->sector_bytes, &length) ||
        __builtin_add_overflow(host_off, length, &end) || end > INT64_MAX ||
        flags & ~(uint64_t)DMLOG_KNOWN || (flags == 0 && count == 0) ||
        (data && length > r->size - r->at - r->sector_bytes))
        return no;
    if (data && (end > DMLOG_MOST_BYTES || length > DMLOG_MOST_BYTES - r->written))
        return -EFBIG;
    r->at += r->sector_bytes;
    *more = true;
    if (flags & DMLOG_MARK)
        return 0;
    if (flags & DMLOG_FLUSH)
        ret = add_flush(r);
    if (ret == 0 && flags & DMLOG_DISCARD && length > 0) {
        struct request discard = {.kind = REQUEST_DISCARD, .host_off = host_off, .length = length};
        ret = recording_add(r->out, &discard);
    } else if (ret == 0 && data) {
        ret = add_write(r, host_off, length, flags & DMLOG_FUA);
    }
    return ret;
}

int dmlog_read(struct io *log, struct recording *out)
{
    struct recording recording = {0};
    struct reader r = {.log = log, .out = &recording};
    bool more = true;
    int ret = read_super(&r);
    for (uint64_t i = 0; ret == 0 && more; i++)
        ret = read_entry(&r, i < r.count, &more);
    if (ret < 0)
        recording_release(&recording);
    else
        *out = recording;
    return ret;
}

/* ---- writing ------------------------------------------------------------------------------- */

struct writer {
    struct io *log, *image;
    uint64_t at, count;
};

static int put_entry(struct writer *w, uint64_t host_off, uint64_t length, uint64_t flags)
{
    uint8_t head[OUT_SECTOR] = {0};
    store_le(head, host_off / OUT_SECTOR, 8);
    store_le(head + 8, length / OUT_SECTOR, 8);
    store_le(head + 16, flags, 8);
    int ret = io_write(w->log, w->at, head, sizeof(head));
    w->at += sizeof(head);
    w->count++;
    return ret;
}

static int put_write(struct writer *w, const struct request *r)
{
    uint64_t from = r->host_off / OUT_SECTOR * OUT_SECTOR;
    uint64_t to = (r->host_off + r->length + OUT_SECTOR - 1) / OUT_SECTOR * OUT_SECTOR;
    uint8_t *bytes = malloc((size_t)(to - from));
    int ret = bytes ? io_write(w->image, r->host_off, r->data, (size_t)r->length) : -ENOMEM;
    if (ret == 0)
        ret = io_read_padded(w->image, from, bytes, (size_t)(to - from));
    if (ret == 0)
        ret = put_entry(w, from, to - from, r->fua ? DMLOG_FUA : 0);
    if (ret == 0)
        ret = io_write(w->log, w->at, bytes, (size_t)(to - from));
    w->at += to - from;
    free(bytes);
    return ret;
}

static int put_discard(struct writer *w, const struct request *r)
{
    uint64_t from = (r->host_off + OUT_SECTOR - 1) / OUT_SECTOR * OUT_SECTOR;
    uint64_t to = (r->host_off + r->length) / OUT_SECTOR * OUT_SECTOR;
    if (from >= to)
        return 0;
    int ret = io_discard(w->image, from, to - from);
    return ret < 0 ? ret : put_entry(w, from, to - from, DMLOG_DISCARD);
}

int dmlog_write(const struct recording *recording, struct io *base, struct io *log)
{
    struct writer w = {.log = log, .at = OUT_SECTOR};
    uint8_t super[OUT_SECTOR] = {0};
    int ret = io_mem_load(base, &w.image);
    for (size_t i = 0; ret == 0 && i < recording->count; i++) {
        const struct request *r = &recording->list[i];
        if (r->result != 0 || r->kind == REQUEST_RESIZE)
            continue;
        ret = r->kind == REQUEST_FLUSH     ? put_entry(&w, 0, 0, DMLOG_FLUSH)
              : r->kind == REQUEST_DISCARD ? put_discard(&w, r)
                                           : put_write(&w, r);
    }
    store_le(super, DMLOG_MAGIC, 8);
    store_le(super + 8, DMLOG_VERSION, 8);
    store_le(super + 16, w.count, 8);
    store_le(super + 24, OUT_SECTOR, 4);
    if (ret == 0)
        ret = io_write(log, 0, super, sizeof(super));
    if (ret == 0)
        ret = io_flush(log);
    io_close(w.image);
    return ret;
}
