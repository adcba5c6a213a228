/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "io.h"
#include "proc.h"

struct place {
    char *dir, path[256];
};

static struct place place_make(void)
{
    struct place p = {.dir = proc_mkdir()};
    snprintf(p.path, sizeof(p.path), "%s/file", p.dir);
    return p;
}

static struct io *open_or_fail(const char *path, unsigned flags)
{
    struct io *io;
    ck_assert_int_eq(io_file_open(path, flags, &io, NULL), 0);
    return io;
}

START_TEST(bytes_sizes_holes)
{
    struct place p = place_make();
    struct io *io = open_or_fail(p.path, IO_FILE_CREATE | IO_FILE_WRITE);
    char buf[4] = "";
    uint64_t size;
    ck_assert_int_eq(io_write(io, 1 << 20, "abc", 3), 0);
    ck_assert_int_eq(io_flush(io), 0);
    ck_assert_int_eq(io_size(io, &size), 0);
    ck_assert_uint_eq(size, (1 << 20) + 3);
    ck_assert_int_eq(io_read(io, 1 << 20, buf, 3), 0);
    ck_assert_str_eq(buf, "abc");
    ck_assert_int_eq(io_read(io, 1 << 20, buf, 4), -ERANGE);
    ck_assert_int_eq(io_resize(io, 10), 0);
    ck_assert_int_eq(io_size(io, &size), 0);
    ck_assert_uint_eq(size, 10);
    ck_assert_int_eq(io_discard(io, 0, 10), 0);
    io_close(io);
    ck_assert_int_eq(io_file_open(p.path, IO_FILE_CREATE | IO_FILE_WRITE, &io, NULL), -EEXIST);
    ck_assert_int_eq(io_file_open(p.dir, 0, &io, NULL), -EISDIR);
    io = open_or_fail(p.path, 0);
    ck_assert_int_eq(io_write(io, 0, "x", 1), -EROFS);
    io_close(io);
    proc_rmdir(p.dir);
}
END_TEST

START_TEST(who_may_look_and_who_may_write)
{
    struct place p = place_make();
    struct io_file_info info;
    struct io *writer = open_or_fail(p.path, IO_FILE_CREATE | IO_FILE_WRITE), *io;
    if (io_file_open(p.path, 0, &io, &info) == 0) { /* no such locks on this file system */
        io_close(io);
    } else {
        ck_assert_int_eq(io_file_open(p.path, IO_FILE_WRITE, &io, &info), -EBUSY);
        ck_assert_int_ge(info.lock_byte, 100);
        io = open_or_fail(p.path, IO_FILE_SHARE);
        io_close(io);
        io_close(writer);
        writer = open_or_fail(p.path, 0);
        io = open_or_fail(p.path, 0); /* readers do not mind each other */
        io_close(io);
        ck_assert_int_eq(io_file_open(p.path, IO_FILE_WRITE, &io, &info), -EBUSY);
    }
    io_close(writer);
    proc_rmdir(p.dir);
}
END_TEST

/* QEMU and we keep out of each other's way. */
START_TEST(locks_are_those_of_qemu)
{
    struct place p = place_make();
    ck_assert_int_eq(proc_exit("qemu-img create -q -f qcow2 %s 1M", p.path), 0);
    struct io *io = open_or_fail(p.path, IO_FILE_WRITE);
    ck_assert_int_ne(proc_exit("qemu-io -f qcow2 -c 'read 0 512' %s 2>/dev/null", p.path), 0);
    io_close(io);
    io = open_or_fail(p.path, 0);
    ck_assert_int_ne(proc_exit("qemu-io -f qcow2 -c 'write 0 512' %s 2>/dev/null", p.path), 0);
    ck_assert_int_eq(proc_exit("qemu-io -r -f qcow2 -c 'read -q 0 512' %s", p.path), 0);
    io_close(io);
    proc_rmdir(p.dir);
}
END_TEST

/* A file is known by what it is, not by its name; and a chain has an end. */
START_TEST(files_of_a_chain)
{
    struct place p = place_make();
    struct io_chain chain = {.depth = 0};
    char path[300];
    for (unsigned i = 0; i <= IO_CHAIN_MAX + 1; i++) {
        snprintf(path, sizeof(path), "%s%u", p.path, i);
        io_close(open_or_fail(path, IO_FILE_CREATE | IO_FILE_WRITE));
        ck_assert_int_eq(io_chain_add(&chain, path), i <= IO_CHAIN_MAX ? 0 : -ELOOP);
    }
    ck_assert_uint_eq(chain.depth, IO_CHAIN_MAX + 1);
    ck_assert_int_eq(proc_exit("ln -s file7 %s/other", p.dir), 0);
    snprintf(path, sizeof(path), "%s/other", p.dir);
    ck_assert_int_eq(io_chain_add(&chain, path), -EEXIST);
    ck_assert_int_eq(io_chain_add(&chain, "/nowhere/at/all"), 0);
    proc_rmdir(p.dir);
}
END_TEST

Suite *test_io_file(void);
Suite *test_io_file(void)
{
    Suite *suite = suite_create("io_file");
    TCase *tc = tcase_create("io_file");
    tcase_add_test(tc, bytes_sizes_holes);
    tcase_add_test(tc, who_may_look_and_who_may_write);
    tcase_add_test(tc, locks_are_those_of_qemu);
    tcase_add_test(tc, files_of_a_chain);
    suite_add_tcase(suite, tc);
    return suite;
}
