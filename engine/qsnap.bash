# SPDX-License-Identifier: MIT
# Completion of qsnap for bash.

# IDs and names of the snapshots in the image that was named, those that begin so: quoted, and not
# through compgen, which would carry out what a name says.  Names that JSON escapes are left out.
_qsnap_snapshots()
{
    local name
    while IFS= read -r name; do
        [[ $name == "$3"* ]] && COMPREPLY+=("$(printf %q "$name")")
    done < <("$1" list -U --output=json -- "$2" 2>/dev/null |
        sed -n 's/^ *"\(id\|name\)": "\([^\\]*\)",\{0,1\}$/\2/p')
}

_qsnap_options()
{
    case $1 in
    create) echo --id ;;
    list) echo --output= --force-share ;;
    export | diff | read) echo --force-share ;;
    new) echo -o ;;
    write) echo --pattern --from ;;
    esac
    echo --help
}

_qsnap()
{
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local command=${COMP_WORDS[1]-} image='' place=0 i
    # bash splits at '=': --output=js is three words.
    if [ "$cur" = = ]; then
        cur=
    elif [ "$prev" = = ]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    if [ "$COMP_CWORD" = 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W 'create apply delete list export diff new read write
            discard resize --help --version' -- "$cur")
        return
    fi
    case $prev in
    --output)
        mapfile -t COMPREPLY < <(compgen -W 'human json' -- "$cur")
        return
        ;;
    --from)
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        compopt -o filenames
        return
        ;;
    -o)
        mapfile -t COMPREPLY < <(compgen -W 'cluster_size= refcount_bits= extended_l2=
            lazy_refcounts= compat= compression_type=' -- "$cur")
        compopt -o nospace
        return
        ;;
    --id | --pattern)
        return
        ;;
    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(_qsnap_options "$command")" -- "$cur")
        [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace
        return
    fi
    for ((i = 2; i < COMP_CWORD; i++)); do
        [[ ${COMP_WORDS[i]} == -* ]] && continue
        place=$((place + 1))
        [ "$place" = 1 ] && image=${COMP_WORDS[i]}
    done
    case $command,$place in
    *,0 | export,2)
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        compopt -o filenames
        ;;
    apply,1 | delete,1 | export,1 | diff,1 | diff,2)
        COMPREPLY=()
        _qsnap_snapshots "${COMP_WORDS[0]}" "$image" "$cur"
        ;;
    esac
}
complete -F _qsnap qsnap
