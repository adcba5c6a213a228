/* SPDX-License-Identifier: MIT
 *
 * A folder in which tests run the three programs as a shell does. */
#ifndef TESTS_DESK_H
#define TESTS_DESK_H

#include "proc.h"

struct desk {
    char *dir, *programs; /* `programs`: folder of qcheck, qsnap and qcrash */
};

struct desk desk_open(void);
void desk_close(struct desk *desk);

/* A shell command in the folder, with the programs in the path; 60 seconds at most. */
struct proc_result desk_run(const struct desk *desk, const char *command);

/* Fails the test unless it exits so and says both, "" being said by everybody. */
void desk_want(
    const struct desk *desk, const char *command, int exit_code, const char *out, const char *err);
void desk_works(const struct desk *desk, const char *command);

#endif
