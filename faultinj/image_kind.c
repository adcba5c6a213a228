/* SPDX-License-Identifier: MIT
 *
 * The images that workloads run on: made by the engine, finished by hand where it cannot. */
#include <errno.h>
#include <string.h>

#include "image_patch.h"
#include "snapshot.h"
#include "workload.h"

#define USUAL "write 0c 4c 1; create s1; write 1c 2c 2; write 8c 1c 3; "

#define KIND(size, cluster, bits)                                                              \
    {                                                                                          \
        .size_bytes = (size), .cluster_size = (cluster), .refcount_bits = (bits), .version = 3 \
    }

const struct image_kind image_kinds[] = {
    {"c512", "clusters of 512 bytes, one snapshot", KIND(40 << 10, 512, 16), USUAL, NULL},
    {"c4k", "clusters of 4 KiB, one snapshot", KIND(256 << 10, 4096, 16), USUAL, NULL},
    {"c64k", "clusters of 64 KiB, one snapshot", KIND(4 << 20, 65536, 16), USUAL, NULL},
    {"bare", "no snapshot", KIND(40 << 10, 512, 16), "write 0c 4c 1", NULL},
    {"empty", "nothing written yet", KIND(40 << 10, 512, 16), "flush", NULL},
    {"v2", "format version 2",
        {.size_bytes = 40 << 10, .cluster_size = 512, .refcount_bits = 16, .version = 2}, USUAL,
        NULL},
    {"rc1", "refcounts of 1 bit: no snapshots possible", KIND(40 << 10, 512, 1), "write 0c 4c 1",
        NULL},
    {"rc8", "refcounts of 8 bits", KIND(40 << 10, 512, 8), USUAL, NULL},
    {"rc64", "refcounts of 64 bits: a block counts 64 clusters", KIND(40 << 10, 512, 64), USUAL,
        NULL},
    {"blockgrow", "the next few clusters need a new refcount block", KIND(40 << 10, 512, 64),
        USUAL "write 16c 47c 4", NULL},
    {"tablegrow", "the next few clusters need a new refcount table", KIND(4 << 20, 512, 64),
        USUAL "write 16c 3952c 4", NULL},
    {"l1-1", "an L1 of one entry", KIND(32 << 10, 512, 16), USUAL, NULL},
    {"l1-64", "an L1 that fills its sector", KIND(64 * 32 << 10, 512, 16),
        USUAL "write 2000k 512 5", NULL},
    {"l1-65", "an L1 of two sectors", KIND(65 * 32 << 10, 512, 16),
        "write 2078k 512 5; write 40k 512 6;" USUAL "write 2079k 512 6; write 40k 512 7", NULL},
    {"l1-513", "an L1 of nine sectors", KIND(513 * 32 << 10, 512, 16),
        "write 16384k 512 5; " USUAL "write 16385k 512 6; write 8000k 512 7", NULL},
    {"shared", "three snapshots that share L2 tables", KIND(40 << 10, 512, 16),
        "write 0c 4c 1; create s1; create s2; create s3; write 70c 1c 2", NULL},
    {"sizes", "snapshots of other disk sizes", KIND(40 << 10, 512, 16),
        "write 0c 4c 1; create s1; resize 80k; write 100c 2c 2; create s2; resize 20k; write 1c 1c "
        "7",
        NULL},
    {"lazy", "lazy refcounts, clean",
        {.size_bytes = 40 << 10,
            .cluster_size = 512,
            .refcount_bits = 16,
            .version = 3,
            .lazy_refcounts = true},
        USUAL, NULL},
    {"lazy-dirty", "lazy refcounts, dirty: nothing may be written",
        {.size_bytes = 40 << 10,
            .cluster_size = 512,
            .refcount_bits = 16,
            .version = 3,
            .lazy_refcounts = true},
        USUAL, patch_dirty},
    {"extl2", "extended L2 entries", KIND(1 << 20, 16384, 16), USUAL, NULL},
    {"compressed", "compressed clusters that share a host cluster", KIND(40 << 10, 512, 16),
        "write 0c 4c 1; write 16c 2c 4; create s1; write 1c 2c 2", patch_compressed},
    {"zero", "zero clusters, plain and preallocated", KIND(40 << 10, 512, 16), USUAL, patch_zero},
    {"leaks", "clusters that leak already", KIND(40 << 10, 512, 16), USUAL, patch_leaks},
    {"extra", "unknown extra data in a snapshot", KIND(40 << 10, 512, 16), USUAL, patch_extra},
    {"vmstate", "a snapshot with VM state", KIND(40 << 10, 512, 16), "write 0c 4c 1",
        patch_vm_state},
    {"bitmaps", "a persistent dirty bitmap", KIND(40 << 10, 512, 16), USUAL, patch_bitmap},
};
const size_t image_kind_count = sizeof(image_kinds) / sizeof(image_kinds[0]);

const struct image_kind image_kinds_hurt[] = {
    {"hurt-low", "a count below its references", KIND(40 << 10, 512, 16), USUAL, patch_count_low},
    {"hurt-leaks", "counts above their references", KIND(40 << 10, 512, 16), USUAL, patch_leaks},
    {"hurt-dirty", "dirty, and counts lag behind",
        {.size_bytes = 40 << 10,
            .cluster_size = 512,
            .refcount_bits = 16,
            .version = 3,
            .lazy_refcounts = true},
        USUAL, patch_dirty_low},
    {"hurt-shared", "two guest clusters in one host cluster", KIND(40 << 10, 512, 16), USUAL,
        patch_shared},
    {"hurt-block", "two entries of the refcount table name one block", KIND(40 << 10, 512, 64),
        USUAL "write 16c 60c 4", patch_block_shared},
    {"hurt-table", "a refcount block is nowhere, and its content lost", KIND(40 << 10, 512, 64),
        USUAL "write 16c 60c 4", patch_block_lost},
    {"hurt-ids", "two snapshots with one ID", KIND(40 << 10, 512, 16),
        "write 0c 4c 1; create s1; write 1c 2c 2; create s2; write 1c 1c 3", patch_same_ids},
};
const size_t image_kind_hurt_count = sizeof(image_kinds_hurt) / sizeof(image_kinds_hurt[0]);

const struct image_kind *image_kind_find(const char *name)
{
    for (size_t i = 0; i < image_kind_count + image_kind_hurt_count; i++) {
        const struct image_kind *kind =
            i < image_kind_count ? &image_kinds[i] : &image_kinds_hurt[i - image_kind_count];
        if (strcmp(kind->name, name) == 0)
            return kind;
    }
    return NULL;
}

static int set_up(const struct image_kind *kind, struct io *io)
{
    struct workload w = {0};
    struct image *img = NULL;
    char error[WORKLOAD_ERROR_BYTES];
    int ret = workload_parse(kind->name, kind->setup, &w, error);
    for (size_t i = 0; ret == 0 && i < w.count; i++)
        ret = op_apply(&img, io, &w.ops[i]);
    if (img) {
        int closed = image_close(img);
        ret = ret < 0 ? ret : closed;
    }
    workload_release(&w);
    return ret;
}

int image_kind_build(const struct image_kind *kind, struct io **out)
{
    struct io *io;
    int ret = io_mem_open(0, &io);
    if (ret < 0)
        return ret;
    ret = image_create(io, &kind->options, NULL);
    if (ret == 0)
        ret = set_up(kind, io);
    if (ret == 0 && kind->finish)
        ret = kind->finish(io);
    if (ret < 0)
        io_close(io);
    else
        *out = io;
    return ret;
}
