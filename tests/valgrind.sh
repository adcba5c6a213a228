#!/bin/bash
# SPDX-License-Identifier: MIT
#
# valgrind.sh BUILD: the programs on a sample of the corpus under valgrind: no wrong access, no
# value that was never set, no byte and no descriptor left at the end, also where a call fails.
# Memory that is only still reachable counts as left.
set -euo pipefail

build=$(realpath "$1")
recipes=$PWD/corpus
# Where flushing costs nothing, if there is such a place.
[ ! -w /dev/shm ] || export TMPDIR=/dev/shm
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

sound="healthy-snapshot-sizes healthy-bitmap-and-snapshot healthy-extended-l2 healthy-zstd"
broken="l2-entry-shared-compressed reftable-entry-outside orphan-l2-table snapshot-table-truncated
    refcount-too-low-lost-block ext-truncated-huge bitmap-directory-truncated area-shared-luks
    unreadable-l2-table header-magic compressed-undecodable-zstd l1-entry-outside-truncated"
runs=0 bad=0

fresh() {
    rm -f image undo
    "$build/tests/mkimage" "$recipes/$1/recipe" image
}

# under CODES COMMAND...: it ends with one of these exit codes, and valgrind has nothing to say.
under() {
    local codes=$1 code=0
    shift
    runs=$((runs + 1))
    valgrind -q --leak-check=full --show-leak-kinds=all --errors-for-leak-kinds=all \
        --track-fds=yes --error-exitcode=99 --soname-synonyms=somalloc=nouserintercepts \
        --log-file=said "$@" >out 2>&1 || code=$?
    # Of descriptors it only tells, of those that were there before and of its own log, too.
    if [[ " $codes " != *" $code "* ]] || awk '
            / Open file descriptor / {open = $0; next}
            open && !/inherited from parent/ && open !~ /\/said$/ {left = 1}
            {open = ""}
            END {exit !left}' said; then
        bad=$((bad + 1))
        echo "exit $code: $*"
        cat said
        tail -n 3 out
    fi
}

for name in $sound $broken; do
    [ -e "$recipes/$name/recipe" ] || { echo "no recipe $name"; exit 1; }
    fresh "$name"
    under "0 1 2 3 63" "$build/qcheck" -j 2 --deep --output=json image
    under "0 1 2 3 63" "$build/qcheck" -j 1 --repair --lossy --undo undo image
    [ ! -e undo ] || under "0 1 2 3 63" "$build/qcheck" --rollback undo image
done
fresh healthy-snapshot-sizes
under 4 "$build/qcheck" --deploy --max-size 64k image
under 0 "$build/qcheck" --explain
under 1 "$build/qcheck" --no-such-option image
under 1 "$build/qcheck" nowhere
under 0 "$build/qsnap" create image new
under 0 "$build/qsnap" list image --output=json
under 0 "$build/qsnap" write image 64k 192k --pattern 7
under 0 "$build/qsnap" diff image new
under 0 "$build/qsnap" apply image 1
under 0 "$build/qsnap" delete image new
under 0 "$build/qsnap" export image 2 raw
under 0 "$build/qsnap" discard image 0 1M
under 0 "$build/qsnap" resize image 8M
under 1 "$build/qsnap" apply image nobody
under 0 "$build/qsnap" new made 1M -o cluster_size=4k
under "0 2" "$build/qcrash" run create --image c4k --cap 64
# The n-th call fails, if there are so many.
fired=0
failing() {
    rm -f fired
    LD_PRELOAD=$build/tests/fail_calls.so FAIL_KIND=$1 FAIL_NTH=$2 FAIL_PROGRAM=$3 \
        FAIL_FIRED=fired under "0 1 2" "$build/$3" "${@:4}"
    [ ! -e fired ] || fired=$((fired + 1))
}
for n in 1 2 4 8 16 32; do
    fresh orphan-l2-table
    cp image again
    failing alloc $n qcheck -j 1 --repair --undo undo image
    failing write $n qsnap create again new
done
echo "$runs runs, $fired of them with a call that failed; $bad of them bad"
[ "$bad" = 0 ] && [ "$fired" -gt 6 ]
