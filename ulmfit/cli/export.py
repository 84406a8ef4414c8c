"""export: a model as a folder of its own, also with a quarter of the bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ulmfit.cli.common import check_output


@dataclass(kw_only=True)
class ExportOptions:
    """Write a model as a folder that --init, --encoder and from_pretrained take."""

    model: str
    """Run directory, or its model/."""
    output: str
    """Folder to write, which must not exist."""
    bits: Literal[8, 32] = 32
    """Bits of a weight: 8 stores matrices with a scale a row, a quarter of the size."""


def export(options: ExportOptions) -> None:
    """Write the folder and print its size."""
    output = Path(options.output)
    check_output(output)
    from ulmfit.model.pretrained import load_model, save_model

    net, tokenizer, config = load_model(options.model)
    save_model(output, net, tokenizer, config, bits=options.bits)
    size = sum(file.stat().st_size for file in output.iterdir())
    print(f"{output}: {sum(p.numel() for p in net.parameters()):,} parameters in {size / 2**20:.1f} MiB")
