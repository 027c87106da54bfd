"""Where a hand camera's mount comes from, its file, and the wrist pose that it gives an episode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..readers.episode import Episode
from ..readers.errors import SourceError
from ..writers.atomic import write_atomic
from .assess import pose_error
from .rigid_mount import SAME, Fit, Track, Untold, locate, rigid_pose, solve

KIND = "wristaugment mount"
_LOOSE = 1e-3  # how far a rotation in a file may be from one, as of numbers with three digits
_REACH = 1.0  # metres; no camera is bolted so far from the hand


def write_mount(path: Path, mount: np.ndarray, about: dict[str, Any]) -> None:
    """Write a mount [4, 4] (end effector <- camera, metres) and what is known of it as JSON."""
    content = {"kind": KIND, "mount": np.round(mount, 9).tolist(), **about}
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def read_mount(path: Path) -> np.ndarray:
    """The mount [4, 4] (end effector <- camera, metres) of a file.

    Raises:
        SourceError: there is none, or what it holds is no mount.
    """
    todo = 'give a file of `wristaugment mount`, or one like {"mount": [[...] * 4] * 4}'
    try:
        content = json.loads(path.read_text())
        mount = np.array(content["mount"], dtype=np.float64)
    except OSError as error:
        found = f"cannot be read ({error.strerror})"
        raise SourceError(found, file=path, key="--mount", todo=todo) from None
    except (ValueError, KeyError, TypeError):
        raise SourceError("has no matrix of numbers", file=path, key="mount", todo=todo) from None
    if mount.shape != (4, 4) or not np.isfinite(mount).all():
        found = f"is of shape {mount.shape}, or not finite"
    elif np.abs(mount[3] - (0, 0, 0, 1)).max() > 0:
        found = "does not end in the row 0 0 0 1"
    elif (
        np.abs(mount[:3, :3] @ mount[:3, :3].T - np.eye(3)).max() > _LOOSE
        or np.linalg.det(mount[:3, :3]) < 0
    ):
        found = "has no rotation"
    elif np.linalg.norm(mount[:3, 3]) > _REACH:
        found = f"is {np.linalg.norm(mount[:3, 3]):.3g} m from the hand"
    else:
        return mount
    raise SourceError(found, file=path, key="mount", todo=f"{todo}, in metres")


def rigid_wrist_pose(
    episode: Episode, predicted: np.ndarray, mount: np.ndarray | None, world_is_base: bool
) -> tuple[np.ndarray | None, str]:
    """The pose of a camera bolted to the hand, in the world of the prediction, and what to say.

    Args:
        predicted: [T, 4, 4] world-to-camera poses of the wrist head.
        mount: [4, 4] from a file, or None (then the dataset's calibration is taken).
        world_is_base: whether the prediction's world is the robot base, in metres.

    Returns:
        ([T, 4, 4] world-to-camera, a note with the residuals); None for the pose where the episode
        does not tell where the robot stands.

    Raises:
        ValueError: the episode has no end-effector poses, or no mount is known.
    """
    source = "--mount" if mount is not None else "the dataset"
    mount = episode.wrist_mount if mount is None else mount
    if episode.eef_pose is None or mount is None:
        lacks = "end-effector poses" if episode.eef_pose is None else "mount of the hand camera"
        raise ValueError(
            f"the data have no {lacks}; use --pose head, or solve for the mount with "
            "`wristaugment mount` and give it with --mount"
        )
    track = Track(episode.eef_pose, predicted, world_is_base)
    try:
        fit = locate(track, mount)
    except Untold as error:
        return None, str(error)
    world = fit.worlds[0]
    assert world is not None
    where = "calibrated anchors" if world is SAME else "the wrist head's poses"
    said = (
        f"rigid: end-effector poses, the mount of {source}, the robot's place by {where}; "
        f"the head's own poses are {residual_text(fit)} off it (medians)"
    )
    return rigid_pose(track.eef, mount, world), said


def residual_text(fit: Fit) -> str:
    """`3.2 degrees and 1.4 cm`: medians over all frames that have a rigid pose."""
    rotation, offset = residuals(fit)
    return f"{rotation:.1f} degrees and {offset:.1f} cm"


def residuals(fit: Fit) -> tuple[float, float]:
    """Medians (degrees, centimetres) between predicted and rigid poses, over all told episodes."""
    turns, shifts = np.concatenate(fit.rotation), np.concatenate(fit.offset)
    return float(np.nanmedian(turns)), 100 * float(np.nanmedian(shifts))


class Collected:
    """Wrist heads' poses of many episodes, to solve for the mount that they share."""

    def __init__(self):
        self.tracks: list[Track] = []
        self._truth: list[np.ndarray | None] = []
        self._mounts: list[np.ndarray] = []

    def add(self, augmenter, episode: Episode, calibrated: Episode | None = None) -> None:
        """Predict an episode's wrist poses, and keep them.

        Args:
            augmenter: a `pipeline.Augmenter`.
            calibrated: the same episode with all calibration, for `figures` alone and as a start.

        Raises:
            SourceError: it has no end-effector poses, or cannot be reconstructed.
        """
        if episode.eef_pose is None:
            raise SourceError(
                "has no end-effector poses",
                record=episode.record.index,
                todo="leave this episode out",
            )
        found = augmenter.reconstruct(episode, "head")
        predicted = found.wrist_pose.double().numpy()
        self.tracks.append(Track(episode.eef_pose, predicted, found.calibrated))
        calibrated = calibrated or episode
        truth, first = calibrated.measured_wrist_pose(), calibrated.anchors[0].pose
        if truth is not None and first is not None and np.ndim(first) == 2:
            # A world that is not the base is the first anchor camera.
            truth = truth if found.calibrated else truth @ np.linalg.inv(first)
            self._truth.append(truth)
        else:
            self._truth.append(None)
        if calibrated.wrist_mount is not None:
            self._mounts.append(calibrated.wrist_mount)

    def solve(self, *, start: bool = False) -> Fit:
        """The mount of all episodes.

        Args:
            start: begin at the datasets' own calibration too: the middle one of its mounts.

        Raises:
            Untold: the motions do not tell it.
        """
        known = None
        if start and self._mounts:
            places = np.stack(self._mounts)[:, :3, 3]
            apart = np.linalg.norm(places - np.median(places, axis=0), axis=1)
            known = self._mounts[int(apart.argmin())]
        return solve(self.tracks, start=known)

    def figures(self, fit: Fit) -> dict[str, Any]:
        """What is known of a fit, for JSON; with "against_calibration" where the data tell it.

        {"episodes", "told", "rotation_error_deg", "offset_error_cm", "residual": {"rotation_deg",
        "translation_cm", "inliers"}, "against_calibration": {"episodes", "head": {"rotation_deg",
        "translation_cm"}, "rigid": the same}}: medians over frames.
        """
        rotation, offset = residuals(fit)
        out: dict[str, Any] = {
            "episodes": len(self.tracks),
            "told": sum(world is not None for world in fit.worlds),
            "rotation_error_deg": round(fit.rotation_error, 3),
            "offset_error_cm": round(100 * fit.offset_error, 3),
            "residual": {
                "rotation_deg": round(rotation, 3),
                "translation_cm": round(offset, 3),
                "inliers": round(float(np.concatenate(fit.inliers).mean()), 4),
            },
        }
        errors: dict[str, list] = {"head": [], "rigid": []}
        for track, world, truth in zip(self.tracks, fit.worlds, self._truth, strict=True):
            if world is None or truth is None:
                continue
            ways = {"head": track.camera, "rigid": rigid_pose(track.eef, fit.mount, world)}
            for name, pose in ways.items():
                pose = pose.copy()
                pose[:, :3, 3] /= world.scale
                errors[name].append(pose_error(pose, truth))
        if errors["head"]:
            compared: dict[str, Any] = {"episodes": len(errors["head"])}
            for name, pairs in errors.items():
                turn, shift = (np.concatenate(x) for x in zip(*pairs, strict=True))
                compared[name] = {
                    "rotation_deg": round(float(np.median(turn)), 3),
                    "translation_cm": round(float(np.median(shift)), 3),
                }
            out["against_calibration"] = compared
        return out
