#!/usr/bin/env bash
# A Python in an image of apptainer (or singularity), for ULMFIT_PYTHON of launch/slurm.sbatch; launch/apptainer.def makes it.
#   ULMFIT_IMAGE   the image
#   ULMFIT_BINDS   further folders to see in it, comma-separated; the working directory, /tmp and the home are there
set -euo pipefail
run="$(command -v apptainer || command -v singularity)" || { echo "error: there is no apptainer; load its module" >&2; exit 2; }
[ -f "${ULMFIT_IMAGE:-}" ] || { echo "error: there is no image ${ULMFIT_IMAGE:-in ULMFIT_IMAGE}; build it by launch/apptainer.def" >&2; exit 2; }
gpus=()
[ ! -e /dev/nvidiactl ] || gpus=(--nv)
exec "$run" exec ${gpus[@]+"${gpus[@]}"} --bind "$PWD${ULMFIT_BINDS:+,$ULMFIT_BINDS}" "$ULMFIT_IMAGE" python "$@"
