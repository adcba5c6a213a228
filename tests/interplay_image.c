/* SPDX-License-Identifier: MIT
 *
 * The images of the interplay test: kinds, backing files, and what is said when something fails. */
#include "interplay.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io.h"

static const struct kind kinds[] = {
    {"cluster_size=512", 512, 512, .size_bytes = 700000, .compress = true},
    {"cluster_size=512,refcount_bits=64", 512, 512, .size_bytes = 400384},
    {"cluster_size=4096,refcount_bits=8", 4096, 4096, .size_bytes = 3000320, .compress = true},
    {"cluster_size=65536", 65536, 65536, .size_bytes = 3 << 20, .compress = true},
    {"cluster_size=65536,lazy_refcounts=on", 65536, 65536, .size_bytes = 3 << 20, .compress = true},
    {"cluster_size=65536,compat=0.10", 65536, 65536, .size_bytes = 3 << 20, .v2 = true,
        .compress = true},
    {"cluster_size=512,compat=0.10", 512, 512, .size_bytes = 300032, .v2 = true},
    {"cluster_size=2097152", 2 << 20, 2 << 20, .size_bytes = 9 << 20, .compress = true},
    {"cluster_size=65536,extended_l2=on", 65536, 2048, .size_bytes = 3 << 20},
    {"cluster_size=16384,extended_l2=on,refcount_bits=32", 16384, 16384, .size_bytes = 2 << 20,
        .compress = true},
    {"cluster_size=4096,compression_type=zstd", 4096, 4096, .size_bytes = 2 << 20,
        .compress = true},
    {"cluster_size=4096", 4096, 4096, .size_bytes = 2 << 20, .bitmap = true, .by_qemu_only = true},
    {"cluster_size=512,refcount_bits=4", 512, 512, .size_bytes = 300032, .compress = true},
    {"cluster_size=1024,refcount_bits=1", 1024, 1024, .size_bytes = 300032, .one_bit = true},
    {"cluster_size=4096,backing_file=base.raw,backing_fmt=raw", 4096, 4096, .size_bytes = 2 << 20,
        .by_qemu_only = true, .backing = RAW_BACKING},
    {"cluster_size=65536,extended_l2=on,backing_file=middle.qcow2,backing_fmt=qcow2", 65536, 65536,
        .size_bytes = 3 << 20, .compress = true, .by_qemu_only = true, .backing = BACKING_CHAIN},
};

const struct kind *interplay_kind(unsigned seed)
{
    return &kinds[seed % interplay_kind_count()];
}

unsigned interplay_kind_count(void)
{
    return sizeof(kinds) / sizeof(kinds[0]);
}

uint32_t interplay_random(struct run *run, uint32_t below)
{
    uint32_t hi = (uint32_t)rand_r(&run->rng), lo = (uint32_t)rand_r(&run->rng);
    return below ? (hi << 15 ^ lo) % below : 0;
}

void interplay_failed(const struct run *run, const char *format, ...)
{
    va_list args;
    fprintf(stderr, "interplay: kind \"%s\", step %u: %s\n  ", run->kind->options, run->step,
        run->story);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n  image left as %s\n  again with: make interplay N=%d SEED=%u\n", run->path,
        RUN_STEPS, run->seed);
    exit(EXIT_FAILURE);
}

void interplay_must(const struct run *run, struct proc_result result)
{
    if (result.exit_code != 0)
        interplay_failed(run, "exit %d: %s%s", result.exit_code, result.out, result.err);
    proc_free(&result);
}

/* base.raw, and in a chain middle.qcow2 over it; shorter than the disk will ever be, so that it can
 * grow. */
static void make_backing(struct run *run, const char *dir)
{
    const struct kind *kind = run->kind;
    uint64_t size = kind->size_bytes / 2 / 512 * 512 - 1536;
    char base[PATH_MAX];
    struct io *io;
    for (uint64_t i = 0; i < size; i++)
        run->active.bytes[i] = (uint8_t)interplay_random(run, 256);
    snprintf(base, sizeof(base), "%s/base.raw", dir);
    unlink(base);
    if (io_file_open(base, IO_FILE_WRITE | IO_FILE_CREATE | IO_FILE_NO_LOCK, &io, NULL) < 0 ||
        io_write(io, 0, run->active.bytes, size) < 0)
        interplay_failed(run, "cannot make %s", base);
    io_close(io);
    if (kind->backing != BACKING_CHAIN)
        return;
    interplay_must(
        run, proc_run("cd '%s' && rm -f middle.qcow2 && qemu-img create -q -f qcow2 -o "
                      "cluster_size=4096,backing_file=base.raw,backing_fmt=raw middle.qcow2 && "
                      "qemu-io -f qcow2 -c 'write -q -P 77 10000 90000' middle.qcow2",
                 dir));
    memset(run->active.bytes + 10000, 77, 90000);
}

void interplay_make_image(struct run *run, const char *dir)
{
    const struct kind *kind = run->kind;
    run->active.size = kind->size_bytes / 512 * 512;
    run->active.bytes = calloc(1, run->active.size);
    if (kind->backing)
        make_backing(run, dir);
    if (interplay_random(run, 2) && !kind->by_qemu_only)
        interplay_must(run, proc_run("%s/qsnap new %s %" PRIu64 " -o %s", run->program_dir,
                                run->path, kind->size_bytes / 512 * 512, kind->options));
    else
        interplay_must(run, proc_run("qemu-img create -q -f qcow2 -o %s %s %" PRIu64, kind->options,
                                run->path, kind->size_bytes / 512 * 512));
    if (kind->bitmap)
        interplay_must(run, proc_run("qemu-img bitmap --add -g 4096 %s b0", run->path));
}
