#!/usr/bin/env bash
# A corpus to an encoder for --init: one epoch of a language model of size small, then its weights in 8 bits.
#
#     bash launch/pretrain.sh DATA OUTPUT [options of train_lm.py]
#
# DATA is what --data takes: files, a folder, URLs of an object store, the name of a hub data set, or several of these with
# weights (docs/data.md). OUTPUT is the run directory; the encoder is OUTPUT/encoder. Killed or stopped, the same command
# goes on. The English model of the package was made so, with the first of
#
#     bash launch/pretrain.sh "wikipedia/*.parquet" runs/english --text-column text
#     bash launch/pretrain.sh wikimedia/wikipedia:20231101.cy runs/welsh
#     bash launch/pretrain.sh "wiki=0.6:wikimedia/wikipedia:20231101.de,notes=0.4:s3://bucket/notes/*.jsonl.zst" runs/german
#
# A vocabulary of at most 4,096 words (a small corpus, or pieces) needs --sampled-softmax 0.
# A corpus too large for a token cache is streamed: add --streaming --max-steps N --valid PATH.
# On GPUs or under SLURM start train_lm.py with the same options by a launcher and export its run afterwards:
#
#     sbatch launch/slurm.sbatch train_lm.py --data DATA --output-dir OUTPUT --preset base --batch-size 256 ...
#     ulmfit export --model OUTPUT --output OUTPUT/encoder --bits 8
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash launch/pretrain.sh DATA OUTPUT [options of train_lm.py]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up
data="$1" output="$2"
shift 2
# The length is one epoch unless the options say otherwise.
length=(--epochs 1)
for option in "$@"; do
    case "$option" in --max[-_]steps* | --epochs*) length=() ;; esac
done
export OMP_WAIT_POLICY=PASSIVE
python "$root/train_lm.py" --data "$data" --output-dir "$output" --init none --preset small --recipe none --lr 8e-3 \
    --drop-mult 0.1 --clip 0.4 --batch-size 32 --vocab-size 30000 --sampled-softmax 4096 --valid 0.005 \
    --eval-every 5000 "${length[@]}" "$@"
[ -e "$output/status.json" ] || exit 0  # stopped before the first step, or by --lr-find
state="$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["state"])' "$output/status.json")"
if [ "$state" != done ]; then
    echo "$output is $state; the same command goes on" >&2
    exit 0
fi
if [ ! -d "$output/encoder" ]; then
    python -m ulmfit export --model "$output" --output "$output/encoder" --bits 8
fi
