"""Poses in the spellings of public datasets."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from wristaugment.readers.poses import ENCODINGS, decode_poses

RNG = np.random.default_rng(3)
TURN = Rotation.from_quat(RNG.normal(size=(5, 4)))
PLACE = RNG.uniform(-0.8, 0.8, (5, 3))


def spelled(encoding: str, by_columns: bool = False) -> np.ndarray:
    """[5, N] the poses above in an encoding."""
    if encoding == "matrix":
        out = np.tile(np.eye(4), (5, 1, 1))
        out[:, :3, :3], out[:, :3, 3] = TURN.as_matrix(), PLACE
        return (np.swapaxes(out, 1, 2) if by_columns else out).reshape(5, 16)
    quat = TURN.as_quat()  # x, y, z, w
    turn = {
        "euler_xyz": TURN.as_euler("xyz"),
        "euler_zxy": TURN.as_euler("zxy"),
        "quat_xyzw": quat,
        "quat_wxyz": quat[:, [3, 0, 1, 2]],
        "rotvec": TURN.as_rotvec(),
    }[encoding]
    return np.hstack((PLACE, turn))


@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name != "position"])
def test_every_spelling_gives_the_same_poses(encoding):
    values = spelled(encoding).astype(np.float32).astype(np.float64)
    assert values.shape[1] == ENCODINGS[encoding]
    poses = decode_poses(values, encoding)
    np.testing.assert_allclose(poses[:, :3, :3], TURN.as_matrix(), atol=1e-5)
    np.testing.assert_allclose(poses[:, :3, 3], PLACE, atol=1e-6)
    np.testing.assert_array_equal(poses[:, 3], np.tile((0, 0, 0, 1), (5, 1)))


def test_matrices_by_columns_are_told_by_their_zeros():
    poses = decode_poses(spelled("matrix", by_columns=True), "matrix")
    np.testing.assert_allclose(poses.reshape(5, 16), spelled("matrix"))


@pytest.mark.parametrize(
    ("encoding", "change"),
    [
        ("quat_xyzw", lambda values: values * (1, 1, 1, 0, 0, 0, 0)),  # no orientation at all
        ("quat_wxyz", lambda values: values * (1, 1, 1, 2, 2, 2, 2)),
        ("euler_xyz", lambda values: values * (1000, 1000, 1000, 1, 1, 1)),  # millimetres
        ("matrix", lambda values: values * 1.5),
        ("matrix", lambda values: np.zeros_like(values)),
        ("matrix", lambda values: values * np.tile((-1, 1, 1, 1), 4)),  # a mirror
        ("rotvec", lambda values: values * np.nan),
    ],
)
def test_what_is_no_pose_gives_none(encoding, change):
    assert decode_poses(change(spelled(encoding)), encoding) is None


def test_a_position_alone_is_no_pose():
    assert decode_poses(PLACE, "position") is None
