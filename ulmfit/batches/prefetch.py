"""A thread that prepares the next batches during the training step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
_END = object()


class Prefetcher(Iterator[T], Generic[T]):
    """Iterates over `items` in another thread, up to `depth` items ahead.

    It is intended for (batch, state) pairs. Each batch comes with its state, so that a checkpoint contains the position
    of the last batch used, not that of the thread, which is ahead.

    An exception raised by `items` is raised by the `__next__` call that would have returned the item. `close()` (also
    the end of a `with` block) stops the thread, closes `items` if it is a generator, and discards items read ahead.
    Then the iterator is exhausted.
    """

    def __init__(self, items: Iterable[T], *, depth: int = 2) -> None:
        self._queue: queue.Queue[tuple[object, BaseException | None]] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._ended = False
        # A daemon, so that a process that fails elsewhere can exit during a blocked read.
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
        except BaseException as error:  # passed to the consumer, including SystemExit and the like
            last = (_END, error)
        finally:
            # Close a generator in the thread that runs it, so that its files are closed.
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
        return item  # type: ignore[return-value]  # not _END, so an item of the iterable

    def close(self, timeout: float | None = 10.0) -> None:
        """Stop the thread and wait for it, at most `timeout` seconds (None: without limit)."""
        self._ended = True
        self._stop.set()
        while True:  # empties the queue, in case the thread waits for free space in it
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
        self.close(10.0 if error is None else 1.0)  # a failure, or a request to stop, does not wait for a slow disk
