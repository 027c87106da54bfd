"""The augmented copy of raw DROID: an episode's files as they are, one more MP4 and a sidecar."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..readers.dataset import Shard
from ..readers.droid_folder import SIDECAR, STEREO, VIDEOS, read_sidecar, video_name
from ..readers.droid_raw import DroidRaw
from ..readers.errors import SourceError
from .atomic import copy_atomic
from .copy import (
    FLAGS,
    LEFT_OUT,
    DatasetCopy,
    Make,
    ShardResult,
    flags_of,
    listed,
    staged_files,
)
from .recorded import HZ
from .video import VideoWriter, check_size


class Copy(DatasetCopy):
    """Writes the augmented copy of raw episodes; see writers.copy.DatasetCopy.

    The new view is `recordings/MP4/<wrist key>.mp4`, marked with the frames a second of the other
    videos. trajectory.h5 and metadata_*.json stay as they are; what is said of the new frames is in
    wristaugment.json beside them: {"streams": {<wrist key>: {"description", "flags": {...}}}}.
    """

    subset: ClassVar[bool] = True
    dataset: DroidRaw

    def __init__(self, dataset: DroidRaw, out: Path, **options: Any):
        super().__init__(dataset, out, **options)
        check_size(self.size)

    def names(self, wrist_key: str) -> tuple[str, str]:
        short = wrist_key.removeprefix(f"{VIDEOS}/").removesuffix(".mp4")
        if not video_name(short) or short in FLAGS or short.endswith(STEREO):
            raise SourceError(
                "cannot be the name of the new video",
                key=wrist_key,
                todo="choose another --wrist-key of letters, digits, '_', '-' and '.'",
            )
        return short, f"{VIDEOS}/{short}"

    def write_shard(self, shard: Shard, staged: Path, make: Make) -> ShardResult:
        result = ShardResult(shard.split, shard.index)
        raw = next(self.records(shard))
        try:
            steps = self.dataset.steps(raw)
        except SourceError as error:
            result.bad.append(listed(raw, error, LEFT_OUT, 1))
            return result
        folder = staged / shard.path.relative_to(self.dataset.root)
        new = folder / f"{self.stream_key}.mp4"
        for path in self.dataset.shard_files(shard):
            target = folder / path.relative_to(shard.path)
            if target not in (new, folder / SIDECAR):
                copy_atomic(path, target, sync_dir=False)
        made = self.stream(raw, shard, make, steps, result)
        with VideoWriter(new, self.size, self.dataset.rate(raw) or HZ) as video:
            for frame in made.frames:
                video.add(np.asarray(frame))
        streams = read_sidecar(shard.path)
        streams.pop(self.wrist_key, None)
        flags = {name: _plain(values) for name, values in flags_of(made).items()}
        about = {"description": self.description, "synthetic": True, "flags": flags}
        text = json.dumps({"streams": {**streams, self.wrist_key: about}})
        (folder / SIDECAR).write_text(text + "\n", encoding="utf-8")
        result.records = 1
        result.files = staged_files(staged)
        return result

    def metadata(self, results: Sequence[ShardResult]) -> dict[str, bytes]:
        return {}


def _plain(values: np.ndarray) -> list:
    """The values for JSON, which has no NaN: null stands for it."""
    floats = values.dtype.kind == "f"
    return [None if floats and np.isnan(value) else value.item() for value in values]
