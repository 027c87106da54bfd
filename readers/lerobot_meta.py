"""What a LeRobot dataset declares: info.json, its episodes, and where their files are.

Nothing that a file says is believed before it is checked: path templates may name no file outside
the dataset, and counts are compared with each other before anything is made of them.
"""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import SourceError
from .files import present

INFO, STATS = "meta/info.json", "meta/stats.json"
EPISODES, EPISODES_STATS = "meta/episodes.jsonl", "meta/episodes_stats.jsonl"
EPISODES_DIR, TASKS, TASKS_TABLE = "meta/episodes", "meta/tasks.jsonl", "meta/tasks.parquet"
FLAGS_DIR = "meta/wristaugment"  # where writers/lerobot puts its flags
VIDEO_PATH = {
    2: "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    3: "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
LONGEST = 1 << 20  # steps of one episode; more is no recording
_FIELDS = {
    2: {"episode_chunk", "episode_index", "video_key"},
    3: {"chunk_index", "file_index", "video_key"},
}
_LARGEST_JSON = 1 << 26
_VERSIONS = {"v2.0": 2, "v2.1": 2, "v3.0": 3}
_CHECK = "check the source"
_LABELS = {"height": 0, "h": 0, "width": 1, "w": 1, "channel": 2, "channels": 2, "c": 2, "rgb": 2}


@dataclass(frozen=True)
class Feature:
    """A feature as info.json declares it.

    Attributes:
        key: as in `observation.images.front`.
        dtype: "video", "image", or an array's.
        shape: as declared.
        names: of its dimensions (pictures) or its numbers, in one list; empty where unknown.
        info: what is said of a video.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    info: dict = field(default_factory=dict)

    @property
    def is_picture(self) -> bool:
        """Whether it is a camera stream (or its depth)."""
        return self.dtype in ("video", "image") and len(self.shape) == 3

    @property
    def size(self) -> tuple[int, int, int]:
        """(height, width, channels) of a picture; some datasets declare channels first."""
        order = [_LABELS.get(name.lower(), -1) for name in self.names]
        if sorted(order) != [0, 1, 2]:
            order = [2, 0, 1] if self.shape[0] in (1, 3) and self.shape[2] > 4 else [0, 1, 2]
        sides = dict(zip(order, self.shape, strict=True))
        return sides[0], sides[1], sides[2]


@dataclass(frozen=True)
class Place:
    """Where an episode's frames of one key are: a file, and when they start in it (seconds)."""

    chunk: int
    file: int
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class EpisodeRow:
    """An episode as the metadata declares it.

    Attributes:
        index: its number, as in the column `episode_index`.
        length: its steps. tasks: what it does, in words.
        data: the file of its rows. videos: by key, where they lie together with other episodes'.
    """

    index: int
    length: int
    tasks: tuple[str, ...] = ()
    data: Place | None = None
    videos: dict[str, Place] = field(default_factory=dict)


class Meta:
    """An opened `meta` folder.

    Attributes:
        folder: the dataset's. tree, text: info.json.
        version: as in "v2.1". major: 2 or 3.
        fps: frames a second. chunk: how many files a folder holds.
        features: by key, in order. splits: name -> numbers of its episodes, every one in one.
        indices: [N] the episodes' numbers, increasing.

    Raises:
        SourceError: info.json or the list of episodes is damaged, or contradicts itself.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / INFO
        self.text = read_text(self.path)
        self.tree = _object(self.text, self.path)
        self.version = str(self._get("codebase_version", str, lambda v: v in _VERSIONS))
        self.major = _VERSIONS[self.version]
        self.fps = self._get("fps", (int, float), lambda v: 0 < v <= 1000)
        self.chunk = self._get("chunks_size", int, lambda v: v > 0, 1000)
        self.total_frames = self._get("total_frames", int, lambda v: v >= 0)
        self.total_episodes = self._get("total_episodes", int, lambda v: v >= 0)
        self.features = {f.key: f for f in self._features()}
        self.data_path = self._template("data_path", {"video_key"})
        videos = any(f.dtype == "video" for f in self.features.values())
        self.video_path = VIDEO_PATH[self.major]
        if videos or self.tree.get("video_path") is not None:
            self.video_path = self._template("video_path", set())
        self._check_links()
        self._read: tuple[Path, pa.Table, int] | None = None
        self._load_episodes()
        self.splits = self._splits()

    def episode(self, position: int) -> EpisodeRow:
        """The episode at a position of `indices`."""
        if self.major == 2:
            return self._rows[position]
        columns = self._columns
        place = lambda prefix: Place(
            int(columns[f"{prefix}/chunk_index"][position]),
            int(columns[f"{prefix}/file_index"][position]),
        )
        videos = {}
        for key in self._placed:
            at = place(f"videos/{key}")
            start = float(columns[f"videos/{key}/from_timestamp"][position])
            end = float(columns[f"videos/{key}/to_timestamp"][position])
            videos[key] = Place(at.chunk, at.file, start, end)
        tasks = self._tasks[int(position)].as_py() if self._tasks is not None else ()
        return EpisodeRow(
            int(self.indices[position]),
            int(columns["length"][position]),
            tuple(task for task in tasks or () if isinstance(task, str)),
            place("data"),
            videos,
        )

    def data_file(self, row: EpisodeRow) -> Path:
        """The parquet file with an episode's rows."""
        return self.folder / self.filled(self.data_path, row, row.data, "")

    def video_file(self, row: EpisodeRow, key: str) -> Path:
        """The video with an episode's frames of a key.

        Raises:
            SourceError: the metadata does not say where they are.
        """
        place = row.videos.get(key)
        if self.major == 3 and place is None:
            raise SourceError(
                f"says of no video of {key!r} in which file its frames are",
                file=self.folder / EPISODES_DIR,
                key=key,
                todo=_CHECK,
            )
        return self.folder / self.filled(self.video_path, row, place, key)

    def groups(self) -> np.ndarray:
        """[N, 2] the file (version 3) in which each episode's first camera lies, or its rows."""
        prefix = f"videos/{self._placed[0]}" if self._placed else "data"
        names = (f"{prefix}/chunk_index", f"{prefix}/file_index")
        return np.stack([self._columns[name] for name in names], axis=1)

    def said_of(self, row: EpisodeRow) -> Iterator[tuple[str, object]]:
        """Everything the metadata says of an episode: (column, plain value)."""
        if self.major == 3:
            path, at = self._row_at(row.index)
            group, first = self._group(path, at)
            for name, value in group.slice(at - first, 1).to_pylist()[0].items():
                yield f"{EPISODES_DIR}: {name}", repr(value)
            return
        line = self._spelled[EPISODES].get(row.index)
        yield EPISODES, line
        stats = json.loads(self._spelled[EPISODES_STATS].get(row.index) or "{}").get("stats", {})
        for key, value in stats.items():
            yield f"{EPISODES_STATS}: {key}", json.dumps(value)

    @cached_property
    def _spelled(self) -> dict[str, dict[int, str]]:
        """The lines of the .jsonl files by episode."""
        out = {}
        for name in (EPISODES, EPISODES_STATS):
            path = self.folder / name
            lines = read_text(path).splitlines() if path.is_file() else []
            out[name] = {}
            for number, line in enumerate(lines):
                if line.strip():
                    tree = _object(line, path, f"line {number + 1} ")
                    out[name][tree.get("episode_index")] = line
        return out

    def _row_at(self, index: int) -> tuple[Path, int]:
        """The file of meta/episodes with an episode, and its row there."""
        for path, indices in self._listed:
            found = np.flatnonzero(indices == index)
            if len(found):
                return path, int(found[0])
        raise self.error(f"lists no episode {index}", file=self.folder / EPISODES_DIR)

    def _group(self, path: Path, at: int) -> tuple[pa.Table, int]:
        """The row group with a row, and the group's first row; the last one is kept."""
        if self._read is not None and self._read[0] == path:
            _, group, first = self._read
            if first <= at < first + group.num_rows:
                return group, first
        with damage(path), pq.ParquetFile(present(path)) as file:
            first = number = 0
            while first + file.metadata.row_group(number).num_rows <= at:
                first += file.metadata.row_group(number).num_rows
                number += 1
            group = file.read_row_group(number)
        self._read = (path, group, first)
        return group, first

    def filled(self, template: str, row: EpisodeRow, place: Place | None, key: str) -> str:
        """A path below `folder` from a template; `place` is for version 3."""
        if self.major == 2:
            chunk = row.index // self.chunk
            return template.format(episode_chunk=chunk, episode_index=row.index, video_key=key)
        assert place is not None
        return template.format(chunk_index=place.chunk, file_index=place.file, video_key=key)

    def _get(self, key: str, kind, good, default: Any = None) -> Any:
        value = self.tree.get(key, default)
        if not isinstance(value, kind) or isinstance(value, bool) or not good(value):
            known = f" (known: {', '.join(_VERSIONS)})" if key == "codebase_version" else ""
            raise self.error(f"{_short(value)} cannot be this{known}", key)
        return value

    def error(self, found: str, key: str | None = None, file: Path | None = None) -> SourceError:
        """A SourceError about the metadata."""
        return SourceError(found, file=file or self.path, key=key, todo=_CHECK)

    def _features(self) -> Iterator[Feature]:
        for key, node in self._get("features", dict, bool).items():
            shape = node.get("shape") if isinstance(node, dict) else None
            if (
                not isinstance(shape, list)
                or not isinstance(node.get("dtype"), str)
                or not all(isinstance(side, int) and 0 <= side < 1 << 31 for side in shape)
            ):
                raise self.error("declares no dtype and shape that could be", f"features/{key}")
            if "/" in key or "\\" in key or key in ("", ".", "..") or "\0" in key:
                raise self.error("cannot be the name of a feature", key)
            info = node.get("info") or node.get("video_info") or {}
            yield Feature(
                key,
                node["dtype"],
                tuple(shape),
                tuple(_flat(node.get("names"))),
                info if isinstance(info, dict) else {},
            )

    def _template(self, key: str, without: set[str]) -> str:
        """A path template of info.json, which may use the format's own fields and nothing else."""
        template = self._get(key, str, bool)
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError:
            raise self.error(f"{_short(template)} is no path template", key) from None
        for _, name, form, conversion in parts:
            known = name is None or name in _FIELDS[self.major] - without
            if not known or conversion or not re.fullmatch(r"(0?\d{1,2}d)?", form or ""):
                raise self.error(f"{_short(template)} is no path template", key)
        path = Path(template)
        if path.is_absolute() or ".." in path.parts or "\0" in template or "\\" in template:
            raise self.error(f"{_short(template)} leads out of the dataset", key)
        if key == "video_path" and "{video_key}" not in template:
            raise self.error(f"{_short(template)} does not tell the cameras apart", key)
        return template

    def _check_links(self) -> None:
        """Refuse links that lead out of the dataset, and folders that are links.

        A copy would take in files that do not belong to the dataset, or miss some that do. The
        cache of the Hub, where every file is a link to a blob beside it, is as good as a folder.
        """
        root = self.folder.resolve()
        homes = [root]
        if root.parent.name == "snapshots":
            homes.append(root.parent.parent / "blobs")
        stack = [self.folder]
        while stack:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        target = Path(entry.path).resolve()
                        if entry.is_dir() or not any(home in target.parents for home in homes):
                            raise SourceError(
                                "is a link to a folder, or to a file outside the dataset",
                                file=entry.path,
                                todo="put the file itself here (cp -rL makes such a copy)",
                            )
                    elif entry.is_dir():
                        stack.append(Path(entry.path))

    def _load_episodes(self) -> None:
        if self.major == 2:
            self._rows = sorted(self._lines(), key=lambda row: row.index)
            self.indices = np.array([row.index for row in self._rows], np.int64)
        else:
            self._columns, self._tasks, self._placed = self._tables()
            self.indices = self._columns["episode_index"]
        where = self.folder / (EPISODES if self.major == 2 else EPISODES_DIR)
        if len(self.indices) != self.total_episodes:
            raise self.error(
                f"lists {len(self.indices)} episodes, but info.json declares {self.total_episodes}",
                file=where,
            )
        if (np.diff(self.indices) == 0).any() or (self.indices < 0).any():  # they are sorted
            raise self.error("lists an episode twice, or one with a negative number", file=where)

    def _lines(self) -> Iterator[EpisodeRow]:
        path = self.folder / EPISODES
        for number, row in read_lines(path):
            index, length = row.get("episode_index"), row.get("length")
            if not (_count(index) and _count(length)):
                raise self.error(f"line {number + 1} is no episode", file=path)
            assert index is not None and length is not None
            tasks = row.get("tasks") or ()
            words = tasks if isinstance(tasks, list) else (tasks,)
            yield EpisodeRow(index, length, tuple(t for t in words if isinstance(t, str)))

    def _tables(self) -> tuple[dict[str, np.ndarray], pa.ChunkedArray | None, list[str]]:
        """The columns of meta/episodes that say where episodes are, sorted by episode."""
        keys = [f.key for f in self.features.values() if f.dtype == "video"]
        want = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        parts, tasks, rows = [], [], 0
        self._listed: list[tuple[Path, np.ndarray]] = []
        for path in self.episode_files():
            with damage(path), pq.ParquetFile(present(path)) as file:
                rows += file.metadata.num_rows
                if rows > self.total_episodes:
                    raise self.error(
                        f"lists {rows} episodes or more, but info.json declares "
                        f"{self.total_episodes}",
                        file=path,
                    )
                names = file.schema_arrow.names
                for name in want:
                    if name not in names:
                        raise self.error("there is no such column", name, path)
                video = [f"videos/{key}/{name}" for key in keys for name in _WHERE]
                table = file.read([name for name in (*want, *video, "tasks") if name in names])
            if "tasks" in table.column_names:
                tasks.append(table.select(["tasks"]))
                table = table.drop_columns(["tasks"])
            self._listed.append((path, table["episode_index"].to_numpy()))
            parts.append(table)
        if not parts:
            raise self.error("there are no episodes", file=self.folder / EPISODES_DIR)
        table = pa.concat_tables(parts, promote_options="default")
        columns = {}
        for name in table.column_names:
            if table[name].null_count and not name.startswith("videos/"):
                raise self.error("holds no number for some episodes", name, self.path)
            kind = np.float64 if name.endswith("_timestamp") else np.int64
            filled = table[name].fill_null(-1) if table[name].null_count else table[name]
            columns[name] = filled.to_numpy().astype(kind)
        for name, values in columns.items():
            if len(values) and values.min() < 0 and not name.startswith("videos/"):
                raise self.error("holds a negative number", name, self.folder / EPISODES_DIR)
        order = np.argsort(columns["episode_index"], kind="stable")
        placed = [key for key in keys if all(f"videos/{key}/{name}" in columns for name in _WHERE)]
        said = None
        if tasks and sum(map(len, tasks)) == len(order):
            # As Arrow has them: a million lists of words would be a quarter of a gigabyte.
            with damage(self.folder / EPISODES_DIR):
                said = pa.concat_tables(tasks, promote_options="permissive")["tasks"].take(order)
        return {name: values[order] for name, values in columns.items()}, said, placed

    def episode_files(self) -> list[Path]:
        """The files of meta/episodes (version 3), in order."""
        return sorted((self.folder / EPISODES_DIR).glob("*/*.parquet"))

    def _splits(self) -> dict[str, np.ndarray]:
        """Positions in `indices` by split; what no split claims is in one called "rest"."""
        declared = self.tree.get("splits") or {
            "train": f"0:{int(self.indices.max(initial=-1)) + 1}"
        }
        left = np.ones(len(self.indices), bool)
        out = {}
        for name, span in declared.items() if isinstance(declared, dict) else ():
            found = re.fullmatch(r"(\d{1,12}):(\d{1,12})", span) if isinstance(span, str) else None
            if not found or not re.fullmatch(r"[\w.\-]+", name):
                raise self.error(f"{name}: {_short(span)} is no split", "splits")
            low, high = map(int, found.groups())
            mine = (self.indices >= low) & (self.indices < high) & left
            left &= ~mine
            out[name] = np.flatnonzero(mine)
        if left.any():
            out["rest" if "rest" not in out else "rest_of_all"] = np.flatnonzero(left)
        return out


_WHERE = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


class damage:
    """What pyarrow says of a damaged file as a SourceError."""

    def __init__(self, path: Path, record: int | None = None):
        self._path, self._record = path, record

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, SourceError) or error is None:
            return
        where = {"file": self._path, "record": self._record, "todo": "fetch this file again"}
        if isinstance(error, FileNotFoundError):
            raise SourceError("there is no such file", **where) from None
        unnumbered = type(error) is OSError and error.errno is None  # pyarrow's, not the disk's
        if unnumbered or isinstance(error, pa.ArrowException):
            what = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise SourceError(f"cannot be read ({what})", **where) from None


def read_text(path: Path) -> str:
    """A metadata file.

    Raises:
        SourceError: it is not there, is no text, or is far too large.
    """
    present(path)
    try:
        if path.stat().st_size > _LARGEST_JSON and path.name == Path(INFO).name:
            raise SourceError("is far too large", file=path, todo=_CHECK)
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SourceError(
            f"cannot be read ({reason})", file=path, todo="restore it from the source"
        ) from None


def read_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """(number from 0, object) of every line of a .jsonl file.

    Raises:
        SourceError: a line is no JSON object.
    """
    for number, line in enumerate(read_text(path).splitlines()):
        if line.strip():
            yield number, _object(line, path, f"line {number + 1} ")


def _object(text: str, path: Path, what: str = "") -> dict:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        raise SourceError(f"{what}is not JSON ({reason})", file=path, todo=_CHECK) from None
    if not isinstance(tree, dict):
        raise SourceError(f"{what}holds no JSON object", file=path, todo=_CHECK)
    return tree


def _flat(names) -> Sequence[str]:
    """Names as one list: info.json has lists, or lists in a dict, as in {"axes": ["x", "y"]}."""
    if isinstance(names, dict):
        return [name for part in names.values() for name in _flat(part)]
    return [str(name) for name in names] if isinstance(names, list) else []


def _count(value) -> bool:
    return type(value) is int and 0 <= value < 1 << 40


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
