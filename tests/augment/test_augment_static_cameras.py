"""One scale and one camera an episode, from timesteps that were each seen alone."""

import pytest
import torch
from wristaugment.augment.static_cameras import Frames, frame_scales, metric_scale, settle
from wristaugment.models.geometry import decode_pose, encode_pose


def episode(steps: int = 9, *, moving: float = 0.2):
    """A static scene of two cameras with a part that moves, seen at another scale in every step."""
    generator = torch.Generator().manual_seed(3)
    depth = 0.5 + torch.rand(2, 24, 30, generator=generator).expand(steps, -1, -1, -1).clone()
    columns = int(moving * 30)
    depth[..., :columns] *= torch.rand(steps, 1, 1, 1, generator=generator) + 0.3
    scale = (torch.randn(steps, generator=generator) * 0.4).exp()
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[1, :3, 3] = torch.tensor([0.4, -0.1, 0.2])
    K = torch.tensor([[30.0, 0, 15], [0, 30, 12], [0, 0, 1]]).expand(2, 3, 3)
    cameras = encode_pose(pose, K, (24, 30)).expand(steps, 2, 9).clone()
    wrist = torch.zeros(steps, 9)
    wrist[:, 2], wrist[:, 6], wrist[:, 7:] = 0.3, 1.0, 1.0
    seen = Frames(cameras, wrist, depth, torch.full_like(depth, 3.0)).scaled(scale)
    return seen, depth, pose, scale


def test_the_scale_of_every_step_is_found_although_a_part_moves():
    seen, _, _, scale = episode()
    found = frame_scales(seen.depth, seen.confidence)
    ratio = found / scale
    torch.testing.assert_close(ratio, ratio[:1].expand(9), rtol=1e-4, atol=0)
    assert abs(float(found.log().mean())) < 1e-6


def test_unsure_pixels_have_no_say():
    seen, _, _, scale = episode(moving=0.7)
    seen.confidence[..., :21] = 1.0  # most of the picture moves, and is known to be unsure
    ratio = frame_scales(seen.depth, seen.confidence) / scale
    torch.testing.assert_close(ratio, ratio[:1].expand(9), rtol=1e-4, atol=0)


def test_settled_frames_share_scale_and_cameras():
    seen, depth, pose, _ = episode()
    common = settle(seen)
    unit = (common.depth / depth).flatten()
    torch.testing.assert_close(unit, unit[:1].expand_as(unit), rtol=1e-4, atol=1e-5)
    settled, _ = decode_pose(common.cameras, (24, 30))
    torch.testing.assert_close(settled, settled[:1].expand_as(settled))
    torch.testing.assert_close(settled[0, 1, :3, 3], pose[1, :3, 3] * unit[0], rtol=1e-4, atol=1e-5)
    wrist = common.wrist[:, 2] / unit[0]
    torch.testing.assert_close(wrist, torch.full((9,), 0.3), rtol=1e-4, atol=1e-5)


def test_points_are_scaled_with_the_rest():
    seen, _, _, _ = episode()
    seen.points = seen.depth[..., None] * torch.tensor([0.1, -0.2, 1.0])
    common = settle(seen)
    torch.testing.assert_close(common.points[..., 2], common.depth)


def test_one_step_keeps_its_scale():
    seen, _, _, _ = episode(1)
    torch.testing.assert_close(settle(seen).depth, seen.depth)


def test_metres_come_from_the_distances_between_cameras():
    predicted = torch.eye(4).repeat(3, 1, 1)
    predicted[:, :3, 3] = torch.tensor([[0, 0, 0], [1.0, 0, 0], [0, 2.0, 0]])
    turned = torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    measured = predicted.clone()
    measured[:, :3, 3] *= 0.25
    assert metric_scale(predicted, measured @ turned) == pytest.approx(0.25, rel=1e-5)
    assert metric_scale(predicted[:1], measured[:1]) is None
    assert metric_scale(torch.eye(4).repeat(2, 1, 1), measured[:2]) is None
