/* SPDX-License-Identifier: MIT
 *
 * See backing.h.  One link of a chain is a file and, if that is qcow2, the image on it, which has
 * the next link. */
#include "backing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* L1 tables stay in memory: those of a chain of terabytes are some hundred KiB each. */
enum { MAX_L1_BYTES = 512 << 20 };

struct backing {
    struct io *io;
    struct image *img; /* NULL: a raw file */
    uint64_t size_bytes;
    char *path;
};

/* What the header says about the next file. */
struct backing_name {
    char *path;
    bool raw;
};

/* ---- what the header says ------------------------------------------------------------------- */

static int read_format(
    struct image *img, const uint8_t *cluster, size_t end, struct backing_name *out)
{
    struct qcow2_ext ext;
    size_t pos = img->header.header_length;
    while (qcow2_ext_next(cluster, end, &pos, &ext) > 0) {
        if (ext.type != (uint32_t)QCOW2_EXT_BACKING_FORMAT)
            continue;
        out->raw = ext.length == 3 && memcmp(ext.data, "raw", 3) == 0;
        if (out->raw || (ext.length == 5 && memcmp(ext.data, "qcow2", 5) == 0))
            return 0;
        return image_fail(img, -ENOTSUP, "the backing file is neither raw nor qcow2");
    }
    return image_fail(img, -ENOTSUP,
        "the image does not say of which format its backing file is; tell it with "
        "qemu-img rebase -u -b NAME -F FORMAT");
}

/* `beside` is the path of `img`; out->path is the caller's to free. */
static int read_name(struct image *img, const char *beside, struct backing_name *out)
{
    const struct qcow2_header *h = &img->header;
    size_t size = img->geo.cluster_size;
    if (h->backing_len > QCOW2_MAX_BACKING_NAME || h->backing_off > size ||
        h->backing_len > size - h->backing_off || h->backing_off < h->header_length)
        return image_fail(img, -EUCLEAN, "the name of the backing file is misplaced; run qcheck");
    uint8_t *cluster = malloc(size);
    if (!cluster)
        return image_no_memory(img);
    int ret = io_read_padded(img->io, 0, cluster, size);
    if (ret < 0)
        image_fail(img, ret, "cannot read the header: %s", strerror(-ret));
    if (ret == 0)
        ret = read_format(img, cluster, (size_t)h->backing_off, out);
    if (ret == 0) {
        ret = io_file_named(beside, cluster + h->backing_off, h->backing_len, &out->path);
        if (ret == -ENOMEM)
            image_no_memory(img);
        else if (ret < 0)
            image_fail(img, ret, "the backing file is not named by a plain path");
    }
    free(cluster);
    return ret;
}

/* ---- the chain ----------------------------------------------------------------------------- */

void backing_close(struct backing *backing)
{
    while (backing) {
        struct backing *next = backing->img ? backing->img->backing : NULL;
        if (backing->img)
            backing->img->backing = NULL;
        image_abandon(backing->img);
        io_close(backing->io);
        free(backing->path);
        free(backing);
        backing = next;
    }
}

/* The files of a chain, and what its L1 tables take. */
struct chain {
    struct io_chain files;
    uint64_t l1_bytes;
};

/* Opens one link: the file that `img`, at `path`, names. */
static int open_link(struct image *img, const char *path, unsigned io_flags, struct chain *chain,
    struct backing **out)
{
    struct backing_name name = {0};
    int ret = read_name(img, path, &name);
    if (ret < 0)
        return ret;
    struct backing *link = calloc(1, sizeof(*link));
    if (!link) {
        free(name.path);
        return image_no_memory(img);
    }
    link->path = name.path;
    if (io_chain_add(&chain->files, link->path) < 0) {
        backing_close(link);
        return image_fail(
            img, -ELOOP, "the backing chain is a loop, or of more than %d files", IO_CHAIN_MAX);
    }
    struct image_error why;
    ret = io_file_open(link->path, io_flags, &link->io, NULL);
    snprintf(why.text, sizeof(why.text), "%s",
        ret == -EBUSY ? "another program is writing to it" : strerror(-ret));
    if (ret == 0 && name.raw) {
        ret = io_size(link->io, &link->size_bytes);
    } else if (ret == 0) {
        ret = image_open(link->io, 0, &link->img, &why);
        link->size_bytes = ret == 0 ? image_size(link->img) : 0;
    }
    if (ret < 0) {
        image_fail(img, ret, "cannot open the backing file %.100s: %.120s", link->path, why.text);
        backing_close(link);
        return ret;
    }
    *out = link;
    chain->l1_bytes += link->img ? link->img->header.l1_size * UINT64_C(8) : 0;
    return chain->l1_bytes <= MAX_L1_BYTES
               ? 0
               : image_fail(img, -EFBIG, "the backing chain has more than %d MiB of L1 tables",
                     MAX_L1_BYTES >> 20);
}

int backing_open(struct image *img, const char *path, unsigned io_flags)
{
    struct chain chain = {.l1_bytes = img->header.l1_size * UINT64_C(8)};
    struct image *at = img;
    int ret = io_chain_add(&chain.files, path);
    while (ret == 0 && at && at->header.backing_off) {
        ret = open_link(at, path, io_flags, &chain, &at->backing);
        if (ret < 0 && at != img)
            image_fail(img, ret, "%s: %.200s", path, image_error(at));
        if (ret == 0) {
            path = at->backing->path;
            at = at->backing->img;
        }
    }
    if (ret < 0) {
        backing_close(img->backing);
        img->backing = NULL;
    }
    return ret;
}

int backing_read(
    struct backing *backing, uint64_t guest_off, void *buf, size_t length, struct image_error *why)
{
    uint64_t left = guest_off < backing->size_bytes ? backing->size_bytes - guest_off : 0;
    size_t inside = length < left ? length : (size_t)left;
    memset((uint8_t *)buf + inside, 0, length - inside);
    if (inside == 0)
        return 0;
    int ret = backing->img ? image_read(backing->img, guest_off, buf, inside)
                           : io_read(backing->io, guest_off, buf, inside);
    if (ret < 0)
        snprintf(why->text, sizeof(why->text), "%.100s: %.150s", backing->path,
            backing->img ? image_error(backing->img) : strerror(-ret));
    return ret;
}

uint64_t backing_size(const struct backing *backing)
{
    return backing->size_bytes;
}
