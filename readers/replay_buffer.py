"""Zarr ReplayBuffers (diffusion_policy, UMI): `data/<key>` time first, `meta/episode_ends`.

A store is a folder or a zip, of zarr's format 2 or 3. All of it is one shard of one split, and a
record is one episode: the steps between two of the cumulative `episode_ends`.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from .dataset import Dataset, RawRecord, Shard, Split, Stream
from .episode import Episode, Record, View
from .errors import RemoteError, SourceError
from .files import present, read_range
from .frames import Frames
from .pictures import no_picture
from .profiles import Camera, Numbers, Profile
from .replay_layouts import LAYOUTS, Layout, channels_last, is_depth, is_picture, poses, size_of
from .zarr_array import V2, Array, ArrayMeta, consolidated, find_array, without_consolidated
from .zarr_store import METADATA, FolderStore, Store, open_store

DATA, META, ENDS = "data", "meta", "meta/episode_ends"
SYNTHETIC = "synthetic"  # an attribute of arrays that are none of the robot's own
TRAIN = "train"
_HANDS, _ARRAY = ("wrist", "hand", "gripper"), (".zarray", "zarr.json")
_LOOK = 5  # frames of a stream that tell whether it carries a picture


@dataclass(frozen=True)
class ReplayRecord(RawRecord):
    """An episode: the steps from `start` to before `stop` of every array."""

    start: int = 0
    stop: int = 0


def recognise(path: Path) -> bool:
    """Whether a folder or a zip is a ReplayBuffer, or a damaged one."""
    try:
        path = Path(path)
        if path.is_dir():
            groups = any((path / name).is_file() for name in (".zgroup", "zarr.json"))
            parts = all((path / name).is_dir() for name in (DATA, META))
            ends = path / ENDS
            return parts and (groups or any((ends / f).is_file() for f in _ARRAY))
        if path.suffix != ".zip" or not path.is_file():
            return False
        if read_range(path, 0, 2) != b"PK":
            return False
        try:
            with zipfile.ZipFile(present(path)) as archive:
                return any(f"{ENDS}/{file}" in archive.NameToInfo for file in _ARRAY)
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            return path.name.endswith(".zarr.zip")  # opening it says what is wrong with it
    except RemoteError:
        raise
    except Exception:  # whatever lies there, it is not one of these
        return False


def open_source(
    path: Path,
    dataset: str | None = None,
    *,
    anchor_keys: Sequence[str] | None = None,
    plain: bool = False,
) -> ReplayBuffer:
    """Open a ReplayBuffer.

    Args:
        path: the folder or the zip.
        dataset: a layout's name or alias (see LAYOUTS), or the store's own name; None looks at
            its keys.
        anchor_keys: the third-person cameras, as `data/img` or `img`, where others are wanted.
        plain: open it even if it has no third-person camera.

    Raises:
        SourceError: it is damaged, declares what is not there, is not `dataset`, or its cameras
            are unknown.
    """
    return ReplayBuffer(Path(path), dataset, anchor_keys, plain)


class ReplayBuffer(Dataset):
    """An opened ReplayBuffer; see readers.dataset.Dataset.

    Attributes:
        store: its files. zarr_format: 2 or 3.
        arrays: of data/, by key as in "data/img", in the order of their names.
        ends: [E] where each episode ends, cumulative.
        layout: the row of LAYOUTS that it follows.
    """

    format: ClassVar[str] = "replay_buffer"

    def __init__(
        self, path: Path, dataset: str | None, anchor_keys: Sequence[str] | None, plain: bool
    ):
        self.folder = path
        self.store: Store = open_store(path)
        self.store.counts  # noqa: B018 (walks the store: links are refused before any is followed)
        real = path.resolve()
        self.name = real.name.removesuffix(".zip").removesuffix(".zarr")
        self.place = Path(real.name) if path.is_dir() else Path(".")
        ends = find_array(self.store, ENDS)
        if ends is None:
            raise self._store_error("there is no such array", ENDS)
        self.zarr_format = ends.zarr_format
        self.version = f"zarr v{ends.zarr_format}"
        self.arrays = self._find_arrays()
        self.ends = self._read_ends(ends)
        self._check_lengths()
        self._readers: dict[str, Array] = {}
        self._scales: dict[str, float] = {}
        self.splits = [Split(TRAIN, [Shard(TRAIN, 0, self.folder, len(self.ends))])]
        self.layout = self._find_layout(dataset)
        self.profile = self._resolve(anchor_keys, plain)

    # ---- what is there

    def _find_arrays(self) -> dict[str, ArrayMeta]:
        found = {}
        for name in self.store.children(DATA):
            if not name.startswith(".") and name != "zarr.json":
                meta = find_array(self.store, f"{DATA}/{name}")
                if meta is not None:
                    found[meta.name] = meta
        return found

    def _read_ends(self, meta: ArrayMeta) -> np.ndarray:
        if len(meta.shape) != 1 or meta.dtype is None or meta.dtype.kind not in "iu":
            raise self._store_error(f"is {meta.dtype} of {meta.shape}, no list of steps", ENDS)
        for row in range(meta.grid[0]):
            if not self.store.has(f"{ENDS}/{meta.chunk(row)}"):
                raise self._store_error(f"chunk {meta.chunk(row)} is missing", ENDS)
        ends = Array(self.store, meta).read(np.arange(meta.shape[0])).astype(np.int64)
        steps = np.diff(ends, prepend=0)
        if (steps <= 0).any():
            record = int(np.argmax(steps <= 0))
            raise SourceError(
                f"the episode ends at {ends[record]}, not behind the one before it",
                file=self.folder,
                record=record,
                key=ENDS,
                todo="episode_ends must grow; mend the store",
            )
        return ends

    def _check_lengths(self) -> None:
        """The loaders insist on one length; and a few small files must not declare terabytes."""
        length = self.length
        for name, meta in self.arrays.items():
            if not meta.shape or meta.shape[0] != length:
                steps = meta.shape[0] if meta.shape else "no"
                raise self._store_error(
                    f"holds {steps} steps, but {ENDS} says that there are {length}", name
                )
        counts, held = self.store.counts, [m for m in self.arrays.values() if m.count]
        found = {meta.name: counts[meta.name] / meta.count for meta in held}
        pictures = [name for name in found if is_picture(self.arrays[name])]
        best = max((found[name] for name in pictures or found), default=1.0)
        if best < 0.5:
            name = max(pictures or found, key=found.__getitem__)
            raise self._store_error(
                f"declares {self.arrays[name].count} chunks, but {self.store.counts[name]} "
                "are there",
                name,
            )

    @property
    def length(self) -> int:
        """The steps of all episodes together."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def pictures(self) -> list[ArrayMeta]:
        """The arrays that hold a picture per step."""
        return [meta for meta in self.arrays.values() if is_picture(meta)]

    # ---- which key is what

    def _find_layout(self, dataset: str | None) -> Layout:
        keys = [name.removeprefix(f"{DATA}/") for name in self.arrays]
        guessed = next(
            layout
            for layout in LAYOUTS
            if all(any(re.fullmatch(mark, key) for key in keys) for mark in layout.marks)
        )
        names = {name: layout for layout in LAYOUTS for name in (layout.name, *layout.aliases)}
        own = (self.name, self.folder.name, self.folder.name.removesuffix(".zip"))
        if dataset is None or dataset in own:
            return guessed
        if dataset not in names:
            raise SourceError(
                f"the store is {self.name!r}, not {dataset!r}",
                file=self.folder,
                todo=f"say --dataset {self.name}, or one of {', '.join(names)}",
            )
        return names[dataset]

    def _resolve(self, anchor_keys: Sequence[str] | None, plain: bool) -> Profile:
        layout, pictures = self.layout, [meta.name for meta in self.pictures()]
        hands = [name for name in pictures if self._is_hand(name)]
        if anchor_keys:
            anchors = [self._camera(key, pictures) for key in dict.fromkeys(anchor_keys)]
        else:
            synthetic = {name for name in pictures if self.arrays[name].attributes.get(SYNTHETIC)}
            anchors = [name for name in pictures if name not in hands and name not in synthetic]
        hands = [name for name in hands if name not in anchors]
        if not anchors and not plain:
            raise self._no_anchor(hands)
        eef = layout.eef if layout.eef and self._eef_rows(layout.eef) else None
        gripper = layout.gripper if layout.gripper and self._key(layout.gripper[0]) else None
        return Profile(
            layout.name,
            aliases=layout.aliases,
            anchors=tuple(Camera(name) for name in anchors),
            wrist=Camera(hands[0]) if hands else None,
            eef=Numbers(f"{DATA}/{eef[0]}", 0, 3 if eef[1] else 6) if eef else None,
            gripper=Numbers(f"{DATA}/{gripper[0]}", inverted=True) if gripper else None,
            language=(),
        )

    def _is_hand(self, name: str) -> bool:
        if self.arrays[name].attributes.get(SYNTHETIC):
            return False
        short = name.removeprefix(f"{DATA}/").lower()
        pattern = self.layout.hands
        return any(word in short for word in _HANDS) or bool(pattern and re.match(pattern, short))

    def _camera(self, key: str, pictures: list[str]) -> str:
        name = key if key in self.arrays else f"{DATA}/{key}"
        if name not in pictures:
            what = "this is no stream of pictures" if name in self.arrays else "no such key"
            raise SourceError(
                f"{what}; the store's pictures are: {', '.join(pictures) or 'none at all'}",
                file=self.folder,
                key=key,
                todo="name others with --anchor-keys",
            )
        return name

    def _no_anchor(self, hands: list[str]) -> SourceError:
        found = f"holds hand cameras alone ({', '.join(hands)}) and no third-person view"
        todo = "a wrist view is made from third-person views; name one with --anchor-keys"
        if not hands:
            found, todo = "holds no pictures", "convert its videos to an image ReplayBuffer first"
        elif self.layout.name == "umi":
            todo = f"UMI records with the hand camera itself, so it lacks none; {todo}"
        return SourceError(found, file=self.folder, todo=todo)

    def _key(self, short: str) -> ArrayMeta | None:
        """An array of numbers by its short name."""
        meta = self.arrays.get(f"{DATA}/{short}")
        return meta if meta and meta.dtype is not None and len(meta.shape) <= 2 else None

    def _eef_rows(self, eef: tuple[str, str]) -> bool:
        """Whether the arrays of an end effector's pose are there, and wide enough."""
        position, rotation = self._key(eef[0]), self._key(eef[1]) if eef[1] else None
        if position is None or len(position.shape) != 2:
            return False
        if not eef[1]:
            return position.shape[1] == 6
        turns = rotation is not None and rotation.shape[1:] in ((3,), (4,))
        return position.shape[1] == 3 and turns

    # ---- records

    def records(self, shard: Shard) -> Iterator[ReplayRecord]:
        start = 0
        for index, stop in enumerate(self.ends.tolist()):
            place = Record(shard.split, shard.index, index)
            lost = self._lost_chunk(start, stop)
            error = None
            if lost is not None:
                name, chunk = lost
                fill = self.arrays[name].tree.get("fill_value")
                error = SourceError(
                    f"chunk {chunk} is missing, and would be read as {fill!r}",
                    file=self.folder,
                    record=index,
                    key=name,
                    todo="fetch the store again; the episode is left without a wrist view",
                )
            yield ReplayRecord(place, error, 1 if error else 0, start, stop)
            start = stop

    @cached_property
    def _incomplete(self) -> list[ArrayMeta]:
        """The arrays that have fewer chunk files than they declare."""
        counts = self.store.counts
        return [meta for meta in self.arrays.values() if counts[meta.name] < meta.count]

    def _lost_chunk(self, start: int, stop: int) -> tuple[str, str] | None:
        """The first missing chunk of an episode.

        Zarr 2 writes every chunk. Zarr 3 leaves out those that hold nothing but the fill value, so
        there a table may lack chunks, and a camera all of an episode's, if it was not there.
        """
        for meta in self._incomplete:
            if meta.zarr_format != V2 and not is_picture(meta):
                continue
            chunks = [meta.chunk(*i) for row in meta.rows(start, stop) for i in meta.row(row)]
            lost = [chunk for chunk in chunks if not self.store.has(f"{meta.name}/{chunk}")]
            if lost and (meta.zarr_format == V2 or len(lost) < len(chunks)):
                return meta.name, lost[0]
        return None

    def steps(self, raw: RawRecord) -> int:
        start, stop = self._span(raw)
        return stop - start

    def _span(self, raw: RawRecord) -> tuple[int, int]:
        index = raw.record.index
        return int(self.ends[index - 1]) if index else 0, int(self.ends[index])

    def episode(self, raw: RawRecord, *, wrist: str | None = None, depth: bool = False) -> Episode:
        if raw.error is not None:
            raise raw.error
        anchors: list[View] = []
        dropped: dict[str, str] = {}
        for camera in self.profile.anchors:
            view = View(camera.key, self._rgb(raw, camera.key))
            reason = no_picture(_look(view.frames))
            if reason:
                dropped[camera.key] = reason
            else:
                anchors.append(view)
        episode = Episode(
            raw.record,
            anchors,
            eef_pose=self._eef(raw),
            gripper=self._gripper(raw),
            dropped=dropped,
        )
        if wrist is not None:
            name = self._stream(wrist)
            episode.wrist = View(name, self._rgb(raw, name))
            if reason := no_picture(_look(episode.wrist.frames)):
                raise self.error(
                    raw, f"the wrist stream is {reason}", name, "leave this episode out"
                )
        return episode

    def _stream(self, key: str) -> str:
        name = key if key in self.arrays else f"{DATA}/{key}"
        if name not in {stream.key for stream in self.streams()}:
            found = ", ".join(stream.key for stream in self.streams()) or "none at all"
            raise SourceError(
                f"there is no such stream; the store's pictures are: {found}",
                file=self.folder,
                key=key,
                todo="name one of them",
            )
        return name

    def _values(self, raw: RawRecord, name: str, steps: np.ndarray | None = None) -> np.ndarray:
        """[N, ...] the numbers of an array at some steps (None: all) of an episode."""
        start, stop = self._span(raw)
        if name not in self._readers:
            self._readers[name] = Array(self.store, self.arrays[name])
        wanted = np.arange(stop - start) if steps is None else steps
        try:
            return self._readers[name].read(start + wanted)
        except SourceError as error:
            raise self.error(raw, error.found, name, error.todo or "check the store") from None

    def _rgb(self, raw: RawRecord, name: str) -> Frames:
        """[T, H, W, 3] uint8 of any stream of pictures, read when they are asked for."""
        meta = self.arrays[name]

        def read(steps: np.ndarray) -> np.ndarray:
            pictures = channels_last(self._values(raw, name, steps), meta)
            if pictures.dtype == np.uint8:
                return pictures
            scaled = np.nan_to_num(pictures.astype(np.float32) * self._scale(raw, name))
            return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)

        return Frames((self.steps(raw), *size_of(meta), 3), read)

    def _scale(self, raw: RawRecord, name: str) -> float:
        """1, or 255 where the first pictures of the store are numbers between 0 and 1."""
        if name not in self._scales:
            chunk = self._readers[name].read(np.arange(min(_LOOK, self.length)))
            self._scales[name] = 255.0 if np.nanmax(chunk, initial=0) <= 1 else 1.0
        return self._scales[name]

    def _eef(self, raw: RawRecord) -> np.ndarray | None:
        if self.profile.eef is None or self.layout.eef is None:
            return None
        position = self._values(raw, self.profile.eef.key).astype(np.float64)
        turn = position[:, 3:6]
        if self.layout.eef[1]:
            turn = self._values(raw, f"{DATA}/{self.layout.eef[1]}").astype(np.float64)
        return poses(position[:, :3], turn)

    def _gripper(self, raw: RawRecord) -> np.ndarray | None:
        if self.profile.gripper is None or self.layout.gripper is None:
            return None
        width = self._values(raw, self.profile.gripper.key).astype(np.float64)
        width = np.abs(width.reshape(len(width), -1)[:, 0])
        return np.clip(1 - width / self.layout.gripper[1], 0, 1)

    # ---- what a copy needs

    def streams(self) -> list[Stream]:
        found = []
        for meta in self.arrays.values():
            depth = is_depth(meta)
            if is_picture(meta) or depth:
                height, width = size_of(meta)
                shape = (height, width, 1 if depth else 3)
                encoding = meta.codecs[-1] if meta.codecs else "raw"
                found.append(Stream(meta.name, shape, str(meta.dtype), encoding, depth))
        return found

    def frames(self, raw: RawRecord, key: str) -> Frames:
        if raw.error is not None:
            raise raw.error
        name = self._stream(key)
        meta = self.arrays[name]
        tail = size_of(meta) if is_depth(meta) else (*size_of(meta), 3)

        def read(steps: np.ndarray) -> np.ndarray:
            return channels_last(self._values(raw, name, steps), meta)

        assert meta.dtype is not None
        return Frames((self.steps(raw), *tail), read, meta.dtype)

    def flags(self, raw: RawRecord, name: str) -> np.ndarray | None:
        meta = self.arrays.get(f"{DATA}/{name.removeprefix(f'{DATA}/')}")
        if meta is None or len(meta.shape) != 1:
            return None
        return self._values(raw, meta.name)

    def content(self, raw: RawRecord) -> Iterator[tuple[str, object]]:
        """Each chunk file, as (its name, its bytes), with the episode that its first step is in."""
        start, stop = self._span(raw)
        for meta in self.arrays.values():
            for row in range(-(-start // meta.chunks[0]), -(-stop // meta.chunks[0])):
                for index in meta.row(row):
                    chunk = meta.chunk(*index)
                    yield meta.name, (chunk, self.store.read(f"{meta.name}/{chunk}"))

    def shared_content(self, shard: Shard) -> Iterator[tuple[str, object]]:
        """Metadata, `meta`, and whatever else is no chunk of an array of data/."""
        for key in self._shared_keys():
            data = self.store.read(key)
            parts = key.split("/")
            if parts[-1] not in (".zmetadata", "zarr.json"):
                yield key, data
                continue
            try:
                tree = json.loads(data or b"")
                listed = consolidated(tree) or {}
                for name, entry in listed.items():
                    yield f"{key}#{name}", json.dumps(entry, sort_keys=True)
                yield key, json.dumps(without_consolidated(tree), sort_keys=True)
            except (ValueError, AttributeError, RecursionError):
                yield key, data

    def _shared_keys(self) -> Iterator[str]:
        for name in self.store.children(""):
            if name != DATA:
                yield from [name] if self.store.has(name) else self.store.walk(f"{name}/")
        for name in self.store.children(DATA):
            folder = f"{DATA}/{name}"
            if folder in self.arrays:
                yield from (f"{folder}/{f}" for f in METADATA if self.store.has(f"{folder}/{f}"))
            else:
                yield from [folder] if self.store.has(folder) else self.store.walk(f"{folder}/")

    def files(self) -> Iterator[Path]:
        if not isinstance(self.store, FolderStore):
            yield self.folder
            return
        for key in self.store.walk():
            yield self.folder / key

    def shard_files(self, shard: Shard) -> list[Path]:
        return list(self.files())

    def other_files(self) -> Iterator[Path]:
        return iter(())

    def _store_error(self, found: str, key: str) -> SourceError:
        return SourceError(found, file=self.folder, key=key, todo="fetch or mend the store")


def _look(frames: np.ndarray | Frames) -> np.ndarray:
    """A few pictures from start to end."""
    return frames[np.unique(np.linspace(0, len(frames) - 1, _LOOK).astype(int))]
