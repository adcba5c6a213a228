/* SPDX-License-Identifier: MIT
 *
 * qsnap: the snapshot engine's command line; see qsnap(1).  One row per command. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backing.h"
#include "diff.h"
#include "image.h"
#include "listing.h"
#include "options.h"
#include "snapshot.h"
#include "text.h"

enum { COPY_BYTES = 1 << 20 };

struct call {
    const char *path;
    char **args; /* what follows the image */
    int arg_count;
    const char *id, *from, *options;
    uint64_t pattern;
    bool json, force_share, has_pattern;
    struct io *io;
    struct image *img;
};

static int complain(const char *path, const char *text)
{
    text_line(stderr, "qsnap: %s: %s", path, text); /* it may have names from the image */
    return -1;
}

static int parse_size(const char *text, uint64_t *value)
{
    return size_parse(text, value) < 0 ? complain(text, "not a size (a number with k, M, G or T)")
                                       : 0;
}

/* Disks have whole sectors: rounded up, as qemu-img does. */
static int parse_disk_size(const char *text, uint64_t *value)
{
    if (parse_size(text, value) < 0)
        return -1;
    if (*value > UINT64_MAX - 511)
        return complain(text, "too large");
    *value = div_up(*value, 512) * 512;
    return 0;
}

static int engine_failed(const struct call *call)
{
    return complain(call->path, image_error(call->img));
}

static int find(struct call *call, const char *key, uint32_t *idx)
{
    return snapshot_find(call->img, key, idx) < 0 ? engine_failed(call) : 0;
}

/* ---- snapshots ----------------------------------------------------------------------------- */

static int do_create(struct call *call)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct snapshot_info info = {.name = call->args[0],
        .id = call->id,
        .date_sec = (uint32_t)now.tv_sec,
        .date_nsec = (uint32_t)now.tv_nsec,
        .icount = UINT64_MAX};
    return snapshot_create(call->img, &info) < 0 ? engine_failed(call) : 0;
}

static int do_apply(struct call *call)
{
    uint32_t idx;
    if (find(call, call->args[0], &idx) < 0)
        return -1;
    return snapshot_apply(call->img, idx) < 0 ? engine_failed(call) : 0;
}

static int do_delete(struct call *call)
{
    uint32_t idx;
    if (find(call, call->args[0], &idx) < 0)
        return -1;
    return snapshot_delete(call->img, idx) < 0 ? engine_failed(call) : 0;
}

static int do_list(struct call *call)
{
    uint32_t count;
    const struct qcow2_snapshot *list = snapshot_list(call->img, &count);
    int ret = call->json ? listing_json(list, count, stdout) : listing_print(list, count, stdout);
    return ret < 0 ? complain(call->path, strerror(-ret)) : 0;
}

static int view_of(struct call *call, const char *key, struct view *view)
{
    uint32_t idx;
    if (find(call, key, &idx) < 0)
        return -1;
    return snapshot_view(call->img, idx, view) < 0 ? engine_failed(call) : 0;
}

static int do_export(struct call *call)
{
    struct view view;
    struct io *out;
    if (view_of(call, call->args[0], &view) < 0)
        return -1;
    int ret =
        io_file_open(call->args[1], IO_FILE_WRITE | IO_FILE_CREATE | IO_FILE_NO_LOCK, &out, NULL);
    if (ret < 0) {
        ret = complain(call->args[1], strerror(-ret));
    } else {
        ret = export_raw(call->img, &view, out) < 0 ? engine_failed(call) : 0;
        io_close(out);
        if (ret < 0)
            unlink(call->args[1]);
    }
    view_close(&view);
    return ret;
}

static int print_range(void *arg, uint64_t guest_off, uint64_t length)
{
    (void)arg;
    return printf("0x%" PRIx64 " 0x%" PRIx64 "\n", guest_off, length) < 0 ? -errno : 0;
}

static int do_diff(struct call *call)
{
    struct view a, b = image_view(call->img), own = {0};
    if (view_of(call, call->args[0], &a) < 0)
        return -1;
    int ret = call->arg_count > 1 ? view_of(call, call->args[1], &own) : 0;
    if (own.l1)
        b = own;
    if (ret == 0 && diff_views(call->img, &a, &b, print_range, NULL) < 0)
        ret = engine_failed(call);
    view_close(&a);
    view_close(&own);
    return ret;
}

/* ---- the active disk ----------------------------------------------------------------------- */

/* Long ranges go in pieces: what cannot be done is seen before the first. */
static int parse_range(struct call *call, uint64_t *guest_off, uint64_t *length)
{
    uint64_t end, size = image_size(call->img);
    if (parse_size(call->args[0], guest_off) < 0 || parse_size(call->args[1], length) < 0)
        return -1;
    if (!range_end(*guest_off, *length, &end) || end > size)
        return complain(call->path, "the range passes the end of the disk");
    return 0;
}

static FILE *open_source(const char *path, uint64_t length)
{
    FILE *from = fopen(path, "rbe");
    struct stat st;
    if (!from) {
        complain(path, strerror(errno));
        return NULL;
    }
    if (fstat(fileno(from), &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size < length) {
        complain(path, "shorter than the range");
        fclose(from);
        return NULL;
    }
    return from;
}

static int do_read(struct call *call)
{
    uint64_t at, length;
    if (parse_range(call, &at, &length) < 0)
        return -1;
    uint8_t *buf = malloc(COPY_BYTES);
    int ret = buf ? 0 : complain(call->path, "out of memory");
    while (ret == 0 && length > 0) {
        size_t piece = length < COPY_BYTES ? (size_t)length : COPY_BYTES;
        if (image_read(call->img, at, buf, piece) < 0)
            ret = engine_failed(call);
        else if (fwrite(buf, 1, piece, stdout) != piece)
            ret = complain("stdout", strerror(errno));
        at += piece, length -= piece;
    }
    free(buf);
    return ret;
}

static int do_write(struct call *call)
{
    uint64_t at, length;
    if (parse_range(call, &at, &length) < 0)
        return -1;
    FILE *from = call->from ? open_source(call->from, length) : NULL;
    if (call->from && !from)
        return -1;
    uint8_t *buf = malloc(COPY_BYTES);
    int ret = buf ? 0 : complain(call->path, "out of memory");
    if (buf)
        memset(buf, (int)call->pattern, COPY_BYTES);
    while (ret == 0 && length > 0) {
        size_t piece = length < COPY_BYTES ? (size_t)length : COPY_BYTES;
        if (from && fread(buf, 1, piece, from) != piece)
            ret = complain(call->from, ferror(from) ? strerror(errno) : "shorter than the range");
        else if (image_write(call->img, at, buf, piece) < 0)
            ret = engine_failed(call);
        at += piece, length -= piece;
    }
    if (from)
        fclose(from);
    free(buf);
    return ret;
}

static int do_discard(struct call *call)
{
    uint64_t at, length;
    if (parse_range(call, &at, &length) < 0)
        return -1;
    return image_discard(call->img, at, length) < 0 ? engine_failed(call) : 0;
}

static int do_resize(struct call *call)
{
    uint64_t size;
    if (parse_disk_size(call->args[0], &size) < 0)
        return -1;
    return image_resize(call->img, size) < 0 ? engine_failed(call) : 0;
}

/* ---- new images ---------------------------------------------------------------------------- */

static int do_new(struct call *call)
{
    uint64_t size;
    struct image_error why;
    if (parse_disk_size(call->args[0], &size) < 0)
        return -1;
    struct image_options options = image_options_default(size);
    if (call->options && image_options_parse(call->options, &options, &why) < 0)
        return complain(call->options, why.text);
    int ret = io_file_open(call->path, IO_FILE_WRITE | IO_FILE_CREATE, &call->io, NULL);
    if (ret < 0)
        return complain(call->path, strerror(-ret));
    if (image_create(call->io, &options, &why) == 0)
        return 0;
    unlink(call->path);
    return complain(call->path, why.text);
}

/* ---- main ---------------------------------------------------------------------------------- */

enum access { READS, WRITES, MAKES };

static const struct command {
    const char *name;
    enum access access;
    bool data;              /* guest data is read, or made where there was none */
    const char *options;    /* letters of those it takes, as parse_call() has them */
    int args_min, args_max; /* after the image */
    const char *synopsis;
    int (*run)(struct call *call);
} commands[] = {
    {"create", WRITES, false, "i", 1, 1, "IMAGE NAME [--id ID]", do_create},
    {"apply", WRITES, false, "", 1, 1, "IMAGE ID|NAME", do_apply},
    {"delete", WRITES, false, "", 1, 1, "IMAGE ID|NAME", do_delete},
    {"list", READS, false, "OU", 0, 0, "IMAGE [--output=human|json] [-U]", do_list},
    {"export", READS, true, "U", 2, 2, "IMAGE ID|NAME FILE [-U]", do_export},
    {"diff", READS, true, "U", 1, 2, "IMAGE A [B] [-U]", do_diff},
    {"new", MAKES, false, "o", 1, 1, "IMAGE SIZE [-o key=value,...]", do_new},
    {"read", READS, true, "U", 2, 2, "IMAGE OFFSET LENGTH [-U]", do_read},
    {"write", WRITES, true, "pf", 2, 2, "IMAGE OFFSET LENGTH [--pattern BYTE | --from FILE]",
        do_write},
    {"discard", WRITES, false, "", 2, 2, "IMAGE OFFSET LENGTH", do_discard},
    {"resize", WRITES, true, "", 1, 1, "IMAGE SIZE", do_resize},
};

static void usage(FILE *out)
{
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        fprintf(out, "%s qsnap %-8s %s\n", i ? "      " : "usage:", commands[i].name,
            commands[i].synopsis);
    fputs("       qsnap --help | --version\n\n"
          "  -U, --force-share  also an image that another program has open\n",
        out);
}

static const struct command *command_named(const char *name)
{
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    }
    return NULL;
}

/* Output that could not be written must not look like success. */
static int finish_output(int ret)
{
    if (fflush(stdout) != 0 && ret == 0)
        ret = complain("stdout", strerror(errno));
    return ret < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

static const struct option long_options[] = {{"id", required_argument, NULL, 'i'},
    {"output", required_argument, NULL, 'O'}, {"pattern", required_argument, NULL, 'p'},
    {"from", required_argument, NULL, 'f'}, {"force-share", no_argument, NULL, 'U'},
    {"help", no_argument, NULL, 'h'}, {0}};

/* What getopt_long() stopped at. */
static void not_understood(const struct command *command, int c, char *word)
{
    char letter[] = {'-', (char)(c == '?' ? optopt : c), '\0'};
    const char *dashes = "", *name = letter[1] ? letter : word;
    for (const struct option *o = long_options; o->name; o++) {
        if (o->val == letter[1])
            dashes = "--", name = o->name;
    }
    text_line(stderr, "qsnap: no such option or value here: %s%s; usage: qsnap %s %s", dashes, name,
        command->name, command->synopsis);
}

static int parse_call(int argc, char **argv, const struct command *command, struct call *call)
{
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "o:Uh", long_options, NULL)) != -1;) {
        if (c != 'h' && !strchr(command->options, c)) { /* '?' is in none */
            not_understood(command, c, argv[optind - 1]);
            return -1;
        }
        switch (c) {
        case 'i':
            call->id = optarg;
            break;
        case 'O':
            call->json = strcmp(optarg, "json") == 0;
            if (!call->json && strcmp(optarg, "human") != 0)
                return complain(optarg, "not an output format (human or json)");
            break;
        case 'p':
            call->has_pattern = true;
            if (parse_size(optarg, &call->pattern) < 0)
                return -1;
            if (call->pattern > UINT8_MAX)
                return complain(optarg, "not a byte");
            break;
        case 'f':
            call->from = optarg;
            break;
        case 'o':
            call->options = optarg;
            break;
        case 'U':
            call->force_share = true;
            break;
        default:
            usage(stdout);
            exit(finish_output(0));
        }
    }
    if (call->has_pattern && call->from)
        return complain(call->from, "--from and --pattern exclude each other");
    call->path = argv[optind];
    call->args = argv + optind + 1;
    call->arg_count = argc - optind - 1;
    return 0;
}

static unsigned flags_for_reading(const struct call *call)
{
    return call->force_share ? IO_FILE_SHARE : 0;
}

static int open_image(struct call *call, bool write)
{
    struct io_file_info info;
    struct image_error why;
    unsigned flags = write ? IO_FILE_WRITE : flags_for_reading(call);
    int ret = io_file_open(call->path, flags, &call->io, &info);
    if (ret == -EBUSY) {
        snprintf(why.text, sizeof(why.text), "in use by %s (process %ld), which holds the %s lock",
            info.holder_name[0] ? info.holder_name : "another program", info.holder_pid,
            io_file_lock_name(info.lock_byte));
        return complain(call->path, why.text);
    }
    if (ret < 0)
        return complain(call->path, strerror(-ret));
    if (write && info.unlocked)
        complain(call->path, "no locks here: make sure nobody else uses it");
    if (image_open(call->io, write ? IMAGE_WRITE : 0, &call->img, &why) < 0)
        return complain(call->path, why.text);
    return 0;
}

static int run(const struct command *command, struct call *call)
{
    if (command->access == MAKES)
        return command->run(call);
    int ret = open_image(call, command->access == WRITES);
    if (ret < 0)
        return ret;
    if (command->data && backing_open(call->img, call->path, flags_for_reading(call)) < 0)
        ret = engine_failed(call);
    if (ret == 0)
        ret = command->run(call);
    if (command->access == READS) {
        image_abandon(call->img);
    } else {
        int closed = image_close(call->img);
        if (closed < 0 && ret == 0)
            ret = complain(call->path, strerror(-closed));
    }
    return ret;
}

int main(int argc, char **argv)
{
    const struct command *command = argc > 1 ? command_named(argv[1]) : NULL;
    if (!command) {
        bool help = argc > 1 && strcmp(argv[1], "--help") == 0;
        bool version = argc > 1 && strcmp(argv[1], "--version") == 0;
        if (version)
            puts("qsnap 1.0");
        else
            usage(help ? stdout : stderr);
        return help || version ? finish_output(0) : EXIT_FAILURE;
    }
    signal(SIGXFSZ, SIG_IGN); /* a write past the limit fails, as on a full disk */
    struct call call = {0};
    if (parse_call(argc - 1, argv + 1, command, &call) < 0)
        return EXIT_FAILURE;
    if (call.arg_count < command->args_min || call.arg_count > command->args_max) {
        fprintf(stderr, "usage: qsnap %s %s\n", command->name, command->synopsis);
        return EXIT_FAILURE;
    }
    int ret = run(command, &call);
    io_close(call.io);
    return finish_output(ret);
}
