/* SPDX-License-Identifier: MIT
 *
 * Compressed clusters through zlib and libzstd; see codec.h. */
#include "codec.h"

#include <errno.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

enum { DEFLATE_WINDOW_BITS = 15 }; /* written with 12, but up to 15 has been seen */

struct codec {
    enum qcow2_compression type;
    z_stream zlib;
    ZSTD_DCtx *zstd;
    size_t made;
};

int codec_open(enum qcow2_compression type, struct codec **out)
{
    if (type != QCOW2_ZLIB && type != QCOW2_ZSTD)
        return -ENOTSUP;
    struct codec *codec = calloc(1, sizeof(*codec));
    if (!codec)
        return -ENOMEM;
    codec->type = type;
    bool ok;
    if (type == QCOW2_ZLIB)
        ok = inflateInit2(&codec->zlib, -DEFLATE_WINDOW_BITS) == Z_OK;
    else
        ok = (codec->zstd = ZSTD_createDCtx()) != NULL;
    if (!ok) {
        free(codec);
        return -ENOMEM;
    }
    *out = codec;
    return 0;
}

void codec_close(struct codec *codec)
{
    if (!codec)
        return;
    if (codec->type == QCOW2_ZLIB)
        inflateEnd(&codec->zlib);
    else
        ZSTD_freeDCtx(codec->zstd);
    free(codec);
}

static int decode_zlib(
    struct codec *codec, const uint8_t *src, size_t src_len, uint8_t *dst, size_t dst_len)
{
    z_stream *z = &codec->zlib;
    if (inflateReset(z) != Z_OK)
        return -EBADMSG;
    z->next_in = (z_const Bytef *)src;
    z->avail_in = (uInt)src_len;
    z->next_out = dst;
    z->avail_out = (uInt)dst_len;
    int ret = inflate(z, Z_SYNC_FLUSH);
    codec->made = dst_len - z->avail_out;
    if (ret == Z_MEM_ERROR)
        return -ENOMEM;
    if (ret == Z_STREAM_END)
        return z->avail_out == 0 ? 0 : -ENODATA;
    if (z->avail_out > 0)
        return ret == Z_OK || ret == Z_BUF_ERROR ? -ENODATA : -EBADMSG;
    /* Full.  Whether more would come only another byte of room can tell; a stream that simply has
     * no end mark, or is followed by other bytes of its last sector, is fine. */
    uint8_t more;
    z->next_out = &more;
    z->avail_out = 1;
    inflate(z, Z_SYNC_FLUSH);
    z->next_out = NULL;
    return z->avail_out == 0 ? -EOVERFLOW : 0;
}

static int decode_zstd(
    struct codec *codec, const uint8_t *src, size_t src_len, uint8_t *dst, size_t dst_len)
{
    ZSTD_DCtx *ctx = codec->zstd;
    ZSTD_DCtx_reset(ctx, ZSTD_reset_session_only);
    ZSTD_inBuffer in = {.src = src, .size = src_len};
    ZSTD_outBuffer out = {.dst = dst, .size = dst_len};
    size_t left = 0;
    while (out.pos < out.size) {
        size_t in_before = in.pos, out_before = out.pos;
        left = ZSTD_decompressStream(ctx, &out, &in);
        codec->made = out.pos;
        if (ZSTD_isError(left))
            return -EBADMSG;
        if (in.pos == in_before && out.pos == out_before)
            return -ENODATA;
    }
    uint8_t more;
    ZSTD_outBuffer beyond = {.dst = &more, .size = 1};
    if (left != 0) /* inside a frame: its checksum may follow, or more data */
        ZSTD_decompressStream(ctx, &beyond, &in);
    return beyond.pos > 0 ? -EOVERFLOW : 0;
}

int codec_decode(
    struct codec *codec, const uint8_t *src, size_t src_len, uint8_t *dst, size_t dst_len)
{
    codec->made = 0;
    return codec->type == QCOW2_ZLIB ? decode_zlib(codec, src, src_len, dst, dst_len)
                                     : decode_zstd(codec, src, src_len, dst, dst_len);
}

size_t codec_made(const struct codec *codec)
{
    return codec->made;
}
