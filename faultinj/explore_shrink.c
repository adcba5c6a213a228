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

static int try_choice(struct explorer *ex, unsigned *choice, size_t factor, unsigned value,
    enum invariant what, struct breach *breach)
{
    unsigned old = choice[factor];
    bool broken;
    choice[factor] = value;
    int ret = still_broken(ex, choice, what, breach, &broken);
    if (ret < 0 || !broken)
        choice[factor] = old;
    return ret;
}

int explorer_shrink(struct explorer *ex, unsigned *choice, bool *needed, struct breach *breach)
{
    size_t factors = epoch_factors(&ex->epoch);
    enum invariant what = breach->invariant;
    int ret = 0;
    for (int round = 0; ret == 0 && round < 2;
         round++) { /* the second finds what the first freed */
        for (size_t f = 0; ret == 0 && f < factors; f++) {
            if (choice[f] != 0)
                ret = try_choice(ex, choice, f, 0, what, breach);
        }
    }
    for (size_t f = 0; f < factors; f++)
        needed[f] = choice[f] != 0;
    for (size_t f = 0; ret == 0 && f < factors; f++) {
        if (!needed[f] && epoch_choices(&ex->epoch, f) > 1)
            ret = try_choice(ex, choice, f, epoch_choices(&ex->epoch, f) - 1, what, breach);
    }
    return ret;
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
