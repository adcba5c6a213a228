/* SPDX-License-Identifier: MIT
 *
 * The importer of recorded logs on any bytes: bounded; what it has read, written and read again, is
 * the same. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dmlog.h"
#include "fuzz.h"

/* Small enough to be played on an image in memory, in whole sectors. */
static bool is_modest(const struct recording *recording)
{
    enum { SECTOR = 512, MOST = 1 << 24 };
    for (size_t i = 0; i < recording->count; i++) {
        const struct request *r = &recording->list[i];
        if (r->host_off > MOST || r->length > MOST || (r->host_off | r->length) % SECTOR)
            return false;
    }
    return true;
}

static bool same_request(const struct request *a, const struct request *b)
{
    return a->kind == b->kind && a->host_off == b->host_off && a->length == b->length &&
           (a->kind != REQUEST_WRITE || memcmp(a->data, b->data, (size_t)a->length) == 0);
}

/* Requests of no length are not written: they are skipped on both sides. */
static const struct request *next_request(const struct recording *recording, size_t *at)
{
    while (*at < recording->count) {
        const struct request *r = &recording->list[(*at)++];
        if (r->kind == REQUEST_FLUSH || r->length > 0)
            return r;
    }
    return NULL;
}

static bool same_recording(const struct recording *a, const struct recording *b)
{
    size_t i = 0, j = 0;
    const struct request *x, *y;
    do {
        x = next_request(a, &i);
        y = next_request(b, &j);
        if (!x != !y || (x && !same_request(x, y)))
            return false;
    } while (x);
    return true;
}

static bool survives_writing(const struct recording *recording, char why[FUZZ_WHY_BYTES])
{
    struct io *base = NULL, *log = NULL;
    struct recording again = {0};
    bool good = true;
    int ret = io_mem_open(0, &base);
    if (ret == 0)
        ret = io_mem_open(0, &log);
    if (ret == 0)
        ret = dmlog_write(recording, base, log);
    if (ret == 0)
        ret = dmlog_read(log, &again);
    if (ret < 0 && ret != -ENOMEM)
        good = fuzz_broken(why, "written and read again: %s", strerror(-ret));
    else if (ret == 0 && !same_recording(recording, &again))
        good = fuzz_broken(why, "written and read again it is another");
    recording_release(&again);
    io_close(log);
    io_close(base);
    return good;
}

bool fuzz_dmlog(const uint8_t *data, size_t size, char why[FUZZ_WHY_BYTES])
{
    struct io *log;
    struct fuzz_io device;
    struct recording recording = {0};
    bool good = true;
    if (io_mem_open(0, &log) < 0)
        return true;
    int ret = io_write(log, 0, data, size);
    fuzz_io_init(&device, log, size);
    if (ret == 0)
        ret = dmlog_read(&device.io, &recording);
    good = fuzz_io_within(&device, 1, why);
    if (good && device.writes > 0)
        good = fuzz_broken(why, "reading has written");
    if (good && ret == 0 && is_modest(&recording))
        good = survives_writing(&recording, why);
    recording_release(&recording);
    io_close(log);
    return good;
}
