"""The SPC loss where it is easy to be wrong."""

import pytest
import torch
from wristaugment.models.geometry import project
from wristaugment.models.spc import spc_loss

SIZE = (60, 80)
K = torch.tensor([[70.0, 0, 40], [0, 70, 30], [0, 0, 1]])[None]


def scene(seed: int = 0, n: int = 40):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(1, n, 3, generator=generator) - 0.5
    points[..., 2] += 1.5
    pixels, _ = project(points, K, torch.eye(4)[None])
    return points, pixels, torch.ones(1, n, dtype=torch.bool)


def shifted(z: float = 0.0, x: float = 0.0) -> torch.Tensor:
    pose = torch.eye(4)[None].clone()
    pose[0, 0, 3], pose[0, 2, 3] = x, z
    return pose


def test_the_true_pose_costs_nothing():
    found = spc_loss(*scene(), K, shifted(), SIZE)
    assert found.loss < 1e-8 and found.front_share == 1


def test_matches_the_formula():
    points, pixels, valid = scene()
    pose = shifted(z=-1.4, x=0.02)  # some points in front, some behind
    z = points[0, :, 2] - 1.4
    uv = (points[0, :, :2] + torch.tensor([0.02, 0])) / z.clamp_min(0.01)[:, None]
    uv = uv * 70 + torch.tensor([40.0, 30])
    front = z > 0
    expected_u = (uv - pixels[0]).square().sum(-1)[front].mean() / (60**2 + 80**2)
    expected_depth = (-z[~front]).mean()
    found = spc_loss(points, pixels, valid, K, pose, SIZE, lambda_u=2, lambda_depth=3)
    torch.testing.assert_close(found.reprojection, expected_u)
    torch.testing.assert_close(found.behind, expected_depth)
    torch.testing.assert_close(found.loss, 2 * expected_u + 3 * expected_depth)


@pytest.mark.parametrize("z", [-5.0, 0.0])
def test_none_in_front_or_none_behind_is_finite_and_has_a_gradient(z):
    pose = shifted(z=z, x=0.1).requires_grad_()
    found = spc_loss(*scene(), K, pose, SIZE)
    found.loss.backward()
    assert torch.isfinite(found.loss) and torch.isfinite(pose.grad).all()
    assert pose.grad.abs().max() > 0
    assert found.front_share == (0.0 if z < 0 else 1.0)


def test_points_on_the_plane_of_the_camera_are_finite():
    points, pixels, valid = scene()
    points[..., 2] = 0
    pose = shifted().requires_grad_()
    spc_loss(points, pixels, valid, K, pose, SIZE).loss.backward()
    assert torch.isfinite(pose.grad).all()


def test_masked_correspondences_have_no_say():
    points, pixels, valid = scene()
    wild = points.clone()
    wild[0, 5] = torch.tensor([float("inf"), 0.0, 1e-30])
    wild[0, 6, 2] = -50
    valid[0, 5:7] = False
    pose = shifted(x=0.05)
    found = spc_loss(wild, pixels, valid, K, pose, SIZE)
    keep = [i for i in range(points.shape[1]) if i not in (5, 6)]
    expected = spc_loss(points[:, keep], pixels[:, keep], valid[:, keep], K, pose, SIZE)
    torch.testing.assert_close(found.loss, expected.loss)
    none = spc_loss(points, pixels, torch.zeros_like(valid), K, pose, SIZE)
    assert none.loss == 0


def test_gradient_agrees_with_finite_differences():
    points, pixels, valid = scene(n=12)
    pose = shifted(z=-1.45, x=0.03)
    pose = pose.requires_grad_()
    spc_loss(points, pixels, valid, K, pose, SIZE).loss.backward()
    step = 1e-3
    for i in range(3):
        for j in range(4):
            ends = []
            for sign in (1, -1):
                moved = pose.detach().clone()
                moved[0, i, j] += sign * step
                ends.append(spc_loss(points, pixels, valid, K, moved, SIZE).loss)
            numeric = (ends[0] - ends[1]) / (2 * step)
            assert abs(numeric - pose.grad[0, i, j]) < 0.05 * pose.grad.abs().max() + 1e-4


def test_half_precision_inputs_are_computed_in_full():
    points, pixels, valid = scene()
    with torch.autocast("cpu", torch.bfloat16):
        found = spc_loss(points, pixels, valid, K, shifted(x=0.02), SIZE)
    plain = spc_loss(points, pixels, valid, K, shifted(x=0.02), SIZE)
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss, plain.loss, rtol=2e-2, atol=1e-6)
