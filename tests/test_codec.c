/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "codec.h"

enum { CLUSTER = 65536, ROOM = 2 * CLUSTER };

static void fill(uint8_t *plain, size_t length, unsigned seed)
{
    for (size_t i = 0; i < length; i++)
        plain[i] = (uint8_t)(i % 61 == 0 ? rand_r(&seed) : (int)(i / 97));
}

static size_t deflate_raw(const uint8_t *plain, size_t length, int window, uint8_t *out)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)plain,
        .avail_in = (uInt)length,
        .next_out = out,
        .avail_out = ROOM};
    ck_assert_int_eq(deflateInit2(&z, 6, Z_DEFLATED, window, 8, Z_DEFAULT_STRATEGY), Z_OK);
    ck_assert_int_eq(deflate(&z, Z_FINISH), Z_STREAM_END);
    size_t done = z.total_out;
    deflateEnd(&z);
    return done;
}

static size_t zstd_frames(const uint8_t *plain, size_t length, size_t frames, uint8_t *out)
{
    size_t done = 0, piece = length / frames;
    for (size_t i = 0; i < frames; i++) {
        size_t n = i + 1 < frames ? piece : length - i * piece;
        size_t ret = ZSTD_compress(out + done, ROOM - done, plain + i * piece, n, 3);
        ck_assert(!ZSTD_isError(ret));
        done += ret;
    }
    return done;
}

struct room {
    uint8_t plain[ROOM], packed[ROOM], out[CLUSTER];
};

static int decode(enum qcow2_compression type, struct room *room, size_t packed_len)
{
    struct codec *codec;
    memset(room->out, 0x5c, sizeof(room->out));
    ck_assert_int_eq(codec_open(type, &codec), 0);
    int ret = codec_decode(codec, room->packed, packed_len, room->out, CLUSTER);
    /* The same again: no state is left from the first. */
    ck_assert_int_eq(codec_decode(codec, room->packed, packed_len, room->out, CLUSTER), ret);
    codec_close(codec);
    return ret;
}

START_TEST(what_writers_write)
{
    struct room *room = malloc(sizeof(*room));
    fill(room->plain, CLUSTER, 1);
    for (int window = -15; window <= -9; window++) {
        size_t length = deflate_raw(room->plain, CLUSTER, window, room->packed);
        memset(room->packed + length, 0xee, 600); /* the rest of the last sector */
        ck_assert_int_eq(decode(QCOW2_ZLIB, room, length + 600), 0);
        ck_assert_int_eq(memcmp(room->plain, room->out, CLUSTER), 0);
    }
    for (size_t frames = 1; frames <= 5; frames += 2) {
        size_t length = zstd_frames(room->plain, CLUSTER, frames, room->packed);
        memset(room->packed + length, 0xee, 600);
        ck_assert_int_eq(decode(QCOW2_ZSTD, room, length + 600), 0);
        ck_assert_int_eq(memcmp(room->plain, room->out, CLUSTER), 0);
    }
    free(room);
}
END_TEST

START_TEST(too_little_and_too_much)
{
    struct room *room = malloc(sizeof(*room));
    fill(room->plain, ROOM, 2);
    size_t length = deflate_raw(room->plain, CLUSTER - 1, -12, room->packed);
    ck_assert_int_eq(decode(QCOW2_ZLIB, room, length), -ENODATA);
    length = deflate_raw(room->plain, CLUSTER + 1, -12, room->packed);
    ck_assert_int_eq(decode(QCOW2_ZLIB, room, length), -EOVERFLOW);
    ck_assert_int_eq(memcmp(room->plain, room->out, CLUSTER), 0);
    length = zstd_frames(room->plain, CLUSTER - 1, 1, room->packed);
    ck_assert_int_eq(decode(QCOW2_ZSTD, room, length), -ENODATA);
    length = zstd_frames(room->plain, CLUSTER + 1, 1, room->packed);
    ck_assert_int_eq(decode(QCOW2_ZSTD, room, length), -EOVERFLOW);
    ck_assert_int_eq(memcmp(room->plain, room->out, CLUSTER), 0);
    free(room);
}
END_TEST

/* A stream cut at any place fails, or ends after the cluster was full. */
START_TEST(cut_streams)
{
    struct room *room = malloc(sizeof(*room));
    fill(room->plain, CLUSTER, 3);
    for (int zstd = 0; zstd < 2; zstd++) {
        size_t length = zstd ? zstd_frames(room->plain, CLUSTER, 2, room->packed)
                             : deflate_raw(room->plain, CLUSTER, -12, room->packed);
        size_t failed = 0;
        for (size_t cut = 0; cut < length; cut += 1 + cut / 7) {
            int ret = decode(zstd ? QCOW2_ZSTD : QCOW2_ZLIB, room, cut);
            if (ret == 0)
                ck_assert_int_eq(memcmp(room->plain, room->out, CLUSTER), 0);
            failed += ret != 0;
        }
        ck_assert_uint_gt(failed, 30);
    }
    free(room);
}
END_TEST

/* Any bytes at all: an answer, and never more than the cluster is written. */
START_TEST(any_bytes)
{
    struct room *room = malloc(sizeof(*room));
    unsigned seed = 4;
    for (int i = 0; i < 2000; i++) {
        size_t length = (size_t)rand_r(&seed) % 3000;
        for (size_t at = 0; at < length; at++)
            room->packed[at] = (uint8_t)rand_r(&seed);
        if (i % 2) /* begins like a frame */
            memcpy(room->packed, "\x28\xb5\x2f\xfd", 4);
        int ret = decode(i % 2 ? QCOW2_ZSTD : QCOW2_ZLIB, room, length);
        ck_assert(ret == 0 || ret == -EBADMSG || ret == -ENODATA || ret == -EOVERFLOW);
    }
    free(room);
}
END_TEST

START_TEST(unknown_types)
{
    struct codec *codec = NULL;
    ck_assert_int_eq(codec_open((enum qcow2_compression)2, &codec), -ENOTSUP);
    ck_assert_ptr_null(codec);
    codec_close(NULL);
}
END_TEST

Suite *test_codec(void);
Suite *test_codec(void)
{
    Suite *suite = suite_create("codec");
    TCase *tc = tcase_create("codec");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, what_writers_write);
    tcase_add_test(tc, too_little_and_too_much);
    tcase_add_test(tc, cut_streams);
    tcase_add_test(tc, any_bytes);
    tcase_add_test(tc, unknown_types);
    suite_add_tcase(suite, tc);
    return suite;
}
