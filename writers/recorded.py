"""One recorded episode in no format's spelling: what the makers of new datasets take.

`wristaugment simulate --format F` simulates into RLDS and hands every episode on in this form to
writers/<format>_create.create(out, splits).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..readers.dataset import Split
from ..readers.episode import View
from ..readers.errors import SourceError
from ..readers.rlds import RldsDataset, RldsRecord, open_rlds

WRIST, ANCHORS = "wrist", ("exterior_1", "exterior_2")
HZ = 15  # DROID's rate, and the simulation's


@dataclass(frozen=True)
class Recorded:
    """An episode of T steps with everything that the simulation knows of it.

    Attributes:
        split, index: its place in the corpus.
        views: "wrist", "exterior_1", "exterior_2": frames [T, H, W, 3] uint8, K [3, 3], pose
            [4, 4] or [T, 4, 4] (base-to-camera, OpenCV axes), depth [T, H, W] metres or None.
        eef: [T, 4, 4] base <- panda_link8.
        joints: [T, 7] radians. gripper: [T] in [0, 1], 1 = closed.
        action: [T, 7] link8's velocity (m/s, rad/s of extrinsic "xyz" Euler angles), then the
            gripper's next opening.
        language: the instruction in several wordings.
        hz: steps a second.
    """

    split: str
    index: int
    views: dict[str, View]
    eef: np.ndarray
    joints: np.ndarray
    gripper: np.ndarray
    action: np.ndarray
    language: tuple[str, ...]
    hz: int = HZ

    @property
    def steps(self) -> int:
        """T."""
        return len(self.eef)


class RecordedSplit:
    """The episodes of one split, read one at a time; can be walked several times."""

    def __init__(self, dataset: RldsDataset, split: Split):
        self._dataset, self._split = dataset, split

    def __len__(self) -> int:
        return self._split.records

    def __iter__(self) -> Iterator[Recorded]:
        number = 0
        for shard in self._split.shards:
            for raw in self._dataset.records(shard):
                yield _recorded(self._dataset, raw, self._split.name, number)
                number += 1


def recorded_splits(folder: Path) -> Mapping[str, RecordedSplit]:
    """The splits of a simulated corpus (in DROID's schema, as `wristaugment simulate` makes it).

    Raises:
        SourceError: there is no such corpus, it has another number of side views than the new
            formats take, or a record is damaged (when it is walked).
    """
    dataset = open_rlds(folder, "droid")
    if (views := len(dataset.profile.anchors)) != len(ANCHORS):
        raise SourceError(
            f"has {views} side views, and other formats are made of {len(ANCHORS)}",
            file=dataset.folder,
            todo="simulate a corpus without --views",
        )
    return {split.name: RecordedSplit(dataset, split) for split in dataset.splits}


def _recorded(dataset: RldsDataset, raw: RldsRecord, split: str, number: int) -> Recorded:
    hand = dataset.profile.wrist
    assert hand is not None
    episode = dataset.episode(raw, wrist=hand.key, depth=True)
    index = dataset.index(raw)
    assert episode.wrist is not None and episode.eef_pose is not None
    T = episode.length

    def numbers(key: str) -> np.ndarray:
        return np.asarray(index.numbers(f"steps/{key}"), np.float64).reshape(T, -1)

    wrist = episode.wrist
    wrist.K = episode.wrist_K
    words = (index.blobs(f"steps/{key}")[0].decode() for key in dataset.profile.language)
    return Recorded(
        split,
        number,
        {WRIST: wrist, **dict(zip(ANCHORS, episode.anchors, strict=True))},
        eef=episode.eef_pose,
        joints=numbers("observation/joint_position"),
        gripper=numbers("observation/gripper_position")[:, 0],
        action=numbers("action"),
        language=tuple(words),
    )
