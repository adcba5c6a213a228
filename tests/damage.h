/* SPDX-License-Identifier: MIT
 *
 * Random damage that knows the structures of the image: a flipped bit, an offset that points into
 * another table, a swapped pair, a torn table, a wrong refcount, a file cut short ... */
#ifndef TESTS_DAMAGE_H
#define TESTS_DAMAGE_H

#include <stdint.h>

#include "io.h"

/* Makes `count` random damages, drawn from `seed`, to a healthy image.  The same image and seed
 * give the same damages; two damages of one call may meet in the same place.  *story gets one line
 * per damage that says where, what stood there and what stands there now; free() it. Returns 0,
 * -errno of the device or memory, or -EINVAL if the image cannot be understood. */
int damage_image(struct io *image, uint64_t seed, unsigned count, char **story);

#endif
