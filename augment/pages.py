"""Rows and table of the page: of an evaluation, and of a run on data with no wrist view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..readers.episode import Episode, WristStream
from .baselines import BASELINES, Way
from .evaluate import Result, interval_text, number_text, pose_text
from .report import Gauge, Player, Row, Table

READING = (
    "The condition map is what the anchor views know of the scene, as points seen from the pose of "
    "the hand camera; black is what no anchor saw, or saw too uncertainly.",
    "Intervals are 95% bootstrap intervals over episodes; all ways are scored on the same ones.",
    "Sharpness is the variance of the Laplacian over that of the recorded view: 1 is as sharp, "
    "below 1 blurrier. PSNR rewards blur, so read them together, and look.",
    "Pose error is the median difference between the pose that a frame was made for and the pose "
    "that the dataset's calibration and kinematics give: 0 where that very pose was used, a dash "
    "where nothing measures it.",
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
        made[kind].append(Player(name, frames, kind, psnr=result.scores[name].psnr))
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
        _details(stream, f"{recipe}, {pose} pose" if several else recipe)
        for (recipe, pose), stream in result.streams.items()
    ]
    return Row(str(episode.record), players, episode.language, facts, details)


def run_row(episode: Episode, stream: WristStream, recipe: str) -> Row:
    """The views of an episode without a recorded wrist view: anchors, condition map, made."""
    players = _anchors(episode)
    if stream.condition is not None:
        players.append(_condition(stream))
    players.append(Player(recipe, stream.frames, "synthetic"))
    details = [_details(stream, recipe)]
    return Row(str(episode.record), players, episode.language, details=details)


def evaluation_table(summary: Mapping[str, Mapping[str, Any]], episodes: int, frames: int) -> Table:
    """The summary of an evaluation, the best PSNR and SSIM in bold."""
    first = next(iter(summary))
    columns = ["way", "PSNR, dB", "SSIM"]
    if len(summary) > 1:
        columns.append(f"PSNR of {first} less this")
    columns += ["sharpness", "seconds a frame", "pose error (median)"]
    best = {
        metric: max(row[metric]["mean"] for row in summary.values()) for metric in ("psnr", "ssim")
    }
    rows: list[list[str | Gauge]] = []
    for name, figures in summary.items():
        cells: list[str | Gauge] = [name]
        for metric, digits in (("psnr", 2), ("ssim", 3)):
            interval = figures[metric]
            cells.append(
                Gauge(
                    interval_text(interval, digits),
                    **interval,
                    best=len(summary) > 1 and interval["mean"] == best[metric],
                )
            )
        if len(summary) > 1:
            ahead = figures.get("psnr_ahead")
            cells.append("" if ahead is None else interval_text(ahead, 2))
        cells += [
            number_text(figures["sharpness"], 2),
            number_text(figures["seconds_per_frame"], 3),
            pose_text(figures),
        ]
        rows.append(cells)
    caption = (
        f"{episodes} episode{'s' * (episodes != 1)}, {frames} frames. Means over episodes with 95% "
        "intervals; higher PSNR and SSIM are closer to the recorded view."
    )
    return Table(columns, rows, caption)


def _anchors(episode: Episode) -> list[Player]:
    return [
        Player(view.key.rpartition("/")[2], np.asarray(view.frames), "recorded", wide=True)
        for view in episode.anchors
    ]


def _condition(stream: WristStream, of: str = "") -> Player:
    assert stream.condition is not None
    return Player(f"condition map ({of})" if of else "condition map", stream.condition, "geometry")


def _details(stream: WristStream, name: str) -> str:
    """What was chosen for this stream, in words."""
    said = [f"{key}: {text}" for key, text in stream.notes.items()]
    said.append(f"the condition map covers {100 * float(np.mean(stream.coverage)):.0f}%")
    bad = int((~np.asarray(stream.valid, bool)).sum())
    if bad:
        said.append(f"{bad} of {len(stream.valid)} frames could not be made well")
    return f"{name} - " + "; ".join(said)
