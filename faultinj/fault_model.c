/* SPDX-License-Identifier: MIT
 *
 * The table of what a power cut may do. */
#include <string.h>

#include "fault.h"

const struct fault_model fault_models[] = {
    {"sector", "any sector holds any version of itself", 512, PROMISE_FULL, NULL, NULL},
    {"page", "any 4 KiB page holds any version of itself", 4096, PROMISE_FULL, NULL, NULL},
    {"prefix", "requests survive in order", 512, PROMISE_FULL, NULL, fault_prefix},
    {"prefix-torn", "in order, the last one in part", 512, PROMISE_FULL, NULL, fault_torn},
    {"omit-one", "one request is lost", 512, PROMISE_FULL, NULL, fault_omit_one},
    {"write-atomic", "each request survives whole or not at all", 512, PROMISE_FULL, NULL,
        fault_atomic},
    {"discard", "discarded sectors hold old bytes, zeros or noise", 512, PROMISE_FULL,
        fault_discard_noise, NULL},
    {"stale", "a grown file shows old bytes of the disk", 512, PROMISE_FULL, fault_stale, NULL},
    {"garbage", "a sector hit while it was written holds noise", 512, PROMISE_NOTICED,
        fault_garbage, NULL},
    {"shorn", "a sector is half new, half old", 512, PROMISE_NOTICED, fault_shorn, NULL},
    {"unreadable", "a sector hit while it was written cannot be read", 512, PROMISE_NO_CRASH,
        fault_unreadable, NULL},
};
const size_t fault_model_count = sizeof(fault_models) / sizeof(fault_models[0]);

const struct fault_model *fault_model_find(const char *name)
{
    for (size_t i = 0; i < fault_model_count; i++) {
        if (strcmp(fault_models[i].name, name) == 0)
            return &fault_models[i];
    }
    return NULL;
}
