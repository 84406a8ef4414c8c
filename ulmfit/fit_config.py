"""The options of the whole job (`ulmfit fit`), and those of its two trainings that follow from them."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tyro.conf import Suppress

from ulmfit.config import ClassifierConfig, LMConfig, OrElse, TrainConfig, changed, given
from ulmfit.errors import UserError
from ulmfit.limits import LIMITS
from ulmfit.option_types import DataOption, PathOption, flag, nearest_of, path_text

LM, CLF = "lm", "clf"  # names of the trainings: prefixes of their options, and folders in the output directory
NGRAMS = "ngrams"  # the folder of a linear classifier beside them
MEAN = "mean"  # what the making and scoring of their mean is called beside the trainings
# Options of both that the whole job gives to its trainings; one of these may have its own value in a training.
_COMMON = ("data", "text_column", "label_column", "label_separator", "valid", "group_column", "separator", "encoding", "header", "recipe",
           "epochs", "seed", "precision", "backwards", "threads", "cache_dir", "local_cache", "samples", "report_to")  # fmt: skip
_OWN = frozenset({"recipe", "epochs", "seed", "precision", "threads", "samples", "report_to"})
# Options of a training that the whole job sets itself, with what to do instead.
_SET = {
    "output_dir": "give --output-dir, in which each training has a folder",
    "resume": "give --resume",
    "config": "give --config",
    "max_time": "give --max-time",
    "encoder": "the classifier takes that of the language model; give --init",
    "lr_find": "use ulmfit train-lm --lr-find or ulmfit train-clf --lr-find",
    "lr_find_stage": "use ulmfit train-lm --lr-find or ulmfit train-clf --lr-find",
}
# What a later start does not take from the first one. The trainings check whether the rest is the same.
_OPERATION = frozenset({"output_dir", "resume", "max_time", "config", "cache_dir", "local_cache"})


@dataclass
class JobData:
    """What a whole job reads, and how: the options that `ulmfit fit` and `ulmfit sweep` share."""

    data: OrElse[DataOption] = None
    """Corpus: file, glob, folder or hub data set name (default: the embedded sample)."""
    text_column: OrElse[str] = None
    """Column with the text; several, comma-separated, are joined with xxfld (default: text, else the only one)."""
    label_column: OrElse[str] = None
    """Column with the label, or with lists of labels; several, comma-separated, of 0 and 1 (default: label)."""
    label_separator: OrElse[str] = None
    """Between the labels of a cell, of which a row may have any number, as in "," (default: one label a row)."""
    valid: OrElse[PathOption] = None
    """Validation data: a fraction, a split name, a path or a boolean column (default: a valid split, else 0.1)."""
    group_column: OrElse[str] = None
    """Column of groups (film, author, ticket) that a held-out fraction does not divide (default: equal texts stay
    together)."""
    labels: OrElse[int] = None
    """Train the classifier on so many labelled documents, drawn evenly from the classes by the seed (default: all)."""
    unlabelled: OrElse[str] = None
    """Label of rows without a label; none where each is a class (default: -1 among whole numbers, if that is clear)."""
    separator: OrElse[str] = None
    """Between the fields of a table: a character, comma, semicolon, tab, bar, space, or none (default: found in the
    file)."""
    encoding: OrElse[str] = None
    """Encoding of text files and tables (default: UTF-8, UTF-16 or cp1252, as found in the file)."""
    header: OrElse[bool] = None
    """Whether the first line of a table names the columns; with --no-header they are 0, 1, 2 ... (default: found in
    the file)."""


@dataclass
class FitConfig(JobData):
    """Do the whole job: language model, classifier, comparison with a baseline."""

    lm_on_test: bool = False
    """Let the language model read the texts of the test split too, without their labels."""
    backwards: bool = False
    """Read every text from its end (for the backward half of an ensemble)."""
    cache_dir: OrElse[PathOption] = None
    """Where tokenised corpora are kept (default: $ULMFIT_CACHE, else ~/.cache/ulmfit)."""
    local_cache: OrElse[PathOption] = None
    """Read the tokens from a copy in this folder of each node, as in '$TMPDIR' (default: where the cache is)."""
    init: OrElse[PathOption] = None
    """Language model to start from: a run directory or its model/, OWNER/MODEL or OWNER/MODEL@REVISION on the hub,
    fastai weights (.pth) beside their vocabulary, english (comes with the package), or none (default: english for
    English texts with the recipe quick and without --preset, --backwards and such options of train-lm, else none)."""
    preset: OrElse[Literal["tiny", "small", "base", "blog", "wide"]] = None
    """Model size, see train-lm (default: that of --init; tiny on the embedded sample; else small on a CPU, base on a
    GPU)."""
    recipe: Literal["quick", "blog", "ulmfit", "none"] = "quick"
    """Stages of both trainings: quick, blog (the 2019 post), ulmfit (fastai's best), none (your options)."""
    calibrate: bool = False
    """Fit a temperature on the validation texts, so that probabilities tell how often a prediction is right; the predictions of
    one classifier stay the same, and of several the mean has a temperature too."""
    ensemble: OrElse[int] = None
    """Train so many classifiers, with seeds of their own, on the one language model, and average their probabilities:
    three are right on about one text more in a hundred, for three times the classifier's time. A later start may give
    another number; what is trained is kept (default: 3 on at most 10,000 labelled texts and a pretrained language
    model with the recipe quick, else 1)."""
    ngrams: OrElse[bool] = None
    """Average in a linear classifier of words and pairs of words, which takes little time; with --no-ngrams none
    (default: with the recipe quick, where it lowers the loss on the validation texts and no class is lost; where few
    texts have a label and many have none, unless the networks alone are clearly more often right on the validation
    texts; never with --labels or class weights)."""
    epochs: OrElse[float] = None
    """Epochs of each training's last stage (default: the recipe's)."""
    seed: int = 0
    """Seed of data order, dropout and initial weights."""
    lm: Suppress[dict[str, Any]] = field(default_factory=dict)
    """Any option of train-lm, for the language model alone, as in --lm.epochs 3 (see ulmfit train-lm --help)."""
    clf: Suppress[dict[str, Any]] = field(default_factory=dict)
    """Any option of train-clf, for the classifier alone, as in --clf.lr 1e-3 (see ulmfit train-clf --help)."""
    baseline: bool = True
    """Compare with TF-IDF and logistic regression, where scikit-learn is installed."""
    output_dir: PathOption = "runs/fit"
    """Directory of the job: runs of the trainings, model, summary."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on where the job stopped; never: move the old directory aside and start afresh."""
    config: OrElse[PathOption] = None
    """Take all options from the config.json of a job; options given beside it win (default: none)."""
    max_time: OrElse[float] = None
    """Minutes after which to save a checkpoint and stop as preempted (default: no limit)."""
    precision: Literal["fp32", "fp16", "bf16", "fp64"] = "fp32"
    """Arithmetic: bf16 is for a GPU, or a CPU with AMX (any other computes it in fp32); fp16 is for a GPU."""
    threads: OrElse[int] = None
    """CPU threads of each process, at most one a core (default: the physical cores that it may use; restored on
    resume)."""
    samples: bool = True
    """Write generated text and the worst errors to TensorBoard; --no-samples for private corpora."""
    report_to: OrElse[str] = None
    """Send the numbers that TensorBoard gets, but no texts, also to wandb, mlflow or trackio, to several
    (comma-separated), or to all that are installed (default: none)."""

    on_command_line: ClassVar[frozenset[str]] = frozenset()
    #: By prefix, the options that `--PREFIX.OPTION` takes.
    nested: ClassVar[dict[str, type[TrainConfig]]] = {LM: LMConfig, CLF: ClassifierConfig}
    #: The groups of `--help`.
    groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "data": (
            "data",
            "text_column",
            "label_column",
            "label_separator",
            "valid",
            "group_column",
            "labels",
            "unlabelled",
            "separator",
            "encoding",
            "header",
            "lm_on_test",
            "backwards",
            "cache_dir",
            "local_cache",
        ),
        "model": ("init", "preset"),
        "training": ("recipe", "ensemble", "ngrams", "epochs", "calibrate", "seed", "lm", "clf", "baseline"),
        "saving": ("output_dir", "resume", "config", "max_time"),
        "speed": ("precision", "threads"),
        "logging": ("samples", "report_to"),
    }


def stage_configs(config: FitConfig) -> tuple[LMConfig, ClassifierConfig]:
    """The configurations of the two trainings. Each does what the separate command does with these options.

    Raises:
        UserError: an option of `lm` or `clf` is unknown, or is one of the whole job.
    """
    output = path_text(config.output_dir)
    language_model = _options(config, LM) | {"output_dir": os.path.join(output, LM)}
    language_model |= {name: getattr(config, name) for name in ("init", "preset") if getattr(config, name) is not None}
    if config.lm_on_test or language_model.get("recipe") == "blog":  # that recipe would read the test split
        language_model["lm_on_test"] = config.lm_on_test
    classifier = _options(config, CLF) | {"output_dir": os.path.join(output, CLF), "encoder": os.path.join(output, LM)}
    classifier |= {
        name: getattr(config, name) for name in ("labels", "unlabelled") if getattr(config, name) is not None
    }
    if "calibrate" in given(config):  # --no-calibrate too: it may differ from what a begun training was given
        classifier["calibrate"] = config.calibrate
    return _config(LMConfig, language_model), _config(ClassifierConfig, classifier)


def classifier_name(number: int | str) -> str:
    """The name of the number-th classifier of a job, from 1 on, which is that of its folder: clf, clf-2, clf-3, ..."""
    return CLF if str(number) == "1" else f"{CLF}-{number}"


def classifier_configs(config: FitConfig) -> dict[str, ClassifierConfig]:
    """The configurations of the classifiers by `classifier_name`.

    The first one is that of a job of one classifier. The others have the seeds after its seed, and hold out and draw
    the same rows.

    Raises:
        UserError: as `stage_configs`.
    """
    _, first = stage_configs(config)
    found = {CLF: first}
    for number in range(2, (config.ensemble or 1) + 1):
        name = classifier_name(number)
        own = {option: getattr(first, option) for option in first.on_command_line}
        own |= {"seed": first.seed + number - 1, "draw_seed": first.seed_of_draws}
        if own["seed"] > LIMITS["seed"].most:
            raise UserError(f"--ensemble {config.ensemble} takes the seeds from {first.seed} on, which are too large; give a "
                            "smaller --seed")  # fmt: skip
        found[name] = _config(ClassifierConfig, own | {"output_dir": os.path.join(path_text(config.output_dir), name)})
    return found


@contextmanager
def naming(config: FitConfig, training: str) -> Iterator[None]:
    """Context in which a UserError names an option as `ulmfit fit` takes it: --lm.max-steps in place of --max-steps."""
    try:
        yield
    except UserError as error:
        told = str(error)
        of_job = {part.name for part in dataclasses.fields(FitConfig)}
        own = {part.name for part in dataclasses.fields(FitConfig.nested[training])} - of_job
        for name in sorted(own.union(getattr(config, training))):
            told = re.sub(rf"(?<![\w-])--{re.escape(flag(name))}(?![\w.-])", f"--{training}.{flag(name)}", told)
        raise UserError(told, rank=error.rank) from None


def config_of(data: Any, options: dict[str, Any]) -> FitConfig:
    """The configuration of `fit(data, **options)`; `data` may be one.

    Raises:
        UserError: there is no such option, or data or options are given twice or are the options of something else.
    """
    if isinstance(data, FitConfig):
        if options:
            raise UserError(f"fit has both a configuration and the options {', '.join(options)}; give one of them")
        return data
    if isinstance(data, TrainConfig):
        raise UserError(
            f"fit takes a FitConfig and was given a {type(data).__name__}; write fit(data=..., output_dir=...)"
        )
    if data is not None:
        if "data" in options:
            raise UserError("fit has data twice, as its first argument and by name; give one of them")
        options = {"data": data} | options
    known = {part.name for part in dataclasses.fields(FitConfig) if part.init}
    for name in options.keys() - known:
        of = [
            training
            for training, kind in FitConfig.nested.items()
            if name in {f.name for f in dataclasses.fields(kind)}
        ]
        near = nearest_of(name, known)
        cure = f"the nearest is {near}" if near else "help(ulmfit.FitConfig) lists them"
        if name in _SET:
            cure = _SET[name]
        elif of:
            cure = " or ".join(f'{training}={{"{name}": ...}}' for training in of) + " is that of a training"
        raise UserError(f"fit has no option {name}; {cure}")
    return FitConfig(**options)


def _options(config: FitConfig, training: str) -> dict[str, Any]:
    """The options that one training gets from the common ones and from its own."""
    own: Mapping[str, Any] = getattr(config, training)
    known = {part.name for part in dataclasses.fields(FitConfig.nested[training])}
    of_job = {part.name for part in dataclasses.fields(FitConfig)} - _OWN
    for name in own:
        if name in _SET:
            raise UserError(f"--{training}.{flag(name)} is set by fit itself; {_SET[name]}")
        if name in of_job:
            raise UserError(f"--{training}.{flag(name)} is an option of the whole job; give --{flag(name)}")
        if name not in known:
            near = nearest_of(name, known)
            cure = f"the nearest is --{training}.{flag(near)}" if near else f"see ulmfit train-{training} --help"
            raise UserError(f"--{training}.{flag(name)} is no option of train-{training}; {cure}")
    told = given(config)
    common = {name: getattr(config, name) for name in _COMMON if name in told}
    if own.get("max_steps") is not None:
        common.pop("epochs", None)
    return common | dict(own)


def _config(kind: type[Any], options: dict[str, Any]) -> Any:
    """The options, all of them known as given, so that a resumed run does not replace one that is at its default."""
    config = kind(**options)
    config.on_command_line = frozenset(options)
    return config


def filled(config: FitConfig, stored: Mapping[str, Any]) -> FitConfig:
    """A copy in which options that are not given have the values that the job began with.

    Args:
        stored: options of the job, as of `config.options`.
    """
    told = given(config)
    values = {
        part.name: stored[part.name]
        for part in dataclasses.fields(config)
        if part.name in stored and part.name not in told | _OPERATION
    }
    if stored.get("samples") is False:  # no later start makes private texts public
        values["samples"] = False
    for training in (LM, CLF):
        values[training] = dict(stored.get(training) or {}) | getattr(config, training)
    return changed(config, **values)
