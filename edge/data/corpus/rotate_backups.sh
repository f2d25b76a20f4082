#!/usr/bin/env bash
#
# Makes a dated backup of some directories and thins out the old ones.
#
#   rotate_backups.sh [-n] [-k DAYS] [-w WEEKS] [-m MONTHS] DESTINATION SOURCE...
#
# Of the backups in DESTINATION it keeps all of the last DAYS days (7), one for each of the last
# WEEKS weeks (4) and one for each of the last MONTHS months (12). The newest is never removed.
#   -n   only says what it would do

set -euo pipefail
shopt -s nullglob

readonly PROGRAM=${0##*/}
readonly PATTERN='backup-[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9][0-9][0-9][0-9][0-9].tar.gz'

days=7
weeks=4
months=12
dry_run=false

say() {
    printf '%s: %s\n' "$PROGRAM" "$*"
}

die() {
    say "$*" >&2
    exit 1
}

usage() {
    sed -n '3,/^$/s/^# \{0,1\}//p' "$0"
    exit "${1:-0}"
}

require_number() {
    [[ $2 =~ ^[0-9]+$ ]] || die "$1 needs a whole number, not '$2'"
}

run() {
    if $dry_run; then
        printf 'would run:'
        printf ' %q' "$@"
        printf '\n'
    else
        "$@"
    fi
}

while getopts 'nk:w:m:h' option; do
    case $option in
        n) dry_run=true ;;
        k) require_number -k "$OPTARG"; days=$OPTARG ;;
        w) require_number -w "$OPTARG"; weeks=$OPTARG ;;
        m) require_number -m "$OPTARG"; months=$OPTARG ;;
        h) usage ;;
        *) usage 2 >&2 ;;
    esac
done
shift $((OPTIND - 1))
(($# >= 2)) || usage 2 >&2

destination=$1
shift
[[ -d $destination && -w $destination ]] || die "$destination is no directory that can be written to"
for source in "$@"; do
    [[ -e $source ]] || die "$source is not there"
done

# One run at a time: a slow disk must not meet the next night's job.
exec 9>"$destination/.lock"
flock --nonblock 9 || die 'another run has not finished'

# The archive gets its name only when it is complete and can be read back.
make_backup() {
    local name
    name=backup-$(date +%Y-%m-%dT%H%M%S).tar.gz
    partial=$destination/.partial-$$
    if $dry_run; then
        say "would write $name"
        return
    fi
    trap 'rm -f -- "$partial"' EXIT
    tar --create --gzip --file "$partial" --exclude-vcs-ignores --one-file-system -- "$@"
    gzip --test -- "$partial" || die 'the new archive is damaged'
    sync -- "$partial"
    mv -- "$partial" "$destination/$name"
    say "wrote $name ($(du -h -- "$destination/$name" | cut -f1))"
}

# Prints the archives to keep, one a line. Expects them newest first, one a line.
choose_kept() {
    local now day_limit week_limit month_limit
    local path stamp seconds week month first=true
    declare -A week_seen=() month_seen=()

    now=$(date +%s)
    day_limit=$((now - days * 86400))
    week_limit=$((now - weeks * 7 * 86400))
    month_limit=$(date -d "-$months months" +%s)

    while IFS= read -r path; do
        stamp=${path##*/backup-}
        stamp=${stamp%%T*}
        seconds=$(date -d "$stamp" +%s)
        week=$(date -d "$stamp" +%G-%V)
        month=${stamp%-*}

        if $first || ((seconds >= day_limit)); then
            printf '%s\n' "$path"
        elif ((seconds >= week_limit)) && [[ -z ${week_seen[$week]:-} ]]; then
            printf '%s\n' "$path"
        elif ((seconds >= month_limit)) && [[ -z ${month_seen[$month]:-} ]]; then
            printf '%s\n' "$path"
        else
            continue
        fi
        first=false
        week_seen[$week]=1
        month_seen[$month]=1
    done
}

remove_old() {
    local archives=() path
    local -A kept=()
    # The names sort by date, so the glob is oldest first.
    for path in "$destination"/$PATTERN; do
        archives=("$path" "${archives[@]}")
    done
    ((${#archives[@]} > 0)) || return 0

    while IFS= read -r path; do
        kept[$path]=1
    done < <(printf '%s\n' "${archives[@]}" | choose_kept)

    for path in "${archives[@]}"; do
        if [[ -z ${kept[$path]:-} ]]; then
            run rm -- "$path"
        fi
    done
    say "${#kept[@]} of ${#archives[@]} archives kept"
}

make_backup "$@"
remove_old
