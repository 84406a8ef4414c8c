#!/usr/bin/env bash
# What takes too long for every change: all cells of the invariance table, kills, faults of disks, long fuzzing, real data.
# Its last output and commit stand in benchmarks/RESULTS.md. Hours on two cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch/setup.sh"
set_up dev
cd "$root"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
export PYTEST_ADDOPTS="-o faulthandler_timeout=8000" # longer than any test here has; pyproject.toml says what it is for

git log -1 --format='commit %h of %cd' || true
python -m tests.invariance
python -m tests.soak_kill --kills "${KILLS:-100}"
python -m tests.soak_faults --minutes "${SOAK_MINUTES:-60}"
ULMFIT_FAULTS=all python -m pytest -q tests/faults/test_faults.py
# In a process of its own, whose forks are the ranks.
ULMFIT_LONG=1 python -m pytest -q tests/distributed/test_fit_stops.py
ULMFIT_LONG=1 python -m pytest -q -s tests/training/test_pays_off.py
# What every change runs in part or in kind (tests/tiers.py: `long_tier` names what it runs instead).
ULMFIT_LONG=1 python -m pytest -q tests/training/test_fit.py tests/training/test_from_fastai.py tests/test_estimator.py \
    tests/test_learner.py tests/test_notebook.py tests/test_bad_input.py tests/test_interrupt.py tests/test_limits.py \
    tests/cli/test_predict_job.py tests/cli/test_predict_places.py tests/distributed tests/slurm/test_slurm.py --ignore tests/distributed/test_fit_stops.py
# The CPU's torch brings no triton: `.venv/bin/pip install --no-deps triton==3.7.1` (constraints.txt) runs what skips here.
TRITON_INTERPRET=1 ULMFIT_LONG=1 python -m pytest -q -rs tests/model/test_fused_loss.py tests/model/test_loss_choice.py
ULMFIT_LONG=1 python -m pytest -q tests/one_gpu
# Every command of README and docs/, as it is typed.
ULMFIT_LONG=1 python -m pytest -q tests/test_docs_commands.py
# `.venv/bin/pip install s3fs optuna` runs what skips here: a kill between objects of S3's stand-in, and sweeps.
python -m pytest -q -rs tests/data/test_object_store.py tests/cli/test_predict_job.py tests/cli/test_predict_places.py tests/test_sweep.py -k "s3 or store or sweep"
python benchmarks/onnx_parity.py
# Parity with an installed fastai, both ways.
peer=${ULMFIT_PEER:-$root/.peer/bin/python}
[ -x "$peer" ] || bash benchmarks/setup_peer.sh "$root/.peer"
ULMFIT_PEER=$peer python -m pytest -q -s tests/model/test_fastai_peer.py
# Parity with an installed transformers, in an environment of its own, on the torch of this one.
transformers=${ULMFIT_TRANSFORMERS:-$root/.transformers/bin/python}
if [ ! -x "$transformers" ]; then
    python -m venv "$root/.transformers"
    python -c "import sysconfig; print(sysconfig.get_path('purelib'))" >"$("$transformers" -c "import sysconfig; print(sysconfig.get_path('purelib'))")/main.pth"
    "$transformers" -m pip install --quiet transformers
fi
ULMFIT_TRANSFORMERS=$transformers python -m pytest -q -s tests/model/test_transformers_export.py
# Ids by distinct chunks: a million fuzzed texts, and all texts of the .parquet files in CHUNKS (FILE:FILE) with a column text.
ULMFIT_LONG=1 python -m pytest -q tests/tokenizer/test_chunks.py --timeout 7200
# tests/data/test_object_store.py needs `pip install s3fs`.
ULMFIT_FUZZ=20000 ULMFIT_FUZZ_TREES=10000 ULMFIT_SLOW_TEXTS=3000 python -m pytest -q tests/tokenizer tests/data \
    tests/faults/test_fuzz.py
# The report in headless Chromium: pip install playwright, and a chromium on the PATH (or playwright install chromium).
ULMFIT_LONG=1 python -m pytest -q tests/test_report.py
