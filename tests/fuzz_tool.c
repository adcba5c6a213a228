/* SPDX-License-Identifier: MIT
 *
 * fuzz_tool seeds DIR [MAX-BYTES]   one input for each recipe of the corpus
 * fuzz_tool logs DIR                inputs for the importer of logs
 * fuzz_tool recipe INPUT            an input as a recipe
 * fuzz_tool image INPUT FILE        an input as an image
 * fuzz_tool run TARGET INPUT...     inputs through a target, without a fuzzer */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dmlog.h"
#include "fuzz.h"
#include "recipe.h"
#include "rng.h"

enum { INPUT_ROOM = 8 << 20 };

static int read_file(const char *path, uint8_t **data, size_t *size)
{
    FILE *in = fopen(path, "rb");
    *data = in ? malloc(INPUT_ROOM) : NULL;
    *size = *data ? fread(*data, 1, INPUT_ROOM, in) : 0;
    int ret = *data ? 0 : -errno;
    if (in)
        fclose(in);
    return ret;
}

static int write_file(const char *dir, const char *name, const uint8_t *data, size_t size)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *out = fopen(path, "wb");
    if (!out)
        return -errno;
    size_t written = fwrite(data, 1, size, out);
    return fclose(out) == 0 && written == size ? 0 : -EIO;
}

static int seed(const char *recipe_path, const char *dir, const char *name, size_t room)
{
    char error[RECIPE_ERROR_BYTES];
    struct recipe *recipe;
    uint8_t *data = malloc(room);
    size_t size;
    int ret = data ? recipe_load(recipe_path, &recipe, error) : -ENOMEM;
    if (ret == 0) {
        ret = fuzz_pack(recipe_io(recipe), 1, data, room, &size);
        if (ret == 0)
            ret = write_file(dir, name, data, size);
        recipe_free(recipe);
    }
    free(data);
    return ret == -ENOSPC ? 0 : ret; /* too large for a seed */
}

static int seeds(const char *folder, const char *dir, size_t room)
{
    DIR *corpus = opendir(folder);
    int ret = corpus ? 0 : -errno;
    for (struct dirent *entry; ret == 0 && (entry = readdir(corpus));) {
        char path[4096];
        snprintf(path, sizeof(path), "%s/%s/recipe", folder, entry->d_name);
        FILE *there = fopen(path, "r");
        if (!there)
            continue;
        fclose(there);
        ret = seed(path, dir, entry->d_name, room);
    }
    if (corpus)
        closedir(corpus);
    return ret;
}

/* Logs of a few requests, one for each seed. */
static int log_of(uint64_t seed, struct io *log)
{
    enum { REQUESTS = 6, SECTOR = 512 };
    struct rng rng = rng_for(seed, 0);
    struct recording recording = {0};
    struct io *base;
    uint8_t bytes[4 * SECTOR];
    int ret = io_mem_open(0, &base);
    if (ret < 0)
        return ret;
    for (int i = 0; i < REQUESTS && ret == 0; i++) {
        struct request r = {.kind = REQUEST_FLUSH};
        if (rng_chance(&rng, 75)) {
            r.kind = rng_chance(&rng, 75) ? REQUEST_WRITE : REQUEST_DISCARD;
            r.host_off = rng_below(&rng, 64) * SECTOR;
            r.length = (1 + rng_below(&rng, 4)) * SECTOR;
            r.data = r.kind == REQUEST_WRITE ? bytes : NULL;
        }
        memset(bytes, (int)rng_below(&rng, 256), sizeof(bytes));
        ret = recording_add(&recording, &r);
    }
    if (ret == 0)
        ret = dmlog_write(&recording, base, log);
    recording_release(&recording);
    io_close(base);
    return ret;
}

static int logs(const char *dir)
{
    enum { LOGS = 16, ROOM = 64 << 10 };
    uint8_t *data = malloc(ROOM);
    int ret = data ? 0 : -ENOMEM;
    for (uint64_t seed = 0; seed < LOGS && ret == 0; seed++) {
        char name[32];
        uint64_t size = 0;
        struct io *log;
        ret = io_mem_open(0, &log);
        if (ret < 0)
            break;
        ret = log_of(seed, log);
        if (ret == 0)
            ret = io_size(log, &size);
        if (ret == 0)
            ret = io_read(log, 0, data, (size_t)(size < ROOM ? size : ROOM));
        io_close(log);
        snprintf(name, sizeof(name), "log%d", (int)seed);
        if (ret == 0)
            ret = write_file(dir, name, data, (size_t)(size < ROOM ? size : ROOM));
    }
    free(data);
    return ret;
}

static int save_image(const char *input, const char *path)
{
    uint8_t *data;
    size_t size;
    struct fuzz_image image;
    struct io *file = NULL;
    int ret = read_file(input, &data, &size);
    if (ret == 0)
        ret = fuzz_unpack(data, size, &image);
    free(data);
    if (ret < 0)
        return ret;
    uint64_t device = 0, start, end;
    uint8_t buf[4096];
    ret = io_file_open(path, IO_FILE_WRITE | IO_FILE_CREATE | IO_FILE_NO_LOCK, &file, NULL);
    if (ret == 0)
        ret = io_size(image.io, &device);
    if (ret == 0)
        ret = io_resize(file, device);
    for (uint64_t at = 0; ret == 0 && at < device; at = end) {
        ret = io_extents(image.io, at, &start, &end);
        for (at = start; ret == 0 && at < end; at += sizeof(buf)) {
            size_t n = end - at < sizeof(buf) ? (size_t)(end - at) : sizeof(buf);
            ret = io_read(image.io, at, buf, n);
            if (ret == 0)
                ret = io_write(file, at, buf, n);
        }
    }
    io_close(file);
    io_close(image.io);
    return ret;
}

static int print_recipe(const char *input)
{
    uint8_t *data;
    size_t size;
    int ret = read_file(input, &data, &size);
    if (ret == 0)
        ret = fuzz_print_recipe(data, size, stdout);
    free(data);
    return ret;
}

static int run(const char *target, char **inputs, int count)
{
    static const struct {
        const char *name;
        fuzz_target *target;
    } targets[] = {{"check", fuzz_check}, {"repair", fuzz_repair}, {"engine", fuzz_engine},
        {"dmlog", fuzz_dmlog}};
    int broken = 0;
    for (size_t t = 0; t < sizeof(targets) / sizeof(targets[0]); t++) {
        for (int i = 0; i < count && strcmp(targets[t].name, target) == 0; i++) {
            char why[FUZZ_WHY_BYTES] = "";
            uint8_t *data;
            size_t size;
            int ret = read_file(inputs[i], &data, &size);
            if (ret == 0 && !targets[t].target(data, size, why)) {
                printf("%s: %s\n", inputs[i], why);
                broken++;
            }
            free(data);
        }
    }
    return broken ? -EUCLEAN : 0;
}

int main(int argc, char **argv)
{
    enum { SEED_BYTES = 48 << 10 };
    const char *what = argc > 2 ? argv[1] : "";
    int ret = -EINVAL;
    if (strcmp(what, "seeds") == 0)
        ret = seeds("corpus", argv[2], argc > 3 ? strtoul(argv[3], NULL, 0) : SEED_BYTES);
    else if (strcmp(what, "logs") == 0)
        ret = logs(argv[2]);
    else if (strcmp(what, "recipe") == 0)
        ret = print_recipe(argv[2]);
    else if (strcmp(what, "image") == 0 && argc > 3)
        ret = save_image(argv[2], argv[3]);
    else if (strcmp(what, "run") == 0)
        ret = run(argv[2], argv + 3, argc - 3);
    if (ret < 0)
        fprintf(stderr, "fuzz_tool: %s\n", strerror(-ret));
    return ret < 0;
}
