/* SPDX-License-Identifier: MIT
 *
 * The pre-deploy gate: rules for images that come from others.
 *
 * A rule is a row of checks.def of the kind POLICY, called deploy_<rule>.  What it finds is a note
 * of its own and changes no count; a sound image on which a rule says no is refused (exit 4). */
#ifndef CHECKER_DEPLOY_H
#define CHECKER_DEPLOY_H

#include <stddef.h>

#include "check.h"

enum { DEPLOY_ERROR_BYTES = 200 };

struct deploy_policy {
    bool allowed[CHECK_COUNT]; /* rules that are not looked at */
    uint64_t max_size;         /* bytes of the virtual disk; 0: any */
};

/* Adds the policy of that name, or that of the file with that path, whose lines are `allow RULE`
 * and `max-size SIZE`; # starts a comment.  NULL: the strict one, which allows nothing.  A size
 * that is set already stays.  0 or -errno with a line in `error`. */
int deploy_policy_load(
    const char *name, struct deploy_policy *policy, char error[DEPLOY_ERROR_BYTES]);

/* Allows one more rule, such as "backing-file".  -ENOENT, and a line in `error`. */
int deploy_allow(struct deploy_policy *policy, const char *rule, char error[DEPLOY_ERROR_BYTES]);

/* Bytes, with an optional suffix k, M, G or T.  -EINVAL, and a line in `error`. */
int deploy_max_size(struct deploy_policy *policy, const char *size, char error[DEPLOY_ERROR_BYTES]);

#endif
