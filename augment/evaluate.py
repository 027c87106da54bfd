"""Scores ways of making a wrist view against the recorded one, on episodes that have one.

`Scorer` takes one episode at a time and keeps no pixels, so memory is bounded by one episode; each
recipe is run once per pose, and the baselines that share its pose read its condition map.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..readers.episode import Episode, Record, WristStream
from ..readers.errors import SourceError
from . import assess
from .baselines import BASELINES, Way, make_frames, mean_wrist
from .seeds import record_seed

COPY = "copy"  # the name under which an existing augmented copy is scored
GENERATION_STAGES = ("generate",)  # of WristStream.seconds: what a bare projection does without
METRICS = {
    "psnr": f"dB, per frame, at most {assess.PSNR_CAP:g}, mean over frames, then over episodes",
    "ssim": "Gaussian window of sigma 1.5 over 11 pixels, mean over frames, then episodes",
    "interval": "95% percentile bootstrap over episodes, the same draws for every way",
    "ahead": "the first way's figure less this way's, episode by episode",
    "sharpness": "variance of the Laplacian over the truth's: 1 is as sharp, below 1 blurrier",
    "pose": "median over all frames of the difference to the pose measured by the dataset",
    "truth": "the recorded view brought to the generated size by area average",
}


class Augments(Protocol):
    """What makes wrist streams: `augment.pipeline.Augmenter`."""

    fingerprint: dict[str, str]

    def __call__(self, episode: Episode, *, seed: int, pose: str) -> WristStream: ...


@dataclass
class Score:
    """One way on one episode. Per-frame arrays are [T]; pose arrays are empty where unknown."""

    psnr: np.ndarray
    ssim: np.ndarray
    sharpness: float
    seconds: float
    rotation: np.ndarray
    translation: np.ndarray
    coverage: float
    invalid: int

    def as_dict(self) -> dict[str, Any]:
        """Episode means, for JSON."""
        return {
            "psnr": float(self.psnr.mean()),
            "ssim": float(self.ssim.mean()),
            "sharpness": _number(self.sharpness),
            "pose_rotation_deg": _median(self.rotation),
            "pose_translation_cm": _median(self.translation),
            "coverage": _number(self.coverage),
            "invalid_frames": self.invalid,
        }


@dataclass
class Result:
    """One scored episode with its pictures, for the page.

    Attributes:
        scores, views: by way name; views are [T, h, w, 3] uint8.
        truth: [T, h, w, 3] uint8, the recorded view at the size of the first way.
        streams: what recipes made, by (recipe, pose).
    """

    episode: Episode
    scores: dict[str, Score]
    views: dict[str, np.ndarray]
    truth: np.ndarray
    streams: dict[tuple[str, str], WristStream]


@dataclass
class Scorer:
    """Runs ways on episodes and keeps the scores.

    Attributes:
        ways: what to score.
        augmenter: recipe name -> what runs it; asked once per recipe and kept.
        wrist_size: recipe name -> (height, width), for ways that run no recipe; the copy's where
            one is scored.
        weights: recipe name -> the folder of its weights, for the mean picture.
        seed: the job's seed; each record gets its own from it.
        with_copy: score the frames of an augmented copy too, as `COPY`, first.
    """

    ways: Sequence[Way]
    augmenter: Callable[[str], Augments]
    wrist_size: Callable[[str], tuple[int, int]]
    weights: Callable[[str], Path | None]
    seed: int = 0
    with_copy: bool = False
    scored: list[tuple[Record, dict[str, Score]]] = field(default_factory=list)
    _running: dict[str, Augments] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names of all that is scored, in order."""
        return [COPY] * self.with_copy + [way.name for way in self.ways]

    def load(self) -> dict[str, dict[str, str]]:
        """Loads every recipe and picture that is needed; returns recipe -> weights file -> sha256.

        Done ahead of the first episode, since what is missing here is missing for all of them.

        Raises:
            SourceError: weights or the mean picture are missing or damaged.
        """
        for way in self.ways:
            if way.runs_recipe and way.recipe not in self._running:
                self._running[way.recipe] = self.augmenter(way.recipe)
            if way.kind == "mean":
                mean_wrist(self.weights(way.recipe), self.wrist_size(way.recipe))
        return {name: dict(made.fingerprint) for name, made in self._running.items()}

    def __call__(self, episode: Episode, copied: WristStream | None = None) -> Result:
        """Scores one episode.

        Args:
            episode: with the recorded wrist view in `wrist`; no way gets to see it.
            copied: the stream of the augmented copy, if one is scored.

        Raises:
            SourceError: no recorded view, or a way cannot be run on this episode.
        """
        if episode.wrist is None:
            raise SourceError(
                "no recorded wrist view", record=episode.record.index, todo="evaluate others"
            )
        blind = replace(episode, wrist=None)
        streams: dict[tuple[str, str], WristStream] = {}
        walls: dict[tuple[str, str], float] = {}
        views: dict[str, np.ndarray] = {}
        scores: dict[str, Score] = {}
        if self.with_copy:
            if copied is None:
                raise ValueError("a copy is to be scored but its stream was not given")
            views[COPY] = copied.frames
            scores[COPY] = self._score(episode, copied.frames, copied, 0.0)
        for way in self.ways:
            stream, chosen = None, (way.recipe, way.pose or "")
            if way.runs_recipe:
                if chosen not in streams:
                    began = time.perf_counter()
                    streams[chosen] = self._run(way, blind)
                    walls[chosen] = time.perf_counter() - began
                stream = streams[chosen]
            size = self.wrist_size(way.recipe) if copied is None else copied.frames.shape[1:3]
            began = time.perf_counter()
            views[way.name] = make_frames(way, blind, stream, size, self.weights(way.recipe))
            seconds = time.perf_counter() - began + walls.get(chosen, 0.0)
            if stream is not None and way.kind in BASELINES:
                seconds -= sum(stream.seconds.get(stage, 0.0) for stage in GENERATION_STAGES)
            scores[way.name] = self._score(episode, views[way.name], stream, seconds)
        truth = assess.resize_frames(episode.wrist.frames, views[self.names[0]].shape[1:3])
        self.scored.append((episode.record, scores))
        return Result(episode, scores, views, truth, streams)

    def _run(self, way: Way, episode: Episode) -> WristStream:
        if way.recipe not in self._running:
            self.load()
        seed = record_seed(self.seed, episode.record)
        return self._running[way.recipe](episode, seed=seed, pose=way.pose or "auto")

    def _score(
        self, episode: Episode, made: np.ndarray, stream: WristStream | None, seconds: float
    ) -> Score:
        assert episode.wrist is not None
        truth = assess.resize_frames(episode.wrist.frames, made.shape[1:3])
        if len(made) != len(truth):
            raise SourceError(
                f"{len(made)} frames were made for {len(truth)} steps",
                record=episode.record.index,
                key=episode.wrist.key,
                todo="compare streams of one length",
            )
        rotation, translation = stream_pose_error(episode, stream)
        return Score(
            psnr=assess.psnr(made, truth),
            ssim=assess.ssim(made, truth),
            sharpness=assess.sharpness_ratio(made, truth),
            seconds=seconds,
            rotation=rotation,
            translation=translation,
            coverage=float("nan") if stream is None else float(np.mean(stream.coverage)),
            invalid=0 if stream is None else int((~np.asarray(stream.valid, bool)).sum()),
        )

    def summary(self) -> dict[str, dict[str, Any]]:
        """By name: means with intervals over all scored episodes, for JSON (null where unknown)."""
        return summarise(self.names, [scores for _, scores in self.scored], seed=self.seed)


def stream_pose_error(
    episode: Episode, stream: WristStream | None
) -> tuple[np.ndarray, np.ndarray]:
    """(degrees [T], centimetres [T]) between a stream's pose and the measured one, or empty.

    They share a world, the robot base, only where the anchors are calibrated: without that, a
    stream's world is the first anchor camera and nothing says where it stands.
    """
    nothing = np.empty(0), np.empty(0)
    measured = episode.measured_wrist_pose()
    if stream is None or stream.pose is None or measured is None:
        return nothing
    if any(view.pose is None or view.K is None for view in episode.anchors):
        return nothing
    return assess.pose_error(np.asarray(stream.pose, np.float64), measured)


def summarise(
    names: Sequence[str], scored: Sequence[Mapping[str, Score]], *, seed: int
) -> dict[str, dict[str, Any]]:
    """By name: the figures over all scored episodes, as `METRICS` says. Null where unknown."""
    table: dict[str, dict[str, Any]] = {}
    first = names[0]
    for name in names:
        own = [scores[name] for scores in scored]
        row: dict[str, Any] = {}
        for metric in ("psnr", "ssim"):
            means = np.array([getattr(score, metric).mean() for score in own])
            row[metric] = assess.bootstrap(means, seed=seed).as_dict()
            if name != first:
                best = np.array([getattr(scores[first], metric).mean() for scores in scored])
                row[f"{metric}_ahead"] = assess.bootstrap(best - means, seed=seed).as_dict()
        sharp = [score.sharpness for score in own if np.isfinite(score.sharpness)]
        frames = sum(len(score.psnr) for score in own)
        coverage = [score.coverage for score in own if np.isfinite(score.coverage)]
        row["sharpness"] = _median(np.array(sharp))
        row["seconds_per_frame"] = (
            None if name == COPY else sum(score.seconds for score in own) / frames
        )
        row["pose_rotation_deg"] = _median(np.concatenate([s.rotation for s in own]))
        row["pose_translation_cm"] = _median(np.concatenate([s.translation for s in own]))
        row["coverage"] = float(np.mean(coverage)) if coverage else None
        row["invalid_frames"] = sum(score.invalid for score in own)
        table[name] = row
    return table


def format_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The summary as aligned plain text, one line a way."""
    head = ("way", "PSNR dB [95%]", "SSIM [95%]", "sharpness", "s/frame", "pose error")
    lines = [head] + [
        (
            name,
            interval_text(row["psnr"], 2),
            interval_text(row["ssim"], 3),
            number_text(row["sharpness"], 2),
            number_text(row["seconds_per_frame"], 3),
            pose_text(row),
        )
        for name, row in summary.items()
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def interval_text(interval: Mapping[str, float], digits: int) -> str:
    """`24.31 [23.90, 24.80]`."""
    mean, low, high = (f"{interval[k]:.{digits}f}" for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def number_text(number: float | None, digits: int) -> str:
    """The number, or a dash where there is none."""
    return "-" if number is None else f"{number:.{digits}f}"


def pose_text(row: Mapping[str, Any]) -> str:
    """`2.1 deg, 1.4 cm`, or a dash where no measured pose is known."""
    if row["pose_rotation_deg"] is None:
        return "-"
    return f"{row['pose_rotation_deg']:.1f} deg, {row['pose_translation_cm']:.1f} cm"


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None
