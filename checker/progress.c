/* SPDX-License-Identifier: MIT
 *
 * See progress.h.  The two flags are the only mutable globals of the project: a signal handler can
 * reach nothing else.  Threads look at them, too, so they are read and written atomically. */
#include "progress.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "text.h"

static volatile sig_atomic_t stop_wanted;
static volatile sig_atomic_t line_wanted;

struct progress {
    const char *filename;
    struct progress_place place;
    bool always, automatic, shown;
    double started, last; /* seconds, monotonic */
};

static void on_signal(int signo)
{
    if (signo == SIGUSR1)
        __atomic_store_n(&line_wanted, 1, __ATOMIC_RELAXED);
    else
        __atomic_store_n(&stop_wanted, 1, __ATOMIC_RELAXED);
}

void progress_catch_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGUSR1, SIGHUP, SIGPIPE};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, before;
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        bool ours = signals[i] != SIGHUP && signals[i] != SIGPIPE;
        if (ours || (sigaction(signals[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN))
            sigaction(signals[i], &action, NULL);
    }
    signal(SIGXFSZ, SIG_IGN); /* a write past the limit fails, as on a full disk */
}

const volatile sig_atomic_t *progress_stop_flag(void)
{
    return &stop_wanted;
}

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

struct progress *progress_start(
    const char *filename, int wanted, const struct progress_place *place)
{
    struct progress *progress = calloc(1, sizeof(*progress));
    if (!progress)
        return NULL;
    progress->filename = filename;
    progress->place = *place;
    progress->always = wanted == 1;
    progress->automatic = wanted == -1 && isatty(STDERR_FILENO);
    progress->started = progress->last = now();
    return progress;
}

static void print_line(struct progress *progress, double time, uint64_t done, uint64_t total)
{
    double share = total ? (double)done / (double)total : 0;
    double rate = time > progress->started ? (double)done / (time - progress->started) : 0;
    share = share > 1 ? 1 : share;
    double left = share > 0 ? (time - progress->started) * (1 - share) / share : 0;
    bool line = progress->always || progress->automatic;
    fputs(line ? "\r" : "", stderr);
    text_print(stderr, progress->filename, strlen(progress->filename), 0);
    fprintf(stderr, ": %3.0f %%, %.0f MiB/s, %.0f s left%s", share * 100, rate / (1 << 20), left,
        line ? "\033[K" : "\n");
    progress->shown = line;
}

void progress_update(void *arg, uint64_t done, uint64_t total)
{
    static const double first_after = 2, again_after = 0.5; /* seconds */
    struct progress *progress = arg;
    if (*progress->place.turn != progress->place.number)
        return;
    double time = now();
    bool due =
        time - progress->last >= again_after &&
        (progress->always || (progress->automatic && time - progress->started >= first_after));
    if (!__atomic_exchange_n(&line_wanted, 0, __ATOMIC_RELAXED) && !due)
        return;
    progress->last = time;
    print_line(progress, time, done, total);
}

void progress_end(struct progress *progress)
{
    if (progress && progress->shown)
        fputs("\r\033[K", stderr);
    free(progress);
}
