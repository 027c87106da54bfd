"""The augmented copy of a dataset of HDF5 files: each file copied whole, then added to in place."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..readers.dataset import Dataset, RawRecord, Shard
from ..readers.episode import WristStream
from ..readers.errors import SourceError
from ..readers.hdf5 import HDF5_ERRORS, dataset_at, group_at, link, named, opened, short, unsound
from ..readers.hdf5_dataset import Hdf5Dataset, Hdf5Record
from .copy import (
    FLAGS,
    LEFT_OUT,
    DatasetCopy,
    Make,
    ShardResult,
    about_flag,
    flags_of,
    listed,
    staged_files,
)
from .hdf5 import Extension, extended, lossless, write_frames

_PER_STEP, _PER_RECORD = 512, 1 << 16  # bytes: chunk index and flags; headers and names


class Hdf5Copy(DatasetCopy):
    """Writes the augmented copy of a dataset of HDF5 files; formats say what goes where."""

    gives_back = True
    dataset: Hdf5Dataset

    def __init__(self, dataset: Hdf5Dataset, out: Path, **choices):
        super().__init__(dataset, out, **choices)
        if self.replace:
            return
        for key in self._taken():
            raise SourceError(
                "this name is taken already",
                file=dataset.folder,
                key=key,
                todo="choose another --wrist-key, or say --replace to overwrite it in the copy",
            )

    @abc.abstractmethod
    def write_stream(
        self, extension: Extension, group: h5py.Group, stream: WristStream, replaced: Any
    ) -> None:
        """Add the pictures of a record to the copy.

        Args:
            group: of the record. Nothing is under the stream's name any more.
            replaced: what `look_back` gave when something was.
        """

    def look_back(self, group: h5py.Group) -> Any:
        """What `write_stream` will have to know of a stream that it replaces."""
        return None

    def flag_groups(self, group: h5py.Group) -> list[h5py.Group]:
        """The groups of a record that get flags: those of now, and those of the next step."""
        found = group_at(group, self.dataset.flag_group)
        return [] if found is None else [found]

    def names(self, wrist_key: str) -> tuple[str, str]:
        key = self.dataset.full_key(wrist_key)
        short = key.removeprefix(f"{self.dataset.pictures}/")
        if not short or "/" in short or short in (".", "..", *FLAGS) or short.strip() != short:
            raise SourceError(
                "cannot be the name of the new camera", key=wrist_key,
                todo="choose another --wrist-key",
            )  # fmt: skip
        return short, key

    def write_shard(self, shard: Shard, staged: Path, make: Make) -> ShardResult:
        result = ShardResult(shard.split, shard.index)
        records = list(self.records(shard))
        lost = records[0] if records else None
        if isinstance(lost, Hdf5Record) and lost.error is not None and not lost.reached:
            result.bad.append(listed(lost, lost.error, LEFT_OUT, lost.missing))
            return result
        path = staged / shard.path.relative_to(self.dataset.root)
        steps = sum(raw.length or 0 for raw in records if isinstance(raw, Hdf5Record))
        # A picture, perhaps twice (next_obs), its flags; and for each record what names them.
        room = (
            steps * 2 * (3 * self.size[0] * self.size[1] + _PER_STEP) + len(records) * _PER_RECORD
        )
        try:
            with extended(shard.path, path, room) as extension:
                for raw in records:
                    self._add(extension, raw, shard, make, result)
        except HDF5_ERRORS as error:
            # So damaged that HDF5 cannot write to it: not a word of the copy can be relied on.
            if isinstance(error, OSError) or not _of_hdf5(error):
                raise
            path.unlink()
            found = f"cannot be added to ({short(error)})"
            lost = SourceError(found, file=shard.path, todo="fetch this file again")
            return ShardResult(
                shard.split, shard.index, bad=[listed(records[0], lost, LEFT_OUT, len(records))]
            )
        result.records = len(records)
        result.files = staged_files(staged)
        return result

    def stored(self, made: Dataset, raw: RawRecord) -> np.ndarray | None:
        assert isinstance(made, Hdf5Dataset)
        path = made.file_of(raw.record)
        where = {"file": path, "record": raw.record.index, "key": self.stream_key}
        with opened(path) as file, named(**where):
            found = dataset_at(made.group_of(file, raw), self.stream_key)
            if found is None or found.ndim != 4 or not lossless(found):
                return None  # a camera's filter for pictures is taken over to the new stream
            flip = self.dataset.upside_down(file)
        frames = np.asarray(made.frames(raw, self.stream_key))
        return frames[:, ::-1] if flip else frames

    def metadata(self, results: Sequence[ShardResult]) -> dict[str, bytes]:
        return {}

    def like(self, group: h5py.Group) -> h5py.Dataset | None:
        """The camera of a record that the new one is stored like."""
        cameras = [camera.key for camera in self.dataset.profile.anchors]
        for key in (*cameras, *(stream.key for stream in self.dataset.streams())):
            try:
                found = dataset_at(group, key)
                reason = unsound(found) if found is not None else "is not there"
            except HDF5_ERRORS:
                continue  # damaged; another camera tells as well how to store one
            if found is not None and reason is None:
                return found
        return None

    def _add(
        self, extension: Extension, raw: RawRecord, shard: Shard, make: Make, result: ShardResult
    ) -> None:
        """Add the new stream of one record, or list why it has none."""
        assert isinstance(raw, Hdf5Record)
        where = {"file": shard.path, "record": raw.record.index}
        try:
            if raw.length is None:
                raise raw.error or SourceError("has no steps", **where, todo="check the source")
            with named(**where, key=self.stream_key):
                group = self.dataset.group_of(extension.file, raw)
                replaced = self.look_back(group)
                self._make_room(extension, group, where)
        except SourceError as error:
            result.bad.append(listed(raw, error, LEFT_OUT, 1))
            return
        stream = self.stream(raw, shard, make, raw.length, result)
        self.write_stream(extension, group, stream, replaced)
        self._write_flags(extension, group, stream)

    def _write_flags(self, extension: Extension, group: h5py.Group, stream: WristStream) -> None:
        for place, below in enumerate(self.flag_groups(group)):
            for name, values in flags_of(stream).items():
                # The second group is of the next step; the last has none, and repeats the last.
                values = np.append(values[1:], values[-1:]) if place else values
                said = about_flag(name, self.wrist_key) + "."
                dataset = extension.add(below, name, values.shape, values.dtype, description=said)
                write_frames(values, dataset)

    def _make_room(self, extension: Extension, group: h5py.Group, where: dict) -> None:
        """Take out what the new stream replaces.

        Raises:
            SourceError: there is something, and it may not be replaced.
            ValueError: there is no place for the stream.
        """
        places = [(below, name) for below in self.flag_groups(group) for name in FLAGS]
        places += [(below, self.wrist_key) for below in self.stream_groups(group)]
        for below, name in places:
            if link(below, name) is None:
                continue
            if not self.replace:
                raise SourceError(
                    "this record has something of this name", **where, key=name,
                    todo="choose another --wrist-key, or say --replace",
                )  # fmt: skip
            extension.remove(below, name)

    def stream_groups(self, group: h5py.Group) -> list[h5py.Group]:
        """The groups of a record that get the stream.

        Raises:
            ValueError: the record has no place for cameras.
        """
        found = group_at(group, self.dataset.pictures)
        if found is None:
            raise ValueError("there is no group for it")
        return [found]

    def _taken(self) -> list[str]:
        """The new names that the first sound record has already."""
        keys = [self.stream_key, *(f"{self.dataset.flag_group}/{name}" for name in FLAGS)]
        for split in self.dataset.splits:
            for shard in split.shards:
                for raw in self.dataset.records(shard):
                    if raw.error is not None:
                        continue
                    with opened(shard.path) as file, named(file=shard.path):
                        group = self.dataset.group_of(file, raw)
                        return [key for key in keys if _there(group, key)]
        return []


def _of_hdf5(error: Exception) -> bool:
    """Whether an error comes from h5py, not from here or from `make`."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and "h5py" in at.tb_frame.f_code.co_filename


def _there(group: h5py.Group, key: str) -> bool:
    """Whether a record has something at a key, be it a link that leads nowhere."""
    parent, _, name = key.rpartition("/")
    found = group_at(group, parent)
    return found is not None and link(found, name) is not None
