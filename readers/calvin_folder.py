"""How a split of a CALVIN dataset lies in its folder: one file a frame, and which of them belong
together.

`ep_start_end_ids.npy` tells ranges of frame numbers (both ends included) that were recorded without
a break; a range may be tens of thousands of frames long. A record is a run of consecutive frames
of one range, no longer than RECORD_FRAMES; a longer range is cut into runs of nearly equal length.
Frames that lie in no range are runs too, since who reads the folder by number expects each file to
have every key. A shard is a few records that follow one another, about SHARD_FRAMES frames.
"""

from __future__ import annotations

import os
import re
from array import array
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .errors import SourceError
from .npz import parse_npy, read_regular

RANGES = "ep_start_end_ids.npy"
USUAL_SPLITS = ("training", "validation")
RECORD_FRAMES = 512
SHARD_FRAMES = 2048
_MAX_FRAMES = 100_000_000  # CALVIN's largest split has 1.8 million
_MAX_RANGES_BYTES = 1 << 26
_NAME = re.compile(r"(.*?)(\d{1,17})\.npz")
_USUAL_PREFIX, _USUAL_DIGITS = "episode_", 7


@dataclass(frozen=True)
class Run:
    """Consecutive frame numbers of one range: what a record is made of.

    Attributes:
        start, stop: the first number, and the one behind the last.
        declared: whether they lie in a range, so that every frame must be there.
        numbers: [T] int64, those whose files are there.
    """

    start: int
    stop: int
    declared: bool
    numbers: np.ndarray


class SplitFolder:
    """A split's folder, looked through once.

    Args:
        folder: it.
        name: the split's.

    Attributes:
        prefix, digits: of the frames' file names, as in ("episode_", 7).
        numbers: [N] int64, sorted: the frames that are there.

    Raises:
        SourceError: the ranges are missing, damaged or impossible, or the folder cannot be listed.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self.prefix, self.digits, self.numbers = _frames(folder)
        ranges = _ranges(folder / RANGES)
        self._starts, self._stops, self._declared = _runs(ranges, self.numbers)
        self._shards = _shards(self._stops - self._starts)

    @property
    def shards(self) -> int:
        """How many shards the split has."""
        return len(self._shards) - 1

    def count(self, shard: int) -> int:
        """How many records a shard has."""
        return int(self._shards[shard + 1] - self._shards[shard])

    def run(self, shard: int, index: int) -> Run:
        """The frames of a shard's record."""
        at = int(self._shards[shard]) + index
        start, stop = int(self._starts[at]), int(self._stops[at])
        low, high = np.searchsorted(self.numbers, (start, stop))
        return Run(start, stop, bool(self._declared[at]), self.numbers[low:high])

    def frames(self, shard: int) -> np.ndarray:
        """[N] int64, the frames of a shard that are there."""
        first, last = int(self._shards[shard]), int(self._shards[shard + 1]) - 1
        ends = (self._starts[first], self._stops[last])
        low, high = np.searchsorted(self.numbers, ends)
        return self.numbers[low:high]

    def file_name(self, number: int) -> str:
        """As in episode_0000042.npz."""
        return f"{self.prefix}{number:0{self.digits}d}.npz"

    def path(self, number: int) -> Path:
        """The file of a frame."""
        return self.folder / self.file_name(number)

    @cached_property
    def _prefix(self) -> str:
        return f"{self.folder}{os.sep}{self.prefix}"

    def fast_path(self, number: int) -> str:
        """As `path`, as plain text: a Path costs as much as opening the file."""
        return f"{self._prefix}{number:0{self.digits}d}.npz"

    def is_frame(self, name: str) -> bool:
        """Whether a file of the folder is a frame, by its name."""
        found = _NAME.fullmatch(name)
        return bool(
            found and found[1] == self.prefix and name == self.file_name(int(found[2]))
        )  # fmt: skip


def looks_like_split(folder: Path) -> bool:
    """Whether a folder has ranges or frames; looks at no more than a few names."""
    try:
        if (folder / RANGES).is_file():
            return True
        with os.scandir(folder) as entries:
            for entry, _ in zip(entries, range(64), strict=False):
                if re.fullmatch(_USUAL_PREFIX + r"\d{7,}\.npz", entry.name):
                    return True
    except (OSError, ValueError):
        pass
    return False


def split_folders(folder: Path) -> list[tuple[str, Path]]:
    """(name, folder) of a dataset's splits: training, validation, others by name.

    A folder that is a split itself is the only one.
    """
    if looks_like_split(folder):
        return [(Path(os.path.abspath(folder)).name, folder)]
    usual = [name for name in USUAL_SPLITS if looks_like_split(folder / name)]
    others = []
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    except OSError:
        names = []
    others = [n for n in names if n not in usual and (folder / n / RANGES).is_file()]
    return [(name, folder / name) for name in (*usual, *others)]


def _frames(folder: Path) -> tuple[str, int, np.ndarray]:
    """(prefix, digits, sorted numbers) of the frames' files; one listing, and no stat of a file."""
    groups: dict[str, tuple[array, array]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found = _NAME.fullmatch(entry.name)
                if found and not entry.is_dir(follow_symlinks=False):
                    numbers, widths = groups.setdefault(found[1], (array("q"), array("b")))
                    numbers.append(int(found[2]))
                    widths.append(len(found[2]))
    except OSError as error:
        raise SourceError(
            f"cannot be listed ({error.strerror})", file=folder, todo="check --data-dir"
        ) from None
    if not groups:
        return _USUAL_PREFIX, _USUAL_DIGITS, np.zeros(0, np.int64)
    # Other .npz files may lie there; the frames are the many.
    prefix = max(sorted(groups), key=lambda name: (name == _USUAL_PREFIX, len(groups[name][0])))
    numbers, widths = (np.asarray(values, np.int64) for values in groups[prefix])
    # A number has more digits than the others only where it needs them.
    needed = numbers >= 10 ** (widths - 1)
    fits = {w: (widths == w) | ((widths > w) & needed) for w in np.unique(widths).tolist()}
    digits = max(fits, key=lambda width: (int(fits[width].sum()), -width))
    plain = fits[digits]
    return prefix, digits, np.unique(numbers[plain])


def _ranges(path: Path) -> np.ndarray:
    """[N, 2] int64 (first, last) of ep_start_end_ids.npy, sorted, held against each other."""
    data = read_regular(path, _MAX_RANGES_BYTES)
    where = {"file": path, "todo": "fetch this file again"}
    try:
        table = parse_npy(data)
    except ValueError as error:
        raise SourceError(str(error), **where) from None
    if table.size == 0:
        return np.zeros((0, 2), np.int64)
    if table.dtype.kind not in "iu" or table.ndim != 2 or table.shape[1] != 2:
        raise SourceError(f"holds {table.shape} {table.dtype}, not pairs of frame numbers", **where)
    if int(table.max()) >= 10**17 or int(table.min()) < 0:
        raise SourceError("holds a frame number that is none", **where)
    table = table.astype(np.int64)
    table = table[np.argsort(table[:, 0], kind="stable")]
    first, last = table[:, 0], table[:, 1]
    for wrong, found in (
        (last < first, "holds a range that ends before it begins"),
        (np.append(first[1:] <= last[:-1], False), "holds ranges that overlap"),
    ):
        if wrong.any():
            row = table[int(np.argmax(wrong))]
            raise SourceError(f"{found}, {row[0]} to {row[1]}", **where)
    total = int((last - first + 1).sum(dtype=object))
    if total > _MAX_FRAMES:
        raise SourceError(f"declares {total} frames, more than any dataset has", **where)
    return table


def _runs(ranges: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(starts, stops, declared), each [R], of the records: ranges and what lies between, cut."""
    place = np.searchsorted(ranges[:, 0], numbers, "right") - 1
    inside = np.zeros(len(numbers), bool)
    known = place >= 0
    inside[known] = numbers[known] <= ranges[place[known], 1]
    loose = numbers[~inside]
    if len(loose):
        # A range between two loose frames makes a gap between their numbers.
        breaks = np.flatnonzero(np.diff(loose) != 1) + 1
        first = loose[np.concatenate([[0], breaks])]
        last = loose[np.concatenate([breaks - 1, [len(loose) - 1]])]
        starts, ends = np.append(ranges[:, 0], first), np.append(ranges[:, 1], last)
    else:
        starts, ends = ranges[:, 0], ranges[:, 1]
    declared = np.arange(len(starts)) < len(ranges)
    order = np.argsort(starts, kind="stable")
    starts, lengths, declared = starts[order], (ends - starts + 1)[order], declared[order]
    pieces = -(-lengths // RECORD_FRAMES)
    piece = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start, length, count = (np.repeat(values, pieces) for values in (starts, lengths, pieces))
    begin, end = length * piece // count, length * (piece + 1) // count
    return start + begin, start + end, np.repeat(declared, pieces)


def _shards(lengths: np.ndarray) -> np.ndarray:
    """[S + 1] the number of each shard's first record, and of all records."""
    first, frames = [0], 0
    for index, length in enumerate(lengths.tolist()):
        if frames and frames + length > SHARD_FRAMES:
            first.append(index)
            frames = 0
        frames += length
    return np.asarray([*first, len(lengths)] if len(lengths) else [0], np.int64)
