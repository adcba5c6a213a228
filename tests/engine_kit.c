/* SPDX-License-Identifier: MIT
 *
 * See engine_kit.h. */
#include "engine_kit.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"
#include "qcheck.h"

void kit_must(const struct image *img, int ret)
{
    ck_assert_msg(ret == 0, "%s", image_error(img));
}

struct image *kit_open(struct io *io)
{
    struct image *img;
    struct image_error why;
    ck_assert_msg(image_open(io, IMAGE_WRITE, &img, &why) == 0, "%s", why.text);
    return img;
}

struct image *kit_new(uint64_t size_bytes, const char *options, struct io **io)
{
    struct image_options o = image_options_default(size_bytes);
    struct image_error why;
    ck_assert_msg(image_options_parse(options, &o, &why) == 0, "%s", why.text);
    ck_assert_int_eq(io_mem_open(0, io), 0);
    ck_assert_msg(image_create(*io, &o, &why) == 0, "%s", why.text);
    return kit_open(*io);
}

void kit_close(struct image *img, struct io *io)
{
    static const struct check_options options = {.threads = 1};
    struct report report;
    ck_assert_int_eq(image_close(img), 0);
    report_init(&report, 20);
    check_image(io, NULL, &options, &report);
    report_finish(&report);
    if (report_verdict(&report) != VERDICT_CLEAN)
        report_print(&report, "image", &(struct report_style){.verbose = true}, stderr);
    ck_assert_int_eq(report_verdict(&report), VERDICT_CLEAN);
    report_release(&report);
    io_close(io);
}

void kit_put(struct image *img, uint64_t guest_off, int byte, size_t length)
{
    uint8_t *buf = malloc(length + 1);
    memset(buf, byte, length);
    kit_must(img, image_write(img, guest_off, buf, length));
    free(buf);
}

void kit_snap(struct image *img, const char *name)
{
    kit_must(
        img, snapshot_create(img, &(struct snapshot_info){.name = name, .icount = UINT64_MAX}));
}

uint32_t kit_find(struct image *img, const char *id_or_name)
{
    uint32_t idx = 0;
    kit_must(img, snapshot_find(img, id_or_name, &idx));
    return idx;
}

static bool view_is(
    struct image *img, const struct view *view, uint64_t guest_off, int byte, size_t length)
{
    uint8_t *buf = malloc(length + 1);
    kit_must(img, view_read(img, view, guest_off, buf, length));
    bool all = true;
    for (size_t i = 0; i < length; i++)
        all &= buf[i] == byte;
    free(buf);
    return all;
}

bool kit_is(struct image *img, uint64_t guest_off, int byte, size_t length)
{
    struct view view = image_view(img);
    return view_is(img, &view, guest_off, byte, length);
}

bool kit_snap_is(struct image *img, const char *name, uint64_t guest_off, int byte, size_t length)
{
    struct view view;
    kit_must(img, snapshot_view(img, kit_find(img, name), &view));
    bool all = view_is(img, &view, guest_off, byte, length);
    view_close(&view);
    return all;
}

void kit_poke32(struct io *io, uint64_t host_off, uint32_t value)
{
    uint8_t bytes[4];
    store_be32(bytes, value);
    ck_assert_int_eq(io_write(io, host_off, bytes, sizeof(bytes)), 0);
}

void kit_poke64(struct io *io, uint64_t host_off, uint64_t value)
{
    uint8_t bytes[8];
    store_be64(bytes, value);
    ck_assert_int_eq(io_write(io, host_off, bytes, sizeof(bytes)), 0);
}

uint64_t kit_peek64(struct io *io, uint64_t host_off)
{
    uint8_t bytes[8];
    ck_assert_int_eq(io_read(io, host_off, bytes, sizeof(bytes)), 0);
    return load_be64(bytes);
}
