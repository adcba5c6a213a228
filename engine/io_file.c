/* SPDX-License-Identifier: MIT
 *
 * The real file or block device: the only place that calls pread, pwrite and fdatasync, and that
 * takes QEMU's image locks. */
#include "io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

struct io_file {
    struct io io;
    int fd;
    bool block_device;
};

static struct io_file *self(struct io *io)
{
    return (struct io_file *)io;
}

static int file_size(struct io *io, uint64_t *size_bytes)
{
    off_t end = lseek(self(io)->fd, 0, SEEK_END); /* also true for block devices */
    if (end < 0)
        return -errno;
    *size_bytes = (uint64_t)end;
    return 0;
}

static int file_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    uint8_t *dst = buf;
    while (length > 0) {
        ssize_t n = pread(self(io)->fd, dst, length, (off_t)host_off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0) /* past the end: asked for too much, or the file shrank meanwhile */
            return -ERANGE;
        dst += n, host_off += (uint64_t)n, length -= (size_t)n;
    }
    return 0;
}

static int file_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    const uint8_t *src = buf;
    while (length > 0) {
        ssize_t n = pwrite(self(io)->fd, src, length, (off_t)host_off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -EIO;
        src += n, host_off += (uint64_t)n, length -= (size_t)n;
    }
    return 0;
}

static int file_flush(struct io *io)
{
    /* Not repeated on EINTR or EIO: after a failed sync the kernel may have dropped the pages, and
     * a second call would report success for data that is gone. */
    if (fdatasync(self(io)->fd) == 0)
        return 0;
    int err = -errno;
    /* Those pages count as clean and show what the device does not have: let go of them, so that
     * whoever reads or opens the image again sees the device.  Advice, no more. */
    (void)posix_fadvise(self(io)->fd, 0, 0, POSIX_FADV_DONTNEED);
    return err;
}

static int file_resize(struct io *io, uint64_t size_bytes)
{
    if (self(io)->block_device) {
        uint64_t size = 0;
        int ret = file_size(io, &size);
        if (ret < 0)
            return ret;
        return size_bytes <= size ? 0 : -ENOSPC;
    }
    while (ftruncate(self(io)->fd, (off_t)size_bytes) < 0) {
        if (errno != EINTR)
            return -errno;
    }
    return 0;
}

static int file_discard(struct io *io, uint64_t host_off, uint64_t length)
{
    struct io_file *file = self(io);
    if (file->block_device) {
        uint64_t range[2] = {host_off, length};
        if (ioctl(file->fd, BLKDISCARD, range) == 0)
            return 0;
    } else if (fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)host_off,
                   (off_t)length) == 0) {
        return 0;
    }
    return errno == EOPNOTSUPP || errno == ENOSYS || errno == ENOTTY ? 0 : -errno;
}

static int file_extents(struct io *io, uint64_t host_off, uint64_t *start, uint64_t *end)
{
    uint64_t size = 0;
    int fd = self(io)->fd, ret = file_size(io, &size);
    if (ret < 0)
        return ret;
    *start = *end = size;
    if (host_off >= size)
        return 0;
    off_t data = lseek(fd, (off_t)host_off, SEEK_DATA);
    if (data < 0 && errno == ENXIO)
        return 0;
    if (data < 0) { /* no such query here: all of it is data */
        *start = host_off;
        return 0;
    }
    *start = (uint64_t)data;
    off_t hole = lseek(fd, data, SEEK_HOLE);
    if (hole > data)
        *end = (uint64_t)hole;
    return 0;
}

static void file_close(struct io *io)
{
    close(self(io)->fd);
    free(io);
}

static const struct io_ops file_ops = {
    .read = file_read,
    .write = file_write,
    .flush = file_flush,
    .size = file_size,
    .resize = file_resize,
    .discard = file_discard,
    .close = file_close,
    .extents = file_extents,
};

/* ---- image locks ---------------------------------------------------------------------------
 *
 * QEMU's rules: byte 100 + i says "I use permission i", byte 200 + i "I let nobody else use
 * permission i".  One takes shared locks on the own bytes first and then asks whether anybody
 * holds the opposite ones, so that of two that start at once at least one sees the other. */

enum { PERM_READ, PERM_WRITE, PERM_WRITE_UNCHANGED, PERM_RESIZE, USES = 100, DENIES = 200 };

struct lock_plan {
    unsigned char take[8], refuse[8]; /* ended by 0 */
};

static const struct lock_plan lock_read = {
    {USES + PERM_READ, DENIES + PERM_WRITE, DENIES + PERM_RESIZE},
    {USES + PERM_WRITE, USES + PERM_RESIZE, DENIES + PERM_READ},
};
static const struct lock_plan lock_write = {
    {USES + PERM_READ, USES + PERM_WRITE, USES + PERM_RESIZE, DENIES + PERM_WRITE,
        DENIES + PERM_RESIZE},
    {DENIES + PERM_READ, DENIES + PERM_WRITE, DENIES + PERM_RESIZE, USES + PERM_READ,
        USES + PERM_WRITE, USES + PERM_RESIZE},
};
static const struct lock_plan lock_share = {
    {USES + PERM_READ},
    {0},
};

const char *io_file_lock_name(int lock_byte)
{
    static const char *const names[] = {"read", "write", "write-unchanged", "resize"};
    int perm = lock_byte % 100;
    return perm < 4 ? names[perm] : "unknown";
}

/* The locks belong to the open file, so our own never count against us.  A program holds its
 * "uses read" lock also while it only looks, hence writers ask about it with the others. */
static int locks_take(int fd, const struct lock_plan *plan, struct io_file_info *info)
{
    for (const unsigned char *byte = plan->take; *byte; byte++) {
        struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = *byte, .l_len = 1};
        if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
            continue;
        if (errno == EAGAIN || errno == EACCES) {
            info->lock_byte = *byte;
            return -EBUSY;
        }
        if (errno == EINVAL || errno == EOPNOTSUPP || errno == ENOLCK || errno == ENOSYS) {
            info->unlocked = true;
            return 0;
        }
        return -errno;
    }
    for (const unsigned char *byte = plan->refuse; *byte; byte++) {
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = *byte, .l_len = 1};
        if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
            return -errno;
        if (lock.l_type != F_UNLCK) {
            info->lock_byte = *byte;
            return -EBUSY;
        }
    }
    return 0;
}

static bool process_has_open(const char *pid, const struct stat *image)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "/proc/%s/fd", pid);
    DIR *dir = opendir(path);
    if (!dir)
        return false;
    bool found = false;
    for (struct dirent *entry; !found && (entry = readdir(dir));) {
        struct stat st;
        found = fstatat(dirfd(dir), entry->d_name, &st, 0) == 0 && st.st_dev == image->st_dev &&
                st.st_ino == image->st_ino;
    }
    closedir(dir);
    return found;
}

static void read_process_name(const char *pid, struct io_file_info *info)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "/proc/%s/comm", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return;
    if (fgets(info->holder_name, sizeof(info->holder_name), file))
        info->holder_name[strcspn(info->holder_name, "\n")] = '\0';
    fclose(file);
}

/* Such a lock does not say whose it is; another process that has the file open is the best that
 * can be told. */
static void find_holder(int fd, struct io_file_info *info)
{
    struct stat image;
    DIR *proc = fstat(fd, &image) == 0 ? opendir("/proc") : NULL;
    if (!proc)
        return;
    for (struct dirent *entry; info->holder_pid == 0 && (entry = readdir(proc));) {
        long pid = strtol(entry->d_name, NULL, 10);
        if (pid <= 0 || pid == getpid() || !process_has_open(entry->d_name, &image))
            continue;
        info->holder_pid = pid;
        read_process_name(entry->d_name, info);
    }
    closedir(proc);
}

/* Never as one of the standard streams: where one of them is closed, what is said there would be
 * written into the image. */
static int open_above_streams(const char *path, int mode)
{
    int fd = open(path, mode, 0644);
    if (fd < 0 || fd > STDERR_FILENO)
        return fd < 0 ? -errno : fd;
    int higher = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    int ret = higher < 0 ? -errno : higher;
    close(fd);
    return ret;
}

/* A new file's name is durable, too.  Where its folder cannot be read or has no such call, that is
 * left to the file system. */
static int sync_folder(const char *path)
{
    char *copy = strdup(path);
    if (!copy)
        return -ENOMEM;
    int fd = open_above_streams(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int ret = fd >= 0 && fsync(fd) < 0 && errno != EINVAL ? -errno : 0;
    if (fd >= 0)
        close(fd);
    free(copy);
    return ret;
}

/* Opening some devices is an act of its own, and whoever waits at a FIFO is let go: what is there
 * is looked at first, and it is that which is opened.  Reading leaves no trace, where that is
 * allowed.
 */
static int open_known(const char *path, int mode, struct stat *st)
{
    char itself[32];
    int at = open_above_streams(path, O_PATH | O_CLOEXEC);
    if (at < 0)
        return at;
    int ret = fstat(at, st) < 0 ? -errno : 0;
    if (ret == 0 && !S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode))
        ret = S_ISDIR(st->st_mode) ? -EISDIR : -ENOTBLK;
    snprintf(itself, sizeof(itself), "/proc/self/fd/%d", at);
    const char *name = access(itself, F_OK) == 0 ? itself : path;
    int quiet = (mode & O_ACCMODE) == O_RDONLY ? O_NOATIME : 0;
    if (ret == 0)
        ret = open_above_streams(name, mode | quiet);
    if (ret == -EPERM && quiet) /* somebody else's file */
        ret = open_above_streams(name, mode);
    close(at);
    return ret;
}

static int open_fd(const char *path, unsigned flags, struct io_file_info *info)
{
    struct stat st;
    if (!(flags & IO_FILE_CREATE)) {
        int fd = open_known(path, O_CLOEXEC | (flags & IO_FILE_WRITE ? O_RDWR : O_RDONLY), &st);
        info->block_device = fd >= 0 && S_ISBLK(st.st_mode);
        return fd;
    }
    int fd = open_above_streams(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC);
    int ret = fd < 0 ? 0 : sync_folder(path);
    if (ret < 0) {
        unlink(path);
        close(fd);
    }
    return ret < 0 ? ret : fd;
}

int io_file_open(const char *path, unsigned flags, struct io **out, struct io_file_info *info)
{
    struct io_file_info unused;
    if (!info)
        info = &unused;
    memset(info, 0, sizeof(*info));

    int fd = open_fd(path, flags, info);
    if (fd < 0)
        return fd;
    struct io_file *file = calloc(1, sizeof(*file));
    int ret = file ? 0 : -ENOMEM;
    if (ret == 0 && !(flags & IO_FILE_NO_LOCK)) {
        const struct lock_plan *plan = flags & IO_FILE_WRITE   ? &lock_write
                                       : flags & IO_FILE_SHARE ? &lock_share
                                                               : &lock_read;
        ret = locks_take(fd, plan, info);
        if (ret == -EBUSY)
            find_holder(fd, info);
    }
    if (ret < 0) {
        if (flags & IO_FILE_CREATE)
            unlink(path);
        free(file);
        close(fd);
        return ret;
    }
    file->io.ops = &file_ops;
    file->io.concurrent_reads = true;
    file->io.read_only = !(flags & (IO_FILE_WRITE | IO_FILE_CREATE));
    file->fd = fd;
    file->block_device = info->block_device;
    *out = &file->io;
    return 0;
}
