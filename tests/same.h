/* SPDX-License-Identifier: MIT
 *
 * Are two devices the same, byte for byte and in size? */
#ifndef TESTS_SAME_H
#define TESTS_SAME_H

#include <stdbool.h>

#include "io.h"

bool same_image(struct io *a, struct io *b);

#endif
