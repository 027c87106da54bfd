"""The augmented copy of robomimic's and LIBERO's files: obs/<key>, and next_obs/<key> if any."""

from __future__ import annotations

import h5py
import numpy as np

from ..readers.episode import WristStream
from ..readers.hdf5 import group_at
from ..readers.robomimic import NEXT, RobomimicDataset
from .hdf5 import Extension, write_frames
from .hdf5_copy import Hdf5Copy


class Copy(Hdf5Copy):
    """Writes the augmented copy; pictures are turned as those of the file are (see upside_down)."""

    like_siblings = True
    dataset: RobomimicDataset

    def stream_groups(self, group: h5py.Group) -> list[h5py.Group]:
        following = group_at(group, NEXT)
        groups = super().stream_groups(group)
        return groups if following is None else [*groups, following]

    def flag_groups(self, group: h5py.Group) -> list[h5py.Group]:
        return self.stream_groups(group)

    def write_stream(
        self, extension: Extension, group: h5py.Group, stream: WristStream, replaced: None
    ) -> None:
        shape = stream.frames.shape
        like = self.like(group)
        made = [
            extension.add(
                below, self.wrist_key, shape, np.uint8,
                description=self.description, like=like, chunk=(1, *shape[1:]),
            )
            for below in self.stream_groups(group)
        ]  # fmt: skip
        write_frames(stream.frames, *made, flip=self.dataset.upside_down(extension.file))
