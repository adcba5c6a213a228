/* SPDX-License-Identifier: MIT
 *
 * The mutations as a library that AFL++ loads (AFL_CUSTOM_MUTATOR_LIBRARY). */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "rng.h"

struct mutator {
    struct rng rng;
    uint8_t *out;
    size_t room;
};

void *afl_custom_init(void *afl, unsigned seed);
size_t afl_custom_fuzz(struct mutator *mutator, uint8_t *data, size_t size, uint8_t **out,
    uint8_t *other, size_t other_size, size_t max_size);
void afl_custom_deinit(struct mutator *mutator);

void *afl_custom_init(void *afl, unsigned seed)
{
    struct mutator *mutator = calloc(1, sizeof(*mutator));
    (void)afl;
    if (mutator)
        mutator->rng.state = seed;
    return mutator;
}

size_t afl_custom_fuzz(struct mutator *mutator, uint8_t *data, size_t size, uint8_t **out,
    uint8_t *other, size_t other_size, size_t max_size)
{
    (void)other;
    (void)other_size;
    if (mutator->room < max_size) {
        free(mutator->out);
        mutator->out = malloc(max_size);
        mutator->room = mutator->out ? max_size : 0;
    }
    *out = mutator->out;
    if (mutator->room < size || max_size < size)
        return 0;
    memcpy(mutator->out, data, size);
    return fuzz_mutate(mutator->out, size, max_size, rng_next(&mutator->rng));
}

void afl_custom_deinit(struct mutator *mutator)
{
    free(mutator->out);
    free(mutator);
}
