/* SPDX-License-Identifier: MIT
 *
 * The checker on any image: it comes to an end, in bounded time and memory; writes nothing; says
 * the same with and without its fast paths; its JSON is JSON and its text can be printed. */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "qcheck.h"

int fuzz_judge(struct io *io, bool deep, struct report *report)
{
    struct check_options options = {.threads = 1, .deep = deep};
    struct report own = {0};
    struct report *result = report ? report : &own;
    report_init(result, 100);
    check_image(io, NULL, &options, result);
    int exit_code = report_exit_code(result);
    if (!report)
        report_release(result);
    return exit_code;
}

static bool same_findings(const struct report *a, const struct report *b, char why[FUZZ_WHY_BYTES])
{
    for (int i = 0; i < CHECK_COUNT; i++) {
        if (a->hits[i] != b->hits[i])
            return fuzz_broken(why, "%s: %llu with fast paths, %llu without", check_rows[i].name,
                (unsigned long long)a->hits[i], (unsigned long long)b->hits[i]);
    }
    if (report_exit_code(a) != report_exit_code(b) || a->corruptions != b->corruptions ||
        a->leaks != b->leaks || a->data_at_risk != b->data_at_risk)
        return fuzz_broken(why, "another verdict without fast paths");
    return true;
}

/* A control character, also of two bytes, or one that turns the order of writing around. */
static bool moves_the_cursor(const char *text, size_t left)
{
    static const struct {
        const char *from, *to;
    } ranges[] = {{"\1", "\t"}, {"\v", "\37"}, {"\177", "\177"}, {"\xc2\x80", "\xc2\x9f"},
        {"\u200e", "\u200f"}, {"\u2028", "\u202e"}, {"\u2066", "\u2069"}};
    bool moves = *text == '\0';
    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        size_t length = strlen(ranges[i].from);
        moves |= left >= length && memcmp(text, ranges[i].from, length) >= 0 &&
                 memcmp(text, ranges[i].to, length) <= 0;
    }
    return moves;
}

static bool prints_well(const struct report *report, char why[FUZZ_WHY_BYTES])
{
    char *json = NULL, *text = NULL;
    size_t json_len, text_len;
    static const struct report_style style = {.verbose = true};
    FILE *out = open_memstream(&json, &json_len);
    int ret = out ? report_print_json(report, "image\xff\n", out) : -ENOMEM;
    if (out)
        fclose(out);
    out = open_memstream(&text, &text_len);
    if (out) {
        report_print(report, "image", &style, out);
        fclose(out);
    }
    json_t *value = ret == 0 ? json_loads(json, 0, NULL) : NULL;
    bool good = ret == -ENOMEM || json_is_object(value);
    if (!good)
        fuzz_broken(why, "the JSON is none");
    json_t *utf8 = text ? json_stringn(text, text_len) : NULL;
    if (text && good && !utf8)
        good = fuzz_broken(why, "the text is no UTF-8");
    for (size_t i = 0; text && good && i < text_len; i++) {
        if (moves_the_cursor(text + i, text_len - i))
            good = fuzz_broken(why, "control byte 0x%02x in the text", (unsigned char)text[i]);
    }
    json_decref(utf8);
    json_decref(value);
    free(json);
    free(text);
    return good;
}

bool fuzz_check(const uint8_t *data, size_t size, char why[FUZZ_WHY_BYTES])
{
    struct fuzz_image image;
    struct fuzz_io io;
    struct report fast, slow;
    if (fuzz_unpack(data, size, &image) < 0)
        return true;
    fuzz_io_init(&io, image.io, image.stored);
    fuzz_judge(&io.io, image.options & 1, &fast);
    bool good = fuzz_io_within(&io, 1, why);
    if (good && io.writes > 0)
        good = fuzz_broken(why, "a check has written");
    struct check_options plain = {.threads = 1, .deep = image.options & 1, .no_fast_paths = true};
    report_init(&slow, 100);
    check_image(image.io, NULL, &plain, &slow);
    good = good && same_findings(&fast, &slow, why) && prints_well(&fast, why);
    report_release(&fast);
    report_release(&slow);
    io_close(image.io);
    return good;
}
