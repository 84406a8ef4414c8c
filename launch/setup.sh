#!/usr/bin/env bash
# Creates .venv at the project root and installs the packages pinned in constraints.txt into it; where that was
# done before, returns at once. quickstart.sh and tests/run.sh source this file and call `set_up`;
# `bash launch/setup.sh [dev]` does the set-up alone ("dev" adds the packages of the tests).
# Needs Python 3.11 or newer with its venv module. Torch is the ordinary wheel of the index in use, or its CPU
# build where the index offers that one. scikit-learn is among them, for the comparison of `ulmfit fit`.
set -euo pipefail

# Physical path: the environment remembers where it was made, and a link to the same place is the same place.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"
stamp="$venv/ulmfit-setup"

# Prints the first Python on PATH that is new enough and can make an environment. 3.11 comes first because the
# pinned versions were chosen with it.
find_python() {
    local candidate too_bare=""
    for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        too_bare="${too_bare:-$("$candidate" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')}"
    done
    if [ -n "$too_bare" ]; then
        echo "$too_bare cannot make a virtual environment here: install the Debian package" \
            "$too_bare-venv (apt-get install $too_bare-venv) and run this again." >&2
    else
        echo "No Python 3.11 or newer is on PATH: install one (Debian: apt-get install python3.11" \
            "python3.11-venv) and run this again." >&2
    fi
    exit 2
}

# An environment is of use if it was made here (not moved or copied, its scripts hold absolute paths) and no
# set-up was interrupted in it, which an empty stamp tells.
venv_is_whole() {
    [ ! -e "$stamp" ] || [ -s "$stamp" ] || return 1
    "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || return 1
    "$venv/bin/pip" --version 2>/dev/null | grep -qF "$venv/"
}

# Says why .venv may not be made anew, if it may not: what a user has made there, or elsewhere behind a link, is not ours
# to delete. An environment with a stamp is ours, and so is an empty folder.
refuse_to_clear() {
    local why
    if [ -L "$venv" ]; then
        why="is a link to $(readlink "$venv"): remove the link"
    elif [ -e "$venv" ] && [ ! -e "$stamp" ] && [ -n "$(ls -A "$venv")" ]; then
        why="was not made by this script, and is not an environment of Python 3.11 or newer with pip: move it away"
    else
        return 0
    fi
    echo "$venv $why and run this again." >&2
    exit 2
}

# set_up [dev]: afterwards .venv/bin stands first in PATH, and python, accelerate and ulmfit are those of .venv.
set_up() {
    local extra="${1:-}" wanted python
    wanted="$(cat "$root/constraints.txt" "$root/pyproject.toml" | cksum) $venv"
    # The first line of the stamp is what was installed from, the second, if any, says that "dev" was.
    if [ "$(sed -n 1p "$stamp" 2>/dev/null)" != "$wanted" ] ||
        { [ -n "$extra" ] && [ "$(sed -n 2p "$stamp")" != "$extra" ]; }; then
        if ! venv_is_whole; then
            refuse_to_clear
            python="$(find_python)"
            echo "Creating $venv ($("$python" --version))"
            mkdir -p "$venv"
            : >"$stamp" # before all else: interrupted anywhere from here on, what is there is known as ours
            find "$venv" -mindepth 1 ! -path "$stamp" -delete
            "$python" -m venv "$venv"
        fi
        echo "Installing the pinned packages of constraints.txt (a few minutes the first time)"
        (
            cd "$root"
            pip=("$venv/bin/python" -m pip install -qq --disable-pip-version-check -c constraints.txt)
            # setuptools first, so that our own package is built with the pinned one and without a download.
            "${pip[@]}" setuptools
            "${pip[@]}" --no-build-isolation -e ".[sklearn${extra:+,$extra}]"
        )
        printf '%s\n%s\n' "$wanted" "$extra" >"$stamp"
    fi
    export VIRTUAL_ENV="$venv" PATH="$venv/bin:$PATH"
    unset PYTHONHOME
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set_up "$@"
    echo "Ready: source $venv/bin/activate"
fi
