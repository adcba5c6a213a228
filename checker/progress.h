/* SPDX-License-Identifier: MIT
 *
 * The progress line, and the signals that ask for it or for the end. */
#ifndef CHECKER_PROGRESS_H
#define CHECKER_PROGRESS_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

struct progress;

/* SIGINT, SIGTERM, SIGHUP and SIGPIPE set the stop flag: nobody who goes away may end a repair at
 * any other point.  The last two not where they are ignored (nohup).  SIGUSR1 asks for one progress
 * line. */
void progress_catch_signals(void);
const volatile sig_atomic_t *progress_stop_flag(void);

/* Whose progress is shown where several images are checked at a time: that of number *turn. */
struct progress_place {
    const _Atomic size_t *turn;
    size_t number;
};

/* wanted: 1 a line, 0 none unless SIGUSR1 asks, -1 a line if stderr is a terminal and the work is
 * long.  NULL when out of memory: there is no line then. */
struct progress *progress_start(
    const char *filename, int wanted, const struct progress_place *place);
void progress_update(void *progress, uint64_t done, uint64_t total);
void progress_end(struct progress *progress); /* clears the line; NULL is allowed */

#endif
