"""Fits confidence.json on episodes whose wrist view is known, in every way that a run may go.

Each episode is made as it is (calibrated, measured pose), with the calibration disturbed, with the
wrist head's pose, and from its pictures alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from scipy.stats import spearmanr

from ..readers.episode import Episode
from ..readers.errors import SourceError
from . import assess
from .confidence import FEATURES, FILE, Confidence, best_half, fit_domain, fit_regression
from .frame_features import frame_features, picture_statistics
from .pipeline import Augmenter
from .seeds import record_seed

# How a disturbed case is off: spreads of a turn in degrees and a shift in metres.
ANCHOR_OFF, MOUNT_OFF = (2.0, 0.02), (3.0, 0.02)
LEAST = 4  # episodes, or there is nothing to tell one scene from another by


@dataclass(frozen=True)
class Case:
    """One way that a run may go.

    Attributes:
        pose: as `Augmenter` takes it. count: what a frame of it counts in the fit. Disturbed ones
            cannot always be told from others, and count half, since calibrations are more often
            right than wrong.
        what: in words.
    """

    pose: str
    count: float
    what: str


CASES = {
    "measured": Case("auto", 1.0, "cameras and wrist pose as the data have them"),
    "disturbed": Case("auto", 0.5, "the same, anchors and mount some degrees and centimetres off"),
    "head": Case("head", 1.0, "the data's cameras, the wrist head's pose"),
    "pictures": Case("auto", 1.0, "pictures alone, all calibration hidden"),
}


def as_case(name: str, episode: Episode, seed: int) -> Episode | None:
    """The episode as a case of `CASES` has it; None where it lacks what the case needs."""
    calibrated = all(v.K is not None and v.pose is not None for v in episode.anchors)
    if name == "pictures":
        bare = [replace(view, K=None, pose=None, depth=None) for view in episode.anchors]
        return replace(
            episode, anchors=bare, eef_pose=None, wrist_mount=None, wrist_K=None, wrist_size=None
        )
    if not calibrated or (name != "head" and episode.measured_wrist_pose() is None):
        return None
    if name != "disturbed":
        return episode
    random = np.random.default_rng(seed)
    # The first anchor is the world that the others, and the hand, are off from.
    anchors = [
        view if s == 0 else replace(view, pose=_off(view.pose, random, *ANCHOR_OFF))
        for s, view in enumerate(episode.anchors)
    ]
    return replace(
        episode, anchors=anchors, wrist_mount=_off(episode.wrist_mount, random, *MOUNT_OFF)
    )


def _off(pose, random: np.random.Generator, degrees: float, metres: float) -> np.ndarray:
    turn, shift = random.normal(size=(2, 3))
    by = np.eye(4)
    # Of a three-dimensional normal the length is sqrt(3) spreads on average.
    by[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * turn / 3**0.5).as_matrix()
    by[:3, 3] = metres * shift / 3**0.5
    return np.asarray(pose, np.float64) @ by


@dataclass
class _Frames:
    """What was seen of one episode in one case."""

    case: str
    features: dict[str, np.ndarray]
    ssim: np.ndarray
    psnr: np.ndarray


@torch.no_grad()
def look_at(
    augmenter: Augmenter, episode: Episode, case: str, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """(features, made frames) of an episode in a case; None where the case cannot be had of it."""
    changed = as_case(case, replace(episode, wrist=None), seed)
    if changed is None:
        return None
    assert augmenter.generator is not None
    found = augmenter.reconstruct(changed, CASES[case].pose, "predicted")
    maps, K = augmenter.project(changed, found)
    frames = augmenter.generator.generate(maps, changed, augmenter.recipe, seed)
    features = frame_features(changed.anchors, found, maps, frames, K, augmenter.recipe)
    return features, frames


def fit_confidence(
    augmenter: Augmenter,
    episodes: Callable[[], Iterable[Episode]],
    fitted_on: str,
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Confidence, dict[str, float]]:
    """Fit the confidence of an augmenter's weights.

    Args:
        episodes: gives the same episodes, with their recorded wrist view, each time it is called.
        fitted_on: what they are, in words. seed: of the disturbances and the sampler.
        progress: told how many episodes are done.

    Returns:
        the fit, and what it reaches on episodes that were left out of it (five parts in turn):
        {"<case> spearman", "<case> mean error", "<case> best half dB"}.

    Raises:
        SourceError: fewer than `LEAST` episodes.
    """
    size = augmenter.recipe.wrist_size
    rows: list[list[_Frames]] = []
    pictures: list[np.ndarray] = []
    total, count = np.zeros((*size, 3)), 0
    for episode in episodes():
        truth = _truth(episode, size)
        total, count = total + truth.sum(axis=0, dtype=np.float64), count + len(truth)
    mean = np.round(total / max(count, 1)).astype(np.uint8)
    plain: list[float] = []
    unrelated: list[float] = []
    before: np.ndarray | None = None
    for done, episode in enumerate(episodes()):
        truth = _truth(episode, size)
        one = record_seed(seed, episode.record)
        seen = []
        for case in CASES:
            looked = look_at(augmenter, episode, case, one)
            if looked is None:
                continue
            features, frames = looked
            seen.append(
                _Frames(case, features, assess.ssim(frames, truth), assess.psnr(frames, truth))
            )
            if before is not None:
                other = before[np.arange(len(frames)) % len(before)]
                unrelated += assess.ssim(frames, other).tolist()
        plain += assess.ssim(np.broadcast_to(mean, truth.shape), truth).tolist()
        rows.append(seen)
        pictures.append(picture_statistics(episode.anchors))
        before = truth
        progress(done + 1)
    if len(rows) < LEAST:
        raise SourceError(
            f"{len(rows)} episodes are too few to fit a confidence on",
            key="--episodes",
            todo=f"give {LEAST} or more, better 40",
        )
    figures, reached = _held_out(rows)
    everything = [frames for seen in rows for frames in seen]
    fitted = fit_regression(*_joined(everything))
    about = {
        "fitted_on": fitted_on,
        "episodes": len(rows),
        "frames": int(count),
        "size": list(size),
        "cases": {
            name: {"what": CASES[name].what, "counts": CASES[name].count, **reached[name]}
            for name in reached
        },
        "threshold": "SSIM of the mean wrist picture of these episodes: no better is no use",
        "floor": "SSIM of made frames against the wrist view of another episode",
    }
    found = Confidence(
        recipe=augmenter.recipe.name,
        weights=dict(augmenter.fingerprint),
        domain=fit_domain(pictures),
        floor=round(float(np.mean(unrelated)), 4),
        threshold=round(float(np.mean(plain)), 2),
        about=about,
        regression=fitted,
    )
    return found, figures


def _truth(episode: Episode, size: tuple[int, int]) -> np.ndarray:
    assert episode.wrist is not None
    return assess.resize_frames(episode.wrist.frames, size)


def _joined(
    seen: Sequence[_Frames],
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """(features [N], SSIM [N], what each counts [N]) of some frames."""
    features = {name: np.concatenate([s.features[name] for s in seen]) for name in FEATURES}
    ssim = np.concatenate([s.ssim for s in seen])
    count = np.concatenate([np.full(len(s.ssim), CASES[s.case].count) for s in seen])
    return features, ssim, count


def _held_out(rows: list[list[_Frames]]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """(figures for the terminal, by case) of episodes left out of the fit, every fifth in turn."""
    folds = min(5, len(rows))
    expected: dict[str, list[np.ndarray]] = {}
    true: dict[str, list[np.ndarray]] = {}
    decibels: dict[str, list[np.ndarray]] = {}
    for fold in range(folds):
        train = [s for i, seen in enumerate(rows) if i % folds != fold for s in seen]
        fitted = fit_regression(*_joined(train))
        for frames in (s for seen in rows[fold::folds] for s in seen):
            expected.setdefault(frames.case, []).append(fitted(frames.features))
            true.setdefault(frames.case, []).append(frames.ssim)
            decibels.setdefault(frames.case, []).append(frames.psnr)
    figures: dict[str, float] = {}
    by_case: dict[str, dict[str, float]] = {}
    for case in expected:
        a, b, p = (np.concatenate(x[case]) for x in (expected, true, decibels))
        by_case[case] = {
            "frames": len(a),
            "ssim": float(b.mean()),
            "expected": float(a.mean()),
            "mean_error": float(np.abs(a - b).mean()),
            "spearman": cast(Any, spearmanr(a, b)).statistic,
            "best_half_db": best_half(a, p),
        }
        for name in ("spearman", "mean_error", "best_half_db"):
            figures[f"{case} {name.replace('_', ' ')}"] = by_case[case][name]
    return figures, by_case


def save(found: Confidence, folder: Path) -> Path:
    """Write the fit beside the weights; returns its path."""
    path = folder / FILE
    found.save(path)
    return path
