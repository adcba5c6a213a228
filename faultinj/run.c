/* SPDX-License-Identifier: MIT
 *
 * See run.h. */
#include "run.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dmlog.h"
#include "mutants.h"
#include "sweep.h"
#include "text.h"

static int load_file(const char *path, struct io **out)
{
    struct io *file;
    int ret = io_file_open(path, IO_FILE_SHARE, &file, NULL);
    if (ret < 0)
        return ret;
    uint64_t size;
    ret = io_size(file, &size);
    if (ret == 0)
        ret = size > HISTORY_MOST_BYTES ? -EFBIG : io_mem_load(file, out);
    io_close(file);
    return ret;
}

int run_build_image(const char *name, struct io **out)
{
    const struct image_kind *kind = image_kind_find(name);
    int ret = kind                               ? image_kind_build(kind, out)
              : strlen(name) >= IMAGE_NAME_BYTES ? -ENAMETOOLONG
                                                 : load_file(name, out);
    if (ret < 0)
        text_line(stderr, "qcrash: image '%s': %s", name, strerror(-ret));
    return ret;
}

static const char *history_error(int ret)
{
    return ret == -EUCLEAN ? "the image is damaged already, or is none; run qcheck"
           : ret == -EFBIG ? "images of more than 4 GiB are not explored"
           : ret == -E2BIG ? "the log has too many flushes for an image of that size"
                           : strerror(-ret);
}

int run_history(const char *workload, const char *image, bool backtraces, struct fault_plan *plan,
    struct history *out)
{
    struct workload w;
    struct io *base;
    char error[WORKLOAD_ERROR_BYTES];
    int ret = workload_find(workload, &w, error);
    if (ret < 0) {
        text_line(stderr, "qcrash: %s", error);
        return ret;
    }
    ret = run_build_image(image, &base);
    if (ret < 0) {
        workload_release(&w);
        return ret;
    }
    ret = history_run(&w, image, base, backtraces, plan, out);
    if (ret < 0) {
        io_close(base);
        text_line(stderr, "qcrash: %s on %s: %s", workload, image, history_error(ret));
    }
    return ret;
}

/* ---- one workload, one image, one model ---------------------------------------------------- */

struct one_run {
    struct history history;
    bool traced; /* the recording has its backtraces */
    const struct fault_model *model;
    const char *suffix; /* of IDs: the mutant, or "" */
    struct output *output;
};

/* The run again, with backtraces; it is the same, request by request. */
static void trace(struct one_run *run)
{
    struct history again;
    run->traced = true;
    if (run_history(run->history.workload.name, run->history.image, true, NULL, &again) < 0)
        return;
    struct recording *to = &run->history.recording;
    for (size_t i = 0; i < to->count && i < again.recording.count; i++) {
        to->list[i].backtrace = again.recording.list[i].backtrace;
        again.recording.list[i].backtrace = NULL;
    }
    history_release(&again);
}

static int tell(void *arg, const struct violation *violation)
{
    struct one_run *run = arg;
    struct story story;
    if (!run->traced)
        trace(run);
    int ret = story_make(&run->history, run->model, violation, run->suffix, &story);
    return ret == 0 ? output_story(run->output, &story) : ret;
}

static int tell_live(struct one_run *run)
{
    const struct history *h = &run->history;
    if (h->live.invariant == INVARIANT_NONE)
        return 0;
    struct story story = {.invariant = h->live.invariant};
    snprintf(
        story.id, sizeof(story.id), "%s@%s/live/%u/p", h->workload.name, h->image, h->live_step);
    snprintf(story.workload, sizeof(story.workload), "%s@%s", h->workload.name, h->image);
    snprintf(story.cut, sizeof(story.cut), "no cut at all: after step %u", h->live_step);
    memcpy(story.message, h->live.text, sizeof(story.message));
    return output_story(run->output, &story);
}

static int run_models(const struct run_options *o, struct one_run *run)
{
    char *const sector[] = {(char *)(uintptr_t) "sector"};
    char *const *names = o->model_count ? o->models : sector;
    size_t count = o->model_count ? o->model_count : 1;
    bool all = strcmp(names[0], "all") == 0;
    int ret = tell_live(run);
    for (size_t i = 0; ret == 0 && i < (all ? fault_model_count : count); i++) {
        struct explore_counts counts = {0};
        run->model = all ? &fault_models[i] : fault_model_find(names[i]);
        if (!run->model) {
            text_line(stderr, "qcrash: there is no model '%s'; see qcrash list", names[i]);
            return -EINVAL;
        }
        ret = explore_run(
            &run->history, &run->history.recording, run->model, &o->explore, &counts, tell, run);
        if (ret == 0)
            output_line(run->output, run->history.workload.name, run->history.image,
                run->model->name, &counts);
        if (counts.out_of_time && !run->output->left_out[0])
            snprintf(run->output->left_out, sizeof(run->output->left_out),
                "from %s on %s under %s on", run->history.workload.name, run->history.image,
                run->model->name);
    }
    return ret;
}

static int record_log(const struct history *h, const char *path);

static int run_one(
    const struct run_options *o, const char *workload, const char *image, struct output *output)
{
    struct one_run run = {.output = output, .suffix = ""};
    if (output->left_out[0])
        return 0;
    if (o->explore.deadline > 0 && monotonic_seconds() > o->explore.deadline) {
        snprintf(
            output->left_out, sizeof(output->left_out), "from %.60s on %s on", workload, image);
        output->total.out_of_time = true;
        return 0;
    }
    int ret = run_history(workload, image, false, NULL, &run.history);
    if (ret < 0)
        return ret;
    ret = run_models(o, &run);
    if (ret == 0 && o->record)
        ret = record_log(&run.history, o->record);
    if (ret == 0 && o->faults)
        ret = sweep_run(&run.history, workload, &o->explore, output);
    history_release(&run.history);
    return ret;
}

/* ---- all of them --------------------------------------------------------------------------- */

size_t run_image_names(const char *const *names, size_t count, const char *out[RUN_MOST_IMAGES])
{
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        bool all = strcmp(names[i], "all") == 0, hurt = strcmp(names[i], "hurt") == 0;
        if (!all && !hurt && n < RUN_MOST_IMAGES)
            out[n++] = names[i];
        for (size_t k = 0; all && k < image_kind_count && n < RUN_MOST_IMAGES; k++)
            out[n++] = image_kinds[k].name;
        for (size_t k = 0; hurt && k < image_kind_hurt_count && n < RUN_MOST_IMAGES; k++)
            out[n++] = image_kinds_hurt[k].name;
    }
    return n;
}

static int run_on_images(const struct run_options *o, const char *workload, struct output *output)
{
    int ret = 0;
    if (o->image_count == 0) {
        struct workload w;
        char error[WORKLOAD_ERROR_BYTES];
        if (workload_find(workload, &w, error) < 0) {
            text_line(stderr, "qcrash: %s", error);
            return -EINVAL;
        }
        ret = run_one(o, workload, w.image[0] ? w.image : "c512", output);
        workload_release(&w);
        return ret;
    }
    const char *names[RUN_MOST_IMAGES];
    size_t count = run_image_names((const char *const *)o->images, o->image_count, names);
    for (size_t i = 0; ret == 0 && i < count; i++)
        ret = run_one(o, workload, names[i], output);
    return ret;
}

/* All words over the letters, shortest first. */
static int run_sequences(const struct run_options *o, struct output *output)
{
    enum { LENGTH_MAX = 6 };
    size_t letters = strlen(workload_letters), count = 0;
    unsigned length = o->sequences < LENGTH_MAX ? o->sequences : LENGTH_MAX;
    int ret = 0;
    for (unsigned n = 1; ret == 0 && n <= length; n++) {
        size_t words = 1;
        for (unsigned i = 0; i < n; i++)
            words *= letters;
        for (size_t word = 0; ret == 0 && word < words; word++, count++) {
            char name[16] = "seq-";
            size_t rest = word;
            for (unsigned i = 0; i < n; i++, rest /= letters)
                name[4 + n - 1 - i] = workload_letters[rest % letters];
            ret = run_on_images(o, name, output);
        }
    }
    if (ret == 0 && output->style == OUTPUT_HUMAN)
        fprintf(output->out, "%zu sequences of up to %u operations\n", count, length);
    return ret;
}

/* What can be told before hours of exploring. */
static int may_record(const struct run_options *o)
{
    const char *names[RUN_MOST_IMAGES];
    bool one = o->workload_count == 1 && o->sequences == 0 && o->random_count == 0 &&
               run_image_names((const char *const *)o->images, o->image_count, names) <= 1;
    if (!one)
        fputs("qcrash: --record takes one workload on one image\n", stderr);
    else if (access(o->record, F_OK) == 0)
        text_line(stderr, "qcrash: %s: %s", o->record, strerror(EEXIST));
    else
        return 0;
    return -EINVAL;
}

int run_all(const struct run_options *o, struct output *output)
{
    int ret = o->record ? may_record(o) : 0;
    if (ret < 0)
        return ret;
    if (o->sequences > 0)
        ret = run_sequences(o, output);
    for (unsigned i = 0; ret == 0 && i < o->random_count; i++) {
        char name[64];
        snprintf(name, sizeof(name), "rnd-%" PRIu64 "-%u", o->explore.seed + i, o->random_length);
        ret = run_on_images(o, name, output);
    }
    for (size_t i = 0; ret == 0 && i < o->workload_count; i++)
        ret = run_on_images(o, o->workloads[i], output);
    if (ret == 0 && o->workload_count == 0 && o->sequences == 0 && o->random_count == 0) {
        for (size_t i = 0; ret == 0 && i < workload_row_count; i++)
            ret = run_on_images(o, workload_rows[i].name, output);
    }
    return ret;
}

/* ---- other programs' logs ------------------------------------------------------------------ */

static int foreign_history(const struct run_options *o, struct history *out)
{
    const char *base_path = o->base, *log_path = o->log;
    struct recording recording;
    struct io *log, *base;
    int ret = io_file_open(log_path, IO_FILE_NO_LOCK, &log, NULL);
    if (ret == 0) {
        ret = dmlog_read(log, &recording);
        io_close(log);
    }
    if (ret < 0) {
        text_line(stderr, "qcrash: log '%s': %s", log_path,
            ret == -EILSEQ    ? "not a dm-log-writes log"
            : ret == -ENODATA ? "ends inside an entry"
            : ret == -EFBIG   ? "logs that write more than 4 GiB, or behind them, are not explored"
                              : strerror(-ret));
        return ret;
    }
    ret = load_file(base_path, &base);
    if (ret < 0) {
        recording_release(&recording);
    } else {
        ret = history_foreign(log_path, base, &recording, o->explore.deadline, out);
        if (ret < 0)
            io_close(base);
    }
    if (ret < 0 && ret != -ETIME)
        text_line(stderr, "qcrash: base '%s': %s", base_path, history_error(ret));
    return ret;
}

int run_explore(const struct run_options *o, struct output *output)
{
    struct one_run run = {.output = output, .suffix = "", .traced = true};
    struct run_options options = *o;
    struct image *img;
    int ret = foreign_history(o, &run.history);
    if (ret == -ETIME) {
        snprintf(output->left_out, sizeof(output->left_out), "all of it");
        output->total.out_of_time = true;
        return 0;
    }
    if (ret < 0)
        return ret;
    /* What our engine cannot open at all cannot be gone on with. */
    ret = image_open(run.history.base, IMAGE_WRITE, &img, NULL);
    if (ret == 0)
        image_abandon(img);
    options.explore.no_continuation = ret < 0;
    if (ret != -ENOMEM)
        ret = run_models(&options, &run);
    history_release(&run.history);
    return ret;
}

/* ---- files that are kept ------------------------------------------------------------------ */

typedef int filler(const void *what, struct io *file);

/* A new file; none is left when it cannot be filled. */
static int keep(const char *path, filler *fill, const void *what)
{
    struct io *file;
    int ret = io_file_open(path, IO_FILE_WRITE | IO_FILE_CREATE | IO_FILE_NO_LOCK, &file, NULL);
    if (ret == 0) {
        ret = fill(what, file);
        if (ret == 0)
            ret = io_flush(file);
        io_close(file);
        if (ret < 0)
            unlink(path);
    }
    if (ret < 0)
        text_line(stderr, "qcrash: %s: %s", path, strerror(-ret));
    return ret;
}

static int fill_with_log(const void *what, struct io *file)
{
    const struct history *h = what;
    return dmlog_write(&h->recording, h->base, file);
}

/* Holes stay holes: it may be a disk of terabytes. */
static int fill_with_base(const void *what, struct io *file)
{
    enum { PIECE = 64 << 10 };
    struct io *base = ((const struct history *)what)->base;
    uint8_t bytes[PIECE];
    uint64_t size, start, end = 0;
    int ret = io_size(base, &size);
    if (ret == 0)
        ret = io_resize(file, size);
    while (ret == 0 && end < size && (ret = io_extents(base, end, &start, &end)) == 0) {
        for (uint64_t n; ret == 0 && start < end; start += n) {
            n = end - start < PIECE ? end - start : PIECE;
            ret = io_read(base, start, bytes, (size_t)n);
            if (ret == 0)
                ret = io_write(file, start, bytes, (size_t)n);
        }
    }
    return ret;
}

static int fill_with_state(const void *what, struct io *file)
{
    const struct state *state = what;
    return io_write(file, 0, state->bytes, (size_t)state->size_bytes);
}

/* The run as a log, and the image it began with beside it. */
static int record_log(const struct history *h, const char *path)
{
    char *base;
    int ret = keep(path, fill_with_log, h);
    if (ret < 0 || asprintf(&base, "%s.base", path) < 0)
        return ret < 0 ? ret : -ENOMEM;
    ret = keep(base, fill_with_base, h);
    if (ret < 0)
        unlink(path);
    free(base);
    return ret;
}

/* ---- again --------------------------------------------------------------------------------- */

/* The recording without one flush. */
static int without_flush(struct history *h, const char *name)
{
    unsigned flush;
    if (sscanf(name, "flush-%u", &flush) != 1)
        return -ENOENT;
    for (size_t i = 0; i < h->recording.count; i++) {
        if (h->recording.list[i].kind == REQUEST_FLUSH && h->recording.list[i].result == 0 &&
            flush-- == 0) {
            recording_remove(&h->recording, i);
            return 0;
        }
    }
    return -ENOENT;
}

int run_replay(
    const char *text, const char *save, const struct run_options *o, struct output *output)
{
    struct story_id id;
    struct one_run run = {.output = output, .traced = true, .suffix = id.mutant};
    struct state *state = NULL;
    if (story_id_parse(text, &id) < 0 ||
        (!(run.model = fault_model_find(id.model)) && strcmp(id.model, "live") != 0)) {
        text_line(stderr, "qcrash: '%s' is not an ID", text);
        return -EINVAL;
    }
    struct fault_plan plan = {0};
    unsigned variant = 0;
    bool faulty = sweep_parse(id.mutant, &plan, &variant);
    bool foreign = strcmp(id.image, "log") == 0 && o->base && o->log;
    const struct mutant *mutant = mutant_find(id.mutant);
    int ret = foreign ? foreign_history(o, &run.history)
              : mutant
                  ? mutant_history(mutant, true, &run.history)
                  : run_history(id.workload, id.image, true, faulty ? &plan : NULL, &run.history);
    if (ret < 0)
        return ret;
    if (strcmp(id.model, "live") == 0)
        ret = tell_live(&run);
    if (ret == 0 && faulty)
        ret = sweep_lose(&run.history.recording, &plan, variant);
    else if (ret == 0 && id.mutant[0] && !mutant)
        ret = without_flush(&run.history, id.mutant);
    if (ret == 0 && run.model)
        ret = explore_replay(&run.history, &run.history.recording, run.model, &o->explore, id.epoch,
            id.choices, &state, tell, &run);
    if (ret == -ENOENT)
        text_line(stderr, "qcrash: '%s': the run has no such state", text);
    if (ret == 0 && save && state)
        ret = keep(save, fill_with_state, state);
    if (ret == 0 && output->style != OUTPUT_HUMAN) {
        const struct explore_counts one = {.legal = 1, .executed = 1, .distinct = 1, .epochs = 1};
        output_line(output, id.workload, id.image, id.model, &one);
    }
    state_close(state);
    history_release(&run.history);
    return ret;
}
