"""Where CALVIN's cameras are: from the configuration beside the frames, or as published.

A world of its own (metres, z up), with the static camera at a fixed place and the hand camera
bolted to the gripper; pictures are square pixels around the optical axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.spatial.transform import Rotation

from .errors import SourceError
from .npz import read_regular

CONFIG = ".hydra/merged_config.yaml"
_MAX_CONFIG = 1 << 18  # the real one has 10 kB, and PyYAML takes a second for this much
# calvin_env, conf/cameras/cameras/static.yaml and gripper.yaml.
STATIC_FOV, STATIC_FAR, GRIPPER_FOV = 10.0, 10.0, 75.0
LOOK_FROM = (2.871459009488717, -2.166602199425597, 2.555159848480571)
LOOK_AT = (-0.026242351159453392, -0.0302329882979393, 0.3920000493526459)
UP = (0.4041403970338857, 0.22629790978217404, 0.8862616969685161)
# tcp <- hand camera, from the robot's description (the tcp lies 0.14 m before the hand, the camera
# 0.1 m beside it, turned by rpy 1.3, 0, -1.57), with OpenCV's axes; as PyBullet renders it.
TCP_FROM_CAMERA = np.array(
    [
        [-0.000796, -0.963558, 0.267499, -0.1],
        [1.0, -0.000767, 0.000213, 0.0],
        [0.0, 0.267499, 0.963558, -0.14],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


@dataclass(frozen=True)
class Cameras:
    """A split's cameras.

    Attributes:
        static_pose: [4, 4] world-to-camera, or None where it is not known.
        static_fov, gripper_fov: the vertical field of view in degrees, or None.
        far: metres; what the static camera's depth shows there is nothing.
    """

    static_pose: np.ndarray | None
    static_fov: float | None
    gripper_fov: float | None = GRIPPER_FOV
    far: float = STATIC_FAR


def look_at_pose(eye, target, up) -> np.ndarray:
    """[4, 4] world-to-camera (OpenCV axes) of a camera at `eye` that looks at `target`.

    Raises:
        ValueError: the numbers are not finite, or leave the direction open.
    """
    eye, target, up = (np.asarray(value, np.float64) for value in (eye, target, up))
    if any(value.shape != (3,) or not np.isfinite(value).all() for value in (eye, target, up)):
        raise ValueError("not three finite numbers each")
    forward = target - eye
    right = np.cross(forward, up)
    lengths = np.linalg.norm(forward), np.linalg.norm(right)
    if min(lengths) < 1e-9 * max(1.0, float(np.linalg.norm(up))):
        raise ValueError("the camera looks at itself, or straight up")
    forward, right = forward / lengths[0], right / lengths[1]
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    pose[:3, 3] = -pose[:3, :3] @ eye
    return pose


def intrinsics(fov: float, size: tuple[int, int]) -> np.ndarray:
    """[3, 3] of square pixels; `fov` is the vertical angle in degrees, `size` is (H, W)."""
    focal = size[0] / 2 / math.tan(math.radians(fov) / 2)
    centre = (size[1] - 1) / 2, (size[0] - 1) / 2  # pixel centres at whole numbers
    return np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1.0]])


def tcp_poses(robot_obs: np.ndarray) -> np.ndarray:
    """[T, 4, 4] world <- tcp from [T, 6+] xyz in metres and extrinsic "xyz" euler angles."""
    poses = np.tile(np.eye(4), (len(robot_obs), 1, 1))
    poses[:, :3, :3] = Rotation.from_euler("xyz", robot_obs[:, 3:6]).as_matrix()
    poses[:, :3, 3] = robot_obs[:, :3]
    return poses


def read_cameras(folders: list[Path]) -> tuple[Cameras, SourceError | None]:
    """The cameras of a split, and what is wrong with their configuration.

    Args:
        folders: where the configuration may be, the split's first.

    Returns:
        Without a configuration the published cameras. Where one is there and cannot be understood
        the static camera's place is not known: a wrong one is worse than none.
    """
    path = next((path for folder in folders if (path := folder / CONFIG).exists()), None)
    if path is None:
        return Cameras(look_at_pose(LOOK_FROM, LOOK_AT, UP), STATIC_FOV), None
    try:
        tree = _load(path)
        cameras = tree.get("cameras") if isinstance(tree, dict) else None
        if not isinstance(cameras, dict):
            raise SourceError("names no cameras", file=path, key="cameras")
        fov = _number(path, cameras, "gripper", "fov", GRIPPER_FOV, 180.0)
        static = cameras.get("static")
        if not isinstance(static, dict):
            return Cameras(None, None, fov), None
        try:
            pose = look_at_pose(static["look_from"], static["look_at"], static["up_vector"])
        except (KeyError, TypeError, ValueError):
            raise SourceError("is no place of a camera", file=path, key="cameras.static") from None
        return Cameras(
            pose,
            _number(path, cameras, "static", "fov", STATIC_FOV, 180.0),
            fov,
            _number(path, cameras, "static", "farval", STATIC_FAR, math.inf),
        ), None
    except SourceError as error:
        error.todo = "the place of the static camera is taken as unknown; check the source"
        return Cameras(None, None), error


def _number(path: Path, cameras: dict, name: str, key: str, usual: float, below: float) -> float:
    camera = cameras.get(name)
    value = camera.get(key, usual) if isinstance(camera, dict) else usual
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < below:
        raise SourceError(f"is {value!r:.40}", file=path, key=f"cameras.{name}.{key}")
    return float(value)


class _Loader(yaml.SafeLoader):
    """YAML of plain data: unknown tags are nothing, and `<<` is not expanded (it can explode)."""

    def flatten_mapping(self, node: Any) -> None:
        """Leave merge keys alone."""


_Loader.add_multi_constructor("", lambda loader, suffix, node: None)


def _load(path: Path) -> Any:
    data = read_regular(path, _MAX_CONFIG)
    try:
        return yaml.load(data, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, OverflowError):
        raise SourceError("is no YAML of plain data", file=path) from None
