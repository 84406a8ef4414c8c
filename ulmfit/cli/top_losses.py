"""top-losses: the rows that a classifier gets most wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tyro.conf import Positional

from ulmfit.cli.common import tell_notes, tell_skipped
from ulmfit.cli.scored import ScoringOptions, split_of_run, split_to_score
from ulmfit.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from ulmfit.training.row_losses import ScoredSplit

LONGEST = 300  # characters of a text that are shown


@dataclass(kw_only=True)
class TopLossesOptions(ScoringOptions):
    """Show the rows that a classifier gets most wrong, with loss and probabilities.

    A row of a large loss is often one whose label is wrong. Rows are counted from 0 over all files of the split.
    """

    metavars: ClassVar[dict[str, str]] = {"run": "MODEL ..."}

    run: Positional[tuple[str, ...]] = ()
    """Run directory of a classifier, its model/ or a bundle. Of several, probabilities are averaged."""
    model: str | None = None
    """The classifier as an option (default: the words)."""
    number: int = 10
    """Rows to show."""
    samples: bool = True
    """Show the beginnings of the texts; never where the model was trained with --no-samples."""


def top_losses(options: TopLossesOptions) -> None:
    """Print the rows with the largest losses, the largest first."""
    models = [*([options.model] if options.model else []), *options.run]
    if not models:
        raise UserError("no model is named; write ulmfit top-losses RUN --data FILE")
    from ulmfit.bundle import each_model
    from ulmfit.config import ClassifierConfig
    from ulmfit.data.corpus import notes_of
    from ulmfit.distributed.runtime import open_runtime
    from ulmfit.excerpts import values_shown
    from ulmfit.hub import local_folder
    from ulmfit.inference import TextClassifier
    from ulmfit.training.privacy import hides_texts
    from ulmfit.training.row_losses import scored_split

    models = [local_folder(model) for model in models]
    first = str(each_model(models)[0])
    shown = options.samples and not hides_texts(models)
    with values_shown(shown), open_runtime(ClassifierConfig()) as (runtime, _):
        model = TextClassifier.from_pretrained(models, device=runtime.device, backend="torch")
        if model.net is None:
            raise UserError(f"{models[0]} is an exported model; give the run that it was exported from")
        own = None if options.data else split_of_run(options, first, model.config, runtime)
        name, split = own or runtime.main_first(lambda: split_to_score(options, model.config, first))
        scored = scored_split(model, split, runtime)
        if runtime.is_main:
            tell_notes(notes_of([split]))
            tell_skipped(scored.store.skipped)
            print("\n".join(_lines(scored, name, model.label_names, options.number, shown)))


def _lines(scored: ScoredSplit, name: str, label_names: Sequence[str], number: int, shown: bool) -> list[str]:
    from ulmfit.coloured import visible

    worst, rows = scored.worst(number), scored.store.rows
    texts = scored.texts(worst) if shown else {}
    wrong = int((scored.truth != scored.predicted).any(1).sum())
    lines = [f"{name}: {wrong:,} of {len(scored.losses):,} rows are predicted wrong; those with the largest losses:"]
    for place in worst:
        sides = [_labels(side, scored.probabilities[place], label_names, shown)
                 for side in (scored.truth[place], scored.predicted[place])]  # fmt: skip
        lines.append(f"row {rows[place]}  loss {scored.losses[place]:.3f}  true {sides[0]}  predicted {sides[1]}")
        if place in texts:
            text = " ".join(texts[place].split())
            lines.append(f"    {visible(text[:LONGEST])}{' ...' if len(text) > LONGEST else ''}")
    return lines


def _labels(chosen: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str], shown: bool) -> str:
    """Names and probabilities of the chosen classes; the numbers of classes where values are hidden."""
    from ulmfit.coloured import visible
    from ulmfit.excerpts import class_name

    found = [
        f"{visible(class_name(label_names[index], index, shown=shown))} {probabilities[index]:.3f}"
        for index in chosen.nonzero()[0].tolist()
    ]
    return ", ".join(found) or "none"
