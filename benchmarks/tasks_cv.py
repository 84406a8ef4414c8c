"""Cross-validation of recipes on small tasks: which options are best, without a look at a test split.

    python benchmarks/tasks_cv.py --tasks TASKS --work WORK --init ENCODER --name NAME [--lm JSON] [--clf JSON]

TASKS holds a folder a task with train.csv and valid.csv (columns text, label), which are joined and cut into five
folds by a seed. NAME is a choice of options, given as JSON. The language model is fine-tuned once a task, on the texts
of all folds without their labels (`--lm none`: no language model at all; `--lm no-fine-tuning`: ENCODER as it is); the
classifier is trained once a fold and scored on what the fold leaves out. A line a fold is added to
WORK/results.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ulmfit import train_classifier, train_language_model
from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.training import stages as recipes

FOLDS = 5
SEED = 20261128


def set_stages(task: str, stages: list[list]) -> None:
    """Put other stages into the recipe quick: lists of (first trained group, epochs, lr, divisor of the lr)."""
    for key, recipe in recipes._QUICK.items():
        if key[0] == task:
            recipes._QUICK[key] = replace(
                recipe,
                stages=tuple(
                    recipes.Stage(f"groups from {first}", first, epochs, lr, divisor)
                    for first, epochs, lr, divisor in stages
                ),
            )


def folds_of(task: Path, work: Path) -> list[Path]:
    """Folders with train.csv and valid.csv, one a fold, and all.csv, the texts of all."""
    folder = work / "data" / task.name
    rows = pd.concat(
        [pd.read_csv(task / f"{name}.csv", keep_default_na=False) for name in ("train", "valid")], ignore_index=True
    )
    rows = rows.sample(frac=1, random_state=SEED).reset_index(drop=True)
    for fold in range(FOLDS):
        if not (folder / str(fold) / "valid.csv").exists():
            (folder / str(fold)).mkdir(parents=True, exist_ok=True)
            rows[rows.index % FOLDS != fold].to_csv(folder / str(fold) / "train.csv", index=False)
            rows[rows.index % FOLDS == fold].to_csv(folder / str(fold) / "valid.csv", index=False)
    rows[["text"]].to_csv(folder / "all.csv", index=False)
    return [folder / str(fold) for fold in range(FOLDS)]


def trained_language_model(name: str, options: dict, task: Path, work: Path, init: str | None) -> str:
    """The directory of the language model `name` on this task's texts, trained where it is not there yet."""
    output = work / "lm" / name / task.name
    if not (output / "model" / "model.safetensors").exists():
        train_language_model(
            LMConfig(
                **{
                    "data": str(work / "data" / task.name / "all.csv"),
                    "output_dir": str(output),
                    "init": init,
                    "threads": 1,
                    "resume": "never",
                    "save_every": 0,
                    "samples": False,
                    "valid": "0.05",
                }
                | options
            )
        )
    return str(output)


def last_evaluation(run: Path, key: str) -> float:
    """A figure of the last validation in a run's metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "eval" and line["split"] == "valid"][-1][key]


def curve(run: Path, key: str) -> list[float]:
    """The figure of every validation in a run's metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [round(line[key], 4) for line in lines if line["event"] == "eval" and line["split"] == "valid"]


def main() -> None:
    """Compute what is missing and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--task", nargs="*", default=["cr", "mr", "trec"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--init")
    parser.add_argument("--name", required=True, help="under which the results stand")
    parser.add_argument("--lm", default="{}", help="JSON options of the language model, or none")
    parser.add_argument("--clf", default="{}", help="JSON options of the classifier")
    parser.add_argument("--lm-stages", help="JSON list of stages of the language model's recipe quick")
    parser.add_argument("--clf-stages", help="JSON list of stages of the classifier's recipe quick")
    parser.add_argument("--lm-name", help="language models with the same options and start share a name")
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(FOLDS)))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    results = args.work / "results.jsonl"
    for task, stages in (("lm", args.lm_stages), ("clf", args.clf_stages)):
        if stages:
            set_stages(task, json.loads(stages))
    for task in (args.tasks / name for name in args.task):
        folds = folds_of(task, args.work)
        scores = []
        begun = time.process_time()
        encoder = args.init if args.lm == "no-fine-tuning" else None
        if args.lm not in ("none", "no-fine-tuning"):
            with contextlib.redirect_stdout(io.StringIO()):
                encoder = trained_language_model(
                    args.lm_name or args.name, json.loads(args.lm), task, args.work, args.init
                )
        lm_seconds = time.process_time() - begun
        for fold in args.folds:
            output = args.work / "clf" / args.name / task.name / str(fold)
            begun = time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                train_classifier(
                    ClassifierConfig(
                        **{
                            "data": str(folds[fold]),
                            "output_dir": str(output),
                            "encoder": encoder,
                            "threads": 1,
                            "resume": "never",
                            "save_every": 0,
                            "log_every": 50,
                        }
                        | json.loads(args.clf)
                    )
                )
            scores.append(last_evaluation(output, "accuracy"))
            line = {
                "name": args.name,
                "task": task.name,
                "fold": fold,
                "accuracy": scores[-1],
                "curve": curve(output, "accuracy"),
                "lm": [args.lm, args.lm_stages],
                "clf": [args.clf, args.clf_stages],
                "lm_seconds": lm_seconds,
                "clf_seconds": time.process_time() - begun,
            }
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            for heavy in ("checkpoints", "model", "tensorboard"):
                shutil.rmtree(output / heavy, ignore_errors=True)
        mean = sum(scores) / len(scores)
        print(
            f"{args.name:28} {task.name:6} {mean:.4f}  ({', '.join(f'{score:.4f}' for score in scores)})  "
            f"lm {lm_seconds:.0f} s, clf {line['clf_seconds']:.0f} s a fold",
            flush=True,
        )


if __name__ == "__main__":
    main()
