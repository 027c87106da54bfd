"""The plan: everything that decides the bytes of a copy, and nothing else.

Two runs with equal plans make equal trees, so a plan is what tells "continue" from "another job".
It has no absolute path, time, host or number of actors in it. It is plain JSON.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..readers.errors import SourceError
from ..readers.files import file_sha256, present, read_range
from .ledger_read import in_batches

if TYPE_CHECKING:  # `status` compares no plans, and would wait for what these load
    from ..readers.dataset import Dataset, Shard

# Bytes hashed at each end of a shard; a whole one may be gigabytes. They hold the head of the first
# record and the checksum of the last. More would be read 20,000 times, through a network perhaps.
_EDGE = 16 * 1024
# Other files are hashed whole, the smallest first, up to this many bytes in all, and then their
# ends: LeRobot's videos are such files, and there may be terabytes.
_WHOLE = 64 * 2**20
_FILES = 10_000  # other files that are named in a plan one by one
_LOOK = 16  # files of a shard of many whose ends are hashed
_AT_ONCE = 32  # shards looked at at a time
_SIZE = re.compile(r"^(\d+)x(\d+)$")


def edge_sha256(path: Path) -> str:
    """The SHA-256 of a file's size, first and last 16 KiB: cheap, and tells shards apart."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    digest.update(read_range(path, 0, _EDGE))
    if size > _EDGE:
        start = max(_EDGE, size - _EDGE)
        digest.update(read_range(path, start, size - start))
    return digest.hexdigest()


def source_fingerprint(dataset: Dataset, shards: Iterable[Shard]) -> dict:
    """What the source is, by content: {"shards": {name: [bytes, hash]}, "files": {file: hash}}.

    Where there are more than 10,000 other files, "files" has their folders (ending in "/") instead.

    Args:
        dataset: the opened source.
        shards: those that will be read.

    Raises:
        SourceError: a file that the dataset declares is not there.
    """
    root = dataset.root
    # Each waits for the disk or the network two or three times, and hashes without holding Python.
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        marks = in_batches(pool, lambda shard: _shard_mark(dataset, root, shard), shards)
        found = dict(mark for mark in marks if mark)
        others = list(dataset.other_files())
        sizes = in_batches(pool, lambda path: os.stat(path).st_size, others)
        rows = sorted(zip(sizes, others, strict=True))  # the smallest first: metadata, mostly
        ends = itertools.accumulate(size for size, _ in rows)
        whole = [end <= _WHOLE for end in ends]
        marks = in_batches(pool, lambda row: _file_mark(root, *row), zip(rows, whole, strict=True))
        files = dict(marks)
    return {"shards": found, "files": files if len(files) <= _FILES else _by_folder(files)}


def _shard_mark(dataset: Dataset, root: Path, shard: Shard) -> tuple[str, list] | None:
    """(name, [bytes, hash]) of a shard; None where it has no files.

    Raises:
        SourceError: its file is missing.
    """
    paths = dataset.shard_paths(shard)
    try:
        if len(paths) == 1:
            size = os.stat(paths[0]).st_size
            return _name(root, paths[0]), [size, edge_sha256(Path(paths[0]))]
        return (f"{shard.split}/{shard.index}", _many(root, paths)) if paths else None
    except FileNotFoundError as error:
        raise SourceError(
            "this shard is missing",
            file=error.filename,
            todo="fetch it, or leave it out with --split or --episodes",
        ) from error


def _file_mark(root: Path, row: tuple[int, Path], whole: bool) -> tuple[str, str]:
    path = row[1]
    return _name(root, path), file_sha256(present(path)) if whole else edge_sha256(path)


def _by_folder(files: dict[str, str]) -> dict[str, str]:
    """{folder: hash of the names and hashes of its own files}, since a plan is read by people."""
    found: dict[str, Any] = {}
    for name in sorted(files):
        folder = name.rpartition("/")[0] + "/"
        found.setdefault(folder, hashlib.sha256()).update(f"{name} {files[name]}\n".encode())
    return {folder: digest.hexdigest() for folder, digest in found.items()}


def _name(root: Path, path: str | Path) -> str:
    """`path` below `root`, as relative_to, which takes a minute for a few million paths."""
    start = f"{root}{os.sep}"
    name = os.fspath(path)
    return name[len(start) :] if name.startswith(start) else Path(name).relative_to(root).as_posix()


def _many(root: Path, paths: Sequence[str]) -> list:
    """[bytes, hash] of a shard of many files: every name and size, and the ends of a few files."""
    digest, total = hashlib.sha256(), 0
    for path in paths:
        try:
            size = os.stat(path).st_size
        except FileNotFoundError:  # the reader names it, and the rest of the shard can be made
            size = -1
        total += max(size, 0)
        digest.update(f"{_name(root, path)} {size}\n".encode())
    for path in paths[:: max(1, len(paths) // _LOOK)]:
        if os.path.isfile(path):
            digest.update(edge_sha256(Path(path)).encode())
    return [total, digest.hexdigest()]


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from "HxW", as in "128x128".

    Raises:
        SourceError: it is not of that form, or a side is outside 8..2048.
    """
    match = _SIZE.match(text.strip().lower())
    sides = tuple(int(side) for side in match.groups()) if match else ()
    if len(sides) != 2 or not all(8 <= side <= 2048 for side in sides):
        raise SourceError(
            f"{text!r} is not HEIGHTxWIDTH with sides from 8 to 2048",
            key="--wrist-size",
            todo="give it as in 128x128",
        )
    return sides[0], sides[1]


def split_values(values: Sequence[str] | None) -> list[str] | None:
    """["a,b", "c"] -> ["a", "b", "c"]; None and an empty list stay "not given" (None)."""
    names = [name.strip() for value in values or () for name in value.split(",")]
    return [name for name in names if name] or None


def plain(value: object) -> object:
    """`value` as JSON can hold it: dataclasses to dicts, tuples to lists, paths to their names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return value.name
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def make_plan(
    dataset,
    *,
    source: dict,
    splits: Sequence[str],
    shards: int,
    limit: int | None,
    recipe: object,
    weights: dict[str, str],
    device: str,
    wrist_key: str,
    wrist_size: tuple[int, int],
    made_size: tuple[int, int],
    pose: str,
    geometry: str,
    mount: Sequence[Sequence[float]] | None = None,
    min_ssim: float | None = None,
    seed: int,
    replace: bool,
) -> dict:
    """The plan of a job, ready for JSON.

    Args:
        dataset: the opened source.
        source: `source_fingerprint` of it.
        shards: how many there are to make.
        recipe: the recipe (its name and every field of it count).
        weights: file -> SHA-256 of the weights that the recipe uses.
        mount: [4, 4] end effector <- camera that --mount names.
        min_ssim: frames of which less is expected are marked not valid.
        device: "cpu" or "cuda". It counts: their arithmetic rounds differently.
    """
    return {
        "wristaugment": __version__,
        "format": dataset.format,
        "dataset": dataset.name,
        "version": dataset.version,
        "place": dataset.place.as_posix(),
        "profile": plain(dataset.profile),
        "anchor_keys": [camera.key for camera in dataset.profile.anchors],
        "source": source,
        "splits": list(splits),
        "shards": shards,
        "episodes": limit,
        "recipe": plain(recipe),
        "weights": dict(weights),
        "device": device,
        "wrist_key": wrist_key,
        "wrist_size": list(wrist_size),
        "made_size": list(made_size),
        "pose": pose,
        "geometry": geometry,
        "mount": plain(mount),
        "min_ssim": min_ssim,
        "seed": seed,
        "replace": replace,
    }


def differences(stored: object, asked: object, name: str = "") -> list[str]:
    """Where two plans differ, each as "name is X there and Y here", in a fixed order."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        found = []
        for key in sorted(stored.keys() | asked.keys()):
            inner = f"{name}.{key}" if name else str(key)
            found += differences(stored.get(key), asked.get(key), inner)
        return found
    if stored == asked:
        return []
    return [f"{name} is {_short(stored)} there and {_short(asked)} here"]


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 120 else text[:117] + "..."
