/* SPDX-License-Identifier: MIT
 *
 * What may follow a healthy image: patches by name, cuts, copies, unreadable ranges.
 *
 *   damage NAME = EXPR         also |= &= ^=, and = "text" for bytes from there on
 *   damage bytes EXPR = HEX or "text"
 *   damage fill OFF LEN BYTE          damage copy FROM TO LEN
 *   damage truncate SIZE or -BYTES    damage append LEN [BYTE]
 *   damage unreadable OFF LEN
 *   damage data_file truncate ... or any other of these: on the external data file */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "recipe_impl.h"

static int machine(struct recipe *r, int ret)
{
    return ret < 0 ? recipe_fail(r, "%s", strerror(-ret)) : 0;
}

static int read_numbers(struct cursor *c, uint64_t *numbers, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (at_end(c))
            return recipe_fail(c->r, "%zu numbers are needed here", count);
        int ret = read_number(c, &numbers[i]);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int damage_truncate(struct cursor *c)
{
    uint64_t size, n;
    bool relative = accept(c, "-");
    int ret = read_numbers(c, &n, 1);
    if (ret < 0)
        return ret;
    ret = io_size(c->io, &size);
    if (ret == 0 && relative && n > size)
        return recipe_fail(c->r, "the file is not that long");
    return machine(c->r, ret < 0 ? ret : io_resize(c->io, relative ? size - n : n));
}

static int write_fill(struct cursor *c, uint64_t host_off, uint64_t length, uint64_t byte)
{
    enum { STEP = 1 << 16 };
    uint8_t *buf = recipe_alloc(c->r, 1, STEP);
    memset(buf, (int)(byte & 0xff), STEP);
    int ret = 0;
    while (ret == 0 && length > 0) {
        uint64_t n = length < STEP ? length : STEP;
        ret = io_write(c->io, host_off, buf, n);
        host_off += n;
        length -= n;
    }
    return machine(c->r, ret);
}

static int damage_append(struct cursor *c)
{
    uint64_t size, length, byte = 0;
    int ret = read_numbers(c, &length, 1);
    if (ret == 0 && !at_end(c))
        ret = read_numbers(c, &byte, 1);
    if (ret < 0)
        return ret;
    ret = io_size(c->io, &size);
    if (ret < 0)
        return machine(c->r, ret);
    if (byte == 0)
        return machine(c->r, io_resize(c->io, size + length));
    return write_fill(c, size, length, byte);
}

static int damage_fill(struct cursor *c)
{
    uint64_t n[3];
    int ret = read_numbers(c, n, 3);
    return ret < 0 ? ret : write_fill(c, n[0], n[1], n[2]);
}

static int damage_copy(struct cursor *c)
{
    enum { MAX_COPY = 64 << 20 };
    uint64_t n[3];
    int ret = read_numbers(c, n, 3);
    if (ret < 0)
        return ret;
    if (n[2] > MAX_COPY)
        return recipe_fail(c->r, "too much to copy");
    uint8_t *buf = recipe_alloc(c->r, n[2], 1);
    ret = io_read_padded(c->io, n[0], buf, n[2]);
    return machine(c->r, ret < 0 ? ret : io_write(c->io, n[1], buf, n[2]));
}

static int damage_unreadable(struct cursor *c)
{
    uint64_t n[2];
    int ret = read_numbers(c, n, 2);
    if (ret < 0)
        return ret;
    struct recipe *r = c->r;
    r->unreadable = recipe_grow(r, r->unreadable, r->unreadable_count, sizeof(*r->unreadable));
    r->unreadable[r->unreadable_count++] = (struct recipe_range){n[0], n[1]};
    return 0;
}

static int write_bytes(struct cursor *c, uint64_t host_off)
{
    uint8_t *bytes;
    size_t length;
    int ret = read_bytes(c, &bytes, &length);
    return ret < 0 ? ret : machine(c->r, io_write(c->io, host_off, bytes, length));
}

static int damage_bytes(struct cursor *c)
{
    uint64_t host_off;
    int ret = read_numbers(c, &host_off, 1);
    if (ret < 0)
        return ret;
    if (!accept(c, "="))
        return recipe_fail(c->r, "= is missing");
    return write_bytes(c, host_off);
}

static int damage_name(struct cursor *c)
{
    static const char *const ops[] = {"=", "|=", "&=", "^="};
    struct ref ref;
    int ret = read_name(c, &ref);
    if (ret < 0)
        return ret;
    size_t op = 0;
    while (op < 4 && !accept(c, ops[op]))
        op++;
    if (op == 4)
        return recipe_fail(c->r, "=, |=, &= or ^= is missing at \"%.20s\"", c->p);
    skip_space(c);
    if (op == 0 && *c->p == '"' && ref.kind == REF_INT)
        return write_bytes(c, ref.host_off);
    uint64_t old, value;
    ret = ref_load(c, &ref, &old);
    if (ret < 0)
        return ret;
    ret = read_number(c, &value);
    if (ret < 0)
        return ret;
    value = op == 1 ? old | value : op == 2 ? old & value : op == 3 ? old ^ value : value;
    return ref_store(c, &ref, value);
}

int damage_statement(struct cursor *c)
{
    static const struct {
        const char *word;
        int (*run)(struct cursor *c);
    } verbs[] = {
        {"truncate", damage_truncate},
        {"append", damage_append},
        {"fill", damage_fill},
        {"copy", damage_copy},
        {"bytes", damage_bytes},
        {"unreadable", damage_unreadable},
    };
    if (accept(c, "data_file")) {
        if (!c->r->data)
            return recipe_fail(c->r, "this image has no data file");
        c->io = c->r->data;
    }
    int (*run)(struct cursor *) = damage_name;
    for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]) && run == damage_name; i++) {
        if (accept(c, verbs[i].word))
            run = verbs[i].run;
    }
    int ret = run(c);
    if (ret == 0 && !at_end(c))
        return recipe_fail(c->r, "what is \"%.20s\"?", c->p);
    return ret;
}
