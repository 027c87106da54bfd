"""What `wristaugment retry` takes over of a published shard, so that only the bad records are made.

A shard is made again whole, since its files are. But the streams of its good records are in the
published one, and taken from there where that gives the bytes that the recipe would. This module
alone decides whether it does:

- the format gives back what was written (`DatasetCopy.stored`). Video does not: what it decodes to
  becomes another video. Nor does what a file's own lossy filter has packed;
- the published files are, by their SHA-256, what the ledger says that was published;
- the record in them holds what the source's does now, beside the new stream: the source may have
  been repaired since, and what is made of it is another stream then;
- the ledger has what was said of its quality, and says of the frames what they are.

Else the record, or the shard, is made again. The published files stay until the new ones are
renamed over them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import cast

import numpy as np

from ..readers.dataset import Dataset, RawRecord, Shard
from ..readers.episode import WristStream
from ..readers.errors import SourceError
from ..writers.copy import CONFIDENCE, LEFT_OUT, VALID, DatasetCopy
from .checksums import staged_sha256
from .ledger import Ledger
from .ledger_read import is_entry
from .storage import FolderStorage
from .verify_copy import first_difference, is_new, open_made, twin_of
from .work import TOLD, Made, RecordMaker, Work, quality


class Takeover:
    """The good streams of a shard that was published before. It is for one thread, after opening.

    Args:
        work: the job. copy: the writer; what it is a copy of is not read.
        maker: its dataset is read, while its lock is held.
        shard: of the copy, with as many records as are wanted.

    Attributes:
        published: whether the ledger has a record of the shard.
        refused: why no stream of it is taken over; "" where some may be.
    """

    def __init__(self, work: Work, copy: DatasetCopy, maker: RecordMaker, shard: Shard):
        self._copy, self._maker, self._ledger = copy, maker, Ledger(work.out)
        self._split, self._index = shard.split, shard.index
        self._source: Dataset = maker.dataset
        self._rows: dict[str, dict] = {}  # what was said of each good record
        self._places: dict[int, int] = {}  # where in the published shard a record is
        self._others: Iterator[RawRecord] = iter(())
        self._other: RawRecord | None = None  # the one that was reached
        entry = self._ledger.entry(shard.split, shard.index)
        self.published, self.refused = entry is not None, ""
        if entry is not None:
            try:
                self.refused = self._open(entry)
            except SourceError as error:
                self.refused = str(error)
            except OSError as error:  # files that are not there, mostly
                self.refused = f"the published shard cannot be read ({error.strerror or error})"

    def load(self, raw: RawRecord) -> Made | None:
        """The stream of a record and what is said of it; None where it is to be made."""
        if self.refused or raw.record.index not in self._places or raw.error is not None:
            return None
        other = self._found(self._places[raw.record.index])
        row = self._rows[str(raw.record)]
        if other is None or other.error is not None:
            return None
        try:
            steps = self._made.steps(other)
            with self._maker.reading:
                if self._source.steps(raw) != steps or self._differs(raw, other):
                    return None
            frames, valid = self._copy.stored(self._made, other), self._made.flags(other, VALID)
            confidence = self._made.flags(other, CONFIDENCE)
        except (SourceError, OSError, ValueError):
            return None
        if frames is None or frames.shape != (steps, *self._copy.size, 3):
            return None
        if valid is None or confidence is None or frames.dtype != np.uint8:
            return None
        if valid.shape != (steps,) or confidence.shape != (steps,):
            return None
        stream = WristStream(
            cast(np.ndarray, frames),
            valid.astype(bool),
            np.zeros(steps, "f4"),
            confidence=confidence.astype(np.float32),
        )
        said = quality(raw.record, stream)
        if any(said[name] != row.get(name) for name in TOLD):
            return None
        return Made(stream, row, kept=True, taken=True)

    def _open(self, entry: dict) -> str:
        """Look at the shard as it was published; returns why nothing of it can be taken over."""
        if not self._copy.gives_back:
            return f"{self._copy.dataset.format} files do not give back the frames that went in"
        if not isinstance(self._ledger.store, FolderStorage):
            # A mirror of the copy would be of all its shards, and be another with each that is
            # replaced while others are read.
            return "the copy is in an object store"
        if not is_entry(entry) or not isinstance(entry.get("sha256"), dict):
            return "the ledger's record of it is damaged"
        result, sums = entry["result"], entry["sha256"]
        if staged_sha256(self._copy.folder, result["files"]) != sums:
            return "a published file is not what was published"
        name = self._ledger.shard_name(self._split, self._index)
        self._rows = {row["record"]: row for row in self._ledger.quality(name)}
        self._made = open_made(self._copy)
        declared = self._source.shard(self._split, self._index)
        twin = twin_of(self._source, self._made, declared)
        if twin is None:
            return "it is not in the copy"
        own = self._is_new
        old, new = self._source.shared_content(declared), self._made.shared_content(twin)
        if (found := first_difference(old, new, own)) is not None:
            return f"the source is another one now ({found[0]})"
        # The metadata may be older than the shard, where a retry was interrupted.
        twin = dataclasses.replace(twin, records=result["records"])
        self._others = self._made.records(twin)
        self._places = self._places_of(declared, result["bad"])
        return "" if self._places else "no record of it was made"

    def _places_of(self, declared: Shard, bad: list[dict]) -> dict[int, int]:
        """{record of the source: its place in the published shard} of the good ones."""
        broken = {item["record"]: item for item in bad}
        places, place = {}, 0
        for index in range(declared.records):
            record = f"{self._split}/{self._index}/{index}"
            if index not in broken and record in self._rows:
                places[index] = place
            left_out = index in broken and broken[index]["what"] == LEFT_OUT
            place += not (left_out and self._copy.closes_gaps)
        return places

    def _found(self, place: int) -> RawRecord | None:
        """A record of the published shard. They are asked for in order."""
        while self._other is None or self._other.record.index < place:
            self._other = next(self._others, None)
            if self._other is None:
                return None
        return self._other if self._other.record.index == place else None

    def _differs(self, raw: RawRecord, other: RawRecord) -> bool:
        """Whether the source's record is another one than when the published one was made."""
        old, new = self._source.content(raw), self._made.content(other)
        return first_difference(old, new, self._is_new) is not None

    def _is_new(self, key: str) -> bool:
        return is_new(key, self._copy)
