/* SPDX-License-Identifier: MIT
 *
 * The command line of the crash harness. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mutants.h"
#include "run.h"
#include "sweep.h"

enum { EXIT_BROKEN = 2, LIST_MAX = 64, MUTANT_CAP = 4096 };

enum option_code {
    OPT_IMAGE = 256,
    OPT_MODEL,
    OPT_CAP,
    OPT_SAMPLES,
    OPT_SEED,
    OPT_BUDGET,
    OPT_OUTPUT,
    OPT_RECORD,
    OPT_SEQUENCES,
    OPT_RANDOM,
    OPT_SAVE,
    OPT_BASE,
    OPT_LOG,
    OPT_DEEP,
    OPT_FAULTS,
    OPT_HELP,
    OPT_VERSION,
};

static const struct option long_options[] = {
    {"image", required_argument, NULL, OPT_IMAGE},
    {"model", required_argument, NULL, OPT_MODEL},
    {"cap", required_argument, NULL, OPT_CAP},
    {"samples", required_argument, NULL, OPT_SAMPLES},
    {"seed", required_argument, NULL, OPT_SEED},
    {"budget", required_argument, NULL, OPT_BUDGET},
    {"output", required_argument, NULL, OPT_OUTPUT},
    {"record", required_argument, NULL, OPT_RECORD},
    {"sequences", required_argument, NULL, OPT_SEQUENCES},
    {"random", required_argument, NULL, OPT_RANDOM},
    {"save", required_argument, NULL, OPT_SAVE},
    {"base", required_argument, NULL, OPT_BASE},
    {"log", required_argument, NULL, OPT_LOG},
    {"faults", no_argument, NULL, OPT_FAULTS},
    {"deep", no_argument, NULL, OPT_DEEP},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {0},
};

struct command_line {
    struct run_options run;
    char *images[LIST_MAX], *models[LIST_MAX];
    enum output_style style;
    const char *save;
    bool done; /* help or version was all */
};

static void usage(FILE *out)
{
    fprintf(out,
        "qcrash run [WORKLOAD...] [--image KIND|FILE|all]... [OPTION]...\n"
        "qcrash explore --base IMAGE --log LOG [OPTION]...\n"
        "qcrash replay ID [--save FILE] [--base IMAGE --log LOG]\n"
        "qcrash mutants\n"
        "qcrash flushes [WORKLOAD...] [--image KIND]\n"
        "qcrash list\n\n"
        "  --model NAME|all     fault model; may be given again (default: sector)\n"
        "  --cap N              vectors of an epoch walked one by one (default: 1048576)\n"
        "  --samples N          random ones above the cap (default: 4096)\n"
        "  --seed N             of everything random (default: 1)\n"
        "  --sequences N        all sequences of up to N operations\n"
        "  --random N,LENGTH    N random workloads\n"
        "  --faults             also make every read, write, flush, discard, allocation fail\n"
        "  --deep               every distinct state is checked, used on, repaired\n"
        "  --budget SECONDS     stop then, and say what was left out\n"
        "  --record LOG         write the run's requests as a dm-log-writes log\n"
        "  --output human|json|tap|table\n");
}

static bool number(const char *text, uint64_t *value)
{
    char *end;
    errno = 0;
    *value = strtoull(text, &end, 0);
    return !errno && end != text && *end == '\0' && *text != '-';
}

static bool take_random(struct run_options *run, const char *text)
{
    return sscanf(text, "%u,%u", &run->random_count, &run->random_length) == 2 &&
           run->random_length > 0 && run->random_length <= 100;
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

static bool take_option(struct command_line *line, int code, char *value)
{
    struct run_options *run = &line->run;
    uint64_t n = 0;
    switch (code) {
    case OPT_IMAGE:
        return take_list(line->images, &run->image_count, value);
    case OPT_MODEL:
        return take_list(line->models, &run->model_count, value);
    case OPT_CAP:
        return number(value, &run->explore.cap);
    case OPT_SAMPLES:
        return number(value, &run->explore.samples);
    case OPT_SEED:
        return number(value, &run->explore.seed);
    case OPT_BUDGET:
        if (!number(value, &n) || n == 0)
            return false;
        run->explore.deadline = monotonic_seconds() + (double)n;
        return true;
    case OPT_OUTPUT:
        return take_style(value, &line->style);
    case OPT_RECORD:
        run->record = value;
        return true;
    case OPT_SEQUENCES:
        if (!number(value, &n) || n == 0 || n > 6)
            return false;
        run->sequences = (unsigned)n;
        return true;
    case OPT_RANDOM:
        return take_random(run, value);
    case OPT_SAVE:
        line->save = value;
        return true;
    case OPT_BASE:
        run->base = value;
        return true;
    case OPT_LOG:
        run->log = value;
        return true;
    case OPT_FAULTS:
        run->faults = true;
        return true;
    case OPT_DEEP:
        run->explore.check_full = run->explore.continue_full = UINT64_MAX;
        run->explore.repair_full = UINT64_MAX;
        return true;
    default:
        return false;
    }
}

static bool parse(int argc, char **argv, struct command_line *line)
{
    int code;
    line->run.explore = explore_options_default();
    line->run.images = line->images;
    line->run.models = line->models;
    while ((code = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
        if (code == 'h' || code == OPT_HELP || code == OPT_VERSION) {
            line->done = true;
            code == OPT_VERSION ? (void)puts("qcrash 1.0") : usage(stdout);
            return true;
        }
        if (!take_option(line, code, optarg)) {
            if (code != '?')
                fprintf(stderr, "qcrash: wrong value '%s'\n", optarg);
            return false;
        }
    }
    return true;
}

static void list_all(void)
{
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
}

static int finish(struct output *output, int ret)
{
    if (ret == 0)
        ret = output_finish(output);
    if (ret == -ENOMEM) /* all else was told where it happened */
        fprintf(stderr, "qcrash: %s\n", strerror(ENOMEM));
    bool broken = output->story_count > 0;
    output_release(output);
    return ret < 0 ? EXIT_FAILURE : broken ? EXIT_BROKEN : EXIT_SUCCESS;
}

static int replay(struct command_line *line, struct output *output, const char *id)
{
    int ret = run_replay(id, line->save, &line->run, output);
    if (ret == 0 && output->style == OUTPUT_HUMAN) {
        for (size_t i = 0; i < output->story_count; i++)
            story_print(&output->stories[i], stdout);
        if (output->story_count == 0)
            puts("every promise kept");
    } else if (ret == 0) {
        ret = output_finish(output);
    }
    bool broken = output->story_count > 0;
    output_release(output);
    return ret < 0 ? EXIT_FAILURE : broken ? EXIT_BROKEN : EXIT_SUCCESS;
}

static int hunt_mutants(const struct command_line *line)
{
    unsigned missed;
    struct explore_options options = line->run.explore;
    if (options.cap > MUTANT_CAP) /* a bug that hides longer is not found in time anyway */
        options.cap = options.samples = MUTANT_CAP;
    options.check_full = options.continue_full = 16;
    options.repair_full = 1;
    int ret = mutants_run(&options, stdout, &missed);
    return ret < 0 ? EXIT_FAILURE : missed ? EXIT_BROKEN : EXIT_SUCCESS;
}

static int flushes_on(const struct command_line *line, const char *image, struct flush_tally *tally)
{
    const struct run_options *run = &line->run;
    size_t count = run->workload_count ? run->workload_count : workload_row_count;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < count; i++)
        ret = flushes_report(run->workload_count ? run->workloads[i] : workload_rows[i].name, image,
            &run->explore, stdout, tally);
    return ret;
}

static int report_flushes(const struct command_line *line)
{
    const char *const usual[] = {"c512"};
    const char *images[LIST_MAX];
    struct flush_tally tally = {0};
    size_t count =
        run_image_names(line->run.image_count ? (const char *const *)line->run.images : usual,
            line->run.image_count ? line->run.image_count : 1, images, LIST_MAX);
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < count; i++)
        ret = flushes_on(line, images[i], &tally);
    flushes_print(&tally, stdout);
    return ret < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    struct command_line line = {0};
    if (argc < 2 || !parse(argc, argv, &line)) {
        usage(stderr);
        return EXIT_FAILURE;
    }
    if (line.done)
        return EXIT_SUCCESS;
    const char *command = optind < argc ? argv[optind++] : "";
    struct output output = {.style = line.style, .out = stdout, .seed = line.run.explore.seed};
    line.run.workloads = argv + optind;
    line.run.workload_count = (size_t)(argc - optind);
    if (strcmp(command, "run") == 0)
        return finish(&output, run_all(&line.run, &output));
    if (strcmp(command, "explore") == 0 && argc == optind && line.run.base && line.run.log)
        return finish(&output, run_explore(&line.run, &output));
    if (strcmp(command, "replay") == 0 && argc - optind == 1)
        return replay(&line, &output, argv[optind]);
    if (strcmp(command, "mutants") == 0 && argc == optind)
        return hunt_mutants(&line);
    if (strcmp(command, "flushes") == 0)
        return report_flushes(&line);
    if (strcmp(command, "list") == 0 && argc == optind) {
        list_all();
        return EXIT_SUCCESS;
    }
    usage(stderr);
    return EXIT_FAILURE;
}
