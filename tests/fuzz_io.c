/* SPDX-License-Identifier: MIT
 *
 * What one input may cost.  The limits are of a plain build; sanitizers make everything slower and
 * larger by about the factors below. */
#include <errno.h>
#include <malloc.h>
#include <stdarg.h>
#include <time.h>

#include "fuzz.h"

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

#ifdef SANITIZED
size_t __sanitizer_get_current_allocated_bytes(void); /* gcc has no header for it */
enum { SLOWER = 15, LARGER = 2 };
static uint64_t memory_now(void)
{
    return __sanitizer_get_current_allocated_bytes();
}
#else
enum { SLOWER = 1, LARGER = 1 };
static uint64_t memory_now(void)
{
    struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}
#endif

enum {
    SAMPLE = 32,            /* calls from one look at the memory to the next */
    MEMORY_BASE = 96 << 20, /* buffers, census, tables of the largest size that is allowed */
    MEMORY_PER_BYTE = 16,
};
#define CPU_BASE    2.0 /* seconds */
#define CPU_PER_MIB 0.5

static double cpu_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static struct fuzz_io *self(struct io *io)
{
    return (struct fuzz_io *)io;
}

static void sample(struct fuzz_io *fuzz)
{
    if (fuzz->calls++ % SAMPLE == 0) {
        uint64_t memory = memory_now();
        fuzz->memory_peak = memory > fuzz->memory_peak ? memory : fuzz->memory_peak;
    }
}

static int fuzz_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    sample(self(io));
    return io_read(self(io)->next, host_off, buf, length);
}

static int fuzz_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    struct fuzz_io *fuzz = self(io);
    uint64_t size;
    sample(fuzz);
    fuzz->writes++;
    int ret = io_size(fuzz->next, &size);
    if (ret < 0)
        return ret;
    if (host_off > size && host_off - size > 16 * (uint64_t)FUZZ_GROWTH)
        fuzz->wild = true;
    uint64_t end = host_off + length;
    if (end > FUZZ_MAX_HOST || (end > fuzz->size_before && end - fuzz->size_before > FUZZ_GROWTH)) {
        fuzz->full = true;
        return -ENOSPC;
    }
    ret = io_write(fuzz->next, host_off, buf, length);
    fuzz->full |= ret < 0;
    return ret;
}

static int fuzz_flush(struct io *io)
{
    return io_flush(self(io)->next);
}

static int fuzz_size(struct io *io, uint64_t *size_bytes)
{
    return io_size(self(io)->next, size_bytes);
}

static int fuzz_resize(struct io *io, uint64_t size_bytes)
{
    struct fuzz_io *fuzz = self(io);
    fuzz->writes++;
    if (size_bytes > fuzz->size_before && size_bytes - fuzz->size_before > FUZZ_GROWTH) {
        fuzz->full = true;
        return -ENOSPC;
    }
    return io_resize(fuzz->next, size_bytes);
}

static int fuzz_discard(struct io *io, uint64_t host_off, uint64_t length)
{
    self(io)->writes++;
    return io_discard(self(io)->next, host_off, length);
}

static int fuzz_extents(struct io *io, uint64_t host_off, uint64_t *start, uint64_t *end)
{
    return io_extents(self(io)->next, host_off, start, end);
}

static void fuzz_close(struct io *io)
{
    (void)io;
}

static const struct io_ops fuzz_ops = {
    .read = fuzz_read,
    .write = fuzz_write,
    .flush = fuzz_flush,
    .size = fuzz_size,
    .resize = fuzz_resize,
    .discard = fuzz_discard,
    .extents = fuzz_extents,
    .close = fuzz_close,
};

void fuzz_io_init(struct fuzz_io *io, struct io *next, uint64_t stored_bytes)
{
    *io = (struct fuzz_io){
        .io = {.ops = &fuzz_ops},
        .next = next,
        .stored = stored_bytes,
        .memory_before = memory_now(),
        .cpu_before = cpu_now(),
    };
    (void)io_size(next, &io->size_before);
}

bool fuzz_broken(char why[FUZZ_WHY_BYTES], const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(why, FUZZ_WHY_BYTES, format, args);
    va_end(args);
    return false;
}

bool fuzz_io_within(struct fuzz_io *io, unsigned passes, char why[FUZZ_WHY_BYTES])
{
    double cpu = cpu_now() - io->cpu_before;
    double most = (CPU_BASE + CPU_PER_MIB * (double)io->stored / (1 << 20)) * passes * SLOWER;
    uint64_t memory = io->memory_peak > io->memory_before ? io->memory_peak - io->memory_before : 0;
    uint64_t room = (MEMORY_BASE + MEMORY_PER_BYTE * io->stored) * LARGER;
    if (io->writes > 0) /* what the device grows by is in memory, too, and in an undo log */
        room += 2 * (uint64_t)FUZZ_GROWTH * LARGER;
    if (cpu > most)
        return fuzz_broken(why, "took %.1f s, allowed are %.1f", cpu, most);
    if (memory > room)
        return fuzz_broken(why, "took %llu bytes, allowed are %llu", (unsigned long long)memory,
            (unsigned long long)room);
    return true;
}
