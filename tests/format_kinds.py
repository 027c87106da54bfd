"""Every kind of dataset that the contract is held against, made of one small recorded corpus.

A new format is a row here: where its maker is, and which of its files holds a record's data.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wristaugment.writers.recorded import recorded_splits

CORPUS = Path(__file__).parent / "fixtures" / "corpus" / "droid_101" / "1.0.1"
SIZE = (24, 32)  # of the new frames: even, since video codecs want that


@dataclass(frozen=True)
class Kind:
    """A kind of dataset.

    Attributes:
        name: as `wristaugment simulate --format` calls it.
        format: the format's name in the table.
        maker: module in writers/ with `create` ("": the corpus itself); options: what it is given.
        piece: finds, in a dataset, one file that holds data of a record (for damage).
        together: whether all episodes lie in that one file, and are lost with it.
        declared: whether a file that is missing can be told from one that never was.
        wrist: the key under which its makers store a recorded wrist view.
    """

    name: str
    format: str
    maker: str
    piece: Callable[[Path], Path]
    wrist: str
    options: dict[str, Any] = field(default_factory=dict)
    together: bool = False
    declared: bool = True

    def create(self, out: Path, *, wrist: bool = False) -> Path:
        """A dataset of this kind below `out`; returns what one gives as --data-dir."""
        if not self.maker:  # the corpus itself
            folder = out / CORPUS.parent.name / CORPUS.name
            return Path(shutil.copytree(CORPUS, folder))
        module = importlib.import_module(f"wristaugment.writers.{self.maker}")
        return module.create(out, recorded_splits(CORPUS), wrist=wrist, **self.options)


def first(pattern: str) -> Callable[[Path], Path]:
    """The first file below a dataset that matches."""

    def find(path: Path) -> Path:
        return path if path.is_file() else sorted(path.rglob(pattern))[0]

    return find


KINDS = (
    Kind("rlds", "rlds", "", first("*train.tfrecord*"), "observation/wrist_image_left"),
    Kind("calvin", "calvin", "calvin_create", first("training/episode_*.npz"), "rgb_gripper"),
    Kind(
        "robomimic",
        "robomimic",
        "robomimic_create",
        first("*.hdf5"),
        "obs/robot0_eye_in_hand_image",
    ),
    Kind(
        "libero",
        "robomimic",
        "libero_create",
        first("*.hdf5"),
        "obs/eye_in_hand_rgb",
        declared=False,
    ),
    Kind(
        "aloha",
        "aloha",
        "aloha_create",
        first("*.hdf5"),
        "observations/images/cam_right_wrist",
        declared=False,
    ),
    Kind("droid-raw", "droid_raw", "droid_raw_create", first("*.mp4"), ""),
    Kind(
        "zarr",
        "replay_buffer",
        "replay_buffer_create",
        first("data/agentview_image/1.*"),
        "data/robot0_eye_in_hand_image",
    ),
    Kind(
        "zarr-v3",
        "replay_buffer",
        "replay_buffer_create",
        first("data/agentview_image/c/1/*/*/*"),
        "data/robot0_eye_in_hand_image",
        {"zarr_format": 3},
    ),
    Kind(
        "zarr-zip",
        "replay_buffer",
        "replay_buffer_create",
        first("*.zip"),
        "data/robot0_eye_in_hand_image",
        {"zipped": True},
    ),
    Kind(
        "lerobot-v2.1",
        "lerobot",
        "lerobot_create",
        first("videos/**/*.mp4"),
        "observation.images.wrist",
        {"version": "v2.1"},
    ),
    Kind(
        "lerobot-v3.0",
        "lerobot",
        "lerobot_create",
        first("videos/**/*.mp4"),
        "observation.images.wrist",
        {"version": "v3.0"},
        together=True,
    ),
)
