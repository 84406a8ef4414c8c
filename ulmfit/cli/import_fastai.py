"""import-fastai: weights of fastai as a model of this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Positional

from ulmfit.cli.common import check_output
from ulmfit.errors import UserError
from ulmfit.files import new_folder
from ulmfit.paths import as_path


@dataclass(kw_only=True)
class ImportOptions:
    """Make a model of fastai's weights and vocabulary: language model or classifier.

    No code in the files is executed.
    """

    metavars: ClassVar[dict[str, str]] = {"files": "WEIGHTS VOCAB OUT"}
    files: Positional[tuple[str, ...]]
    """fastai 1's or 2's .pth; its itos.pkl, or a .json or .txt of the words; and the folder to write."""
    labels: str | None = None
    """Names of a classifier's classes, separated by commas (default: those in VOCAB, else 0, 1, ...)."""
    backwards: bool = False
    """The model reads texts from their end. The files do not tell."""
    rules: Literal["fastai1", "fastai2"] | None = None
    """Text rules of the vocabulary (default: by the order of its special tokens)."""


def import_fastai(options: ImportOptions) -> None:
    """Write the folder, and print what was found."""
    if len(options.files) != 3:
        raise UserError(
            f"import-fastai takes three words (WEIGHTS VOCAB OUT) and there are {len(options.files)}; give all three"
        )
    weights, vocab, out = map(as_path, options.files)
    output = Path(out)
    check_output(output)
    from ulmfit.model import fastai_import
    from ulmfit.model.pretrained import save_model

    labels = [name.strip() for name in options.labels.split(",")] if options.labels is not None else None
    found = fastai_import.import_fastai(weights, vocab, labels=labels, backwards=options.backwards, rules=options.rules)
    with new_folder(output) as aside:
        save_model(aside, found.net, found.tokenizer, found.config)
    source, sizes = found.source, found.net.config
    carried = len(set(source.vocab) & set(found.tokenizer.vocab))
    print(
        f"{output}: {source.kind.replace('_', ' ')} of fastai {source.version}, embedding {sizes.embedding_size}, hidden "
        f"{sizes.hidden_size}, {sizes.num_layers} layers; {carried:,} of its {len(source.vocab):,} words, text rules of "
        f"{found.tokenizer.rules.replace('fastai', 'fastai ')}"
    )
    if source.kind == "encoder":
        print("an encoder has no output layer: its bias starts at zero, so train it before it generates text")
    if source.kind == "classifier":
        print(f"next: ulmfit predict --model {output} TEXT")
    else:
        print(f"next: ulmfit fit --data reviews.csv --init {output} --output-dir runs/reviews")
