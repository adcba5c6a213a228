/* SPDX-License-Identifier: MIT
 *
 * Sizes and options of new images as people write them. */
#ifndef ENGINE_OPTIONS_H
#define ENGINE_OPTIONS_H

#include "image.h"

/* A number, decimal or hexadecimal after 0x (as `diff` prints it), with an optional suffix k, M, G
 * or T (powers of 1024).  -EINVAL, or -ERANGE. */
int size_parse(const char *text, uint64_t *value);

/* Sets what "key=value,..." names, in the words of `qemu-img create -o`.  -EINVAL. */
int image_options_parse(const char *text, struct image_options *options, struct image_error *why);

#endif
