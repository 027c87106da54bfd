"""Decoding the next episode and encoding the last while the network works on one.

A writer, in a thread of its own, asks for one record after another: while it encodes what it was
given, the next record is made, and the one after that is decoded in another thread. Nobody runs
further ahead than that, so that memory holds three episodes at most. Records are made in the
calling thread, the process's first, where libraries expect to be used and signals arrive.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass
class _Entry:
    """A record that was seen: what it is decoded to, and what is made of it, once that is asked."""

    raw: Any
    decoded: Future | None = None
    made: Future | None = None


class Ahead:
    """Makes records a little before they are asked for. Use as a context.

    Args:
        decode: from a raw record to whatever `make` needs of it. Runs in a thread.
        make: from a raw record and what `decode` gave to the result. Runs where `run` is called.
        wanted: tells the raw records that will be asked for, as far as that is known.

    Errors of both are raised where the result is asked for.
    """

    def __init__(
        self,
        decode: Callable[[Any], Any],
        make: Callable[[Any, Any], Any],
        wanted: Callable[[Any], bool],
    ):
        self._decode, self._make, self._wanted = decode, make, wanted
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._asked: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._seen: dict[int, _Entry] = {}  # in the order in which they were seen

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._decoder, self._writer):
            pool.shutdown(wait=True, cancel_futures=True)

    def run(self, write: Callable[[], Any]) -> Any:
        """Run a writer, which takes `records` and asks for each one's `result`; returns its own.

        Raises:
            Exception: what the writer raised.
        """
        writer = self._writer.submit(write)
        writer.add_done_callback(lambda _: self._asked.put(None))
        while (entry := self._asked.get()) is not None:
            assert entry.made is not None
            if not entry.made.set_running_or_notify_cancel():
                continue
            try:
                entry.made.set_result(self._made(entry))
            except BaseException as error:
                entry.made.set_exception(error)
        return writer.result()

    def records(self, raws: Iterator[Any]) -> Iterator[Any]:
        """The same records, each after the one behind it has been read too."""
        last = None
        for raw in raws:
            if self._wanted(raw):
                self._seen[raw.record.index] = _Entry(raw)
            if last is not None:
                yield last
            last = raw
        if last is not None:
            yield last

    def result(self, raw: Any) -> Any:
        """What is made of a record, and the next ones set going.

        Raises:
            Exception: what decoding or making it raised.
        """
        index = raw.record.index
        if index not in self._seen:
            self._seen[index] = _Entry(raw)
        order = list(self._seen)
        position = order.index(index)
        for passed in order[:position]:  # the writer did not ask for them
            self._drop(self._seen.pop(passed))
        for place, key in enumerate(order[position : position + 3]):
            entry = self._seen[key]
            # What is being made was decoded, and its pictures let go.
            if entry.decoded is None and entry.made is None:
                entry.decoded = self._decoder.submit(self._decode, entry.raw)
            if place < 2 and entry.made is None:
                entry.made = Future()
                self._asked.put(entry)
        entry = self._seen[index]
        assert entry.made is not None
        try:
            return entry.made.result()
        finally:
            self._seen.pop(index, None)

    def _made(self, entry: _Entry) -> Any:
        assert entry.decoded is not None
        decoded, entry.decoded = entry.decoded.result(), None  # its pictures are not needed longer
        return self._make(entry.raw, decoded)

    def _drop(self, entry: _Entry) -> None:
        for future in (entry.decoded, entry.made):
            if future is not None:
                future.cancel()
