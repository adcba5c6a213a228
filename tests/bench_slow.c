/* SPDX-License-Identifier: MIT
 *
 * bench_slow FILE DIRECTORY: a FUSE file system of one file, DIRECTORY/image, which has the bytes
 * of FILE but takes a millisecond a read, and any number of reads at a time: storage that is far
 * away, seen through the kernel.  Nothing is cached.  It ends, and is gone, on SIGTERM. */
#define FUSE_USE_VERSION 312
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { DELAY_NS = 1000000, MOST_READERS = 128 };

static int slow_fd(void)
{
    return *(const int *)fuse_get_context()->private_data;
}

static int slow_getattr(const char *path, struct stat *st, struct fuse_file_info *info)
{
    (void)info;
    memset(st, 0, sizeof(*st));
    if (strcmp(path, "/image") == 0)
        return fstat(slow_fd(), st) < 0 ? -errno : 0;
    st->st_mode = S_IFDIR | 0755;
    st->st_nlink = 2;
    return strcmp(path, "/") == 0 ? 0 : -ENOENT;
}

static int slow_open(const char *path, struct fuse_file_info *info)
{
    (void)path;
    info->direct_io = 1; /* each read comes here */
    return (info->flags & O_ACCMODE) == O_RDONLY ? 0 : -EROFS;
}

static int slow_read(
    const char *path, char *buf, size_t length, off_t off, struct fuse_file_info *info)
{
    const struct timespec delay = {0, DELAY_NS};
    (void)path, (void)info;
    nanosleep(&delay, NULL);
    ssize_t n = pread(slow_fd(), buf, length, off);
    return n < 0 ? -errno : (int)n;
}

static off_t slow_lseek(const char *path, off_t off, int whence, struct fuse_file_info *info)
{
    (void)path, (void)info;
    off_t at = lseek(slow_fd(), off, whence);
    return at < 0 ? -errno : at;
}

static const struct fuse_operations slow_operations = {
    .getattr = slow_getattr, .open = slow_open, .read = slow_read, .lseek = slow_lseek};

int main(int argc, char **argv)
{
    int fd = argc == 3 ? open(argv[1], O_RDONLY) : -1;
    struct fuse_args args = FUSE_ARGS_INIT(1, argv);
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    struct fuse *fuse = NULL;
    bool mounted = false;
    int ret = -1;
    if (fd >= 0 && config)
        fuse = fuse_new(&args, &slow_operations, sizeof(slow_operations), &fd);
    if (fuse)
        mounted = fuse_mount(fuse, argv[2]) == 0;
    if (mounted && fuse_set_signal_handlers(fuse_get_session(fuse)) == 0) {
        fuse_loop_cfg_set_max_threads(config, MOST_READERS);
        fuse_loop_cfg_set_idle_threads(config, MOST_READERS);
        ret = fuse_loop_mt(fuse, config);
        fuse_remove_signal_handlers(fuse_get_session(fuse));
    }
    if (mounted)
        fuse_unmount(fuse);
    if (fuse)
        fuse_destroy(fuse);
    fuse_loop_cfg_destroy(config);
    close(fd);
    return ret == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
