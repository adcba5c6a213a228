/* SPDX-License-Identifier: MIT
 *
 * Running other programs from tests: qemu-img, qemu-io, and our own as a user calls them. */
#ifndef TESTS_PROC_H
#define TESTS_PROC_H

struct proc_result {
    int exit_code; /* 128 + signal if it was killed; 127 if it could not be started */
    char *out;     /* what it wrote to stdout, NUL-terminated */
    char *err;     /* and to stderr */
};

/* Runs a shell command made from a printf format, waits, collects its output; aborts the test
 * program if not even a pipe can be had.  Free the result with proc_free(). */
struct proc_result proc_run(const char *format, ...) __attribute__((format(printf, 1, 2)));
void proc_free(struct proc_result *result);

/* proc_run() that only wants the exit code. */
int proc_exit(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Seconds on a clock that only goes forward. */
double proc_seconds(void);

/* A new empty directory under $TMPDIR or /tmp, and its removal with all that is in it.  The name is
 * malloc'd and freed by proc_rmdir(). */
char *proc_mkdir(void);
void proc_rmdir(char *dir);

#endif
