"""Every number of processes and micro-batches, both trainers and the stream, in fp64 and fp32: the same model?

    python -m tests.invariance                              about 8 minutes on two cores
    python -m tests.invariance --precision fp64 --task clf

One launch of four real processes does all runs, the smaller worlds with some of them. Each run is the whole recipe
of `runs.whole_recipe` (stages, jitter, every dropout, AR and TAR, clipping, evaluation); it is compared with one
process and one micro-batch. Prints a table and ends with 1 if a contract is broken: losses and every tensor of
model.safetensors (||a - b|| / ||a||) within 1e-10 in fp64 over the whole run; in fp32 within 1e-5 for the language
model and 1e-4 for the classifier over 50 steps. Per run: the largest relative difference of a step's loss, of an
evaluation's loss, of a tensor.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.training import runs, world

WORLDS, CUTS = (1, 2, 4), (1, 2, 4)
TASKS = {"lm": "lm", "sampled": "lm --sampled-softmax 100", "stream": "lm --streaming", "clf": "clf"}
BOUNDS = {"fp64": dict.fromkeys(TASKS, 1e-10), "fp32": {"lm": 1e-5, "sampled": 1e-5, "stream": 1e-5, "clf": 1e-4}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=BOUNDS, default=list(BOUNDS))
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ulmfit-invariance-") as name:
        return compare(Path(name), arguments.precision, arguments.task)


def compare(folder: Path, precisions: list[str], tasks: list[str]) -> int:
    data = runs.write_reviews(folder / "reviews.csv", 120)
    cache = str(folder / "cache")
    pretrained = runs.lm_config(
        folder / "pretrained", data=str(data), preset="tiny", max_steps=30, lr=1e-2, cache_dir=cache
    )
    cells = [
        (precision, task, number, cuts)
        for precision in precisions
        for task in tasks
        for number in WORLDS
        for cuts in CUTS
    ]
    jobs = [world.job("lm", vars(pretrained), world=1)]
    for precision, task, number, cuts in cells:
        steps = {"max_steps": 50} if precision == "fp32" else {}
        trainer, options = runs.whole_recipe(
            task,
            data,
            folder / "pretrained",
            folder / f"{precision}-{task}-{number}x{cuts}",
            precision=precision,
            micro_batches=cuts,
            cache_dir=cache,
            **steps,
        )
        jobs.append(world.job(trainer, options, world=number))
    world.launch(jobs, folder / "launch", timeout=3600)

    print(
        "| arithmetic | run | processes | micro-batches | steps | loss | evaluation | tensor | bound | |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    kept = True
    for precision, task, number, cuts in cells:
        if (number, cuts) == (1, 1):
            reference = folder / f"{precision}-{task}-1x1"
            continue
        run, bound = folder / f"{precision}-{task}-{number}x{cuts}", BOUNDS[precision][task]
        loss = runs.largest_relative_difference(runs.losses(reference), runs.losses(run))
        score = runs.largest_relative_difference(
            *([line["loss"] for line in runs.events(path, "eval")] for path in (reference, run))
        )
        tensor = runs.distance(runs.weights(reference), runs.weights(run))
        within = max(loss, score, tensor) <= bound
        kept = kept and within
        row = [
            precision,
            TASKS[task],
            number,
            cuts,
            len(runs.losses(run)),
            f"{loss:.1e}",
            f"{score:.1e}",
            f"{tensor:.1e}",
            f"{bound:.0e}",
            "kept" if within else "BROKEN",
        ]
        print("|", " | ".join(map(str, row)), "|", flush=True)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
