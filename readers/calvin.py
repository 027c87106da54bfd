"""CALVIN datasets: one .npz a frame, ranges of frames, and a camera on a moving hand.

The dataset's folder holds training/ and validation/, or it is one such folder itself. What is a
record and a shard here, readers/calvin_folder tells.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np

from .calvin_cameras import TCP_FROM_CAMERA, Cameras, intrinsics, read_cameras, tcp_poses
from .calvin_folder import SplitFolder, looks_like_split, split_folders
from .calvin_language import Annotations, read_annotations
from .dataset import Dataset, RawRecord, Shard, Split, Stream
from .episode import Episode, Record, View
from .errors import SourceError
from .files import present_all
from .frames import Frames
from .npz import MAX_FILE, Npz, read_regular
from .pictures import no_picture
from .profiles import Camera, Numbers, Profile

STATIC, GRIPPER, ROBOT = "rgb_static", "rgb_gripper", "robot_obs"
GRIPPER_SIZE = (84, 84)
_PROFILE = Profile(
    "calvin",
    aliases=("calvin_debug_dataset", "task_D_D", "task_ABC_D", "task_ABCD_D"),
    anchors=(Camera(STATIC, depth="depth_static"),),
    wrist=Camera(GRIPPER, depth="depth_gripper"),
    eef=Numbers(ROBOT, 0, 6),
    gripper=Numbers(ROBOT, 6, inverted=True),
    language=("lang_annotations",),
)
_ROBOT_OBS = 15  # xyz, euler xyz, gripper width, 7 joints, gripper action
_OPEN_WIDTH = 0.08  # metres
_LOOKED_AT = 8  # frames of a view that tell whether its camera is a placeholder
_MAX_STACK = 1 << 30  # bytes of a record's arrays of one key; 82 MB of depth are usual
_TODO = "fetch this file again"


@dataclass(frozen=True)
class CalvinRecord(RawRecord):
    """A run of frames.

    Attributes:
        start, stop: the first frame's number, and the one behind the last.
        numbers: [T] int64, the frames whose files are there; all of them unless `error` is set.
    """

    start: int = 0
    stop: int = 0
    numbers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), compare=False)


class CalvinDataset(Dataset):
    """An opened CALVIN dataset; made by `open_source`.

    Attributes:
        places: split -> its folder, looked through.
        sample: key -> (shape, dtype) of one frame's arrays; every frame is expected to have them.
    """

    format = "calvin"

    def __init__(self, folder: Path):
        self.folder = folder
        self.name = Path(os.path.abspath(folder)).name or _PROFILE.name
        self.version, self.place = "", Path(self.name)
        self.places = {name: SplitFolder(path, name) for name, path in split_folders(folder)}
        self.splits = [Split(name, _shards(place)) for name, place in self.places.items()]
        self.sample = _sample(folder, self.places)
        self.profile = Profile(_PROFILE.name)

    def records(self, shard: Shard) -> Iterator[CalvinRecord]:
        """As Dataset says; a frame that is not there makes its record one with an error.

        No frame is opened: what is wrong inside of one is told where it is read.
        """
        place = self.places[shard.split]
        for index in range(min(shard.records, place.count(shard.index))):
            run = place.run(shard.index, index)
            where = Record(shard.split, shard.index, index)
            error = None
            if lost := run.stop - run.start - len(run.numbers):
                there = np.isin(np.arange(run.start, run.stop), run.numbers)
                first = run.start + int(np.argmin(there))
                error = SourceError(
                    f"this frame's file is missing ({lost} of the {run.stop - run.start} frames "
                    f"{run.start} to {run.stop - 1} are)",
                    file=place.path(first),
                    record=index,
                    todo="fetch it again",
                )
            missing = 1 if error else 0
            yield CalvinRecord(where, error, missing, run.start, run.stop, run.numbers)

    def steps(self, raw: RawRecord) -> int:
        return len(self._record(raw).numbers)

    def streams(self) -> list[Stream]:
        return [
            Stream(key, (*shape[:2], shape[2] if len(shape) == 3 else 1), dtype.name, "raw", depth)
            for key, (shape, dtype) in self.sample.items()
            if (depth := _is_depth(key, shape, dtype)) or _is_picture(shape, dtype)
        ]

    def episode(self, raw: RawRecord, *, wrist: str | None = None, depth: bool = False) -> Episode:
        record = self._record(raw)
        robot = self._robot(record)
        cameras, _ = self._cameras(raw.record.split)
        anchors: list[View] = []
        dropped: dict[str, str] = {}
        for camera in self.profile.anchors:
            view = self._view(record, camera, depth, cameras)
            few = np.unique(np.linspace(0, view.frames.shape[0] - 1, _LOOKED_AT).astype(int))
            if reason := no_picture(view.frames[few]):
                dropped[camera.key] = reason
            else:
                anchors.append(view)
        hand = self.sample.get(GRIPPER)
        size = hand[0][:2] if hand and len(hand[0]) == 3 else GRIPPER_SIZE
        eef = None if robot is None else tcp_poses(robot)
        annotations, _ = self._annotations(raw.record.split)
        episode = Episode(
            raw.record,
            anchors,
            language=annotations.of(record.start, record.stop),
            eef_pose=eef,
            gripper=None if robot is None else _closed(robot),
            wrist_mount=None if eef is None else TCP_FROM_CAMERA.copy(),
            wrist_K=_intrinsics(cameras.gripper_fov, size),
            wrist_size=size,
            dropped=dropped,
        )
        if wrist is not None:
            self._pictures([wrist], "name one of them")
            known = self.profile.wrist
            camera = known if known and known.key == wrist else Camera(wrist)
            episode.wrist = self._view(record, camera, depth, cameras)
            if camera.key == GRIPPER:
                episode.wrist.pose = episode.measured_wrist_pose()
        return episode

    def frames(self, raw: RawRecord, key: str) -> Sequence[np.ndarray] | np.ndarray:
        record = self._record(raw)
        if key not in {stream.key for stream in self.streams()}:
            names = ", ".join(stream.key for stream in self.streams()) or "none"
            raise self.error(
                raw, f"there is no such stream; there are {names}", key, "name another"
            )
        shape, dtype = self._like(record, key)
        if len(shape) == 3:
            return cast(np.ndarray, self._lazy(record, key))  # they behave as an array does
        return self._stack(record, key, np.arange(len(record.numbers)), shape, dtype)

    def flags(self, raw: RawRecord, name: str) -> np.ndarray | None:
        record = self._record(raw)
        if name not in self.sample:
            return None
        shape, dtype = self._like(record, name)
        return self._stack(record, name, np.arange(len(record.numbers)), shape, dtype)

    def content(self, raw: RawRecord) -> Iterator[tuple[str, object]]:
        """Every member of every frame, as it lies in its file: its headers and packed bytes."""
        assert isinstance(raw, CalvinRecord)
        place = self.places[raw.record.split]
        present_all(place.fast_path(number) for number in raw.numbers.tolist())
        for number in raw.numbers.tolist():
            name = place.file_name(number)
            try:
                with Npz(place.fast_path(number), soon=True) as archive:
                    directory = archive.check()
                    for member, end in directory.places():
                        entry = directory.raw[member.at : member.at + member.entry]
                        # Its place in the file is no part of it.
                        plain = entry[:42] + bytes(4) + entry[46:]
                        data = archive.read(member.start, end - member.start)
                        yield f"{name}/{member.key}", (plain, data)
            except SourceError:
                try:
                    yield name, read_regular(place.fast_path(number), MAX_FILE)
                except SourceError as error:
                    yield name, error.found

    def check(self, raw: RawRecord) -> SourceError | None:
        """The first damage in a record, or None, after unpacking every array of every frame.

        A copy takes arrays packed, as they lie, and does not find a flipped byte in one that no
        recipe reads; this does, at several times the cost of copying.
        """
        try:
            record = self._record(raw)
            place = self.places[raw.record.split]
            present_all(place.fast_path(number) for number in record.numbers.tolist())
            for number in record.numbers.tolist():
                with Npz(place.fast_path(number), soon=True) as archive:
                    archive.check()
                    for key in archive.keys():  # noqa: SIM118  # an archive is no dict
                        archive.array(key)
        except SourceError as error:
            return SourceError(
                error.found, file=error.file, record=raw.record.index, key=error.key, todo=_TODO
            )
        return None

    def shard_files(self, shard: Shard) -> list[Path]:
        place = self.places[shard.split]
        return [place.path(number) for number in place.frames(shard.index).tolist()]

    def shard_paths(self, shard: Shard) -> list[str]:
        place = self.places[shard.split]
        return [place.fast_path(number) for number in place.frames(shard.index).tolist()]

    def files(self) -> Iterator[Path]:
        return self._walk(self.folder, frames=True)

    def other_files(self) -> Iterator[Path]:
        # Millions of frames are told from the rest by their names; no list of them is made.
        return self._walk(self.folder, frames=False)

    def notes(self) -> list[str]:
        """What was found damaged or refused and is done without: one clear line each."""
        found = []
        for name in self.places:
            for _, error in (self._cameras(name), self._annotations(name)):
                if error is not None:
                    found.append(str(error))
        return found

    def _walk(self, folder: Path, *, frames: bool) -> Iterator[Path]:
        place = next((p for p in self.places.values() if p.folder == folder), None)
        with os.scandir(folder) as entries:
            found = [
                (entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if frames or place is None or not place.is_frame(entry.name) or entry.is_dir()
            ]
        splits = {p.folder for p in self.places.values()}
        for name, is_folder in sorted(found):
            path = folder / name
            if is_folder or path in splits:
                yield from self._walk(path, frames=frames)
            elif path.is_file():
                yield path

    def _record(self, raw: RawRecord) -> CalvinRecord:
        if raw.error is not None:
            raise raw.error
        assert isinstance(raw, CalvinRecord)
        return raw

    def _cameras(self, split: str) -> tuple[Cameras, SourceError | None]:
        return self._cameras_of[split]

    def _annotations(self, split: str) -> tuple[Annotations, SourceError | None]:
        return self._annotations_of[split]

    @cached_property
    def _cameras_of(self) -> dict[str, tuple[Cameras, SourceError | None]]:
        return {n: read_cameras([p.folder, self.folder]) for n, p in self.places.items()}

    @cached_property
    def _annotations_of(self) -> dict[str, tuple[Annotations, SourceError | None]]:
        return {name: read_annotations(place.folder) for name, place in self.places.items()}

    def _pictures(self, keys: Sequence[str], todo: str) -> None:
        """Refuse what is no stream of RGB pictures."""
        streams = {stream.key: stream for stream in self.streams()}
        found = ", ".join(k for k, s in streams.items() if s.shape[2] == 3 and not s.depth)
        for key in keys:
            stream = streams.get(key)
            if stream is None or stream.depth or stream.shape[2] != 3:
                what = "there is no such key" if key not in self.sample else "this is no RGB stream"
                raise SourceError(
                    f"{what}; the frames' image keys are: {found or 'none at all'}",
                    file=self.folder,
                    key=key,
                    todo=todo,
                )

    def _like(self, record: CalvinRecord, key: str) -> tuple[tuple[int, ...], np.dtype]:
        """(shape, dtype) of a key in a record's first frame."""
        place = self.places[record.record.split]
        try:
            with Npz(place.fast_path(int(record.numbers[0]))) as archive:
                return archive.header(key)
        except SourceError as error:
            raise self._in_record(error, record) from None

    def _stack(self, record, key: str, steps: np.ndarray, shape, dtype) -> np.ndarray:
        """[len(steps), *shape] of one key, each frame checked against the first."""
        place = self.places[record.record.split]
        size = len(steps) * math.prod(shape) * dtype.itemsize
        if size > _MAX_STACK or dtype.hasobject:
            found = f"{len(steps)} arrays of {shape} {dtype}, which are no frames of CALVIN's"
            raise self.error(record, found, key, "check the source")
        out = np.empty((len(steps), *shape), dtype)
        present_all(place.fast_path(number) for number in record.numbers[steps].tolist())
        try:
            for row, number in enumerate(record.numbers[steps].tolist()):
                with Npz(place.fast_path(number)) as archive:
                    array = archive.array(key)
                    if array.shape != tuple(shape) or array.dtype != dtype:
                        raise archive.error(
                            f"is {array.shape} {array.dtype}, not {tuple(shape)} {dtype} as in "
                            f"{place.file_name(int(record.numbers[0]))}",
                            key,
                        )
                    out[row] = array
        except SourceError as error:
            raise self._in_record(error, record) from None
        return out

    def _lazy(self, record: CalvinRecord, key: str) -> Frames:
        shape, dtype = self._like(record, key)
        if len(shape) != 3:
            where = {"file": self.file_of(record.record), "record": record.record.index}
            raise SourceError(f"is {shape}, no picture", key=key, todo=_TODO, **where)
        read = lambda steps: self._stack(record, key, steps, shape, dtype)
        return Frames((len(record.numbers), *shape), read, dtype)

    def _view(self, record: CalvinRecord, camera: Camera, depth: bool, cameras: Cameras) -> View:
        frames = self._lazy(record, camera.key)
        view = View(camera.key, cast(np.ndarray, frames))
        if camera.key == STATIC:
            view.pose = cameras.static_pose
            view.K = _intrinsics(cameras.static_fov, view.size)
        elif camera.key == GRIPPER:
            view.K = _intrinsics(cameras.gripper_fov, view.size)
        if depth and camera.depth:
            shape, dtype = self._like(record, camera.depth)
            metres = self._stack(record, camera.depth, np.arange(len(frames)), shape, dtype)
            if metres.shape != frames.shape[:3]:
                found = f"is {shape}, where the pictures are {frames.shape[1:3]}"
                raise self.error(record, found, camera.depth, _TODO)
            metres = metres.astype(np.float32)
            if camera.key == STATIC:  # at the far plane there is nothing
                metres[metres >= cameras.far * 0.999] = 0
            view.depth = np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0))
        return view

    def _robot(self, record: CalvinRecord) -> np.ndarray | None:
        """[T, 15] float64 robot_obs, or None where there is none or it is not finite."""
        if self.profile.eef is None:
            return None
        shape, dtype = self._like(record, ROBOT)
        if shape != (_ROBOT_OBS,) or dtype.kind != "f":
            found = f"is {shape} {dtype}, not {_ROBOT_OBS} floats"
            raise self.error(record, found, ROBOT, "check the source")
        table = self._stack(record, ROBOT, np.arange(len(record.numbers)), shape, dtype)
        return table.astype(np.float64) if np.isfinite(table).all() else None

    def _in_record(self, error: SourceError, record: CalvinRecord) -> SourceError:
        return SourceError(
            error.found,
            file=error.file,
            record=record.record.index,
            key=error.key,
            todo=error.todo,
        )


def recognise(path: Path) -> bool:
    """Whether a folder is a CALVIN dataset or one split of it; looks at a few names only."""
    try:
        if not path.is_dir():
            return False
        return looks_like_split(path) or any(
            looks_like_split(path / name) for name in ("training", "validation")
        )
    except (OSError, ValueError):
        return False


def open_source(
    path: Path,
    dataset: str | None = None,
    *,
    anchor_keys: Sequence[str] | None = None,
    plain: bool = False,
) -> CalvinDataset:
    """Open a dataset.

    Args:
        path: the dataset's folder, or that of one split.
        dataset: "calvin", one of its usual names, or the folder's own name.
        anchor_keys: other third-person cameras than rgb_static.
        plain: open it even where it has no third-person camera.

    Raises:
        SourceError: it is no such dataset, its ranges are impossible, it holds no frame that can
            be read, or a camera key does not exist.
    """
    found = CalvinDataset(Path(path))
    names = (*_PROFILE.names, found.name)
    if dataset is not None and dataset not in names:
        raise SourceError(
            f"this is a CALVIN dataset, and {dataset!r} is none",
            file=path,
            todo=f"say --dataset {_PROFILE.name} or {found.name}, or leave it away",
        )
    known = {camera.key: camera for camera in _PROFILE.cameras()}
    keys = tuple(dict.fromkeys(anchor_keys or ()))
    if not keys and (not plain or STATIC in {stream.key for stream in found.streams()}):
        keys = (STATIC,)
    found._pictures(keys, "say which are third-person views with --anchor-keys")
    anchors = tuple(_with_depth(known.get(key, Camera(key)), found.sample) for key in keys)
    hand = GRIPPER if GRIPPER in found.sample and GRIPPER not in keys else None
    found.profile = replace(
        _PROFILE,
        anchors=anchors,
        wrist=_with_depth(known[hand], found.sample) if hand else None,
        eef=_PROFILE.eef if ROBOT in found.sample else None,
        gripper=_PROFILE.gripper if ROBOT in found.sample else None,
    )
    return found


def _with_depth(camera: Camera, sample: dict) -> Camera:
    """`camera` without its depth where there is none."""
    shape, dtype = sample.get(camera.depth or "", ((), np.dtype(object)))
    return camera if _is_depth(camera.depth or "", shape, dtype) else replace(camera, depth=None)


def _shards(place: SplitFolder) -> list[Shard]:
    return [
        Shard(place.name, index, place.folder, place.count(index)) for index in range(place.shards)
    ]


def _sample(folder: Path, places: dict[str, SplitFolder]) -> dict:
    """key -> (shape, dtype) of the first frame that can be read."""
    error = None
    for place in places.values():
        for number in place.numbers[:4].tolist():
            try:
                with Npz(place.path(number)) as archive:
                    archive.check()
                    return dict(zip(keys := archive.keys(), map(archive.header, keys), strict=True))
            except SourceError as found:
                error = error or found
    if error is not None:
        raise error
    raise SourceError("holds no frames", file=folder, todo="fetch the dataset again")


def _is_picture(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    return len(shape) == 3 and dtype == np.uint8 and min(shape) > 0


def _is_depth(key: str, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    return len(shape) in (2, 3) and dtype.kind == "f" and key.startswith("depth")


def _intrinsics(fov: float | None, size: tuple[int, int]) -> np.ndarray | None:
    return None if fov is None else intrinsics(fov, size)


def _closed(robot: np.ndarray) -> np.ndarray:
    """[T] in [0, 1], 1 = closed, from the fingers' distance or, without it, what was asked."""
    width, action = robot[:, 6], robot[:, 14]
    if width.any():
        return 1.0 - np.clip(width / _OPEN_WIDTH, 0.0, 1.0)
    return np.clip((1.0 - action) / 2, 0.0, 1.0)
