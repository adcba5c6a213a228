/* SPDX-License-Identifier: MIT
 *
 * A recipe is drawn first (what qemu-img create allows together), then a script of a few phases:
 * guest writes, and between them a snapshot, a bitmap or a resize.  Sizes stay small enough that an
 * image costs milliseconds. */
#include "imgmake.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io.h"
#include "proc.h"
#include "qcow2.h"
#include "rng.h"

#define SECRET "--object secret,id=s,data=oracle"

struct maker {
    struct rng rng;
    struct imgmake *image;
    FILE *script;
    unsigned cluster_bits, refcount_bits;
    bool v2, extended_l2, zstd, lazy;
    const char *preallocation;
    const char *backing_format; /* NULL without a backing file */
    bool data_file_raw;
    bool shared_compressed; /* compressed clusters may stand where a snapshot would overflow */
    uint64_t size_bytes;
    unsigned snapshot_count, bitmap_count; /* ever made: they number the names */
    bool snapshot_alive[4];
};

static uint64_t below(struct maker *m, uint64_t count)
{
    return rng_below(&m->rng, count);
}

static bool chance(struct maker *m, unsigned percent)
{
    return rng_chance(&m->rng, percent);
}

__attribute__((format(printf, 2, 3))) static void step(struct maker *m, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(m->script, format, args);
    va_end(args);
}

/* ---- the recipe ------------------------------------------------------------------------------ */

static uint64_t l2_span(const struct maker *m)
{
    return UINT64_C(1) << (2 * m->cluster_bits - (m->extended_l2 ? 4 : 3));
}

static uint64_t draw_size(struct maker *m)
{
    uint64_t cluster = UINT64_C(1) << m->cluster_bits;
    uint64_t most =
        strcmp(m->preallocation, "off") != 0 || m->data_file_raw ? 40 * cluster : 4 * l2_span(m);
    if (chance(m, 30) && most > 100 * cluster)
        most = 100 * cluster;
    uint64_t size = (1 + below(m, most / 512)) * 512;
    if (chance(m, 50))
        size = (size + cluster - 1) / cluster * cluster;
    return size;
}

static void draw_luks(struct maker *m)
{
    m->image->luks = true;
    m->v2 = m->extended_l2 = m->zstd = false;
    m->cluster_bits = 12; /* one size: each needs a LUKS header of its own, which costs seconds */
    m->refcount_bits = 16;
    m->preallocation = "off";
}

static void draw_recipe(struct maker *m)
{
    static const unsigned char clusters[] = {
        9, 9, 9, 10, 11, 12, 12, 12, 13, 14, 15, 16, 16, 16, 17, 18, 19, 20, 21};
    static const unsigned char widths[] = {1, 2, 4, 8, 16, 16, 16, 32, 64};
    struct imgmake *image = m->image;
    m->cluster_bits = clusters[below(m, sizeof(clusters))];
    m->refcount_bits = widths[below(m, sizeof(widths))];
    m->preallocation = "off";
    m->v2 = chance(m, 15);
    if (m->v2)
        m->refcount_bits = 16;
    m->extended_l2 = !m->v2 && m->cluster_bits >= 14 && chance(m, 50);
    m->zstd = !m->v2 && chance(m, 30);
    m->lazy = !m->v2 && chance(m, 20);
    if (chance(m, 4)) {
        draw_luks(m);
    } else if (!m->v2 && chance(m, 12)) {
        image->data_file = true;
        m->data_file_raw = chance(m, 50);
    } else if (chance(m, 15)) {
        image->backing = true;
        m->backing_format = chance(m, 50) ? "raw" : "qcow2";
    } else if (chance(m, 20)) {
        m->preallocation = m->cluster_bits <= 16 && chance(m, 40) ? "falloc" : "metadata";
    }
    m->size_bytes = draw_size(m);
}

/* The backing file may be shorter than the disk. */
static void make_backing(struct maker *m)
{
    uint64_t size = (1 + below(m, m->size_bytes / 512)) * 512;
    if (size > (UINT64_C(4) << 20))
        size = UINT64_C(4) << 20;
    step(m, "qemu-img create -q -f %s back %" PRIu64 "\n", m->backing_format, size);
    step(m, "qemu-io -f %s -c 'write -P 0x11 0 512' back\n", m->backing_format);
}

/* Its time measurement finds the machine's clock too coarse at every third attempt or so, and more
 * often on a busy machine. */
static void make_luks_template(struct maker *m, unsigned cluster)
{
    step(m, "for try in $(seq 100); do [ -e luks-%u ] || { rm -f luks-new;", cluster);
    step(m, " qemu-img create -q -f qcow2 " SECRET " -o encrypt.format=luks,encrypt.iter-time=10,");
    step(m, "encrypt.key-secret=s,cluster_size=%u luks-new 512", cluster);
    step(m, " && mv luks-new luks-%u; } || :; done\n", cluster);
}

static void make_empty(struct maker *m)
{
    if (m->backing_format)
        make_backing(m);
    unsigned cluster = 1u << m->cluster_bits;
    if (m->image->luks) {
        make_luks_template(m, cluster);
        step(m, "cp luks-%u %s\n", cluster, m->image->name);
        char args[IMGMAKE_ARGS_BYTES];
        step(m, "qemu-img resize -q %s %" PRIu64 "\n", imgmake_args(m->image, m->image->name, args),
            m->size_bytes);
        return;
    }
    step(m, "qemu-img create -q -f qcow2 -o compat=%s,cluster_size=%u,refcount_bits=%u",
        m->v2 ? "0.10" : "1.1", cluster, m->refcount_bits);
    step(m, ",preallocation=%s", m->preallocation);
    if (!m->v2)
        step(m, ",extended_l2=%s,compression_type=%s,lazy_refcounts=%s",
            m->extended_l2 ? "on" : "off", m->zstd ? "zstd" : "zlib", m->lazy ? "on" : "off");
    if (m->image->data_file)
        step(m, ",data_file=data.raw,data_file_raw=%s", m->data_file_raw ? "on" : "off");
    if (m->backing_format)
        step(m, ",backing_file=back,backing_fmt=%s", m->backing_format);
    step(m, " %s %" PRIu64 "\n", m->image->name, m->size_bytes);
}

/* ---- guest writes ------------------------------------------------------------------------------
 */

/* A place on the disk: mostly near the start, near the middle or at the end, so that ranges meet.
 */
static uint64_t draw_place(struct maker *m, uint64_t granule)
{
    uint64_t cluster = UINT64_C(1) << m->cluster_bits;
    uint64_t window = 32 * cluster < m->size_bytes ? 32 * cluster : m->size_bytes;
    uint64_t start = 0;
    switch (below(m, 5)) {
    case 0:
        start = m->size_bytes - window;
        break;
    case 1:
        start = below(m, m->size_bytes - window + 1);
        break;
    default:
        break;
    }
    uint64_t place = start + below(m, window);
    return place / granule * granule;
}

static bool compression_allowed(const struct maker *m)
{
    if (m->image->data_file || (m->v2 && m->backing_format)) /* there a discard does nothing */
        return false;
    return m->refcount_bits > 4 || m->snapshot_count == 0;
}

/* A run of compressed clusters.  QEMU does not compress over a cluster that has its own place, so
 * the run is discarded first.
 *
 * It is the last thing a process does: QEMU 7.2 packs compressed data behind what it compressed
 * before, even when that was freed and its cluster holds other data by now, which is destroyed. */
static void write_compressed(struct maker *m)
{
    uint64_t cluster = UINT64_C(1) << m->cluster_bits;
    uint64_t start = draw_place(m, cluster);
    uint64_t length = (1 + below(m, cluster > 65536 ? 3 : 16)) * cluster;
    if (length > m->size_bytes - start)
        length = m->size_bytes - start;
    step(m, " -c 'discard %" PRIu64 " %" PRIu64 "'", start, length);
    for (uint64_t done = 0; done < length; done += cluster) {
        uint64_t piece = length - done < cluster ? length - done : cluster;
        step(m, " -c 'write -c %s %" PRIu64 " %" PRIu64 "'", chance(m, 60) ? "-s noise" : "-P 0x5a",
            (start + done), piece);
    }
    m->image->compressed = true;
    m->shared_compressed |= m->refcount_bits <= 4;
}

static void write_something(struct maker *m)
{
    static const char *const verbs[] = {
        "write -P 0x5b", "write -P 0x5c", "write -P 0x5d", "write -z", "write -z -u", "discard"};
    uint64_t cluster = UINT64_C(1) << m->cluster_bits;
    const char *verb = verbs[below(m, sizeof(verbs) / sizeof(verbs[0]))];
    uint64_t granule = chance(m, 60) ? cluster : 512;
    uint64_t place = draw_place(m, granule);
    uint64_t most = cluster > 65536 ? 3 : 8;
    uint64_t length = (1 + below(m, most * cluster / granule)) * granule;
    if (length > 4 * 65536 && verb[6] == '-' && verb[7] == 'P')
        length = 4 * 65536;
    if (length > m->size_bytes - place)
        length = m->size_bytes - place;
    step(m, " -c '%s %" PRIu64 " %" PRIu64 "'", verb, place, length);
}

static void write_batch(struct maker *m)
{
    char args[IMGMAKE_ARGS_BYTES];
    step(m, "qemu-io -d unmap");
    for (unsigned count = 2 + (unsigned)below(m, 6); count > 0; count--)
        write_something(m);
    if (compression_allowed(m) && chance(m, 60))
        write_compressed(m);
    step(m, " %s\n", imgmake_args(m->image, m->image->name, args));
}

/* ---- what happens between writes ----------------------------------------------------------------
 */

static void snapshot_step(struct maker *m)
{
    char args[IMGMAKE_ARGS_BYTES];
    imgmake_args(m->image, m->image->name, args);
    unsigned which = m->snapshot_count ? (unsigned)below(m, m->snapshot_count) : 0;
    bool there = m->snapshot_count && m->snapshot_alive[which];
    if (m->snapshot_count < 4 && (m->snapshot_count == 0 || chance(m, 65))) {
        m->snapshot_alive[m->snapshot_count] = true;
        step(m, "qemu-img snapshot -c snap%u %s\n", m->snapshot_count++, args);
        m->image->snapshots = true;
    } else if (there && chance(m, 50)) {
        m->snapshot_alive[which] = false;
        step(m, "qemu-img snapshot -d snap%u %s\n", which, args);
    } else if (there && m->bitmap_count == 0) {
        /* In version 3 this may change the disk's size, which the steps to come rely on. */
        step(m, "qemu-img snapshot -a snap%u %s\n", which, args);
        if (!m->v2)
            step(m, "qemu-img resize -q --shrink %s %" PRIu64 "\n", args, m->size_bytes);
    }
}

static void bitmap_step(struct maker *m)
{
    char args[IMGMAKE_ARGS_BYTES];
    imgmake_args(m->image, m->image->name, args);
    if (m->bitmap_count > 0 && chance(m, 30)) {
        step(m, "qemu-img bitmap --%s %s bitmap%u\n", chance(m, 50) ? "disable" : "enable", args,
            (unsigned)below(m, m->bitmap_count));
        return;
    }
    unsigned granularity_bits = 9 + (unsigned)below(m, 8);
    while (m->size_bytes >> granularity_bits > 100000)
        granularity_bits++;
    step(m, "qemu-img bitmap --add -g %u %s bitmap%u\n", 1u << granularity_bits, args,
        m->bitmap_count++);
    m->image->bitmaps = true;
}

static void resize_step(struct maker *m)
{
    char args[IMGMAKE_ARGS_BYTES];
    imgmake_args(m->image, m->image->name, args);
    m->size_bytes = draw_size(m);
    step(m, "qemu-img resize -q --shrink %s %" PRIu64 "\n", args, m->size_bytes);
}

static void between_step(struct maker *m)
{
    bool snapshots = !m->image->data_file && m->refcount_bits >= 4 && !m->shared_compressed;
    switch (below(m, 5)) {
    case 0:
        if (!m->v2)
            bitmap_step(m);
        break;
    case 1:
        /* Version 2 does not store the size with the snapshot, so QEMU refuses. */
        if (!m->v2 || m->snapshot_count == 0)
            resize_step(m);
        break;
    default:
        if (snapshots)
            snapshot_step(m);
        break;
    }
}

/* ---- public -------------------------------------------------------------------------------------
 */

const char *imgmake_args(
    const struct imgmake *image, const char *name, char args[IMGMAKE_ARGS_BYTES])
{
    snprintf(args, IMGMAKE_ARGS_BYTES,
        image->luks ? SECRET " --image-opts driver=qcow2,file.filename=%s,encrypt.key-secret=s"
                    : "%s",
        name);
    return args;
}

/* Half a byte of randomness in each byte: compresses to about one half. */
static void make_noise(const char *dir)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/noise", dir);
    FILE *file = fopen(path, "wbx");
    if (!file)
        return;
    struct rng rng = {1};
    for (int i = 0; i < 128 * 1024; i++)
        putc((int)rng_below(&rng, 16), file);
    fclose(file);
}

/* QEMU stores the time of day with each snapshot; a damaged pointer may make it an offset. */
static int fix_dates(const char *dir, const char *name)
{
    char path[4096];
    uint8_t head[QCOW2_V3_HEADER_BYTES + 8], record[QCOW2_SNAPSHOT_HEAD_BYTES];
    struct qcow2_header header = {0};
    struct qcow2_snapshot snapshot;
    struct io *io;
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    int err = io_file_open(path, IO_FILE_WRITE | IO_FILE_NO_LOCK, &io, NULL);
    if (err)
        return err;
    err = io_read_padded(io, 0, head, sizeof(head));
    if (err == 0)
        err = qcow2_header_decode(head, sizeof(head), &header);
    uint64_t host_off = header.snapshots_off;
    for (uint32_t i = 0; i < header.snapshot_count && err == 0; i++) {
        err = io_read_padded(io, host_off, record, sizeof(record));
        if (err)
            break;
        qcow2_snapshot_decode(record, sizeof(record), &snapshot);
        store_be32(record + 16, 1000000000 + i);
        store_be32(record + 20, i);
        err = io_write(io, host_off, record, sizeof(record));
        host_off += snapshot.record_len;
    }
    io_close(io);
    return err;
}

int imgmake(const char *dir, uint64_t seed, struct imgmake *image)
{
    *image = (struct imgmake){.name = "image.qcow2"};
    struct maker m = {.rng = rng_for(seed, 0), .image = image};
    size_t length;
    m.script = open_memstream(&image->script, &length);
    if (!m.script)
        return -1;
    draw_recipe(&m);
    step(&m, "rm -f image.qcow2 data.raw back\n");
    make_empty(&m);
    unsigned phases = (unsigned)below(&m, 6);
    for (unsigned i = 0; i <= phases; i++) {
        write_batch(&m);
        if (i < phases)
            between_step(&m);
    }
    fclose(m.script);
    make_noise(dir);
    struct proc_result result = proc_run("cd '%s' && set -e\n%s", dir, image->script);
    int exit_code = result.exit_code;
    if (exit_code != 0 && asprintf(&image->error, "%s%s", result.out, result.err) < 0)
        image->error = NULL;
    proc_free(&result);
    if (exit_code == 0 && fix_dates(dir, image->name) != 0)
        exit_code = -1;
    return exit_code;
}

void imgmake_free(struct imgmake *image)
{
    free(image->script);
    free(image->error);
    image->script = image->error = NULL;
}
