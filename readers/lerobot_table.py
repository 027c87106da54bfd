"""The rows of a LeRobot dataset's parquet files, an episode and a few columns at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import SourceError
from .files import present
from .lerobot_meta import EpisodeRow, Meta, damage

_OPEN = 4  # files whose index is kept
_BUFFER = 1 << 20
_TODO = "fetch this file again"


@dataclass(frozen=True)
class Span:
    """Where an episode's rows are: `count` rows from `first` on in `path`."""

    path: Path
    first: int
    count: int


class Tables:
    """Reads the data files of a dataset; keeps what it learnt of the last few."""

    def __init__(self, meta: Meta):
        self._meta = meta
        self._episodes: OrderedDict[Path, np.ndarray] = OrderedDict()

    def span(self, row: EpisodeRow, record: int) -> Span:
        """Where an episode's rows are.

        Raises:
            SourceError: the file is not there, is damaged, or holds no rows of the episode.
        """
        path = self._meta.data_file(row)
        if self._meta.major == 2:
            with damage(path, record), pq.ParquetFile(present(path)) as file:
                count = file.metadata.num_rows
            self._plausible(path, count, record)
            if not count:
                raise SourceError("holds no rows", file=path, record=record, todo=_TODO)
            return Span(path, 0, count)
        numbers = kept(self._episodes, path, lambda: self._numbers(path, record), _OPEN)
        rows = np.flatnonzero(numbers == row.index)
        if not len(rows) or rows[-1] - rows[0] + 1 != len(rows):
            what = "lie apart" if len(rows) else "are not here"
            raise SourceError(
                f"the rows of episode {row.index} {what}",
                file=path,
                record=record,
                key="episode_index",
                todo=_TODO,
            )
        return Span(path, int(rows[0]), len(rows))

    def read(self, span: Span, columns: list[str], record: int) -> pa.Table:
        """Some columns of an episode.

        Raises:
            SourceError: the file is damaged, or has no such column.
        """
        parts = list(self.parts(span, columns, record, max(span.count, 1)))
        return pa.concat_tables(parts).combine_chunks()

    def parts(
        self, span: Span, columns: list[str] | None, record: int, rows: int
    ) -> Iterator[pa.Table]:
        """As `read`, at most so many rows at a time; `columns` None reads all."""
        # Buffered, so that a column of gigabytes (pictures in one row group) is never in memory.
        options = {"buffer_size": _BUFFER, "pre_buffer": False}
        with damage(span.path, record), pq.ParquetFile(present(span.path), **options) as file:
            for name in columns or ():
                if name not in file.schema_arrow.names:
                    raise SourceError(
                        "there is no such column",
                        file=span.path,
                        record=record,
                        key=name,
                        todo="check the source",
                    )
            groups, start, skip = [], 0, 0
            for number in range(file.num_row_groups):
                end = start + file.metadata.row_group(number).num_rows
                if start < span.first + span.count and end > span.first:
                    skip = skip if groups else span.first - start
                    groups.append(number)
                start = end
            left = span.count
            batches = file.iter_batches(rows, row_groups=groups, columns=columns)
            for batch in batches:
                part = batch.slice(skip)
                skip = max(skip - batch.num_rows, 0)
                part = part.slice(0, left)
                left -= part.num_rows
                if part.num_rows:
                    yield pa.Table.from_batches([part])
                if not left:
                    return
        raise SourceError(f"{left} rows are missing", file=span.path, record=record, todo=_TODO)

    def numbers(self, span: Span, column: str, record: int) -> np.ndarray:
        """[T, N] the numbers of a column.

        Raises:
            SourceError: the column is damaged, or holds something else.
        """
        values = self.read(span, [column], record)[column].combine_chunks()
        try:
            while isinstance(values, pa.Array) and pa.types.is_nested(values.type):
                values = values.flatten()
            table = np.asarray(values.to_numpy(zero_copy_only=False), np.float64)
            return table.reshape(span.count, -1)
        except (pa.ArrowException, ValueError, TypeError, AttributeError):
            raise SourceError(
                f"holds no table of numbers ({values.type})",
                file=span.path,
                record=record,
                key=column,
                todo="check the source",
            ) from None

    def pictures(self, span: Span, column: str, record: int, steps: np.ndarray) -> list[bytes]:
        """The encoded pictures of some steps, in increasing order.

        Raises:
            SourceError: the column is damaged, or its pictures lie elsewhere.
        """
        blobs: list[bytes] = []
        start, wanted = 0, set(steps.tolist())
        narrow = Span(span.path, span.first + int(steps[0]), int(steps[-1] - steps[0]) + 1)
        for part in self.parts(narrow, [column], record, 32):
            values = part[column].combine_chunks()
            for place in range(part.num_rows):
                if start + place + int(steps[0]) not in wanted:
                    continue
                value: Any = values[place].as_py()
                blob = value.get("bytes") if isinstance(value, dict) else value
                if not isinstance(blob, bytes):
                    raise SourceError(
                        "the picture is not in the file itself",
                        file=span.path,
                        record=record,
                        key=column,
                        todo="embed the pictures in the parquet files first",
                    )
                blobs.append(blob)
            start += part.num_rows
        return blobs

    def _numbers(self, path: Path, record: int) -> np.ndarray:
        with damage(path, record), pq.ParquetFile(present(path)) as file:
            self._plausible(path, file.metadata.num_rows, record)
            return file.read(["episode_index"])["episode_index"].to_numpy()

    def _plausible(self, path: Path, rows: int, record: int) -> None:
        if rows > self._meta.total_frames:
            raise SourceError(
                f"declares {rows} rows, but the dataset {self._meta.total_frames} in all",
                file=path,
                record=record,
                todo=_TODO,
            )


def kept(store: OrderedDict, key, make: Callable[[], Any], most: int) -> Any:
    """`store[key]`, made where it is not there; only the last `most` asked for are kept."""
    if key not in store:
        store[key] = make()
    store.move_to_end(key)
    while len(store) > most:
        store.popitem(last=False)
    return store[key]
