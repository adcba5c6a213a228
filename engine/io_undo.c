/* SPDX-License-Identifier: MIT
 *
 * The undo log: a pass-through that saves what a write, a resize or a growth is about to destroy.
 *
 *   log    = head, record ...             all integers big endian
 *   head   = magic, image size, hash of the image's first sector, hash of this head
 *   record = magic, device size before and after, range (whole sectors), payload hash, hash of
 *            this head; the sectors' old bytes; per sector the hash of what will be written
 *
 * Invariant: a record is durable before the device sees the first byte of its change.  So at any
 * moment, also after a power cut, each sector of a logged range holds one of the contents that the
 * log knows for it; rollback checks just that before it writes, and a torn last record belongs to a
 * write that never happened.  Records are put back last to first; whoever is interrupted in this
 * starts again.
 *
 * Discards stop here: a discarded range may read as anything, so keeping it is allowed, and it is
 * what somebody who wants to go back needs. */
#include "io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2.h"

enum {
    SECTOR = QCOW2_SECTOR_BYTES,
    HASH_BYTES = 8,
    HEAD_BYTES = 32,
    RECORD_BYTES = 56,
    PIECE_BYTES = 1 << 20, /* the most that one record covers */
};
#define HEAD_MAGIC   UINT64_C(0x71756e646f000101)
#define RECORD_MAGIC UINT64_C(0x71756e646f726563)

struct io_undo {
    struct io io;
    struct io *next, *log;
    uint64_t log_end;
    uint8_t *buf; /* one record of the largest size */
    bool broken;  /* a flush of the log failed: what it holds is unknown, nothing may change */
};

struct record {
    uint64_t size_before, size_after; /* of the device, once the whole call is done */
    uint64_t host_off, length;        /* whole sectors, maybe none */
};

static uint64_t payload_bytes(uint64_t length)
{
    return length + length / SECTOR * HASH_BYTES;
}

/* Tells accidents apart, not attackers; every step is a bijection of the state. */
static uint64_t hash_bytes(const uint8_t *bytes, size_t length)
{
    uint64_t hash = UINT64_C(0x9e3779b97f4a7c15) ^ length;
    for (; length >= 8; bytes += 8, length -= 8) {
        hash = (hash ^ load_be64(bytes)) * UINT64_C(0xff51afd7ed558ccd);
        hash ^= hash >> 29;
    }
    for (; length > 0; bytes++, length--)
        hash = (hash ^ *bytes) * UINT64_C(0x100000001b3);
    return hash ^ hash >> 32;
}

static struct io_undo *self(struct io *io)
{
    return (struct io_undo *)io;
}

/* ---- saving -------------------------------------------------------------------------------- */

struct change {
    uint64_t size_before, size_after, host_off;
    const uint8_t *data; /* NULL: zeros */
    uint64_t length;
};

/* Appends the record for the first `length` bytes of the change. */
static int save_piece(struct io_undo *undo, const struct change *change, size_t length)
{
    uint64_t host_off = change->host_off;
    const uint8_t *data = change->data;
    uint64_t first = host_off / SECTOR * SECTOR;
    size_t lead = (size_t)(host_off - first);
    size_t span = (lead + length + SECTOR - 1) / SECTOR * SECTOR;
    uint8_t *head = undo->buf, *old = head + RECORD_BYTES, *hashes = old + span;
    int ret = io_read_padded(undo->next, first, old, span);
    if (ret < 0)
        return ret;
    for (size_t at = 0; at < span; at += SECTOR) {
        uint8_t sector[SECTOR];
        memcpy(sector, old + at, SECTOR);
        size_t from = at < lead ? lead - at : 0;
        size_t to = lead + length - at < SECTOR ? lead + length - at : SECTOR;
        if (data)
            memcpy(sector + from, data + at + from - lead, to - from);
        else
            memset(sector + from, 0, to - from);
        store_be64(hashes + at / SECTOR * HASH_BYTES, hash_bytes(sector, SECTOR));
    }
    store_be64(head, RECORD_MAGIC);
    store_be64(head + 8, change->size_before);
    store_be64(head + 16, change->size_after);
    store_be64(head + 24, first);
    store_be64(head + 32, span);
    store_be64(head + 40, hash_bytes(old, (size_t)payload_bytes(span)));
    store_be64(head + 48, hash_bytes(head, 48));
    size_t total = RECORD_BYTES + (size_t)payload_bytes(span);
    ret = io_write(undo->log, undo->log_end, head, total);
    if (ret == 0)
        undo->log_end += total;
    return ret;
}

static int save(struct io_undo *undo, struct change change)
{
    uint64_t log_before = undo->log_end;
    int ret = 0;
    if (undo->broken)
        return -EIO;
    do {
        size_t room = PIECE_BYTES - change.host_off % SECTOR;
        size_t piece = change.length < room ? (size_t)change.length : room;
        ret = save_piece(undo, &change, piece);
        change.host_off += piece, change.length -= piece;
        if (change.data)
            change.data += piece;
    } while (ret == 0 && change.length > 0);
    if (ret < 0) { /* the next record is written over it */
        undo->log_end = log_before;
        return ret;
    }
    /* The old bytes must be durable before the device may change. */
    ret = io_flush(undo->log);
    undo->broken = ret < 0;
    return ret;
}

static int undo_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    struct io_undo *undo = self(io);
    uint64_t size, end = host_off + length;
    int ret = io_size(undo->next, &size);
    if (ret == 0)
        ret = save(undo,
            (struct change){size, size > end ? size : end, host_off, (const uint8_t *)buf, length});
    return ret < 0 ? ret : io_write(undo->next, host_off, buf, length);
}

/* What a shrink cuts off is saved as if it were overwritten with zeros; holes are zeros already. */
static int undo_resize(struct io *io, uint64_t size_bytes)
{
    struct io_undo *undo = self(io);
    uint64_t size, start, end;
    int ret = io_size(undo->next, &size);
    if (ret == 0)
        ret = save(undo, (struct change){size, size_bytes, 0, NULL, 0});
    for (uint64_t at = size_bytes; ret == 0 && at < size; at = end) {
        ret = io_extents(undo->next, at, &start, &end);
        if (ret == 0 && start < end)
            ret = save(undo, (struct change){size, size_bytes, start, NULL, end - start});
    }
    return ret < 0 ? ret : io_resize(undo->next, size_bytes);
}

/* ---- passing through ----------------------------------------------------------------------- */

static int undo_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    return io_read(self(io)->next, host_off, buf, length);
}

static int undo_flush(struct io *io)
{
    return io_flush(self(io)->next);
}

static int undo_size(struct io *io, uint64_t *size_bytes)
{
    return io_size(self(io)->next, size_bytes);
}

static int undo_extents(struct io *io, uint64_t host_off, uint64_t *start, uint64_t *end)
{
    return io_extents(self(io)->next, host_off, start, end);
}

static void undo_close(struct io *io)
{
    struct io_undo *undo = self(io);
    io_close(undo->next);
    io_close(undo->log);
    free(undo->buf);
    free(undo);
}

static const struct io_ops undo_ops = {
    .read = undo_read,
    .write = undo_write,
    .flush = undo_flush,
    .size = undo_size,
    .resize = undo_resize,
    .close = undo_close,
    .extents = undo_extents,
};

static int write_head(struct io *next, struct io *log)
{
    uint8_t sector[SECTOR], head[HEAD_BYTES];
    uint64_t size = 0, log_size = 0;
    int ret = io_size(log, &log_size);
    if (ret == 0 && log_size > 0)
        ret = -EEXIST; /* the way back of somebody else */
    if (ret == 0)
        ret = io_size(next, &size);
    if (ret == 0)
        ret = io_read_padded(next, 0, sector, sizeof(sector));
    if (ret < 0)
        return ret;
    store_be64(head, HEAD_MAGIC);
    store_be64(head + 8, size);
    store_be64(head + 16, hash_bytes(sector, sizeof(sector)));
    store_be64(head + 24, hash_bytes(head, 24));
    ret = io_write(log, 0, head, sizeof(head));
    return ret < 0 ? ret : io_flush(log);
}

int io_undo_open(struct io *next, struct io *log, struct io **out)
{
    struct io_undo *undo = calloc(1, sizeof(*undo));
    size_t record_max = RECORD_BYTES + (size_t)payload_bytes(PIECE_BYTES + SECTOR);
    uint8_t *buf = malloc(record_max);
    int ret = undo && buf ? write_head(next, log) : -ENOMEM;
    if (ret < 0) {
        free(undo);
        free(buf);
        return ret;
    }
    *undo = (struct io_undo){
        .io = {.ops = &undo_ops,
            .concurrent_reads = next->concurrent_reads,
            .read_only = next->read_only},
        .next = next,
        .log = log,
        .log_end = HEAD_BYTES,
        .buf = buf,
    };
    *out = &undo->io;
    return 0;
}

/* ---- going back ---------------------------------------------------------------------------- */

struct known_sector {
    uint64_t sector, hash; /* a content that the log explains there */
};

struct rollback {
    struct io *log, *image;
    uint8_t *buf, *now; /* a record; what the image has there */
    uint64_t size_now, size_first, size_min, size_max;
    void *record_offs; /* uint64_t: where the whole records start, in order */
    size_t record_count;
    void *known; /* struct known_sector */
    size_t known_count;
};

static size_t capacity_for(size_t count)
{
    size_t capacity = 64;
    while (capacity < count)
        capacity *= 2;
    return count > 0 ? capacity : 0;
}

/* Makes room for `more` items after `count`; the capacity follows from the count alone. */
static int reserve(void **array, size_t count, size_t more, size_t item_bytes)
{
    if (capacity_for(count) == capacity_for(count + more))
        return 0;
    void *grown = realloc(*array, capacity_for(count + more) * item_bytes);
    if (!grown)
        return -ENOMEM;
    *array = grown;
    return 0;
}

/* There is room: reserve() went before. */
static void know(struct rollback *rb, uint64_t sector, uint64_t hash)
{
    struct known_sector *known = rb->known;
    if (known)
        known[rb->known_count++] = (struct known_sector){sector, hash};
}

static void know_size(struct rollback *rb, uint64_t size)
{
    rb->size_min = size < rb->size_min ? size : rb->size_min;
    rb->size_max = size > rb->size_max ? size : rb->size_max;
}

/* Reads the record at log_off into rb->buf; 0 with *whole false where the log ends. */
static int read_record(struct rollback *rb, uint64_t log_off, struct record *rec, bool *whole)
{
    uint8_t head[RECORD_BYTES];
    *whole = false;
    int ret = io_read(rb->log, log_off, head, sizeof(head));
    if (ret == -ERANGE)
        return 0;
    if (ret < 0)
        return ret;
    *rec = (struct record){
        load_be64(head + 8), load_be64(head + 16), load_be64(head + 24), load_be64(head + 32)};
    if (load_be64(head) != RECORD_MAGIC || load_be64(head + 48) != hash_bytes(head, 48) ||
        rec->length > PIECE_BYTES + SECTOR || rec->length % SECTOR || rec->host_off % SECTOR)
        return 0;
    size_t payload = (size_t)payload_bytes(rec->length);
    ret = io_read(rb->log, log_off + RECORD_BYTES, rb->buf, payload);
    if (ret == -ERANGE)
        return 0;
    *whole = ret == 0 && load_be64(head + 40) == hash_bytes(rb->buf, payload);
    return ret;
}

/* Collects the whole records and every content they explain. */
static int scan_log(struct rollback *rb)
{
    struct record rec;
    bool whole;
    for (uint64_t at = HEAD_BYTES;; at += RECORD_BYTES + payload_bytes(rec.length)) {
        int ret = read_record(rb, at, &rec, &whole);
        if (ret < 0 || !whole)
            return ret;
        size_t sectors = (size_t)(rec.length / SECTOR);
        ret = reserve(&rb->record_offs, rb->record_count, 1, sizeof(uint64_t));
        if (ret == 0)
            ret = reserve(&rb->known, rb->known_count, 2 * sectors, sizeof(struct known_sector));
        if (ret < 0)
            return ret;
        ((uint64_t *)rb->record_offs)[rb->record_count++] = at;
        for (size_t i = 0; i < sectors; i++) {
            uint64_t sector = rec.host_off / SECTOR + i;
            know(rb, sector, hash_bytes(rb->buf + i * SECTOR, SECTOR));
            know(rb, sector, load_be64(rb->buf + rec.length + i * HASH_BYTES));
        }
        know_size(rb, rec.size_before);
        know_size(rb, rec.size_after);
    }
}

static int by_sector(const void *a, const void *b)
{
    const struct known_sector *x = a, *y = b;
    if (x->sector != y->sector)
        return x->sector < y->sector ? -1 : 1;
    return x->hash < y->hash ? -1 : x->hash > y->hash;
}

/* The log explains that content of the sector. */
static bool sector_known(const struct rollback *rb, uint64_t sector, uint64_t hash)
{
    struct known_sector is = {sector, hash};
    return rb->known_count > 0 &&
           bsearch(&is, rb->known, rb->known_count, sizeof(is), by_sector) != NULL;
}

/* -ESTALE if a logged sector holds what the log does not explain. */
static int check_sectors(const struct rollback *rb)
{
    uint8_t bytes[SECTOR];
    const struct known_sector *known = rb->known;
    for (size_t i = 0; i < rb->known_count; i++) {
        uint64_t sector = known[i].sector;
        if ((i > 0 && known[i - 1].sector == sector) || sector * SECTOR >= rb->size_now)
            continue;
        int ret = io_read_padded(rb->image, sector * SECTOR, bytes, SECTOR);
        if (ret < 0)
            return ret;
        if (!sector_known(rb, sector, hash_bytes(bytes, SECTOR)))
            return -ESTALE;
    }
    return 0;
}

/* What the file grew by holds zeros where the log says nothing; -ESTALE if not: it is cut off with
 * what somebody wrote there since. */
static int check_growth(const struct rollback *rb)
{
    uint8_t bytes[SECTOR];
    uint64_t zeros = hash_bytes(memset(bytes, 0, SECTOR), SECTOR), start, end;
    int ret = 0;
    for (uint64_t at = div_up(rb->size_first, SECTOR) * SECTOR; ret == 0 && at < rb->size_now;
         at = end) {
        ret = io_extents(rb->image, at, &start, &end);
        for (uint64_t off = start / SECTOR * SECTOR; ret == 0 && off < end && off < rb->size_now;
             off += SECTOR) {
            ret = io_read_padded(rb->image, off, bytes, SECTOR);
            uint64_t hash = ret == 0 ? hash_bytes(bytes, SECTOR) : zeros;
            if (hash != zeros && !sector_known(rb, off / SECTOR, hash))
                ret = -ESTALE;
        }
    }
    return ret;
}

/* Whether this log is one, and its image this one. */
static int check_identity(struct rollback *rb)
{
    uint8_t head[HEAD_BYTES], sector[SECTOR];
    int ret = io_read(rb->log, 0, head, sizeof(head));
    if (ret == -ERANGE)
        return -EILSEQ;
    if (ret < 0)
        return ret;
    if (load_be64(head) != HEAD_MAGIC || load_be64(head + 24) != hash_bytes(head, 24))
        return -EILSEQ;
    rb->size_first = rb->size_min = rb->size_max = load_be64(head + 8);
    ret = scan_log(rb);
    if (ret == 0 && rb->known_count > 0)
        qsort(rb->known, rb->known_count, sizeof(struct known_sector), by_sector);
    if (ret == 0)
        ret = io_size(rb->image, &rb->size_now);
    if (ret == 0)
        ret = io_read_padded(rb->image, 0, sector, sizeof(sector));
    if (ret < 0)
        return ret;
    uint64_t hash = hash_bytes(sector, sizeof(sector));
    return hash == load_be64(head + 16) || sector_known(rb, 0, hash) ? 0 : -EILSEQ;
}

/* Puts a record's old bytes back, but nothing past the first size. */
static int restore_record(struct rollback *rb, uint64_t log_off)
{
    struct record rec;
    bool whole;
    int ret = read_record(rb, log_off, &rec, &whole);
    if (ret == 0 && !whole)
        ret = -EIO; /* it was whole a moment ago */
    if (ret < 0 || rec.host_off >= rb->size_first)
        return ret;
    uint64_t room = rb->size_first - rec.host_off;
    size_t length = (size_t)(rec.length < room ? rec.length : room);
    ret = io_read_padded(rb->image, rec.host_off, rb->now, length);
    /* Where the write that it was saved for never came there may be a hole, or no room. */
    return ret < 0 || memcmp(rb->now, rb->buf, length) == 0
               ? ret
               : io_write(rb->image, rec.host_off, rb->buf, length);
}

int io_undo_rollback(struct io *log, struct io *image)
{
    struct rollback rb = {.log = log, .image = image};
    rb.buf = malloc((size_t)payload_bytes(PIECE_BYTES + SECTOR));
    rb.now = malloc((size_t)payload_bytes(PIECE_BYTES + SECTOR));
    int ret = rb.buf && rb.now ? check_identity(&rb) : -ENOMEM;
    if (ret == 0 && (rb.size_now < rb.size_min || rb.size_now > rb.size_max))
        ret = -ESTALE; /* not a length that the log explains */
    if (ret == 0)
        ret = check_sectors(&rb);
    if (ret == 0)
        ret = check_growth(&rb);
    /* Length first, so that a second attempt after a power cut finds all sectors explained. */
    if (ret == 0 && rb.size_now < rb.size_first)
        ret = io_resize(image, rb.size_first);
    for (size_t i = rb.record_count; ret == 0 && i-- > 0;)
        ret = restore_record(&rb, ((const uint64_t *)rb.record_offs)[i]);
    if (ret == 0 && rb.size_now > rb.size_first)
        ret = io_resize(image, rb.size_first);
    if (ret == 0)
        ret = io_flush(image);
    free(rb.now);
    free(rb.buf);
    free(rb.record_offs);
    free(rb.known);
    return ret;
}
