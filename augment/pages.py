"""Rows and table of the page: of an evaluation, and of a run on data with no wrist view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..readers.episode import Episode, WristStream
from .baselines import BASELINES, Way
from .evaluate import Result
from .report import Gauge, Player, Row, Table
from .scores import METRICS, cell_text

COLUMNS = 5  # figures with intervals that stand side by side on the page
READING = (
    "The condition map is what the anchor views know of the scene, as points seen from the pose of "
    "the hand camera; black is what no anchor saw, or saw too uncertainly.",
    "Intervals are 95% bootstrap intervals over episodes; all ways are scored on the same ones.",
    "Sharpness is the variance of the Laplacian over that of the recorded view: 1 is as sharp, "
    "below 1 blurrier. PSNR rewards blur, so read them together, and look.",
    "Rotation and translation are the median difference between the pose that a frame was made for "
    "and the pose that the dataset's calibration and kinematics give, the scale aligned: 0 where "
    "that very pose was used.",
    "Flicker is the mean squared error of the differences of successive frames; depth error is "
    "relative, of the depth that the anchors were projected with, 0 where recorded depth was used.",
    "Under a made view stands the SSIM that was expected of the frame shown, told without the "
    "truth, where the weights tell one; rank is its Spearman correlation with the true SSIM.",
    "A dash stands where the dataset or the way does not have what is to be measured.",
)


def evaluation_row(result: Result, ways: Sequence[Way]) -> Row:
    """The views of one scored episode: anchors, condition maps, every way, the truth."""
    episode = result.episode
    assert episode.wrist is not None
    known = {way.name: way for way in ways}
    players = _anchors(episode)
    # A way that is the bare condition map shows it already.
    shown = {(w.recipe, w.pose) for w in ways if w.kind == "projection-holes"}
    several = len(result.streams) > 1
    for (recipe, pose), stream in result.streams.items():
        if stream.condition is not None and (recipe, pose) not in shown:
            players.append(_condition(stream, f"{recipe}, {pose} pose" if several else ""))
    made = {"synthetic": [], "baseline": []}
    for name, frames in result.views.items():
        way = known.get(name)
        kind = "baseline" if way is not None and way.kind in BASELINES else "synthetic"
        score = result.scores[name]
        if len(score.psnr) < len(frames):  # its first frame was given, and is not scored
            made[kind].append(Player(f"{name} (first frame given)", frames, kind))
            continue
        made[kind].append(Player(name, frames, kind, score.psnr, expected=score.confidence))
    # The truth stands beside what is to be like it.
    truth = Player("true wrist view", result.truth, "recorded")
    players += [*made["synthetic"], truth, *made["baseline"]]
    facts = [
        "; ".join(
            f"{name} {score.psnr.mean():.2f} dB / {score.ssim.mean():.3f}"
            for name, score in result.scores.items()
        )
        + " (PSNR / SSIM)"
    ]
    details = [
        _details(stream, f"{recipe}, {pose} pose" if several and pose else recipe)
        for (recipe, pose), stream in result.streams.items()
    ]
    return Row(str(episode.record), players, episode.language, facts, details)


def run_row(episode: Episode, stream: WristStream, recipe: str) -> Row:
    """The views of an episode without a recorded wrist view: anchors, condition map, made."""
    players = _anchors(episode)
    if stream.condition is not None:
        players.append(_condition(stream))
    players.append(Player(recipe, stream.frames, "synthetic", expected=_expected(stream)))
    details = [_details(stream, recipe)]
    return Row(str(episode.record), players, episode.language, details=details)


def evaluation_tables(
    summary: Mapping[str, Mapping[str, Any]], episodes: int, frames: int
) -> list[Table]:
    """The summary of an evaluation, the best of what is better high or low in bold.

    Several tables, each no wider than the page. Metrics that no way has a figure for have no
    column.
    """
    first = next(iter(summary))
    shown = [key for key in METRICS if any(row[key] is not None for row in summary.values())]
    columns = ["way"]
    rows: list[list[str | Gauge]] = [[name] for name in summary]
    for key in shown:
        metric = METRICS[key]
        columns.append(metric.label)
        # As they are shown: what differs by rounding alone is drawn, and is as good, as one.
        values = [
            {k: round(v, metric.digits) for k, v in row[key].items()}
            if isinstance(row[key], Mapping)
            else row[key]
            for row in summary.values()
        ]
        means = [value["mean"] for value in values if isinstance(value, Mapping)]
        best = max(means, key=lambda mean: metric.better * mean) if means else None
        for row, value in zip(rows, values, strict=True):
            text = cell_text(value, metric.digits)
            if not isinstance(value, Mapping):
                row.append(text)
                continue
            # Where all are equal, as of one pose, none is the best.
            bold = metric.better != 0 and value["mean"] == best and len(set(means)) > 1
            row.append(Gauge(text, value["low"], value["mean"], value["high"], best=bold))
        if key == "psnr" and len(summary) > 1:
            columns.append(f"PSNR of {first} less this")
            for row, figures in zip(rows, summary.values(), strict=True):
                ahead = figures.get("psnr_ahead")
                row.append("" if ahead is None else cell_text(ahead, 2))
    caption = (
        f"{episodes} episode{'s' * (episodes != 1)}, {frames} frames. Means over episodes with 95% "
        "intervals. Higher PSNR and SSIM are closer to the recorded view; so are lower LPIPS, FVD, "
        "flicker and errors."
    )
    cuts = range(1, len(columns), COLUMNS)
    return [
        Table(
            [columns[0], *columns[i : i + COLUMNS]],
            [[row[0], *row[i : i + COLUMNS]] for row in rows],
            caption if i == 1 else "",
        )
        for i in cuts
    ]


def _anchors(episode: Episode) -> list[Player]:
    return [
        Player(view.key.rpartition("/")[2], np.asarray(view.frames), "recorded", wide=True)
        for view in episode.anchors
    ]


def _condition(stream: WristStream, of: str = "") -> Player:
    assert stream.condition is not None
    return Player(f"condition map ({of})" if of else "condition map", stream.condition, "geometry")


def _expected(stream: WristStream) -> np.ndarray | None:
    """[T] the expected SSIM, or None where it is known of no frame."""
    confidence = stream.confidence
    if confidence is None or not np.isfinite(confidence).any():
        return None
    return np.asarray(confidence, np.float64)


def _details(stream: WristStream, name: str) -> str:
    """What was chosen for this stream, in words."""
    said = [f"{key}: {text}" for key, text in stream.notes.items()]
    if stream.condition is not None:
        said.append(f"the condition map covers {100 * float(np.mean(stream.coverage)):.0f}%")
    valid, confidence = np.asarray(stream.valid, bool), _expected(stream)
    if confidence is not None:
        mean, low, high = (f(confidence) for f in (np.nanmean, np.nanmin, np.nanmax))
        said.append(f"expected SSIM {mean:.2f} on average, {low:.2f} to {high:.2f}")
        below = int((~valid & (confidence > 0)).sum())
        if below:
            said.append(f"{below} of {len(valid)} frames are below the quality asked for")
    bad = int((~valid).sum() if confidence is None else (~valid & ~(confidence > 0)).sum())
    if bad:
        said.append(f"{bad} of {len(valid)} frames could not be made well")
    return f"{name} - " + "; ".join(said)
