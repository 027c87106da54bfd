"""The statistics that LeRobot keeps of a camera: over all pixels of all frames, per channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

NAMES = ("min", "max", "mean", "std", "count")
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
_LEVELS = np.arange(256)
Stats = dict[str, list]


class ImageStats:
    """Collects frames one at a time; exact, in constant memory."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self._frames = 0
        self._of_last: np.ndarray | None = None

    def add(self, frame: np.ndarray, *, again: bool = False) -> None:
        """Count one frame, [H, W, 3] uint8; `again`: it is the one before, which saves time."""
        if self._of_last is None or not again:
            levels = [np.bincount(frame[..., c].ravel(), minlength=256) for c in range(3)]
            self._of_last = np.stack(levels)
        self._counts += self._of_last
        self._frames += 1

    def result(self) -> Stats:
        """Each statistic as LeRobot nests it: [3][1][1] in [0, 1], and [1] for `count`.

        `count` is the number of frames; `std` divides by the number of pixels; a quantile is the
        lowest level that so many of the pixels do not exceed.
        """
        pixels = self._counts.sum(axis=1)
        share = self._counts / np.maximum(pixels, 1)[:, None]
        mean = share @ _LEVELS
        std = np.sqrt(((_LEVELS - mean[:, None]) ** 2 * share).sum(axis=1))
        seen = self._counts > 0
        values = {
            "min": seen.argmax(axis=1),
            "max": 255 - seen[:, ::-1].argmax(axis=1),
            "mean": mean,
            "std": std,
        }
        upto = self._counts.cumsum(axis=1)
        for name, quantile in QUANTILES.items():
            values[name] = (upto >= quantile * pixels[:, None]).argmax(axis=1)
        out: Stats = {name: [[[float(v) / 255]] for v in found] for name, found in values.items()}
        out["count"] = [self._frames]
        return {name: out[name] for name in (*NAMES, *QUANTILES)}


def aggregate(parts: Sequence[Mapping[str, list]]) -> Stats:
    """The statistics of several episodes together, as LeRobot joins them.

    Means, variances and quantiles are weighted by `count`; for quantiles this is an approximation
    (LeRobot's own), for the others it is exact.
    """
    count = np.array([part["count"][0] for part in parts], np.float64)
    stacked = {name: np.array([part[name] for part in parts]) for name in parts[0]}
    weight = (count / max(count.sum(), 1)).reshape(-1, 1, 1, 1)
    mean = (stacked["mean"] * weight).sum(axis=0)
    spread = stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2
    out = {
        "min": stacked["min"].min(axis=0),
        "max": stacked["max"].max(axis=0),
        "mean": mean,
        "std": np.sqrt((spread * weight).sum(axis=0)),
    }
    for name in stacked:
        if name in QUANTILES:
            out[name] = (stacked[name] * weight).sum(axis=0)
    joined: Stats = {name: value.tolist() for name, value in out.items()}
    joined["count"] = [int(count.sum())]
    return {name: joined[name] for name in parts[0]}
