"""Raw DROID: a folder an episode, with trajectory.h5, metadata_*.json and recordings/MP4/*.mp4.

An episode is one shard of one record. Frame i of a video is step i of trajectory.h5. Cameras are
known by their serial numbers, which differ from laboratory to laboratory; `ext1`, `ext2` and
`wrist` name an episode's own everywhere a key is asked for.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np

from .dataset import Dataset, RawRecord, Shard, Split, Stream
from .droid_folder import (
    ANCHORS,
    ROLES,
    SIDECAR,
    SPLITS,
    STEREO,
    TRAJECTORY,
    VIDEOS,
    WRIST,
    Metadata,
    files_of,
    find_episodes,
    read_metadata,
    read_sidecar,
    refuse_link,
    video_name,
)
from .droid_folder import recognise as recognise
from .episode import Episode, Record, View
from .errors import SourceError
from .files import present
from .frames import Frames
from .hdf5 import dataset_at, named, opened, unsound
from .pictures import no_picture
from .poses import decode_poses
from .profiles import Camera, Numbers, Profile
from .video import Video, open_video, read_header

NAMES = ("droid_raw", "droid")
_EEF = "observation/robot_state/cartesian_position"
_GRIPPER = "observation/robot_state/gripper_position"
_LARGEST = 64 << 20  # bytes of one table of trajectory.h5
_PIECE = 4 << 20
_LOOK = 5  # frames of a video that tell whether it carries a picture
_OPEN = 6  # videos whose places of frames are kept
_VERSION = re.compile(r"\d+(\.\d+)+")
_LOST = "the episode is left without a wrist view; fetch it again"


def open_source(
    path: Path,
    dataset: str | None = None,
    *,
    anchor_keys: Sequence[str] | None = None,
    plain: bool = False,
) -> DroidRaw:
    """Open a folder of episodes, or one episode's own folder.

    Args:
        path: the folder.
        dataset: droid_raw, droid, or the folder's own name.
        anchor_keys: videos (`recordings/MP4/<serial>`, `<serial>`) or roles (`ext1`) that are the
            third-person cameras; of an episode's, those that it has.
        plain: open it even if no metadata names its cameras.

    Raises:
        SourceError: there is no episode, it is not `dataset`, a link leads out of it, or the
            cameras are unknown.
    """
    return DroidRaw(Path(path), dataset, anchor_keys, plain)


class DroidRaw(Dataset):
    """Opened raw episodes; see readers.dataset.Dataset."""

    format: ClassVar[str] = "droid_raw"

    def __init__(
        self, path: Path, dataset: str | None, anchor_keys: Sequence[str] | None, plain: bool
    ):
        self.folder = path
        real = path.resolve()
        versioned = bool(_VERSION.fullmatch(real.name))
        self.name = real.parent.name if versioned else real.name
        self.version = real.name if versioned else ""
        self.place = Path(*real.parts[-2:]) if versioned else Path(real.name)
        if dataset not in (None, self.name, real.name, *NAMES):
            raise SourceError(
                f"the folder is {self.name!r}, not {dataset!r}",
                file=path,
                todo=f"say --dataset {NAMES[0]}",
            )
        episodes, self._others = find_episodes(path)
        if not episodes:
            raise SourceError("holds no episode", file=path, todo="give a folder above some")
        self.splits = self._find_splits(episodes)
        self._videos: dict[Path, Video] = {}
        self._asked = [self._short(key) for key in anchor_keys or ()]
        self.profile = self._find_profile(plain)

    def _find_splits(self, episodes: list[Path]) -> list[Split]:
        found: dict[str, list[Path]] = {}
        for episode in episodes:
            parts = (self.folder.resolve().name, *episode.relative_to(self.folder).parts)
            found.setdefault(next((s for s in SPLITS if s in parts), "train"), []).append(episode)
        return [
            Split(name, [Shard(name, index, path, 1) for index, path in enumerate(found[name])])
            for name in (*SPLITS, "train")
            if name in found
        ]

    def _find_profile(self, plain: bool) -> Profile:
        """By the first episode that can be read; others may have cameras of other serials."""
        missing = [key for key in self._asked if key not in (*ROLES, *self._stems)]
        if missing:
            raise SourceError(
                f"there is no such video; there are {', '.join(self._stems)}",
                file=self.folder,
                key=missing[0],
                todo="name others with --anchor-keys",
            )
        error, roles = None, {}
        for split in self.splits:
            for shard in split.shards:
                if roles or (error and plain):
                    break
                try:
                    metadata = read_metadata(shard.path)
                    roles = {role: self._camera(metadata, role) for role in metadata.serials}
                except SourceError as found:
                    error = error or found
        anchors = [roles[role] for role in ANCHORS if role in roles]
        if self._asked:
            anchors = [
                roles[key] if key in roles else Camera(f"{VIDEOS}/{key}") for key in self._asked
            ]
        if not anchors and not plain:
            raise error or SourceError(
                "its metadata names no third-person camera",
                file=self.folder,
                todo="name them with --anchor-keys",
            )
        hand = roles.get(WRIST)
        return Profile(
            NAMES[0],
            aliases=NAMES[1:],
            anchors=tuple(anchors),
            wrist=hand if hand and hand.key.rpartition("/")[2] in self._stems else None,
            eef=Numbers(_EEF, 0, 6),
            gripper=Numbers(_GRIPPER),
            language=("current_task",),
        )

    @staticmethod
    def _camera(metadata: Metadata, role: str) -> Camera:
        serial = metadata.serials[role]
        known = f"{role}_cam_extrinsics" if role in metadata.extrinsics else None
        return Camera(f"{VIDEOS}/{serial}", known, f"observation/camera_intrinsics/{serial}_left")

    @cached_property
    def _stems(self) -> dict[str, Path]:
        """The left-view videos of all episodes by name, each with the first file of that name."""
        found: dict[str, Path] = {}
        for split in self.splits:
            for shard in split.shards:
                folder = shard.path / VIDEOS
                paths = sorted(folder.glob("*.mp4")) if folder.is_dir() else []
                for path in paths:
                    if not path.stem.endswith(STEREO):
                        found.setdefault(path.stem, path)
        return dict(sorted(found.items()))

    # ---- records

    def records(self, shard: Shard) -> Iterator[RawRecord]:
        place, error = Record(shard.split, shard.index, 0), None
        try:
            self.linked(shard.path)
            metadata = read_metadata(shard.path)
            self._chosen(shard.path, metadata)
            self._length(shard.path)
        except SourceError as found:
            error = SourceError(
                found.found, file=found.file, record=0, key=found.key, todo=found.todo
            )
        yield RawRecord(place, error, 1 if error else 0)

    def linked(self, folder: Path) -> None:
        """Refuse an episode with a link that leads out of the dataset.

        Raises:
            SourceError: there is one.
        """
        for path in (*folder.glob("*"), *folder.glob("recordings/*"), *files_of(folder)):
            refuse_link(path, self.folder)

    def _chosen(self, folder: Path, metadata: Metadata) -> list[tuple[str | None, Path]]:
        """(role, video) of an episode's anchors.

        Raises:
            SourceError: a video that the metadata names is missing, or none is left.
        """
        roles = {serial: role for role, serial in metadata.serials.items()}
        wanted = [metadata.serials[role] for role in ANCHORS if role in metadata.serials]
        if self._asked:
            wanted = [metadata.serials.get(key, key) for key in self._asked]
            wanted = [name for name in wanted if (folder / VIDEOS / f"{name}.mp4").is_file()]
        if not wanted:
            raise SourceError(
                "names none of the third-person cameras", file=metadata.path, todo=_LOST
            )
        found = [(roles.get(name), folder / VIDEOS / f"{name}.mp4") for name in wanted]
        for _, path in found:
            if not path.is_file():
                raise SourceError(
                    "the metadata names this camera, but there is no such video",
                    file=path,
                    key=f"{VIDEOS}/{path.stem}",
                    todo=_LOST,
                )
        return found

    def _length(self, folder: Path) -> int:
        with opened(folder / TRAJECTORY) as file:
            return len(self._numbers(file, _EEF, None))

    def steps(self, raw: RawRecord) -> int:
        """As trajectory.h5 says; or else the metadata, if a video has as many frames."""
        folder = self.file_of(raw.record)
        try:
            self.linked(folder)
            return self._length(folder)
        except SourceError as error:
            with contextlib.suppress(SourceError):
                self.linked(folder)
                steps = read_metadata(folder).steps
                if steps > 0 and steps <= max(self._frame_counts(raw), default=0):
                    return steps
            raise raw.error or error from None

    def _frame_counts(self, raw: RawRecord) -> Iterator[int]:
        for path in sorted((self.file_of(raw.record) / VIDEOS).glob("*.mp4")):
            with contextlib.suppress(SourceError):
                yield self._video(raw, path).frames

    def _numbers(self, file: h5py.File, key: str, steps: int | None) -> np.ndarray:
        """A table of trajectory.h5 with a row a step.

        Raises:
            SourceError: there is none, it cannot be read, or it has another length.
        """
        where = {"file": file.filename, "record": 0, "key": key}
        with named(_LOST, **where):
            table = dataset_at(file, key)
            if table is None:
                raise SourceError("there is no such table", **where, todo=_LOST)
            found = unsound(table)
            if found or table.nbytes > _LARGEST or table.dtype.kind not in "biuf":
                found = found or f"declares {table.nbytes} bytes of {table.dtype}"
                raise SourceError(found, **where, todo=_LOST)
            values = np.asarray(table[()], np.float64)
        if values.ndim == 0 or (steps is not None and len(values) != steps):
            raise SourceError(f"is {values.shape}, not {steps} steps", **where, todo=_LOST)
        return values

    def _maybe(self, file: h5py.File, key: str, steps: int) -> np.ndarray | None:
        """As `_numbers`, or None where there is no such table."""
        with named(_LOST, file=file.filename, record=0, key=key):
            there = dataset_at(file, key) is not None
        return self._numbers(file, key, steps) if there else None

    def episode(self, raw: RawRecord, *, wrist: str | None = None, depth: bool = False) -> Episode:
        if raw.error is not None:
            raise raw.error
        folder = self.file_of(raw.record)
        metadata = read_metadata(folder)
        with opened(folder / TRAJECTORY) as file:
            places = self._numbers(file, _EEF, None)
            steps = len(places)
            eef = decode_poses(places, "euler_xyz") if places.shape[1:] == (6,) else None
            anchors, dropped = [], {}
            for role, path in self._chosen(folder, metadata):
                view = self._view(raw, file, metadata, role, path, steps)
                if reason := no_picture(_look(view.frames)):
                    dropped[view.key] = reason
                else:
                    anchors.append(view)
            gripper = self._maybe(file, _GRIPPER, steps)
            if gripper is not None:
                gripper = np.clip(gripper.reshape(steps, -1)[:, 0], 0, 1)
            episode = Episode(
                raw.record,
                anchors,
                language=metadata.language,
                eef_pose=eef,
                gripper=gripper,
                dropped=dropped,
            )
            hand = metadata.serials.get(WRIST)
            if hand is not None:
                in_base = self._in_base(file, metadata, WRIST, hand, steps)
                if eef is not None and in_base is not None:
                    episode.wrist_mount = np.linalg.inv(eef[0]) @ in_base[0]
                episode.wrist_K = self._intrinsics(file, hand)
                if episode.wrist_K is not None and anchors:
                    path = folder / VIDEOS / f"{hand}.mp4"
                    known = self._video(raw, path).size if path.is_file() else anchors[0].size
                    episode.wrist_size = known
            if wrist is not None:
                episode.wrist = self._recorded(raw, file, metadata, wrist, steps, episode)
        return episode

    def _recorded(self, raw, file, metadata: Metadata, wrist: str, steps: int, episode) -> View:
        name = self._short(wrist)
        hand = self.profile.wrist
        own = metadata.serials.get(WRIST)
        if name == WRIST or (hand is not None and name == self._short(hand.key)):
            name = own or name  # this episode's, whatever the first one's serial was
        path = self._path(raw, name)
        view = self._view(raw, file, metadata, WRIST if name == own else None, path, steps)
        if reason := no_picture(_look(view.frames)):
            raise self.error(
                raw, f"the wrist stream is {reason}", view.key, "leave this episode out"
            )
        if name == own:
            view.pose = episode.measured_wrist_pose()
        return view

    def _view(self, raw, file, metadata, role: str | None, path: Path, steps: int) -> View:
        key = f"{VIDEOS}/{path.stem}"
        frames = self._frames(raw, path, steps)
        in_base = self._in_base(file, metadata, role, path.stem, steps)
        pose = None if in_base is None else np.linalg.inv(in_base)
        if pose is not None and len(pose) > 1 and np.ptp(pose, axis=0).max() < 1e-9:
            pose = pose[:1]
        return View(
            key,
            frames,  # type: ignore[arg-type]
            K=self._intrinsics(file, path.stem),
            pose=pose if pose is None or len(pose) > 1 else pose[0],
        )

    def _in_base(self, file, metadata, role: str | None, serial: str, steps: int):
        """[1 or T, 4, 4] base <- left camera: as the metadata says of a fixed one, or the table."""
        fixed = metadata.extrinsics.get(role) if role in ANCHORS else None
        values = np.asarray([fixed]) if fixed else None
        if values is None:
            values = self._maybe(file, f"observation/camera_extrinsics/{serial}_left", steps)
        if values is None and role in metadata.extrinsics:
            values = np.asarray([metadata.extrinsics[role]])
        if values is None or values.ndim != 2 or values.shape[1] != 6 or not values.any():
            return None
        return decode_poses(values, "euler_xyz")

    def _intrinsics(self, file, serial: str) -> np.ndarray | None:
        key = f"observation/camera_intrinsics/{serial}_left"
        with named(_LOST, file=file.filename, record=0, key=key):
            if dataset_at(file, key) is None:
                return None
        values = self._numbers(file, key, None)
        K = values[0] if values.ndim == 3 and len(values) else values
        good = K.shape == (3, 3) and np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0
        return K if good else None

    # ---- videos

    def _short(self, key: str) -> str:
        return key.removeprefix(f"{VIDEOS}/").removesuffix(".mp4")

    def _path(self, raw: RawRecord, name: str) -> Path:
        path = self.file_of(raw.record) / VIDEOS / f"{name}.mp4"
        if not video_name(name) or not path.is_file():
            raise self.error(
                raw,
                f"there is no such video; the dataset has {', '.join(self._stems)}",
                f"{VIDEOS}/{name}",
                "name one of them",
            )
        return path

    def _video(self, raw: RawRecord, path: Path) -> Video:
        if path not in self._videos:
            with self._told(raw, path):
                self._videos[path] = open_video(path)
            while len(self._videos) > _OPEN:
                self._videos.pop(next(iter(self._videos)))
        return self._videos[path]

    @contextlib.contextmanager
    def _told(self, raw: RawRecord, path: Path) -> Iterator[None]:
        """Name the record and the key in what is wrong with a video."""
        try:
            yield
        except SourceError as error:
            raise SourceError(
                error.found,
                file=path,
                record=raw.record.index,
                key=f"{VIDEOS}/{path.stem}",
                todo=_LOST,
            ) from None

    def _frames(self, raw: RawRecord, path: Path, steps: int) -> Frames:
        refuse_link(path, self.folder)
        video = self._video(raw, path)
        if video.frames < steps:
            raise SourceError(
                f"holds {video.frames} frames for {steps} steps",
                file=path,
                record=raw.record.index,
                key=f"{VIDEOS}/{path.stem}",
                todo=_LOST,
            )

        def read(indices: np.ndarray) -> np.ndarray:
            with self._told(raw, path):
                return video.read(indices)

        return Frames((steps, *video.size, 3), read)

    def rate(self, raw: RawRecord):
        """The frames a second that an episode's videos are marked with, or None."""
        for path in sorted((self.file_of(raw.record) / VIDEOS).glob("*.mp4")):
            with contextlib.suppress(SourceError):
                refuse_link(path, self.folder)
                if fps := read_header(path).fps:
                    return fps
        return None

    def streams(self) -> list[Stream]:
        found = []
        for stem, path in self._stems.items():
            shape: tuple[Any, Any, Any] = (None, None, 3)
            with contextlib.suppress(SourceError):
                refuse_link(path, self.folder)
                shape = (*read_header(path).size, 3)
            found.append(Stream(f"{VIDEOS}/{stem}", shape, "uint8", "mp4"))
        return found

    def frames(self, raw: RawRecord, key: str) -> Frames:
        name = self._short(key)
        if name in ROLES:
            name = read_metadata(self.file_of(raw.record)).serials.get(name, name)
        return self._frames(raw, self._path(raw, name), self.steps(raw))

    def flags(self, raw: RawRecord, name: str) -> np.ndarray | None:
        """Of the stream that was added last; JSON has no NaN, and null stands for it."""
        found = None
        for row in read_sidecar(self.file_of(raw.record)).values():
            found = row.get("flags", {}).get(name, found)
        if found is None:
            return None
        return np.array([np.nan if value is None else value for value in found])

    # ---- what a copy needs

    def content(self, raw: RawRecord) -> Iterator[tuple[str, object]]:
        folder = self.file_of(raw.record)
        for path in files_of(folder):
            refuse_link(path, self.folder)
            key = path.relative_to(folder).as_posix()
            if key == SIDECAR:
                for name, row in read_sidecar(folder).items():
                    yield f"{SIDECAR}:{name}", json.dumps(row, sort_keys=True)
                continue
            key = key.removesuffix(".mp4")
            with open(present(path), "rb") as file:
                piece = file.read(_PIECE)
                while True:
                    yield key, piece
                    if not (piece := file.read(_PIECE)):
                        break

    def shard_files(self, shard: Shard) -> list[Path]:
        return files_of(shard.path)

    def files(self) -> Iterator[Path]:
        own = (p for split in self.splits for shard in split.shards for p in files_of(shard.path))
        yield from sorted((*own, *self._others))

    def other_files(self) -> Iterator[Path]:
        return iter(self._others)


def _look(frames) -> np.ndarray:
    """A few pictures from start to end."""
    return frames[np.unique(np.linspace(0, len(frames) - 1, _LOOK).astype(int))]
