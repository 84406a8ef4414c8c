#!/usr/bin/env bash
# All that a GPU adds, in less than 8 minutes: correct first, then fast. Prints tables; with OUT set they are also in
# $OUT/gpu.md and $OUT/gpu.json, rewritten after each part, and the tests' output in $OUT/gpu_tests.txt.
#
#   bash benchmarks/gpu.sh                         # all parts
#   bash benchmarks/gpu.sh --quick                 # smaller and fewer, about 3 minutes
#   bash benchmarks/gpu.sh --parts tests step      # some of them: see --help
#   bash benchmarks/gpu.sh --device cpu --tiny     # rehearsal of the script itself, under 2 minutes
#
# It needs torch 2.11 or newer with CUDA, accelerate, tokenizers, tensorboard, safetensors, numpy, psutil, pytest with
# pytest-timeout, and tyro; not fastai, datasets or deepspeed (one test of whole runs is skipped without datasets).
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
