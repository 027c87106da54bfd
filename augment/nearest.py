"""The baseline `nearest`: the wrist picture of the training frame with the most similar anchors.

What memory alone gives: a generator that is worth its name must beat it. Thumbnails and wrist
pictures lie in files without a name in the temporary folder, so memory does not grow with the
training set.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from typing import BinaryIO, cast

import numpy as np

from ..readers.episode import Episode, Record
from ..readers.errors import SourceError
from .assess import resize_frames

THUMBNAIL = 16  # pixels a side, of each anchor view
_ROWS = 2048  # training frames compared at a time


@dataclass
class _Group:
    """Training frames with the same anchor cameras."""

    width: int  # bytes of a frame's thumbnails
    records: list[Record] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    thumbnails: BinaryIO = field(default_factory=lambda: _nameless())
    wrists: BinaryIO = field(default_factory=lambda: _nameless())


class Neighbours:
    """Training frames to look in.

    Args:
        size: (height, width) that wrist pictures are kept at.
    """

    def __init__(self, size: tuple[int, int]):
        self.size = size
        self.episodes = self.frames = 0
        self._groups: dict[tuple[str, ...], _Group] = {}

    def add(self, episode: Episode) -> None:
        """Take the frames of a training episode that has its recorded wrist view."""
        if episode.wrist is None:
            raise ValueError(f"episode {episode.record} has no recorded wrist view")
        thumbnails = _thumbnails(episode)
        keys = tuple(view.key for view in episode.anchors)
        group = self._groups.setdefault(keys, _Group(thumbnails.shape[1]))
        group.thumbnails.write(thumbnails.tobytes())
        group.wrists.write(resize_frames(episode.wrist.frames, self.size).tobytes())
        group.records.append(episode.record)
        group.lengths.append(len(thumbnails))
        self.episodes += 1
        self.frames += len(thumbnails)

    def find(self, episode: Episode) -> np.ndarray:
        """[T, h, w, 3] uint8: for every frame the wrist picture of the nearest training frame.

        Nearest in the squared difference of thumbnails of all anchor views; the first of equals.
        The episode itself is never looked in.

        Raises:
            SourceError: no other episode has the same anchor views.
        """
        keys = tuple(view.key for view in episode.anchors)
        group = self._groups.get(keys)
        owners, foreign = np.empty(0, int), np.empty(0, bool)
        if group is not None:
            owners = np.repeat(np.arange(len(group.records)), group.lengths)
            foreign = np.array([record != episode.record for record in group.records])[owners]
        if group is None or not foreign.any():
            raise SourceError(
                f"none of {self.episodes} training episodes but itself has these anchor views: "
                f"{', '.join(keys)}",
                record=episode.record.index,
                key="--train-split",
                todo="name a split that has them, or leave 'nearest' out",
            )
        group.thumbnails.flush()
        group.wrists.flush()
        known = np.memmap(group.thumbnails, np.uint8, "r", shape=(len(owners), group.width))
        height, width = self.size
        wrists = np.memmap(group.wrists, np.uint8, "r", shape=(len(owners), height, width, 3))
        # Whole numbers below 2^53: exact in any order, so the same frame is found on any machine.
        asked = _thumbnails(episode).astype(np.float64)
        best = np.full(len(asked), np.inf)
        where = np.zeros(len(asked), int)
        for start in range(0, len(owners), _ROWS):
            rows = known[start : start + _ROWS].astype(np.float64)
            far = (rows**2).sum(axis=1) - 2 * (asked @ rows.T)
            far[:, ~foreign[start : start + _ROWS]] = np.inf
            nearest = far.argmin(axis=1)
            value = far[np.arange(len(asked)), nearest]
            where = np.where(value < best, start + nearest, where)
            best = np.minimum(best, value)
        return np.asarray(wrists[where])


def _nameless() -> BinaryIO:
    """A file that is gone with the last reference to it, however the process ends."""
    return cast(BinaryIO, tempfile.TemporaryFile())


def _thumbnails(episode: Episode) -> np.ndarray:
    """[T, S * 16 * 16 * 3] uint8."""
    side = (THUMBNAIL, THUMBNAIL)
    views = [resize_frames(view.frames, side) for view in episode.anchors]
    return np.stack(views, axis=1).reshape(episode.length, -1)
