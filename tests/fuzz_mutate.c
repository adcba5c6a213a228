/* SPDX-License-Identifier: MIT
 *
 * Mutations: the random damage of the trials (damage.h) on an image that need not be sound, and
 * records of the input itself moved and repeated.  What they break stays broken. */
#include <stdlib.h>
#include <string.h>

#include "damage.h"
#include "fuzz.h"
#include "qcow2.h"
#include "rng.h"

/* Sets one byte of the options, or the device's size to another place near it. */
static size_t mutate_head(uint8_t *data, size_t size, struct rng *rng)
{
    static const uint64_t units[] = {1, 512, 4096, 65536, 1 << 21, UINT64_C(1) << 40};
    if (size < 9)
        return 0;
    uint64_t device = load_be64(data + 1);
    if (rng_chance(rng, 50))
        data[0] = (uint8_t)rng_next(rng);
    else
        store_be64(data + 1, device + (rng_below(rng, 17) - 8) * units[rng_below(rng, 6)]);
    return size;
}

size_t fuzz_mutate(uint8_t *data, size_t size, size_t room, uint64_t seed)
{
    struct rng rng = {seed};
    struct fuzz_image image;
    char *story = NULL;
    uint64_t device;
    if (rng_chance(&rng, 3))
        return mutate_head(data, size, &rng);
    if (fuzz_unpack(data, size, &image) < 0)
        return 0;
    size_t packed = 0;
    struct fuzz_io limits;
    fuzz_io_init(&limits, image.io, image.stored);
    if (io_size(image.io, &device) == 0 && device > 0 &&
        damage_image(&limits.io, rng_next(&rng), 1 + (unsigned)rng_below(&rng, 3), &story) == 0) {
        uint8_t *out = malloc(room);
        if (out && fuzz_pack(image.io, image.options, out, room, &packed) == 0)
            memcpy(data, out, packed);
        else
            packed = 0;
        free(out);
    }
    free(story);
    io_close(image.io);
    return packed;
}
