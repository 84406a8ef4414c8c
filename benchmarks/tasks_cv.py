"""Cross-validation of recipes on small tasks: which options are best, without a look at a test split.

    python benchmarks/tasks_cv.py --tasks TASKS --work WORK --init ENCODER --name NAME [--lm JSON] [--clf JSON]
    python benchmarks/tasks_cv.py --work WORK --table

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
import torch

from ulmfit import train_classifier, train_language_model
from ulmfit.config import ClassifierConfig, LMConfig
from ulmfit.model.language_model import LanguageModelNet
from ulmfit.model.pretrained import load_model, save_model
from ulmfit.tokenizer.tokenizer import Tokenizer
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


def cut_to_own_words(run: str, texts: list[str], folder: Path, min_freq: int) -> str:
    """A copy of a language model with the task's own words alone, as if they had replaced the pretrained vocabulary.

    Words that `texts` have less than `min_freq` times become unknown, though the model knows them. A word that it does not
    know gets the mean of all rows, as in fastai.
    """
    net, tokenizer, config = load_model(run, language_model=True)
    assert isinstance(net, LanguageModelNet)
    own = Tokenizer.train(texts, rules=tokenizer.rules, vocab_size=len(tokenizer), min_freq=min_freq)
    places = {word: place for place, word in enumerate(tokenizer.vocab)}
    smaller = LanguageModelNet(replace(net.config, vocab_size=len(own), pad_id=own.pad_id))
    state = net.state_dict()
    for name in ("encoder.embedding.weight", "decoder_bias"):
        rows = [state[name][places[word]] if word in places else state[name].mean(0) for word in own.vocab]
        state[name] = torch.stack(rows)
    smaller.load_state_dict(state)
    print(f"cut from {len(tokenizer):,} to {len(own):,} words", flush=True)
    save_model(folder / "model", smaller, own, {"backwards": config["backwards"]})
    return str(folder)


def last_evaluation(run: Path, key: str) -> float:
    """A figure of the last validation in a run's metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "eval" and line["split"] == "valid"][-1][key]


def curve(run: Path, key: str) -> list[float]:
    """The figure of every validation in a run's metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [round(line[key], 4) for line in lines if line["event"] == "eval" and line["split"] == "valid"]


def table(results: Path) -> str:
    """Markdown: mean accuracy by choice of options and task over the folds that all choices have, and their mean."""
    found: dict[tuple[str, str, int], float] = {}
    for line in results.read_text().splitlines():
        row = json.loads(line)
        found[row["name"], row["task"], row["fold"]] = row["accuracy"]
    names, tasks = dict.fromkeys(key[0] for key in found), dict.fromkeys(key[1] for key in found)
    whole = [name for name in names if {key[1] for key in found if key[0] == name} == set(tasks)]
    lines = [f"| | {' | '.join(tasks)} | mean |", "|---" * (len(tasks) + 2) + "|"]
    for name in whole:
        means = []
        for task in tasks:
            shared = set.intersection(*({key[2] for key in found if key[:2] == (one, task)} for one in whole))
            means.append(sum(found[name, task, fold] for fold in shared) / len(shared))
        lines.append(f"| {name} | {' | '.join(f'{mean:.4f}' for mean in [*means, sum(means) / len(means)])} |")
    return "\n".join(lines)


def main() -> None:
    """Compute what is missing and print a line a task; with --table only print what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=Path)
    parser.add_argument("--task", nargs="*", default=["cr", "mr", "trec"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--init")
    parser.add_argument("--name", help="under which the results stand")
    parser.add_argument("--table", action="store_true", help="print what WORK/results.jsonl holds, and compute nothing")
    parser.add_argument("--lm", default="{}", help="JSON options of the language model, or none")
    parser.add_argument("--clf", default="{}", help="JSON options of the classifier")
    parser.add_argument("--lm-stages", help="JSON list of stages of the language model's recipe quick")
    parser.add_argument("--clf-stages", help="JSON list of stages of the classifier's recipe quick")
    parser.add_argument("--lm-name", help="language models with the same options and start share a name")
    parser.add_argument(
        "--own-words", type=int, metavar="N", help="cut the vocabulary to words that the task has N times"
    )
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(FOLDS)))
    args = parser.parse_args()
    if args.table:
        print(table(args.work / "results.jsonl"))
        return
    if args.tasks is None or args.name is None:
        parser.error("give --tasks and --name, or --table")
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
        if args.own_words and encoder:
            texts = pd.read_csv(args.work / "data" / task.name / "all.csv", keep_default_na=False)["text"].tolist()
            encoder = cut_to_own_words(encoder, texts, args.work / "cut" / args.name / task.name, args.own_words)
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
