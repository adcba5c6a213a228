/* SPDX-License-Identifier: MIT */
#include "calls_images.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "corpus.h"
#include "dmlog.h"
#include "engine_kit.h"

const struct calls_image calls_images[CALLS_IMAGES] = {
    {"sound", "image cluster=4k size=256k\ndata 0 64k\nsnapshot\ndata 4k 8k pattern=7\n"},
    {"packed", "image cluster=4k size=256k compression=zstd\ncompressed 0 64k\nbitmap\n"},
    {"old", "image version=2 cluster=512 size=64k\ndata 0 8k\n"},
    {"broken", "image cluster=4k size=256k\ndata 0 32k\nsnapshot\ndata 4k 4k\n"
               "damage refcount[@l2[0][1]] = 0\ndamage refcount[1] = 5\ndamage l1[0] |= 1\n"},
    {"lost", "image cluster=4k size=256k\ndata 0 32k\ndamage reftable[0] = 0\n"},
    {"parts", "image extended_l2 lazy_refcounts cluster=16k size=1M\ndata 0 48k\nsnapshot\n"
              "data 0 16k pattern=7\ndamage l2[0][2].bitmap |= 1 << 32\n"
              "damage header.incompatible |= 1\ndamage refcount[@l2[0][1]] = 0\n"},
    {"split", "image cluster=4k size=256k data_file=disk.raw\ndata 0 32k\ndamage l1[0] ^= 1 << 63\n"
              "damage refcount[5] = 3\n"},
    {"locked", "image cluster=4k size=256k luks=8k\ndata 0 32k\ndamage refcount[@l2[0][1]] = 0\n"},
    {"narrow", "image cluster=4k size=256k refcount_bits=1\ndata 0 32k\n"
               "damage refcount[@l2[0][1]] = 0\ndamage refcount[20] = 1\n"},
    {"wide", "image cluster=4k size=256k refcount_bits=64\ndata 0 32k\nsnapshot\n"
             "damage refcount[@l2[0][1]] = 1 << 63\n"},
    {"marks", "image cluster=4k size=256k\ndata 0 64k\nbitmap name=kept\nbitmap name=lost\n"
              "damage bitmap[1].table[0] = 1 << 40\n"},
    {"chain", "image cluster=4k size=256k backing=sound backing_format=qcow2\ndata 0 4k\n"},
};

void calls_build_all(const char *dir)
{
    for (int i = 0; i < CALLS_IMAGES; i++)
        corpus_make(dir, calls_images[i].name, calls_images[i].recipe);
}

static void save(struct io *from, const char *dir, const char *name)
{
    char path[4096];
    struct io *file;
    uint64_t size;
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    ck_assert_int_eq(
        io_file_open(path, IO_FILE_CREATE | IO_FILE_WRITE | IO_FILE_NO_LOCK, &file, NULL), 0);
    ck_assert_int_eq(io_size(from, &size), 0);
    uint8_t *bytes = malloc((size_t)size);
    ck_assert_int_eq(io_read(from, 0, bytes, (size_t)size), 0);
    ck_assert_int_eq(io_write(file, 0, bytes, (size_t)size), 0);
    free(bytes);
    io_close(file);
}

void calls_build_log(const char *dir)
{
    struct recording recording = {0};
    struct io *base, *image, *log, *recorder;
    struct image *img = kit_new(256 << 10, "cluster_size=4k", &base);
    kit_put(img, 0, 1, 8192);
    ck_assert_int_eq(image_close(img), 0);
    ck_assert_int_eq(io_mem_branch(base, &image), 0);
    ck_assert_int_eq(record_open(image, &recording, &recorder), 0);
    img = kit_open(recorder);
    kit_snap(img, "s");
    ck_assert_int_eq(image_close(img), 0);
    ck_assert_int_eq(io_mem_open(0, &log), 0);
    ck_assert_int_eq(dmlog_write(&recording, base, log), 0);
    save(base, dir, "base");
    save(log, dir, "log");
    recording_release(&recording);
    io_close(recorder);
    io_close(log);
    io_close(base);
}
