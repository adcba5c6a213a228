/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

static const struct {
    const char *bytes;
    size_t length;
    const char *also, *shown;
} names[] = {
    {"plain", 5, NULL, "plain"},
    {"", 0, NULL, ""},
    {"gr\u00fc\u00df \u4e16 \U0001f600", 15, NULL, "gr\u00fc\u00df \u4e16 \U0001f600"},
    {"a\0b", 3, NULL, "a\\x00b"},
    {"\x1b[2J\r\n\t\x7f", 8, NULL, "\\x1b[2J\\x0d\\x0a\\x09\\x7f"},
    {"\xc2\x9b"
     "1m",
        4, NULL, "\\xc2\\x9b1m"},                 /* a control sequence in one character */
    {"\u202egnp", 6, NULL, "\\xe2\\x80\\xaegnp"}, /* written from the right */
    {"\u2066", 3, NULL, "\\xe2\\x81\\xa6"},
    {"\u200e\u2029", 6, NULL, "\\xe2\\x80\\x8e\\xe2\\x80\\xa9"},
    {"\u200d\u2030", 6, NULL, "\u200d\u2030"}, /* their neighbours */
    {"\xff\xc3", 2, NULL, "\\xff\\xc3"},       /* none, and one cut short */
    {"\xc0\xaf", 2, NULL, "\\xc0\\xaf"},       /* too long for what it says */
    {"\xed\xa0\x80", 3, NULL, "\\xed\\xa0\\x80"},
    {"\xf4\x90\x80\x80", 4, NULL, "\\xf4\\x90\\x80\\x80"},
    {"\xc3(", 2, NULL, "\\xc3("},
    {"a\"b\\", 4, NULL, "a\"b\\"},
    {"a\"b\\", 4, "\"\\", "a\\x22b\\x5c"},
};
enum { NAMES = sizeof(names) / sizeof(names[0]) };

START_TEST(names_are_shown)
{
    char out[100];
    text_escape(names[_i].bytes, names[_i].length, names[_i].also, out, sizeof(out));
    ck_assert_str_eq(out, names[_i].shown);
}
END_TEST

START_TEST(names_are_printed)
{
    char *out;
    size_t length;
    if (names[_i].also)
        return;
    FILE *file = open_memstream(&out, &length);
    text_print(file, names[_i].bytes, names[_i].length, 12);
    fclose(file);
    size_t shown = strlen(names[_i].shown);
    ck_assert_uint_eq(length, shown < 12 ? 12 : shown);
    ck_assert_int_eq(memcmp(out, names[_i].shown, shown), 0);
    ck_assert_uint_eq(strspn(out + shown, " "), length - shown);
    free(out);
}
END_TEST

/* Whatever the room, no half of anything. */
START_TEST(names_are_cut)
{
    const char *name = "a\u00fc\u4e16\U0001f600\x1b";
    char out[32], cut[32];
    for (size_t room = 1; room < 20; room++) {
        memset(out, 'Z', sizeof(out));
        text_escape(name, strlen(name), NULL, out, room);
        ck_assert_uint_lt(strlen(out), room);
        ck_assert_int_eq(out[room], 'Z');
        snprintf(cut, room, "%s", "a\u00fc\u4e16\U0001f600\\x1b");
        text_trim(cut);
        if (room <= 11 || room > 14)
            ck_assert_str_eq(out, cut);
    }
}
END_TEST

START_TEST(what_is_whole_is_not_trimmed)
{
    static const char *const whole[] = {"", "a", "\u00fc", "x\u4e16", "\U0001f600"};
    for (size_t i = 0; i < sizeof(whole) / sizeof(whole[0]); i++) {
        char text[8];
        snprintf(text, sizeof(text), "%s", whole[i]);
        text_trim(text);
        ck_assert_str_eq(text, whole[i]);
    }
}
END_TEST

/* What does not fit is cut behind a whole character. */
START_TEST(long_lines_are_cut)
{
    enum { LONG = 9000 };
    char *out, *name = calloc(3, LONG);
    size_t length;
    FILE *file = open_memstream(&out, &length);
    ck_assert(name && file);
    for (size_t i = 0; i < LONG; i++)
        memcpy(name + i * 2, "\u00fc", 2);
    text_line(file, "%c%s", 'x', name);
    fclose(file);
    ck_assert_uint_lt(length, LONG);
    ck_assert_int_eq(out[length - 1], '\n');
    ck_assert_uint_eq(length % 2, 0); /* x, whole characters, the end of the line */
    ck_assert_int_eq(memcmp(out + 1, name, length - 2), 0);
    free(out);
    free(name);
}
END_TEST

Suite *test_text(void);
Suite *test_text(void)
{
    Suite *suite = suite_create("text");
    TCase *tc = tcase_create("text");
    tcase_add_loop_test(tc, names_are_shown, 0, NAMES);
    tcase_add_loop_test(tc, names_are_printed, 0, NAMES);
    tcase_add_test(tc, names_are_cut);
    tcase_add_test(tc, what_is_whole_is_not_trimmed);
    tcase_add_test(tc, long_lines_are_cut);
    suite_add_tcase(suite, tc);
    return suite;
}
