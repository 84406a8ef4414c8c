#!/usr/bin/env bash
# Rehearses two machines on this one: two launchers, each with the processes of one machine, that meet as they would
# over a network (GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the interface, should they not). On CPUs, or on GPUs
# with CUDA_VISIBLE_DEVICES of as many as are asked for in all.
#   launch/two_nodes.sh [-n PROCESSES_PER_NODE] train_lm.py --output-dir runs/two --batch-size 64
# Ctrl-C, or SIGTERM, stops both with a checkpoint; a second Ctrl-C at once, without. status.json of the run directory
# tells how the run ended, for the launchers return 1 after a signal in any case.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${ULMFIT_PYTHON:-$root/.venv/bin/python}"
fail() { echo "error: $1" >&2; exit 2; }
per_node=1
if [ "${1:-}" = -n ]; then
    per_node="${2:-}"
    [[ "$per_node" =~ ^[1-9][0-9]*$ ]] || fail "-n takes the number of processes of a node, such as -n 2"
    shift 2
fi
[ $# -ge 1 ] || fail "nothing to train; launch/two_nodes.sh train_lm.py --output-dir runs/two"
[ -f "$1" ] || fail "there is no $1 in $PWD; run this from the project root"
command -v "$python" >/dev/null || fail "there is no $python; run launch/setup.sh, or export ULMFIT_PYTHON"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# Below the range from which systems take ports of their own accord.
port=$((20000 + $$ % 12000))
launchers=()
for rank in 0 1; do
    # In sessions of their own: Ctrl-C reaches this script alone, which hands it on once. The GPUs of "machine" 1
    # follow those of "machine" 0.
    gpus=()
    if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
        IFS=, read -r -a all <<<"$CUDA_VISIBLE_DEVICES"
        gpus=(env "CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${all[*]:rank * per_node:per_node}")")
    fi
    setsid "${gpus[@]}" "$python" -m accelerate.commands.launch --config_file "$root/launch/several_nodes.yaml" \
        --num_machines 2 --machine_rank "$rank" --num_processes $((2 * per_node)) --main_process_ip 127.0.0.1 \
        --main_process_port "$port" "$@" &
    launchers+=($!)
done

requests=0
# shellcheck disable=SC2317  # called by the traps
stop() {
    requests=$((requests + 1))
    local launcher
    for launcher in "${launchers[@]}"; do
        if [ "$requests" -eq 1 ]; then
            kill -TERM "$launcher" 2>/dev/null || true
        else
            # Workers first: their launchers would wait for them.
            pkill -KILL --parent "$launcher" || true
            kill -KILL "$launcher" 2>/dev/null || true
        fi
    done
}
trap 'stop; echo "stopping both nodes with a checkpoint; Ctrl-C again to leave at once" >&2' INT
trap stop TERM

code=0
for launcher in "${launchers[@]}"; do
    # A signal interrupts the wait and not the launcher.
    while kill -0 "$launcher" 2>/dev/null; do wait "$launcher" || true; done
    wait "$launcher" || code=$?
done
[ "$requests" -lt 2 ] || code=130
exit "$code"
