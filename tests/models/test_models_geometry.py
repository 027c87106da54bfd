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


def test_rays_pass_through_the_tool():
    pose = random_pose(4, 1)[None]
    depth = torch.full((1, 1, 28, 42), 0.7)
    points = g.unproject(depth, K[None, None], pose)[0, 0]
    tool = torch.stack([points[11, 17], points[11, 25]])  # a segment across the picture
    rays, priors = g.calibrated_rays(K[None, None], pose, (28, 42), tool[None])
    distance, nearest = rays[0, 0, 7], 1 / rays[0, 0, 8]
    assert distance[11, 17:26].max() < 1e-3 and distance[11, 21] < distance[12, 21]
    torch.testing.assert_close(nearest[11, 17:26], torch.full((9,), 0.7), atol=1e-3, rtol=0)
    torch.testing.assert_close(priors[0, 0, 1], nearest)
    # Beyond the segment's ends the nearest point is an end: no pixel further off is nearer to it.
    assert distance[11, 27] > distance[11, 26] > 1e-3


def test_the_distance_to_the_tool_is_that_of_a_search_along_it():
    pose = random_pose(4, 1)[None]
    tool = torch.tensor([[[0.3, 0.1, 0.5], [0.35, -0.1, 0.3]]])
    rays, _ = g.calibrated_rays(K[None, None], pose, (28, 42), tool)
    start, unit, distance = rays[0, 0, :3, 9, 30], rays[0, 0, 3:6, 9, 30], rays[0, 0, 7, 9, 30]
    share = torch.linspace(0, 1, 2001)[:, None]
    offset = tool[0, 0] + share * (tool[0, 1] - tool[0, 0]) - start
    gap = (offset - (offset * unit).sum(-1, keepdim=True) * unit).norm(dim=-1).min()
    assert abs(min(float(gap), 1.0) - float(distance)) < 1e-3


def test_the_tool_lies_along_z():
    eef = random_pose(4, 2)
    tool = g.tool_axis(eef, reach=0.2)
    torch.testing.assert_close(tool[:, 0], eef[:, :3, 3])
    torch.testing.assert_close(tool[:, 1], (eef @ torch.tensor([0, 0, 0.2, 1]))[:, :3])


def test_rotation_angle_in_degrees():
    R = torch.as_tensor(Rotation.from_euler("z", 30, degrees=True).as_matrix()).float()
    assert abs(g.rotation_angle(torch.eye(3), R).item() - 30) < 1e-3


def test_geometry_keeps_its_digits_under_autocast():
    K = torch.tensor([[[[50.0, 0, 20], [0, 50, 15], [0, 0, 1]]]])
    pose = torch.eye(4).view(1, 1, 4, 4).clone()
    pose[..., 2, 3] = 1.234567
    expected = g.calibrated_rays(K, pose, (30, 40))[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert (K[0, 0] @ K[0, 0]).dtype == torch.bfloat16
        assert torch.equal(g.calibrated_rays(K, pose, (30, 40))[0], expected)
        with g.exact():
            assert (K[0, 0] @ K[0, 0]).dtype == torch.float32
