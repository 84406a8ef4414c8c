#!/usr/bin/env bash
# The probe: all that a GPU adds, in at most 200 seconds, correct first, then fast. Prints rows as they are known; with OUT
# set they are in $OUT/gpu.jsonl too, tables in $OUT/gpu.md, and what gpu_reproduce.py goes by in $OUT/probe.json.
#
#   bash benchmarks/gpu.sh                               # the parts of the plan (gpu_plan.md)
#   bash benchmarks/gpu.sh --parts correctness step      # some of them, or others: see --help
#   bash benchmarks/gpu.sh --device cpu --tiny           # rehearsal of the script itself
#
# It needs torch 2.11 or newer with CUDA, accelerate, tokenizers, tensorboard, safetensors, numpy, pyarrow, psutil and pytest;
# the part tests pytest-timeout and tyro too; not fastai or datasets. Without deepspeed the part zero2 is skipped (its wheel
# is made here by DS_BUILD_OPS=0 pip wheel --no-deps deepspeed hjson, and it needs pydantic and py-cpuinfo too).
# On a machine without a package index carry the working tree and, as wheels made elsewhere, what is missing there:
#
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#       --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .whl \
#       tyro docstring-parser typeguard datasets dill multiprocess zstandard                       # here
#   python3 -m pip install -q --no-index --no-deps --target /tmp/site .whl/*.whl                   # there
#   PYTHONPATH=/tmp/site bash benchmarks/gpu.sh
#
# PYTHON names another interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
