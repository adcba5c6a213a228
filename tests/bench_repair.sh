#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Making the refcounts of a fully mapped image anew, by `qcheck --repair` and by `qemu-img check -r
# all`, each on a copy of its own in the same run: bench_repair.sh QCHECK [SIZE].  Prints a row of a
# Markdown table; both images are checked by both programs afterwards.
set -e
qcheck=$(realpath "${1:?}")
size=${2:-1T}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

# A 4- or 8-byte field of the header, as a number.
field() {
    echo $((0x$(od -An -v -tx1 -j "$1" -N "$2" image.qcow2 | tr -d ' \n')))
}

qemu-img create -q -f qcow2 -o preallocation=metadata image.qcow2 "$size"
cluster=$((1 << $(field 20 4)))
dd if=/dev/zero of=image.qcow2 bs="$cluster" seek=$(($(field 48 8) / cluster)) \
    count="$(field 56 4)" conv=notrunc status=none

# Runs a repair of a copy; seconds of processor time, seconds, and the most KiB of memory.
timed() {
    name=$1
    shift
    cp --sparse=always image.qcow2 "$name.qcow2"
    env time -o "$name.time" -f '%U %S %e %M' "$@" "$name.qcow2" >"$name.out" 2>&1 || true
    qemu-img check "$name.qcow2" >"$name.out" 2>&1 || { cat "$name.out"; exit 1; }
    "$qcheck" -q "$name.qcow2"
}

timed own "$qcheck" --repair --no-progress
timed peer qemu-img check -r all
# A program that fails is told in the first line.
tail -q -n 1 own.time peer.time | awk -v size="$size" '
    { cpu[NR] = $1 + $2; wall[NR] = $3; memory[NR] = $4 / 1024 }
    END {
        print "| refcounts made anew | qcheck --repair | qemu-img check -r all | ratio |"
        print "|---|---|---|---|"
        printf "| %s, all mapped: processor time | %.2f s | %.2f s | %.1f |\n", size, cpu[1], cpu[2],
            cpu[2] / cpu[1]
        printf "| elapsed | %.2f s | %.2f s | %.1f |\n", wall[1], wall[2], wall[2] / wall[1]
        printf "| memory | %.0f MiB | %.0f MiB | |\n", memory[1], memory[2]
    }'
