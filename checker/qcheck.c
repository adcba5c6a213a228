/* SPDX-License-Identifier: MIT
 *
 * qcheck: the command line. */
#include "qcheck.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "progress.h"
#include "repair.h"

#ifndef QCHECK_VERSION
#define QCHECK_VERSION "0.1"
#endif

struct arguments {
    struct check_options check;
    struct report_style style;
    bool json, share;
    bool repair, dry_run;
    struct repair_options repair_options;
    const char *undo, *rollback;
    int progress; /* 1, 0, or -1: decide */
    size_t max_findings;
    const char *explain; /* "" for all */
    bool explain_wanted;
};

static const char usage[] =
    "usage: qcheck [OPTION]... IMAGE...\n"
    "Checks qcow2 images. Without --repair nothing is ever written.\n"
    "\n"
    "  -r, --repair[=leaks|all] repair what can be repaired without losing anything\n"
    "      --lossy              also what must give something up; each loss is told\n"
    "  -n, --dry-run            print the edits a repair would make, write nothing\n"
    "      --undo FILE          save every byte in FILE before it is overwritten\n"
    "      --rollback FILE      put the image back as it was before the repair with --undo FILE\n"
    "      --deep               also decode every compressed cluster\n"
    "      --backing            also follow the backing chain\n"
    "      --output=human|json  JSON: one object per image, one per line\n"
    "  -U, --force-share        check an image that another program has open\n"
    "      --progress, --no-progress\n"
    "                           a progress line on stderr (default: on a terminal)\n"
    "      --max-findings N     print at most N findings (default 1000)\n"
    "      --explain [CHECK]    what a check means\n"
    "  -q, --quiet              only say what is not clean, in one line\n"
    "  -v, --verbose            also notes, and every finding\n"
    "      --help, --version\n"
    "\n"
    "Exit: 0 clean, 1 not completed, 2 corrupt, 3 leaks only, 63 not a qcow2 image or one that\n"
    "cannot be judged.\n";

enum {
    OPT_DEEP = 256,
    OPT_LOSSY,
    OPT_UNDO,
    OPT_ROLLBACK,
    OPT_BACKING,
    OPT_OUTPUT,
    OPT_PROGRESS,
    OPT_NO_PROGRESS,
    OPT_MAX_FINDINGS,
    OPT_EXPLAIN,
    OPT_HELP,
    OPT_VERSION,
};

static const struct option long_options[] = {
    {"repair", optional_argument, NULL, 'r'},
    {"lossy", no_argument, NULL, OPT_LOSSY},
    {"dry-run", no_argument, NULL, 'n'},
    {"undo", required_argument, NULL, OPT_UNDO},
    {"rollback", required_argument, NULL, OPT_ROLLBACK},
    {"deep", no_argument, NULL, OPT_DEEP},
    {"backing", no_argument, NULL, OPT_BACKING},
    {"output", required_argument, NULL, OPT_OUTPUT},
    {"force-share", no_argument, NULL, 'U'},
    {"progress", no_argument, NULL, OPT_PROGRESS},
    {"no-progress", no_argument, NULL, OPT_NO_PROGRESS},
    {"max-findings", required_argument, NULL, OPT_MAX_FINDINGS},
    {"explain", optional_argument, NULL, OPT_EXPLAIN},
    {"quiet", no_argument, NULL, 'q'},
    {"verbose", no_argument, NULL, 'v'},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {0},
};

/* Output that could not be written must not look like success. */
static int finish_output(int exit_code)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return exit_code;
    fprintf(stderr, "qcheck: writing the output: %s\n", strerror(errno));
    return 1;
}

static int bad_argument(const char *what, const char *value)
{
    fprintf(stderr, "qcheck: %s: %s (see qcheck --help)\n", value, what);
    return 1;
}

static int parse_count(const char *text, size_t *out)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (errno || end == text || *end || text[0] == '-')
        return -EINVAL;
    *out = value;
    return 0;
}

/* Returns -1 to go on, or the exit code. */
static int parse_option(int opt, struct arguments *args)
{
    switch (opt) {
    case 'r':
        args->repair = true;
        args->repair_options.leaks_only = optarg && strcmp(optarg, "leaks") == 0;
        if (optarg && !args->repair_options.leaks_only && strcmp(optarg, "all") != 0)
            return bad_argument("a repair is either of leaks or of all", optarg);
        return -1;
    case OPT_LOSSY:
        args->repair_options.lossy = true;
        return -1;
    case 'n':
        args->dry_run = true;
        return -1;
    case OPT_UNDO:
        args->undo = optarg;
        return -1;
    case OPT_ROLLBACK:
        args->rollback = optarg;
        return -1;
    case OPT_DEEP:
        args->check.deep = true;
        return -1;
    case OPT_BACKING:
        args->check.backing = true;
        return -1;
    case OPT_OUTPUT:
        args->json = strcmp(optarg, "json") == 0;
        if (!args->json && strcmp(optarg, "human") != 0)
            return bad_argument("the output is either human or json", optarg);
        return -1;
    case 'U':
        args->share = true;
        return -1;
    case OPT_PROGRESS:
    case OPT_NO_PROGRESS:
        args->progress = opt == OPT_PROGRESS;
        return -1;
    case OPT_MAX_FINDINGS:
        if (parse_count(optarg, &args->max_findings) < 0)
            return bad_argument("not a number of findings", optarg);
        return -1;
    case OPT_EXPLAIN:
        args->explain_wanted = true;
        args->explain = optarg;
        return -1;
    case 'q':
        args->style.quiet = true;
        return -1;
    case 'v':
        args->style.verbose = true;
        return -1;
    case OPT_HELP:
        fputs(usage, stdout);
        return finish_output(0);
    case OPT_VERSION:
        puts("qcheck " QCHECK_VERSION);
        return finish_output(0);
    default:
        fputs("Try 'qcheck --help'.\n", stderr);
        return 1;
    }
}

static int explain(const char *only)
{
    int wanted = only ? check_find(only) : -1;
    if (only && wanted < 0)
        return bad_argument("no such check; --explain without a name lists all", only);
    for (int check = 0; check < CHECK_COUNT; check++) {
        const struct check_row *row = &check_rows[check];
        char name[CHECK_NAME_BYTES];
        if (only && check != wanted)
            continue;
        check_name((enum check_id)check, name);
        printf("%s (%s, %s; repair: %s)\n    %s: %s.\n    %s\n", name, object_kind_name(row->kind),
            severity_name(row->severity), repair_class_name(row->repair),
            object_kind_name(row->kind), row->sentence, row->meaning);
    }
    return finish_output(0);
}

/* ---- one image ---- */

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
        if (ret < 0)
            io_close(log);
        else
            *io = layer;
    }
    if (ret < 0)
        report_problem(report, "the undo log %s cannot be made: %s; nothing was changed", undo,
            strerror(-ret));
    return ret;
}

static void repair_one(struct io **io, const char *filename, const struct check_options *options,
    const struct arguments *args, struct report *report)
{
    struct repair_options repair = args->repair_options;
    FILE *out = args->json ? stderr : stdout;
    repair.remarks = out;
    repair.edits = args->dry_run || args->style.verbose ? out : NULL;
    struct io *overlay = NULL;
    int ret = 0;
    if (args->dry_run)
        ret = io_overlay_open(*io, &overlay);
    else if (args->undo)
        ret = add_undo(report, args->undo, io);
    if (ret == 0)
        repair_image(overlay ? overlay : *io, filename, options, &repair, report);
    else if (args->dry_run)
        report_problem(report, "%s", strerror(-ret));
    if (overlay)
        fprintf(out, "%s: nothing was written (--dry-run); what follows is how it would be\n",
            filename);
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

static void handle_image(
    struct io **io, const char *filename, const struct arguments *args, struct report *report)
{
    struct check_options options = args->check;
    struct progress *progress = progress_start(filename, args->progress);
    if (progress) {
        options.progress = progress_update;
        options.progress_arg = progress;
    }
    options.stop = progress_stop_flag();
    if (args->rollback)
        roll_back(*io, args->rollback, report);
    if (args->repair && !report->problem[0])
        repair_one(io, filename, &options, args, report);
    else
        check_image(*io, filename, &options, report);
    progress_end(progress);
}

static int check_one(const char *filename, const struct arguments *args)
{
    struct report report;
    struct io *io = NULL;
    struct io_file_info info = {0};
    bool writes = (args->repair && !args->dry_run) || args->rollback;
    report_init(&report, args->max_findings);
    int ret = 0;
    if (strcmp(filename, "-") == 0) {
        report_problem(&report, "standard input cannot be checked: an image is read out of order");
    } else {
        unsigned flags = writes ? IO_FILE_WRITE : args->share ? IO_FILE_SHARE : 0;
        ret = io_file_open(filename, flags, &io, &info);
        if (ret < 0)
            open_failed(&report, ret, &info);
    }
    if (io) {
        if (info.unlocked)
            fprintf(stderr, "qcheck: %s: has no image locks here; not locked\n", filename);
        handle_image(&io, filename, args, &report);
        io_close(io);
    }
    ret = 0;
    if (args->json)
        ret = report_print_json(&report, filename, stdout);
    else
        report_print(&report, filename, &args->style, stdout);
    int exit_code = report_exit_code(&report);
    if (ret < 0) {
        fprintf(stderr, "qcheck: %s: writing the report: %s\n", filename, strerror(-ret));
        exit_code = 1;
    }
    report_release(&report);
    return exit_code;
}

/* Options that contradict each other; 0 if all is well. */
static int check_arguments(const struct arguments *args, int image_count)
{
    bool writes = args->repair || args->rollback;
    const char *problem = NULL;
    if (image_count == 0)
        problem = "no image named";
    else if (writes && args->share)
        problem = "-U is for looking only: an image in use cannot be repaired";
    else if ((args->repair_options.lossy || args->dry_run || args->undo) && !args->repair)
        problem = "--lossy, --dry-run and --undo belong to --repair";
    else if (args->repair && args->rollback)
        problem = "--repair and --rollback exclude each other";
    else if ((args->undo || args->rollback) && image_count > 1)
        problem = "an undo log belongs to one image";
    if (problem)
        fprintf(stderr, "qcheck: %s\nTry 'qcheck --help'.\n", problem);
    return problem ? 1 : 0;
}

int main(int argc, char **argv)
{
    struct arguments args = {
        .max_findings = DEFAULT_MAX_FINDINGS,
        .progress = -1,
        .check.threads = 2,
    };
    for (int opt; (opt = getopt_long(argc, argv, "rnUqv", long_options, NULL)) != -1;) {
        int exit_code = parse_option(opt, &args);
        if (exit_code >= 0)
            return exit_code;
    }
    if (args.explain_wanted) /* the name may be the next word */
        return explain(args.explain ? args.explain : argv[optind]);
    if (check_arguments(&args, argc - optind) != 0)
        return 1;
    progress_catch_signals();
    int exit_code = 0;
    for (int i = optind; i < argc && !*progress_stop_flag(); i++)
        exit_code = worse_exit_code(check_one(argv[i], &args), exit_code);
    if (*progress_stop_flag())
        exit_code = 1;
    return finish_output(exit_code);
}
