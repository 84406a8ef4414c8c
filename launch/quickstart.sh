#!/usr/bin/env bash
# The whole job on the embedded sample of film reviews, from a fresh checkout: set-up, language model, classifier and
# comparison, a generated text and two predictions. Needs Python 3.11 or newer; two to five minutes on two CPU cores.
# Trains on all GPUs there are, else on the CPU. Run again, it finds the finished job and trains nothing anew;
# delete runs/sample to start over.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up
cd "$root"

# Shows a command as one would type it, then runs it.
step() {
    local word
    printf '\n$'
    for word in "$@"; do
        case "$word" in *' '*) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
    "$@"
}

# torch counts physical cores and heeds OMP_NUM_THREADS; the launchers would otherwise set one thread.
read -r gpus threads < <(python -c 'import torch; print(torch.cuda.device_count(), torch.get_num_threads())')
if [ "$gpus" -ge 2 ]; then
    # The rows of the language model's batch, 64 by default, are dealt evenly.
    while [ $((64 % gpus)) -ne 0 ]; do gpus=$((gpus - 1)); done
    launch=(accelerate launch --config_file launch/multi_gpu.yaml --num_processes "$gpus")
elif [ "$gpus" -eq 1 ]; then
    launch=(accelerate launch --config_file launch/one_gpu.yaml)
else
    launch=(accelerate launch --config_file launch/cpu.yaml --num_cpu_threads_per_process "$threads")
    # glibc returns large blocks to the system at every free and faults their pages in anew at the next step;
    # these make it keep them. Other C libraries ignore them.
    export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=268435456
    # Threads that spin while they wait take ten times as long when another program wants a core.
    export OMP_WAIT_POLICY=PASSIVE
fi

step "${launch[@]}" -m ulmfit fit --output-dir runs/sample
step python -m ulmfit generate --model runs/sample/lm "I liked this movie because"
# Texts of the kind that the sample's grammar writes: a model of 2,000 made-up reviews knows no others.
step python -m ulmfit predict --model runs/sample \
    "I saw The Winter Forest last night. The acting was superb and the music was gripping. I would recommend it." \
    "We rented The Broken Clock last week. The plot was predictable and dull. I wanted the money back."
# English texts of your own start from the language model that comes with the package.
step python -m ulmfit generate --model english "The city of"

printf '\nThe comparison: %q. Curves: %q --logdir %q\n' "$root/runs/sample/summary.md" "$venv/bin/tensorboard" \
    "$root/runs/sample"

# The commands above ran in an environment that the caller's shell does not know.
printf '\nTo go on in this shell: source %q\n' "$venv/bin/activate"
