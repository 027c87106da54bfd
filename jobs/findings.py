"""What a comparison of a copy with its source has found so far, whatever the format."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # loaded where it is used: --help is to be quick
    import numpy as np

RUN_AGAIN = "run the same job again into a new --out"
NOT_BLACK = "a frame marked as not made (not valid, nothing expected of it) is not black"
BLACK = 4  # grey levels: a frame marked as not valid may be no brighter, after JPEG and video
_COUNTED = ("records", "frames", "valid_frames", "left_out", "placeholders")


def wrong_confidence(confidence: np.ndarray, valid: np.ndarray) -> str | None:
    """What is wrong with the confidences [T] of a record whose flags are `valid`, or None.

    Raises:
        ValueError: the two differ in length.
    """
    import numpy as np

    if confidence.shape != valid.shape:
        raise ValueError(f"{confidence.shape} confidences of {valid.shape} flags")
    known = confidence[~np.isnan(confidence)]
    if ((known < 0) | (known > 1)).any():
        return "a confidence is no SSIM from 0 to 1"
    # The recipe tells it of every frame that it makes, or of none.
    if len(known) and np.isnan(confidence[valid.astype(bool)]).any():
        return "a valid frame has no confidence, unlike others of its episode"
    return None


def unmade(valid: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """[T] bool: frames that could not be made: not valid, with a confidence of 0 or none."""
    import numpy as np

    return ~np.asarray(valid, bool) & ~(np.asarray(confidence) > 0)


class Findings:
    """Problems and counts, as `verify.verify` returns them.

    Args:
        bar: whether progress is shown.
        damaged: paths below OUT of files of the ledger that are not to be believed.
    """

    def __init__(self, bar: bool, damaged: Collection[str] = ()):
        self.bar, self._damaged = bar, frozenset(damaged)
        self.problems: list[dict] = []
        self.counts = dict.fromkeys(_COUNTED, 0)

    def problem(self, file, found: str, *, record=None, key=None, todo: str = RUN_AGAIN) -> None:
        """Note a problem."""
        # A stray file may have any bytes as its name; messages and JSON have to be text.
        name = os.fsencode(str(file)).decode("utf-8", "backslashreplace")
        row = {"file": name, "record": record, "key": key, "found": found, "todo": todo}
        self.problems.append(row)

    def recorded(self, ledger, split: str, index: int) -> dict | None:
        """What the ledger has recorded of a shard; None where there is nothing to be believed."""
        path = f"{ledger.folder.name}/shards/{ledger.shard_name(split, index)}.json"
        return None if path in self._damaged else ledger.entry(split, index)
