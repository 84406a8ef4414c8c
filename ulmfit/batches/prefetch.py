"""One thread that prepares the next batches while the current one is being trained on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
_END = object()


class Prefetcher(Iterator[T], Generic[T]):
    """Iterates over `items` in a thread of its own, up to `depth` items ahead.

    Meant for (batch, state) pairs: the state travels with its batch, so that a checkpoint holds the position
    of the batch that was consumed last and not that of the thread, which is further on.

    An exception raised by `items` is raised by the `__next__` whose turn it is. `close()` (also the end of a
    `with` block) stops the thread, closes `items` if it is a generator, and drops what was read ahead; the
    iterator is at its end afterwards.
    """

    def __init__(self, items: Iterable[T], *, depth: int = 2) -> None:
        self._queue: queue.Queue[tuple[object, BaseException | None]] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._ended = False
        # A daemon, so that a process that fails elsewhere does not wait for a blocked read.
        self._thread = threading.Thread(target=self._work, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def _work(self, items: Iterable[T]) -> None:
        last: tuple[object, BaseException | None] = (_END, None)
        iterator = None
        try:
            iterator = iter(items)
            for item in iterator:
                if not self._put((item, None)):
                    break
        except BaseException as error:  # handed to the consumer, SystemExit and the like too
            last = (_END, error)
        finally:
            # Generators release their files in the thread that runs them.
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
            self._put(last)

    def _put(self, entry: tuple[object, BaseException | None]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Prefetcher[T]:
        return self

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        item, error = self._queue.get()
        if item is _END:
            self._ended = True
            self._thread.join()
            if error is not None:
                raise error
            raise StopIteration
        return item  # type: ignore[return-value]

    def close(self, timeout: float | None = 10.0) -> None:
        """Stop the thread and wait for it, at most `timeout` seconds (None: until it is done)."""
        self._ended = True
        self._stop.set()
        while True:  # wakes a thread that waits for room
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
