"""Every kind of dataset that the contract is held against, made of one small recorded corpus.

A new format is a row here, named as `wristaugment simulate --format` calls it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wristaugment.jobs.simulate import convert

CORPUS = Path(__file__).parent / "fixtures" / "corpus" / "droid_101" / "1.0.1"
SIZE = (24, 32)  # of the new frames: even, since video codecs want that


@dataclass(frozen=True)
class Kind:
    """A kind of dataset.

    Attributes:
        name: as `wristaugment simulate --format` calls it.
        format: the format's name in the table.
        piece: finds, in a dataset, one file that holds data of a record (for damage).
        together: whether all episodes lie in that one file, and are lost with it.
        declared: whether a file that is missing can be told from one that never was.
    """

    name: str
    format: str
    piece: Callable[[Path], Path]
    together: bool = False
    declared: bool = True

    def create(self, out: Path, *, wrist: bool = False) -> Path:
        """A dataset of this kind below `out`; returns what one gives as --data-dir."""
        if self.name == "rlds":  # the corpus itself
            return Path(shutil.copytree(CORPUS, out / CORPUS.parent.name / CORPUS.name))
        return convert(CORPUS, out, self.name, wrist=wrist)


def first(pattern: str) -> Callable[[Path], Path]:
    """The first file below a dataset that matches."""

    def find(path: Path) -> Path:
        return path if path.is_file() else sorted(path.rglob(pattern))[0]

    return find


KINDS = (
    Kind("rlds", "rlds", first("*train.tfrecord*")),
    Kind("calvin", "calvin", first("training/episode_*.npz")),
    Kind("robomimic", "robomimic", first("*.hdf5")),
    Kind("libero", "robomimic", first("*.hdf5"), declared=False),
    Kind("aloha", "aloha", first("*.hdf5"), declared=False),
    Kind("droid-raw", "droid_raw", first("*.mp4")),
    Kind("zarr", "replay_buffer", first("data/agentview_image/1.*")),
    Kind("zarr-v3", "replay_buffer", first("data/agentview_image/c/1/*/*/*")),
    Kind("zarr-zip", "replay_buffer", first("*.zip")),
    Kind("lerobot-v2.1", "lerobot", first("videos/**/*.mp4")),
    Kind("lerobot-v3.0", "lerobot", first("videos/**/*.mp4"), together=True),
)
