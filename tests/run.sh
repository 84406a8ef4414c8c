#!/usr/bin/env bash
# Sets up .venv with the packages of the tests and runs them: bash tests/run.sh [pytest arguments]
# ULMFIT_DATA and ULMFIT_GOLDEN, where set, name the folders of real data and of reference values; tests that need
# them skip without.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch/setup.sh"
set_up dev
cd "$root"
# Threads that wait asleep: spinning ones are many times slower when another program wants a core.
export OMP_WAIT_POLICY=PASSIVE
exec python -m pytest "$@"
