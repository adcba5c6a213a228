/* SPDX-License-Identifier: MIT
 *
 * The files an image names: its data file and, with --backing, its chain of backing files.
 *
 * What an image names is not trusted: only plain paths are followed, only regular files and block
 * devices are opened, never for writing. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "walk.h"

/* The machine failed, and the image is not to blame.  What else keeps a file from being opened is
 * the fault of whoever named it. */
static bool machine_failed(struct walk *walk, const char *what, int ret)
{
    static const int errors[] = {EIO, EMFILE, ENFILE, EINTR, EAGAIN, ESTALE, EOVERFLOW};
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        if (ret == -errors[i]) {
            report_problem(
                walk->report, "the %s cannot be looked at: %s", what, strerror(errors[i]));
            return true;
        }
    }
    return false;
}

/* ---- data file ---- */

static int look_at_data_file(struct walk *walk, struct subject *subject)
{
    const struct qcow2_ext *name = &walk->data_file_name;
    if (!name->data || name->length == 0) {
        subject->data_file.missing = true;
        return 0;
    }
    char *path;
    int ret = io_file_named(walk->filename, name->data, name->length, &path);
    subject->data_file.unsafe_name = ret == -EINVAL;
    if (ret < 0)
        return ret == -EINVAL ? 0 : ret;
    struct io *io;
    ret = io_file_open(path, IO_FILE_NO_LOCK, &io, NULL);
    free(path);
    if (ret == 0) {
        ret = io_size(io, &subject->data_file.size);
        io_close(io);
    }
    subject->data_file.missing = ret < 0 && !machine_failed(walk, "data file", ret);
    return ret == -ENOMEM ? ret : 0;
}

int walk_data_file(struct walk *walk)
{
    if (!walk->geo.data_file || !walk->filename)
        return 0;
    uint64_t disk = walk->header.size_bytes, end = walk->data_file_end;
    bool raw = walk->header.autoclear & QCOW2_AUTOCLEAR_RAW_DATA;
    struct subject subject = {.kind = OBJECT_DATA_FILE,
        .tree = TREE_ACTIVE,
        .data_file = {.name = walk->data_file_name.data, .name_len = walk->data_file_name.length}};
    int ret = look_at_data_file(walk, &subject);
    if (ret < 0)
        return ret;
    uint64_t wanted = raw || disk < end ? disk : end;
    /* As in the image, the last cluster may be cut short. */
    if (wanted > subject.data_file.size &&
        wanted - subject.data_file.size >= walk->geo.cluster_size) {
        subject.data_file.wanted = wanted;
        subject.guest_off = subject.data_file.size;
        subject.guest_len = wanted - subject.data_file.size;
    }
    walk_show(walk, &subject);
    return 0;
}

/* ---- backing chain ---- */

/* One file of the chain and what it says about the next one. */
struct chain {
    struct io_chain files;
    char *path;    /* of the current file */
    uint64_t size; /* of the disk it shows */
    uint8_t name[QCOW2_MAX_BACKING_NAME];
    size_t name_len; /* 0: no backing file */
    char format[16]; /* as the current file says, "" if it does not */
};

static void take_name(
    struct chain *chain, const uint8_t *head, size_t head_len, const struct qcow2_header *header)
{
    chain->name_len = 0;
    chain->format[0] = '\0';
    uint64_t end;
    if (header->backing_off == 0 || header->backing_len == 0 ||
        header->backing_len > QCOW2_MAX_BACKING_NAME ||
        !range_end(header->backing_off, header->backing_len, &end) || end > head_len)
        return;
    chain->name_len = header->backing_len;
    memcpy(chain->name, head + header->backing_off, header->backing_len);
    struct qcow2_ext ext;
    size_t pos = header->header_length;
    while (qcow2_ext_next(head, (size_t)header->backing_off, &pos, &ext) == 1) {
        if (ext.type == (uint32_t)QCOW2_EXT_BACKING_FORMAT) { /* no name that counts is longer */
            size_t most = sizeof(chain->format) - 1, length = ext.length < most ? ext.length : most;
            memcpy(chain->format, ext.data, length);
            chain->format[length] = '\0';
        }
    }
}

/* A link is checked as any image is, but for what it names: the chain goes there. */
static int check_link(struct walk *walk, struct io *io, const char *path, struct subject *subject)
{
    const struct check_options how = {.threads = walk->options->threads,
        .deep = walk->options->deep,
        .stop = walk->options->stop};
    struct report report;
    report_init(&report, 0);
    int ret = check_image(io, path, &how, &report);
    subject->backing.damaged = report.corruptions > 0;
    if (report.incomplete || report.unsupported)
        report_problem(walk->report, "backing file %zu of the chain was not judged: %s",
            (size_t)subject->index,
            report.problem[0] ? report.problem : "it has features that are not known here");
    report_release(&report);
    return ret == -ENOMEM || ret == -EINTR ? ret : 0;
}

/* Opens the next file and compares it with what was said about it; the chain then stands on it. */
static int open_next(
    struct walk *walk, struct chain *chain, const char *path, struct subject *subject)
{
    enum { HEAD_BYTES = 1 << QCOW2_MAX_CLUSTER_BITS }; /* names are in the first cluster */
    struct io *io = NULL;
    uint64_t size = 0;
    struct qcow2_header header = {0};
    uint8_t *head = malloc(HEAD_BYTES);
    int ret = head ? io_file_open(path, IO_FILE_NO_LOCK, &io, NULL) : -ENOMEM;
    if (ret == 0)
        ret = io_size(io, &size);
    if (ret == 0)
        ret = io_read_padded(io, 0, head, HEAD_BYTES);
    if (ret == 0) {
        bool is_qcow2 = size >= QCOW2_V2_HEADER_BYTES && load_be32(head) == QCOW2_MAGIC &&
                        qcow2_header_decode(head, HEAD_BYTES, &header) == 0;
        bool as_raw = strcmp(chain->format, "raw") == 0;
        subject->backing.wrong_format =
            strcmp(chain->format, "qcow2") == 0 ? !is_qcow2 : as_raw && is_qcow2;
        subject->backing.size = is_qcow2 && !as_raw ? header.size_bytes : size;
        subject->backing.wanted = chain->size;
        chain->size = subject->backing.size;
        chain->name_len = 0;
        if (is_qcow2 && !as_raw) {
            take_name(chain, head, HEAD_BYTES, &header);
            ret = check_link(walk, io, path, subject);
        } else if (chain->format[0] && !as_raw && strcmp(chain->format, "qcow2") != 0) {
            report_problem(walk->report,
                "backing file %zu of the chain is neither raw nor qcow2, and was not judged",
                (size_t)subject->index);
        }
    }
    subject->backing.missing = ret < 0 && !machine_failed(walk, "backing file", ret);
    if (ret < 0)
        chain->name_len = 0;
    io_close(io);
    free(head);
    return ret == -ENOMEM || ret == -EINTR ? ret : 0;
}

static int follow(struct walk *walk, struct chain *chain)
{
    uint8_t name[QCOW2_MAX_BACKING_NAME]; /* the chain moves on to the next one */
    struct subject subject = {.kind = OBJECT_BACKING,
        .tree = TREE_NONE,
        .index = chain->files.depth,
        .backing = {.name = name, .name_len = chain->name_len}};
    memcpy(name, chain->name, chain->name_len);
    char *path = NULL;
    int ret = io_file_named(chain->path, name, chain->name_len, &path);
    subject.backing.unsafe_name = ret == -EINVAL;
    subject.backing.too_deep = ret == 0 && chain->files.depth > IO_CHAIN_MAX;
    if (ret == 0 && !subject.backing.too_deep) {
        subject.backing.loop = io_chain_add(&chain->files, path) == -EEXIST;
        if (!subject.backing.loop)
            ret = open_next(walk, chain, path, &subject);
        free(chain->path);
        chain->path = path;
        path = NULL;
    }
    free(path);
    ret = ret == -EINVAL ? 0 : ret;
    if (ret == 0 && walk_show(walk, &subject) >= AFTER_SKIP)
        chain->name_len = 0;
    return ret < 0 ? ret : walk_pause(walk, 0);
}

int walk_backing_chain(struct walk *walk)
{
    if (!walk->options->backing || !walk->filename || !walk->view.has_backing)
        return 0;
    struct chain *chain = calloc(1, sizeof(*chain));
    if (!chain)
        return -ENOMEM;
    chain->path = strdup(walk->filename);
    chain->size = walk->header.size_bytes;
    int ret = chain->path ? 0 : -ENOMEM;
    if (ret == 0) {
        take_name(chain, walk->head, walk->head_len, &walk->header);
        (void)io_chain_add(&chain->files, chain->path); /* the first one */
    }
    while (ret == 0 && chain->name_len > 0)
        ret = follow(walk, chain);
    free(chain->path);
    free(chain);
    return ret;
}
