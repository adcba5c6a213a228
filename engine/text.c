/* SPDX-License-Identifier: MIT
 *
 * See text.h. */
#include "text.h"

#include <stdbool.h>
#include <stdint.h>

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

void text_print(FILE *out, const void *bytes, size_t length, size_t width)
{
    const uint8_t *p = bytes;
    size_t printed = 0;
    for (size_t i = 0, n; i < length; i += n) {
        uint32_t code = 0;
        n = utf8_decode(p + i, length - i, &code);
        if (n > 0 && !is_control(code)) {
            fwrite(p + i, 1, n, out);
            printed += n;
            continue;
        }
        n = n > 0 ? n : 1;
        for (size_t k = i; k < i + n; k++)
            printed += (size_t)fprintf(out, "\\x%02x", p[k]);
    }
    for (; printed < width; printed++)
        fputc(' ', out);
}
