"""Condition maps: lifting, silhouettes, holes, and the wrist's intrinsics."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from wristaugment.augment.project import (
    condition_maps,
    fill_holes,
    scaled_wrist_K,
    smooth_surface,
)
from wristaugment.augment.recipe import RECIPES
from wristaugment.readers.episode import View

RECIPE = replace(RECIPES["projection"], wrist_size=(24, 32), edge=0.1, min_confidence=1.0)
K = torch.tensor([[40.0, 0, 19.5], [0, 40, 14.5], [0, 0, 1]])


def plane(steps: int = 2, size: tuple[int, int] = (30, 40)):
    """A camera a metre in front of a wall that is red on the left and green on the right."""
    frames = np.zeros((steps, *size, 3), np.uint8)
    frames[:, :, : size[1] // 2, 0] = 200
    frames[:, :, size[1] // 2 :, 1] = 200
    depth = torch.ones(steps, 1, *size)
    return [View("anchor", frames)], depth, torch.full_like(depth, 5.0)


def maps_from(shift: float, **settings):
    anchors, depth, confidence = plane()
    wrist_pose = torch.eye(4).repeat(2, 1, 1)
    wrist_pose[:, 0, 3] = shift
    wrist_K = torch.tensor([[32.0, 0, 15.5], [0, 32, 11.5], [0, 0, 1]])
    recipe = replace(RECIPE, **settings)
    pose = torch.eye(4)[None]
    return condition_maps(
        anchors, depth, confidence, K[None], pose, wrist_K, wrist_pose, recipe, batch=1
    )


def test_the_same_camera_sees_the_same_picture():
    maps = maps_from(0.0)
    assert maps.coverage.min() == 1
    assert (maps.color[:, :, :14, 0] == 200).all() and (maps.color[:, :, 18:, 1] == 200).all()
    np.testing.assert_allclose(maps.nearness, 0.05, atol=2e-3)


def test_a_camera_to_the_side_sees_the_wall_shifted_and_a_hole():
    maps = maps_from(-0.25)  # the camera moves 0.25 m to the right: 8 pixels of the wall
    assert (maps.color[:, :, :6, 0] == 200).all() and (maps.color[:, :, 10:20, 1] == 200).all()
    assert 0.6 < maps.coverage[0] < 0.95
    assert not maps.covered[:, :, -2:].any() and (maps.color[~maps.covered] == 0).all()
    assert (maps.filled[:, :, -2:, 1] == 200).all()  # the nearest covered pixel is green


def test_supersampling_keeps_the_picture():
    maps = maps_from(0.0, supersample=2)
    assert maps.color.shape == (2, 24, 32, 3)
    assert (maps.color[:, :, :14, 0] >= 199).all() and maps.coverage.min() == 1


def test_low_confidence_is_left_out():
    anchors, depth, confidence = plane()
    confidence[:, :, :, 20:] = 1.0  # below what the recipe asks for
    poses = torch.eye(4).repeat(2, 1, 1)
    maps = condition_maps(
        anchors, depth, confidence, K[None], poses[:1], K, poses,
        replace(RECIPE, wrist_size=(30, 40), min_confidence=2.0),
    )  # fmt: skip
    assert not maps.color[..., 1].any() and maps.color[..., 0].any()


def test_silhouettes_are_left_out_and_flat_surfaces_are_not():
    depth = torch.ones(1, 6, 8)
    depth[:, :, 4:] = 0.5
    kept = smooth_surface(depth, 0.1)
    assert not kept[:, :, 3:5].any()
    assert kept[:, :, :3].all() and kept[:, :, 5:].all()


def test_frames_that_saw_nothing_are_grey():
    color = np.zeros((1, 4, 5, 3), np.uint8)
    filled, depth = fill_holes(color, np.zeros((1, 4, 5)), np.zeros((1, 4, 5), bool))
    assert (filled == 128).all() and (depth == 0).all()


def test_intrinsics_come_from_calibration_then_the_head_then_the_recipe():
    known = np.array([[80.0, 0, 31.5], [0, 80, 23.5], [0, 0, 1]])
    scaled = scaled_wrist_K(known, (48, 64), None, RECIPE)
    torch.testing.assert_close(scaled[:2, 2], torch.tensor([15.5, 11.5]))
    assert scaled[0, 0] == 40
    from_head = scaled_wrist_K(None, None, torch.tensor([0.8, 1.0]), RECIPE)
    assert from_head[0, 0].item() == pytest.approx(16 / np.tan(0.5), rel=1e-5)
    wild = scaled_wrist_K(None, None, torch.tensor([0.0, 0.0]), RECIPE)
    expected = 16 / np.tan(np.deg2rad(RECIPE.wrist_hfov) / 2)
    assert wild[0, 0].item() == pytest.approx(expected, rel=1e-5)
