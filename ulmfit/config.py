"""The options of both trainers.

A field's docstring is its line in `--help`. Fields that default to None are filled from the recipe
(`ulmfit.training.stages`) or from the data; config.json of a run records what they became.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

from ulmfit.errors import UserError
from ulmfit.excerpts import excerpt
from ulmfit.files import parse_json
from ulmfit.limits import check_numbers
from ulmfit.option_types import Dataclass, DataOption, PathOption, flag, normalized
from ulmfit.paths import PATHS, as_path

Value = TypeVar("Value")
Options = TypeVar("Options", bound=Dataclass)
# An option whose docstring tells in words what becomes of it when it is left out: "(default: ...)".
OrElse: TypeAlias = Value | None

Metric = Literal["accuracy", "f1", "micro_f1", "recall", "loss"]


SAVE_EVERY = 500


@dataclass
class TrainConfig:
    """Options of both trainers."""

    task: ClassVar[Literal["lm", "clf"]]
    # Set on what a command line was parsed into: an option may be given there at its default.
    on_command_line: ClassVar[frozenset[str]] = frozenset()

    data: OrElse[DataOption] = None
    """Corpus: file, glob, folder, URL or hub data set name; for train-lm also several with shares of the tokens, as
    a=0.7:PATH,b=0.3:PATH or a .toml file (default: the embedded sample)."""
    text_column: OrElse[str] = None
    """Column with the text; several, comma-separated, are joined with xxfld (default: text, else the only one)."""
    label_column: OrElse[str] = None
    """Column with the label, or with lists of labels; several, comma-separated, of 0 and 1 are labels of which a row may
    have any number (default: label)."""
    label_separator: OrElse[str] = None
    """Between the labels of a cell, of which a row may have any number, as in "," (default: one label a row)."""
    valid: OrElse[PathOption] = None
    """Validation data: a fraction, a split name, a path or a boolean column (default: a valid split, else 0.1)."""
    group_column: OrElse[str] = None
    """Column of groups (film, author, ticket) that a held-out fraction does not divide (default: equal texts stay
    together)."""
    separator: OrElse[str] = None
    """Between the fields of a table: a character, comma, semicolon, tab, bar, space, or none (default: found in the
    file)."""
    encoding: OrElse[str] = None
    """Encoding of text files and tables (default: UTF-8, UTF-16 or cp1252, as found in the file)."""
    header: OrElse[bool] = None
    """Whether the first line of a table names the columns; with --no-header they are 0, 1, 2 ... (default: found in
    the file)."""
    output_dir: PathOption = "runs/run"
    """Run directory: config, checkpoints, model, metrics."""
    preset: OrElse[Literal["tiny", "small", "base", "blog", "wide"]] = None
    """Model size: tiny 64/128/2, small 200/512/2, base 400/1152/3, blog 400/1150/3, wide 512/1024/3
    (default: that of --init or --encoder; tiny on the embedded sample; else small on a CPU, base on a GPU)."""
    recipe: Literal["quick", "blog", "ulmfit", "none"] = "quick"
    """Stages of training: quick, blog (the 2019 post), ulmfit (fastai's best), none (one stage of your options)."""
    batch_size: OrElse[int] = None
    """Rows or documents of a step over all processes (default: the recipe's)."""
    micro_batches: int | Literal["auto"] = 1
    """Cuts of a process's share of a step, to save memory; the result stays the same. auto: as few as fit on the
    GPU."""
    bptt: OrElse[int] = None
    """Tokens of a window of back-propagation through time (default: the recipe's, 70)."""
    epochs: OrElse[float] = None
    """Epochs of the recipe's last stage (default: the recipe's)."""
    max_steps: OrElse[int] = None
    """Length of the whole schedule in steps, shared over the stages in proportion
    (default: that of the epochs)."""
    lr: OrElse[float] = None
    """Peak learning rate of the last stage; earlier stages keep their ratio to it (default: the recipe's)."""
    drop_mult: OrElse[float] = None
    """Factor on all dropout probabilities (default: the recipe's)."""
    schedule: OrElse[Literal["one-cycle", "stlr", "constant"]] = None
    """Learning rate over a stage (default: the recipe's)."""
    weight_decay: OrElse[float] = None
    """Decoupled weight decay (default: the recipe's)."""
    clip: OrElse[float] = None
    """Largest gradient norm; 0 for no clipping (default: the recipe's)."""
    adam_eps: float = 1e-8
    """Epsilon of AdamW (fastai v1: 1e-8, v2: 1e-5)."""
    decay_bias_norm: bool = True
    """Decay biases and batch norm too, as fastai v1 does (v2 does not)."""
    alpha: float = 2.0
    """Activation regularisation (AR), Merity et al. 2017."""
    beta: float = 1.0
    """Temporal activation regularisation (TAR), Merity et al. 2017."""
    seed: int = 0
    """Seed of data order, dropout and initial weights."""
    precision: Literal["fp32", "fp16", "bf16", "fp64"] = "fp32"
    """Arithmetic: bf16 is for a GPU, or a CPU with AMX (any other computes it in fp32); fp16 is for a GPU."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on from the newest checkpoint; never: move the old directory aside and start afresh."""
    save_every: OrElse[int] = None
    """Steps between checkpoints; one is also saved before each evaluation. 0 for none but the last (default: 500, or
    none with --save-minutes)."""
    save_minutes: OrElse[float] = None
    """Minutes between checkpoints, by the clock; with --save-every too, whichever comes first (default: by steps)."""
    keep: int = 2
    """Checkpoints kept."""
    backwards: bool = False
    """Read every text from its end (for the backward half of an ensemble)."""
    lr_find: bool = False
    """Run the learning-rate finder, print suggestions for --lr, draw the curve into OUTPUT_DIR/lr_find, and stop."""
    lr_find_stage: OrElse[str] = None
    """Stage that --lr-find tests, by its name (default: the last, whose rate --lr sets)."""
    streaming: bool = False
    """Stream the corpus instead of keeping a local copy of it."""
    log_every: int = 10
    """Steps between lines of metrics."""
    eval_every: int = 0
    """Steps between evaluations; 0 evaluates at the end of every epoch."""
    keep_best: OrElse[bool] = None
    """Export the weights of the best evaluation instead of the last (default: with --stop-after; with the recipe quick,
    where a classifier's is better than the last by more than chance, and never if --valid names the test split)."""
    stop_after: int = 0
    """Stop after so many evaluations of the last stage, one after another, without a better one; 0 for never. Exports
    the best weights. A one-cycle schedule then ends before its learning rate has fallen: fewer than 3 often cost
    accuracy, and --schedule constant has no such end."""
    max_time: OrElse[float] = None
    """Minutes after which to save a checkpoint and stop as preempted (default: no limit)."""
    watchdog: float = 15.0
    """Minutes without a finished step after which the run says which process hangs and ends; 0 for never."""
    compress_gradients: bool = False
    """Average the gradients over processes in bf16, which halves what they send; the weights then depend on the number
    of processes."""
    deterministic: bool = False
    """On a GPU, use only algorithms that give the same bits every time (slower; no TF32)."""
    samples: bool = True
    """Write generated text and the worst errors to TensorBoard; --no-samples for private corpora."""
    report_to: OrElse[str] = None
    """Send the numbers that TensorBoard gets, but no texts, also to wandb, mlflow or trackio, to several
    (comma-separated), or to all that are installed (default: none)."""
    config: OrElse[PathOption] = None
    """Take all options from the config.json of a run; options given beside it win (default: none)."""
    cache_dir: OrElse[PathOption] = None
    """Where tokenised corpora are kept (default: $ULMFIT_CACHE, else ~/.cache/ulmfit)."""
    local_cache: OrElse[PathOption] = None
    """Read the tokens from a copy in this folder of each node, as in '$TMPDIR' (default: where the cache is)."""
    threads: OrElse[int] = None
    """CPU threads of each process, at most one a core (default: the physical cores that it may use; restored on
    resume)."""

    @property
    def seed_of_draws(self) -> int:
        """Seed of the draw of held-out rows, and of that of --labels."""
        return self.seed

    @property
    def steps_between_saves(self) -> int:
        """Steps between checkpoints; 0 if steps do not count."""
        if self.save_every is not None:
            return self.save_every
        return SAVE_EVERY if self.save_minutes is None else 0


@dataclass
class LMConfig(TrainConfig):
    """Pretrain or fine-tune an AWD-LSTM language model."""

    output_dir: PathOption = "runs/lm"
    """Run directory: config, checkpoints, model, metrics."""
    init: OrElse[PathOption] = None
    """Model to start from: a run directory or its model/, OWNER/MODEL or OWNER/MODEL@REVISION on the hub, fastai weights
    (.pth) beside their vocabulary, english (comes with the package), or none (default: english for English texts with
    the recipe quick and without --preset, --tokenizer, --subword, --rules fastai2, --streaming, --backwards and a
    --vocab-size below 30,000, else none)."""
    tokenizer: OrElse[PathOption] = None
    """Use this tokenizer.json (default: train one on the corpus)."""
    vocab_size: OrElse[int] = None
    """Largest vocabulary; with --init, that of the union of the pretrained words and the corpus's (default: 60,000, or
    10,000 above the pretrained vocabulary)."""
    min_freq: int = 2
    """Rarer words become xxunk."""
    rules: Literal["fastai1", "fastai2"] = "fastai1"
    """Text rules: fastai1 (the blog post's) or fastai2."""
    subword: OrElse[Literal["auto", "unigram", "bpe", "none"]] = None
    """Vocabulary of word pieces instead of words; auto: bpe for a language without spaces between words, else none
    (default: none)."""
    bptt_jitter: bool = False
    """Vary the window as Merity et al. do, with the learning rate scaled alike."""
    sampled_softmax: OrElse[int] = None
    """Train on about so many words of the output layer a step, drawn by frequency, beside the targets: faster on a CPU
    with a large vocabulary, but another loss; evaluation uses all words (default: 4096 with the recipe quick where a
    pretrained model is fine-tuned on a CPU, else 0 for all words)."""
    lm_on_test: OrElse[bool] = None
    """Read the texts of the test split too, without their labels (default: only with the recipe blog)."""
    score_test: bool = True
    """Score the test split at the end."""

    task: ClassVar[Literal["lm", "clf"]] = "lm"


@dataclass
class ClassifierConfig(TrainConfig):
    """Train a text classifier on the encoder of a language model."""

    output_dir: PathOption = "runs/clf"
    """Run directory: config, checkpoints, model, metrics."""
    encoder: OrElse[PathOption] = None
    """Language model whose encoder to use: a run directory or its model/, OWNER/MODEL or OWNER/MODEL@REVISION on the
    hub, english (comes with the package), or none (default: english for English texts with the recipe quick and without
    --preset, --subword, --rules fastai2, --streaming, --backwards and a --vocab-size below 30,000, else none)."""
    vocab_size: OrElse[int] = None
    """Largest vocabulary, where there is no encoder (default: 60,000)."""
    min_freq: int = 2
    """Rarer words become xxunk, where there is no encoder."""
    rules: Literal["fastai1", "fastai2"] = "fastai1"
    """Text rules, where there is no encoder."""
    subword: OrElse[Literal["auto", "unigram", "bpe", "none"]] = None
    """Vocabulary of word pieces, where there is no encoder; auto: bpe for a language without spaces between words, else
    none (default: none)."""
    labels: OrElse[int] = None
    """Train on so many labelled documents, drawn evenly from the classes by the seed (default: all). Validation labels
    would come on top, so --keep-best is off then unless given."""
    unlabelled: OrElse[str] = None
    """Label of rows without a label; none where each is a class (default: -1 among whole numbers, if that is clear)."""
    probability_columns: OrElse[str] = None
    """Columns with a probability for each class, comma-separated and named like the classes, as predict writes them:
    train on these instead of on labels (default: none)."""
    max_len: int = 1400
    """A document's last tokens that are pooled; earlier ones are read without gradient."""
    gradient_window: OrElse[int] = None
    """Back-propagate through the last tokens of a document only (default: through all that are pooled)."""
    head_size: int = 50
    """Width of the hidden layer of the head."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weigh the loss by the inverse frequency of a class."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy."""
    metric: OrElse[Metric] = None
    """What makes an evaluation the best, for --keep-best and --stop-after: accuracy, f1 (its mean over the classes),
    recall (likewise), loss, or micro_f1 with several labels a row (default: accuracy, or micro_f1)."""
    calibrate: bool = False
    """Fit a temperature on the validation texts at the end, so that probabilities tell how often a prediction is right;
    predictions stay the same."""
    draw_seed: OrElse[int] = None
    """Seed of the rows that are held out and of those of --labels, so that several classifiers may differ in --seed and
    have the same rows (default: --seed)."""

    task: ClassVar[Literal["lm", "clf"]] = "clf"

    @property
    def seed_of_draws(self) -> int:
        return self.seed if self.draw_seed is None else self.draw_seed


def expand_paths(config: Options) -> Options:
    """A copy of the options in which paths are as the user means them (see `paths`).

    Raises:
        UserError: no file system can hold such a name.
    """
    expanded = copy.copy(config)
    for name in PATHS:
        value = getattr(config, name, None)
        if isinstance(value, str | os.PathLike):
            setattr(expanded, name, as_path(value, f"--{flag(name)}"))
        elif isinstance(value, list):  # --model, given several times
            setattr(expanded, name, [as_path(part, f"--{flag(name)}") for part in value])
    return expanded


def options(config: Dataclass) -> dict[str, Any]:
    """Every option by its field name, JSON-able; data in memory by its description."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if values["data"] is not None:
        values["data"] = str(values["data"])
    return values


def given(config: Any) -> set[str]:
    """The options that the user gave: those on the command line, and any that differ from their default.

    Args:
        config: a TrainConfig or FitConfig.
    """
    pairs = ((name, value, getattr(type(config)(), name)) for name, value in vars(config).items())
    # Data may be a table, which cannot be compared by a mere !=.
    differ = {name for name, value, default in pairs if value is not default and (default is None or value != default)}
    return differ - {"on_command_line"} | config.on_command_line


def changed(config: Options, **values: Any) -> Options:
    """A copy with other values, which still knows what the command line gave: `dataclasses.replace` would forget it."""
    result = copy.copy(config)
    for name, value in values.items():
        setattr(result, name, value)
    return result


def check_kind(config: object, kind: type[TrainConfig], call: str) -> None:
    """Refuse what is not the configuration that a function of Python takes, as data in its place.

    Raises:
        UserError: it is of another type.
    """
    if not isinstance(config, kind):
        raise UserError(
            f"{call} takes a {kind.__name__} and was given a {type(config).__name__}; write "
            f"{call}(ulmfit.{kind.__name__}(data=...))"
        )


# Of each set one option is given; where a command line gives one, another of the set that it takes from a file goes.
ALTERNATIVES = ({"epochs", "max_steps"}, {"init", "tokenizer", "subword"}, {"encoder", "subword"})
# What a run was asked at one start, and is not asked again by its options: a job that is requeued would never go on.
_OF_A_START = ("resume", "config", "lr_find", "lr_find_stage")


def load_options(path: str | Path, kind: type[Options]) -> Options:
    """The options in a run's config.json as the defaults of a new command line, checked as on the command line.

    Raises:
        UserError: the file is missing, is not a config.json, belongs to the other script, or holds a value that the
            command line would refuse.
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        stored = {str(name): value for name, value in content["options"].items()}
    except OSError as error:
        raise UserError(f"--config {path} cannot be read ({error.strerror}); give a run's config.json") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"--config {path} is not the config.json of a run; give one") from None
    for name in _OF_A_START:
        stored.pop(name, None)
    names = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(stored.keys() - names):
        raise UserError(
            f"--config {path} holds {', '.join(unknown)}, which this command does not know; "
            "use it with the script that wrote it"
        )
    try:
        config = kind(**stored)
        if not isinstance(stored.get("data"), str | None):
            raise UserError(f"--data is {excerpt(stored['data'])}; give a text")
        config = normalized(config)
        check_numbers(vars(config))
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from None
    return config
