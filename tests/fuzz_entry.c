/* SPDX-License-Identifier: MIT
 *
 * What libFuzzer and AFL++ call; compiled once a target, which FUZZ_TARGET names, and with
 * FUZZ_PACKED where inputs are packed images. */
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "rng.h"

#ifndef FUZZ_TARGET
#define FUZZ_TARGET fuzz_check
#define FUZZ_PACKED
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size) __attribute__((weak));

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char why[FUZZ_WHY_BYTES] = "";
    if (FUZZ_TARGET(data, size, why))
        return 0;
    fprintf(stderr, "a promise was broken: %s\n", why);
    abort();
}

#ifdef FUZZ_PACKED
enum { BLIND_PERCENT = 20 }; /* mutations that know nothing of images */

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    struct rng rng = rng_for(seed, size);
    size_t changed = 0;
    if (!rng_chance(&rng, BLIND_PERCENT))
        changed = fuzz_mutate(data, size, max_size, rng_next(&rng));
    return changed == 0 && LLVMFuzzerMutate ? LLVMFuzzerMutate(data, size, max_size) : changed;
}
#endif
