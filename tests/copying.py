"""What a job does with a copy, without a job: every shard staged and moved, then the metadata."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from wristaugment.readers.episode import WristStream
from wristaugment.writers.copy import DatasetCopy, Make, ShardResult


def write_shards(copy: DatasetCopy, make: Make) -> list[ShardResult]:
    """Stage every shard and move its files to their place."""
    copy.folder.mkdir(parents=True, exist_ok=True)
    return [publish(copy, shard, make) for shard in copy.shards]


def publish(copy: DatasetCopy, shard, make: Make) -> ShardResult:
    """Stage one shard and move its files to their place."""
    with tempfile.TemporaryDirectory(dir=copy.folder.parent) as folder:
        staged = Path(folder)
        result = copy.write_shard(shard, staged, make)
        for name in result.files:
            target = copy.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/") and target.is_dir():
                shutil.rmtree(target)
            os.replace(staged / name, target)
        left = [path for path in staged.rglob("*") if path.is_file()]
        assert not left, f"staged but not listed: {left}"
    return result


def write_copy(copy: DatasetCopy, make: Make) -> list[ShardResult]:
    """The whole copy; returns its shards' results."""
    results = [stored(result) for result in write_shards(copy, make)]
    copy.finish(results)
    return results


def stored(result: ShardResult) -> ShardResult:
    """A result as the ledger gives it back."""
    return ShardResult(**json.loads(json.dumps(asdict(result), sort_keys=True)))


def picture(record, step: int, size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8: a smooth picture that no other record or step has, with its top brighter."""
    height, width = size
    y = np.linspace(1, 0, height)[:, None]
    x = np.linspace(0, 1, width)[None, :]
    seed = 37 * record.index + 11 * record.shard + 5 * step
    red = 60 + 120 * y + 0 * x
    green = 40 + (seed % 140) + 0 * (x + y)
    blue = 30 + 150 * x + 0 * y
    return np.stack([red, green, blue], -1).astype(np.uint8)


def confidences(valid: np.ndarray) -> np.ndarray:
    """[T] float32, another at every step, NaN for a frame that was not made."""
    told = 0.3 + 0.6 * np.arange(len(valid), dtype=np.float32) / max(1, len(valid))
    return np.where(valid, told, np.nan).astype(np.float32)


def maker(dataset, size: tuple[int, int], *, invalid: int | None = None) -> Make:
    """A `make` that draws `picture` for every step.

    Args:
        invalid: a step whose frame counts as not made (black, not valid).
    """

    def make(raw):
        steps = dataset.steps(raw)
        frames = np.stack([picture(raw.record, step, size) for step in range(steps)])
        valid = np.ones(steps, bool)
        if invalid is not None and invalid < steps:
            valid[invalid], frames[invalid] = False, 0
        return WristStream(frames, valid, np.ones(steps, np.float32), confidence=confidences(valid))

    return make
