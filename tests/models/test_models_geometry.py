"""Camera geometry: round trips, and the places where formulas divide."""

import pytest
import torch
from scipy.spatial.transform import Rotation
from wristaugment.models import geometry as g


def random_pose(seed: int, n: int = 6) -> torch.Tensor:
    pose = torch.eye(4).repeat(n, 1, 1)
    pose[:, :3, :3] = torch.as_tensor(Rotation.random(n, random_state=seed).as_matrix())
    pose[:, :3, 3] = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return pose.float()


K = torch.tensor([[90.0, 0, 40], [0, 80, 30], [0, 0, 1]])


def test_quaternions_agree_with_scipy():
    rotations = Rotation.random(50, random_state=1)
    q = torch.as_tensor(rotations.as_quat()).float()
    matrices = torch.as_tensor(rotations.as_matrix()).float()
    torch.testing.assert_close(g.quaternion_to_matrix(3 * q), matrices, atol=1e-5, rtol=0)
    back = g.matrix_to_quaternion(matrices)
    torch.testing.assert_close((back * q).sum(-1).abs(), torch.ones(50), atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_half_turns_have_a_quaternion(axis):
    R = torch.as_tensor(Rotation.from_euler(axis, 180, degrees=True).as_matrix()).float()
    back = g.quaternion_to_matrix(g.matrix_to_quaternion(R))
    torch.testing.assert_close(back, R, atol=1e-5, rtol=0)


def test_pose_encoding_round_trip():
    size = (60, 80)
    centred = K.clone()
    centred[0, 2], centred[1, 2] = 40, 30
    pose = random_pose(2)
    decoded, intrinsics = g.decode_pose(g.encode_pose(pose, centred.expand(6, 3, 3), size), size)
    torch.testing.assert_close(decoded, pose, atol=1e-5, rtol=0)
    torch.testing.assert_close(intrinsics, centred.expand(6, 3, 3), atol=1e-3, rtol=0)


def test_lifting_then_projecting_returns_every_pixel():
    depth = torch.rand(6, 30, 40) + 0.5
    pose = random_pose(3)
    intrinsics = K.expand(6, 3, 3)
    points = g.unproject(depth, intrinsics, pose).flatten(1, 2)
    pixels, z = g.project(points, intrinsics, pose)
    grid = g.pixel_grid(30, 40)[..., :2].flatten(0, 1).expand(6, -1, -1)
    torch.testing.assert_close(pixels, grid, atol=2e-3, rtol=0)
    torch.testing.assert_close(z, depth.flatten(1), atol=1e-4, rtol=0)


def test_resizing_keeps_corners():
    scaled = g.rescale_intrinsics(K, (60, 80), (30, 20))
    corner = torch.linalg.inv(K) @ torch.tensor([79.5, 59.5, 1])
    moved = scaled @ corner
    torch.testing.assert_close(moved, torch.tensor([19.5, 29.5, 1]), atol=1e-4, rtol=0)


def test_projection_on_the_camera_plane_is_finite():
    pixels, z = g.project(torch.tensor([[[1.0, 1, 0]]]), K[None], torch.eye(4)[None])
    assert torch.isfinite(pixels).all() and z.item() == 0


def test_rays_pass_through_the_gripper():
    pose = random_pose(4, 1)[None]
    depth = torch.full((1, 1, 28, 42), 0.7)
    target = g.unproject(depth, K[None, None], pose)[0, 0, 11, 17]
    rays, _ = g.calibrated_rays(K[None, None], pose, (28, 42), target[None])
    distance, nearest = rays[0, 0, 7], 1 / rays[0, 0, 8]
    assert distance[11, 17] < 1e-3 and distance.argmin() == 11 * 42 + 17
    assert abs(nearest[11, 17] - 0.7) < 1e-3


def test_rotation_angle_in_degrees():
    R = torch.as_tensor(Rotation.from_euler("z", 30, degrees=True).as_matrix()).float()
    assert abs(g.rotation_angle(torch.eye(3), R).item() - 30) < 1e-3
