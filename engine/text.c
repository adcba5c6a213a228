/* SPDX-License-Identifier: MIT
 *
 * See text.h. */
#include "text.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* The sequence at p; 0 if it is none, too long for what it says, or cut short (RFC 3629). */
static size_t utf8_decode(const uint8_t *p, size_t left, uint32_t *code)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length = p[0] < 0x80 ? 1 : p[0] < 0xc0 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (length == 0 || length > left || p[0] >= 0xf8)
        return 0;
    *code = length == 1 ? p[0] : p[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        *code = *code << 6 | (p[i] & 0x3f);
    }
    bool surrogate = *code >= 0xd800 && *code < 0xe000;
    return *code < least[length] || surrogate || *code > 0x10ffff ? 0 : length;
}

/* Control characters of both ranges; line and paragraph ends, and what turns the order of writing
 * around (Unicode: General Punctuation). */
static bool is_control(uint32_t code)
{
    return code < 0x20 || (code >= 0x7f && code < 0xa0) || (code >= 0x200e && code <= 0x200f) ||
           (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
}

enum { PIECE_BYTES = 4 * sizeof("\\xNN") };

/* The next character as it is shown; how many bytes it took. */
static size_t show_next(const uint8_t *p, size_t left, const char *also, char piece[PIECE_BYTES])
{
    uint32_t code = 0;
    size_t taken = utf8_decode(p, left, &code);
    bool wanted = also && code > 0 && code < 0x80 && strchr(also, (int)code);
    if (taken > 0 && !is_control(code) && !wanted) {
        memcpy(piece, p, taken);
        piece[taken] = '\0';
        return taken;
    }
    taken = taken > 0 ? taken : 1;
    for (size_t i = 0; i < taken; i++)
        snprintf(piece + 4 * i, PIECE_BYTES - 4 * i, "\\x%02x", p[i]);
    return taken;
}

void text_escape(const void *bytes, size_t length, const char *also, char *out, size_t out_len)
{
    size_t used = 0;
    for (size_t i = 0; i < length;) {
        char piece[PIECE_BYTES];
        i += show_next((const uint8_t *)bytes + i, length - i, also, piece);
        size_t more = strlen(piece);
        if (used + more >= out_len)
            break;
        memcpy(out + used, piece, more);
        used += more;
    }
    out[used] = '\0';
}

void text_print(FILE *out, const void *bytes, size_t length, size_t width)
{
    size_t printed = 0;
    for (size_t i = 0; i < length;) {
        char piece[PIECE_BYTES];
        i += show_next((const uint8_t *)bytes + i, length - i, NULL, piece);
        fputs(piece, out);
        printed += strlen(piece);
    }
    for (; printed < width; printed++)
        fputc(' ', out);
}

void text_line(FILE *out, const char *format, ...)
{
    char line[8192];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    if (strlen(line) == sizeof(line) - 1)
        text_trim(line);
    text_print(out, line, strlen(line), 0);
    fputc('\n', out);
}

void text_trim(char *text)
{
    size_t end = strlen(text), start = end;
    uint32_t code;
    while (start > 0 && end - start < 3 && ((uint8_t)text[start - 1] & 0xc0) == 0x80)
        start--;
    if (start > 0 && (uint8_t)text[start - 1] >= 0xc0 &&
        utf8_decode((uint8_t *)text + start - 1, end - start + 1, &code) == 0)
        text[start - 1] = '\0';
}
