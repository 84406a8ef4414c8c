"""Where `predict` writes: a new file, which can be gone on with, or standard output."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from ulmfit.cache_folder import cache_folder
from ulmfit.cli.common import check_output
from ulmfit.cli.prediction_files import Layout, PredictedRow, Write, appending_rows, check_format, text_rows, to_parquet
from ulmfit.data.fingerprint import COMPRESSED
from ulmfit.data.locations import file_system, is_url
from ulmfit.distributed.stop import StopRequest
from ulmfit.errors import UserError
from ulmfit.files import publish_new
from ulmfit.resumable import Kept, ResumableFile, resuming

STDOUT = "-"
_LOCAL = "file://"


class Output:
    """The rows that were written, and where.

    Attributes:
        path: the file; None for standard output. For a URL it is in the folder of caches, and uploaded when it is whole.
        rows: how many rows it has.
        place: the place in the input after them; None at the start.
    """

    def __init__(self, path: Path | None, suffix: str, url: str | None = None) -> None:
        self.path, self.rows, self.place = path, 0, None
        self._suffix, self._url = suffix, url
        self._file: ResumableFile | None = None
        self._layout: Layout | None = None
        self._write: Write = _nothing
        self._uploaded = ""

    @classmethod
    def of(cls, name: str | None, chosen: str | None) -> Output:
        """The output of --output and --output-format.

        Raises:
            UserError: rows cannot be written in this format.
        """
        suffix = None if chosen is None else f".{chosen}"
        if name is None or name == STDOUT:
            if suffix == ".parquet":
                raise UserError("--output-format parquet cannot be written to standard output; name a file by --output")
            return cls(None, suffix or ".text")
        url = name if is_url(name) and not name.startswith(_LOCAL) else None
        path = Path(name.removeprefix(_LOCAL))
        if suffix is None or path.suffix.lower() in COMPRESSED:
            check_format(path)
        return cls(path, suffix or path.suffix.lower(), url)

    def check(self) -> None:
        """Raise UserError if the file cannot come to be."""
        if self._url is not None:
            system, inside = file_system(self._url)
            with self._faults():
                if system.exists(inside):
                    raise UserError(f"--output {self._url} exists; name another file or remove it")
            digest = hashlib.sha256(self._url.encode("utf-8", "backslashreplace")).hexdigest()[:16]
            folder = cache_folder() / "predictions"
            with self._faults():
                folder.mkdir(parents=True, exist_ok=True)
            self.path = folder / f"{digest}-{Path(inside).name[-100:]}"
        elif self.path is not None:
            check_output(self.path)

    @contextmanager
    def opened(self, layout: Layout, made_of: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
        """Context in which rows are written. A file appears under its name once `publish` is called.

        Args:
            made_of: what determines the rows, under names for messages; called if a file is written.

        Raises:
            UserError: the file cannot be written, or an earlier process has left one of other origin.
        """
        if self.path is None:
            self._write = text_rows(sys.stdout, self._suffix, layout)
            yield
            return
        columns = [*layout.names(), f"{layout.with_file} {layout.numbered}"]
        identity = {**made_of(), "output format": self._suffix, "set of columns": columns}
        with ExitStack() as stack:
            with self._faults():
                self._file = stack.enter_context(resuming(self.path, identity))
            self.rows, self.place, self._layout = self._file.rows, self._file.place, layout
            if self.rows:
                print(f"going on after {self.rows:,} rows of {self._file.partial}", file=sys.stderr, flush=True)
            self._write = appending_rows(self._file.tail, self._suffix, layout, begun=self.rows > 0)
            yield

    def write(self, rows: Sequence[PredictedRow], place: Any) -> None:
        """Write the next rows; `place` is the one after them in the input."""
        with self._faults():
            self._write(rows)
            self.rows += len(rows)
            if self._file is not None:
                self._file.reached(self.rows, place)

    def publish(self) -> None:
        """All rows are written.

        Raises:
            UserError: another file has appeared under the name; the rows are beside it.
        """
        if self._file is None:
            sys.stdout.flush()
            return
        layout = self._layout
        assert layout is not None
        convert = functools.partial(to_parquet, layout) if self._suffix == ".parquet" else None
        with self._faults():
            placed = str(self._file.publish(convert, publish_new if self._url is None else self._upload))
        placed = placed if self._url is None else self._uploaded
        if placed != (self._url or str(self.path)):
            raise UserError(
                f"--output {self._url or self.path} has appeared meanwhile; the predictions are in {placed}"
            )

    def at_stop(self, stop: StopRequest) -> str:
        """What is told when the request to stop has come."""
        assert self._file is not None
        kept = f"{self.rows:,} rows are in {self._file.partial}, and the same command goes on after them"
        return f"stopped by {stop.reason or 'another process'}: {kept if self.rows else 'nothing was predicted yet'}"

    def _upload(self, file: Path, path: Path) -> Path:
        """Copy the whole file to the object store. There an object appears once it is whole."""
        assert self._url is not None
        system, inside = file_system(self._url)
        for number in count():
            name = f"{inside}.{number}" if number else inside
            if not system.exists(name):
                system.put_file(str(file), name)
                self._uploaded = f"{self._url}.{number}" if number else self._url
                return path
        raise AssertionError

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Context in which an error of the file system or of the object store is told of --output."""
        try:
            yield
        except BlockingIOError:
            raise UserError(
                f"another process is writing {self._url or self.path}; wait for it or name another file"
            ) from None
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Kept(f"--output {self._url or self.path} cannot be written ({reason}); name another file, or mend it "
                       "and start the same command again") from None  # fmt: skip


def _nothing(rows: Sequence[PredictedRow]) -> None:
    """Only rank 0 writes."""
