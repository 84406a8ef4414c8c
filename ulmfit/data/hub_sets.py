"""Reads data sets of `datasets`: those of the hub, streamed or from its cache, and those in memory.

`datasets` is imported late, because this takes seconds and files do not need it.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

from ulmfit import private_api
from ulmfit.data.fingerprint import Access
from ulmfit.data.retry import retried
from ulmfit.data.shards import slices, values
from ulmfit.data.source import Batches, Source
from ulmfit.errors import UserError

_STREAM_ROWS = 1000  # batch size for streams of `datasets`; constant, because their state counts batches


def load(*args: Any, **options: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()  # every rank would show one, and the program has its own
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # errors are reported once, by this package
    private_api.count_no_downloads()
    return datasets.load_dataset(*args, **options)


def of_dataset(
    dataset: Any, what: str, fingerprint: str, columns: list[str], files: list[str], access: Access
) -> Source:
    """A source of a Dataset (a place is a row number) or an IterableDataset (a place is its state and a row count)."""
    features = private_api.features_of(dataset)
    columns = columns or list(features)
    if not columns:
        raise UserError(f"{what} is empty; give a file with rows")
    streamed = not hasattr(dataset, "num_rows")

    def batches(wanted: list[str], batch_size: int, place: Any) -> Batches:
        if not streamed:
            view = dataset.select_columns(wanted).with_format("arrow")
            return retried(lambda place: _rows(view, wanted, batch_size, place), place, lambda: what)
        # A copy, because views share the object that counts shards, and parallel passes would mix their counts. The
        # file systems are not copied: a copy in another thread would change their cache.
        shared = {id(private_api.file_systems()): private_api.file_systems()}
        own = copy.deepcopy(dataset, shared)
        private_api.watch_tables(own, access.beat)
        view = own.select_columns(wanted).with_format("arrow")
        name = functools.partial(_shard, view, what, files)
        return retried(lambda place: _stream(view, wanted, batch_size, place), place, name)

    num_rows = None if streamed else dataset.num_rows
    return Source(what, columns, fingerprint, files, *_types(features), num_rows, _batches=batches)


def _types(features: Any) -> tuple[dict[str, list[str]], dict[str, str]]:
    from datasets import ClassLabel

    return (
        {name: list(feature.names) for name, feature in features.items() if isinstance(feature, ClassLabel)},
        # A feature of lists has no dtype of its own.
        {
            name: str(getattr(feature, "dtype", None) or features.arrow_schema.field(name).type)
            for name, feature in features.items()
        },
    )


def _rows(view: Any, wanted: list[str], batch_size: int, place: int | None) -> Batches:
    row = place or 0
    for start in range(row, view.num_rows, batch_size):
        for part in slices(view[start : start + batch_size], batch_size):
            row += part.num_rows
            yield {name: values(part.column(name)) for name in wanted}, row


def _stream(view: Any, wanted: list[str], batch_size: int, place: Any) -> Batches:
    state, skip = place or (None, 0)
    # Also if the state is empty, because the view still has the state of the previous try.
    view.load_state_dict(state)
    for table in view.iter(_STREAM_ROWS):
        row, after = skip, view.state_dict()
        for part in slices(table.slice(skip), batch_size):
            row += part.num_rows
            yield (
                {name: values(part.column(name)) for name in wanted},
                ([state, row] if row < table.num_rows else [after, 0]),
            )
        state, skip = after, 0


def _shard(view: Any, what: str, files: list[str]) -> str:
    """The one of `files` that a view of a stream is reading; `what` if not known."""
    # Not the state of the view itself, which is behind after a resume.
    number = private_api.stream_state(view).get("shard_idx", len(files))
    return files[number] if number < len(files) else what
