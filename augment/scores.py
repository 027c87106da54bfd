"""What is measured of a way: every metric, an episode's score, and the summary over episodes.

An episode gives one number for each metric; the summary is their mean with an interval over
episodes. Those of `POOLED` alone are figures of all episodes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from scipy.stats import spearmanr

from . import assess
from .confidence import best_half

COPY = "copy"  # the name under which an existing augmented copy is scored
NO_WEIGHTS = "no weights"
CLIP = 16  # frames of a clip of FVD
LEAST_CLIP = 10  # an episode of fewer frames than a clip is one as it is, if it has so many
FVD_DRAWS = 100
RANK_DRAWS = 200
POOLED = ("fvd", "confidence_rank", "confidence_best_half")  # of all episodes at once


@dataclass(frozen=True)
class Metric:
    """One measure.

    Attributes:
        label: its heading. digits: decimals that it is shown with.
        better: 1 where more is better, -1 where less is, 0 where neither.
        what: what it says and in which unit.
    """

    label: str
    digits: int
    better: int
    what: str


METRICS = {
    "psnr": Metric(
        "PSNR dB", 2, 1, f"dB, per frame, at most {assess.PSNR_CAP:g}, mean over frames"
    ),
    "ssim": Metric("SSIM", 3, 1, "Gaussian window of sigma 1.5 over 11 pixels, mean over frames"),
    "lpips": Metric("LPIPS", 3, -1, "LPIPS 0.1, mean over frames; the backbone is under weights"),
    "fvd": Metric(
        "FVD",
        1,
        -1,
        f"Frechet distance of I3D features of clips of {CLIP} frames (an episode of {LEAST_CLIP} "
        f"to {CLIP - 1} is one clip), over all clips; few clips make it larger. Interval: 1.96 "
        f"standard deviations of {FVD_DRAWS} bootstrap draws of episodes, about the figure",
    ),
    "flicker": Metric(
        "flicker", 1, -1, "mean squared error of the differences of frames, in squared 8-bit levels"
    ),
    "seam": Metric(
        "seam",
        2,
        -1,
        "flicker where the generator's clips meet over flicker within them: 1 is no seam",
    ),
    "sharpness": Metric(
        "sharpness", 2, 0, "variance of the Laplacian over the truth's: below 1 is blurrier"
    ),
    "pose_rotation_deg": Metric(
        "rotation deg", 2, -1, "median over frames of the turn from the wrist pose of the dataset"
    ),
    "pose_translation_cm": Metric(
        "translation cm",
        2,
        -1,
        "median over frames of the distance from it, once the scale is aligned: about the first "
        "anchor, or by a similarity of the whole path where the dataset has no pose of the anchor",
    ),
    "pose_scale": Metric("scale", 3, 0, "the scale that the path was aligned with"),
    "depth_error": Metric(
        "depth error",
        3,
        -1,
        "|depth - recorded| / recorded over all anchor pixels, the scale aligned by medians",
    ),
    "coverage": Metric("coverage", 2, 0, "share of the frame that the condition map saw"),
    "invalid": Metric("not made", 2, -1, "share of frames that are marked as not made well"),
    "below": Metric(
        "below", 2, 0, "share of frames whose expected SSIM is below the threshold of the weights"
    ),
    "confidence_rank": Metric(
        "rank", 2, 1, "Spearman correlation of the expected and the true SSIM over all frames"
    ),
    "confidence_best_half": Metric(
        "best half dB",
        2,
        1,
        "mean PSNR of the half of all frames that is expected to be best, less that of all",
    ),
    "seconds_per_frame": Metric("s/frame", 3, 0, "wall seconds, all stages that the way needs"),
}
GENERAL = {
    "interval": "95% percentile bootstrap of the mean over episodes, the same draws for every way",
    "ahead": "the first way's figure less this way's, episode by episode",
    "truth": "the recorded view brought to the generated size by area average",
    "null": "the dataset or the way does not have what it is measured from",
}


@dataclass
class Score:
    """One way on one episode.

    Attributes:
        psnr, ssim: [T].
        values: the episode's number of the other metrics by their key; NaN where unknown.
        invalid: frames that are marked as not made well.
        clips: I3D features [N, 400] of the made clips and of the recorded ones, or None.
        confidence: [T] the SSIM that was expected, NaN where it is not known, or None.
    """

    psnr: np.ndarray
    ssim: np.ndarray
    values: dict[str, float] = field(default_factory=dict)
    invalid: int = 0
    clips: tuple[np.ndarray, np.ndarray] | None = None
    confidence: np.ndarray | None = None

    def number(self, metric: str) -> float:
        """The episode's number; NaN where unknown, and for `POOLED`, of which it has none."""
        if metric in ("psnr", "ssim"):
            return float(getattr(self, metric).mean())
        return self.values.get(metric, float("nan"))

    def as_dict(self) -> dict[str, Any]:
        """Its numbers, for JSON (null where unknown); no seconds, so that runs can be compared."""
        told = [metric for metric in METRICS if metric not in (*POOLED, "seconds_per_frame")]
        numbers = {metric: self.number(metric) for metric in told}
        said: dict[str, Any] = {k: v if np.isfinite(v) else None for k, v in numbers.items()}
        if self.confidence is not None:
            known = np.isfinite(self.confidence)
            mean = float(self.confidence[known].mean()) if known.any() else None
            frames = [
                round(float(c), 4) if k else None
                for c, k in zip(self.confidence, known, strict=True)
            ]
            said |= {"confidence": mean, "confidence_by_frame": frames}
        return {**said, "invalid_frames": self.invalid}


def summarise(
    names: Sequence[str],
    scored: Sequence[Mapping[str, Score]],
    *,
    seed: int,
    missing: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """By name and metric: {"mean", "low", "high"}, `NO_WEIGHTS`, or None where unknown.

    Args:
        scored: one entry an episode, each with a score for every name.
        seed: of the bootstrap's draws.
        missing: metrics whose weights are not there.
    """
    missing = missing or {}
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        row: dict[str, Any] = {}
        for metric in METRICS:
            if metric in missing:
                row[metric] = NO_WEIGHTS
            elif metric == "fvd":
                row[metric] = fvd([scores[name].clips for scores in scored], seed=seed)
            elif metric == "confidence_rank":
                row[metric] = over_frames([s[name] for s in scored], _rank, seed=seed)
            elif metric == "confidence_best_half":
                row[metric] = over_frames([s[name] for s in scored], _best_half, seed=seed)
            else:
                row[metric] = _interval([s[name].number(metric) for s in scored], seed)
        if name != names[0]:
            for metric in ("psnr", "ssim"):
                gaps = [s[names[0]].number(metric) - s[name].number(metric) for s in scored]
                row[f"{metric}_ahead"] = _interval(gaps, seed)
        table[name] = row
    return table


def _interval(values: Sequence[float], seed: int) -> dict[str, float] | None:
    found = assess.bootstrap(values, seed=seed)
    return found.as_dict() if np.isfinite(found.mean) else None


def fvd(
    clips: Sequence[tuple[np.ndarray, np.ndarray] | None], *, seed: int
) -> dict[str, float] | None:
    """Frechet video distance over all clips with its interval, or None with fewer than two clips.

    A draw that repeats episodes has fewer clips of its own and so a larger distance; percentiles
    of draws need not hold the figure. Their standard deviation is taken about the figure.

    Args:
        clips: by episode: features of made and of recorded clips, both [N, D], or None.
    """
    there = [pair for pair in clips if pair is not None and len(pair[0])]
    if sum(len(made) for made, _ in there) < 2:
        return None

    def distance(picks: Sequence[int] | np.ndarray) -> float:
        made, truth = (np.concatenate([there[i][side] for i in picks]) for side in (0, 1))
        return assess.frechet_distance(made, truth)

    mean = distance(range(len(there)))
    random = np.random.default_rng(seed)
    draws = random.integers(0, len(there), size=(FVD_DRAWS, len(there)))
    half = 1.96 * float(np.std([distance(d) for d in draws])) if len(there) > 1 else 0.0
    return {"mean": mean, "low": max(0.0, mean - half), "high": mean + half}


def _rank(expected: np.ndarray, ssim: np.ndarray, psnr: np.ndarray) -> float:
    if len(expected) < 3 or np.ptp(expected) == 0 or np.ptp(ssim) == 0:
        return float("nan")
    return cast(Any, spearmanr(expected, ssim)).statistic


def _best_half(expected: np.ndarray, ssim: np.ndarray, psnr: np.ndarray) -> float:
    return best_half(expected, psnr)


def over_frames(
    scores: Sequence[Score],
    figure: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
    *,
    seed: int,
) -> dict[str, float] | None:
    """A figure of (expected SSIM, SSIM, PSNR) over the frames of all episodes, or None.

    Its interval is the 95% percentile bootstrap over episodes. Frames of which nothing was
    expected (no confidence, or not made) do not count.
    """
    there = []
    for score in scores:
        if score.confidence is not None:
            known = np.isfinite(score.confidence)
            there.append((score.confidence[known], score.ssim[known], score.psnr[known]))
    if not there:
        return None

    def over(picks: Sequence[int] | np.ndarray) -> float:
        return figure(*(np.concatenate([there[i][part] for i in picks]) for part in range(3)))

    mean = over(range(len(there)))
    if not np.isfinite(mean):
        return None
    random = np.random.default_rng(seed)
    draws = [over(d) for d in random.integers(0, len(there), size=(RANK_DRAWS, len(there)))]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return {"mean": mean, "low": float(low), "high": float(high)}


def clips_of(frames: np.ndarray) -> list[np.ndarray]:
    """The clips of FVD in [T, H, W, 3]: whole ones of 16 in a row, or all of 10 to 15 frames."""
    if LEAST_CLIP <= len(frames) < CLIP:
        return [frames]
    return [frames[i : i + CLIP] for i in range(0, len(frames) - CLIP + 1, CLIP)]


def format_table(summary: Mapping[str, Mapping[str, Any]], width: int = 100) -> str:
    """The summary as aligned plain text, one line a way; wide tables go on below, way by way.

    Metrics that no way has a figure for have no column; `unknown` names them.
    """
    names = list(summary)
    ways = ["way", *names]
    edge = max(map(len, ways))
    blocks: list[list[list[str]]] = []
    left = 0
    for metric, how in METRICS.items():
        cells = [cell_text(summary[name][metric], how.digits) for name in names]
        if all(summary[name][metric] is None for name in names):
            continue
        head = f"{how.label} [95%]" if any("[" in cell for cell in cells) else how.label
        column = [head, *cells]
        needs = 2 + max(map(len, column))
        if not blocks or needs > left:
            blocks.append([ways])
            left = width - edge
        blocks[-1].append(column)
        left -= needs
    return "\n\n".join(_aligned(block) for block in blocks)


def _aligned(columns: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip()
        for line in zip(*columns, strict=True)
    )


def unknown(summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The labels of metrics for which not one way has a figure."""
    return [
        how.label
        for metric, how in METRICS.items()
        if all(row[metric] is None for row in summary.values())
    ]


def cell_text(value: Mapping[str, float] | str | None, digits: int) -> str:
    """`24.31 [23.90, 24.80]`, `no weights`, or a dash."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    mean, low, high = (f"{value[k]:.{digits}f}" for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
