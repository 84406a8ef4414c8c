"""The summary of the whole job: what was reached, beside what takes a user a minute.

`summarize` makes a JSON-able dict, `as_markdown` the page that is also printed, `write_board` the lines in TensorBoard.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ulmfit import files
from ulmfit.fit_config import LM, MEAN
from ulmfit.paths import DESCRIBED
from ulmfit.run.board import FINAL, score_tag
from ulmfit.run_scores import METRICS
from ulmfit.training.baseline import NOT_INSTALLED
from ulmfit.training.job_files import read_json
from ulmfit.training.result import TrainingResult

RIVAL = "TF-IDF + logistic regression"
FEW_LABELS = 1000
BOARD, SUMMARY, PAGE = "tensorboard", "summary.json", "summary.md"
ALONE = "one of them alone"  # in the table of several classifiers
NO_LABELS = "label some texts (a column label) and run ulmfit fit again"


def summarize(
    *,
    data: str,
    rivals: dict[str, Any] | None,
    language_model: TrainingResult,
    classifiers: Sequence[TrainingResult],
    seeds: Sequence[int],
    scores: Mapping[str, Mapping[str, Any]],
    minutes: dict[str, float],
    model: str,
    used: dict[str, Any],
    ngrams: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The summary of a finished job.

    Args:
        rivals: of `run_baselines`; None for a corpus without labels.
        classifiers: none for a corpus without labels. Of several the model is the mean of their probabilities.
        seeds: of the classifiers.
        scores: of the model, by split.
        minutes: of each training, by the name of its folder: "lm", "clf", "clf-2" ...; and of `MEAN`.
        used: facts that the advice depends on: `init`, whether a pretrained model was the start; `unlabelled`,
            whether the language model read more texts than the classifier; `length`, by training the option that set
            its length and the value.
        ngrams: of n-grams in the mean what `Chosen.told` tells; None without them.

    Returns:
        `systems`: by name the scores ("valid", "test": accuracy and f1; "minutes"); `compared_on`; `beats_baseline`,
        None where there is none; `verdict`, a sentence or two; `advice`, a list of sentences. With several classifiers,
        or n-grams, `members`: by classifier "run", "seed", "minutes" and the scores by split. With n-grams `ngrams`.
    """
    # The user may have edited metrics.jsonl of a finished run.
    perplexity = {split: scores.get("perplexity") for split, scores in language_model.metrics.items()}
    found: dict[str, Any] = {"data": data, "model": model, "minutes": minutes, "perplexity": perplexity}
    if rivals is None or not classifiers:
        verdict = "the corpus has no labels: the model is the fine-tuned language model, and there is no classifier"
        return found | {"systems": {}, "compared_on": None, "beats_baseline": None, "verdict": verdict,
                        "advice": [NO_LABELS]}  # fmt: skip
    ours = _shown(scores, rivals)
    if not ours:
        verdict = "no labelled rows are held out, so there is nothing to compare"
        if len(rivals["rows"]) > 1:  # the user has deleted them since
            verdict = (
                f"the evaluations are gone from {classifiers[0].run_dir / METRICS}, so there is nothing to compare"
            )
        return found | {"systems": {}, "compared_on": None, "beats_baseline": None, "verdict": verdict,
                        "advice": ["give labelled rows to compare on: --valid, or a folder with train.csv and test.csv as --data"]}  # fmt: skip
    systems = {"majority class": rivals["majority"], RIVAL: rivals["tfidf"]}
    systems["ulmfit"] = ours | {"minutes": sum(minutes.values())}
    on = "test" if "test" in ours else "valid"
    found |= {"rows": rivals["rows"], "classes": rivals["classes"], "systems": systems, "compared_on": on}
    if ngrams:
        found["ngrams"] = dict(ngrams)
    if len(classifiers) > 1 or ngrams:
        found["members"] = [
            {"run": str(member.run_dir), "seed": seed, "minutes": minutes.get(member.run_dir.name)}
            | _shown(member.metrics, rivals)
            for member, seed in zip(classifiers, seeds, strict=True)
        ]
    used = used | {"run": str(Path(model).parent), "data": data, "classifiers": len(classifiers)}
    return found | _judge(systems, on, rivals, used)


def _shown(scores: Mapping[str, Mapping[str, Any]], rivals: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By split what the summary tells of the scores of a model, where they are whole."""
    return {
        split: {
            name: found.get(name)
            for name in ("accuracy", "f1", "micro_f1", "loss")
            if name in found or name != "micro_f1"
        }
        for split, found in scores.items()
        if split in rivals["rows"] and all(isinstance(found.get(name), int | float) for name in ("accuracy", "f1"))
    }


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
            "give unlabelled texts of the task too (rows with an empty label, or a folder with train.csv and unsup.csv as --data): "
            "the language model learns from them"
        )
    if not used["init"]:
        lines.append(
            "start from a language model of the texts' language: --init takes one, launch/pretrain.sh makes one"
        )
    options = " ".join(f"--{training}.{option} {2 * value:g}" for training, (option, value) in used["length"].items())
    lines.append(f"train twice as long: {options}")
    if used["classifiers"] == 1:
        same = f"ulmfit fit --output-dir {shlex.quote(used['run'])} --ensemble 3"
        if used["data"].startswith(DESCRIBED):
            same = "the same call with ensemble=3"
        lines.append(f"average three classifiers: {same} trains two more on this language model")
    if rivals["rows"]["train"] < FEW_LABELS:
        lines.append(f"label more texts: {rivals['rows']['train']:,} are few, and a hundred more may do more than any "
                     "option")  # fmt: skip
    if not used["init"]:  # pretrained weights read in one direction only
        lines.append("average with the other direction: the same command with --backwards (or without, where this one has it) and "
                     "another --output-dir, then ulmfit predict --model FORWARD --model BACKWARD")  # fmt: skip
    if name == RIVAL:
        lines.append(f"or use {name}: it is a fair choice where words alone tell the class")
    return lines


def as_markdown(summary: dict[str, Any]) -> str:
    """The page of a summary, which is also readable as plain text."""
    lines = [f"# {summary['data']}", ""]
    shown, members = summary["minutes"], summary.get("members", [])
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
        if members:
            several = f"{len(members)} classifiers" if len(members) > 1 else "a classifier"
            rows[-1][0] += f", mean of {several}" + " and n-grams" * ("ngrams" in summary)
            known = [member["minutes"] for member in members if member["minutes"] is not None]
            alone = f"{shown.get(LM, 0.0) + sum(known) / len(known):.1f}" if known else "-"
            rows.append([ALONE if len(members) > 1 else "the classifier alone", *(_range(members, split, measure) for split in splits), _range(members, splits[0], "f1"),
                         alone])  # fmt: skip
        lines += [*_table(rows), ""]
        number = summary["rows"]
        parts = [f"{number['train']:,} labelled texts to train on"]
        parts += [f"{number[split]:,} of {'test' if split == 'test' else 'validation'}" for split in splits]
        lines += [f"{', '.join(parts)}; {len(summary['classes'])} classes."]
    told = {"language model": shown[LM]} if LM in shown else {}
    if classifying := [value for name, value in shown.items() if name not in (LM, MEAN)]:
        told |= {f"{len(members)} classifiers" if len(members) > 1 else "classifier": sum(classifying)}
    if MEAN in shown:
        told |= {"their mean" if len(members) > 1 else "n-grams": shown[MEAN]}
    lines += ["Minutes: " + ", ".join(f"{name} {value:.1f}" for name, value in told.items()) + "."]
    if summary["perplexity"]:
        values = (f"{_perplexity(value)} on the {split} texts" for split, value in summary["perplexity"].items())
        lines += [f"Perplexity of the language model: {', '.join(values)}."]
    lines += ["", f"**{summary['verdict']}**"]
    if summary["advice"]:
        lines += ["", "What to try:", "", *(f"- {line}" for line in summary["advice"])]
    job = Path(summary["model"]).parent
    use = f"predict --model {shlex.quote(str(job))} --data new.csv --output labels.csv"
    if summary["advice"] == [NO_LABELS]:
        use = f'generate --model {shlex.quote(str(job))} "The"'
    lines += ["", f"Use it: ulmfit {use}"]
    return "\n".join([*lines, "", f"Model: {summary['model']}. Curves: tensorboard --logdir {job}"]) + "\n"


def _range(members: Sequence[dict[str, Any]], split: str, score: str) -> str:
    """The smallest and the largest score of the members, as far as their files tell them."""
    values = [member[split][score] for member in members if split in member]
    return " to ".join(dict.fromkeys(f"{value:.3f}" for value in (min(values), max(values)))) if values else "-"


def _perplexity(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else "not finite"


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def write_summary(path: Path, summary: dict[str, Any], steps: int, *, anew: bool) -> None:
    """Write summary.json, summary.md and the lines in TensorBoard into the directory of a job.

    Args:
        steps: as of `write_board`.
        anew: whether to write them even if summary.json is there already.
    """
    text = json.dumps(summary, indent=2) + "\n"
    if anew or read_json(path / SUMMARY) != json.loads(text):
        files.write_text(path / SUMMARY, text)
        files.write_text(path / PAGE, as_markdown(summary))
        write_board(path / BOARD, summary, steps)


def write_board(folder: Path, summary: dict[str, Any], steps: int) -> None:
    """Write the summary as a text, and the accuracies of the rivals, and of the mean of several classifiers, as level
    lines beside the classifier's curves.

    Args:
        folder: of the event files, replaced if it exists.
        steps: of the classifier, the length of the lines.
    """
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as board:
        board.add_text("summary", as_markdown(summary), steps)
    for name, scores in summary["systems"].items():
        if scores is None or name == "ulmfit" and "members" not in summary:  # one classifier's run has its scores
            continue
        with SummaryWriter(str(folder / {RIVAL: "tfidf", "ulmfit": "ensemble"}.get(name, "majority"))) as board:
            for split in ("valid", "test"):
                for step in (0, steps) if split in scores else ():
                    for score in ("accuracy", "f1"):
                        board.add_scalar(f"{FINAL}/{score}/{split}", scores[split][score], step)
                        if split == "valid":
                            board.add_scalar(score_tag("clf", score, split), scores[split][score], step)
