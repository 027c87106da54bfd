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

from ..readers.episode import Episode, Record, WristStream, begun
from ..readers.errors import SourceError
from . import assess
from .baselines import BASELINES, RGB, Way, from_pictures, make_frames, mean_wrist
from .nearest import Neighbours
from .recipe import RECIPES
from .reconstruct import recorded_depth
from .scores import COPY, Score, clips_of, summarise
from .seeds import record_seed

GENERATION_STAGES = ("generate",)  # of WristStream.seconds: what a bare projection does without


class Augments(Protocol):
    """What makes wrist streams: `augment.pipeline.Augmenter`."""

    fingerprint: dict[str, str]

    def __call__(self, episode: Episode, *, seed: int, pose: str, geometry: str) -> WristStream: ...


@dataclass
class Result:
    """One scored episode with its pictures, for the page.

    Attributes:
        scores, views: by way name; views are [T, h, w, 3] uint8.
        truth: [T, h, w, 3] uint8, the recorded view at the size of the first way.
        streams: what recipes made, by (`Way.runs`, pose).
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
        augmenter: `Way.runs` -> what runs it; asked once for each and kept.
        wrist_size: recipe name -> (height, width), for ways that run no recipe; the copy's where
            one is scored.
        weights: recipe name -> the folder of its weights, for the mean picture.
        seed: the job's seed; each record gets its own from it.
        with_copy: score the frames of an augmented copy too, as `COPY`, first.
        geometry: where recipes take depth from, as `reconstruct` has it.
        neighbours: makes the training frames that `nearest` looks in, at (height, width).
        lpips: made and recorded frames [T, h, w, 3] uint8 -> [T]; None without its weights.
        features: clips [N, T, h, w, 3] uint8 -> [N, D], for FVD; None without its weights.
    """

    ways: Sequence[Way]
    augmenter: Callable[[str], Augments]
    wrist_size: Callable[[str], tuple[int, int]]
    weights: Callable[[str], Path | None]
    seed: int = 0
    with_copy: bool = False
    geometry: str = "predicted"
    neighbours: Callable[[tuple[int, int]], Neighbours] | None = None
    lpips: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    features: Callable[[np.ndarray], np.ndarray] | None = None
    scored: list[tuple[Record, dict[str, Score]]] = field(default_factory=list)
    _running: dict[str, Augments] = field(default_factory=dict)
    _looked_in: Neighbours | None = None

    @property
    def names(self) -> list[str]:
        """The names of all that is scored, in order."""
        return [COPY] * self.with_copy + [way.name for way in self.ways]

    def load(self) -> dict[str, dict[str, str]]:
        """Loads every recipe and picture that is needed; returns recipe -> weights file -> sha256.

        Done ahead of the first episode, since what is missing here is missing for all of them.

        Raises:
            SourceError: weights or the mean picture are missing or damaged, or there is nothing
                for `nearest` to look in.
        """
        for way in self.ways:
            if way.runs_recipe and way.runs not in self._running:
                self._running[way.runs] = self.augmenter(way.runs)
            if way.kind == "mean":
                mean_wrist(self.weights(way.recipe), self.wrist_size(way.recipe))
            if way.kind == "nearest" and self._looked_in is None:
                if self.neighbours is None:
                    raise ValueError("'nearest' is to be scored but was given no training frames")
                self._looked_in = self.neighbours(self.wrist_size(way.recipe))
        # A variant has its recipe's weights.
        made = self._running.items()
        return {runs.partition("+")[0]: dict(one.fingerprint) for runs, one in made}

    def __call__(self, episode: Episode, copied: WristStream | None = None) -> Result:
        """Scores one episode.

        Args:
            episode: with the recorded wrist view in `wrist`; no way gets to see it, but for its
                first frame where the way continues that. Such a way is scored without it.
            copied: the stream of the augmented copy, if one is scored.

        Raises:
            SourceError: no recorded view, or a way cannot be run on this episode.
        """
        if episode.wrist is None:
            raise SourceError(
                "no recorded wrist view", record=episode.record.index, todo="evaluate others"
            )
        blind, started = replace(episode, wrist=None), begun(episode)
        streams: dict[tuple[str, str], WristStream] = {}
        walls: dict[tuple[str, str], float] = {}
        recorded: dict[tuple[int, ...], np.ndarray | None] = {}
        views: dict[str, np.ndarray] = {}
        scores: dict[str, Score] = {}
        if self.with_copy:
            if copied is None:
                raise ValueError("a copy is to be scored but its stream was not given")
            views[COPY] = copied.frames
            scores[COPY] = self._score(episode, copied.frames, copied, float("nan"), recorded)
            _expect(scores[COPY], copied, None)
        for way in self.ways:
            stream, chosen = None, (way.runs, way.pose or "")
            if way.runs_recipe:
                if chosen not in streams:
                    began = time.perf_counter()
                    streams[chosen] = self._run(way, started if given_frames(way) else blind)
                    walls[chosen] = time.perf_counter() - began
                stream = streams[chosen]
            size = self.wrist_size(way.recipe) if copied is None else copied.frames.shape[1:3]
            began = time.perf_counter()
            views[way.name] = make_frames(
                way, blind, stream, size, self.weights(way.recipe), self._looked_in
            )
            seconds = time.perf_counter() - began + walls.get(chosen, 0.0)
            if stream is not None and way.kind in BASELINES:
                seconds -= sum(stream.seconds.get(stage, 0.0) for stage in GENERATION_STAGES)
            given = given_frames(way)
            scores[way.name] = self._score(
                episode, views[way.name], stream, seconds, recorded, given
            )
            if stream is not None and way.kind not in BASELINES:  # theirs are other pictures
                told = getattr(self._running[way.runs], "confidence", None)
                _expect(scores[way.name], stream, None if told is None else told.threshold)
        truth = assess.resize_frames(episode.wrist.frames, views[self.names[0]].shape[1:3])
        self.scored.append((episode.record, scores))
        return Result(episode, scores, views, truth, streams)

    def _run(self, way: Way, episode: Episode) -> WristStream:
        if way.runs not in self._running:
            self.load()
        seed = record_seed(self.seed, episode.record)
        if way.variant == RGB:
            episode = from_pictures(episode)
        return self._running[way.runs](
            episode, seed=seed, pose=way.pose or "auto", geometry=self.geometry
        )

    def _score(
        self,
        episode: Episode,
        made: np.ndarray,
        stream: WristStream | None,
        seconds: float,
        recorded: dict[tuple[int, ...], np.ndarray | None],
        given: int = 0,
    ) -> Score:
        """The score of frames, but for the first `given`, which the way was given.

        `recorded` keeps features of the recorded clips by their size and start.
        """
        assert episode.wrist is not None
        truth = assess.resize_frames(episode.wrist.frames, made.shape[1:3])
        if len(made) != len(truth):
            raise SourceError(
                f"{len(made)} frames were made for {len(truth)} steps",
                record=episode.record.index,
                key=episode.wrist.key,
                todo="compare streams of one length",
            )
        frames = len(made)
        own = stream is not None and made is stream.frames  # not a baseline that used the stream
        made, truth = made[given:], truth[given:]
        rotation, translation, scale = stream_pose_error(episode, stream)
        values = {
            "flicker": assess.flicker(made, truth),
            "sharpness": assess.sharpness_ratio(made, truth),
            "pose_rotation_deg": _median(rotation),
            "pose_translation_cm": _median(translation),
            "pose_scale": scale,
            "depth_error": stream_depth_error(episode, stream),
            "seconds_per_frame": seconds / frames,
        }
        invalid = 0
        if stream is not None:
            invalid = int((~np.asarray(stream.valid[given:], bool)).sum())
            if stream.joins is not None and own:
                values["seam"] = assess.seam(made, truth, stream.joins[given:])
            if stream.condition is not None:  # else nothing was projected, and 0 would say so
                values["coverage"] = float(np.mean(stream.coverage))
            values["invalid"] = invalid / len(made)
        if self.lpips is not None:
            values["lpips"] = float(np.mean(self.lpips(made, truth)))
        place = (*truth.shape[1:3], given)
        if self.features is not None and place not in recorded:
            recorded[place] = self._features(truth)
        theirs = recorded.get(place)
        ours = None if theirs is None else self._features(made)
        return Score(
            psnr=assess.psnr(made, truth),
            ssim=assess.ssim(made, truth),
            values=values,
            invalid=invalid,
            clips=None if ours is None or theirs is None else (ours, theirs),
        )

    def _features(self, frames: np.ndarray) -> np.ndarray | None:
        """[N, D] of the clips in frames, or None where they are too few for one."""
        clips = clips_of(frames)
        if not clips or self.features is None:
            return None
        return np.concatenate([self.features(np.asarray(clip)[None]) for clip in clips])

    def summary(self, missing: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
        """By name: means with intervals over all scored episodes, as `summarise` gives them."""
        scored = [scores for _, scores in self.scored]
        return summarise(self.names, scored, seed=self.seed, missing=missing)


def given_frames(way: Way) -> int:
    """How many recorded frames a way is given, the first of the episode; they are not scored."""
    return int(way.kind == "recipe" and way.recipe in RECIPES and RECIPES[way.recipe].guided)


def _expect(score: Score, stream: WristStream, least: float | None) -> None:
    """Note what was expected of a way's frames.

    Args:
        least: the threshold of the weights; None where `stream.valid` is after it already.
    """
    confidence = stream.confidence
    if confidence is None or not np.isfinite(confidence).any():
        return
    score.confidence = np.asarray(confidence, np.float64)
    known = np.isfinite(score.confidence)
    below = ~np.asarray(stream.valid, bool) if least is None else score.confidence < least
    score.values["below"] = float((below & known).mean())


def stream_pose_error(
    episode: Episode, stream: WristStream | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """(degrees [T], centimetres [T], scale) of a stream's pose against the measured one, or empty.

    Compared relative to the first anchor camera where the dataset knows it; else nothing ties the
    stream's world to the robot, and the whole path is brought there by one similarity.
    """
    nothing = np.empty(0), np.empty(0), float("nan")
    measured = episode.measured_wrist_pose()
    if stream is None or stream.pose is None or stream.anchor_pose is None or measured is None:
        return nothing
    pose, anchor = (np.asarray(p, np.float64) for p in (stream.pose, stream.anchor_pose))
    known = episode.anchors[0].pose
    if known is not None:
        # Both as turns and shifts from the anchor: whatever world the stream took cancels out.
        measured = measured @ np.linalg.inv(np.asarray(known, np.float64))
        pose, scale = assess.scaled_about_anchor(pose @ np.linalg.inv(anchor), measured)
    else:
        pose, scale = assess.aligned_to(pose, measured)
    turn, shift = assess.pose_error(pose, measured)
    return turn, shift if np.isfinite(scale) else np.empty(0), scale


def stream_depth_error(episode: Episode, stream: WristStream | None) -> float:
    """`assess.depth_error` of the depth that a stream was made with; NaN where none is recorded."""
    if stream is None or stream.depth is None:
        return float("nan")
    known = recorded_depth(episode, (stream.depth.shape[2], stream.depth.shape[3]))
    if known is None:
        return float("nan")
    return assess.depth_error(stream.depth, known[:, : stream.depth.shape[1]].numpy())


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")
