/* SPDX-License-Identifier: MIT
 *
 * Expressions of the recipe language: numbers, names, operators from left to right (no precedence;
 * parentheses say what they say), and the loading and storing of what a name stands for.
 *
 *   expr  = unary { ("+" | "-" | "*" | "|" | "&" | "^" | "<<" | ">>") unary }
 *   unary = "~" unary | "-" unary | "(" expr ")" | "was(" expr ")" | "&" name | name | number */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "recipe_impl.h"

enum { MAX_DEPTH = 64 };

static int read_literal(struct cursor *c, uint64_t *value)
{
    char *end;
    errno = 0;
    bool hex = c->p[0] == '0' && (c->p[1] == 'x' || c->p[1] == 'X');
    uint64_t v = strtoull(c->p, &end, hex ? 16 : 10);
    if (errno == ERANGE)
        return recipe_fail(c->r, "number too large");
    static const char suffixes[] = "kMGT";
    const char *suffix = *end ? strchr(suffixes, *end) : NULL;
    if (suffix) {
        unsigned shift = 10 * (unsigned)(suffix - suffixes + 1);
        if (v > UINT64_MAX >> shift)
            return recipe_fail(c->r, "number too large");
        v <<= shift;
        end++;
    }
    if (isalnum((unsigned char)*end))
        return recipe_fail(c->r, "not a number: \"%.12s\"", c->p);
    c->p = end;
    *value = v;
    return 0;
}

static int read_was(struct cursor *c, uint64_t *value)
{
    struct io *io = c->io;
    c->io = c->r->pristine;
    int ret = read_number(c, value);
    c->io = io;
    if (ret == 0 && !accept(c, ")"))
        return recipe_fail(c->r, ") is missing");
    return ret;
}

static int read_unary(struct cursor *c, uint64_t *value)
{
    struct ref ref;
    skip_space(c);
    if (isdigit((unsigned char)*c->p))
        return read_literal(c, value);
    if (accept(c, "~") || accept(c, "-")) {
        char op = c->p[-1];
        if (++c->depth > MAX_DEPTH)
            return recipe_fail(c->r, "too deep");
        int ret = read_unary(c, value);
        c->depth--;
        if (ret == 0)
            *value = op == '~' ? ~*value : -*value;
        return ret;
    }
    if (accept(c, "(")) {
        int ret = read_number(c, value);
        if (ret == 0 && !accept(c, ")"))
            return recipe_fail(c->r, ") is missing");
        return ret;
    }
    if (accept(c, "was("))
        return read_was(c, value);
    bool address = accept(c, "&");
    int ret = read_name(c, &ref);
    if (ret < 0)
        return ret;
    if (!address)
        return ref_load(c, &ref, value);
    if (ref.kind == REF_CONST)
        return recipe_fail(c->r, "& wants something that is stored");
    *value = ref.host_off;
    return 0;
}

/* The operator at the cursor, 'l' and 'r' for shifts, 0 for none.  One that is followed by '=' is
 * an assignment's. */
static char take_operator(struct cursor *c)
{
    skip_space(c);
    char op = *c->p;
    if (op == '\0' || !strchr("+-*|&^<>", op))
        return 0;
    if (op == '<' || op == '>') {
        if (c->p[1] != op)
            return 0;
        c->p += 2;
        return op == '<' ? 'l' : 'r';
    }
    if (c->p[1] == '=')
        return 0;
    c->p++;
    return op;
}

static uint64_t apply(char op, uint64_t a, uint64_t b)
{
    switch (op) {
    case '+':
        return a + b;
    case '-':
        return a - b;
    case '*':
        return a * b;
    case '|':
        return a | b;
    case '&':
        return a & b;
    case '^':
        return a ^ b;
    case 'l':
        return b < 64 ? a << b : 0;
    default:
        return b < 64 ? a >> b : 0;
    }
}

int read_number(struct cursor *c, uint64_t *value)
{
    if (++c->depth > MAX_DEPTH)
        return recipe_fail(c->r, "too deep");
    uint64_t v;
    int ret = read_unary(c, &v);
    char op;
    while (ret == 0 && (op = take_operator(c)) != 0) {
        uint64_t right;
        ret = read_unary(c, &right);
        if (ret == 0)
            v = apply(op, v, right);
    }
    c->depth--;
    if (ret == 0)
        *value = v;
    return ret;
}

/* ---- what names stand for ------------------------------------------------------------------- */

/* Bytes a stored value takes; the narrow refcounts share theirs. */
static unsigned ref_bytes(const struct recipe *r, const struct ref *ref)
{
    if (ref->kind == REF_INT)
        return ref->width;
    if (ref->kind == REF_REFCOUNT && r->geo.refcount_order < 6)
        return r->geo.refcount_order <= 3 ? 1 : 1u << (r->geo.refcount_order - 3);
    return 8;
}

static uint64_t load_be(const uint8_t *p, unsigned bytes)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes; i++)
        v = v << 8 | p[i];
    return v;
}

static void store_be(uint8_t *p, unsigned bytes, uint64_t v)
{
    for (unsigned i = bytes; i-- > 0; v >>= 8)
        p[i] = (uint8_t)v;
}

/* Bits of the entry `raw` that are its offset. */
static uint64_t offset_mask(const struct recipe *r, enum ref_kind kind, uint64_t raw)
{
    if (kind == REF_L2_OFFSET_FIELD && (raw & QCOW2_ENTRY_COMPRESSED))
        return (UINT64_C(1) << r->geo.compressed_shift) - 1;
    return QCOW2_OFFSET_MASK;
}

static int ref_read(struct cursor *c, const struct ref *ref, uint8_t *bytes, unsigned length)
{
    int ret = io_read_padded(c->io, ref->host_off, bytes, length);
    return ret == 0 ? 0
                    : recipe_fail(c->r, "reading at %#llx: %s", (unsigned long long)ref->host_off,
                          strerror(-ret));
}

int ref_load(struct cursor *c, const struct ref *ref, uint64_t *value)
{
    if (ref->kind == REF_CONST) {
        *value = ref->value;
        return 0;
    }
    uint8_t bytes[8];
    unsigned n = ref_bytes(c->r, ref);
    int ret = ref_read(c, ref, bytes, n);
    if (ret < 0)
        return ret;
    uint64_t v = load_be(bytes, n);
    if (ref->kind == REF_REFCOUNT && c->r->geo.refcount_order < 3)
        v = qcow2_refcount_get(bytes, c->r->geo.refcount_order, ref->sub_idx);
    else if (ref->kind == REF_OFFSET_FIELD || ref->kind == REF_L2_OFFSET_FIELD)
        v &= offset_mask(c->r, ref->kind, v);
    *value = v;
    return 0;
}

int ref_store(struct cursor *c, const struct ref *ref, uint64_t value)
{
    if (ref->kind == REF_CONST)
        return recipe_fail(c->r, "this is where something is; it cannot be assigned to");
    uint8_t bytes[8];
    unsigned n = ref_bytes(c->r, ref);
    int ret = ref_read(c, ref, bytes, n);
    if (ret < 0)
        return ret;
    uint64_t old = load_be(bytes, n), max = UINT64_MAX >> ((8 - n) % 8 * 8);
    if (ref->kind == REF_REFCOUNT && c->r->geo.refcount_order < 3)
        max = c->r->geo.refcount_max;
    else if (ref->kind == REF_OFFSET_FIELD || ref->kind == REF_L2_OFFSET_FIELD)
        max = offset_mask(c->r, ref->kind, old);
    if (value & ~max)
        return recipe_fail(c->r, "%#llx does not fit there", (unsigned long long)value);
    if (ref->kind == REF_REFCOUNT && c->r->geo.refcount_order < 3)
        qcow2_refcount_set(bytes, c->r->geo.refcount_order, ref->sub_idx, value);
    else
        store_be(bytes, n, n == 8 ? (old & ~max) | value : value);
    ret = io_write(c->io, ref->host_off, bytes, n);
    if (ret < 0)
        return recipe_fail(c->r, "writing: %s", strerror(-ret));
    return 0;
}
