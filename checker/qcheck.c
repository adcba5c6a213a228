/* SPDX-License-Identifier: MIT
 *
 * qcheck: the command line. */
#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "images.h"
#include "progress.h"
#include "text.h"

#ifndef QCHECK_VERSION
#define QCHECK_VERSION "0.1"
#endif

enum { MOST_THREADS = 256 };

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
    "  -j N                     use N threads: for several images, or parts of a large one\n"
    "      --deploy[=POLICY]    a gate for images from others: strict (default), local, or a file\n"
    "      --allow RULE         with --deploy: this is no reason to refuse\n"
    "      --max-size SIZE      with --deploy: of the virtual disk\n"
    "  -U, --force-share        check an image that another program has open\n"
    "      --progress, --no-progress\n"
    "                           a progress line on stderr (default: on a terminal)\n"
    "      --max-findings N     print at most N findings (default 1000)\n"
    "      --explain [CHECK]    what a check means\n"
    "  -q, --quiet              only say what is not clean, in one line\n"
    "  -v, --verbose            also notes, and every finding\n"
    "      --help, --version\n"
    "\n"
    "Exit: 0 clean, 1 not completed, 2 corrupt, 3 leaks only, 4 refused by the policy,\n"
    "63 not a qcow2 image or one that cannot be judged.\n";

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
    OPT_DEPLOY,
    OPT_ALLOW,
    OPT_MAX_SIZE,
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
    {"deploy", optional_argument, NULL, OPT_DEPLOY},
    {"allow", required_argument, NULL, OPT_ALLOW},
    {"max-size", required_argument, NULL, OPT_MAX_SIZE},
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
    text_line(stderr, "qcheck: %s: %s (see qcheck --help)", value, what);
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

static int parse_deploy(int opt, struct arguments *args)
{
    char error[DEPLOY_ERROR_BYTES];
    int ret;
    if (opt == OPT_DEPLOY)
        ret = deploy_policy_load(optarg, &args->policy, error);
    else if (opt == OPT_ALLOW)
        ret = deploy_allow(&args->policy, optarg, error);
    else
        ret = deploy_max_size(&args->policy, optarg, error);
    *(opt == OPT_DEPLOY ? &args->deploy : &args->deploy_details) = true;
    if (ret < 0)
        text_line(stderr, "qcheck: %s", error);
    return ret < 0 ? 1 : -1;
}

static int parse_repair(struct arguments *args)
{
    args->repair = true;
    args->repair_options.leaks_only = optarg && strcmp(optarg, "leaks") == 0;
    if (optarg && !args->repair_options.leaks_only && strcmp(optarg, "all") != 0)
        return bad_argument("a repair is either of leaks or of all", optarg);
    return -1;
}

/* Returns -1 to go on, or the exit code. */
static int parse_option(int opt, struct arguments *args)
{
    switch (opt) {
    case 'r':
        return parse_repair(args);
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
    case 'j':
        if (parse_count(optarg, &args->threads) < 0 || args->threads < 1 ||
            args->threads > MOST_THREADS)
            return bad_argument("not a number of threads", optarg);
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
    case OPT_DEPLOY:
    case OPT_ALLOW:
    case OPT_MAX_SIZE:
        return parse_deploy(opt, args);
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

/* As many as there are processors for us; but reading ahead takes two. */
static size_t default_threads(void)
{
    enum { LEAST = 2, MOST = 16 };
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 0;
    return (size_t)(count < LEAST ? LEAST : count > MOST ? MOST : count);
}

/* Options that contradict each other; 0 if all is well. */
static int check_arguments(const struct arguments *args, int image_count)
{
    bool writes = args->repair || args->rollback;
    const char *problem = NULL;
    if (image_count == 0)
        problem = "no image named";
    else if (args->deploy_details && !args->deploy)
        problem = "--allow and --max-size belong to --deploy";
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

/* What getopt_long() stopped at. */
static void not_understood(int opt, const char *word)
{
    const char letter[] = {'-', (char)optopt, '\0'};
    bool is_letter = optopt > 0 && optopt < OPT_DEEP;
    text_line(stderr, "qcheck: %s: %s", is_letter ? letter : word,
        opt == ':' ? "needs a value" : "no such option, or it takes no value");
}

int main(int argc, char **argv)
{
    struct arguments args = {
        .max_findings = DEFAULT_MAX_FINDINGS,
        .progress = -1,
        .threads = default_threads(),
    };
    opterr = 0;
    for (int opt; (opt = getopt_long(argc, argv, ":rnj:Uqv", long_options, NULL)) != -1;) {
        if (opt == '?' || opt == ':')
            not_understood(opt, argv[optind - 1]);
        int exit_code = parse_option(opt, &args);
        if (exit_code >= 0)
            return exit_code;
    }
    if (args.explain_wanted) /* the name may be the next word */
        return explain(args.explain ? args.explain : argv[optind]);
    if (check_arguments(&args, argc - optind) != 0)
        return 1;
    if (args.deploy)
        args.check.deploy = &args.policy;
    progress_catch_signals();
    int exit_code = images_check(&args, argv + optind, (size_t)(argc - optind));
    if (*progress_stop_flag())
        exit_code = 1;
    return finish_output(exit_code);
}
