/* SPDX-License-Identifier: MIT
 *
 * Random healthy images, made by qemu-img and qemu-io from a seed: every cluster size, refcount
 * width and version, compressed clusters, zero clusters, snapshots, bitmaps, LUKS, external data
 * files, backing files.  The same seed gives the same image; only what LUKS encrypts depends on a
 * random key. */
#ifndef TESTS_IMGMAKE_H
#define TESTS_IMGMAKE_H

#include <stdbool.h>
#include <stdint.h>

enum { IMGMAKE_NAME_BYTES = 32 };

struct imgmake {
    char name[IMGMAKE_NAME_BYTES]; /* of the image, in the directory it was made in */
    bool luks, data_file, backing, snapshots, bitmaps, compressed;
    char *script; /* the shell commands that made it, to be run in an empty directory */
    char *error;  /* what the programs said when one of them failed; else NULL */
};

/* Makes image `seed` in `dir`, over what an earlier call left there; creating one of the few LUKS
 * headers it needs is slow and is done once per directory.  Returns 0, or the exit code of the
 * command that failed.  Free *image with imgmake_free() in any case.
 *
 * Names inside the image (backing and data file) are relative: programs that open it run in `dir`.
 */
int imgmake(const char *dir, uint64_t seed, struct imgmake *image);
void imgmake_free(struct imgmake *image);

/* The arguments by which qemu-img names an image like `image` that is stored as `name`.  The buffer
 * is the caller's. */
enum { IMGMAKE_ARGS_BYTES = 160 };
const char *imgmake_args(
    const struct imgmake *image, const char *name, char args[IMGMAKE_ARGS_BYTES]);

#endif
