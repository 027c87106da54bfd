"""Which array of a ReplayBuffer is what: a table of its families, and what a picture looks like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from .zarr_array import ArrayMeta

_SMALLEST = 8  # pixels; a narrower array is a table


@dataclass(frozen=True)
class Layout:
    """Where one family of ReplayBuffers keeps what; keys without `data/`.

    Attributes:
        name, aliases: what users call it.
        marks: patterns; it is this layout if keys match all of them.
        hands: a pattern of cameras that are hand cameras though their names do not say so.
        eef: (key, rotation): xyz in metres in `key`, and the rotation in the key `rotation`; where
            that is "", `key` has six numbers, xyz and a rotation vector.
        gripper: (key, what it holds when open), its opening in metres.
    """

    name: str
    aliases: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    hands: str | None = None
    eef: tuple[str, str] | None = None
    gripper: tuple[str, float] | None = None


LAYOUTS = (
    Layout(
        "umi",
        aliases=("universal_manipulation_interface",),
        marks=(r"camera\d+_rgb", r"robot\d+_eef_rot_axis_angle"),
        hands=r"camera\d+_rgb",
        eef=("robot0_eef_pos", "robot0_eef_rot_axis_angle"),
        gripper=("robot0_gripper_width", 0.08),
    ),
    Layout(
        "robomimic_replay",
        aliases=("diffusion_policy_robomimic",),
        marks=(r"robot0_eef_quat",),
        eef=("robot0_eef_pos", "robot0_eef_quat"),
        gripper=("robot0_gripper_qpos", 0.04),
    ),
    Layout(
        "real_robot_replay",
        aliases=("real_pusht", "diffusion_policy_real"),
        marks=(r"robot_eef_pose",),
        eef=("robot_eef_pose", ""),
    ),
    Layout("replay_buffer", aliases=("diffusion_policy", "pusht")),
)


def is_picture(meta: ArrayMeta) -> bool:
    """Whether an array is [T, H, W, 3] or [T, 3, H, W] of uint8 or floats."""
    if len(meta.shape) != 4 or meta.dtype is None:
        return False
    kind = meta.dtype == np.uint8 or meta.dtype.kind == "f"
    return kind and 3 in (meta.shape[3], meta.shape[1]) and min(size_of(meta)) >= _SMALLEST


def is_depth(meta: ArrayMeta) -> bool:
    """Whether an array is [T, H, W] or [T, H, W, 1] and its name says that it is depth."""
    shape = meta.shape[:-1] if len(meta.shape) == 4 and meta.shape[-1] == 1 else meta.shape
    named = "depth" in meta.name.lower()
    return named and len(shape) == 3 and meta.dtype is not None and min(size_of(meta)) >= _SMALLEST


def size_of(meta: ArrayMeta) -> tuple[int, int]:
    """(height, width) of the pictures of an array."""
    first = len(meta.shape) == 4 and meta.shape[3] not in (1, 3) and meta.shape[1] == 3
    return (meta.shape[2], meta.shape[3]) if first else (meta.shape[1], meta.shape[2])


def channels_last(values: np.ndarray, meta: ArrayMeta) -> np.ndarray:
    """[N, H, W, 3] (or [N, H, W] of depth) from some of an array's steps as they are stored."""
    if is_depth(meta):
        return values.reshape(len(values), *size_of(meta))
    return values if meta.shape[3] == 3 else np.moveaxis(values, 1, 3)


def poses(position: np.ndarray, turn: np.ndarray) -> np.ndarray | None:
    """End-effector poses, or None where they are not finite or no rotations.

    Args:
        position: [T, 3] metres.
        turn: [T, 3] rotation vectors, or [T, 4] quaternions, xyzw as robosuite writes them.

    Returns:
        [T, 4, 4] base <- end effector.
    """
    if not (np.isfinite(position).all() and np.isfinite(turn).all()):
        return None
    quaternions = turn.shape[1] == 4
    if quaternions and (np.linalg.norm(turn, axis=1) < 0.5).any():
        return None
    rotation = Rotation.from_quat(turn) if quaternions else Rotation.from_rotvec(turn)
    out = np.tile(np.eye(4), (len(position), 1, 1))
    out[:, :3, :3] = rotation.as_matrix()
    out[:, :3, 3] = position
    return out
