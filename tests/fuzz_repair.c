/* SPDX-License-Identifier: MIT
 *
 * The repair of any image: bounded, never wild; its verdict is that of a fresh check; repairing
 * comes to rest, at once when nothing but leaks remains; the undo log gives back every byte. */
#include <errno.h>
#include <string.h>

#include "fuzz.h"
#include "repair.h"
#include "same.h"

static int repair(struct io *io, uint8_t options)
{
    struct check_options check = {.threads = 1, .deep = options & 1};
    struct repair_options how = {.lossy = options & 2, .leaks_only = (options & 12) == 12};
    struct report report;
    report_init(&report, 100);
    repair_image(io, NULL, &check, &how, &report);
    int exit_code = report_exit_code(&report);
    report_release(&report);
    return exit_code;
}

/* Repairs a copy again; *changed: that made a difference.  The copy replaces *io. */
static int repair_again(struct io **io, uint8_t options, bool *changed)
{
    struct io *copy;
    *changed = false;
    int ret = io_mem_branch(*io, &copy);
    if (ret < 0)
        return ret;
    int exit_code = repair(copy, options);
    *changed = !same_image(copy, *io);
    io_close(*io);
    *io = copy;
    return exit_code;
}

/* Of an image that was repaired: the verdict is true, and nothing is left to do.  Where damage
 * remains, what one repair did may let the next one see more, but that comes to an end. */
static bool is_settled(
    struct io *io, uint8_t options, int exit_code, struct fuzz_io *limits, char why[FUZZ_WHY_BYTES])
{
    enum { MOST_REPAIRS = 4 };
    struct io *again;
    int fresh = fuzz_judge(io, options & 1, NULL);
    if (fresh != exit_code && exit_code != 1)
        return fuzz_broken(why, "the repair says %d, a fresh check %d", exit_code, fresh);
    if (exit_code == 1 || limits->full)
        return true; /* something was in the way: a second repair may get further */
    if (io_mem_branch(io, &again) < 0)
        return true;
    bool good = true, changed = true;
    for (int i = 0; good && changed && i < MOST_REPAIRS; i++) {
        int next = repair_again(&again, options, &changed);
        if (changed && exit_code != 2)
            good = fuzz_broken(why, "repaired (%d), and a second repair changed bytes", exit_code);
        else if (changed ? worse_exit_code(next, exit_code) != exit_code : next != exit_code)
            good = fuzz_broken(why, "repaired (%d), and repaired again %d", exit_code, next);
        exit_code = next;
    }
    if (good && changed)
        good = fuzz_broken(why, "the repair does not come to rest");
    io_close(again);
    return good;
}

static bool comes_back(struct io *image, struct io *log, struct io *old, char why[FUZZ_WHY_BYTES])
{
    int ret = io_undo_rollback(log, image);
    if (ret < 0)
        return fuzz_broken(why, "rolling back: %s", strerror(-ret));
    return same_image(image, old) || fuzz_broken(why, "rolling back left other bytes");
}

bool fuzz_repair(const uint8_t *data, size_t size, char why[FUZZ_WHY_BYTES])
{
    struct fuzz_image image;
    struct fuzz_io device, log_device;
    struct io *old = NULL, *log = NULL, *undo = NULL;
    bool good = true;
    if (fuzz_unpack(data, size, &image) < 0)
        return true;
    if (io_mem_branch(image.io, &old) == 0 && io_mem_open(0, &log) == 0) {
        int before = fuzz_judge(old, image.options & 1, NULL);
        fuzz_io_init(&device, image.io, image.stored);
        fuzz_io_init(&log_device, log, 0);
        if (io_undo_open(&device.io, &log_device.io, &undo) == 0) {
            int exit_code = repair(undo, image.options);
            good = fuzz_io_within(&device, 40, why);
            if (good && device.wild)
                good = fuzz_broken(why, "wrote far behind the end of the device");
            if (good && device.writes > 0 && before == 63 && !(image.options & 2))
                good = fuzz_broken(why, "wrote to an image that a check gave %d", before);
            good = good && is_settled(image.io, image.options, exit_code, &device, why) &&
                   comes_back(image.io, log, old, why);
        }
    }
    io_close(undo);
    io_close(log);
    io_close(old);
    io_close(image.io);
    return good;
}
