"""What datasets of HDF5 files have in common: a shard is a file, a record is a group in it."""

from __future__ import annotations

import abc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import h5py
import numpy as np

from .dataset import Dataset, RawRecord, Shard, Split, Stream
from .episode import Episode, Record, View
from .errors import SourceError
from .files import is_away
from .frames import Frames
from .hdf5 import (
    address,
    dataset_at,
    find_files,
    group_at,
    item,
    links,
    named,
    opened,
    read_rows,
    refuse_links,
    unsound,
    walk,
)
from .pictures import no_picture
from .profiles import Camera, Numbers, Profile

SYNTHETIC = "synthetic"  # the attribute that marks what was added to a copy
_LOOK = 3  # frames of a stream that are looked at for whether it carries a picture


@dataclass(frozen=True)
class Hdf5Record(RawRecord):
    """A record that is a group of a file.

    Attributes:
        group: its path in the file; "" where the record is the whole file.
        length: its number of steps; of a record with an error, what its sound parts say, or None.
        reached: False where its file cannot be opened, so that nobody knows what it holds.
    """

    group: str = ""
    length: int | None = None
    reached: bool = True


class Hdf5Dataset(Dataset):
    """An opened dataset of HDF5 files; formats say what lies where.

    Attributes:
        pictures: the group of a record that holds its cameras, as in "obs".
        flag_group: the group that holds what is known per step beside the cameras.
    """

    pictures: str
    flag_group: str
    split_name = "train"
    profiles: tuple[Profile, ...] = ()

    def __init__(
        self,
        path: Path,
        dataset: str | None,
        *,
        anchor_keys: Sequence[str] | None,
        plain: bool,
    ):
        self.folder = path
        single = path.is_file()
        self.name = path.stem if single else path.resolve().name
        self.version = ""
        self.place = Path(".") if single else Path(self.name)
        self.splits = [Split(self.split_name, self._survey())]
        self._synthetic: set[str] = set()
        self._streams = self._find_streams()
        self.profile = self._resolve(dataset, anchor_keys, plain)

    @abc.abstractmethod
    def groups(self, file: h5py.File) -> list[str] | None:
        """The paths of the records of a file, in order; None if it is of another format."""

    @abc.abstractmethod
    def own_profile(self) -> Profile:
        """The profile that the first readable file asks for."""

    @abc.abstractmethod
    def timed(self, group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
        """(key, dataset) of everything in a record that has one row per step.

        Raises:
            ValueError: something of it cannot be reached.
        """

    def declared_steps(self, group: h5py.Group) -> int | None:
        """How many steps a record says it has, where it does."""
        return None

    @abc.abstractmethod
    def episode(self, raw: RawRecord, *, wrist: str | None = None, depth: bool = False) -> Episode:
        """See Dataset."""

    def stream_of(self, key: str, dataset: h5py.Dataset) -> Stream | None:
        """What a dataset among the pictures is, or None if it is no camera."""
        if dataset.ndim != 4 or dataset.shape[-1] not in (1, 3) or min(dataset.shape[1:3]) < 2:
            return None
        depth = dataset.shape[-1] == 1 or dataset.dtype != np.uint8
        shape = (dataset.shape[1], dataset.shape[2], dataset.shape[3])
        return Stream(key, shape, str(dataset.dtype), dataset.compression or "raw", depth)

    def decoded(self, file: h5py.File, dataset: h5py.Dataset, key: str) -> Frames | None:
        """The pictures of a stored stream while its file is open; None if it is none."""
        if self.stream_of(key, dataset) is None:
            return None
        count, height, width, channels = dataset.shape
        shape = (count, height, width, channels)
        return Frames(shape, lambda steps: read_rows(dataset, steps), dataset.dtype)

    def upside_down(self, file: h5py.File) -> bool:
        """Whether the pictures of a file are stored with the last row first."""
        return False

    def records(self, shard: Shard) -> Iterator[RawRecord]:
        try:
            with opened(shard.path) as file, named(file=shard.path):
                refuse_links(file, shard.path, self.root)
                found = [
                    self._record(file, shard, index, group)
                    for index, group in enumerate(self.groups(file) or ())
                ]
        except SourceError as error:
            place = Record(shard.split, shard.index, 0)
            found = [Hdf5Record(place, error, max(1, shard.records), reached=False)]
        yield from found

    def steps(self, raw: RawRecord) -> int:
        assert isinstance(raw, Hdf5Record)
        if raw.error is not None:
            raise raw.error
        assert raw.length is not None
        return raw.length

    def streams(self) -> list[Stream]:
        return self._streams

    def frames(self, raw: RawRecord, key: str) -> Frames:
        self.steps(raw)
        path, name = self.file_of(raw.record), self.full_key(key)
        where = {"file": path, "record": raw.record.index, "key": name}
        with opened(path) as file, named(**where):
            shape, dtype = self._decoded(file, raw, name, where)[:2]

        def read(steps: np.ndarray) -> np.ndarray:
            # Opened each time: handles cross no process borders, and thousands of records are
            # looked at in one run.
            with opened(path) as file, named(**where):
                return self._decoded(file, raw, name, where)[2][steps]

        return Frames(shape, read, dtype)

    def flags(self, raw: RawRecord, name: str) -> np.ndarray | None:
        self.steps(raw)
        path = self.file_of(raw.record)
        with opened(path) as file, named(file=path, record=raw.record.index, key=name):
            found = dataset_at(self.group_of(file, raw), f"{self.flag_group}/{name}")
            if found is None or unsound(found) or found.ndim != 1:
                return None
            return found[()]

    def content(self, raw: RawRecord) -> Iterator[tuple[str, object]]:
        path = self.file_of(raw.record)
        where = {"file": path, "record": raw.record.index}
        with opened(path) as file, named(**where):
            yield from walk(self.group_of(file, raw), _path(raw), self.skipped)

    def shared_content(self, shard: Shard) -> Iterator[tuple[str, object]]:
        with opened(shard.path) as file, named(file=shard.path):
            own = set(self.groups(file) or ())
            if "" in own:
                return
            told = {}
            for path in sorted(own):
                if (group := link_free(file, path)) is not None:
                    told[address(group)] = path
            yield from walk(file, "", own.__contains__, told)

    def skipped(self, path: str) -> bool:
        """Whether `content` leaves out a path, since it is told in another way."""
        return False

    def shard_files(self, shard: Shard) -> list[Path]:
        return [shard.path]

    def full_key(self, key: str) -> str:
        """A stream's key from any spelling of it."""
        short = key.strip("/")
        for prefix in (f"{self.pictures}/", "observations/images/", "observation/", "obs/"):
            short = short.removeprefix(prefix)
        return f"{self.pictures}/{short}"

    def group_of(self, file: h5py.File, raw: RawRecord) -> h5py.Group:
        """The group of a record.

        Raises:
            ValueError: it is not there.
        """
        found = group_at(file, _path(raw))
        if found is None:
            raise ValueError("the record is no group")
        return found

    def views(self, raw: RawRecord, wrist: str | None) -> tuple[list[View], dict, View | None]:
        """(anchors, dropped, wrist) of a record, all upright; calibration is for the format."""
        anchors, dropped = [], {}
        for camera in self.profile.anchors:
            view = self._view(raw, camera.key)
            if reason := no_picture(view.frames[_sample(len(view.frames))]):
                dropped[camera.key] = reason
            else:
                anchors.append(view)
        if wrist is None:
            return anchors, dropped, None
        view = self._view(raw, self.full_key(wrist))
        if reason := no_picture(view.frames[_sample(len(view.frames))]):
            todo = "leave this episode out"
            raise self.error(raw, f"the wrist stream is {reason}", view.key, todo)
        return anchors, dropped, view

    def rows(self, raw: RawRecord, numbers: Numbers | None) -> np.ndarray | None:
        """[T, count] float64 of a record; None where it has none, or they are not finite."""
        if numbers is None:
            return None
        path = self.file_of(raw.record)
        with opened(path) as file, named(file=path, record=raw.record.index, key=numbers.key):
            found = dataset_at(self.group_of(file, raw), numbers.key)
            if found is None or unsound(found) or found.dtype.kind not in "fiu":
                return None
            table = np.asarray(found[()], np.float64)
        if len(table) != self.steps(raw) or table.size == 0:
            return None
        table = table.reshape(len(table), -1)
        table = table[:, numbers.start : numbers.start + numbers.count]
        return table if table.shape[1] == numbers.count and np.isfinite(table).all() else None

    def _view(self, raw: RawRecord, key: str) -> View:
        stored = self.frames(raw, key)
        if stored.dtype != np.uint8 or stored.shape[-1] != 3:
            raise self.error(raw, "this is no stream of RGB pictures", key, "name another one")
        path = self.file_of(raw.record)
        with opened(path) as file, named(file=path):
            flip = self.upside_down(file)
        if flip:
            kept, (count, height, width, _) = stored, stored.shape
            stored = Frames((count, height, width, 3), lambda steps: kept[steps][:, ::-1])
        return View(key, cast(np.ndarray, stored))

    def _decoded(self, file, raw, key: str, where: dict) -> tuple:
        """(shape, dtype, pictures) of a stored stream while its file is open."""
        found = dataset_at(self.group_of(file, raw), key)
        if found is not None:
            if reason := unsound(found):
                raise SourceError(reason, **where, todo="check the source")
            if (pictures := self.decoded(file, found, key)) is not None:
                return pictures.shape, pictures.dtype, pictures
        known = ", ".join(stream.key for stream in self._streams) or "none at all"
        raise SourceError(
            f"there is no such stream; there are {known}", **where, todo="name one of them"
        )

    def _survey(self) -> list[Shard]:
        """A shard for every file of this format, and for every file that cannot be opened.

        Raises:
            SourceError: a file leads out of the dataset, or none is of this format.
        """
        shards, broken, sound = [], None, 0
        for path in find_files(self.folder):
            try:
                with opened(path, glance=True) as file, named(file=path):
                    groups: Sequence[str] | None = self.groups(file)
                    if groups is not None:
                        # Looking for links takes all of a file; `records` does so in any case.
                        if not is_away(path):
                            refuse_links(file, path, self.root)
                        sound += 1
            except SourceError as error:
                if error.key is not None:
                    raise
                broken, groups = broken or error, [""]
            if groups is not None:
                shards.append(Shard(self.split_name, len(shards), path, len(groups)))
        if not sound:
            raise broken or SourceError(
                f"holds no {self.format} file", file=self.folder, todo="give another folder"
            )
        return shards

    def _record(self, file, shard: Shard, index: int, path: str) -> Hdf5Record:
        place = Record(shard.split, shard.index, index)
        where = {"file": shard.path, "record": index}
        try:
            with named(**where, key=path or None):
                group = group_at(file, path)
            if group is None:
                raise SourceError("is no group", **where, key=path, todo="check the source")
        except SourceError as error:
            return Hdf5Record(place, error, 1, path)
        lengths: dict[str, int] = {}
        errors: list[SourceError] = []
        try:
            with named(**where, key=path or None):
                for key, dataset in self.timed(group):
                    if found := unsound(dataset) or (None if dataset.shape else "holds no rows"):
                        errors.append(SourceError(found, **where, key=key, todo="check the source"))
                    else:
                        lengths[key] = dataset.shape[0]
                declared = self.declared_steps(group)
                item(group, self.pictures)
        except SourceError as error:
            errors.append(error)
            declared = None
        length = self._length(lengths, declared)
        wrong = next((key for key, found in lengths.items() if found != length), None)
        if errors:
            return Hdf5Record(place, errors[0], 1, path, length)
        if length is None:
            found = "nothing here has rows of steps"
            error = SourceError(found, **where, key=path or None, todo="check the source")
            return Hdf5Record(place, error, 1, path)
        if declared is not None and declared != length:
            found = f"declares {declared} steps and holds {length}"
            error = SourceError(found, **where, key=path or None, todo="check the source")
            return Hdf5Record(place, error, 1, path, length)
        if wrong is not None:
            found = f"holds {lengths[wrong]} rows for {length} steps"
            error = SourceError(found, **where, key=wrong, todo="check the source")
            return Hdf5Record(place, error, 1, path, length)
        return Hdf5Record(place, None, 0, path, length)

    @staticmethod
    def _length(lengths: dict[str, int], declared: int | None) -> int | None:
        """The number of steps: the declared one if anything is that long, else the usual one."""
        if not lengths:
            return None
        if declared in lengths.values():
            return declared
        return Counter(lengths.values()).most_common(1)[0][0]

    def _find_streams(self) -> list[Stream]:
        """The cameras of the first sound record."""
        for shard in self.splits[0].shards:
            for raw in self.records(shard):
                if raw.error is not None:
                    continue
                with opened(shard.path) as file, named(file=shard.path):
                    group = group_at(self.group_of(file, raw), self.pictures)
                    found = []
                    for name in {} if group is None else links(group):
                        dataset = dataset_at(group, name) if group is not None else None
                        key = f"{self.pictures}/{name}"
                        if dataset is not None and not unsound(dataset):
                            found.append(self.stream_of(key, dataset))
                            if SYNTHETIC in dataset.attrs:
                                self._synthetic.add(key)
                    return sorted(filter(None, found), key=lambda stream: stream.key)
        return []

    def _resolve(self, dataset: str | None, keys: Sequence[str] | None, plain: bool) -> Profile:
        """The profile, with nothing in it that the first sound record lacks.

        Raises:
            SourceError: nothing answers to the name, or no third-person camera is known.
        """
        profile = self.own_profile()
        chosen = next((row for row in self.profiles if dataset in row.names), None)
        if dataset is not None and chosen is None and dataset not in (self.name, self.format):
            names = ", ".join(name for row in self.profiles for name in row.names)
            raise SourceError(
                f"the folder holds {self.name!r}, which is no {dataset!r}",
                file=self.folder,
                todo=f"leave out --dataset, or say one of: {self.name}, {names}",
            )
        profile = chosen or profile
        pictures = {stream.key for stream in self._streams if not stream.depth}
        known = ", ".join(sorted(pictures)) or "none at all"
        if keys:
            wanted = dict.fromkeys(self.full_key(key) for key in keys)
            for key in wanted:
                if key not in pictures:
                    raise SourceError(
                        f"there is no such image key; there are: {known}",
                        file=self.folder, key=key, todo="name others with --anchor-keys",
                    )  # fmt: skip
            anchors = tuple(Camera(key) for key in wanted)
        else:
            anchors = tuple(camera for camera in profile.anchors if camera.key in pictures)
        if not anchors and not plain:
            raise SourceError(
                f"no third-person camera is known here; the image keys are: {known}",
                file=self.folder,
                todo="say which are third-person views with --anchor-keys",
            )
        taken = {camera.key for camera in anchors}
        wrist = next((Camera(key) for key in self.wrists() if key in pictures - taken), None)
        return replace(profile, anchors=() if plain else anchors, wrist=wrist)

    def wrists(self) -> list[str]:
        """The keys of recorded hand cameras, the likeliest first."""
        words = ("eye_in_hand", "wrist", "hand", "gripper")
        keys = [s.key for s in self._streams if not s.depth and s.key not in self._synthetic]
        return [key for word in words for key in keys if word in key]


def link_free(file: h5py.File, path: str) -> h5py.Group | None:
    """The group at a path, None also where the path leads into another file."""
    try:
        return group_at(file, path)
    except ValueError:
        return None


def _path(raw: RawRecord) -> str:
    assert isinstance(raw, Hdf5Record)
    return raw.group


def _sample(length: int) -> np.ndarray:
    """A few steps from first to last."""
    return np.unique(np.linspace(0, max(0, length - 1), _LOOK).astype(int))[: max(0, length)]
