"""Model cards, made from the run that a model lies in: data, recipe, scores by class, command, intended use.

A card holds no text of the data. Names (of files, columns, classes) are cut, and under --no-samples those that look like
texts are hidden, as in messages. Folders of paths are left out: they tell of the machine.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ulmfit.errors import one_line
from ulmfit.excerpts import listed, values_shown
from ulmfit.hub import PREFIX
from ulmfit.markdown import as_markdown
from ulmfit.model_kinds import is_ngrams
from ulmfit.model_origin import Origin, Run, as_dict, origin_of
from ulmfit.paths import DESCRIBED, PATHS, without_folders
from ulmfit.run_command import words_of_command
from ulmfit.run_scores import number

CARD = "README.md"
PAPER = "1801.06146"
LICENCE_OF_ENGLISH = "cc-by-sa-3.0"  # of the language model in the package, which derived models take over
_NOT_TOLD = {"output_dir", "cache_dir", "local_cache", "max_time", "threads"}  # of the machine, not of the model
_SHOWN = 50  # classes in a table
_SPLITS = {"test": "test", "valid": "validation"}
_SCORES = {"loss": "loss", "perplexity": "perplexity", "accuracy": "accuracy", "f1": "macro F1", "micro_f1": "micro F1",
           "recall": "mean recall", "ece": "calibration error (ECE)"}  # fmt: skip


def model_card(
    base: ModelCardData,
    folder: Path | None,
    config: Mapping[str, Any],
    *,
    size: int | None,
    usage: str,
    library: str | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    tags: Sequence[str] = (),
    model_name: str | None = None,
    intended_use: str | None = None,
    repo_id: str | None = None,
) -> str:
    """The text of a README.md with metadata.

    Where no run is at hand, the card of the folder (of a model from the hub) is kept.

    Args:
        base: metadata of the class.
        folder: where the model was loaded from.
        config: its config.json; of a tokenizer {"task": "tokenizer"}.
        size: parameters, or words of a tokenizer; None if they are not known. Of several classifiers those of one.
        usage: Python; NAME in it becomes `repo_id`.
        library: for metadata, where it is not ulmfit.
        license: a hub identifier. By default that of the English model for its descendants, else "other".
    """
    origin = origin_of(folder)
    name = one_line(model_name or (repo_id or "").rpartition("/")[2] or _TITLES[str(config["task"])])
    old = folder / CARD if folder else None
    if not origin.runs and old is not None and old.is_file() and library is None:
        with suppress(Exception):  # no text, or metadata that are no YAML: that can raise almost any
            return _kept(old, base, license, language)
    with values_shown(origin.shows_values):
        data = ModelCardData(**base.to_dict())
        data.library_name = library or base.library_name
        data.tags = sorted({*(base.tags or []), "awd-lstm", *tags, f"arxiv:{PAPER}"})
        data.language = language or ("en" if origin.is_english else None)
        data.license = license or (LICENCE_OF_ENGLISH if origin.is_english else "other")
        if data.license == "other":
            data.license_name, data.license_link = "not-chosen", f"{CARD}#licence"
        if origin.runs:
            _add_results(data, origin, name)
        lines = [f"# {name}", "", _what(config, size), "", "## Use", "", "```python"]
        lines += [usage.replace("NAME", repo_id or "path/to/this/folder").rstrip(), "```"]
        lines += [*_classes(config), *_training(origin), *_results(origin), *_use(config, intended_use)]
        lines += ["", "## Licence", "", _licence(str(data.license), origin.is_english and license is None)]
        return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


_TITLES = {
    "classifier": "ULMFiT text classifier",
    "language_model": "ULMFiT language model",
    "tokenizer": "ULMFiT tokenizer",
}


def _kept(path: Path, base: ModelCardData, license: str | None, language: Any) -> str:
    text = path.read_text(encoding="utf-8")
    if not text.startswith("---"):
        text = f"---\n{base.to_yaml()}\n---\n\n{text}"
    card = ModelCard(text, ignore_metadata_errors=True)
    card.data["license"] = license or card.data.get("license") or _licence_beside(path)
    card.data["language"] = language or card.data.get("language")
    return str(card)


def _licence_beside(path: Path) -> str:
    return LICENCE_OF_ENGLISH if "CC BY-SA 3.0" in path.read_text(encoding="utf-8") else "other"


def _what(config: Mapping[str, Any], size: int | None) -> str:
    if config["task"] == "tokenizer":
        return f"The text rules, word splitting and vocabulary of {size:,} words of a ULMFiT model, as one `tokenizer.json`."
    sizes = as_dict(config.get("architecture"))
    several = "any number of" if config.get("multi_label") else "one of"
    if is_ngrams(config):
        return (
            f"A linear classifier of {number(sizes.get('features')) or 0:,.0f} words and pairs of words (TF-IDF scaled by "
            f"log-count ratios) that gives a text {several} {len(config['label_names'])} labels, to be averaged with networks."
        )
    embedding, hidden, layers, words = (
        f"{number(sizes.get(name)) or 0:,.0f}" for name in ("embedding_size", "hidden_size", "num_layers", "vocab_size")
    )
    shape = f"AWD-LSTM, embedding {embedding}, hidden {hidden}, {layers} layers, {words} words"
    shape += "" if size is None else f", {size:,} parameters"
    direction = ", reading texts from their end" if config.get("backwards") else ""
    origin = as_dict(config.get("imported"))
    where, kind = (as_markdown(origin.get(key)) for key in ("from", "kind"))
    imported = f" Its weights were imported from {where} ({kind})." if origin else ""
    if config["task"] == "language_model":
        return f"A language model (ULMFiT: {shape}{direction}), to be fine-tuned on texts of a task.{imported}"
    members, ngrams = int(number(config.get("members")) or 1), ""
    who = f"The mean of {members} text classifiers (each ULMFiT" if members > 1 else "A text classifier (ULMFiT"
    if share := number(config.get("ngrams")):
        who, ngrams = (
            who.replace("A text", "The mean of a text"),
            f" and, with a share of {share:g}, a linear classifier of words and pairs of words",
        )
    return (
        f"{who}: {shape}{direction}){ngrams} that gives a text {several} {len(config['label_names'])} "
        f"labels. A text may have any length: the last {config.get('max_len', 0):,} tokens are pooled, those before are "
        f"read too.{imported}"
    )


def _classes(config: Mapping[str, Any]) -> Iterator[str]:
    if config["task"] != "classifier":
        return
    names = config["label_names"]
    yield from ("", "## Labels", "")
    more = f", and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    yield ", ".join(f"`{_code(name)}`" for name in names[:_SHOWN]) + more
    if temperature := number(config.get("temperature")):
        yield f"\nProbabilities are calibrated: logits are divided by {temperature:.3f} (temperature scaling)."


def _training(origin: Origin) -> Iterator[str]:
    yield from ("", "## Training", "")
    if not origin.runs:
        yield "The run that made this model is not beside it, so its data and scores are not told here."
        return
    for run in origin.runs:
        options, resolved = run.options, run.resolved
        what = "Classifier" if run.stored["task"] == "clf" else "Language model"
        start = resolved.get("init") or resolved.get("encoder") or options.get("init") or options.get("encoder")
        columns = [name for name in (resolved.get("text_column"), resolved.get("label_column")) if name]
        rows = [
            ("data", f"{_source(options.get('data'), resolved)}" + f"; columns {listed(columns)}" * bool(columns)),
            ("validation", _valid(resolved.get("valid_rows") or options.get("valid"))),
            ("starts from", "random weights" if start in (None, "none") else _start(start, resolved)),
            ("recipe", str(options.get("recipe"))),
            ("stages", "; ".join(_stages(resolved))),
            (
                "batch, bptt, drop-mult",
                ", ".join(str(resolved.get(key)) for key in ("batch_size", "bptt", "drop_mult")),
            ),
            ("weight decay, clip", ", ".join(str(resolved.get(key)) for key in ("weight_decay", "clip"))),
            ("seed, precision", f"{options.get('seed')}, {options.get('precision')}"),
            (
                "versions",
                ", ".join(
                    f"{key} {value}"
                    for key, value in as_dict(run.stored.get("versions")).items()
                    if key in ("ulmfit", "torch", "python")
                ),
            ),  # fmt: skip
        ]
        yield from (f"{what}:", "", "| | |", "|---|---|")
        yield from (f"| {key} | {as_markdown(value)} |" for key, value in rows if value)
        yield ""
    labelled = as_dict(origin.summary.get("rows"))
    told = {"train": "to train on", "valid": "of validation", "test": "of test"}
    counts = [f"{labelled[name]:,} {what}" for name, what in told.items() if isinstance(labelled.get(name), int)]
    if counts:
        yield from (f"Labelled texts: {', '.join(counts)}.", "")
    yield "The commands:" if len(origin.runs) > 1 and not origin.job else "The command:"
    yield from ("", "```bash")
    job = Run({**origin.job, "resolved": origin.runs[0].resolved})
    starts = _hub_starts(origin.runs)
    yield from [_command(job, starts)] if origin.job else [_command(run, starts) for run in reversed(origin.runs)]
    yield "```"


def _stages(resolved: Mapping[str, Any]) -> Iterator[str]:
    stages = resolved.get("stages")
    for stage in map(as_dict, stages if isinstance(stages, list) else ()):
        rate = number(stage.get("lr"))
        with_rate = "" if rate is None else f" at {rate:g}"
        yield f"{stage.get('name', 'stage')}, {stage.get('steps')} steps{with_rate}"


def _valid(value: Any) -> str:
    try:
        return f"{float(value):.0%} of the rows, held out"
    except (TypeError, ValueError, OverflowError):
        return _name(value) if value else ""


def _source(data: Any, resolved: Mapping[str, Any]) -> str:
    if data is None:
        return "the embedded sample"
    revision = resolved.get("revision")
    if isinstance(revision, dict):  # by source of a mixture
        told = ", ".join(f"{name} {str(commit)[:12]}" for name, commit in revision.items())
        return f"{_data(data, resolved)}, revisions on the hub: {told}"
    return _data(data, resolved) + (f" of the hub, revision {str(revision)[:12]}" if revision else "")


def _data(data: Any, resolved: Mapping[str, Any]) -> str:
    """The value of --data without folders. A name on the hub stays whole."""
    revision = resolved.get("revision")
    if isinstance(revision, str) or str(data).startswith(DESCRIBED):
        return listed([data])
    return listed([without_folders(str(data), whole=as_dict(revision))])


def _name(value: Any) -> str:
    """A path without its folders."""
    return listed([without_folders(str(value))])


def _start(start: Any, resolved: Mapping[str, Any]) -> str:
    """What a run started from: a path without its folders, or a name on the hub."""
    revision = resolved.get("start_revision")
    return f"{listed([start])} of the hub, revision {str(revision)[:12]}" if revision else _name(start)


def _hub_starts(runs: Sequence[Run]) -> list[str]:
    """The names on the hub of what runs started from."""
    return [
        str(start)
        for run in runs
        if run.resolved.get("start_revision")
        and (start := run.options.get("init" if run.stored.get("task") == "lm" else "encoder"))
    ]


def _command(run: Run, hub_starts: Sequence[str] = ()) -> str:
    """The command of a run, without folders: they tell of the machine. Names on the hub stay whole."""

    def spelled(name: str, value: Any) -> str:
        if name == "data":
            return _data(value, run.resolved)
        if value in hub_starts:
            return listed([value])
        return _name(value) if name in PATHS else listed([value])

    return shlex.join(words_of_command(run.stored["task"], run.options, never=_NOT_TOLD, spelled=spelled))


def _results(origin: Origin) -> Iterator[str]:
    run = next(iter(origin.runs), None)
    if run is None or not run.scores:
        return
    splits = [split for split in _SPLITS if split in run.scores]
    yield from ("", "## Scores", "", "| | " + " | ".join(_SPLITS[split] for split in splits) + " |")
    yield "|---|" + "---|" * len(splits)
    for key, title in _SCORES.items():
        values = [_number(run.scores[split].get(key)) for split in splits]
        if any(value != "-" for value in values):
            yield f"| {title} | {' | '.join(values)} |"
    yield from _simpler(origin.summary, splits)
    by_class = run.scores[splits[0]].get("by_class")
    if isinstance(by_class, list) and by_class:
        yield from ("", f"By class, on the {_SPLITS[splits[0]]} texts:", "")
        yield from ("| class | precision | recall | F1 | texts |", "|---|---|---|---|---|")
        for row in map(as_dict, by_class[:_SHOWN]):
            numbers = [_number(row.get(key)) for key in ("precision", "recall", "f1")]
            texts = row.get("support")
            texts = f"{texts:,}" if isinstance(texts, int) else "-"
            yield f"| `{_cell(_code(row.get('label')))}` | {' | '.join(numbers)} | {texts} |"
        if len(by_class) > _SHOWN:
            yield f"\n{len(by_class) - _SHOWN:,} more classes are in the run's metrics.jsonl."


def _simpler(summary: Mapping[str, Any], splits: Sequence[str]) -> Iterator[str]:
    """The systems that a job compares with."""
    for name, scores in as_dict(summary.get("systems")).items():
        if name != "ulmfit" and isinstance(scores, dict):
            values = [_number(as_dict(scores.get(split)).get("accuracy")) for split in splits]
            yield f"| accuracy of {as_markdown(name)} | {' | '.join(values)} |"


def _use(config: Mapping[str, Any], intended_use: str | None) -> Iterator[str]:
    yield from ("", "## Intended use", "")
    if intended_use:
        yield f"{intended_use}\n"
    if config["task"] == "classifier":
        yield (
            "To label texts like those that it was trained on: of the same kind, topic and language. Any other text gets a "
            "label too, often with a high probability. Measure it on labelled texts of your own before you rely on it, and "
            "let a person look where a mistake would harm someone."
        )
    elif config["task"] == "language_model":
        yield (
            "As the start of a classifier or of another language model (`ulmfit fit --init`). The texts that it writes "
            "are fluent for a few words and are not facts."
        )
    else:
        yield "With the model that it was made for: the ids of its words are those of the model's embedding."
    yield (
        "\nIt repeats the biases of its texts. Its vocabulary holds words of them, and a language model can repeat rare "
        "sentences: it is as private as its texts."
    )


def _licence(license: str, is_english: bool) -> str:
    if is_english:
        return (
            "CC BY-SA 3.0: the model starts from the English language model of ulmfit, which was made from Wikipedia. "
            "The code that runs it is Apache-2.0."
        )
    if license == "other":
        return (
            "Whoever trained this model has not chosen a licence for it; ask them before you use it. The code that runs "
            "it is Apache-2.0."
        )
    return f"`{license}`. The code that runs it is Apache-2.0."


def _add_results(data: ModelCardData, origin: Origin, name: str) -> None:
    run = origin.runs[0]
    split = next((split for split in _SPLITS if split in run.scores), None)
    source = run.options.get("data")
    if isinstance(run.resolved.get("revision"), str) and source:
        data.datasets = [str(source)]
    if starts := _hub_starts(origin.runs):
        data.base_model = [start.removeprefix(PREFIX).partition("@")[0] for start in starts]
    if split is None:
        return
    scores = run.scores[split]
    task = "text-classification" if run.stored["task"] == "clf" else "text-generation"
    data.metrics = [key for key in ("accuracy", "f1", "perplexity") if isinstance(scores.get(key), int | float)]
    results = [
        EvalResult(task_type=task, dataset_type="custom", dataset_name=_source(source, run.resolved), dataset_split=_SPLITS[split],
                   metric_type=key, metric_name=_SCORES[key], metric_value=round(scores[key], 4))
        for key in data.metrics
    ]  # fmt: skip
    if results:
        data.eval_results, data.model_name = results, name


def _number(value: Any) -> str:
    found = number(value)
    return "-" if found is None else f"{found:.3f}"


def _code(name: Any) -> str:
    """A name of the data as the content of a code span, where nothing is read as Markdown or HTML."""
    return listed([name]).replace("`", " ").strip() or " "


def _cell(text: str) -> str:
    """In a table the bar ends a cell also within a code span."""
    return text.replace("|", "\\|")
