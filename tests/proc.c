/* SPDX-License-Identifier: MIT */
#include "proc.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
    perror(what);
    abort();
}

static char *read_all(FILE *file)
{
    long size = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    char *text = size < 0 ? NULL : malloc((size_t)size + 1);
    if (!text)
        die("reading a program's output");
    rewind(file);
    text[fread(text, 1, (size_t)size, file)] = '\0';
    fclose(file);
    return text;
}

static struct proc_result run(const char *format, va_list args)
{
    char *command;
    if (vasprintf(&command, format, args) < 0)
        die("vasprintf");
    FILE *out = tmpfile(), *err = tmpfile(); /* files: no pipe that could fill up */
    if (!out || !err)
        die("tmpfile");
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        int null = open("/dev/null", O_RDONLY);
        dup2(null, STDIN_FILENO);
        dup2(fileno(out), STDOUT_FILENO);
        dup2(fileno(err), STDERR_FILENO);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    int status;
    if (waitpid(pid, &status, 0) < 0)
        die("waitpid");
    free(command);
    return (struct proc_result){
        .exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
        .out = read_all(out),
        .err = read_all(err),
    };
}

struct proc_result proc_run(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    struct proc_result result = run(format, args);
    va_end(args);
    return result;
}

void proc_free(struct proc_result *result)
{
    free(result->out);
    free(result->err);
}

int proc_exit(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    struct proc_result result = run(format, args);
    va_end(args);
    proc_free(&result);
    return result.exit_code;
}

double proc_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

char *proc_mkdir(void)
{
    const char *tmp = getenv("TMPDIR");
    char *dir;
    if (asprintf(&dir, "%s/qcheck-test-XXXXXX", tmp && *tmp ? tmp : "/tmp") < 0 || !mkdtemp(dir))
        die("mkdtemp");
    return dir;
}

void proc_rmdir(char *dir)
{
    proc_exit("rm -rf '%s'", dir);
    free(dir);
}
