/* SPDX-License-Identifier: MIT */
#include "calls_images.h"

#include <check.h>
#include <stdio.h>
#include <unistd.h>

#include "recipe.h"

const struct calls_image calls_images[CALLS_IMAGES] = {
    {"sound", "image cluster=4k size=256k\ndata 0 64k\nsnapshot\ndata 4k 8k pattern=7\n"},
    {"packed", "image cluster=4k size=256k compression=zstd\ncompressed 0 64k\nbitmap\n"},
    {"old", "image version=2 cluster=512 size=64k\ndata 0 8k\n"},
    {"broken", "image cluster=4k size=256k\ndata 0 32k\nsnapshot\ndata 4k 4k\n"
               "damage refcount[@l2[0][1]] = 0\ndamage refcount[1] = 5\ndamage l1[0] |= 1\n"},
    {"lost", "image cluster=4k size=256k\ndata 0 32k\ndamage reftable[0] = 0\n"},
    {"chain", "image cluster=4k size=256k backing=sound backing_format=qcow2\ndata 0 4k\n"},
};

void calls_build(const char *dir, const char *name, const char *text)
{
    char path[4096], error[RECIPE_ERROR_BYTES];
    struct recipe *recipe = NULL;
    ck_assert_msg(recipe_text(name, text, &recipe, error) == 0, "%s", error);
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    unlink(path);
    ck_assert_int_eq(recipe_save(recipe, path), 0);
    recipe_free(recipe);
}

void calls_build_all(const char *dir)
{
    for (int i = 0; i < CALLS_IMAGES; i++)
        calls_build(dir, calls_images[i].name, calls_images[i].recipe);
}
