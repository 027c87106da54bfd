"""The recipe `constant`: plain grey pictures. For testing data paths; no model, no torch.

The grey level follows from the episode's seed and the step, so a frame that lands in the wrong
episode or at the wrong step shows.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ..readers.episode import Episode, WristStream
from ..readers.frames import Frames

_BLOCK = 16  # frames read at a time


class ConstantAugmenter:
    """Makes plain grey frames in the place of a wrist view; takes the same calls as `Augmenter`.

    Args:
        recipe: anything with `name` and `wrist_size` (height, width).
    """

    def __init__(self, recipe):
        self.recipe = recipe
        self.fingerprint: dict[str, str] = {}

    def __call__(
        self,
        episode: Episode,
        *,
        seed: int,
        pose: str = "auto",
        geometry: str = "auto",
        progress=None,
    ) -> WristStream:
        """T frames of one grey level each, all valid, with no coverage (nothing was projected).

        Every anchor frame is read once, as other recipes do, so that what is damaged shows.
        """
        for view in episode.anchors:
            if isinstance(view.frames, Frames):
                for start in range(0, len(view.frames), _BLOCK):
                    view.frames[start : start + _BLOCK]
        height, width = self.recipe.wrist_size
        first = hashlib.sha256(str(seed).encode()).digest()[0]
        levels = (first + np.arange(episode.length)) % 256
        # One byte a step, seen as a picture: an hour's episode takes no memory either.
        grey = levels.astype(np.uint8)[:, None, None, None]
        frames = np.broadcast_to(grey, (episode.length, height, width, 3))
        return WristStream(
            frames=frames,
            valid=np.ones(episode.length, bool),
            coverage=np.zeros(episode.length, np.float32),
            notes={"pose": "none", "geometry": "none", "generator": "constant grey"},
        )
