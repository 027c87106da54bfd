"""What every format's reader gives: splits, shards, records, and an Episode of each record.

A format is one module in readers/ with two functions and a subclass of Dataset (see readers/formats
for the table, and FORMATS.md for the way to add one):

    recognise(path) -> bool
    open_source(path, dataset, *, anchor_keys=None, plain=False) -> Dataset
"""

from __future__ import annotations

import abc
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from .episode import Episode, Record
from .errors import SourceError
from .files import walk_files
from .profiles import Profile


@dataclass(frozen=True)
class Shard:
    """The unit that is committed: records that lie together on the disk.

    Attributes:
        split: its split. index: its number there, from 0.
        path: the file, or the folder, that holds its records; messages name it.
        records: how many records are declared (or wanted, where a copy takes only the first ones).
    """

    split: str
    index: int
    path: Path
    records: int


@dataclass(frozen=True)
class Split:
    """A split and its shards, in order."""

    name: str
    shards: list[Shard]

    @property
    def records(self) -> int:
        """How many records the split declares."""
        return sum(shard.records for shard in self.shards)


@dataclass(frozen=True)
class RawRecord:
    """A record that was found. Formats derive their own, with what they need to read it.

    Attributes:
        record: its place.
        error: why it cannot be read, or None.
        missing: how many declared records this one stands for: 1 with an error of its own, more
            where all behind a damage cannot be reached; 0 for what the dataset does not declare.
    """

    record: Record
    error: SourceError | None = None
    missing: int = 0


@dataclass(frozen=True)
class Stream:
    """A key that holds one picture per step: a camera, or its depth.

    Attributes:
        key: as users say it, as in `observation/image_0`, `obs/agentview_image`, `rgb_static`.
        shape: (height, width, channels); None for what is not declared.
        dtype: as in "uint8".
        encoding: how it lies on the disk, as in "jpeg", "raw", "h264".
        depth: whether it is depth and no picture.
    """

    key: str
    shape: tuple[int | None, int | None, int | None]
    dtype: str
    encoding: str
    depth: bool = False


class Dataset(abc.ABC):
    """An opened dataset: what it declares, and its records. Reading never writes.

    Attributes:
        format: the format's name, as in the table of readers/formats.
        folder: what was opened: the folder (RLDS: the version folder), or the one file.
        name: of the dataset. version: of its layout or content, "" where there is none.
        place: where a copy of it belongs below --out; "." where the dataset is one file.
        profile: which key is what; every key in it exists. Without anchors if opened as plain.
        splits: in their order.
    """

    format: ClassVar[str]
    folder: Path
    name: str
    version: str
    place: Path
    profile: Profile
    splits: list[Split]

    @property
    def root(self) -> Path:
        """The folder that the copy's relative paths start from."""
        return self.folder if self.folder.is_dir() else self.folder.parent

    @abc.abstractmethod
    def records(self, shard: Shard) -> Iterator[RawRecord]:
        """The records of one shard, in order; raises nothing for damage, but says so in `error`."""

    @abc.abstractmethod
    def steps(self, raw: RawRecord) -> int:
        """The number of steps of a record, found without decoding a picture.

        Raises:
            SourceError: the record cannot be read.
        """

    @abc.abstractmethod
    def episode(self, raw: RawRecord, *, wrist: str | None = None, depth: bool = False) -> Episode:
        """What the pipeline needs of one record.

        Args:
            wrist: the key of a recorded wrist stream to give too.
            depth: give `View.depth` where the dataset has it.

        Returns:
            An Episode, its pictures upright and RGB; constant (placeholder) cameras are in
            `dropped`.

        Raises:
            SourceError: the record cannot be read, or there is no stream `wrist`.
        """

    @abc.abstractmethod
    def streams(self) -> list[Stream]:
        """Every key with one picture per step."""

    @abc.abstractmethod
    def frames(self, raw: RawRecord, key: str) -> Sequence[np.ndarray] | np.ndarray:
        """The pictures of one stream of a record as they are stored (not turned upright).

        Returns:
            What can be indexed by step: an array, or readers.frames.Frames.

        Raises:
            SourceError: the record cannot be read, or there is no such stream.
        """

    @abc.abstractmethod
    def flags(self, raw: RawRecord, name: str) -> np.ndarray | None:
        """[T] one number per step that a writer of ours added, as `wrist_valid`; None without."""

    @abc.abstractmethod
    def content(self, raw: RawRecord) -> Iterator[tuple[str, object]]:
        """Everything that belongs to a record, for comparing a copy with its source.

        Yields:
            (key, value) in a fixed order, a few megabytes at a time. Values are equal (==, bytes or
            plain values) exactly if what is stored is equal, with its dtype, shape and attributes.
        """

    def shared_content(self, shard: Shard) -> Iterator[tuple[str, object]]:
        """As `content`, of what a shard's file holds beside its records: attributes, masks."""
        return iter(())

    @abc.abstractmethod
    def shard_files(self, shard: Shard) -> list[Path]:
        """The files that hold a shard's records and that a writer may have to change."""

    def shard_paths(self, shard: Shard) -> list[str]:
        """As `shard_files`, as text."""
        return [os.fspath(path) for path in self.shard_files(shard)]

    def files(self) -> Iterator[Path]:
        """Every file of the dataset, sorted."""
        if not self.folder.is_dir():
            yield self.folder
            return
        yield from map(Path, walk_files(str(self.folder)))

    def other_files(self) -> Iterator[Path]:
        """Files that are in no shard, sorted: metadata, and whatever else lies there."""
        own = {
            path
            for split in self.splits
            for shard in split.shards
            for path in self.shard_paths(shard)
        }
        if not self.folder.is_dir():
            return (path for path in self.files() if os.fspath(path) not in own)
        return (Path(name) for name in walk_files(str(self.folder)) if name not in own)

    def notes(self) -> list[str]:
        """What is damaged or was refused beside the records, and is done without: a line each."""
        return []

    def identity(self) -> str:
        """What tells this dataset from others: a hash of the names and sizes of its files."""
        digest = hashlib.sha256()
        for path in self.files():
            name = path.relative_to(self.root).as_posix()
            digest.update(f"{name} {path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def file_of(self, record: Record) -> Path:
        """The file or folder that messages about a record name."""
        split = next(split for split in self.splits if split.name == record.split)
        return split.shards[record.shard].path

    def shard(self, split: str, index: int) -> Shard:
        """One shard as the dataset declares it."""
        return next(s for s in self.splits if s.name == split).shards[index]

    def error(self, raw: RawRecord, found: str, key: str | None, todo: str) -> SourceError:
        """A SourceError that names the record's file, its number there, and the key."""
        file = self.file_of(raw.record)
        return SourceError(found, file=file, record=raw.record.index, key=key, todo=todo)
