/* SPDX-License-Identifier: MIT */
#include "bench_bare.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "codec.h"
#include "crew.h"
#include "io.h"
#include "qcow2.h"

struct bare {
    struct io *io;
    struct qcow2_header header;
    struct qcow2_geometry geo;
    uint64_t *places; /* of the metadata: refcount blocks, then L2 tables */
    size_t count, room, l2_first;
};

static int bare_open(const char *image, struct bare *bare)
{
    uint8_t head[QCOW2_V3_HEADER_BYTES + 8];
    *bare = (struct bare){0};
    int ret = io_file_open(image, IO_FILE_NO_LOCK, &bare->io, NULL);
    if (ret == 0)
        ret = io_read_padded(bare->io, 0, head, sizeof(head));
    if (ret == 0)
        ret = qcow2_header_decode(head, sizeof(head), &bare->header);
    return ret < 0 ? ret : qcow2_geometry_init(&bare->header, &bare->geo);
}

static void bare_close(struct bare *bare)
{
    io_close(bare->io);
    free(bare->places);
}

/* Adds the clusters that a table of `count` entries names. */
static int add_places(struct bare *bare, uint64_t table_off, uint64_t count)
{
    uint8_t *table = malloc(count * 8);
    uint64_t *places = realloc(bare->places, (bare->room + count) * sizeof(*places));
    if (places) {
        bare->places = places;
        bare->room += count;
    }
    int ret = table && places ? io_read_padded(bare->io, table_off, table, count * 8) : -ENOMEM;
    for (uint64_t i = 0; ret == 0 && i < count; i++) {
        uint64_t off = load_be64(table + i * 8) & QCOW2_OFFSET_MASK;
        if (off != 0)
            bare->places[bare->count++] = off;
    }
    free(table);
    return ret;
}

static int find_metadata(struct bare *bare)
{
    const struct qcow2_header *header = &bare->header;
    int ret = add_places(bare, header->reftable_off,
        ((uint64_t)header->reftable_clusters << bare->geo.cluster_bits) / 8);
    bare->l2_first = bare->count;
    return ret < 0 ? ret : add_places(bare, header->l1_off, header->l1_size);
}

int bench_copy_metadata(const char *image, const char *path)
{
    struct bare bare;
    struct io *out = NULL;
    uint8_t *buf = malloc(UINT64_C(1) << QCOW2_MAX_CLUSTER_BITS);
    int ret = buf ? bare_open(image, &bare) : -ENOMEM;
    if (ret == 0)
        ret = find_metadata(&bare);
    if (ret == 0)
        ret = io_file_open(path, IO_FILE_CREATE | IO_FILE_WRITE | IO_FILE_NO_LOCK, &out, NULL);
    for (size_t i = 0; ret == 0 && i < bare.count; i++) {
        ret = io_read_padded(bare.io, bare.places[i], buf, bare.geo.cluster_size);
        if (ret == 0)
            ret = io_write(out, (uint64_t)i * bare.geo.cluster_size, buf, bare.geo.cluster_size);
    }
    io_close(out);
    bare_close(&bare);
    free(buf);
    return ret;
}

int bench_read(const char *path)
{
    enum { BYTES = 1 << 20 };
    uint64_t *words = malloc(BYTES), sum = 0;
    int fd = open(path, O_RDONLY);
    ssize_t n = words && fd >= 0 ? 1 : -1;
    for (off_t at = 0; n > 0 && (n = pread(fd, words, BYTES, at)) > 0; at += n) {
        for (size_t i = 0; i < (size_t)n / 8; i++)
            sum += __builtin_bswap64(words[i]);
    }
    printf("%" PRIu64 "\n", sum);
    free(words);
    return n < 0;
}

/* ---- decoding ---- */

struct decoding {
    struct bare *bare;
    struct codec **codecs; /* one a worker */
    uint8_t **bufs;
    uint8_t *table;
    _Atomic unsigned failed;
};

static void decode_entry(void *arg, size_t index, unsigned worker)
{
    struct decoding *d = arg;
    const struct qcow2_geometry *geo = &d->bare->geo;
    struct qcow2_l2_entry e;
    qcow2_l2_decode(geo, d->table + index * geo->l2_entry_size, &e);
    if (e.kind != QCOW2_L2_COMPRESSED)
        return;
    uint8_t *plain = d->bufs[worker], *packed = plain + geo->cluster_size;
    if (io_read_padded(d->bare->io, e.host_off, packed, e.length) < 0 ||
        codec_decode(d->codecs[worker], packed, e.length, plain, geo->cluster_size) != 0)
        d->failed++;
}

static void decoding_close(struct decoding *d, unsigned workers)
{
    for (unsigned i = 0; i < workers; i++) {
        codec_close(d->codecs ? d->codecs[i] : NULL);
        free(d->bufs ? d->bufs[i] : NULL);
    }
    free(d->codecs);
    free(d->bufs);
    free(d->table);
}

static int decoding_open(struct decoding *d, unsigned workers)
{
    uint32_t size = d->bare->geo.cluster_size;
    d->codecs = calloc(workers, sizeof(struct codec *));
    d->bufs = calloc(workers, sizeof(uint8_t *));
    d->table = malloc(size);
    int ret = d->codecs && d->bufs && d->table ? 0 : -ENOMEM;
    for (unsigned i = 0; ret == 0 && i < workers; i++) {
        d->bufs[i] = malloc(4 * (size_t)size);
        ret = d->bufs[i] ? codec_open(d->bare->header.compression, &d->codecs[i]) : -ENOMEM;
    }
    return ret;
}

static int decode_all(struct bare *bare, struct crew *crew)
{
    struct decoding d = {.bare = bare};
    int ret = decoding_open(&d, crew_workers(crew));
    for (size_t i = bare->l2_first; ret == 0 && i < bare->count; i++) {
        struct crew_task task = {
            .job = decode_entry, .arg = &d, .count = bare->geo.l2_entries, .grain = 4};
        ret = io_read_padded(bare->io, bare->places[i], d.table, bare->geo.cluster_size);
        if (ret == 0) {
            crew_start(crew, &task);
            crew_wait(crew, &task);
        }
    }
    decoding_close(&d, crew_workers(crew));
    return ret == 0 && d.failed ? -EBADMSG : ret;
}

int bench_decode(const char *image)
{
    struct bare bare;
    struct crew *crew = NULL;
    unsigned helpers = (unsigned)sysconf(_SC_NPROCESSORS_ONLN) - 1;
    int ret = bare_open(image, &bare);
    if (ret == 0)
        ret = find_metadata(&bare);
    if (ret == 0)
        ret = crew_open(helpers, &crew);
    crew_grow(crew, helpers);
    if (ret == 0)
        ret = decode_all(&bare, crew);
    crew_close(crew);
    bare_close(&bare);
    return ret < 0;
}
