/* SPDX-License-Identifier: MIT
 *
 * The compression type and its feature bit, where they contradict each other: what compressed
 * clusters are their data says, which one type decodes and the other does not. */
#include <stdlib.h>

#include "repair.h"

/* A few clusters decoded as each type. */
struct sample {
    unsigned looked, as[QCOW2_ZSTD + 1];
    bool whole; /* all tables were read: if none was looked at there are none */
};

enum { MOST_LOOKED = 16 };

static void look_at_table(const struct repair *repair, const uint8_t *bytes, struct sample *sample)
{
    const struct qcow2_geometry *geo = &repair->walk->geo;
    for (uint32_t i = 0; i < geo->l2_entries && sample->looked < MOST_LOOKED; i++) {
        struct qcow2_l2_entry e;
        qcow2_l2_decode(geo, bytes + (size_t)i * geo->l2_entry_size, &e);
        if (e.kind != QCOW2_L2_COMPRESSED)
            continue;
        sample->looked++;
        for (int type = QCOW2_ZLIB; type <= QCOW2_ZSTD; type++)
            sample->as[type] += repair_decodes_as(repair, (uint32_t)type, &e);
    }
}

static struct sample look(const struct repair *repair)
{
    const struct walk *walk = repair->walk;
    struct sample sample = {.whole = walk->judgeable && !repair->report.incomplete};
    uint8_t *bytes = repair_memory(repair, malloc(walk->geo.cluster_size));
    for (size_t i = 0; i < walk->tables.count && sample.looked < MOST_LOOKED; i++) {
        const struct table *table = &walk->tables.items[i];
        bool read = bytes && !table->skip &&
                    io_read_padded(walk->io, table->host_off, bytes, walk->geo.cluster_size) == 0;
        if (read && table->has_compressed)
            look_at_table(repair, bytes, &sample);
        sample.whole &= read;
    }
    free(bytes);
    return sample;
}

/* The type, with its bit; a header that ends before the field can only say zlib. */
static int set_type(struct repair *repair, enum check_id why, enum qcow2_compression type)
{
    const struct qcow2_header *header = &repair->walk->header;
    uint64_t features = header->incompatible & ~QCOW2_INCOMPAT_COMPRESSION;
    uint8_t byte = (uint8_t)type;
    int ret = 0;
    if (type == QCOW2_ZSTD)
        features |= QCOW2_INCOMPAT_COMPRESSION;
    if (header->compression != type)
        ret = header->header_length > QCOW2_HDR_COMPRESSION
                  ? plan_bytes(&repair->plan, PHASE_SWITCH, why, QCOW2_HDR_COMPRESSION, &byte, 1)
                  : 0;
    if (ret == 0 && features != header->incompatible)
        ret = plan_be64(&repair->plan, PHASE_SWITCH, why, QCOW2_HDR_INCOMPATIBLE, features);
    return ret;
}

int repair_compression(struct repair *repair, enum check_id why)
{
    const struct qcow2_header *header = &repair->walk->header;
    bool field = header->header_length > QCOW2_HDR_COMPRESSION;
    bool zstd = field && (header->incompatible & QCOW2_INCOMPAT_COMPRESSION);
    struct sample sample = look(repair);
    bool told = sample.as[QCOW2_ZLIB] != sample.as[QCOW2_ZSTD];
    if (told)
        zstd = sample.as[QCOW2_ZSTD] > sample.as[QCOW2_ZLIB];
    told |= sample.looked == 0 && sample.whole; /* nothing depends on it */
    if ((zstd && !field) || (!told && !repair->lossy))
        return 0;
    int ret = told ? 0 : plan_remark(&repair->plan, "choice: nothing tells the compression type");
    return ret < 0 ? ret : set_type(repair, why, zstd ? QCOW2_ZSTD : QCOW2_ZLIB);
}
