"""The augmented copy of a zarr ReplayBuffer: its files as they are, and new arrays in data/."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..readers.dataset import Dataset, RawRecord, Shard
from ..readers.episode import WristStream
from ..readers.errors import SourceError
from ..readers.features import dump_like
from ..readers.files import present_all
from ..readers.replay_buffer import DATA, SYNTHETIC, ReplayBuffer
from ..readers.zarr_array import ArrayMeta, consolidated, need_codecs
from ..readers.zarr_store import FolderStore, ZipStore
from .atomic import sync_files
from .copy import (
    FLAGS,
    DatasetCopy,
    Make,
    ShardResult,
    about_flag,
    flags_of,
    folded,
    staged_files,
)
from .zarr_array import NewArray
from .zarr_sink import FolderSink, ZipSink

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_CONSOLIDATED = (".zmetadata", "zarr.json", f"{DATA}/.zmetadata", f"{DATA}/zarr.json")
# Codecs, of zarr 2 and 3, that give back what was put in.
_LOSSLESS = frozenset(
    ("bytes", "blosc", "zstd", "gzip", "zlib", "lz4", "lzma", "bz2", "shuffle", "crc32", "crc32c")
)
_FLAGS = 1 << 20  # of an array of flags in one chunk


class Copy(DatasetCopy):
    """Writes the augmented copy of a ReplayBuffer; see writers.copy.DatasetCopy.

    The store is one shard, since its arrays must have one length to be loaded at all. Of a folder
    every array is staged and renamed as a whole, of a zip the file; in a folder, metadata that is
    consolidated is patched by `finish`.
    """

    subset: ClassVar[bool] = False
    like_siblings: ClassVar[bool] = True
    gives_back: ClassVar[bool] = True
    dataset: ReplayBuffer

    def __init__(self, dataset: ReplayBuffer, out: Path, **options: Any):
        super().__init__(dataset, out, **options)
        self._is_folder = isinstance(dataset.store, FolderStore)
        if not self._is_folder and dataset.folder.resolve().parent == self.folder.resolve():
            raise SourceError(
                "the copy would lie over the dataset that it copies",
                file=dataset.folder,
                todo="choose another --out",
            )
        there = dataset.store.children(DATA)
        if self.wrist_key in there and not self.replaces:
            raise SourceError(
                "there is something of this name that is no stream of pictures",
                file=dataset.folder,
                key=self.stream_key,
                todo="choose another --wrist-key",
            )
        for name in flags_of(self.black(0)):
            if name in there and not self.replace:
                raise SourceError(
                    "there is an array of this name already",
                    file=dataset.folder,
                    key=f"{DATA}/{name}",
                    todo="augment the store that has none, or say --replace to write it anew in "
                    "the copy",
                )
        if self._like is not None:
            need_codecs(dataset.store, self._like)

    def names(self, wrist_key: str) -> tuple[str, str]:
        short = wrist_key.removeprefix(f"{DATA}/")
        if not _NAME.fullmatch(short) or short in (*FLAGS, "zarr.json"):
            raise SourceError(
                "cannot be the name of the new array",
                key=wrist_key,
                todo="choose another --wrist-key of letters, digits, '_', '-' and '.'",
            )
        return short, f"{DATA}/{short}"

    @property
    def _like(self) -> ArrayMeta | None:
        """The camera whose compressor the new one takes: the first anchor, or any other."""
        anchors = [self.dataset.arrays[camera.key] for camera in self.dataset.profile.anchors]
        found = (*anchors, *self.dataset.pictures())
        return next((meta for meta in found if meta.name != self.stream_key), None)

    def write_shard(self, shard: Shard, staged: Path, make: Make) -> ShardResult:
        result = ShardResult(shard.split, shard.index, len(self.dataset.ends))
        if self._is_folder:
            sink = FolderSink(staged)
            patched = self.patched({})
            present_all(self.dataset.files())
            for key in self.dataset.store.walk():
                if self._kept(key) and key not in patched:
                    sink.take(self.dataset.folder, key)
            self._add(shard, sink, make, result)
            sync_files(staged, list(sink.known))
            folders = [f"{path.name}/" for path in staged.iterdir() if path.name != DATA]
            folders += [f"{DATA}/{path.name}/" for path in (staged / DATA).iterdir()]
            folders = sorted(folder for folder in folders if (staged / folder).is_dir())
            result.files = folded(sink.known, folders)
            return result
        assert isinstance(self.dataset.store, ZipStore)
        with ZipSink(staged / self.dataset.folder.name) as sink:
            patched = self.patched({})
            keep = lambda key: self._kept(key) and key not in patched
            sink.take(self.dataset.store.zip, keep)
            self._add(shard, sink, make, result)
            for key, data in self.patched(result.facts["flags"]).items():
                sink.write(key, data)
        result.files = staged_files(staged)
        return result

    def stored(self, made: Dataset, raw: RawRecord) -> np.ndarray | None:
        assert isinstance(made, ReplayBuffer)
        meta = made.arrays.get(self.stream_key)
        if meta is None or not _LOSSLESS.issuperset(meta.codecs):
            return None  # UMI's JPEG XL, for one
        return np.asarray(made.frames(raw, self.stream_key))

    def metadata(self, results: Sequence[ShardResult]) -> dict[str, bytes]:
        return self.patched(results[0].facts["flags"]) if self._is_folder else {}

    def other_files(self) -> Iterator[Path]:
        return iter(())  # all of the store is its one shard

    def patched(self, flags: dict[str, str]) -> dict[str, bytes]:
        """The files of the source that hold consolidated metadata, with the new arrays.

        Args:
            flags: the names of the new flags, and their types.
        """
        new = {}
        for array in self._arrays(flags):
            new.update(array.entries())
        found = {}
        for key in _CONSOLIDATED:
            data = self.dataset.store.read(key)
            if data is None:
                continue
            text = data.decode()
            tree = json.loads(text)
            if consolidated(tree) is not None:
                folder = key.rpartition("/")[0]
                changed = self._consolidated(tree, new, f"{folder}/" if folder else "")
                found[key] = dump_like(text, tree, changed).encode()
        return found

    def _consolidated(self, tree: dict, new: dict, folder: str) -> dict:
        changed = copy.deepcopy(tree)
        entries = consolidated(changed)
        assert entries is not None
        kept = {k: v for k, v in entries.items() if self._kept(f"{folder}{k}")}
        new = {key.removeprefix(folder): value for key, value in new.items()}
        keys = list(kept)
        if keys == sorted(keys):
            keys = sorted({*kept, *new})
        else:
            # zarr 3 loses entries of one group that do not stand together.
            group = _group(next(iter(new), ""))
            ends = [at for at, key in enumerate(keys, 1) if _group(key) == group]
            at = max(ends, default=len(keys))
            keys[at:at] = [key for key in new if key not in kept]
        entries.clear()
        entries.update({key: new.get(key, kept.get(key)) for key in keys})
        return changed

    def _kept(self, key: str) -> bool:
        """Whether a key of the source is in the copy as it is."""
        if not self.replace:
            return True
        # Arrays in consolidated metadata of zarr 3 have no "/" behind their names.
        names = (self.wrist_key, *flags_of(self.black(0)))
        return not any(f"{key}/".startswith(f"{DATA}/{name}/") for name in names)

    def _arrays(self, flags: dict[str, str]) -> list[NewArray]:
        """The new arrays: the frames, then the flags."""
        length, zarr_format = self.dataset.length, self.dataset.zarr_format
        shape = (length, *self.size, 3)
        about = {"description": self.description, SYNTHETIC: True}
        frames = NewArray(
            self.stream_key, zarr_format, shape, (1, *shape[1:]), np.dtype("u1"), about, self._like
        )
        chunk = (max(1, min(length, _FLAGS)),)
        return [
            frames,
            *(
                NewArray(
                    f"{DATA}/{name}",
                    zarr_format,
                    (length,),
                    chunk,
                    np.dtype(dtype),
                    {"description": about_flag(name, self.wrist_key)},
                    self._like,
                )
                for name, dtype in flags.items()
            ),
        ]

    def _add(
        self, shard: Shard, sink: FolderSink | ZipSink, make: Make, result: ShardResult
    ) -> None:
        """Write the new arrays, an episode at a time."""
        frames = self._arrays({})[0]
        for key, data in frames.metadata().items():
            sink.write(key, data)
        beside: dict[str, list[np.ndarray]] = {}
        start = 0
        for raw in self.records(shard):
            steps = self.dataset.steps(raw)
            made: WristStream = self.stream(raw, shard, make, steps, result)
            for key, data in frames.encode(start, made.frames):
                sink.write(key, data)
            for name, values in flags_of(made).items():
                beside.setdefault(name, []).append(values)
            start += steps
        whole = {name: np.concatenate(values) for name, values in beside.items()}
        result.facts["flags"] = {name: values.dtype.name for name, values in whole.items()}
        for array in self._arrays(result.facts["flags"])[1:]:
            for key, data in array.metadata().items():
                sink.write(key, data)
            for key, data in array.encode(0, whole[array.name.removeprefix(f"{DATA}/")]):
                sink.write(key, data)


def _group(key: str) -> str | None:
    """The group that an entry's array (or group) lies in; None of the root's own."""
    node = re.sub(r"(^|/)\.z[a-z]+$", "", key)
    return node.rpartition("/")[0] if node else None
