/* SPDX-License-Identifier: MIT
 *
 * See images.h.  What an image has to say is kept until it is its turn. */
#include "images.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crew.h"
#include "progress.h"
#include "text.h"

/* ---- one image ---- */

struct image {
    const struct arguments *args;
    const char *filename;
    FILE *out, *err; /* stdout and stderr, or what is printed there later */
    struct progress_place place;
    struct report report;
};

static void open_failed(struct report *report, int error, const struct io_file_info *info)
{
    if (error == -EBUSY) {
        char holder[80] = "another program";
        if (info->holder_pid) {
            char name[64];
            report_escape(
                (const uint8_t *)info->holder_name, strlen(info->holder_name), name, sizeof(name));
            snprintf(holder, sizeof(holder), "process %ld (%s)", info->holder_pid, name);
        }
        report_problem(report,
            "in use: %s holds the image lock for \"%s\" (byte %d); -U looks at it anyway", holder,
            io_file_lock_name(info->lock_byte), info->lock_byte);
    } else if (error == -ENOTBLK) {
        report_problem(report, "neither a regular file nor a block device");
    } else {
        report_problem(report, "cannot be opened: %s", strerror(-error));
    }
}

/* Puts the undo log under the image; takes both over.  The log must not exist yet: it may be the
 * only way back from an earlier repair. */
static int add_undo(struct report *report, const char *undo, struct io **io)
{
    struct io *log, *layer;
    int ret = io_file_open(undo, IO_FILE_WRITE | IO_FILE_CREATE | IO_FILE_NO_LOCK, &log, NULL);
    if (ret == 0) {
        ret = io_undo_open(*io, log, &layer);
        if (ret < 0) {
            io_close(log);
            unlink(undo); /* it would stand in the way of the next one */
        } else {
            *io = layer;
        }
    }
    if (ret < 0)
        report_problem(report, "the undo log %s cannot be made: %s; nothing was changed", undo,
            strerror(-ret));
    return ret;
}

static void say(FILE *out, const char *before, const char *filename, const char *words)
{
    fputs(before, out);
    text_print(out, filename, strlen(filename), 0);
    fprintf(out, ": %s\n", words);
}

static void repair_one(struct io **io, struct image *image, const struct check_options *options)
{
    const struct arguments *args = image->args;
    struct report *report = &image->report;
    struct repair_options repair = args->repair_options;
    FILE *out = args->json ? image->err : image->out;
    repair.remarks = out;
    repair.edits = args->dry_run || args->style.verbose ? out : NULL;
    struct io *overlay = NULL;
    int ret = 0;
    if (args->dry_run)
        ret = io_overlay_open(*io, &overlay);
    else if (args->undo)
        ret = add_undo(report, args->undo, io);
    if (ret == 0)
        repair_image(overlay ? overlay : *io, image->filename, options, &repair, report);
    else if (args->dry_run)
        report_problem(report, "%s", strerror(-ret));
    if (overlay)
        say(out, "", image->filename,
            "nothing was written (--dry-run); what follows is how it would be");
    io_close(overlay);
}

static void roll_back(struct io *io, const char *undo, struct report *report)
{
    struct io *log;
    int ret = io_file_open(undo, IO_FILE_NO_LOCK, &log, NULL);
    if (ret < 0) {
        report_problem(report, "the undo log %s cannot be opened: %s", undo, strerror(-ret));
        return;
    }
    ret = io_undo_rollback(log, io);
    io_close(log);
    if (ret == -EILSEQ)
        report_problem(report, "%s is no undo log of this image; nothing was changed", undo);
    else if (ret == -ESTALE)
        report_problem(report,
            "the image was changed after the repair that made %s; nothing was changed", undo);
    else if (ret < 0)
        report_problem(report, "rolling back failed: %s; try again", strerror(-ret));
}

static void handle_image(struct io **io, struct image *image)
{
    const struct arguments *args = image->args;
    struct check_options options = args->check;
    struct progress *progress = progress_start(image->filename, args->progress, &image->place);
    if (progress) {
        options.progress = progress_update;
        options.progress_arg = progress;
    }
    options.stop = progress_stop_flag();
    if (args->rollback)
        roll_back(*io, args->rollback, &image->report);
    if (args->repair && !image->report.problem[0])
        repair_one(io, image, &options);
    else
        check_image(*io, image->filename, &options, &image->report);
    progress_end(progress);
}

static bool stop_wanted(void)
{
    return __atomic_load_n(progress_stop_flag(), __ATOMIC_RELAXED) != 0;
}

/* Scripts want an object for each image; people who stop it, nothing more. */
static bool is_left_out(const struct arguments *args)
{
    return stop_wanted() && !args->json;
}

static bool writes(const struct arguments *args)
{
    return (args->repair && !args->dry_run) || args->rollback;
}

static int check_one(struct image *image)
{
    const struct arguments *args = image->args;
    const char *filename = image->filename;
    struct report *report = &image->report;
    struct io *io = NULL;
    struct io_file_info info = {0};
    report_init(report, args->max_findings);
    int ret = 0;
    if (stop_wanted()) {
        report_problem(report, "stopped before it was looked at");
    } else if (strcmp(filename, "-") == 0) {
        report_problem(report, "standard input cannot be checked: an image is read out of order");
    } else {
        unsigned flags = writes(args) ? IO_FILE_WRITE : args->share ? IO_FILE_SHARE : 0;
        ret = io_file_open(filename, flags, &io, &info);
        if (ret < 0)
            open_failed(report, ret, &info);
    }
    if (io) {
        if (info.unlocked)
            say(image->err, "qcheck: ", filename, "has no image locks here; not locked");
        handle_image(&io, image);
        io_close(io);
    }
    ret = 0;
    if (args->json)
        ret = report_print_json(report, filename, image->out);
    else
        report_print(report, filename, &args->style, image->out);
    int exit_code = report_exit_code(report);
    if (ret < 0) {
        say(image->err, "qcheck: the report could not be written: ", filename, strerror(-ret));
        exit_code = 1;
    }
    report_release(report);
    return exit_code;
}

/* ---- several images ---- */

/* What an image had to say, until it is its turn. */
struct said {
    bool done;
    bool lost; /* for want of memory */
    int exit_code;
    char *out, *err;
    size_t out_len, err_len;
};

struct run {
    const struct arguments *args;
    char **names;
    size_t count;
    struct said *said;    /* one an image */
    pthread_mutex_t lock; /* who has it prints; for exit_code, too */
    _Atomic size_t turn;  /* the image whose output is due */
    int exit_code;
};

/* Prints what is complete, in the order of the images. */
static void print_turns(struct run *run)
{
    for (struct said *said; run->turn < run->count && (said = &run->said[run->turn])->done;) {
        if (said->lost) {
            text_line(stderr, "qcheck: %s: %s", run->names[run->turn], strerror(ENOMEM));
        } else {
            fwrite(said->out, 1, said->out_len, stdout);
            fflush(stdout);
            fwrite(said->err, 1, said->err_len, stderr);
        }
        free(said->out);
        free(said->err);
        run->exit_code = worse_exit_code(said->exit_code, run->exit_code);
        run->turn++;
    }
}

/* A stream in memory that could not grow says so only when it is asked. */
static bool closed_whole(FILE *stream)
{
    bool whole = stream && fflush(stream) == 0 && !ferror(stream);
    return (!stream || fclose(stream) == 0) && whole;
}

static void run_image(void *arg, size_t index, unsigned worker)
{
    struct run *run = arg;
    struct said *said = &run->said[index];
    (void)worker;
    struct image image = {.args = run->args,
        .filename = run->names[index],
        .out = open_memstream(&said->out, &said->out_len),
        .err = open_memstream(&said->err, &said->err_len),
        .place = {&run->turn, index}};
    said->exit_code = 1;
    if (!is_left_out(run->args) && image.out && image.err)
        said->exit_code = check_one(&image);
    said->lost = !closed_whole(image.out) || !said->out;
    said->lost |= !closed_whole(image.err) || !said->err; /* the last one to grow may be fclose() */
    if (said->lost)
        said->exit_code = 1;
    pthread_mutex_lock(&run->lock);
    said->done = true;
    print_turns(run);
    pthread_mutex_unlock(&run->lock);
}

static int check_side_by_side(const struct arguments *args, char **names, size_t count)
{
    struct run run = {.args = args,
        .names = names,
        .count = count,
        .said = calloc(count, sizeof(*run.said)),
        .lock = PTHREAD_MUTEX_INITIALIZER};
    struct crew *crew = NULL;
    struct crew_task task = {.job = run_image, .arg = &run, .count = count};
    unsigned helpers = (unsigned)(args->threads < count ? args->threads : count) - 1;
    if (!run.said || crew_open(helpers, &crew) < 0) {
        fprintf(stderr, "qcheck: %s\n", strerror(ENOMEM));
        free(run.said);
        return 1;
    }
    crew_grow(crew, helpers);
    crew_start(crew, &task);
    crew_wait(crew, &task);
    crew_close(crew);
    free(run.said);
    return run.exit_code;
}

static int check_one_by_one(const struct arguments *args, char **names, size_t count)
{
    int exit_code = 0;
    for (_Atomic size_t i = 0; i < count && !is_left_out(args); i++) {
        struct image image = {
            .args = args, .filename = names[i], .out = stdout, .err = stderr, .place = {&i, i}};
        exit_code = worse_exit_code(check_one(&image), exit_code);
    }
    return exit_code;
}

/* What two names may be names of; a block device is its number, wherever its node is. */
struct identity {
    uint64_t dev, ino;
};

static int compare_identities(const void *a, const void *b)
{
    const struct identity *x = a, *y = b;
    if (x->dev != y->dev)
        return x->dev < y->dev ? -1 : 1;
    return (x->ino > y->ino) - (x->ino < y->ino);
}

/* Whether one image is named twice, by whatever names; true also when that cannot be told. */
static bool some_are_one(char **names, size_t count)
{
    struct identity *ids = calloc(count, sizeof(*ids));
    size_t known = 0;
    bool found = !ids;
    for (size_t i = 0; ids && i < count; i++) {
        struct stat st;
        if (stat(names[i], &st) < 0)
            continue; /* opening it says why */
        ids[known++] = S_ISBLK(st.st_mode) ? (struct identity){0, st.st_rdev}
                                           : (struct identity){st.st_dev, st.st_ino};
    }
    if (known > 0)
        qsort(ids, known, sizeof(*ids), compare_identities);
    for (size_t i = 1; i < known && !found; i++)
        found = compare_identities(&ids[i - 1], &ids[i]) == 0;
    free(ids);
    return found;
}

/* Threads go to images first.  Two of them an image at least, where there is more than one at all:
 * reads of slow storage are then waited for by many.  A repair of an image that is named twice
 * comes before the next one of it. */
int images_check(struct arguments *args, char **names, size_t count)
{
    size_t side_by_side = args->threads < count ? args->threads : count;
    if (side_by_side > 1 && writes(args) && some_are_one(names, count))
        side_by_side = 1; /* it would be in its own way */
    args->check.threads = (unsigned)(args->threads / side_by_side);
    if (args->check.threads < 2 && args->threads > 1)
        args->check.threads = 2;
    return side_by_side > 1 ? check_side_by_side(args, names, count)
                            : check_one_by_one(args, names, count);
}
