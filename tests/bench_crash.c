/* SPDX-License-Identifier: MIT
 *
 * How many crash states a second: in memory by qcrash, and, as the baseline, each as a file that
 * `qemu-img check` looks at.  Time is that of the processor, which a busy machine does not change.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "proc.h"
#include "run.h"

enum { BASELINE_STATES = 60 };

static double seconds_of(int who)
{
    struct rusage usage;
    getrusage(who, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* Of this process and of those it has started. */
static double cpu_seconds(void)
{
    return seconds_of(RUSAGE_SELF) + seconds_of(RUSAGE_CHILDREN);
}

static double rate(const char *what, const struct explore_options *options)
{
    struct history h;
    struct explore_counts counts = {0};
    if (run_history("mixed", "c4k", false, NULL, &h) < 0)
        return 0;
    double start = cpu_seconds();
    explore_run(&h, &h.recording, fault_model_find("sector"), options, &counts, NULL, NULL);
    double per_second = (double)counts.executed / (cpu_seconds() - start);
    history_release(&h);
    printf("%-52s %10.0f states/s (%llu states)\n", what, per_second,
        (unsigned long long)counts.executed);
    return per_second;
}

static int baseline(double *per_second)
{
    char *dir = proc_mkdir(), path[512], id[96];
    struct run_options options = {.explore = explore_options_default()};
    struct output output = {.out = stdout};
    double spent = 0;
    int ret = 0;
    for (unsigned i = 0; ret == 0 && i < BASELINE_STATES; i++) {
        snprintf(path, sizeof(path), "%s/%u.qcow2", dir, i);
        snprintf(id, sizeof(id), "mixed@c4k/sector/2/p%u.1", i % 6);
        double start = cpu_seconds();
        ret = run_replay(id, path, &options, &output);
        proc_exit("qemu-img check %s", path);
        spent += cpu_seconds() - start;
    }
    proc_rmdir(dir);
    output_release(&output);
    *per_second = BASELINE_STATES / spent;
    printf("%-52s %10.0f states/s (%d states)\n", "baseline: a file each, qemu-img check",
        *per_second, BASELINE_STATES);
    return ret;
}

int main(void)
{
    struct explore_options options = explore_options_default();
    double base;
    options.check_full = options.continue_full = options.repair_full = 0;
    options.cap = 400000;
    options.metadata_only = true;
    rate("metadata invariants (I1 to I4)", &options);
    options.metadata_only = false;
    double content = rate("and all content (I5 to I7, I10)", &options);
    options.cap = 20000;
    options.continue_full = UINT64_MAX;
    rate("and going on after every state (I8)", &options);
    options.check_full = UINT64_MAX;
    rate("and qcheck on every state", &options);
    if (baseline(&base) < 0)
        return EXIT_FAILURE;
    printf("content invariants, against the baseline: %.0f times as fast\n", content / base);
    return EXIT_SUCCESS;
}
