"""Cross-checks of the options of a training."""

from __future__ import annotations

from ulmfit.config import ClassifierConfig, LMConfig, TrainConfig
from ulmfit.errors import UserError
from ulmfit.limits import check_numbers
from ulmfit.option_types import check_types
from ulmfit.reports import trackers_of

#: The largest dropout probability of a task for --drop-mult 1 (`AWDLSTMConfig.with_dropouts` has all).
LARGEST_DROPOUT = {"lm": 0.25, "clf": 0.5}


def check(config: TrainConfig) -> None:
    """Raise UserError for an option out of range or for options that contradict each other."""

    check_types(config)

    def need(ok: bool, sentence: str) -> None:
        if not ok:
            raise UserError(sentence)

    check_numbers(vars(config))
    trackers_of(config.report_to)
    need(
        config.lr_find_stage is None or config.lr_find,
        "--lr-find-stage names what --lr-find tests; give that too, or leave it out",
    )
    need(
        config.epochs is None or config.max_steps is None,
        "--epochs and --max-steps both set the length of training; give one of them",
    )
    need(
        not (config.compress_gradients and config.precision == "fp64"),
        "--compress-gradients rounds to bf16 what --precision fp64 computes exactly; leave out one of them",
    )
    if config.drop_mult is not None:
        largest = LARGEST_DROPOUT[config.task]
        need(
            config.drop_mult * largest < 1,
            f"--drop-mult {config.drop_mult:g} makes a dropout probability of {config.drop_mult * largest:g}; give less than "
            f"{1 / largest:g}",
        )
    if isinstance(config, LMConfig):
        need(
            not config.streaming or config.max_steps is not None,
            "--streaming has no epochs to count; give --max-steps, the length of the whole schedule",
        )
        need(
            not (config.streaming and config.bptt_jitter),
            "--bptt-jitter needs the token cache; leave out --streaming or the jitter",
        )
        need(
            config.init in (None, "none") or config.tokenizer is None,
            "--init brings the vocabulary to start from and --tokenizer another; give one of them",
        )
        need(
            config.init in (None, "none") or config.subword in (None, "none"),
            "--init brings its own tokenizer; leave out --subword",
        )
        need(
            config.subword in (None, "none") or config.tokenizer is None,
            "--subword trains a tokenizer and --tokenizer names a trained one; give one of them",
        )
    if isinstance(config, ClassifierConfig):
        need(
            config.batch_size != 1,
            "--batch-size 1 is too small for the classifier's batch normalisation; give 2 documents a step or more",
        )
        names = (config.probability_columns or "a,b").split(",")
        need(
            len({name.strip() for name in names}) == len(names) > 1 and all(map(str.strip, names)),
            f"--probability-columns {config.probability_columns} does not name a column for each of two classes or "
            "more; write as in neg,pos",
        )
        need(
            config.probability_columns is None or config.label_smoothing == 0,
            "--probability-columns are soft targets already; leave out --label-smoothing",
        )
        need(
            config.probability_columns is None or config.label_separator is None,
            "--probability-columns are those of one label a row; leave out --label-separator",
        )
        need(
            config.encoder in (None, "none") or config.subword in (None, "none"),
            "--encoder brings its own tokenizer; leave out --subword",
        )
