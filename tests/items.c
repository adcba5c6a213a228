/* SPDX-License-Identifier: MIT
 *
 * See items.h. */
#include "items.h"

#include <getopt.h>
#include <stdlib.h>

static bool usage(const char *program)
{
    fprintf(stderr, "usage: %s N SEED [--keep DIR] [--only I] [--verbose]\n", program);
    return false;
}

bool items_parse(int argc, char **argv, const char *program, struct item_options *options)
{
    static const struct option known[] = {
        {"keep", required_argument, NULL, 'k'},
        {"only", required_argument, NULL, 'o'},
        {"verbose", no_argument, NULL, 'v'},
        {0},
    };
    const char *only = NULL;
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        if (option == 'k')
            options->keep = optarg;
        else if (option == 'o')
            only = optarg;
        else if (option == 'v')
            options->verbose = true;
        else
            return usage(program);
    }
    if (argc - optind != 2)
        return usage(program);
    options->count = only ? 1 : strtoull(argv[optind], NULL, 0);
    options->first = only ? strtoull(only, NULL, 0) : 0;
    options->seed = strtoull(argv[optind + 1], NULL, 0);
    options->verbose |= only != NULL;
    return true;
}
