# SPDX-License-Identifier: MIT
# Completion of qcheck for bash.

_qcheck()
{
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    # bash splits at '=': --output=js is three words.
    if [ "$cur" = = ]; then
        cur=
    elif [ "$prev" = = ]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    case $prev in
    --output)
        mapfile -t COMPREPLY < <(compgen -W 'human json' -- "$cur")
        return
        ;;
    --repair)
        if [ "${COMP_WORDS[COMP_CWORD]}" = = ] || [ "${COMP_WORDS[COMP_CWORD - 1]}" = = ]; then
            mapfile -t COMPREPLY < <(compgen -W 'all leaks' -- "$cur")
            return
        fi
        ;;
    --explain)
        # Every check has a line that starts with its name.
        mapfile -t COMPREPLY < <(compgen -W \
            "$("${COMP_WORDS[0]}" --explain 2>/dev/null | grep -o '^[a-z][a-z0-9-]*')" -- "$cur")
        return
        ;;
    --undo | --rollback)
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        compopt -o filenames
        return
        ;;
    --deploy)
        if [ "${COMP_WORDS[COMP_CWORD]}" = = ] || [ "${COMP_WORDS[COMP_CWORD - 1]}" = = ]; then
            mapfile -t COMPREPLY < <(compgen -W 'strict local' -f -- "$cur")
            return
        fi
        ;;
    --allow)
        # Every rule is a check of its own.
        mapfile -t COMPREPLY < <(compgen -W "$("${COMP_WORDS[0]}" --explain 2>/dev/null |
            sed -n 's/^deploy-\([a-z-]*\) .*/\1/p')" -- "$cur")
        return
        ;;
    -j | --max-findings | --max-size)
        return
        ;;
    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W '-r --repair --repair= --lossy -n --dry-run --undo
            --rollback --deep --backing --output= --deploy --deploy= --allow --max-size -j -U --force-share
            --progress --no-progress --max-findings --explain -q --quiet -v --verbose --help --version' -- "$cur")
        [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace
        return
    fi
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    compopt -o filenames
}
complete -F _qcheck qcheck
