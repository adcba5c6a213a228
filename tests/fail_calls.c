/* SPDX-License-Identifier: MIT
 *
 * A library to preload: the n-th call of a kind fails, as the environment says.
 *
 *   FAIL_KIND    alloc, open, read, write, sync, resize or lock; torn: a write, and half of its
 *                sectors are done
 *   FAIL_NTH     which call of that kind; 0: none
 *   FAIL_PROGRAM if set, only in the program of this name
 *   FAIL_FIRED   a file that is made when it has failed
 *   FAIL_MODE    short: each read and write does a part; eintr: every other one is interrupted;
 *                kill: nothing fails, but the program is killed
 *
 * Never linked with anything: malloc and its like are the next ones, of the C library or of a tool
 * that watches memory. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile sig_atomic_t calls_seen, turn, not_ours = 1;

static int mode_is(const char *mode)
{
    const char *wanted = getenv("FAIL_MODE");
    return wanted && strcmp(wanted, mode) == 0;
}

static int die(void)
{
    return mode_is("kill") ? kill(getpid(), SIGKILL) == 0 : 0;
}

/* True if this call is the one; errno is set. */
static int fails(const char *kind, int error)
{
    const char *wanted = getenv("FAIL_KIND"), *nth = getenv("FAIL_NTH");
    if (not_ours || !wanted || !nth || strcmp(wanted, kind) != 0 || ++calls_seen != atoi(nth))
        return 0;
    const char *fired = getenv("FAIL_FIRED");
    if (fired)
        syscall(SYS_close, (int)syscall(SYS_openat, AT_FDCWD, fired, O_CREAT | O_WRONLY, 0644));
    if (strcmp(kind, "torn") != 0)
        die();
    errno = error;
    return 1;
}

static int interrupted(void)
{
    if (!mode_is("eintr") || (turn = !turn))
        return 0;
    errno = EINTR;
    return 1;
}

static size_t part_of(size_t length)
{
    return mode_is("short") && length > 1 ? (length + 2) / 3 : length;
}

/* ---- after main() ----
 *
 * What runs before it, and at the exit, is not the program's, but that of whoever measures its
 * coverage, and would not stand it. */

typedef int main_function(int, char **, char **);
typedef int start_function(
    main_function *, int, char **, void (*)(void), void (*)(void), void (*)(void), void *);
start_function __libc_start_main;

static main_function *program_main;

static int run_main(int argc, char **argv, char **environment)
{
    const char *wanted = getenv("FAIL_PROGRAM"), *slash = strrchr(argv[0], '/');
    not_ours = wanted && strcmp(wanted, slash ? slash + 1 : argv[0]) != 0;
    int ret = program_main(argc, argv, environment);
    not_ours = 1;
    return ret;
}

int __libc_start_main(main_function *main, int argc, char **argv, void (*init)(void),
    void (*fini)(void), void (*at_exit)(void), void *stack_end)
{
    union {
        void *symbol;
        start_function *call;
    } next = {dlsym(RTLD_NEXT, "__libc_start_main")};
    program_main = main;
    return next.call(run_main, argc, argv, init, fini, at_exit, stack_end);
}

/* ---- memory ---- */

typedef void *malloc_function(size_t);
typedef void *calloc_function(size_t, size_t);
typedef void *realloc_function(void *, size_t);

static union {
    void *symbol;
    malloc_function *call;
} next_malloc;
static union {
    void *symbol;
    calloc_function *call;
} next_calloc;
static union {
    void *symbol;
    realloc_function *call;
} next_realloc;

static void find(void **symbol, const char *name)
{
    if (!*symbol)
        *symbol = dlsym(RTLD_NEXT, name);
}

void *malloc(size_t size)
{
    find(&next_malloc.symbol, "malloc");
    return fails("alloc", ENOMEM) ? NULL : next_malloc.call(size);
}

void *calloc(size_t count, size_t size)
{
    find(&next_calloc.symbol, "calloc");
    return fails("alloc", ENOMEM) ? NULL : next_calloc.call(count, size);
}

void *realloc(void *old, size_t size)
{
    find(&next_realloc.symbol, "realloc");
    return fails("alloc", ENOMEM) ? NULL : next_realloc.call(old, size);
}

/* ---- files: the names that 64-bit offsets lead to ---- */

int open64(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    mode_t mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    return fails("open", EMFILE) ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

ssize_t pread64(int fd, void *buf, size_t length, off64_t at)
{
    if (fails("read", EIO) || interrupted())
        return -1;
    return syscall(SYS_pread64, fd, buf, part_of(length), at);
}

ssize_t pwrite64(int fd, const void *buf, size_t length, off64_t at)
{
    if (fails("write", ENOSPC) || interrupted())
        return -1;
    enum { SECTOR = 512 };
    if (fails("torn", EIO)) {
        syscall(SYS_pwrite64, fd, buf, length / 2 / SECTOR * SECTOR, at);
        return die() ? 0 : -1;
    }
    return syscall(SYS_pwrite64, fd, buf, part_of(length), at);
}

int fdatasync(int fd)
{
    return fails("sync", EIO) ? -1 : (int)syscall(SYS_fdatasync, fd);
}

int ftruncate64(int fd, off64_t size)
{
    if (fails("resize", ENOSPC) || interrupted())
        return -1;
    return (int)syscall(SYS_ftruncate, fd, size);
}

int fcntl64(int fd, int command, ...)
{
    va_list args;
    va_start(args, command);
    long arg = va_arg(args, long);
    va_end(args);
    return fails("lock", EIO) ? -1 : (int)syscall(SYS_fcntl, fd, command, arg);
}
