/* SPDX-License-Identifier: MIT
 *
 * The tests' random numbers: the same seed gives the same sequence on every machine. */
#ifndef TESTS_RNG_H
#define TESTS_RNG_H

#include <stdbool.h>
#include <stdint.h>

struct rng {
    uint64_t state;
};

/* splitmix64: any state is a good one, so a seed needs no preparation. */
static inline uint64_t rng_next(struct rng *rng)
{
    uint64_t z = rng->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* A generator of its own for item `idx` of a run: items do not depend on those before them. */
static inline struct rng rng_for(uint64_t seed, uint64_t idx)
{
    struct rng rng = {seed};
    rng.state = rng_next(&rng) + idx;
    return (struct rng){rng_next(&rng)};
}

/* 0 .. count - 1; count > 0. */
static inline uint64_t rng_below(struct rng *rng, uint64_t count)
{
    return rng_next(rng) % count;
}

static inline bool rng_chance(struct rng *rng, unsigned percent)
{
    return rng_below(rng, 100) < percent;
}

#endif
