/* SPDX-License-Identifier: MIT
 *
 * What a check is measured against: reading and decoding, with nothing judged.  Healthy images. */
#ifndef TESTS_BENCH_BARE_H
#define TESTS_BENCH_BARE_H

/* Copies refcount blocks and L2 tables of an image, each once, one after the other into a new file.
 * 0 or -errno. */
int bench_copy_metadata(const char *image, const char *path);

/* Reads a file by 1 MiB and sums its words, bytes swapped; an exit code. */
int bench_read(const char *path);

/* Decodes all compressed clusters on all processors; an exit code. */
int bench_decode(const char *image);

#endif
