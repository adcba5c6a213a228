#!/bin/bash
# SPDX-License-Identifier: MIT
#
# make demo: a real image, made and used with qemu-img; an entry of it goes bad; qcheck looks, and
# repairs it.
set -euo pipefail

qcheck=$(realpath "${1:?usage: demo.sh QCHECK}")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

run() {
    local word line='$'
    for word in "${@/#$qcheck/qcheck}"; do
        [[ $word == *' '* ]] && word="'$word'"
        line+=" $word"
    done
    printf '\n%s\n' "$line"
    "$@"
}
be64() { od -An -tu8 --endian=big -j "$1" -N 8 disk.qcow2 | tr -d ' '; }
copy8() { # from, to: eight bytes of the image
    dd if=disk.qcow2 of=disk.qcow2 bs=1 count=8 skip="$1" seek="$2" conv=notrunc status=none
}

run qemu-img create -q -f qcow2 disk.qcow2 64M
run qemu-io -c 'write -q -P 0x11 0 4M' disk.qcow2
run qemu-img snapshot -c before-upgrade disk.qcow2
run qemu-io -c 'write -q -P 0x22 1M 1M' disk.qcow2
run "$qcheck" disk.qcow2

# The entry of guest cluster 17 in the L2 table becomes that of cluster 16: two guest places now
# share one host cluster, and nobody has the one that 17 had.
l1=$(be64 40)
l2=$(($(be64 "$l1") & 0x00fffffffffffe00))
copy8 $((l2 + 16 * 8)) $((l2 + 17 * 8))
printf '\n... one entry of the L2 table at %d goes bad ...\n' "$l2"

status=0
run "$qcheck" disk.qcow2 || status=$?
printf '\nexit code %d\n' "$status"
if [ "$status" != 2 ]; then
    echo "demo: corruption should have been found" >&2
    exit 1
fi

run "$qcheck" --repair --undo disk.undo disk.qcow2
run qemu-io -r -c 'read -q -P 0x22 1M 1M' disk.qcow2
