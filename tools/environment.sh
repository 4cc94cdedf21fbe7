#!/usr/bin/env bash
# Builds .venv in the project's root: `environment.sh core` for the demo, `environment.sh test` for development.
# `environment.sh all` builds .venv-all, with every runtime that sned exports to.
# An environment that is already there is kept and completed. Called by the Makefile, with TORCH_INDEX and PYTHON.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stage=${1:?core, test or all}
venv=.venv constraints=constraints.txt
if [ "$stage" = all ]; then venv=.venv-all constraints=constraints-all.txt; fi
python=$venv/bin/python

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
fail() { printf '%s\n' "$*" >&2; exit 2; }

new_enough() {  # a Python >= 3.11 that can make environments; a pyenv shim without its version fails here too
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14 python}; do
        if new_enough "$candidate"; then echo "$candidate"; return; fi
    done
    if [ -n "${PYTHON:-}" ]; then
        fail "sned needs Python 3.11 or newer, and PYTHON='$PYTHON' is not one, or does not run."
    fi
    fail "sned needs Python 3.11 or newer and found none. Install it (https://www.python.org/downloads/, or your" \
         "system's package manager) and run this again, or name one: make demo PYTHON=/path/to/python3.11"
}

make_venv() {
    if [ -x "$python" ] && new_enough "$python"; then return; fi
    local base; base=$(find_python)
    say "Making $venv with $("$base" --version 2>&1)"
    "$base" -m venv --clear "$venv" || fail "'$base -m venv' failed: on Debian and Ubuntu, install python3-venv first."
}

reachable() {  # in a few seconds or not at all: machines behind a mirror must not wait for it
    "$python" - "$1" <<'PY' >/dev/null 2>&1
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1] + "/torch/", method="HEAD"), timeout=8)
PY
}

torch_source() {  # the option for pip, or nothing
    local index=${TORCH_INDEX:-}
    if [ -n "$index" ] && [ "$(uname -s)" = Linux ] && reachable "$index"; then
        echo "--extra-index-url $index"
    fi
}

install() { "$python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" "$@"; }

torch_is_there() { "$python" -c 'from importlib.metadata import version; import sys
sys.exit(version("torch").split("+")[0] != sys.argv[1])' "$(pinned torch)" 2>/dev/null; }

pinned() { sed -n "s/^$1==//p" "$constraints"; }

install_torch() {
    if torch_is_there; then return; fi
    say "Installing PyTorch $(pinned torch)"
    # shellcheck disable=SC2046
    install $(torch_source) "torch==$(pinned torch)"
}

install_core() {
    install_torch
    say "Installing sned and what it needs"
    install "torch==$(pinned torch)" --editable '.[demo]'
}

install_test() {
    say "Installing what the tests need"
    install "torch==$(pinned torch)" --editable '.[demo,keras,test,bench,dev]'
    # Without their dependencies: theirs would bring another build of PyTorch.
    local source; source=$(torch_source)
    # shellcheck disable=SC2086
    install $source --no-deps "torchvision==$(pinned torchvision)" "timm==$(pinned timm)"
}

install_all() {
    install_torch
    say "Installing every runtime"
    install "torch==$(pinned torch)" --editable '.[all,test]'
}

make_venv
"install_$stage"
touch "$venv/.sned-$stage"
