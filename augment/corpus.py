"""Training corpora as flat arrays on disk, made once from a dataset's episodes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from ..readers.episode import Episode
from ..readers.errors import SourceError


@dataclass
class Arrays:
    """Named arrays with one first axis, memory-mapped from a folder of .npy files.

    `episodes` is how many they were made of, where that is known.
    """

    values: dict[str, np.ndarray]
    episodes: int | None = None

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    def held(self, device: torch.device | str) -> Held:
        """What a training draws from: in a GPU's memory where half of what is free there holds it.

        A small network on a large GPU would else wait for the disk and one core.
        """
        where = torch.device(device)
        tensors = {}
        if where.type == "cuda":
            free = torch.cuda.mem_get_info(where)[0]
            if sum(value.nbytes for value in self.values.values()) < free / 2:
                tensors = {
                    k: torch.as_tensor(np.array(v)).to(where) for k, v in self.values.items()
                }
        return Held(self, where, tensors)


@dataclass
class Held:
    """Arrays as tensors on a device, a few rows at a time. `tensors` are those that lie there."""

    arrays: Arrays
    device: torch.device
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def names(self) -> list[str]:
        """Of all arrays."""
        return list(self.arrays.values)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of all rows."""
        return self.arrays[name].shape

    def rows(self, name: str, index: np.ndarray, part: slice | None = None) -> Tensor:
        """Rows `index` on the device, of each only `part` of its first axis."""
        if name in self.tensors:
            found = self.tensors[name][torch.as_tensor(index, device=self.device)]
            return found if part is None else found[:, part]
        values = self.arrays[name]
        found = values[index] if part is None else np.stack([values[i, part] for i in index])
        return torch.as_tensor(np.ascontiguousarray(found)).to(self.device)


def build_arrays(
    folder: Path,
    episodes: Iterator[Episode],
    rows: Callable[[Episode], dict[str, np.ndarray]],
    total: int,
    identity: dict,
    *,
    say_total: int | None = None,
) -> Arrays:
    """Write `rows(episode)` of every episode below each other, or open what a run before wrote.

    Args:
        rows: an episode -> {name: [n, ...]}, the same n for every name.
        total: rows in all; the arrays are made this long and cut to what came.
        identity: what the arrays depend on (source, settings); arrays of another are made anew.
        say_total: episodes in all, for the progress bar, and for arrays whose number of episodes
            was not yet written down.
    """
    marker = folder / "complete.json"
    if marker.exists():
        found = json.loads(marker.read_text())
        if found["identity"] == identity:
            values = {name: np.load(folder / f"{name}.npy", mmap_mode="r")[: found["rows"]]
                      for name in found["names"]}  # fmt: skip
            return Arrays(values, found.get("episodes", say_total))
        marker.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    maps: dict[str, np.ndarray] = {}
    end = count = 0
    bar = tqdm(
        episodes, desc=f"preparing {folder.name}", total=say_total, unit="episode", disable=None
    )
    for episode in bar:
        values = rows(episode)
        n = len(next(iter(values.values())))
        for name, value in values.items():
            if name not in maps:
                shape = (total, *value.shape[1:])
                maps[name] = open_memmap(folder / f"{name}.npy", "w+", value.dtype, shape)
            elif end + n > len(maps[name]):
                maps[name] = _grow(folder / f"{name}.npy", maps[name], end + n)
            maps[name][end : end + n] = value
        end += n
        count += 1
    if not maps:
        raise SourceError("has no episode to train on", file=folder.parent)
    for value in maps.values():
        value.flush()  # type: ignore[attr-defined]
    staged = marker.with_suffix(".partial")
    said = {"identity": identity, "rows": end, "names": sorted(maps), "episodes": count}
    staged.write_text(json.dumps(said))
    os.replace(staged, marker)
    return Arrays({name: value[:end] for name, value in maps.items()}, count)


def _grow(path: Path, old: np.ndarray, rows: int) -> np.ndarray:
    """The same array with room for at least `rows` rows, half as many again at the least."""
    staged = path.with_suffix(".growing")
    shape = (max(rows, len(old) * 3 // 2), *old.shape[1:])
    new = open_memmap(staged, "w+", old.dtype, shape)
    new[: len(old)] = old
    os.replace(staged, path)
    return new


def training_episodes(dataset, splits: list[str], wrist_key: str, depth: bool) -> Iterator[Episode]:
    """Every readable episode of the splits, with the recorded wrist view."""
    for split in dataset.splits:
        if split.name not in splits:
            continue
        for shard in split.shards:
            for raw in dataset.records(shard):
                if raw.error is not None:
                    raise raw.error
                yield dataset.episode(raw, wrist=wrist_key, depth=depth)


def count_steps(dataset, splits: list[str]) -> tuple[int, int]:
    """(episodes, the steps of the longest first episode of a shard) of the splits."""
    episodes = longest = 0
    for split in dataset.splits:
        if split.name not in splits:
            continue
        episodes += sum(shard.records for shard in split.shards)
        for shard in split.shards:
            raw = next(iter(dataset.records(shard)))
            longest = max(longest, len(dataset.episode(raw).anchors[0].frames))
    return episodes, longest


def require_calibration(episode: Episode) -> None:
    """SourceError unless the episode has what reconstruction is trained with."""
    lacks = [
        what
        for what, there in {
            "camera calibration of every anchor view": all(
                v.K is not None and v.pose is not None for v in episode.anchors
            ),
            "anchor depth": all(v.depth is not None for v in episode.anchors),
            "wrist depth": episode.wrist is not None and episode.wrist.depth is not None,
            "a calibrated hand camera": episode.measured_wrist_pose() is not None,
        }.items()
        if not there
    ]
    if lacks:
        raise SourceError(
            f"has no {' and no '.join(lacks)}",
            record=episode.record.index,
            todo="train on a corpus that has them (`wristaugment simulate --depth` writes one)",
        )
