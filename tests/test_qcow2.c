/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <string.h>

#include "qcow2.h"

static struct qcow2_geometry geometry(unsigned cluster_bits, unsigned order, bool extended)
{
    struct qcow2_header header = {.version = 3,
        .cluster_bits = cluster_bits,
        .refcount_order = order,
        .incompatible = extended ? QCOW2_INCOMPAT_EXTL2 : 0};
    struct qcow2_geometry geo;
    ck_assert_int_eq(qcow2_geometry_init(&header, &geo), 0);
    return geo;
}

static void check_compressed(unsigned bits, uint64_t raw, uint64_t host_off, uint32_t length)
{
    struct qcow2_geometry geo = geometry(bits, 4, false);
    uint8_t bytes[8];
    struct qcow2_l2_entry e;
    store_be64(bytes, raw);
    qcow2_l2_decode(&geo, bytes, &e);
    ck_assert_int_eq(e.kind, QCOW2_L2_COMPRESSED);
    ck_assert_uint_eq(e.host_off, host_off);
    ck_assert_uint_eq(e.length, length);
    uint64_t again;
    ck_assert_int_eq(qcow2_compressed_encode(&geo, host_off, length, &again), 0);
    ck_assert_uint_eq(again, raw);
}

START_TEST(compressed_descriptors_of_three_cluster_sizes)
{
    check_compressed(16, UINT64_C(0x584000000005c178), 0x5c178, 49800);
    check_compressed(9, UINT64_C(0x6000000000000b9c), 0xb9c, 612);
    check_compressed(21, UINT64_C(0x5830000000b83044), 0xb83044, 3097 * 512 - 0x44);
}
END_TEST

START_TEST(refcounts_of_every_width_keep_their_neighbours)
{
    for (unsigned order = 0; order <= 6; order++) {
        uint8_t block[512];
        uint64_t max = UINT64_MAX >> (64 - (1u << order));
        uint64_t entries = 512 * 8 >> order;
        memset(block, 0, sizeof(block));
        for (uint64_t i = 0; i < entries; i++)
            qcow2_refcount_set(block, order, i, (i * 7 + 3) & max);
        for (uint64_t i = 0; i < entries; i++)
            ck_assert_uint_eq(qcow2_refcount_get(block, order, i), (i * 7 + 3) & max);
    }
    uint8_t byte = 0;
    qcow2_refcount_set(&byte, 0, 0, 1); /* the first one is the least significant bit */
    ck_assert_uint_eq(byte, 1);
    qcow2_refcount_set(&byte, 1, 3, 2);
    ck_assert_uint_eq(byte, 0x81);
}
END_TEST

START_TEST(l2_kinds)
{
    struct qcow2_geometry geo = geometry(16, 4, false), ext = geometry(16, 4, true);
    struct qcow2_geometry data = geo;
    data.data_file = true;
    const struct {
        const struct qcow2_geometry *geo;
        uint64_t raw;
        enum qcow2_l2_kind kind;
    } rows[] = {
        {&geo, 0, QCOW2_L2_UNALLOCATED},
        {&geo, 1, QCOW2_L2_ZERO_PLAIN},
        {&geo, 0x50001, QCOW2_L2_ZERO_ALLOC},
        {&geo, UINT64_C(0x8000000000050000), QCOW2_L2_NORMAL},
        {&geo, UINT64_C(0x8000000000000000), QCOW2_L2_UNALLOCATED},
        {&data, UINT64_C(0x8000000000000000), QCOW2_L2_NORMAL},
        {&ext, 0x50001, QCOW2_L2_NORMAL},
        {&ext, 1, QCOW2_L2_UNALLOCATED},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        uint8_t bytes[16] = {0};
        struct qcow2_l2_entry e;
        store_be64(bytes, rows[i].raw);
        qcow2_l2_decode(rows[i].geo, bytes, &e);
        ck_assert_msg(e.kind == rows[i].kind, "row %zu: kind %d", i, e.kind);
    }
}
END_TEST

START_TEST(geometry_refuses_what_it_cannot_shift)
{
    const struct qcow2_header bad[] = {
        {.version = 3, .cluster_bits = 8, .refcount_order = 4},
        {.version = 3, .cluster_bits = 22, .refcount_order = 4},
        {.version = 3, .cluster_bits = 16, .refcount_order = 7},
        {.version = 3,
            .cluster_bits = 13,
            .refcount_order = 4,
            .incompatible = QCOW2_INCOMPAT_EXTL2},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct qcow2_geometry geo;
        ck_assert_int_eq(qcow2_geometry_init(&bad[i], &geo), -EINVAL);
    }
    struct qcow2_geometry geo = geometry(16, 4, true);
    ck_assert_uint_eq(geo.l2_entries, 4096);
    ck_assert_uint_eq(geo.refblock_entries, 32768);
    ck_assert_uint_eq(geometry(9, 6, false).refcount_max, UINT64_MAX);
    ck_assert_uint_eq(geometry(9, 0, false).refcount_max, 1);
}
END_TEST

START_TEST(snapshot_record_there_and_back)
{
    uint8_t extra[27];
    memset(extra, 0xab, sizeof(extra));
    store_be64(extra, UINT64_C(0x123456789a));
    store_be64(extra + 8, 1 << 20);
    store_be64(extra + 16, 77);
    struct qcow2_snapshot s = {.l1_off = 0x30000,
        .l1_size = 2,
        .id_len = 1,
        .name_len = 5,
        .extra_len = sizeof(extra),
        .extra = extra,
        .id = (const uint8_t *)"9",
        .name = (const uint8_t *)"night"};
    uint8_t buf[80];
    ck_assert_uint_eq(qcow2_snapshot_length(&s), 80);
    qcow2_snapshot_encode(&s, buf);
    struct qcow2_snapshot back;
    ck_assert_int_eq(qcow2_snapshot_decode(buf, sizeof(buf), &back), 0);
    ck_assert_uint_eq(back.vm_state_size, UINT64_C(0x123456789a));
    ck_assert(back.has_disk_size && back.has_icount);
    ck_assert_uint_eq(back.disk_size, 1 << 20);
    ck_assert_mem_eq(back.extra, extra, sizeof(extra));
    ck_assert_mem_eq(back.name, "night", 5);
    ck_assert_uint_eq(back.record_len, 80);
    ck_assert_int_eq(qcow2_snapshot_decode(buf, 40, &back), -ENODATA);
    ck_assert_uint_eq(back.record_len, 80);
    ck_assert_int_eq(qcow2_snapshot_decode(buf, 39, &back), -ENODATA);
    ck_assert_uint_eq(back.record_len, 0);
}
END_TEST

START_TEST(extensions_end_where_they_must)
{
    uint8_t buf[64] = {0};
    store_be32(buf, 0x11111111);
    store_be32(buf + 4, 5); /* 8 + 5, padded to 16 */
    store_be32(buf + 16, 0x22222222);
    store_be32(buf + 20, 1000);
    struct qcow2_ext ext;
    size_t pos = 0;
    ck_assert_int_eq(qcow2_ext_next(buf, sizeof(buf), &pos, &ext), 1);
    ck_assert_uint_eq(ext.length, 5);
    ck_assert_int_eq(qcow2_ext_next(buf, sizeof(buf), &pos, &ext), -ERANGE);
    ck_assert_uint_eq(ext.type, 0x22222222);
    store_be32(buf + 16, 0);
    ck_assert_int_eq(qcow2_ext_next(buf, sizeof(buf), &pos, &ext), 0);
    pos = 60;
    ck_assert_int_eq(qcow2_ext_next(buf, sizeof(buf), &pos, &ext), 0);
    pos = 1000;
    ck_assert_int_eq(qcow2_ext_next(buf, sizeof(buf), &pos, &ext), 0);
}
END_TEST

START_TEST(bitmap_bytes_round_up_without_overflow)
{
    ck_assert_uint_eq(qcow2_bitmap_bytes(0, 16), 0);
    ck_assert_uint_eq(qcow2_bitmap_bytes(1, 16), 1);
    ck_assert_uint_eq(qcow2_bitmap_bytes(65536 * 8 + 1, 16), 2);
    ck_assert_uint_eq(qcow2_bitmap_bytes(UINT64_MAX, 0), UINT64_C(1) << 61);
    ck_assert_uint_eq(qcow2_bitmap_bytes(UINT64_MAX, 63), 1);
}
END_TEST

Suite *test_qcow2(void);
Suite *test_qcow2(void)
{
    Suite *suite = suite_create("qcow2");
    TCase *tc = tcase_create("format");
    tcase_add_test(tc, compressed_descriptors_of_three_cluster_sizes);
    tcase_add_test(tc, refcounts_of_every_width_keep_their_neighbours);
    tcase_add_test(tc, l2_kinds);
    tcase_add_test(tc, geometry_refuses_what_it_cannot_shift);
    tcase_add_test(tc, snapshot_record_there_and_back);
    tcase_add_test(tc, extensions_end_where_they_must);
    tcase_add_test(tc, bitmap_bytes_round_up_without_overflow);
    suite_add_tcase(suite, tc);
    return suite;
}
