/* SPDX-License-Identifier: MIT
 *
 * Images on block devices, as storage managers have them: loop devices, where the machine lends
 * them; else these tests say so and pass.
 *
 * What is there must be what the same calls do to a file: a device has no end to move, and is
 * larger than the image. */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "desk.h"

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

#define IMAGE                                                       \
    "qemu-img create -q -f qcow2 -o cluster_size=4k $dev 8M && "    \
    "qemu-io -f qcow2 -c 'write -P 5 0 1M' -c 'write -P 9 6M 64k' " \
    "$dev >log && "
#define PATTERNS "qemu-io -f qcow2 -c 'read -P 5 0 1M' -c 'read -P 9 6M 64k' $dev"

START_TEST(snapshots_on_a_device)
{
    struct device device = device_open("", "16M");
    const struct desk *desk = &device.desk;
    if (device.name[0]) {
        desk_works(desk, IMAGE "qcheck -q $dev");
        desk_works(desk, "qsnap create $dev first");
        desk_works(desk, "qemu-io -f qcow2 -c 'write -P 7 512k 1M' $dev >log");
        desk_works(desk, "qsnap create $dev second && qsnap apply $dev first");
        desk_works(desk, "qsnap delete $dev second");
        desk_works(desk, PATTERNS " | grep -c 'Pattern verification failed' | grep -qx 0");
        desk_works(desk, "qcheck --deep -q $dev && qemu-img check -q $dev");
        desk_want(desk, "qsnap list $dev | tail -n +3 | wc -l", 0, "1", "");
    }
    device_close(&device);
}
END_TEST

START_TEST(repair_and_its_undo)
{
    struct device device = device_open("", "16M");
    const struct desk *desk = &device.desk;
    if (device.name[0]) {
        desk_works(desk, IMAGE "dd if=/dev/zero of=$dev bs=4k seek=2 count=1 conv=notrunc 2>log");
        desk_works(desk, "cp $dev before");
        desk_want(desk, "qcheck $dev", 2, "refcount-too-low", "");
        desk_want(desk, "qcheck --repair --undo undo $dev", 0, "clean", "");
        desk_works(desk, "qemu-img check -q $dev && qcheck -q $dev");
        desk_works(desk, PATTERNS " | grep -c 'Pattern verification failed' | grep -qx 0");
        desk_works(desk, "cp $dev after && ! cmp -s before after");
        desk_want(desk, "qcheck --repair $dev", 0, "clean", "");
        desk_works(desk, "cmp $dev after");
        desk_want(desk, "qcheck --rollback undo $dev", 2, "refcount-too-low", "");
        desk_works(desk, "cmp $dev before");
    }
    device_close(&device);
}
END_TEST

/* There is no end of a device to write behind. */
START_TEST(a_device_that_is_full)
{
    struct device device = device_open("", "1400k");
    const struct desk *desk = &device.desk;
    if (device.name[0]) {
        desk_works(desk, IMAGE "qcheck -q $dev && cp $dev before");
        desk_works(desk, "for i in \\$(seq 400); do qsnap create $dev s\\$i 2>err || break; done");
        desk_want(desk, "cat err", 0, "No space left on device", "");
        desk_want(desk, "qcheck $dev", 0, "clean", "");
        desk_works(desk, PATTERNS " | grep -c 'Pattern verification failed' | grep -qx 0");
    }
    device_close(&device);
}
END_TEST

START_TEST(a_device_in_use)
{
    struct device device = device_open("", "16M");
    const struct desk *desk = &device.desk;
    if (device.name[0]) {
        desk_works(desk, IMAGE "true");
        desk_want(desk,
            "mkfifo go; qemu-io -f qcow2 $dev <go >log & exec 3>go; sleep 0.5; qsnap create $dev s",
            1, "", "in use");
    }
    device_close(&device);
}
END_TEST

/* What a device with large sectors cannot discard in small pieces stays as it is. */
START_TEST(discards_smaller_than_a_sector)
{
    struct device device = device_open("--sector-size 4096", "16M");
    const struct desk *desk = &device.desk;
    if (device.name[0]) {
        desk_works(desk, "qemu-img create -q -f qcow2 -o cluster_size=512 file 1M && "
                         "qemu-io -f qcow2 -c 'write -P 5 0 64k' file >log && "
                         "dd if=file of=$dev conv=notrunc 2>log");
        desk_works(desk, "qsnap create $dev s && qsnap discard $dev 0 1024");
        desk_works(desk, "qsnap delete $dev s && qcheck -q $dev");
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
    tcase_add_test(calls, snapshots_on_a_device);
    tcase_add_test(calls, repair_and_its_undo);
    tcase_add_test(calls, a_device_that_is_full);
    tcase_add_test(calls, a_device_in_use);
    tcase_add_test(calls, discards_smaller_than_a_sector);
    suite_add_tcase(suite, calls);
    return suite;
}
