# SPDX-License-Identifier: MIT
# Completion of qcrash for bash.

# The names that `qcrash list` has under a heading.
_qcrash_names()
{
    "$1" list 2>/dev/null | sed -n "/^$2/,/^[^ ]/s/^  \([a-z0-9][^ ]*\) .*/\1/p"
}

_qcrash_options()
{
    case $1 in
    run) echo --image --model --cap --samples --seed --sequences --random --faults --deep \
        --budget --record --output= ;;
    explore) echo --base --log --model --cap --samples --seed --deep --budget --output= ;;
    replay) echo --base --log --save --output= ;;
    flushes) echo --image --cap --samples --seed ;;
    mutants) echo --cap --samples --seed ;;
    esac
    echo --help
}

_qcrash()
{
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local command=${COMP_WORDS[1]-} words=''
    # bash splits at '=': --output=js is three words.
    if [ "$cur" = = ]; then
        cur=
    elif [ "$prev" = = ]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    case $COMP_CWORD,$prev in
    1,*) words='run explore replay flushes mutants list --help --version' ;;
    *,--output) words='human json tap table' ;;
    *,--image) words="all hurt $(_qcrash_names "$1" images)" ;;
    *,--model) words="all $(_qcrash_names "$1" 'fault models')" ;;
    *,--base | *,--log | *,--save | *,--record)
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        compopt -o filenames
        return
        ;;
    *,--cap | *,--samples | *,--seed | *,--sequences | *,--random | *,--budget) return ;;
    *)
        if [[ $cur == -* ]]; then
            words=$(_qcrash_options "$command")
        elif [ "$command" = run ] || [ "$command" = flushes ]; then
            words=$(_qcrash_names "$1" workloads)
        fi
        ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
    [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace
}

complete -F _qcrash qcrash
