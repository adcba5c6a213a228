/* SPDX-License-Identifier: MIT
 *
 * Power cut.  A disk or a host's page cache loses power: what was written since the last flush is
 * there or not, in any order.  The models here are restrictions, cheap first passes: requests
 * survive in the order they were issued (prefix), the last one perhaps in part (prefix-torn), all
 * but one (omit-one), or each one whole or not at all (write-atomic).  The full model, any unit at
 * any version (sector, page), needs no walk of its own.  Promise: I1 to I8. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"

enum { TORN_UNITS_MAX = 10, ATOMIC_REQUESTS_MAX = 14 };

static unsigned *start(const struct epoch *epoch)
{
    return calloc(epoch_factors(epoch), sizeof(unsigned));
}

/* Takes over what request `request` did; returns the index of the first event after it. */
static size_t take(const struct epoch *epoch, size_t event, unsigned *choice)
{
    size_t request = epoch->events[event].request;
    while (event < epoch->event_count && epoch->events[event].request == request) {
        choice[epoch->events[event].factor] = epoch->events[event].version;
        event++;
    }
    return event;
}

int fault_prefix(const struct epoch *epoch, fault_visit *visit, void *arg)
{
    unsigned *choice = start(epoch);
    int ret = choice ? visit(arg, choice) : -ENOMEM;
    for (size_t event = 0; ret == 0 && event < epoch->event_count;) {
        event = take(epoch, event, choice);
        ret = visit(arg, choice);
    }
    free(choice);
    return ret;
}

int fault_torn(const struct epoch *epoch, fault_visit *visit, void *arg)
{
    unsigned *choice = start(epoch), *torn = start(epoch);
    int ret = choice && torn ? visit(arg, choice) : -ENOMEM;
    for (size_t event = 0; ret == 0 && event < epoch->event_count;) {
        size_t next = event, request = epoch->events[event].request;
        while (next < epoch->event_count && epoch->events[next].request == request)
            next++;
        size_t units = next - event;
        units = units < TORN_UNITS_MAX ? units : TORN_UNITS_MAX;
        for (unsigned mask = 0; ret == 0 && mask < 1u << units; mask++) {
            memcpy(torn, choice, epoch_factors(epoch) * sizeof(*torn));
            for (size_t i = event; i < next; i++) {
                /* More units than that tear in equal parts. */
                if (mask >> ((i - event) * units / (next - event)) & 1)
                    torn[epoch->events[i].factor] = epoch->events[i].version;
            }
            ret = visit(arg, torn);
        }
        event = take(epoch, event, choice);
    }
    free(choice);
    free(torn);
    return ret;
}

/* All requests but `without`: a unit whose last request that is has the version before it. */
static void all_but(const struct epoch *epoch, size_t without, unsigned *choice)
{
    memset(choice, 0, epoch_factors(epoch) * sizeof(*choice));
    for (size_t i = 0; i < epoch->event_count; i++) {
        if (epoch->events[i].request != without)
            choice[epoch->events[i].factor] = epoch->events[i].version;
    }
}

int fault_omit_one(const struct epoch *epoch, fault_visit *visit, void *arg)
{
    unsigned *choice = start(epoch);
    int ret = choice ? 0 : -ENOMEM;
    for (size_t i = 0; ret == 0 && i < epoch->event_count; i++) {
        if (i > 0 && epoch->events[i].request == epoch->events[i - 1].request)
            continue;
        all_but(epoch, epoch->events[i].request, choice);
        ret = visit(arg, choice);
    }
    if (ret == 0) {
        all_but(epoch, SIZE_MAX, choice);
        ret = visit(arg, choice);
    }
    free(choice);
    return ret;
}

int fault_atomic(const struct epoch *epoch, fault_visit *visit, void *arg)
{
    unsigned *choice = start(epoch);
    size_t requests = 0;
    for (size_t i = 0; i < epoch->event_count; i++)
        requests += i == 0 || epoch->events[i].request != epoch->events[i - 1].request;
    size_t groups = requests < ATOMIC_REQUESTS_MAX ? requests : ATOMIC_REQUESTS_MAX;
    int ret = choice ? 0 : -ENOMEM;
    for (unsigned mask = 0; ret == 0 && mask < 1u << groups; mask++) {
        size_t seen = 0;
        memset(choice, 0, epoch_factors(epoch) * sizeof(*choice));
        for (size_t i = 0; i < epoch->event_count; i++) {
            seen += i > 0 && epoch->events[i].request != epoch->events[i - 1].request;
            if (mask >> (seen * groups / requests) & 1)
                choice[epoch->events[i].factor] = epoch->events[i].version;
        }
        ret = visit(arg, choice);
    }
    free(choice);
    return ret;
}
