/* SPDX-License-Identifier: MIT
 *
 * Inputs of the fuzzers; the format is in fuzz.h.  Whatever the bytes are, unpacking takes time and
 * memory in proportion to a fixed limit. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "qcow2.h"

enum {
    HEAD_BYTES = 9,
    RECORD_BYTES = 12,
    UNIT_BYTES = 32,        /* what is packed is a multiple of it */
    CHUNK_BYTES = 64 << 10, /* read at once, and the longest fill written at once */
    MAX_STORED = 32 << 20,  /* further records are ignored */
};
#define FILL_FLAG  UINT32_C(0x80000000)
#define MAX_DEVICE UINT64_C(0x7ffffffffffffe00)

struct record {
    uint64_t host_off;
    uint64_t length;
    const uint8_t *bytes; /* of a fill: the one */
    bool fill;
};

/* Takes the next record; false at the end. */
static bool next_record(const uint8_t *data, size_t size, size_t *pos, struct record *record)
{
    if (size - *pos < RECORD_BYTES + 1)
        return false;
    uint32_t length = load_be32(data + *pos + 8);
    size_t left = size - *pos - RECORD_BYTES;
    record->host_off = load_be64(data + *pos);
    record->bytes = data + *pos + RECORD_BYTES;
    record->fill = length & FILL_FLAG;
    record->length = length & ~FILL_FLAG;
    if (!record->fill && record->length > left)
        record->length = left;
    *pos += RECORD_BYTES + (record->fill ? 1 : (size_t)record->length);
    return true;
}

static int store(struct io *io, const struct record *record)
{
    if (!record->fill)
        return io_write(io, record->host_off, record->bytes, (size_t)record->length);
    uint8_t *buf = malloc(CHUNK_BYTES);
    int ret = buf ? 0 : -ENOMEM;
    if (buf)
        memset(buf, *record->bytes, CHUNK_BYTES);
    for (uint64_t done = 0; ret == 0 && done < record->length; done += CHUNK_BYTES) {
        uint64_t left = record->length - done;
        ret = io_write(io, record->host_off + done, buf,
            left < CHUNK_BYTES ? (size_t)left : (size_t)CHUNK_BYTES);
    }
    free(buf);
    return ret;
}

int fuzz_unpack(const uint8_t *data, size_t size, struct fuzz_image *out)
{
    struct fuzz_image image = {0};
    uint64_t device = size >= HEAD_BYTES ? load_be64(data + 1) & MAX_DEVICE : size;
    size_t pos = HEAD_BYTES;
    struct record record;
    int ret = io_mem_open(device, &image.io);
    image.options = size > 0 ? data[0] : 0;
    while (ret == 0 && pos <= size && next_record(data, size, &pos, &record)) {
        if (record.host_off >= device || record.host_off >= FUZZ_MAX_HOST)
            continue;
        if (record.length > device - record.host_off)
            record.length = device - record.host_off;
        if (record.length > MAX_STORED - image.stored)
            break;
        image.stored += record.length;
        ret = store(image.io, &record);
    }
    if (ret < 0) {
        io_close(image.io);
        return ret;
    }
    *out = image;
    return 0;
}

/* ---- packing ---- */

struct packer {
    uint8_t *out;
    size_t used, room;
    size_t last; /* where the last record stands; 0: none yet */
};

static int pack_head(struct packer *p, uint64_t host_off, bool fill)
{
    if (p->room - p->used < RECORD_BYTES + 1 + UNIT_BYTES)
        return -ENOSPC;
    p->last = p->used;
    store_be64(p->out + p->used, host_off);
    store_be32(p->out + p->used + 8, fill ? FILL_FLAG : 0);
    p->used += RECORD_BYTES;
    return 0;
}

/* Adds a unit, to the last record if it goes on where that ends and is of its kind. */
static int pack_unit(struct packer *p, uint64_t host_off, const uint8_t *bytes, size_t length)
{
    bool fill = length == UNIT_BYTES;
    for (size_t i = 1; i < length; i++)
        fill &= bytes[i] == bytes[0];
    if (fill && bytes[0] == 0)
        return 0;
    bool goes_on = false;
    if (p->last) {
        const uint8_t *head = p->out + p->last;
        uint32_t was = load_be32(head + 8);
        goes_on = load_be64(head) + (was & ~FILL_FLAG) == host_off &&
                  (was & FILL_FLAG) == (fill ? FILL_FLAG : 0) &&
                  (!fill || head[RECORD_BYTES] == bytes[0]);
    }
    int ret = goes_on ? 0 : pack_head(p, host_off, fill);
    size_t more = fill ? !goes_on : length;
    if (ret == 0 && p->room - p->used < more)
        ret = -ENOSPC;
    if (ret < 0)
        return ret;
    memcpy(p->out + p->used, bytes, more);
    p->used += more;
    uint8_t *field = p->out + p->last + 8;
    store_be32(field, load_be32(field) + (uint32_t)length);
    return 0;
}

int fuzz_pack(struct io *io, uint8_t options, uint8_t *out, size_t room, size_t *size)
{
    struct packer p = {.out = out, .used = HEAD_BYTES, .room = room};
    uint64_t device, start, end;
    uint8_t *buf = malloc(CHUNK_BYTES);
    int ret = buf ? io_size(io, &device) : -ENOMEM;
    if (ret == 0 && room < HEAD_BYTES)
        ret = -ENOSPC;
    for (uint64_t at = 0; ret == 0 && at < device;) {
        ret = io_extents(io, at, &start, &end);
        at = start;
        if (ret < 0 || at >= device)
            break;
        size_t n = end - at < CHUNK_BYTES ? (size_t)(end - at) : CHUNK_BYTES;
        ret = io_read(io, at, buf, n);
        for (size_t i = 0; ret == 0 && i < n; i += UNIT_BYTES)
            ret = pack_unit(&p, at + i, buf + i, n - i < UNIT_BYTES ? n - i : UNIT_BYTES);
        at += n;
    }
    free(buf);
    if (ret < 0)
        return ret;
    out[0] = options;
    store_be64(out + 1, device);
    *size = p.used;
    return 0;
}

/* ---- as a recipe ---- */

static void print_record(const struct record *record, FILE *out)
{
    enum { PER_LINE = 32 };
    if (record->fill) {
        fprintf(out, "set fill %#" PRIx64 " %" PRIu64 " %#x\n", record->host_off, record->length,
            *record->bytes);
        return;
    }
    for (uint64_t done = 0; done < record->length; done += PER_LINE) {
        uint64_t n = record->length - done < PER_LINE ? record->length - done : PER_LINE;
        fprintf(out, "set bytes %#" PRIx64 " = ", record->host_off + done);
        for (uint64_t i = 0; i < n; i++)
            fprintf(out, "%02x", record->bytes[done + i]);
        fputc('\n', out);
    }
}

int fuzz_print_recipe(const uint8_t *data, size_t size, FILE *out)
{
    struct fuzz_image image;
    int ret = fuzz_unpack(data, size, &image);
    if (ret < 0)
        return ret;
    size_t room = 16 + 2 * (size_t)image.stored,
           packed; /* once more: sorted, and without overlaps */
    uint8_t *again = malloc(room + (1 << 20));
    ret = again ? fuzz_pack(image.io, image.options, again, room + (1 << 20), &packed) : -ENOMEM;
    if (ret == 0) {
        size_t pos = HEAD_BYTES;
        struct record record;
        fprintf(out, "raw size=%" PRIu64 "\n", load_be64(again + 1));
        while (next_record(again, packed, &pos, &record))
            print_record(&record, out);
    }
    free(again);
    io_close(image.io);
    return ret;
}
