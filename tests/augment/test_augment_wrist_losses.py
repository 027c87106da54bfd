"""The wrist head's losses: in the network's units, over what is known, in full precision."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from wristaugment.augment.train_wrist import wrist_batch
from wristaugment.augment.wrist_losses import (
    SETTINGS,
    WristSettings,
    measured_cameras,
    network_scale,
    pixel_errors,
    relative,
    wrist_intrinsics,
    wrist_losses,
)
from wristaugment.models.correspond import Correspondences
from wristaugment.models.geometry import decode_pose, encode_pose, project

SIZE = (56, 56)


def truth_of(batch, scale):
    """The measured wrist as an encoding, in a network whose unit is 1 / scale metres."""
    pose = relative(batch["wrist_pose"], batch["pose"][:, 0], scale)
    return encode_pose(pose, batch["wrist_K"], SIZE)


def some_points(batch, scale, n=20):
    """Correspondences of points that the hand camera sees, as its true pose projects them."""
    torch.manual_seed(5)
    pose = relative(batch["wrist_pose"], batch["pose"][:, 0], scale)
    seen = torch.rand(len(pose), n, 3) * 0.3 + torch.tensor([-0.15, -0.15, 0.3])
    points = (seen * scale[:, None, None] - pose[:, None, :3, 3]) @ pose[:, :3, :3]
    pixels, _ = project(points, batch["wrist_K"], pose)
    return Correspondences(points, pixels, torch.ones(len(pose), n, dtype=torch.bool))


EVERY = WristSettings(translation=1.0, rotation=1.0, fov=1.0, camera=1.0)


def test_the_truth_costs_nothing_in_the_networks_units(rows):
    batch = wrist_batch(rows, np.arange(2))
    scale = torch.tensor([2.5, 0.4])
    cameras = encode_pose(relative(batch["pose"], batch["pose"][:, 0], scale), batch["K"], SIZE)
    torch.testing.assert_close(network_scale(cameras, batch["pose"]), scale)
    assert network_scale(cameras, batch["pose"], metric=True).tolist() == [1, 1]
    truth, found = truth_of(batch, scale), some_points(batch, scale)
    losses = wrist_losses(truth[None], cameras[None], batch, found, scale, SIZE, EVERY)
    assert {"wrist_translation", "wrist_rotation", "wrist_fov", "camera", "spc"} <= losses.keys()
    assert losses["loss"] < 1e-3 and losses["front_share"] == 1
    flipped = truth.clone()
    flipped[:, 3:7] *= -1  # the same rotation
    assert (
        wrist_losses(flipped[None], cameras[None], batch, found, scale, SIZE, EVERY)["loss"] < 1e-3
    )
    # In metres the translation would be off.
    off = wrist_losses(truth[None], None, batch, found, torch.ones(2), SIZE, EVERY)
    assert off["wrist_translation"] > 0.1 and off["wrist_rotation"] < 1e-3


def test_l1_terms_are_weighted_by_iteration(rows):
    batch, scale = wrist_batch(rows, np.arange(1)), torch.ones(1)
    truth, found = truth_of(batch, scale), some_points(batch, scale)
    off = truth + torch.tensor([0.3, 0, 0, 0, 0, 0, 0, 0.1, 0.2])
    settings = WristSettings(spc=2.0, translation=3.0, fov=10.0, gamma=0.5)
    got = wrist_losses(torch.stack([off, truth]), None, batch, found, scale, SIZE, settings)
    assert got["wrist_translation"].item() == pytest.approx(0.5 * 0.1, rel=1e-4)
    assert got["wrist_fov"].item() == pytest.approx(0.5 * 0.15, rel=1e-4)
    assert got["loss"].item() == pytest.approx(3 * 0.05 + 10 * 0.075, rel=1e-3)
    # SPC is of the last iteration alone.
    other = wrist_losses(torch.stack([truth, off]), None, batch, found, scale, SIZE, settings)
    assert got["spc"] < 1e-6 < other["spc"]
    expected = 2 * other["spc"] + 3 * other["wrist_translation"] + 10 * other["wrist_fov"]
    assert other["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_rows_without_calibration_have_no_say_in_l1_and_leave_gradients_whole(rows):
    batch, scale = wrist_batch(rows, np.arange(2)), torch.ones(2)
    found = some_points(batch, scale)
    found.valid[1] = False
    start = truth_of(batch, scale) + 0.1
    cameras = encode_pose(relative(batch["pose"], batch["pose"][:, 0], scale), batch["K"], SIZE)
    cameras = (cameras + 0.1)[None].requires_grad_()
    for name in ("K", "pose", "wrist_pose"):
        batch[name][1] = float("nan")
    scale[1] = float("nan")
    settings = replace(EVERY, fov=0.0)
    encoding = start[None].clone().requires_grad_()
    both = wrist_losses(encoding, cameras, batch, found, scale, SIZE, settings)
    both["loss"].backward()
    assert encoding.grad.isfinite().all() and encoding.grad[0, 0].abs().max() > 0
    assert cameras.grad.isfinite().all() and not cameras.grad[0, 1].any()
    assert not encoding.grad[0, 1].any()
    one = {name: value[:1] for name, value in batch.items()}
    first = Correspondences(found.points[:1], found.pixels[:1], found.valid[:1])
    alone = wrist_losses(start[None, :1], cameras[:, :1], one, first, scale[:1], SIZE, settings)
    torch.testing.assert_close(both["loss"], alone["loss"])


def test_an_unknown_scale_leaves_translations_and_cameras_out(rows):
    batch, scale = wrist_batch(rows, np.arange(2)), torch.tensor([2.0, torch.nan])
    found = some_points(batch, torch.ones(2))
    encoding = (truth_of(batch, torch.ones(2)) + 0.1)[None].requires_grad_()
    cameras = torch.full((1, 2, 2, 9), 0.3, requires_grad=True)
    settings = replace(EVERY, spc=0.0, fov=0.0)
    wrist_losses(encoding, cameras, batch, found, scale, SIZE, settings)["loss"].backward()
    assert encoding.grad[0, 0, :7].all() and cameras.grad[0, 0].any()
    assert not encoding.grad[0, 1, :3].any() and encoding.grad[0, 1, 3:7].all()
    assert not cameras.grad[0, 1].any()


def test_the_scale_is_unknown_with_one_anchor_or_none_measured(rows):
    batch = wrist_batch(rows, np.arange(1))
    assert network_scale(torch.zeros(1, 1, 9), batch["pose"][:, :1]).isnan().all()
    assert network_scale(None, batch["pose"]).isnan().all()
    assert network_scale(torch.zeros(1, 2, 9), batch["pose"] * torch.nan).isnan().all()


def test_cameras_are_the_measured_ones_where_the_scale_is_known(rows):
    batch, scale = wrist_batch(rows, np.arange(3)), torch.tensor([2.0, 2.0, torch.nan])
    batch["K"][1] = batch["pose"][1] = float("nan")
    guess = torch.tensor([0.1, 0.2, 0.3, 0, 0, 0, 1, 1.0, 1.2]).expand(3, 2, -1)
    K, pose = measured_cameras(batch, guess, scale, SIZE)
    torch.testing.assert_close(K[0], batch["K"][0])
    apart = (batch["pose"][0, 1] @ torch.linalg.inv(batch["pose"][0, 0]))[:3, 3]
    torch.testing.assert_close(pose[0, 1, :3, 3], 2 * apart)
    torch.testing.assert_close(pose[0, 0], torch.eye(4), rtol=0, atol=1e-5)
    predicted = decode_pose(guess[1:], SIZE)
    torch.testing.assert_close(pose[1:], predicted[0])
    torch.testing.assert_close(K[1:], predicted[1])


def test_autocast_changes_no_loss(rows):
    batch, scale = wrist_batch(rows, np.arange(2)), torch.full((2,), 1.7)
    start, found = truth_of(batch, scale) + 0.05, some_points(batch, scale)
    plain = wrist_losses(start[None], None, batch, found, scale, SIZE, EVERY)
    with torch.autocast("cpu", torch.bfloat16):
        cast = wrist_losses(start[None], None, batch, found, scale, SIZE, EVERY)
    assert all(torch.equal(plain[name], cast[name]) for name in plain)


def test_the_official_wrist_camera_is_centred(rows):
    batch = wrist_batch(rows, np.arange(2))
    batch["wrist_K"][:, 0, 2] += 3
    whole = wrist_intrinsics(batch, SIZE, SETTINGS["paper"])
    assert torch.equal(whole, batch["wrist_K"])
    centred = wrist_intrinsics(batch, SIZE, SETTINGS["official"])
    assert centred[0, :2, 2].tolist() == [28, 28]
    assert torch.equal(centred[:, :2, :2], whole[:, :2, :2])


def test_pixel_errors_are_of_what_is_in_front():
    K = torch.tensor([[[10.0, 0, 5], [0, 10, 5], [0, 0, 1]]])
    points = torch.tensor([[[0.0, 0, 1], [1, 0, 2], [0, 0, -1], [0, 0, 1]]])
    pixels = torch.tensor([[[5.0, 5], [13, 9], [5, 5], [90, 90]]])
    valid = torch.tensor([[True, True, True, False]])
    errors, front = pixel_errors(Correspondences(points, pixels, valid), K, torch.eye(4)[None])
    assert errors.tolist() == pytest.approx([0, 5]) and front.item() == pytest.approx(2 / 3)
