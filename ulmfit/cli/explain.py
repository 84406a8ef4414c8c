"""explain: the words of texts that decided about their class."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TextIO

from tyro.conf import Positional

from ulmfit.cli.common import check_output
from ulmfit.errors import UserError
from ulmfit.excerpts import class_name, values_shown
from ulmfit.files import write_text

if TYPE_CHECKING:
    from ulmfit.explanation import Explanation


@dataclass(kw_only=True)
class ExplainOptions:
    """Show the words of a text that decided about its class.

    A word's contribution is what it adds to the log-odds of the class, by gradient times input. For the strongest words
    the probability without the word is told too. On a terminal words for the class are blue and words against it orange;
    NO_COLOR=1 turns the colours off.
    """

    metavars: ClassVar[dict[str, str]] = {"text": "MODEL TEXT ..."}

    text: Positional[tuple[str, ...]]
    """Run directory of a classifier, its model/ or a bundle, and the texts; the texts alone behind --model."""
    model: str | None = None
    """The classifier as an option (default: the first word)."""
    label: str | None = None
    """Explain this class (default: the predicted one)."""
    html: str | None = None
    """New file for a page in colours, which loads nothing (default: none is written)."""
    samples: bool | None = None
    """Show the texts; --no-samples numbers words and classes instead (default: as the training of the model had it)."""


def explain(options: ExplainOptions) -> None:
    """Print, and write where asked, the explanation of each text."""
    models, texts = [options.model or options.text[0]], options.text[0 if options.model else 1 :]
    if not texts:
        raise UserError(f'there is no text to explain; write ulmfit explain {models[0]} "THE TEXT"')
    if options.html is not None:
        check_output(Path(options.html), "--html")
    from ulmfit.coloured import lines, page
    from ulmfit.hub import local_folder
    from ulmfit.inference import TextClassifier
    from ulmfit.training.privacy import hides_texts

    models = [local_folder(model) for model in models]
    model = TextClassifier.from_pretrained(models, backend="torch")
    hidden = hides_texts(models) if options.samples is None else not options.samples
    if hidden and options.html is not None:
        raise UserError(
            "a page of --html holds the text, and this model was trained with --no-samples; leave it out, or add "
            "--samples if the text may be shown"
        )
    with values_shown(not hidden):
        found = [model.explain(text, options.label) for text in texts]
    if hidden:
        found = [_without_names(one) for one in found]
    colour = wants_colour(sys.stdout)
    for number, one in enumerate(found):
        if number:
            print()
        print("\n".join(lines(one, colour=colour, named=_numbers(one) if hidden else None)))
    if hidden:
        print(
            "words and classes are shown by their numbers; --samples shows them, if the text may be seen",
            file=sys.stderr,
        )
    if options.html is not None:
        write_text(Path(options.html), page(found))
        print(f"written to {options.html}", file=sys.stderr)


def _without_names(found: Explanation) -> Explanation:
    predicted = found.predicted and class_name(found.predicted, found.label_names.index(found.predicted), shown=False)
    return replace(found, label=class_name(found.label, found.index, shown=False), predicted=predicted)


def _numbers(found: Explanation):
    places = {word.start: number for number, word in enumerate(found.words, 1)}
    return lambda word: f"word {places[word.start]} of {len(places)}"


def wants_colour(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours, and the user has not turned them off (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
