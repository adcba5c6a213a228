/* SPDX-License-Identifier: MIT
 *
 * mkimage RECIPE OUTFILE: makes the image of a recipe. */
#include <stdio.h>
#include <string.h>

#include "recipe.h"

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: mkimage RECIPE OUTFILE\n");
        return 1;
    }
    char error[RECIPE_ERROR_BYTES];
    struct recipe *recipe;
    if (recipe_load(argv[1], &recipe, error) < 0) {
        fprintf(stderr, "%s\n", error);
        return 1;
    }
    int ret = recipe_save(recipe, argv[2]);
    recipe_free(recipe);
    if (ret < 0)
        fprintf(stderr, "%s: %s\n", argv[2], strerror(-ret));
    return ret < 0;
}
