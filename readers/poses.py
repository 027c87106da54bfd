"""How datasets spell a pose in numbers, and the 4x4 matrix that is meant.

Every encoding begins with x, y, z in metres. Angles are radians, extrinsic (about fixed axes), in
the order of the axes' letters; "roll, pitch, yaw" is "euler_xyz".
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

# How many numbers each has. "matrix" is a 4x4 by rows or by columns: which one, its zeros tell.
# "position" has no orientation, so it gives no pose.
ENCODINGS = {
    "euler_xyz": 6,
    "euler_zxy": 6,
    "quat_xyzw": 7,
    "quat_wxyz": 7,
    "rotvec": 6,
    "matrix": 16,
    "position": 3,
}
_REACH = 20.0  # metres; no arm is that long, so numbers beyond it are millimetres or wrong
_LOOSE = 0.02  # a stored rotation has been rounded to float32, sometimes smoothed


def decode_poses(values: np.ndarray, encoding: str) -> np.ndarray | None:
    """Poses from their numbers.

    Args:
        values: [T, ENCODINGS[encoding]].
        encoding: of ENCODINGS.

    Returns:
        [T, 4, 4] float64, reference <- body, or None where the numbers are no poses in metres (a
        quaternion of length 0, a matrix that is no rotation, positions out of any arm's reach) or
        the encoding has no orientation.
    """
    if encoding == "position" or not np.isfinite(values).all():
        return None
    out = np.tile(np.eye(4), (len(values), 1, 1))
    if encoding == "matrix":
        matrices = _by_rows(values.reshape(-1, 4, 4))
        if matrices is None:
            return None
        out[:, :3] = matrices[:, :3]
    else:
        rotation = _rotation(values[:, 3:], encoding)
        if rotation is None:
            return None
        out[:, :3, :3] = rotation.as_matrix()
        out[:, :3, 3] = values[:, :3]
    return out if (np.abs(out[:, :3, 3]) <= _REACH).all() else None


def _rotation(values: np.ndarray, encoding: str) -> Rotation | None:
    if encoding.startswith("euler_"):
        return Rotation.from_euler(encoding.removeprefix("euler_"), values)
    if encoding == "rotvec":
        return Rotation.from_rotvec(values)
    if encoding in ("quat_xyzw", "quat_wxyz"):
        lengths = np.linalg.norm(values, axis=1)
        if (np.abs(lengths - 1) > _LOOSE).any():
            return None
        last = values if encoding == "quat_xyzw" else np.roll(values, -1, axis=1)
        return Rotation.from_quat(last)
    raise ValueError(f"no such encoding of poses: {encoding!r}")


def _by_rows(matrices: np.ndarray) -> np.ndarray | None:
    """[T, 4, 4] with the position in the last column, or None where they are no poses."""
    if np.abs(matrices[:, 3, :3]).max(initial=0) > _LOOSE:
        matrices = np.swapaxes(matrices, 1, 2)
    rotations = matrices[:, :3, :3]
    square = rotations @ np.swapaxes(rotations, 1, 2)
    bottom = np.abs(matrices[:, 3] - (0, 0, 0, 1)).max(initial=0)
    if bottom > _LOOSE or np.abs(square - np.eye(3)).max(initial=0) > _LOOSE:
        return None
    return matrices if (np.linalg.det(rotations) > 0).all() else None
