/* SPDX-License-Identifier: MIT
 *
 * Images on block devices, as storage managers have them: loop devices, where the machine lends
 * them; else these tests say so and pass.
 *
 * What is there must be what the same calls do to a file: a device has no end to move, and is
 * larger than the image. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "desk.h"
#include "io.h"

struct device {
    struct desk desk;
    char name[64]; /* empty if there is none */
    int fd;        /* keeps it: it goes when the last one closes it, however the test ends */
};

/* `$dev` in commands is the device, of that many bytes. */
static struct device device_open(const char *options, const char *bytes)
{
    struct device device = {.desk = desk_open(), .fd = -1};
    char command[256];
    snprintf(command, sizeof(command), "truncate -s %s disk && losetup %s --find --show disk",
        bytes, options);
    struct proc_result r = desk_run(&device.desk, command);
    if (r.exit_code == 0 && strlen(r.out) < sizeof(device.name)) {
        snprintf(device.name, sizeof(device.name), "%.*s", (int)strcspn(r.out, "\n"), r.out);
        device.fd = open(device.name, O_RDONLY | O_CLOEXEC);
        ck_assert_int_eq(proc_exit("losetup --detach %s", device.name), 0);
        setenv("dev", device.name, 1);
    } else {
        printf("blockdev: skipped, no loop device to be had: %s", r.err);
    }
    proc_free(&r);
    return device;
}

static void device_close(struct device *device)
{
    if (device->fd >= 0)
        close(device->fd);
    desk_close(&device->desk);
}

struct step {
    const char *command;
    int exit_code;
    const char *out, *err; /* what it says, NULL: anything */
};

#define IMAGE                                                       \
    "qemu-img create -q -f qcow2 -o cluster_size=4k $dev 8M && "    \
    "qemu-io -f qcow2 -c 'write -P 5 0 1M' -c 'write -P 9 6M 64k' " \
    "$dev >log && "

/* Both ranges are read, and are as IMAGE wrote them. */
#define PATTERNS                                                            \
    "qemu-io -f qcow2 -c 'read -P 5 0 1M' -c 'read -P 9 6M 64k' $dev >log " \
    "&& grep -c '^read .* bytes at' log | grep -qx 2 "                      \
    "&& grep -c 'Pattern verification failed' log | grep -qx 0"

static const struct step snapshots_on_a_device[] = {
    {.command = IMAGE "qcheck -q $dev"},
    {.command = "qsnap create $dev first"},
    {.command = "qemu-io -f qcow2 -c 'write -P 7 512k 1M' $dev >log"},
    {.command = "qsnap create $dev second && qsnap apply $dev first"},
    {.command = "qsnap delete $dev second"},
    {.command = PATTERNS},
    {.command = "qcheck --deep -q $dev && qemu-img check -q $dev"},
    {.command = "qsnap list $dev | tail -n +3 | wc -l", .out = "1"},
    {0},
};

static const struct step repair_and_its_undo[] = {
    {.command = IMAGE "dd if=/dev/zero of=$dev bs=4k seek=2 count=1 conv=notrunc 2>log"},
    {.command = "cp $dev before"},
    {.command = "qcheck $dev", .exit_code = 2, .out = "refcount-too-low"},
    {.command = "qcheck --repair --undo undo $dev", .out = "clean"},
    {.command = "qemu-img check -q $dev && qcheck -q $dev"},
    {.command = PATTERNS},
    {.command = "cp $dev after && ! cmp -s before after"},
    {.command = "qcheck --repair $dev", .out = "clean"},
    {.command = "cmp $dev after"},
    {.command = "qcheck --rollback undo $dev", .exit_code = 2, .out = "refcount-too-low"},
    {.command = "cmp $dev before"},
    {0},
};

/* There is no end of a device to write behind. */
static const struct step a_device_that_is_full[] = {
    {.command = IMAGE "qcheck -q $dev"},
    {.command = "for i in \\$(seq 400); do qsnap create $dev s\\$i 2>err || break; done"},
    {.command = "cat err", .out = "No space left on device"},
    {.command = "qcheck $dev", .out = "clean"},
    {.command = PATTERNS},
    {0},
};

static const struct step a_device_in_use[] = {
    {.command = IMAGE "true"},
    {.command = "mkfifo go; qemu-io -f qcow2 $dev <go >log & exec 3>go; sleep 0.5; "
                "qsnap create $dev s",
        .exit_code = 1,
        .err = "in use"},
    {0},
};

/* What a device with large sectors cannot discard in small pieces stays as it is. */
static const struct step discards_smaller_than_a_sector[] = {
    {.command = "qemu-img create -q -f qcow2 -o cluster_size=512 file 1M && "
                "qemu-io -f qcow2 -c 'write -P 5 0 64k' file >log && "
                "dd if=file of=$dev conv=notrunc 2>log"},
    {.command = "qsnap create $dev s && qsnap discard $dev 0 1024"},
    {.command = "qsnap delete $dev s && qcheck -q $dev"},
    {0},
};

/* It is one image, whichever node names it: one repair comes after the other. */
static const struct step a_device_with_two_nodes[] = {
    {.command = IMAGE "dd if=/dev/zero of=$dev bs=4k seek=2 count=1 conv=notrunc 2>log"},
    {.command = "mknod node b 0x\\$(stat -c %t $dev) 0x\\$(stat -c %T $dev)"},
    {.command = "qemu-img create -q -f qcow2 file 1M"},
    {.command = "qcheck -j4 --repair $dev file node", .out = "node: clean"},
    {.command = "qcheck -q $dev && qemu-img check -q $dev"},
    {.command = PATTERNS},
    {0},
};

static const struct {
    const char *options, *bytes;
    const struct step *steps; /* up to one without a command */
} sessions[] = {
    {"", "16M", snapshots_on_a_device},
    {"", "16M", repair_and_its_undo},
    {"", "1400k", a_device_that_is_full},
    {"", "16M", a_device_in_use},
    {"", "16M", a_device_with_two_nodes},
    {"--sector-size 4096", "16M", discards_smaller_than_a_sector},
};

START_TEST(a_session_on_a_device)
{
    struct device device = device_open(sessions[_i].options, sessions[_i].bytes);
    for (const struct step *step = sessions[_i].steps; device.name[0] && step->command; step++)
        desk_want(&device.desk, step->command, step->exit_code, step->out ? step->out : "",
            step->err ? step->err : "");
    device_close(&device);
}
END_TEST

/* It neither grows nor shrinks: what fits it is room, what does not is a full device. */
START_TEST(a_device_has_its_size)
{
    struct device device = device_open("", "1M");
    struct io *io;
    uint64_t size;
    if (device.name[0]) {
        ck_assert_int_eq(io_file_open(device.name, IO_FILE_WRITE | IO_FILE_NO_LOCK, &io, NULL), 0);
        ck_assert_int_eq(io_resize(io, 4096), 0);
        ck_assert_int_eq(io_resize(io, 1 << 20), 0);
        ck_assert_int_eq(io_resize(io, (1 << 20) + 1), -ENOSPC);
        ck_assert_int_eq(io_size(io, &size), 0);
        ck_assert_uint_eq(size, 1 << 20);
        io_close(io);
    }
    device_close(&device);
}
END_TEST

Suite *test_blockdev(void);
Suite *test_blockdev(void)
{
    Suite *suite = suite_create("blockdev");
    TCase *calls = tcase_create("calls");
    tcase_set_timeout(calls, 60);
    tcase_add_loop_test(calls, a_session_on_a_device, 0, sizeof(sessions) / sizeof(sessions[0]));
    tcase_add_test(calls, a_device_has_its_size);
    suite_add_tcase(suite, calls);
    return suite;
}
