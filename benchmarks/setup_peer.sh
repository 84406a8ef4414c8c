#!/usr/bin/env bash
# An environment for the peer of the benchmarks: fastai 2.8.12 with spaCy, on the torch of constraints.txt.
#
#     bash benchmarks/setup_peer.sh PEER        # then pass --peer PEER/bin/python to the scripts
#
# An environment of its own, because fastai pins other packages than ours does. Torch is installed first, so that pip
# does not look for another one: its CPU build where the index offers one and there is no GPU. PYTHON chooses the
# interpreter. Prints the versions at the end.
set -euo pipefail

folder=${1:?"say where: bash benchmarks/setup_peer.sh FOLDER"}
here=$(cd "$(dirname "$0")/.." && pwd)
torch=$(grep '^torch==' "$here/constraints.txt")

"${PYTHON:-python3}" -m venv "$folder"
pip() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
if ! command -v nvidia-smi >/dev/null && pip "$torch+cpu" 2>/dev/null; then
    echo "torch: CPU build"
else
    pip "$torch"
fi
# The torch that is there stays: its exact version is a constraint of the second call.
constraint=$(mktemp)
trap 'rm -f "$constraint"' EXIT
"$folder/bin/python" -c "from importlib.metadata import version; print('torch==' + version('torch'))" >"$constraint"
pip -c "$constraint" fastai==2.8.12 spacy
"$folder/bin/python" -c "from fastai.text.all import AWD_LSTM" # the peer works
"$folder/bin/python" -m pip list --disable-pip-version-check | grep -E '^(torch|fastai|fastcore|spacy) '
