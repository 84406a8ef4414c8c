"""The summary of the whole job: what was reached, beside what takes a user a minute.

`summarize` makes a JSON-able dict, `as_markdown` the page that is also printed, `write_board` the lines in TensorBoard.
"""

from __future__ import annotations

import math
import shlex
import shutil
from pathlib import Path
from typing import Any

from ulmfit.run.board import FINAL, score_tag
from ulmfit.run_scores import METRICS
from ulmfit.training.baseline import NOT_INSTALLED
from ulmfit.training.result import TrainingResult

RIVAL = "TF-IDF + logistic regression"
FEW_LABELS = 1000
BOARD = "tensorboard"
NO_LABELS = "label some texts (a column label) and run ulmfit fit again"


def summarize(
    *,
    data: str,
    rivals: dict[str, Any] | None,
    language_model: TrainingResult,
    classifier: TrainingResult | None,
    minutes: dict[str, float],
    model: str,
    used: dict[str, Any],
) -> dict[str, Any]:
    """The summary of a finished job.

    Args:
        rivals: of `run_baselines`; None for a corpus without labels.
        classifier: None for a corpus without labels.
        minutes: of each training, by "lm" and "clf".
        used: facts that the advice depends on: `init`, whether a pretrained model was the start; `unlabelled`,
            whether the language model read more texts than the classifier; `seed`, that of the job; `length`, by training the option that set
            its length and the value.

    Returns:
        `systems`: by name the scores ("valid", "test": accuracy and f1; "minutes"); `compared_on`; `beats_baseline`,
        None where there is none; `verdict`, a sentence or two; `advice`, a list of sentences.
    """
    # The user may have edited metrics.jsonl of a finished run.
    perplexity = {split: scores.get("perplexity") for split, scores in language_model.metrics.items()}
    found: dict[str, Any] = {"data": data, "model": model, "minutes": minutes, "perplexity": perplexity}
    if rivals is None or classifier is None:
        verdict = "the corpus has no labels: the model is the fine-tuned language model, and there is no classifier"
        return found | {"systems": {}, "compared_on": None, "beats_baseline": None, "verdict": verdict,
                        "advice": [NO_LABELS]}  # fmt: skip
    ours = {
        split: {
            name: scores.get(name)
            for name in ("accuracy", "f1", "micro_f1", "loss")
            if name in scores or name != "micro_f1"
        }
        for split, scores in classifier.metrics.items()
        if split in rivals["rows"] and all(isinstance(scores.get(name), int | float) for name in ("accuracy", "f1"))
    }
    if not ours:
        verdict = "no labelled rows are held out, so there is nothing to compare"
        if len(rivals["rows"]) > 1:  # the user has deleted them since
            verdict = f"the evaluations are gone from {classifier.run_dir / METRICS}, so there is nothing to compare"
        return found | {"systems": {}, "compared_on": None, "beats_baseline": None, "verdict": verdict,
                        "advice": ["give labelled rows to compare on: --valid, or a file test.csv beside train.csv"]}  # fmt: skip
    systems = {"majority class": rivals["majority"], RIVAL: rivals["tfidf"]}
    systems["ulmfit"] = ours | {"minutes": sum(minutes.values())}
    on = "test" if "test" in ours else "valid"
    found |= {"rows": rivals["rows"], "classes": rivals["classes"], "systems": systems, "compared_on": on}
    return found | _judge(systems, on, rivals, used | {"run": str(Path(model).parent), "data": data})


def _judge(systems: dict[str, Any], on: str, rivals: dict[str, Any], used: dict[str, Any]) -> dict[str, Any]:
    measure = measure_of(systems["ulmfit"][on])
    ours = systems["ulmfit"][on][measure]
    name = RIVAL if systems[RIVAL] is not None else "majority class"
    theirs = systems[name][on][measure]
    beats = ours > theirs
    number = rivals["rows"][on]
    error = math.sqrt(max(ours * (1 - ours), theirs * (1 - theirs)) / number)
    rows = f"{number:,} {'test' if on == 'test' else 'validation'} rows"
    chance = f"one standard error of an accuracy on {rows} is {error:.3f}"
    if measure == "micro_f1":
        chance = f"micro F1 on {rows}"
    if beats:
        verdict = f"ulmfit beats {name}: {ours:.3f} against {theirs:.3f} ({chance})"
    elif ours == theirs:
        verdict = f"ulmfit does not beat {name}: both reach {ours:.3f} ({chance})"
    else:
        verdict = f"ulmfit does not beat {name}: {ours:.3f} against {theirs:.3f} ({chance})"
    if on == "valid" and systems[RIVAL] is not None:
        verdict += "; there is no test split, and both were tuned on these rows, so new texts will be a little worse"
    if systems[RIVAL] is None:
        verdict += f"; {RIVAL} was not trained: {rivals['reason']}"
        if rivals["reason"] == NOT_INSTALLED:
            verdict += " (pip install scikit-learn, or 'ulmfit[sklearn]', then the same command adds it)"
    return {"beats_baseline": beats if systems[RIVAL] is not None else None, "verdict": verdict,
            "advice": [] if beats else _advice(name, rivals, used)}  # fmt: skip


def measure_of(scores: dict[str, float]) -> str:
    """The score that systems are compared by: the micro F1 where a text may have several labels, else the accuracy."""
    return "micro_f1" if "micro_f1" in scores else "accuracy"


def tell_rivals(rivals: dict[str, Any]) -> None:
    """Print what the classifier has to beat."""
    on = "test" if "test" in rivals["rows"] else "valid"
    tfidf = rivals["tfidf"]
    if tfidf is not None and on in rivals["rows"]:
        measure = measure_of(tfidf[on])
        print(
            f"to beat on the {on} rows{', micro F1' * (measure == 'micro_f1')}: majority class "
            f"{rivals['majority'][on][measure]:.3f}, {RIVAL} {tfidf[on][measure]:.3f}",
            flush=True,
        )


def _advice(name: str, rivals: dict[str, Any], used: dict[str, Any]) -> list[str]:
    """What to try where ours is not better, the most promising first."""
    lines = []
    if not used["unlabelled"]:
        lines.append(
            "give unlabelled texts of the task too (rows with an empty label, or a file unsup.csv beside train.csv): "
            "the language model learns from them"
        )
    if not used["init"]:
        lines.append(
            "start from a language model of the texts' language: --init takes one, launch/pretrain.sh makes one"
        )
    options = " ".join(f"--{training}.{option} {2 * value:g}" for training, (option, value) in used["length"].items())
    lines.append(f"train twice as long: {options}")
    run, first, second = used["run"], used["seed"] + 1, used["seed"] + 2
    lines.append(
        f"average the classifiers of three seeds: ulmfit train-clf --data {used['data']} --encoder {run}/lm --seed {first} "
        f"--output-dir {run}-seed{first}, the same with {second}, both with your other options for data and classifier, then "
        f"ulmfit predict --model {run} --model {run}-seed{first} --model {run}-seed{second}"
    )
    lines.append("average with the backward half: the same command with --backwards and another --output-dir, then "
                 "ulmfit predict --model FORWARD --model BACKWARD")  # fmt: skip
    if rivals["rows"]["train"] < FEW_LABELS:
        lines.append(f"label more texts: {rivals['rows']['train']:,} are few, and a hundred more may do more than any "
                     "option")  # fmt: skip
    if name == RIVAL:
        lines.append(f"or use {name}: it is a fair choice where words alone tell the class")
    return lines


def as_markdown(summary: dict[str, Any]) -> str:
    """The page of a summary, which is also readable as plain text."""
    lines = [f"# {summary['data']}", ""]
    shown = summary["minutes"]
    if summary["systems"]:
        splits = [split for split in ("test", "valid") if split in summary["rows"]]
        measure = measure_of(summary["systems"]["ulmfit"][splits[0]])
        shown_as = "micro F1" if measure == "micro_f1" else "accuracy"
        names = {"test": f"test {shown_as}", "valid": f"validation {shown_as}"}
        rows = [["", *(names[split] for split in splits), "macro F1", "minutes"]]
        for name, scores in summary["systems"].items():
            if scores is None:
                rows.append([name, *("-" for _ in splits), "-", "-"])
                continue
            accuracies = [f"{scores[split][measure]:.3f}" for split in splits]
            rows.append([name, *accuracies, f"{scores[splits[0]]['f1']:.3f}", f"{scores['minutes']:.1f}"])
        lines += [*_table(rows), ""]
        number = summary["rows"]
        parts = [f"{number['train']:,} labelled texts to train on"]
        parts += [f"{number[split]:,} of {'test' if split == 'test' else 'validation'}" for split in splits]
        lines += [f"{', '.join(parts)}; {len(summary['classes'])} classes."]
    lines += ["Minutes: " + ", ".join(f"{NAMES[name]} {value:.1f}" for name, value in shown.items()) + "."]
    if summary["perplexity"]:
        told = (f"{_perplexity(value)} on the {split} texts" for split, value in summary["perplexity"].items())
        lines += [f"Perplexity of the language model: {', '.join(told)}."]
    lines += ["", f"**{summary['verdict']}**"]
    if summary["advice"]:
        lines += ["", "What to try:", "", *(f"- {line}" for line in summary["advice"])]
    job = Path(summary["model"]).parent
    use = f"predict --model {shlex.quote(str(job))} --data new.csv --output labels.csv"
    if summary["advice"] == [NO_LABELS]:
        use = f'generate --model {shlex.quote(str(job))} "The"'
    lines += ["", f"Use it: ulmfit {use}"]
    return "\n".join([*lines, "", f"Model: {summary['model']}. Curves: tensorboard --logdir {job}"]) + "\n"


NAMES = {"lm": "language model", "clf": "classifier"}


def _perplexity(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else "not finite"


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def write_board(folder: Path, summary: dict[str, Any], steps: int) -> None:
    """Write the summary as a text, and the accuracies of the rivals as level lines beside the classifier's curves.

    Args:
        folder: of the event files, replaced if it exists.
        steps: of the classifier, the length of the lines.
    """
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as board:
        board.add_text("summary", as_markdown(summary), steps)
    for name, scores in summary["systems"].items():
        if scores is None or name == "ulmfit":
            continue
        with SummaryWriter(str(folder / ("tfidf" if name == RIVAL else "majority"))) as board:
            for split in ("valid", "test"):
                for step in (0, steps) if split in scores else ():
                    for score in ("accuracy", "f1"):
                        board.add_scalar(f"{FINAL}/{score}/{split}", scores[split][score], step)
                        if split == "valid":
                            board.add_scalar(score_tag("clf", score, split), scores[split][score], step)
