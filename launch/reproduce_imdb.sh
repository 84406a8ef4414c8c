#!/usr/bin/env bash
# The blog post's job on all of IMDb: the package's English model -> language model of the reviews -> classifier -> the
# 25,000 test reviews, scored once. About three hours on two CPU cores.
#
#     bash launch/reproduce_imdb.sh IMDB OUTPUT [options of ulmfit fit]
#
# IMDB holds train.parquet, test.parquet and unsup.parquet (columns text, label, movie). OUTPUT/imdb.md is the table, stage
# by stage beside the blog post's. Killed or stopped at any point, the same command goes on. The validation rows share no
# film with the training rows.
#
#     bash launch/reproduce_imdb.sh IMDB OUTPUT --lm-on-test            # the language model reads the test texts too
#     bash launch/reproduce_imdb.sh IMDB OUTPUT --preset base --init none --lm.batch-size 256       # on a GPU
#     BACKWARD=runs/english-backwards/encoder bash launch/reproduce_imdb.sh IMDB OUTPUT    # and the other direction
#
# BACKWARD names a language model that reads texts from their end (launch/pretrain.sh with --backwards): a second job is
# done with it in OUTPUT/backwards, and the probabilities of both are averaged.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash launch/reproduce_imdb.sh IMDB OUTPUT [options of ulmfit fit]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up
imdb="$1" output="$2"
shift 2
export OMP_WAIT_POLICY=PASSIVE
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456

# Prints the state of a job, as its status.json says.
state_of() {
    python -c 'import json, sys; print(json.load(open(sys.argv[1]))["state"])' "$1/status.json"
}

# The whole job in one direction: fit OUTPUT [options]. Ends this script if the job was stopped.
fit() {
    local folder="$1" length=(--lm.epochs 1.5) option
    shift
    for option in "$@"; do
        case "$option" in --lm.max[-_]steps* | --lm.epochs*) length=() ;; esac
    done
    python -m ulmfit fit --data "$imdb" --output-dir "$folder" --group-column movie --valid 0.05 \
        --clf.max-len 400 --clf.save-every 100 "${length[@]}" "$@"
    if [ "$(state_of "$folder")" != done ]; then
        echo "$folder is $(state_of "$folder"); the same command goes on" >&2
        exit 0
    fi
}

fit "$output/forwards" "$@"
models=(--model "$output/forwards")
if [ -n "${BACKWARD:-}" ]; then
    fit "$output/backwards" "$@" --backwards --init "$BACKWARD"
    models+=(--model "$output/backwards")
fi
if [ ! -s "$output/both.json" ] && [ "${#models[@]}" -gt 2 ]; then
    python -m ulmfit evaluate "${models[@]}" --data "$imdb" --split test >"$output/both.partial"
    mv "$output/both.partial" "$output/both.json"
fi
python "$root/benchmarks/imdb_table.py" "$output" >"$output/imdb.partial"
mv "$output/imdb.partial" "$output/imdb.md"
cat "$output/imdb.md"
