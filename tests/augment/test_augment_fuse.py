"""Anchors fused over time: what stood still comes back, what was moved does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from wristaugment.augment import fuse as module
from wristaugment.augment.fuse import background_colors, fuse, fuse_static
from wristaugment.augment.project import condition_maps
from wristaugment.augment.recipe import RECIPES
from wristaugment.augment.reconstruct import Reconstruction
from wristaugment.readers.episode import Episode, Record, View

T, H, W = 9, 24, 32
TABLE, THING, ARM = 1.0, 0.9, 0.6
K = torch.tensor([[30.0, 0, 15.5], [0, 30.0, 11.5], [0, 0, 1]])
COLOURS = {TABLE: (90, 120, 60), THING: (200, 30, 30), ARM: (240, 240, 240)}
BOX = (slice(8, 14), slice(10, 16))  # where the thing stands


def scene(arm, thing, *, noise=0.0, views=1):
    """An episode, its depth [T, S, H, W]: arm(t) -> columns it hides, thing(t) -> whether it is."""
    depth = torch.full((T, views, H, W), TABLE)
    for t in range(T):
        if thing(t):
            depth[t, 0][BOX] = THING
        depth[t, 0, :, arm(t)] = ARM
    frames = np.zeros((T, H, W, 3), np.uint8)
    for z, colour in COLOURS.items():
        frames[np.isclose(depth[:, 0].numpy(), z)] = colour
    if noise:
        generator = torch.Generator().manual_seed(0)
        depth = depth * (1 + noise * torch.randn(depth.shape, generator=generator))
    views = [View(f"anchor_{s}", frames) for s in range(views)]
    return Episode(Record("train", 0, 0), views), depth


def fused(episode, depth, sure=2.0, pose=None):
    pose = torch.eye(4).expand(depth.shape[1], 4, 4) if pose is None else pose
    confidence = torch.full_like(depth, sure)
    return fuse(
        episode,
        depth,
        confidence,
        K.expand(len(pose), 3, 3),
        pose,
        min_confidence=1.0,
        in_base=True,
    )


def passing(t):
    """An arm that hides columns 8 to 17 at times 3 to 5."""
    return slice(8, 18) if 3 <= t <= 5 else slice(0, 0)


def test_what_an_arm_hides_is_there_before_and_after():
    episode, depth = scene(passing, lambda t: True)
    _, behind = fused(episode, depth)
    for t in range(T):
        assert bool(behind.shown[t, 0, :, 8:18].all()) == (3 <= t <= 5)
    assert not behind.shown[:, 0, :, :8].any() and not behind.shown[:, 0, :, 18:].any()
    assert torch.allclose(behind.depth[0][BOX], torch.tensor(THING))
    assert torch.allclose(behind.depth[0, :6, 8:18], torch.tensor(TABLE))
    colours = background_colors(episode.anchors[0], behind, 0, (H, W))
    assert tuple(colours[10, 12].tolist()) == COLOURS[THING]
    assert tuple(colours[2, 12].tolist()) == COLOURS[TABLE]
    assert not colours[:, :8].any()


@pytest.mark.parametrize("comes", [False, True], ids=["taken-away", "put-down"])
def test_a_thing_that_was_moved_behind_the_arm_is_painted_nowhere(comes):
    """Before the arm and after it the place looks otherwise: at no time is either shown there."""
    episode, depth = scene(passing, lambda t: (t > 4) == comes)
    _, behind = fused(episode, depth)
    assert not behind.shown[:, 0][(slice(None), *BOX)].any()
    around = behind.shown[4, 0, :6, 8:18]
    assert around.all()  # while the table beside it is


def test_one_side_alone_is_believed_only_away_from_the_tool():
    """The arm stays to the end: what it hides may have been moved, if the tool was there."""
    episode, depth = scene(lambda t: slice(8, 18) if t >= 3 else slice(0, 0), lambda t: True)
    assert not fused(episode, depth)[1].shown.any()  # where the tool is is not known
    eef = np.tile(np.eye(4), (T, 1, 1))
    eef[:, :3, 3] = (0, -2.0, 0)
    far = replace(episode, eef_pose=eef)
    assert fused(far, depth)[1].shown[3:, 0, :, 8:18].all()
    eef = eef.copy()
    eef[6, :3, 3] = (-0.09, -0.03, 0.75)  # it reaches for the thing, and ahead of it, once
    near = fused(replace(episode, eef_pose=eef), depth)[1].shown[:, 0]
    assert near[3:6][(slice(None), *BOX)].all() and not near[6:][(slice(None), *BOX)].any()


def test_another_anchor_that_looks_through_a_place_clears_it():
    episode, depth = scene(
        lambda t: slice(8, 18) if t >= 3 else slice(0, 0), lambda t: True, views=2
    )
    eef = np.tile(np.eye(4), (T, 1, 1))
    eef[:, :3, 3] = (0, -2.0, 0)
    depth[:, 1] = TABLE * 1.01  # from the same place, without an arm: the table alone, no thing
    _, behind = fused(replace(episode, eef_pose=eef), depth)
    assert not behind.shown[3:, 0][(slice(None), *BOX)].any()
    assert behind.shown[3:, 0, :6, 8:18].all()


def test_predicted_depth_of_what_stands_still_is_averaged_and_recorded_is_not():
    episode, depth = scene(passing, lambda t: True, noise=0.005)
    truth = scene(passing, lambda t: True)[1]
    steady, _ = fused(episode, depth)
    still = torch.ones(H, W, dtype=torch.bool)
    still[:, 8:18] = False
    before, after = ((d - truth)[:, 0, still].pow(2).mean().sqrt() for d in (depth, steady))
    assert after < 0.45 * before  # a third, of nine times
    assert torch.equal(fused(episode, depth, sure=torch.inf)[0], depth)


def test_strips_change_nothing(monkeypatch):
    episode, depth = scene(passing, lambda t: True, noise=0.005)
    whole, behind = fused(episode, depth)
    monkeypatch.setattr(module, "_BYTES", 1)  # a row at a time
    again, same = fused(episode, depth)
    assert torch.equal(whole, again)
    assert torch.equal(behind.shown, same.shown) and torch.equal(behind.depth, same.depth)


def test_the_wrist_view_sees_what_the_arm_hid_and_no_ghost():
    recipe = replace(RECIPES["projection"], wrist_size=(H, W), supersample=1, edge=0.0)
    episode, depth = scene(passing, lambda t: True)
    pose = torch.eye(4)
    found = Reconstruction(
        depth, torch.full_like(depth, 2.0), K[None], pose[None], pose.expand(T, 4, 4).clone(),
        torch.tensor([1.0, 1.0]), {"geometry": "depth"},
    )  # fmt: skip
    found.wrist_pose[:, 2, 3] = -0.65  # past the arm, looking on
    fuse_static(episode, found, recipe)
    assert "fused over time" in found.notes["geometry"]

    def maps(background):
        return condition_maps(
            episode.anchors, found.depth, found.confidence, found.K, found.pose, K,
            found.wrist_pose, recipe, background=background,
        )  # fmt: skip

    bare, whole = maps(None), maps(found.background)
    assert not bare.covered[4, 11, 15] and whole.covered[4].mean() > bare.covered[4].mean() + 0.2
    assert tuple(whole.color[4, 11, 15]) == COLOURS[THING]
    for t in (0, 8):
        np.testing.assert_array_equal(whole.color[t], bare.color[t])


def test_moving_cameras_are_refused():
    episode, depth = scene(passing, lambda t: True)
    found = Reconstruction(
        depth, depth, K.expand(T, 1, 3, 3), torch.eye(4).expand(T, 1, 4, 4),
        torch.eye(4).expand(T, 4, 4), torch.ones(2), {"geometry": ""},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"official.*static cameras.*--geometry auto"):
        fuse_static(episode, found, RECIPES["official"])
