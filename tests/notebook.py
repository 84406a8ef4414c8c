"""examples/imdb.ipynb: running it, and what of its outputs is kept.

python -m tests.notebook      runs all cells, some minutes, and writes their outputs into the file

The outputs hold nothing of the machine: no paths, no times, no progress of trainings. The metadata have a digest of the
cells that were run, by which a test knows outputs of other cells.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "imdb.ipynb"
# Folders at the root of a file system; base64 has slashes too, but no picture is searched.
ABSOLUTE = re.compile(r"(?<![\w.:/<~])/(?:home|root|tmp|work|mnt|opt|srv|usr|var|Users|private)\b|\b[A-Z]:\\\\?\w")
# Lines of a training that tell its speed, which is this machine's, or its progress: the scores behind it are kept.
PROGRESS = re.compile(r"step [\d,]+/[\d,]+ |needs about |the curve is in ")


def cells_run(notebook: Any) -> list[Any]:
    """Its cells with code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def digest(notebook: Any) -> str:
    """Of the code of all cells."""
    return hashlib.sha256(json.dumps([source(cell) for cell in cells_run(notebook)]).encode()).hexdigest()


def source(cell: Any) -> str:
    """Code or text of a cell."""
    return "".join(cell["source"])


def execute(notebook: Any, folder: Path, *, timeout: int = 3600) -> Any:
    """Run all cells in a kernel whose working directory and cache are in `folder`.

    Args:
        timeout: seconds a cell may take.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    from nbclient import NotebookClient

    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"ULMFIT_CACHE": str(folder / "cache"), "PYTHONPATH": path}
    client = NotebookClient(
        notebook, timeout=timeout, resources={"metadata": {"path": str(folder)}}, record_timing=False
    )
    client.execute(env=environment)
    return notebook


def clean(notebook: Any) -> Any:
    """Drop progress and what belongs to one machine from the outputs, and add the digest."""
    for cell in cells_run(notebook):
        kept = []
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                lines = [line for line in output["text"].splitlines(keepends=True) if not PROGRESS.match(line)]
                output["text"] = "".join(lines)
                if output["name"] == "stderr" or not output["text"]:
                    continue
                if kept and kept[-1]["output_type"] == "stream":  # a message of the kernel each, as it happened
                    kept[-1]["text"] += output["text"]
                    continue
            data = output.get("data", {})
            if "text/html" in data:  # the same in the long form of a dataclass
                data.pop("text/plain", None)
            kept.append(output)
        cell["outputs"] = kept
        cell["metadata"] = {}
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "ulmfit": {"cells": digest(notebook)},
    }
    return notebook


def texts_of(cell: Any) -> list[str]:
    """What a reader can read of a cell: its source and its outputs but for pictures."""
    found = [source(cell)]
    for output in cell.get("outputs", []):
        found.append("".join(output.get("text", "")))
        found += ["".join(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/")]
    return found


def pictures(notebook: Any) -> list[str]:
    """The PNG pictures of the outputs, in base64."""
    outputs = [output for cell in cells_run(notebook) for output in cell["outputs"]]
    return ["".join(output["data"]["image/png"]) for output in outputs if "image/png" in output.get("data", {})]


def main() -> None:
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        clean(execute(notebook, Path(folder)))
    nbformat.validate(notebook)
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.relative_to(ROOT)}: {len(cells_run(notebook))} cells run, {NOTEBOOK.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
