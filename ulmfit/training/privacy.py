"""Whether a model was trained with --no-samples, so that nothing that is made of it may hold a text of its data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ulmfit.bundle import each_model
from ulmfit.errors import UserError
from ulmfit.model.pretrained import find_model
from ulmfit.model.stored_config import read_config
from ulmfit.paths import as_path
from ulmfit.run.stored import CONFIG
from ulmfit.training.job_files import read_json

SAMPLES = "samples"  # False in the config.json of such a model, which goes with it into copies, bundles and exports


def hides_texts(models: Sequence[str | Path]) -> bool:
    """Whether one of these models was trained with --no-samples.

    Models of before version 0.3.0 do not tell, but the run that they lie in does.
    """
    return any(map(_hides, each_model(models)))


def _hides(path: str | Path) -> bool:
    folders = [Path(as_path(path))]
    with suppress(UserError):
        model = find_model(path)
        if read_config(model).get(SAMPLES) is False:
            return True
        folders = [model.parent]
    return any(hides_texts_of_run(folder) for folder in folders)


def hides_texts_of_run(folder: Path) -> bool:
    """Whether the run or the job of fit in a directory has the option --no-samples."""
    stored = read_json(folder / CONFIG)
    options = stored.get("options") if isinstance(stored, dict) else None
    return isinstance(options, dict) and options.get(SAMPLES) is False
