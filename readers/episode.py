"""What every reader makes and every writer takes: one episode, its views, and its new wrist stream.

Poses are world-to-camera 4x4 matrices with OpenCV axes (x right, y down, z forward), in metres; the
world is the robot base wherever a pose was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from .frames import Frames


@dataclass(frozen=True, order=True)
class Record:
    """One episode's place in the source: split, shard and index in the shard, all from 0."""

    split: str
    shard: int
    index: int

    def __str__(self) -> str:
        return f"{self.split}/{self.shard}/{self.index}"


@dataclass
class View:
    """A camera stream.

    Attributes:
        key: its name in the dataset, as in `observation/exterior_image_1_left`.
        frames: [T, H, W, 3] uint8 RGB; an array, or Frames, which are read when they are indexed.
        K: [3, 3] intrinsics in pixels of `frames`, or None where unknown.
        pose: [4, 4] (a static camera) or [T, 4, 4] world-to-camera, or None where unknown.
        depth: [T, H, W] float32 z-depth in metres (0 = unknown), or None.
    """

    key: str
    frames: np.ndarray | Frames
    K: np.ndarray | None = None
    pose: np.ndarray | None = None
    depth: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.frames.shape[1], self.frames.shape[2]


@dataclass
class Episode:
    """One episode as the pipeline sees it.

    Attributes:
        record: where it is in the source.
        anchors: the usable third-person views, in the order of the profile; constant (black
            placeholder) streams are already left out and named in `dropped`.
        language: the instruction, "" where there is none.
        eef_pose: [T, 4, 4] end effector in the robot base (base <- end effector), or None.
        gripper: [T] gripper opening in [0, 1], 1 = closed, or None.
        wrist_mount: [4, 4] hand camera in the end-effector frame (end effector <- camera), or None.
        wrist_K: [3, 3] intrinsics of the hand camera in pixels at `wrist_size`, or None.
        wrist_size: (height, width) that `wrist_K` belongs to, or None.
        wrist: the recorded wrist view, where there is one and it was asked for.
        first_wrist: [H, W, 3] uint8, its first frame alone, for what continues it and sees no more.
        dropped: anchor keys that carry no picture, with the reason.
    """

    record: Record
    anchors: list[View]
    language: str = ""
    eef_pose: np.ndarray | None = None
    gripper: np.ndarray | None = None
    wrist_mount: np.ndarray | None = None
    wrist_K: np.ndarray | None = None
    wrist_size: tuple[int, int] | None = None
    wrist: View | None = None
    first_wrist: np.ndarray | None = None
    dropped: dict[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """The number of steps, T."""
        return len(self.anchors[0].frames)

    def measured_wrist_pose(self) -> np.ndarray | None:
        """[T, 4, 4] base-to-camera of the hand camera from kinematics, or None if not calibrated.

        inverse(base <- end effector . end effector <- camera), the rigid mount of a hand camera.
        """
        if self.eef_pose is None or self.wrist_mount is None:
            return None
        return np.linalg.inv(self.eef_pose @ self.wrist_mount)


def begun(episode: Episode) -> Episode:
    """The episode with the first frame of its recorded wrist view in place of the view."""
    first = None if episode.wrist is None else np.asarray(episode.wrist.frames[0])
    return replace(episode, wrist=None, first_wrist=first)


@dataclass
class WristStream:
    """The generated wrist view of one episode.

    Attributes:
        frames: [T, H, W, 3] uint8 RGB.
        valid: [T] bool, False where a frame could not be made (its pixels are then black), or where
            its confidence is below what was asked for (its pixels are then as they were made).
        coverage: [T] float32, the share of the frame that the condition map saw.
        condition: [T, H, W, 3] uint8, the condition map with its holes black.
        holes: [T, H, W] bool, True where the condition map saw nothing.
        pose: [T, 4, 4] the world-to-camera pose it was made for; K: [3, 3] at H x W.
        anchor_pose: [4, 4] or [T, 4, 4], the first anchor camera in the world of `pose`.
        depth: [T, S, h, w] float32, the depth that the first S anchors were projected with, at the
            size the network saw; only where it was asked for.
        joins: [T - 1] bool, whether frames t and t + 1 come from different clips of the generator;
            None where nothing was made in clips.
        notes: what was chosen and why (pose source, geometry source), for people and manifests.
        seconds: wall time by stage.
        confidence: [T] float32 in [0, 1], the SSIM that is expected of a frame; 0 for one that
            could not be made. None where the weights come with nothing to tell it from.
    """

    frames: np.ndarray
    valid: np.ndarray
    coverage: np.ndarray
    condition: np.ndarray | None = None
    holes: np.ndarray | None = None
    pose: np.ndarray | None = None
    K: np.ndarray | None = None
    anchor_pose: np.ndarray | None = None
    depth: np.ndarray | None = None
    joins: np.ndarray | None = None
    notes: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    confidence: np.ndarray | None = None
