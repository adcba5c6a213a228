/* SPDX-License-Identifier: MIT
 *
 * Decoding one compressed cluster.  Pure like qcow2.h, but for the state the libraries want. */
#ifndef ENGINE_CODEC_H
#define ENGINE_CODEC_H

#include <stddef.h>
#include <stdint.h>

#include "qcow2.h"

struct codec; /* for one thread; may be used for any number of clusters */

/* -ENOMEM, or -ENOTSUP for an unknown compression type. */
int codec_open(enum qcow2_compression type, struct codec **out);
void codec_close(struct codec *codec); /* NULL is allowed */

/* Decodes the bytes of a compressed cluster (raw deflate, or zstd frames one after the other) to
 * exactly dst_len bytes.  What follows in `src` once dst is full is not looked at: the descriptor
 * counts whole sectors.  An end mark is not demanded.
 *   -EBADMSG    not decodable
 *   -ENODATA    decodes to less than dst_len bytes
 *   -EOVERFLOW  goes on after dst_len bytes; dst is filled
 *   -ENOMEM */
int codec_decode(
    struct codec *codec, const uint8_t *src, size_t src_len, uint8_t *dst, size_t dst_len);

/* Bytes that the last codec_decode() made, whatever it came to: what it cost. */
size_t codec_made(const struct codec *codec);

#endif
