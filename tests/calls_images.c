/* SPDX-License-Identifier: MIT */
#include "calls_images.h"

#include <check.h>
#include <stdio.h>
#include <unistd.h>

#include "corpus.h"

const struct calls_image calls_images[CALLS_IMAGES] = {
    {"sound", "image cluster=4k size=256k\ndata 0 64k\nsnapshot\ndata 4k 8k pattern=7\n"},
    {"packed", "image cluster=4k size=256k compression=zstd\ncompressed 0 64k\nbitmap\n"},
    {"old", "image version=2 cluster=512 size=64k\ndata 0 8k\n"},
    {"broken", "image cluster=4k size=256k\ndata 0 32k\nsnapshot\ndata 4k 4k\n"
               "damage refcount[@l2[0][1]] = 0\ndamage refcount[1] = 5\ndamage l1[0] |= 1\n"},
    {"lost", "image cluster=4k size=256k\ndata 0 32k\ndamage reftable[0] = 0\n"},
    {"chain", "image cluster=4k size=256k backing=sound backing_format=qcow2\ndata 0 4k\n"},
};

void calls_build_all(const char *dir)
{
    for (int i = 0; i < CALLS_IMAGES; i++)
        corpus_make(dir, calls_images[i].name, calls_images[i].recipe);
}
