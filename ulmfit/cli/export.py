"""export: a model as a folder of its own, also with a quarter of the bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import UseAppendAction

from ulmfit.cli.common import check_output


@dataclass(kw_only=True)
class ExportOptions:
    """Write a model as a folder that --init, --encoder and from_pretrained take.

    Several classifiers become a bundle, whose probabilities are the mean of theirs.
    """

    model: UseAppendAction[list[str]]
    """Run directory, or its model/. Given several times, classifiers to average, such as forward and backward."""
    output: str
    """Folder to write, which must not exist."""
    bits: Literal[8, 32] = 32
    """Bits of a weight: 8 stores matrices with a scale a row, a quarter of the size."""


def export(options: ExportOptions) -> None:
    """Write the folder and print its size."""
    output = Path(options.output)
    check_output(output)
    from ulmfit.bundle import members_of, save_bundle
    from ulmfit.model.pretrained import load_model, save_model

    if len(options.model) > 1 or members_of(options.model[0]):
        save_bundle(output, options.model, bits=options.bits)
        size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
        print(f"{output}: a bundle in {size / 2**20:.1f} MiB")
        return
    net, tokenizer, config = load_model(options.model[0])
    save_model(output, net, tokenizer, config, bits=options.bits)
    size = sum(file.stat().st_size for file in output.iterdir())
    print(f"{output}: {sum(p.numel() for p in net.parameters()):,} parameters in {size / 2**20:.1f} MiB")
