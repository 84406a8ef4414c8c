#!/usr/bin/env bash
# Trainings that start from each other, as SLURM jobs that wait for each other. Submit from the project root: the options
# of sbatch, then behind a -- each the trainings, as for launch/slurm.sbatch:
#   launch/slurm_chain.sh --nodes=2 --gpus-per-node=4 --time=12:00:00 \
#       -- train_lm.py --data wiki/ --output-dir runs/general \
#       -- train_lm.py --data reviews/ --init runs/general --output-dir runs/domain \
#       -- train_clf.py --data reviews/ --encoder runs/domain --output-dir runs/clf
# A training waits for the one whose --output-dir its --init or --encoder names, and first asks for `done` in its
# status.json. If one fails, those behind it are cancelled. The same command submitted again goes on where the chain broke.
# Where requeueing is forbidden (give --no-requeue), a job at its time limit submits itself again, and those that wait for
# it wait for the new one. So one training alone may be given too:
#   launch/slurm_chain.sh --no-requeue --time=01:00:00 -- train_lm.py --data wiki/ --output-dir runs/lm
# With --array=1-4 and %a in the options each task has a chain of its own, but not where requeueing is forbidden: a task
# that submits itself again is another job, for which its successor does not wait. Submit such chains one by one.
# All options are checked before anything is submitted. Exit code: 0 submitted, 2 a mistake, 1 sbatch failed.
set -euo pipefail
python="${ULMFIT_PYTHON:-$PWD/.venv/bin/python}"
fail() { echo "error: $1" >&2; exit 2; }
[ -f launch/slurm.sbatch ] || fail "there is no launch/slurm.sbatch in $PWD; submit from the project root"
command -v "$python" >/dev/null || fail "there is no $python; run launch/setup.sh, or export ULMFIT_PYTHON"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

options=() array="" after_all=afterok
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    [[ "$1" != --array* && "$1" != -a* ]] || array=1 after_all=aftercorr
    options+=("$1")
    shift
done
[ $# -gt 1 ] || fail "nothing to train; launch/slurm_chain.sh --nodes=1 -- train_lm.py --data ... -- train_clf.py ..."
# What slurm.sbatch submits a job again with; never empty.
ULMFIT_SBATCH="$([ ${#options[@]} -eq 0 ] || printf '%q ' "${options[@]}") "
export ULMFIT_SBATCH
task=987654321  # stands for %a while the options are checked
[ -z "$array" ] || export SLURM_ARRAY_TASK_ID="$task"

# Sets `words` to the next training on the command line.
rest=("$@")
take() {
    words=()
    rest=("${rest[@]:1}")
    while [ ${#rest[@]} -gt 0 ] && [ "${rest[0]}" != -- ]; do
        words+=("${rest[0]}")
        rest=("${rest[@]:1}")
    done
    [ ${#words[@]} -gt 0 ] || fail "a -- has no training behind it"
}

plain() { realpath -ms "$1"; }

directories=() predecessors=()
while [ ${#rest[@]} -gt 0 ]; do
    take
    parsed="$("$python" -m ulmfit.cli.job "${words[@]}")" || exit 2
    { read -r _; read -r directory; read -r start; } <<<"$parsed" || true  # the last line may be missing
    before=""
    for number in "${!directories[@]}"; do
        [ "$(plain "${directories[number]}")" != "$(plain "$directory")" ] ||
            fail "two trainings of the chain have the --output-dir $directory; give each its own"
        [ -z "$start" ] || [ "$(plain "${directories[number]}")" != "$(plain "$start")" ] || before="$number"
    done
    if [ ${#directories[@]} -gt 0 ] && [ -z "$before" ]; then
        fail "the training into $directory starts from ${start:-no model} and from no training before it; give --init or \
--encoder ${directories[-1]}, or submit it by itself"
    fi
    directories+=("$directory")
    predecessors+=("$before")
done

rest=("$@")
jobs=()
unset SLURM_ARRAY_TASK_ID
for number in "${!directories[@]}"; do
    take
    before="${predecessors[number]}" after="" dependency=()
    if [ -n "$before" ]; then
        dependency=(--dependency="$after_all:${jobs[before]}" --kill-on-invalid-dep=yes)
        after="${directories[before]//$task/%a}"
    fi
    job="$(ULMFIT_AFTER="$after" sbatch --parsable ${options[@]+"${options[@]}"} ${dependency[@]+"${dependency[@]}"} \
        launch/slurm.sbatch "${words[@]}")" || {
        [ ${#jobs[@]} -eq 0 ] || echo "submitted already: scancel ${jobs[*]}" >&2
        exit 1
    }
    jobs+=("${job%%;*}")
    echo "job ${job%%;*}: ${words[*]}${before:+, after job ${jobs[before]}}"
done
