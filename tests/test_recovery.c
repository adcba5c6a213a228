/* SPDX-License-Identifier: MIT
 *
 * Ways of the repair that take an image of their own, one row each: what is found again, what is
 * left alone because the image does not tell, what is given up.  The corpus has the cases that each
 * check is about; these are about what speaks for and against a repair. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault_io.h"
#include "recipe.h"
#include "repair.h"
#include "same.h"

enum { MOST_PAIRS = 3 };

enum mode { SAFE, LOSSY, LEAKS };

/* A cluster of the disk behind one that nobody uses, so that only each second one is named; sixteen
 * of them. */
#define APART(k) "gap 4k\ndata " #k "k 4k\n"
#define ALL_APART                                                                             \
    APART(4)                                                                                  \
    APART(8)                                                                                  \
    APART(12)                                                                                 \
    APART(16)                                                                                 \
    APART(20)                                                                                 \
    APART(24)                                                                                 \
    APART(28) APART(32) APART(36) APART(40) APART(44) APART(48) APART(52) APART(56) APART(60) \
        APART(64)

static const struct row {
    const char *recipe;
    enum mode mode;
    int exit_code;
    const char *remark; /* "": any, or none */
    struct {
        const char *is, *should_be; /* expressions on the repaired image */
    } pairs[MOST_PAIRS];
} rows[] = {
    /* ---- the header's bit for extended L2 entries ---- */
    {"image cluster=16k extended_l2 size=8M\ndata 0 256k\ndata 1M 4k\ndamage header.incompatible = "
     "0\n",
        SAFE, 0, "", {{"header.incompatible", "0x10"}, {"l2[0][15]", "was(l2[0][15])"}}},
    {"image cluster=16k size=8M\ndata 0 256k\ndamage header.incompatible = 0x10\n", SAFE, 0, "",
        {{"header.incompatible", "0"}, {"refcount[@was(l2[0][1])]", "1"}}},
    /* too few entries to be sure */
    {"image cluster=16k size=8M\ndata 0 64k\ndamage header.incompatible = 0x10\n", SAFE, 2, "",
        {{"header.incompatible", "0x10"}, {"refcount[@was(l2[0][1])]", "1"}}},
    {"image cluster=16k size=8M\ndata 0 64k\ndamage header.incompatible = 0x10\n", LOSSY, 0,
        "choice: L2 entries are taken for plain ones", {{"header.incompatible", "0"}}},
    /* half of the clusters seem to leak */
    {"image cluster=16k size=8M\ndata 0 256k\ndamage header.incompatible = 0x10\n", LEAKS, 2, "",
        {{"header.incompatible", "0x10"}, {"refcount[@was(l2[0][1])]", "1"}}},
    /* a count of 2 is lowered to 1: the flag that says so goes with it */
    {"image cluster=4k size=2M\ndata 0 8k\ndamage l2[0][1] = l2[0][1].offset\n"
     "damage refcount[@l2[0][1]] = 2\n",
        LEAKS, 0, "", {{"l2[0][1]", "was(l2[0][1])"}, {"refcount[@l2[0][1]]", "1"}}},
    /* ---- a geometry that is possible, but not that of the image ---- */
    /* clusters taken for half and for a quarter of theirs, where one L1 entry is enough for both */
    {"image cluster=128k size=40M\ndata 0 1M\ndata 8M 64k\ndamage header.cluster_bits = 16\n", SAFE,
        0, "", {{"header.cluster_bits", "17"}}},
    {"image cluster=128k size=40M\ndata 0 1M\nsnapshot id=1\ndata 0 256k\n"
     "damage header.cluster_bits = 15\n",
        SAFE, 0, "", {{"header.cluster_bits", "17"}}},
    /* much else is wrong, but the tables of all disks are as long as they must be */
    {"image cluster=32k size=700M\ndata 0 1M\ndata 500M 64k\nsnapshot id=1\ndata 0 64k\n"
     "damage header.cluster_bits = 14\ndamage l1[1] = l1[0]\ndamage l1[0] = 0\n",
        SAFE, 0, "", {{"header.cluster_bits", "15"}}},
    /* clusters that leak between those that are used: with larger ones the counts of half of the
       file would be behind its end, and only seem to be right */
    {"image cluster=4k refcount_bits=8 size=8M\nzero 0 4k\n" ALL_APART "gap 20k\n"
     "set copy reftable.offset 0x26000 4k\nset header.reftable_offset = 0x26000\n"
     "set copy l1.offset 0x28000 4k\nset header.l1_offset = 0x28000\n"
     "damage fill &refcount[0] 42 1\ndamage header.size = 9M\n",
        SAFE, 0, "", {{"header.cluster_bits", "12"}}},
    /* ---- other fields of the header ---- */
    /* what compressed data is tells its data */
    {"image\ncompressed 0 128k\ndamage header.compression = 1\n", SAFE, 0, "",
        {{"header.compression", "0"}, {"header.incompatible", "0"}}},
    {"image compression=zstd\ncompressed 0 128k\ndamage header.compression = 0\n", SAFE, 0, "",
        {{"header.compression", "1"}, {"header.incompatible", "8"}}},
    {"image compression=zstd\ncompressed 0 128k\ndamage header.compression = 0x82\n", SAFE, 0, "",
        {{"header.compression", "1"}}},
    /* or nothing does */
    {"image\ndata 0 64k\ndamage header.compression = 0x40\n", SAFE, 0, "",
        {{"header.compression", "0"}}},
    {"image\ncompressed 0 64k\ndamage fill (l2[0][0] & 0x3fffffffffff) 512 0xff\n"
     "damage header.compression = 2\n",
        SAFE, 2, "", {{"header.compression", "2"}}},
    {"image\ncompressed 0 64k\ndamage fill (l2[0][0] & 0x3fffffffffff) 512 0xff\n"
     "damage header.compression = 2\n",
        LOSSY, 0, "nothing tells the compression type", {{"header.compression", "0"}}},
    /* no name, where there can be none */
    {"image\ndata 0 64k\ndamage header.backing_offset = 1T\n", SAFE, 0, "",
        {{"header.backing_offset", "0"}}},
    {"image backing=base\ndata 0 64k\ndamage header.backing_offset = 1T\n", SAFE, 2, "",
        {{"header.backing_offset", "1T"}}},
    /* ---- a bit of an entry ---- */
    /* it names a bitmap, but its neighbours say what it was */
    {"image cluster=4k size=8M\ndata 0 128k\nsnapshot id=1\ndata 16k 32k\nbitmap name=b auto\n"
     "damage l2[0][8] = bitmap[0].table[0].offset | (1 << 63)\n",
        SAFE, 0, "", {{"l2[0][8]", "was(l2[0][8])"}}},
    /* or do not: it may be the bitmap */
    {"image cluster=4k size=8M\ndata 0 4k\nbitmap name=b auto\n"
     "damage l2[0][0] = bitmap[0].table[0].offset | (1 << 63)\n",
        SAFE, 0, "", {{"bitmap[0].table[0]", "was(bitmap[0].table[0])"}}},
    /* a record names a guest's cluster as an L1 table: the guest keeps it */
    {"image version=2 cluster=1k size=1M\ndata 0 64k\nsnapshot id=1 extra=0\ndata 2k 8k\n"
     "damage snapshot[0].l1_offset = snapshot[0].l1_offset ^ 0x400\n",
        SAFE, 0, "", {{"l2[0][62]", "was(l2[0][62])"}}},
    /* an extended entry with a bitmap is compressed only if its data says so */
    {"image cluster=16k extended_l2 size=64M\ndata 0 256k\nsnapshot id=1\ndata 32k 32k\n"
     "damage l2[0][12] = l2[0][12] ^ (1 << 62)\n",
        SAFE, 0, "",
        {{"l2[0][12]", "was(l2[0][12])"}, {"l2[0][12].bitmap", "was(l2[0][12].bitmap)"}}},
    {"image cluster=16k extended_l2 size=64M\ncompressed 0 64k\ndamage l2[0][1].bitmap = 1\n", SAFE,
        0, "", {{"l2[0][1].bitmap", "0"}, {"l2[0][1]", "was(l2[0][1])"}}},
    /* of those who share a cluster it is not the compressed one that is wrong, if it decodes */
    {"image cluster=4k size=8M\ndata 0 128k\ncompressed 4M 16k seed=1\n"
     "damage l2[0][19] = (l2[2][1] & 0x3ffffffff000) | (1 << 63)\n",
        SAFE, 0, "", {{"l2[0][19]", "was(l2[0][19])"}}},
    /* or that the count is the other one's */
    {"image cluster=4k size=8M\ndata 0 4k\nsnapshot id=1\nsnapshot id=2\ndata 1M 4k\n"
     "damage l2[0][256] = l2[0][0].offset | (1 << 63)\n",
        SAFE, 0, "", {{"l2[0][0]", "was(l2[0][0])"}}},
    {"image cluster=16k extended_l2 size=64M\ndata 0 256k\ndata 1M 4k\ndata 33M 24k\n"
     "zero 40M 16k prealloc\nsnapshot id=1\ndata 32k 32k\nsnapshot id=2\ndata 48k 4k\n"
     "damage snapshot[1].l2[0][3] = snapshot[1].l2[0][3] ^ 0x10000\n",
        SAFE, 0, "",
        {{"snapshot[1].l2[0][3]", "was(snapshot[1].l2[0][3])"}, {"l2[2][512]", "was(l2[2][512])"}}},
    /* nothing but that bit: it was empty */
    {"image cluster=4k size=8M\ndata 0 128k\ndamage l2[0][32] = 0x4000\n", SAFE, 0, "",
        {{"l2[0][32]", "0"}}},
    {"image cluster=4k size=8M\ndata 0 128k\nsnapshot id=1\ndamage l2[0][40] = 0x8000\n", SAFE, 0,
        "", {{"l2[0][3]", "was(l2[0][3])"}}},
    {"image cluster=4k size=8M\ndata 0 128k\ndamage l1[1] = 0x1000\n", SAFE, 0, "",
        {{"l1[1]", "0"}, {"header.reftable_offset", "was(header.reftable_offset)"}}},
    /* ---- empty L2 entries ---- */
    /* the sector of a younger table was lost with this entry */
    {"image cluster=4k size=2M\ndata 0 256k\nsnapshot id=1\ndiscard 20k 4k\ndata 1M 4k\n"
     "snapshot id=2\ndata 1028k 4k\ndamage snapshot[0].l2[0][5] = 0\n"
     "damage fill snapshot[1].l2[0].offset 512 0\n",
        LOSSY, 0, "the clusters that another disk has",
        {{"snapshot[1].l2[0][4]", "snapshot[0].l2[0][4]"}}},
    /* a younger table has nothing there, and lost nothing */
    {"image cluster=4k size=2M\ndata 0 256k\nsnapshot id=1\ndiscard 0 256k\ndata 1M 4k\n"
     "snapshot id=2\ndata 1028k 4k\ndamage snapshot[0].l2[0][5] = 0\n",
        LOSSY, 0, "", {{"snapshot[1].l2[0][4]", "0"}}},
    /* compressed data, of which an older disk knows */
    {"image cluster=4k size=2M\ncompressed 0 64k\nsnapshot id=1\ndata 1M 4k\ndamage l2[0][2] = 0\n"
     "damage l2[0][3] = 0\n",
        LOSSY, 0, "the clusters that another disk has",
        {{"l2[0][2]", "snapshot[0].l2[0][2]"}, {"l2[0][3]", "snapshot[0].l2[0][3]"}}},
    /* ---- guest data that the header, or an L1 entry, has come to name ---- */
    /* a copy of the directory of bitmaps, as the table of snapshots */
    {"image cluster=4k refcount_bits=64 size=16M\ndata 0 256k\nsnapshot id=1\ndata 0 16k\n"
     "bitmap name=b granularity=64k fill=data\n"
     "set copy bitmaps.offset (l2[0][8].offset) cluster\n"
     "set copy bitmap[0].table.offset (l2[0][9].offset) cluster\n"
     "set u64[l2[0][8].offset] = l2[0][9].offset\n"
     "damage header.snapshots_offset = l2[0][8].offset\n",
        SAFE, 0, "",
        {{"header.snapshots_offset", "was(snapshots.offset)"}, {"header.snapshot_count", "1"}}},
    /* the true table hides behind what the data names */
    {"image cluster=4k size=8M\ndata 0 32k\nset copy l2[0].offset (l2[0][2].offset) cluster\n"
     "set u64[l2[0][2].offset + 16] = 0\ndamage l1[0].offset = l2[0][2].offset\n",
        SAFE, 0, "", {{"l1[0]", "was(l1[0])"}}},
    /* ---- an L2 table of zeros, and its data leaks ---- */
    {"image cluster=4k size=8M\ndata 0 256k\ndamage fill l2[0].offset cluster 0\n", SAFE, 3,
        "left: what leaks may be", {{"refcount[@was(l2[0][1])]", "1"}}},
    {"image cluster=4k size=8M\ndata 0 256k\ndamage fill l2[0].offset cluster 0\n", LEAKS, 3,
        "left: what leaks may be", {{"refcount[@was(l2[0][1])]", "1"}}},
    {"image cluster=4k size=8M\ndata 0 256k\ndamage fill l2[0].offset cluster 0\n", LOSSY, 0,
        "lost: what leaks may be", {{"refcount[@was(l2[0][1])]", "0"}}},
    /* so little may be what a call was interrupted with */
    {"image cluster=4k size=8M\ndata 0 64k\ndamage fill l2[0].offset cluster 0\n", SAFE, 0, "",
        {{"refcount[@was(l2[0][1])]", "0"}}},
    /* zeros were never written */
    {"image cluster=4k size=8M\ndata 0 256k pattern=0\ndamage fill l2[0].offset cluster 0\n", SAFE,
        0, "", {{"refcount[@was(l2[0][1])]", "0"}}},
    /* ---- feature bits ---- */
    /* unknown ones, several: that the image has a data file would be named */
    {"image cluster=4k size=2M\ndata 0 64k\ndamage header.incompatible |= 0x300\n", true, 0,
        "unknown feature bits 0x300 are cleared", {{"header.incompatible", "0"}}},
    /* and here it is */
    {"image cluster=4k size=2M data_file=disk.raw\ndata 0 64k\n"
     "damage header.incompatible = 0x300\n",
        true, 0, "unknown feature bits 0x300 are cleared", {{"header.incompatible", "4"}}},
    /* ---- what is given up ---- */
    {"image cluster=16k extended_l2 size=2M backing=b backing_format=raw\ndata 0 32k\n"
     "damage refcount[@l2[0][1]] = 0\ndamage l2[0][1].offset = 1G\n",
        LOSSY, 0, "lost: guest 0x4000",
        {{"l2[0][1]", "0"}, {"l2[0][1].bitmap", "0xffffffff00000000"}}},
    /* no room for a second owner's cluster before the entry that names the file's end is gone */
    {"image cluster=4k size=2M\ndata 0 16k\ndamage l2[0][8] = l2[0][0]\n"
     "damage l2[0][20] = 0x8000000000000000 | file.size\n",
        LOSSY, 0, "own copy of the cluster", {{"l2[0][20]", "0"}}},
    /* a cluster of zeros is wanted in version 2, and there is no room for one */
    {"image version=2 cluster=512 size=2M backing=b backing_format=raw\ndata 0 124k\n"
     "damage l2[3][60] = 0x8000000040000000\n",
        LOSSY, 0, "lost: guest 0x1f800", {{"l2[3][60]", "0"}, {"file.size", "128k"}}},
    /* ---- L1 and L2 entries ---- */
    /* no counts are left: the other disk and one bit tell */
    {"image cluster=4k size=2M\ndata 0 8k\nsnapshot id=1\ndata 1M 4k\n"
     "damage snapshot[0].l2[0][1] ^= 0x10000000000000\ndamage reftable[0] = 0\n"
     "damage fill refblock[0].offset cluster 0xff\n",
        SAFE, 0, "", {{"snapshot[0].l2[0][1]", "was(snapshot[0].l2[0][1])"}}},
    /* one of two owners keeps what they share, though both have lost a cluster */
    {"image cluster=4k size=2M\ndata 0 64k\ngap 4k\ndata 128k 4k\ndamage l2[0][1].offset = "
     "0x15000\n"
     "damage l2[0][9].offset = 0x15000\ndamage refcount[0x15] = 1\n",
        SAFE, 0, "", {{"l2[0][1]", "was(l2[0][1])"}, {"l2[0][9].offset", "0x15000"}}},
    /* a table that two places share is no third one's */
    {"image cluster=4k size=8M\ndata 0 4k\ndata 2M 4k\ndata 4M 4k\ndamage l1[1] = l1[0]\n"
     "damage refcount[@l1[0]] = 3\ndamage l1[2] = 0x8123456789a000\n",
        LOSSY, 0, "", {{"l1[0]", "was(l1[0])"}, {"l1[1]", "was(l1[1])"}, {"l1[2]", "was(l1[2])"}}},
    /* also where it is counted for one of the other disks */
    {"image cluster=4k size=8M\nsnapshot id=1\nsnapshot id=2\ndata 0 4k\ndata 2M 4k\ndata 4M 4k\n"
     "damage l1[1] = l1[0]\ndamage refcount[@l1[0]] = 3\ndamage l1[2] = 0x8123456789a000\n",
        LOSSY, 0, "lost: guest 0x400000-", {{"l1[0].offset", "was(l1[0].offset)"}, {"l1[2]", "0"}}},
    /* zeros that the lost table has for data are no table of the entry that names them */
    {"image cluster=4k size=4M\ndata 0 32k\ndata 32k 4k pattern=0\ndata 36k 32k\ndata 2M 32k\n"
     "damage l1[0].offset = l2[0][8].offset\n",
        LOSSY, 0, "choice: the orphaned L2 table", {{"l1[0]", "was(l1[0])"}}},
    /* nor is what hardly makes sense, where a table is lost */
    {"image cluster=4k size=4M\ndata 0 64k\ngap 4k\ndata 2M 32k\n"
     "set u64[l2[1].offset - 3k] = 0x8000123400000000\n"
     "set u64[l2[1].offset - 3064] = 0x8000123401eef000\n"
     "set u64[l2[1].offset - 3056] = 0x8000123403dde000\n"
     "set u64[l2[1].offset - 3048] = 0x8000123405ccd000\nset u64[l2[1].offset - 3040] = 1\n"
     "damage l1[0].offset = l2[1].offset - 4k\n",
        LOSSY, 0, "choice: the orphaned L2 table", {{"l1[0]", "was(l1[0])"}}},
    /* a guest has a copy of the table, which has come to be named, in its data; that is all that is
     * left */
    {"image cluster=4k size=8M\ndata 0 64k\ndata 2M 64k\n"
     "set copy l2[0].offset (l2[1][8].offset) cluster\ndamage l1[0].offset = l2[1][8].offset\n"
     "damage fill l2[0].offset cluster 0x5a\n",
        LOSSY, 0, "choice: what guest data at",
        {{"u64[l1[0].offset + 24]", "was(l2[0][3])"}, {"l2[1][8]", "was(l2[1][8])"},
            {"refcount[@l1[0].offset]", "1"}}},
    /* a lost table, of which a sector is garbage: what is left of it names what leaks */
    {"image cluster=4k size=4M\ndata 0 64k\ndata 1M 64k\ndamage fill &l2[0][64] 512 0x6b\n"
     "damage l1[0] = 0\n",
        LOSSY, 0, "orphaned L2 table",
        {{"l1[0]", "was(l1[0])"}, {"l2[0][271]", "was(l2[0][271])"}, {"l2[0][64]", "0"}}},
    /* nothing in the bitmap looks like a table: it is the entry that is wrong */
    {"image cluster=4k size=4M\ndata 0 8k\ndata 2M 8k\nbitmap name=b fill=data granularity=512\n"
     "damage l1[1].offset = bitmap[0].table[0]\n",
        SAFE, 0, "", {{"l1[1]", "was(l1[1])"}, {"header.autoclear", "1"}}},
    {"image cluster=4k size=4M\ndata 0 8k\ndata 2M 8k\nbitmap name=b fill=data granularity=512\n"
     "damage fill l2[1].offset 4k 0x6b\ndamage l1[1].offset = bitmap[0].table[0]\n"
     "damage fill bitmap[0].table[0] 4k 0\n",
        SAFE, 2, "", {{"header.autoclear", "1"}}},
    /* the disk's L1 table counts for nothing, and nothing hangs on it */
    {"image cluster=4k size=4M\ndata 0 8k pattern=1\nsnapshot id=1\ndata 2M 4k\n"
     "damage header.snapshot_count = 0\ndamage header.snapshots_offset = 0\n"
     "damage fill snapshots.offset 512 0\ndamage refcount[@header.l1_offset] = 0\n",
        LOSSY, 0, "", {{"header.snapshot_count", "0"}}},
    /* ---- the refcount table ---- */
    /* a sector of garbage: its entries name no blocks without their reserved bits, either */
    {"image\ndata 0 64k\ndamage fill reftable.offset 512 0x6b\n", SAFE, 0, "",
        {{"l2[0][0]", "was(l2[0][0])"}}},
    /* ---- records ---- */
    {"image cluster=4k size=2M\ndata 0 8k\nsnapshot id=1\nsnapshot id=2\n"
     "damage header.snapshot_count = 9\ndamage fill snapshot[1].offset 200 0x5a\n",
        LOSSY, 0, "lost: 8 snapshots", {{"header.snapshot_count", "1"}}},
    {"image cluster=4k size=2M\ndata 0 8k\nsnapshot id=1\n"
     "damage fill snapshot[0].offset 200 0x5a\n",
        LOSSY, 0, "named recovered-1", {{"header.snapshot_count", "1"}}},
    {"image cluster=4k size=2M\ndata 0 8k\nsnapshot id=1\n"
     "damage fill snapshot[0].l1_offset 4k 0\ndamage fill snapshot[0].offset 200 0x5a\n",
        LOSSY, 0, "lost: all 1 snapshots", {{"header.snapshot_count", "0"}}},
    {"image cluster=4k size=2M\ndata 0 8k\nsnapshot id=1\nsnapshot id=2\n"
     "damage refcount[@snapshot[0].l1_offset] = 0\n"
     "damage fill snapshot[0].l1_offset 4k 0\ndamage snapshot[0].l1_offset = 1T\n",
        LOSSY, 0, "whose L1 table cannot be found", {{"header.snapshot_count", "1"}}},
    /* an offset, but nothing else: the refcount table over that of the snapshots */
    {"image cluster=4k size=2M\ndata 0 8k\nsnapshot id=1\ndata 0 4k\nsnapshot id=2\n"
     "damage copy reftable.offset snapshots.offset 512\n",
        LOSSY, 0, "named recovered-1", {{"header.snapshot_count", "2"}}},
    /* a first record that is none, whatever its lengths */
    {"image cluster=4k size=2M\ndata 0 8k\nsnapshot id=1\ndamage snapshot[0].l1_offset = 12345\n"
     "damage snapshot[0].id_length = 0xffff\ndamage snapshot[0].name_length = 0xffff\n"
     "damage snapshot[0].id = \"\t\"\n",
        LOSSY, 0, "named recovered-1", {{"header.snapshot_count", "1"}}},
    /* a length that lays the table over guest data */
    {"image cluster=2k size=1M\ndata 0 64k\nsnapshot id=1 name=snap0\nsnapshot id=2 name=snap1\n"
     "data 64k 64k\ndamage snapshot[0].name_length = 0xffff\n",
        LOSSY, 0, "", {{"snapshot[0].name_length", "5"}, {"header.snapshot_count", "2"}}},
    /* a name of garbage: no length explains it that takes the next record for a part of this one */
    {"image cluster=4k size=2M\ndata 0 8k\nsnapshot id=1 name=snap0\nsnapshot id=2 name=snap1\n"
     "snapshot id=3 name=snap2\ndamage u64[&snapshot[0].id] = 0x5706027ed374e765\n",
        SAFE, 0, "",
        {{"header.snapshot_count", "3"}, {"snapshot[0].l1_offset", "was(snapshot[0].l1_offset)"},
            {"snapshot[2].l1_offset", "was(snapshot[2].l1_offset)"}}},
    /* it may be the length of the name that is wrong, or that of the ID */
    {"image cluster=4k size=2M\ndata 0 8k\nsnapshot id=1 name=12345678\nsnapshot id=2\n"
     "damage snapshot[0].name_length = 0\n",
        LOSSY, 0, "more than one length", {{"header.snapshot_count", "2"}}},
    {"image cluster=4k size=2M\ndata 0 8k\nsnapshot id=1 name=12345678\nsnapshot id=2\n"
     "damage snapshot[0].name_length = 0\n",
        SAFE, 2, "", {{"snapshot[0].name_length", "0"}}},
    /* or both: where the name begins with a digit, the ID counts the records */
    {"image cluster=4k size=2M\ndata 0 8k\nsnapshot id=1 name=2before\nsnapshot id=2\n"
     "damage bytes &snapshot[0].id_length = 00006b01\n",
        SAFE, 0, "", {{"snapshot[0].id_length", "1"}, {"snapshot[0].name_length", "7"}}},
    {"image cluster=4k size=2M\ndata 0 8k\nsnapshot id=7 name=12\nsnapshot id=2\n"
     "damage bytes &snapshot[0].id_length = 00006b01\n",
        SAFE, 2, "", {{"snapshot[0].id_length", "0"}}},
    /* two tables that are as good as each other */
    {"image cluster=4k size=2M\ndata 0 32k\nsnapshot id=1\n"
     "damage copy snapshots.offset (l2[0][5].offset) 512\ndamage l2[0][5] = 0\n"
     "damage snapshot[0].l2[0][5] = 0\ndamage header.snapshots_offset = 1T\n",
        LOSSY, 0, "more than one place", {{"header.snapshot_count", "1"}}},
    /* the file ends within the last record's name */
    {"image cluster=4k size=2M\ndata 0 8k\nsnapshot id=1 name=abcdefghi\n"
     "damage truncate snapshots.offset + 73\n",
        SAFE, 0, "", {{"header.snapshot_count", "1"}}},
    /* ---- shared ---- */
    /* counts that are all ones do not say that the table of snapshots was cut off with the file */
    {"image cluster=4k size=4M\ndata 0 160k\nsnapshot id=1\ndata 40k 16k\n"
     "damage header.snapshots_offset = was(file.size)\ndamage fill &refcount[0] 4096 0xff\n",
        SAFE, 0, "",
        {{"header.snapshots_offset", "was(header.snapshots_offset)"},
            {"header.snapshot_count", "1"}}},
    /* an entry that goes on with its neighbours names what it should, whatever the count */
    {"image cluster=4k size=4M\ndata 0 32k\ndata 1M 4k\ndamage refcount[@l2[0][2]] = 0\n"
     "damage l2[0][256] = 0\n",
        LOSSY, 0, "", {{"l2[0][2]", "was(l2[0][2])"}, {"refcount[@l2[0][2]]", "1"}}},
    /* of two streams written in turn the wrong entry seems to go on with its neighbour, but what
       the others are apart speaks for the right one */
    {"image cluster=4k size=8M\ndata 0 4k\ndata 512k 4k\ndata 4k 4k\ndata 516k 4k\ndata 8k 4k\n"
     "data 520k 4k\ndamage l2[0][1] ^= 4k\n",
        SAFE, 0, "gets its own copy", {{"l2[0][1]", "0x8000000000006000"}}},
    {"image cluster=4k size=8M\ndata 0 4k\ndata 512k 4k\ndata 4k 4k\ndata 516k 4k\ndata 8k 4k\n"
     "data 520k 4k\ndamage l2[0][1] = l2[0][1] + 12k\n",
        SAFE, 0, "", {{"l2[0][1]", "was(l2[0][1])"}, {"l2[0][130]", "was(l2[0][130])"}}},
    /* and where it cannot be told both keep what they read */
    {"image cluster=4k size=8M\ndata 0 4k\ndata 512k 4k\ndata 4k 4k\ndamage l2[0][1] ^= 4k\n", SAFE,
        0, "gets its own copy", {{"l2[0][1]", "0x8000000000006000"}}},
    /* and compressed data further on, that nobody can decode */
    {"image cluster=4k size=2M\ndata 0 16k\ncompressed 64k 4k\ndamage l2[0][8] = l2[0][0]\n"
     "damage l2[0][12] = 0x8000000000000000 | (l2[0][16] & 0x3ffffffffff000)\n"
     "damage fill l2[0][12].offset 4k 0xff\ndamage l2[0][16] = l2[0][16] + 512\n",
        SAFE, 0, "its own copy", {{"l2[0][0]", "was(l2[0][0])"}, {"l2[0][16] & 0xffff", "0x9200"}}},
    /* without room for a copy, the one that can be read keeps the cluster */
    {"image cluster=4k size=2M\ncompressed 0 4k\n"
     "damage l2[0][8] = 0x8000000000000000 | (l2[0][0] & 0x3ffffffffff000)\n"
     "damage l2[0][20] = 0x8000000000000000 | file.size\n"
     "damage fill l2[0][8].offset 4k 0xff\ndamage l2[0][0] = l2[0][0] + 512\n",
        LOSSY, 0, "lost: guest 0x0-", {{"l2[0][20]", "0"}, {"l2[0][0]", "0"}}},
    /* ---- sizes ---- */
    /* nothing is mapped: no end of it tells the size */
    {"image cluster=4k size=2M\nsnapshot id=1\ndata 0 4k\n"
     "damage snapshot[0].disk_size = 1024T\n",
        LOSSY, 0, "", {{"header.size", "2M"}}},
    /* what is encrypted may be VM state */
    {"image aes cluster=4k size=8M\ndata 0 8k\ndata 4M 4k\ndamage header.size = 2M\n", SAFE, 0, "",
        {{"header.size", "2M"}}},
    /* ---- bitmaps ---- */
    {"image\ndata 0 64k\nbitmap name=b\ndamage bitmaps.count = 0\ndamage header.autoclear = 0\n",
        SAFE, 0, "", {{"header.autoclear", "0"}}},
};

static int run_repair(struct io *io, const struct row *row, FILE *remarks, struct report *report)
{
    const struct repair_options how = {
        .lossy = row->mode == LOSSY, .leaks_only = row->mode == LEAKS, .remarks = remarks};
    struct check_options options = {.threads = 1};
    report_init(report, 10);
    repair_image(io, NULL, &options, &how, report);
    return report_exit_code(report);
}

static uint64_t value_of(struct recipe *recipe, const char *expression)
{
    char error[RECIPE_ERROR_BYTES];
    uint64_t value = 0;
    ck_assert_msg(recipe_eval(recipe, expression, &value, error) == 0, "%s", error);
    return value;
}

static void expect_repair(const struct row *row)
{
    char error[RECIPE_ERROR_BYTES], *remarks;
    size_t length;
    struct recipe *recipe;
    struct report report;
    struct io *once;
    ck_assert_msg(recipe_text("row", row->recipe, &recipe, error) == 0, "%s", error);
    FILE *out = open_memstream(&remarks, &length);
    int exit_code = run_repair(recipe_io(recipe), row, out, &report);
    fclose(out);
    ck_assert_msg(exit_code == row->exit_code, "%s\nexit %d %s\n%s", row->recipe, exit_code,
        report.problem, remarks);
    report_release(&report);
    ck_assert_msg(strstr(remarks, row->remark) != NULL, "%s\n%s", row->recipe, remarks);
    for (int i = 0; i < MOST_PAIRS && row->pairs[i].is; i++) {
        uint64_t is = value_of(recipe, row->pairs[i].is);
        uint64_t should_be = value_of(recipe, row->pairs[i].should_be);
        ck_assert_msg(is == should_be, "%s\n%s is 0x%llx, not 0x%llx\n%s", row->recipe,
            row->pairs[i].is, (unsigned long long)is, (unsigned long long)should_be, remarks);
    }
    ck_assert_int_eq(io_mem_branch(recipe_io(recipe), &once), 0);
    run_repair(recipe_io(recipe), row, NULL, &report);
    ck_assert_msg(
        same_image(once, recipe_io(recipe)), "%s\na second repair changed it", row->recipe);
    report_release(&report);
    io_close(once);
    free(remarks);
    recipe_free(recipe);
}

START_TEST(a_repair)
{
    expect_repair(&rows[_i]);
}
END_TEST

/* A device that fails once, at each call in turn: what the repair then says of the image is what a
 * check of it says, or that it does not know. */
START_TEST(a_repair_on_a_failing_device)
{
    enum { ALL = 150, SAMPLE = 25 };
    char error[RECIPE_ERROR_BYTES];
    struct recipe *recipe;
    bool fired = true;
    ck_assert_int_eq(recipe_text("row", rows[_i].recipe, &recipe, error), 0);
    for (unsigned long n = 1; fired; n += n < ALL ? 1 : n / SAMPLE) {
        const struct check_options options = {.threads = 1};
        struct fault_io device;
        struct report report;
        struct io *image;
        ck_assert_int_eq(io_mem_branch(recipe_io(recipe), &image), 0);
        fault_io_init(&device, image);
        device.left = n;
        int exit_code = run_repair(&device.io, &rows[_i], NULL, &report);
        report_release(&report);
        fired = device.fired;
        report_init(&report, 10);
        check_image(image, NULL, &options, &report);
        ck_assert_msg(
            exit_code == 1 || exit_code == report_exit_code(&report), "call %lu: %d", n, exit_code);
        report_release(&report);
        io_close(image);
    }
    recipe_free(recipe);
}
END_TEST

/* More of it is never less, however much an image can make of it. */
START_TEST(what_is_wrong_is_summed_without_wrapping)
{
    static const uint64_t counts[] = {
        0, 1, 1000, UINT64_C(1) << 60, UINT64_C(1) << 62, UINT64_C(1) << 63, UINT64_MAX};
    uint64_t before = 0;
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        struct report report = {.corruptions = counts[i], .leaks = i % 2 ? 0 : counts[i]};
        uint64_t wrong = repair_wrong(&report);
        ck_assert_uint_ge(wrong, before);
        ck_assert_uint_lt(wrong, UINT64_C(1) << 62);
        before = wrong;
    }
}
END_TEST

/* With more tables at one place than are compared nobody knows whose cluster it is. */
START_TEST(one_of_many_tables)
{
    enum { SNAPSHOTS = 70 };
    char *text;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    fprintf(out, "image cluster=4k size=2M refcount_bits=16\ndata 0 256k\n");
    for (int i = 0; i < SNAPSHOTS; i++)
        fprintf(out, "snapshot id=%d\ndata 1M 4k seed=%d\n", i + 1, i);
    fprintf(out, "discard 20k 4k\ndata 24k 4k\ndamage l2[0][6] = 0\ndamage l2[0][7] = 0\n");
    fclose(out);
    expect_repair(
        &(struct row){.recipe = text, .mode = LOSSY, .pairs = {{"l2[0][6]", "0"}}, .remark = ""});
    free(text);
}
END_TEST

/* Of more disks than are looked at for each place those nearest to it tell which table it lost. */
START_TEST(tables_of_one_of_many_disks)
{
    enum { SNAPSHOTS = 70 };
    char *text;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    fprintf(out, "image cluster=4k size=4M refcount_bits=16\ndata 0 4k\ndata 2M 32k\n");
    for (int i = 0; i < SNAPSHOTS; i++)
        fprintf(out, "snapshot id=%d\ndata 2M 28k pattern=0\n", i + 1);
    fprintf(out, "damage snapshot[35].l1[1] = 0x10000000\ndamage l1[1] = 0x20000000\n");
    fclose(out);
    expect_repair(&(struct row){.recipe = text,
        .remark = "",
        .pairs = {{"snapshot[35].l1[1]", "was(snapshot[35].l1[1])"}, {"l1[1]", "was(l1[1])"}}});
    free(text);
}
END_TEST

Suite *test_recovery(void);
Suite *test_recovery(void)
{
    Suite *suite = suite_create("recovery");
    TCase *tc = tcase_create("recovery");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, a_repair, 0, (int)(sizeof(rows) / sizeof(rows[0])));
    tcase_add_loop_test(tc, a_repair_on_a_failing_device, 0, (int)(sizeof(rows) / sizeof(rows[0])));
    tcase_add_test(tc, what_is_wrong_is_summed_without_wrapping);
    tcase_add_test(tc, one_of_many_tables);
    tcase_add_test(tc, tables_of_one_of_many_disks);
    suite_add_tcase(suite, tc);
    return suite;
}
