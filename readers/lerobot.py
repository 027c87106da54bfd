"""LeRobot datasets, versions 2 and 3: parquet tables, and cameras as mp4 videos or pictures."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .dataset import Dataset, RawRecord, Shard, Split, Stream
from .episode import Episode, Record, View
from .errors import SourceError
from .files import present
from .frames import Frames
from .lerobot_meta import (
    EPISODES,
    EPISODES_DIR,
    FLAGS_DIR,
    INFO,
    STATS,
    TASKS,
    TASKS_TABLE,
    EpisodeRow,
    Feature,
    Meta,
    damage,
    read_lines,
)
from .lerobot_profiles import find_picture, is_depth, resolve
from .lerobot_table import Span, Tables, kept
from .pictures import decode_stream, no_picture
from .profiles import Camera, Numbers, Profile
from .rlds import pose_matrix
from .video import Video, open_video, read_header

GROUP = 16  # episodes of a shard where each has files of its own
FLAG = "wristaugment."  # in front of a flag's column; a column under observation. becomes a state
_OPEN = 8  # videos whose list of frames is kept
_LOOK = 5  # frames that are looked at to tell a placeholder from a camera
_ROWS = 256
_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class LeRobotRecord(RawRecord):
    """An episode of a LeRobot dataset.

    Attributes:
        row: what the metadata says of it.
        span: where its rows are; None where they cannot be read.
    """

    row: EpisodeRow | None = None
    span: Span | None = None

    @property
    def episode(self) -> int:
        """Its number in the dataset, as in the column `episode_index`."""
        return cast(EpisodeRow, self.row).index

    @property
    def length(self) -> int:
        """How many steps it has, or should have."""
        return self.span.count if self.span else cast(EpisodeRow, self.row).length


class LeRobotDataset(Dataset):
    """An opened dataset; `meta` is what it declares."""

    format = "lerobot"

    def __init__(self, folder: Path, meta: Meta, profile: Profile):
        self.folder, self.meta, self.profile = folder, meta, profile
        self.name, self.version = folder.resolve().name, meta.version
        self.place = Path(self.name)
        self._tables = Tables(meta)
        self._videos: OrderedDict[Path, Video] = OrderedDict()
        self._headers: OrderedDict = OrderedDict()
        self._positions: dict[tuple[str, int], np.ndarray] = {}
        self.splits = [self._split(name, where) for name, where in meta.splits.items()]

    def _split(self, name: str, positions: np.ndarray) -> Split:
        shards = []
        for group in self._groups(positions):
            shard = Shard(
                name, len(shards), self.meta.data_file(self.meta.episode(group[0])), len(group)
            )
            self._positions[name, shard.index] = group
            shards.append(shard)
        return Split(name, shards)

    def _groups(self, positions: np.ndarray) -> list[np.ndarray]:
        """Episodes that lie together: of one video (the first camera's), or some that follow."""
        if not len(positions):
            return []
        if self.meta.major == 2:
            return [positions[at : at + GROUP] for at in range(0, len(positions), GROUP)]
        files = self.meta.groups()[positions]
        cuts = np.flatnonzero((np.diff(files, axis=0) != 0).any(axis=1)) + 1
        return np.split(positions, cuts)

    def records(self, shard: Shard) -> Iterator[LeRobotRecord]:
        for number, position in enumerate(self._positions[shard.split, shard.index]):
            row = self.meta.episode(int(position))
            place = Record(shard.split, shard.index, number)
            try:
                span = self._tables.span(row, number)
            except SourceError as error:
                yield LeRobotRecord(place, error, 1, row)
                continue
            error = self._disagreement(row, span, number)
            yield LeRobotRecord(place, error, 1 if error else 0, row, span)

    def _disagreement(self, row: EpisodeRow, span: Span, record: int) -> SourceError | None:
        """What an episode's files have of it other than the metadata says, or None."""
        if span.count != row.length:
            return SourceError(
                f"holds {span.count} rows, where {row.length} are declared",
                file=span.path,
                record=record,
                todo=f"check {EPISODES if self.meta.major == 2 else EPISODES_DIR}",
            )
        try:
            for camera in self.profile.anchors:
                if self.meta.features[camera.key].dtype == "video":
                    self._check_video(row, camera.key, record)
        except SourceError as error:
            return error
        return None

    def _check_video(self, row: EpisodeRow, key: str, record: int) -> None:
        path = self.meta.video_file(row, key)
        try:
            header = kept(self._headers, path, lambda: read_header(path), _OPEN)
        except SourceError as error:
            raise SourceError(
                error.found, file=path, record=record, key=key, todo=error.todo
            ) from None
        start = row.videos[key].start if self.meta.major == 3 else 0.0
        due = round(start * self.meta.fps) + row.length
        if 0 < header.frames < due:
            raise SourceError(
                f"the video holds {header.frames} frames, where {due} are due",
                file=path,
                record=record,
                key=key,
                todo="fetch this file again",
            )

    def file_of(self, record: Record) -> Path:
        positions = self._positions[record.split, record.shard]
        row = self.meta.episode(int(positions[record.index]))
        return self.meta.data_file(row)

    def steps(self, raw: RawRecord) -> int:
        if raw.error is not None:
            raise raw.error
        return _own(raw).length

    def streams(self) -> list[Stream]:
        return [
            Stream(
                feature.key,
                feature.size,
                "uint8",
                feature.info.get("video.codec", "h264") if feature.dtype == "video" else "png",
                depth=is_depth(feature),
            )
            for feature in self.meta.features.values()
            if feature.is_picture
        ]

    def frames(self, raw: RawRecord, key: str) -> Frames:
        record = _own(raw)
        if record.span is None:
            raise cast(SourceError, raw.error)
        feature = self.meta.features.get(key)
        if feature is None or not feature.is_picture:
            found = ", ".join(stream.key for stream in self.streams()) or "none at all"
            raise self.error(
                raw, f"there is no such stream; there are: {found}", key, "name one of them"
            )
        if feature.dtype == "image":
            height, width, _ = feature.size
            shape = (record.length, height, width, 3)
            return Frames(shape, partial(self._stored, record, feature))
        video, numbers = self._timed(record, key)
        if feature.size[:2] != video.size:
            raise self._video_error(
                record,
                key,
                f"the video is {video.size[0]}x{video.size[1]}, where "
                f"{feature.size[0]}x{feature.size[1]} is declared",
            )
        shape = (record.length, *video.size, 3)
        return Frames(shape, partial(self._decoded, record, key, video, numbers))

    def _stored(self, raw: LeRobotRecord, feature: Feature, steps: np.ndarray) -> np.ndarray:
        record, span = raw.record.index, cast(Span, raw.span)
        blobs = self._tables.pictures(span, feature.key, record, steps)
        return decode_stream(
            blobs, (*feature.size[:2], 3), file=span.path, record=record, key=feature.key
        )

    def _decoded(
        self, raw: LeRobotRecord, key: str, video: Video, numbers: np.ndarray, steps: np.ndarray
    ) -> np.ndarray:
        try:
            return video.read(numbers[steps])
        except SourceError as error:
            raise self._video_error(raw, key, error.found) from None

    def _timed(self, raw: LeRobotRecord, key: str) -> tuple[Video, np.ndarray]:
        """A video, and the numbers of an episode's frames in it: those at n / fps, in step."""
        row = cast(EpisodeRow, raw.row)
        path = self.meta.video_file(row, key)
        start = row.videos[key].start if self.meta.major == 3 else 0.0
        try:
            video = kept(self._videos, path, lambda: open_video(path), _OPEN)
            numbers, far = video.at(start + np.arange(raw.length) / self.meta.fps)
        except SourceError as error:
            raise self._video_error(raw, key, error.found) from None
        late = np.flatnonzero((far > 0.5 / self.meta.fps) | (np.diff(numbers, prepend=-1) <= 0))
        if len(late):
            raise self._video_error(
                raw,
                key,
                f"the video has no frame for step {late[0]} of {raw.length} "
                f"(at {start + late[0] / self.meta.fps:.3f} s; it holds {video.frames} frames)",
            )
        return video, numbers

    def _video_error(self, raw: LeRobotRecord, key: str, found: str) -> SourceError:
        path = self.meta.video_file(cast(EpisodeRow, raw.row), key)
        record, todo = raw.record.index, "fetch this file again"
        return SourceError(found, file=path, record=record, key=key, todo=todo)

    def episode(self, raw: RawRecord, *, wrist: str | None = None, depth: bool = False) -> Episode:
        record = _own(raw)
        self.steps(raw)
        anchors: list[View] = []
        dropped: dict[str, str] = {}
        for camera in self.profile.anchors:
            view = self._view(record, camera)
            if isinstance(view, str):
                dropped[camera.key] = view
            else:
                anchors.append(view)
        eef = self._numbers(record, self.profile.eef)
        gripper = self._numbers(record, self.profile.gripper)
        episode = Episode(
            raw.record,
            anchors,
            language=self._language(record),
            eef_pose=None if eef is None else pose_matrix(eef),
            gripper=None if gripper is None else np.clip(gripper[:, 0], 0.0, 1.0),
            dropped=dropped,
        )
        hand = self.profile.wrist
        in_base = self._in_base(record, hand) if hand else None
        if in_base is not None and episode.eef_pose is not None:
            episode.wrist_mount = np.linalg.inv(episode.eef_pose[0]) @ in_base[0]
        if wrist is not None:
            episode.wrist = self._wrist(record, wrist, episode)
        return episode

    def _wrist(self, raw: LeRobotRecord, name: str, episode: Episode) -> View:
        key = find_picture(self.meta, name) or name
        hand = self.profile.wrist
        view = self._view(raw, hand if hand and hand.key == key else Camera(key))
        if isinstance(view, str):
            raise self.error(raw, f"the wrist stream is {view}", key, "leave this episode out")
        if hand and hand.key == key:
            view.pose = episode.measured_wrist_pose()
        return view

    def _view(self, raw: LeRobotRecord, camera: Camera) -> View | str:
        """The stream of a camera, or why it carries no picture."""
        frames = self.frames(raw, camera.key)
        some = np.unique(np.linspace(0, len(frames) - 1, _LOOK).round().astype(int))
        if reason := no_picture(frames[some]):
            return reason
        in_base = self._in_base(raw, camera)
        pose = None
        if in_base is not None:
            pose = np.linalg.inv(in_base)
            pose = pose[0] if (in_base == in_base[0]).all() else pose
        return View(camera.key, cast(np.ndarray, frames), pose=pose)

    def _in_base(self, raw: LeRobotRecord, camera: Camera) -> np.ndarray | None:
        """[T, 4, 4] base <- camera, or None where it is not known (missing, zeros, not finite)."""
        if camera.extrinsics is None:
            return None
        values = self._numbers(raw, Numbers(camera.extrinsics, 0, 6))
        return pose_matrix(values) if values is not None and values.any(axis=1).all() else None

    def _numbers(self, raw: LeRobotRecord, numbers: Numbers | None) -> np.ndarray | None:
        """[T, count] of a profile's numbers, or None where there are none or not finite ones."""
        if numbers is None:
            return None
        table = self._tables.numbers(cast(Span, raw.span), numbers.key, raw.record.index)
        end = numbers.start + numbers.count
        if table.shape[1] < end:
            raise self.error(
                raw, f"holds {table.shape[1]} numbers, not {end}", numbers.key, "check the source"
            )
        part = table[:, numbers.start : end]
        return part if np.isfinite(part).all() else None

    def _language(self, raw: LeRobotRecord) -> str:
        for task in cast(EpisodeRow, raw.row).tasks:
            if task.strip():
                return task.strip()
        if "task_index" in self.meta.features and self._tasks:
            span = cast(Span, raw.span)
            numbers = self._tables.numbers(span, "task_index", raw.record.index)
            return self._tasks.get(int(numbers[0, 0]), "").strip()
        return ""

    @cached_property
    def _tasks(self) -> dict[int, str]:
        path = self.folder / TASKS
        if path.is_file():
            rows = (row for _, row in read_lines(path))
            return {row.get("task_index", -1): str(row.get("task", "")) for row in rows}
        path = self.folder / TASKS_TABLE
        if not path.is_file():
            return {}
        with damage(path):
            table = pq.read_table(present(path))
        words = next((n for n in ("task", "__index_level_0__") if n in table.column_names), None)
        if words is None or "task_index" not in table.column_names:
            return {}
        return dict(zip(table["task_index"].to_pylist(), table[words].to_pylist(), strict=True))

    def flags(self, raw: RawRecord, name: str) -> np.ndarray | None:
        path = self.folder / flags_file(raw.record.split, raw.record.shard)
        if not path.is_file():
            return None
        with damage(path, raw.record.index), pq.ParquetFile(present(path)) as file:
            if FLAG + name not in file.schema_arrow.names:
                return None
            table = file.read(["episode_index", FLAG + name])
        mine = table["episode_index"].to_numpy() == _own(raw).episode
        return table[FLAG + name].to_numpy()[mine]

    def content(self, raw: RawRecord) -> Iterator[tuple[str, object]]:
        record = _own(raw)
        if record.span is None:
            raise cast(SourceError, raw.error)
        with damage(record.span.path, raw.record.index):
            yield "schema", pq.read_schema(present(record.span.path)).serialize().to_pybytes()
        for part in self._tables.parts(record.span, None, raw.record.index, _ROWS):
            # Taken, and no slice: a slice would carry along what lies beside it.
            part = part.take(np.arange(part.num_rows))
            for name in part.column_names:
                column = part.select([name])
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, column.schema) as stream:
                    stream.write_table(column)
                yield name, sink.getvalue().to_pybytes()
        for key, feature in self.meta.features.items():
            if feature.dtype == "video":
                yield from self._encoded(record, key)
        yield from self.meta.said_of(cast(EpisodeRow, record.row))

    def _encoded(self, raw: LeRobotRecord, key: str) -> Iterator[tuple[str, bytes]]:
        """The bytes of an episode's video, or its frames in a video of many episodes."""
        if self.meta.major == 2:
            yield from _bytes(key, self.meta.video_file(cast(EpisodeRow, raw.row), key))
            return
        video, numbers = self._timed(raw, key)
        parts, size = [], 0
        for packet in video.packets(int(numbers[0]), len(numbers)):
            parts.append(packet)
            size += len(packet)
            if size > _MEGABYTE:
                yield key, b"".join(parts)
                parts, size = [], 0
        yield key, b"".join(parts)

    def shared_content(self, shard: Shard) -> Iterator[tuple[str, object]]:
        """What belongs to no episode, with the dataset's first shard."""
        first = next(split.shards[0] for split in self.splits if split.shards)
        if (shard.split, shard.index) != (first.split, first.index):
            return
        for name, value in self.meta.tree.items():
            if name not in ("features", "total_videos", "video_path"):
                yield f"{INFO}: {name}", json.dumps(value)
        for key, node in self.meta.tree["features"].items():
            yield f"{INFO}: {key}", json.dumps(node)
        stats = self.folder / STATS
        if stats.is_file():
            for key, node in json.loads(present(stats).read_text()).items():
                yield f"{STATS}: {key}", json.dumps(node)
        for name in (TASKS, TASKS_TABLE, "meta/subtasks.parquet"):
            if (self.folder / name).is_file():
                yield from _bytes(name, self.folder / name)

    def shard_files(self, shard: Shard) -> list[Path]:
        """None: a copy changes no file with records, it only gets files more."""
        return []


def recognise(path: Path) -> bool:
    """Whether this is a LeRobot dataset: it has meta/info.json with a codebase_version."""
    path = present(Path(path) / INFO)
    try:
        with open(path, "rb") as file:
            return b'"codebase_version"' in file.read(_MEGABYTE)
    except (OSError, ValueError):
        return False


def open_source(
    path: Path,
    dataset: str | None = None,
    *,
    anchor_keys: Sequence[str] | None = None,
    plain: bool = False,
) -> LeRobotDataset:
    """Open a dataset, given as the folder with meta/info.json; see readers/dataset.

    Raises:
        SourceError: its metadata is damaged, `dataset` is another one, or no camera is known.
    """
    meta = Meta(Path(path))
    profile = resolve(meta, Path(path).resolve().name, dataset, anchor_keys, plain)
    return LeRobotDataset(Path(path), meta, profile)


def flags_file(split: str, shard: int) -> str:
    """Where the flags of a shard's new stream are, below the dataset."""
    return f"{FLAGS_DIR}/{split}-{shard:05d}.parquet"


def _own(raw: RawRecord) -> LeRobotRecord:
    assert isinstance(raw, LeRobotRecord) and raw.row is not None
    return raw


def _bytes(key: str, path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with open(present(path), "rb") as file:
            while part := file.read(_MEGABYTE):
                yield key, part
    except FileNotFoundError:
        raise SourceError(
            "there is no such file", file=path, key=key, todo="fetch it again"
        ) from None
