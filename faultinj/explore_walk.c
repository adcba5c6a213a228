/* SPDX-License-Identifier: MIT
 *
 * Which vectors of an epoch are walked: all of them up to the cap; above it the cheap restrictions,
 * the tree of choices, and if that does not end, a 3-way covering array and samples. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "explore_impl.h"

bool explorer_out_of_time(struct explorer *ex)
{
    if (ex->options->deadline > 0 && monotonic_seconds() > ex->options->deadline)
        ex->counts->out_of_time = true;
    return ex->counts->out_of_time;
}

/* The next vector, the first factor moving fastest; false after the last. */
static bool next_vector(const struct epoch *epoch, unsigned *choice)
{
    for (size_t f = 0; f < epoch_factors(epoch); f++) {
        if (++choice[f] < epoch_choices(epoch, f))
            return true;
        choice[f] = 0;
    }
    return false;
}

static int walk_product(struct explorer *ex, unsigned *choice, bool *complete)
{
    int ret = 0;
    uint64_t count = 0;
    *complete = true;
    do {
        ret = explorer_visit(ex, choice);
        if (ret == 0 && (++count & 1023) == 0 && explorer_out_of_time(ex)) {
            *complete = false;
            break;
        }
    } while (ret == 0 && next_vector(&ex->epoch, choice));
    return ret;
}

/* ---- above the cap ------------------------------------------------------------------------- */

static void random_vector(const struct epoch *epoch, uint64_t seed, unsigned *choice)
{
    for (size_t f = 0; f < epoch_factors(epoch); f++)
        choice[f] = (unsigned)(state_mix(seed + f * UINT64_C(0x9e3779b97f4a7c15)) %
                               epoch_choices(epoch, f));
}

/* Random rows until every three factors have shown every pattern of {durable, last}: that is what
 * they are tested for, and it takes about a hundred rows. */
static int walk_covering(struct explorer *ex, unsigned *choice)
{
    enum { FACTORS_MAX = 160, ROWS_MAX = 1000 };
    const struct epoch *epoch = &ex->epoch;
    size_t n = epoch->unit_count < FACTORS_MAX ? epoch->unit_count : FACTORS_MAX;
    size_t triples = n * n * n, missing = n * (n - 1) * (n - 2) / 6 * 8;
    uint8_t *shown = calloc(triples + 1, 1); /* a bit per pattern */
    int ret = shown ? 0 : -ENOMEM;
    for (unsigned row = 0; ret == 0 && missing > 0 && row < ROWS_MAX && !explorer_out_of_time(ex);
         row++) {
        random_vector(epoch, ex->options->seed * 77 + row, choice);
        for (size_t f = 0; f < epoch_factors(epoch); f++) /* two levels: the ends of the chain */
            choice[f] = choice[f] * 2 < epoch_choices(epoch, f) ? 0 : epoch_choices(epoch, f) - 1;
        for (size_t i = 0; i < n; i++) {
            for (size_t j = i + 1; j < n; j++) {
                unsigned two = (choice[i] > 0 ? 1u : 0u) | (choice[j] > 0 ? 2u : 0u);
                uint8_t *at = shown + (i * n + j) * n;
                for (size_t k = j + 1; k < n; k++) {
                    uint8_t bit = (uint8_t)(1u << (two | (unsigned)(choice[k] > 0) << 2));
                    missing -= !(at[k] & bit);
                    at[k] |= bit;
                }
            }
        }
        ret = explorer_visit(ex, choice);
    }
    free(shown);
    return ret;
}

static int walk_samples(struct explorer *ex, unsigned *choice)
{
    int ret = 0;
    for (uint64_t i = 0; ret == 0 && i < ex->options->samples && !explorer_out_of_time(ex); i++) {
        random_vector(&ex->epoch, ex->options->seed + i * 1000003, choice);
        ret = explorer_visit(ex, choice);
    }
    return ret;
}

/* A first pass may not be longer than the cap. */
struct limited {
    struct explorer *ex;
    uint64_t left;
};

static int visit_limited(void *arg, const unsigned *choice)
{
    struct limited *limited = arg;
    if (limited->left-- == 0 || ((limited->left & 255) == 0 && explorer_out_of_time(limited->ex)))
        return -E2BIG;
    return explorer_visit(limited->ex, choice);
}

static int walk_large(struct explorer *ex, unsigned *choice, bool *complete)
{
    fault_walk *const first[] = {fault_prefix, fault_omit_one, fault_torn, fault_atomic};
    long double covered = 0;
    int ret = 0;
    *complete = false;
    for (size_t i = 0;
         ret == 0 && i < sizeof(first) / sizeof(first[0]) && !explorer_out_of_time(ex); i++) {
        struct limited limited = {ex, ex->options->cap};
        ret = first[i](&ex->epoch, visit_limited, &limited);
        ret = ret == -E2BIG ? 0 : ret;
    }
    if (ret == 0 && !ex->history->is_hurt) /* its judging looks at everything */
        ret = explorer_walk_tree(ex, &covered, complete);
    if (ret == 0 && !*complete)
        ret = walk_covering(ex, choice);
    if (ret == 0 && !*complete)
        ret = walk_samples(ex, choice);
    /* Certified is what nobody walked. */
    if (ret == 0 && covered > (long double)ex->executed_here)
        ex->counts->certified += covered - (long double)ex->executed_here;
    return ret;
}

/* A restriction's own vectors are all there is under it. */
static int walk_restricted(struct explorer *ex)
{
    uint64_t before = ex->executed_here;
    struct limited limited = {ex, UINT64_MAX};
    int ret = ex->model->walk(&ex->epoch, visit_limited, &limited);
    ex->counts->legal += (long double)(ex->executed_here - before);
    ex->counts->epochs_exhaustive += ret == 0;
    return ret == -E2BIG ? 0 : ret;
}

int explorer_walk(struct explorer *ex)
{
    bool complete = false;
    if (ex->model->walk)
        return walk_restricted(ex);
    unsigned *choice = calloc(epoch_factors(&ex->epoch), sizeof(*choice));
    if (!choice)
        return -ENOMEM;
    uint64_t product = epoch_product(&ex->epoch);
    ex->counts->legal +=
        product < UINT64_MAX ? (long double)product : exp2l(epoch_product_log2(&ex->epoch));
    int ret = product <= ex->options->cap ? walk_product(ex, choice, &complete)
                                          : walk_large(ex, choice, &complete);
    ex->counts->epochs_exhaustive += ret == 0 && complete;
    free(choice);
    return ret;
}
