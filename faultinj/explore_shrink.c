/* SPDX-License-Identifier: MIT
 *
 * The smallest vector that still breaks a promise: first as little persisted as possible, then as
 * little lost as possible.  What is left says: this must be durable before that. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "explore_impl.h"

/* So many factors are tried one by one at once. */
enum { MOST_SINGLE = 256 };

static int still_broken(struct explorer *ex, const unsigned *choice, enum invariant what,
    struct breach *breach, bool *broken)
{
    struct breach now = {0};
    bool go_on = what == INVARIANT_CONTINUES, repair = what == INVARIANT_REPAIRS;
    explorer_set(ex, choice);
    int ret = explorer_judge(ex, true, go_on, repair, &now);
    *broken = now.invariant != INVARIANT_NONE;
    if (*broken)
        *breach = now;
    return ret;
}

/* Factors first to end - 1, but those that are needed, to their durable version, or to the last
 * one: if it is still broken then, it stays so. */
static int try_choices(struct explorer *ex, unsigned *choice, const bool *needed, size_t first,
    size_t end, bool last, enum invariant what, struct breach *breach)
{
    unsigned *old = malloc((end - first) * sizeof(*old));
    bool broken = false, any = false;
    if (!old)
        return -ENOMEM;
    memcpy(old, choice + first, (end - first) * sizeof(*old));
    for (size_t f = first; f < end; f++) {
        unsigned value = last ? epoch_choices(&ex->epoch, f) - 1 : 0;
        any |= !needed[f] && choice[f] != value;
        choice[f] = needed[f] ? choice[f] : value;
    }
    int ret = any ? still_broken(ex, choice, what, breach, &broken) : 0;
    if (ret < 0 || !broken)
        memcpy(choice + first, old, (end - first) * sizeof(*old));
    free(old);
    return ret;
}

/* All of them, in ever smaller pieces: of thousands hardly any matter. */
static int try_pieces(struct explorer *ex, unsigned *choice, const bool *needed, bool last,
    enum invariant what, struct breach *breach)
{
    size_t factors = epoch_factors(&ex->epoch), piece = 1;
    int ret = 0;
    while (piece * MOST_SINGLE < factors)
        piece *= 4;
    for (; ret == 0 && piece > 0; piece /= 4) {
        for (size_t f = 0; ret == 0 && f < factors && !explorer_out_of_time(ex); f += piece)
            ret = try_choices(ex, choice, needed, f, f + piece < factors ? f + piece : factors,
                last, what, breach);
    }
    return ret;
}

int explorer_shrink(struct explorer *ex, unsigned *choice, bool *needed, struct breach *breach)
{
    size_t factors = epoch_factors(&ex->epoch);
    enum invariant what = breach->invariant;
    int ret = 0;
    memset(needed, 0, factors * sizeof(*needed));
    for (int round = 0; ret == 0 && round < 2; round++) /* the second finds what the first freed */
        ret = try_pieces(ex, choice, needed, false, what, breach);
    for (size_t f = 0; f < factors; f++)
        needed[f] = choice[f] != 0;
    return ret < 0 ? ret : try_pieces(ex, choice, needed, true, what, breach);
}

/* ---- vectors as text ----------------------------------------------------------------------- */

static size_t print_side(
    const struct epoch *epoch, const unsigned *choice, bool lost, char *out, size_t out_len)
{
    size_t used = (size_t)snprintf(out, out_len, "%c", lost ? 'l' : 'p');
    const char *between = "";
    for (size_t f = 0; f < epoch_factors(epoch); f++) {
        unsigned rest = lost ? epoch_choices(epoch, f) - 1 : 0;
        if (choice[f] == rest)
            continue;
        if (used < out_len)
            used += (size_t)snprintf(out + used, out_len - used, "%s%zu.%u", between, f, choice[f]);
        between = "-";
    }
    return used;
}

void choices_print(const struct epoch *epoch, const unsigned *choice, char *out, size_t out_len)
{
    size_t persisted = print_side(epoch, choice, false, out, out_len);
    size_t lost = print_side(epoch, choice, true, out, out_len);
    if (persisted <= lost)
        print_side(epoch, choice, false, out, out_len);
}

int choices_parse(const struct epoch *epoch, const char *text, unsigned *choice)
{
    bool lost = *text == 'l';
    if (!lost && *text != 'p')
        return -ENOENT;
    for (size_t f = 0; f < epoch_factors(epoch); f++)
        choice[f] = lost ? epoch_choices(epoch, f) - 1 : 0;
    for (const char *p = text + 1; *p;) {
        size_t factor;
        unsigned value;
        int used;
        if (sscanf(p, "%zu.%u%n", &factor, &value, &used) != 2 || factor >= epoch_factors(epoch) ||
            value >= epoch_choices(epoch, factor))
            return -ENOENT;
        choice[factor] = value;
        p += used;
        p += *p == '-';
    }
    return 0;
}
