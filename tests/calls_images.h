/* SPDX-License-Identifier: MIT
 *
 * The images on which calls fail: sound and broken ones of several kinds. */
#ifndef TESTS_CALLS_IMAGES_H
#define TESTS_CALLS_IMAGES_H

enum { CALLS_IMAGES = 12 };

struct calls_image {
    const char *name, *recipe;
};

extern const struct calls_image calls_images[CALLS_IMAGES];

/* Makes all of them in `dir`, over what is there; the test fails if it cannot. */
void calls_build_all(const char *dir);

/* The files `base` and `log` in `dir`: an image, and what taking a snapshot of it writes. */
void calls_build_log(const char *dir);

#endif
