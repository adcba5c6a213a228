/* SPDX-License-Identifier: MIT
 *
 * The command line of the crash harness; see qcrash(1).  One row per command, one per option. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mutants.h"
#include "run.h"
#include "sweep.h"
#include "text.h"

enum { EXIT_BROKEN = 2, LIST_MAX = 64, MUTANT_CAP = 4096, SEQUENCE_MAX = 6, RANDOM_MAX = 100 };

struct call {
    struct run_options run; /* workloads: what follows the command */
    char *images[LIST_MAX], *models[LIST_MAX];
    enum output_style style;
    const char *save;
    struct output output;
};

/* ---- options ------------------------------------------------------------------------------- */

static bool take_count(const char *text, uint64_t *value)
{
    char *end;
    errno = 0;
    *value = strtoull(text, &end, strncmp(text, "0x", 2) == 0 ? 16 : 10);
    return !errno && end != text && *end == '\0' && !strchr(text, '-');
}

/* Up to `most`, one at least. */
static bool take_few(const char *text, uint64_t most, unsigned *value)
{
    uint64_t n;
    if (!take_count(text, &n) || n == 0 || n > most)
        return false;
    *value = (unsigned)n;
    return true;
}

static bool take_random(struct run_options *run, const char *text)
{
    char count[16];
    const char *comma = strchr(text, ',');
    if (!comma || (size_t)(comma - text) >= sizeof(count))
        return false;
    snprintf(count, sizeof(count), "%.*s", (int)(comma - text), text);
    return take_few(count, UINT32_MAX, &run->random_count) &&
           take_few(comma + 1, RANDOM_MAX, &run->random_length);
}

static bool take_budget(struct run_options *run, const char *text)
{
    unsigned seconds;
    if (!take_few(text, UINT32_MAX, &seconds))
        return false;
    run->explore.deadline = monotonic_seconds() + (double)seconds;
    return true;
}

static bool take_style(const char *text, enum output_style *style)
{
    static const char *const names[] = {"human", "json", "tap", "table"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(text, names[i]) == 0) {
            *style = (enum output_style)i;
            return true;
        }
    }
    return false;
}

static bool take_list(char **list, size_t *count, char *value)
{
    if (*count == LIST_MAX)
        return false;
    list[(*count)++] = value;
    return true;
}

static bool take_all_checks(struct explore_options *explore)
{
    explore->check_full = explore->continue_full = explore->repair_full = UINT64_MAX;
    return true;
}

/* By the letters that commands list; `wants` completes "must be". */
static const struct option_row {
    char letter;
    const char *name, *value, *sentence, *wants;
} option_rows[] = {
    {'i', "image", "KIND|FILE", "an image, all of them, or those that are hurt; again for more",
        "one of at most 64"},
    {'m', "model", "NAME|all", "fault model; may be given again (default: sector)",
        "one of at most 64"},
    {'c', "cap", "N", "vectors of an epoch walked one by one (default: 1048576)", "a number"},
    {'n', "samples", "N", "random ones above the cap (default: 4096)", "a number"},
    {'s', "seed", "N", "of everything random (default: 1)", "a number"},
    {'q', "sequences", "N", "all sequences of up to N operations", "1 to 6"},
    {'r', "random", "N,LENGTH", "N random workloads",
        "two numbers with a comma, the second up to 100"},
    {'f', "faults", NULL, "also make every read, write, flush, discard, allocation fail", NULL},
    {'d', "deep", NULL, "every distinct state is checked, used on, repaired", NULL},
    {'t', "budget", "SECONDS", "stop then, and say what was left out", "a number above 0"},
    {'w', "record", "LOG", "write the run's requests as a dm-log-writes log", NULL},
    {'b', "base", "IMAGE", "what the log was recorded on", NULL},
    {'l', "log", "LOG", "a log in the dm-log-writes format", NULL},
    {'v', "save", "FILE", "keep the state as an image", NULL},
    {'O', "output", "STYLE", "human, json, tap or table", "human, json, tap or table"},
};

enum { OPTION_COUNT = sizeof(option_rows) / sizeof(option_rows[0]) };

static bool take_option(struct call *call, char letter, char *value)
{
    struct run_options *run = &call->run;
    switch (letter) {
    case 'i':
        return take_list(call->images, &run->image_count, value);
    case 'm':
        return take_list(call->models, &run->model_count, value);
    case 'c':
        return take_count(value, &run->explore.cap);
    case 'n':
        return take_count(value, &run->explore.samples);
    case 's':
        return take_count(value, &run->explore.seed);
    case 'q':
        return take_few(value, SEQUENCE_MAX, &run->sequences);
    case 'r':
        return take_random(run, value);
    case 'f':
        return run->faults = true;
    case 'd':
        return take_all_checks(&run->explore);
    case 't':
        return take_budget(run, value);
    case 'w':
        return (run->record = value) != NULL;
    case 'b':
        return (run->base = value) != NULL;
    case 'l':
        return (run->log = value) != NULL;
    case 'v':
        return (call->save = value) != NULL;
    default:
        return take_style(value, &call->style);
    }
}

/* ---- commands ------------------------------------------------------------------------------ */

static int do_list(struct call *call)
{
    (void)call;
    puts("workloads:");
    for (size_t i = 0; i < workload_row_count; i++)
        printf("  %-14s %s\n", workload_rows[i].name, workload_rows[i].sentence);
    printf("  %-14s %s\n", "seq-LETTERS",
        "w new, o over, p part, d discard, c create, a apply, x delete, r resize, f flush");
    printf("  %-14s %s\n  %-14s %s\n", "rnd-SEED-N", "N random operations", "a/path",
        "operations from a file");
    puts("images:");
    for (size_t i = 0; i < image_kind_count; i++)
        printf("  %-14s %s\n", image_kinds[i].name, image_kinds[i].sentence);
    for (size_t i = 0; i < image_kind_hurt_count; i++)
        printf("  %-14s %s\n", image_kinds_hurt[i].name, image_kinds_hurt[i].sentence);
    puts("fault models:");
    for (size_t i = 0; i < fault_model_count; i++)
        printf("  %-14s %s%s\n", fault_models[i].name, fault_models[i].sentence,
            fault_models[i].promise == PROMISE_FULL ? "" : " (counted, nothing promised)");
    puts("faults (--faults):");
    for (size_t i = 0; i < sweep_row_count; i++) {
        char name[32];
        sweep_row_name(i, name, sizeof(name));
        printf("  %-16s %s\n", name, sweep_row_sentence(i));
    }
    puts("mutants:");
    for (size_t i = 0; i < mutant_count; i++)
        printf("  %-24s %s\n", mutants[i].name, mutants[i].sentence);
    puts("invariants:");
    for (int i = 1; i < INVARIANT_COUNT; i++)
        printf("  I%-13d %s\n", i, invariant_sentence((enum invariant)i));
    return EXIT_SUCCESS;
}

static int finish(struct call *call, int ret)
{
    struct output *output = &call->output;
    if (ret == 0)
        ret = output_finish(output);
    if (ret == -ENOMEM) /* all else was told where it happened */
        fprintf(stderr, "qcrash: %s\n", strerror(ENOMEM));
    return ret < 0 ? EXIT_FAILURE : output->story_count > 0 ? EXIT_BROKEN : EXIT_SUCCESS;
}

static int do_run(struct call *call)
{
    return finish(call, run_all(&call->run, &call->output));
}

static int do_explore(struct call *call)
{
    if (!call->run.base || !call->run.log) {
        fputs("qcrash: explore needs --base and --log\n", stderr);
        return EXIT_FAILURE;
    }
    return finish(call, run_explore(&call->run, &call->output));
}

static int do_replay(struct call *call)
{
    struct output *output = &call->output;
    int ret = run_replay(call->run.workloads[0], call->save, &call->run, output);
    if (ret < 0 || output->style != OUTPUT_HUMAN)
        return finish(call, ret);
    for (size_t i = 0; i < output->story_count; i++)
        story_print(&output->stories[i], stdout);
    if (output->story_count == 0)
        puts("every promise kept");
    return output->story_count > 0 ? EXIT_BROKEN : EXIT_SUCCESS;
}

static int do_mutants(struct call *call)
{
    unsigned missed;
    struct explore_options options = call->run.explore;
    if (options.cap > MUTANT_CAP) /* a bug that hides longer is not found in time anyway */
        options.cap = options.samples = MUTANT_CAP;
    options.check_full = options.continue_full = 16;
    options.repair_full = 1;
    int ret = mutants_run(&options, stdout, &missed);
    return ret < 0 ? EXIT_FAILURE : missed ? EXIT_BROKEN : EXIT_SUCCESS;
}

static int flushes_on(const struct call *call, const char *image, struct flush_tally *tally)
{
    const struct run_options *run = &call->run;
    size_t count = run->workload_count ? run->workload_count : workload_row_count;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < count; i++)
        ret = flushes_report(run->workload_count ? run->workloads[i] : workload_rows[i].name, image,
            &run->explore, stdout, tally);
    return ret;
}

static int do_flushes(struct call *call)
{
    const char *const usual[] = {"c512"};
    const char *images[RUN_MOST_IMAGES];
    struct flush_tally tally = {0};
    size_t count =
        run_image_names(call->run.image_count ? (const char *const *)call->run.images : usual,
            call->run.image_count ? call->run.image_count : 1, images);
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < count; i++)
        ret = flushes_on(call, images[i], &tally);
    if (ret == 0)
        flushes_print(&tally, stdout);
    return ret < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

static const struct command {
    const char *name, *options; /* letters of option_rows */
    size_t args_min, args_max;
    const char *synopsis;
    int (*run)(struct call *call);
} commands[] = {
    {"run", "imcnsqrfdtwO", 0, SIZE_MAX,
        "[WORKLOAD...] [--image KIND|FILE|all|hurt]... [OPTION]...", do_run},
    {"explore", "blmcnsdtO", 0, 0, "--base IMAGE --log LOG [OPTION]...", do_explore},
    {"replay", "blvO", 1, 1, "ID [--save FILE] [--base IMAGE --log LOG]", do_replay},
    {"flushes", "icns", 0, SIZE_MAX, "[WORKLOAD...] [--image KIND|all|hurt]...", do_flushes},
    {"mutants", "cns", 0, 0, "", do_mutants},
    {"list", "", 0, 0, "", do_list},
};

enum { COMMAND_COUNT = sizeof(commands) / sizeof(commands[0]) };

static void usage(void)
{
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        printf("%s qcrash %-*s%s\n", i ? "      " : "usage:", *commands[i].synopsis ? 9 : 0,
            commands[i].name, commands[i].synopsis);
    puts("       qcrash --help | --version\n");
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        const struct option_row *row = &option_rows[i];
        char left[64];
        snprintf(left, sizeof(left), "--%s %s", row->name, row->value ? row->value : "");
        printf("  %-20s %s\n", left, row->sentence);
    }
}

static const struct command *command_named(const char *name)
{
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    }
    return NULL;
}

static int complain(const char *what, const char *text)
{
    text_line(stderr, "qcrash: %s: %s", what, text);
    fputs("Try 'qcrash --help'.\n", stderr);
    return -1;
}

/* Output that could not be written must not look like success. */
static int finish_output(int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return code;
    fprintf(stderr, "qcrash: writing the output: %s\n", strerror(errno));
    return EXIT_FAILURE;
}

static int parse_option(const struct command *command, struct call *call, size_t idx, char *value)
{
    const struct option_row *row = &option_rows[idx];
    char text[128];
    if (!strchr(command->options, row->letter)) {
        snprintf(text, sizeof(text), "has no option --%s", row->name);
        return complain(command->name, text);
    }
    if (take_option(call, row->letter, value))
        return 0;
    snprintf(text, sizeof(text), "must be %s, not '%.40s'", row->wants, value);
    char name[32];
    snprintf(name, sizeof(name), "--%s", row->name);
    return complain(name, text);
}

/* Each option has a value of its own: of those that begin alike getopt would take any else. */
enum { FIRST_OPTION = 256 };

static int parse(int argc, char **argv, const struct command *command, struct call *call)
{
    struct option options[OPTION_COUNT + 2] = {{0}};
    for (size_t i = 0; i < OPTION_COUNT; i++)
        options[i] = (struct option){option_rows[i].name,
            option_rows[i].value ? required_argument : no_argument, NULL, FIRST_OPTION + (int)i};
    options[OPTION_COUNT] = (struct option){"help", no_argument, NULL, 'h'};
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, ":h", options, NULL)) != -1;) {
        if (c == 'h') {
            usage();
            exit(finish_output(EXIT_SUCCESS));
        }
        if (c < FIRST_OPTION)
            return complain(argv[optind - 1], c == ':' ? "needs a value" : "no such option");
        if (parse_option(command, call, (size_t)(c - FIRST_OPTION), optarg) < 0)
            return -1;
    }
    call->run.workloads = argv + optind;
    call->run.workload_count = (size_t)(argc - optind);
    if (call->run.workload_count < command->args_min)
        return complain(command->name, "something is missing");
    return call->run.workload_count > command->args_max
               ? complain(argv[optind + (int)command->args_max], "too much")
               : 0;
}

int main(int argc, char **argv)
{
    const char *first = argc > 1 ? argv[1] : "";
    const struct command *command = command_named(first);
    if (strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0) {
        usage();
        return finish_output(EXIT_SUCCESS);
    }
    if (strcmp(first, "--version") == 0) {
        puts("qcrash 1.0");
        return finish_output(EXIT_SUCCESS);
    }
    struct call call = {.run = {.explore = explore_options_default()}};
    call.run.images = call.images;
    call.run.models = call.models;
    if (!command) {
        complain(argc > 1 ? first : "no command",
            "must be run, explore, replay, flushes, mutants or list");
        return EXIT_FAILURE;
    }
    if (parse(argc - 1, argv + 1, command, &call) < 0)
        return EXIT_FAILURE;
    call.output = (struct output){.style = call.style,
        .out = stdout,
        .seed = call.run.explore.seed,
        .base = call.run.base,
        .log = call.run.log};
    int code = command->run(&call);
    output_release(&call.output);
    return finish_output(code);
}
