/* SPDX-License-Identifier: MIT
 *
 * The snapshot engine on any image: open, list, read, write, create, apply, delete, discard.  Each
 * call works or says why not; an image that was sound stays sound, at worst with leaks. */
#include <errno.h>
#include <string.h>

#include "fuzz.h"
#include "image.h"
#include "rng.h"
#include "snapshot.h"

enum { STEPS = 6, PIECE_BYTES = 4096 };

static uint64_t some_offset(struct image *img, struct rng *rng)
{
    uint64_t size = image_size(img), near = size < (1 << 20) ? size : 1 << 20;
    if (size == 0)
        return 0;
    return rng_chance(rng, 70) ? rng_below(rng, near) : rng_below(rng, size);
}

static int step_read(struct image *img, struct rng *rng)
{
    uint8_t buf[PIECE_BYTES];
    uint64_t at = some_offset(img, rng), left = image_size(img) - at;
    return image_read(img, at, buf, left < sizeof(buf) ? (size_t)left : sizeof(buf));
}

static int step_write(struct image *img, struct rng *rng)
{
    uint8_t buf[PIECE_BYTES];
    uint64_t at = some_offset(img, rng), left = image_size(img) - at;
    memset(buf, (int)rng_below(rng, 256), sizeof(buf));
    return image_write(img, at, buf, left < sizeof(buf) ? (size_t)left : sizeof(buf));
}

static int step_discard(struct image *img, struct rng *rng)
{
    uint64_t at = some_offset(img, rng), left = image_size(img) - at;
    return image_discard(img, at, left < (1 << 18) ? left : 1 << 18);
}

static int step_create(struct image *img, struct rng *rng)
{
    struct snapshot_info info = {.name = rng_chance(rng, 50) ? "fuzz" : "", .icount = UINT64_MAX};
    return snapshot_create(img, &info);
}

static int step_apply(struct image *img, struct rng *rng)
{
    uint32_t count;
    snapshot_list(img, &count);
    return count > 0 ? snapshot_apply(img, (uint32_t)rng_below(rng, count)) : 0;
}

static int step_delete(struct image *img, struct rng *rng)
{
    uint32_t count;
    snapshot_list(img, &count);
    return count > 0 ? snapshot_delete(img, (uint32_t)rng_below(rng, count)) : 0;
}

static int step_view(struct image *img, struct rng *rng)
{
    uint8_t buf[PIECE_BYTES];
    struct view view;
    uint32_t count;
    snapshot_list(img, &count);
    int ret = count > 0 ? snapshot_view(img, (uint32_t)rng_below(rng, count), &view) : -ENOENT;
    if (ret < 0)
        return 0;
    if (view.size_bytes >= sizeof(buf))
        ret = view_read(
            img, &view, rng_below(rng, view.size_bytes - sizeof(buf) + 1), buf, sizeof(buf));
    view_close(&view);
    return ret;
}

static int step_flush(struct image *img, struct rng *rng)
{
    (void)rng;
    return image_flush(img);
}

typedef int step(struct image *img, struct rng *rng);

/* Runs a few operations; the last error, if any. */
static int operate(struct io *io, uint64_t seed)
{
    static step *const steps[] = {step_read, step_write, step_discard, step_create, step_create,
        step_apply, step_delete, step_view, step_flush};
    struct rng rng = {seed};
    struct image *img;
    int ret = image_open(io, IMAGE_WRITE, &img, NULL), last;
    if (ret < 0)
        return ret;
    for (int i = 0; i < STEPS; i++) {
        last = steps[rng_below(&rng, sizeof(steps) / sizeof(steps[0]))](img, &rng);
        ret = last < 0 ? last : ret;
    }
    last = image_close(img);
    return last < 0 ? last : ret;
}

/* Leaks that look like lost tables are told as damage, and whether they do depends on what is
 * around them.  VM state that an apply has brought along stays when its snapshot is deleted, and is
 * known by how it begins, if it does. */
static bool is_left_over(int check)
{
    return check == CHECK_l1_entry_past_end || check == CHECK_orphan_l2_table ||
           check == CHECK_orphan_l1_table || check == CHECK_orphan_snapshot_table ||
           check == CHECK_l1_hole;
}

/* The name of a check that found other damage, or why nothing is known; NULL: sound. */
static const char *damage_of(struct io *io, bool *leaks)
{
    struct report report;
    int exit_code = fuzz_judge(io, true, &report);
    const char *name = exit_code == 1 || exit_code == 63 ? "not judged" : NULL;
    for (int check = 0; check < CHECK_COUNT && !name; check++) {
        enum tally tally = check_rows[check].tally;
        if (report.hits[check] > 0 && !is_left_over(check) &&
            (tally == TALLY_CORRUPTION_OWN || tally == TALLY_CORRUPTION_QEMU))
            name = check_rows[check].name;
    }
    /* Counts behind the end of the file leak as soon as it is longer. */
    *leaks = report.leaks > 0 || report.hits[CHECK_refcount_past_end] > 0;
    report_release(&report);
    return name;
}

bool fuzz_engine(const uint8_t *data, size_t size, char why[FUZZ_WHY_BYTES])
{
    struct fuzz_image image;
    struct fuzz_io device;
    if (fuzz_unpack(data, size, &image) < 0)
        return true;
    bool leaks_before, leaks_after;
    const char *before = damage_of(image.io, &leaks_before);
    fuzz_io_init(&device, image.io, image.stored);
    int ret = operate(&device.io, image.options);
    bool good = fuzz_io_within(&device, 2, why);
    const char *after = damage_of(image.io, &leaks_after);
    if (good && !before && after)
        good = fuzz_broken(
            why, "a sound image is damaged: %s (last error: %s)", after, strerror(-ret));
    if (good && !before && !leaks_before && leaks_after && ret == 0)
        good = fuzz_broken(why, "leaks, and no operation had failed");
    io_close(image.io);
    return good;
}
