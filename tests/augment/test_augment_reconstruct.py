"""Stage 1 of the full-size recipes where the network is right: every way must see the truth."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from wristaugment.augment.assess import pose_error, resize_frames
from wristaugment.augment.corpus import training_episodes
from wristaugment.augment.project import condition_maps, scaled_wrist_K
from wristaugment.augment.recipe import RECIPES
from wristaugment.augment.reconstruct import network_size, reconstruct
from wristaugment.augment.train_reconstruction import nearest_resize
from wristaugment.models.geometry import encode_pose, rescale_intrinsics, unproject
from wristaugment.models.vggt import Geometry
from wristaugment.readers import open_dataset

CORPUS = Path(__file__).resolve().parents[1] / "fixtures" / "corpus"
SIZE = (96, 160)


class TrueVGGT(torch.nn.Module):
    """Says the truth of an episode, each timestep in a unit of length of its own."""

    config = SimpleNamespace(ray_channels=0)

    def __init__(self, episode, recipe):
        super().__init__()
        self.parameter = torch.nn.Parameter(torch.zeros(1))
        size, T = network_size(*episode.anchors[0].size, recipe), episode.length
        depth = [torch.tensor(nearest_resize(v.depth, size)) for v in episode.anchors]
        depth = torch.stack(depth, 1).float()
        depth = torch.where(depth > 0, depth, 3.0)
        K = torch.stack(
            [rescale_intrinsics(torch.tensor(v.K).float(), v.size, size) for v in episode.anchors]
        ).expand(T, -1, -1, -1)
        pose = torch.stack([torch.tensor(v.pose).float() for v in episode.anchors])
        anchors = (pose @ torch.linalg.inv(pose[:1])).expand(T, -1, -1, -1)
        wrist = torch.tensor(episode.measured_wrist_pose()).float() @ torch.linalg.inv(pose[0])
        wrist_K = torch.tensor(episode.wrist_K).float().expand(T, -1, -1)
        unit = (0.3 * torch.randn(T, generator=torch.Generator().manual_seed(0))).exp() * 1.7
        self.cameras = encode_pose(anchors, K, size)
        self.wrist = encode_pose(wrist, wrist_K, episode.wrist_size)
        self.cameras[..., :3] *= unit[:, None, None]
        self.wrist[:, :3] *= unit[:, None]
        self.points = unproject(depth, K, anchors) * unit[:, None, None, None, None]
        self.depth, self.next = depth * unit[:, None, None, None], 0

    def aggregate(self, images, rays):
        return {0: images}

    def read(self, tokens, images, rays, priors, heads):
        part = slice(self.next, self.next + len(images))
        self.next = part.stop % len(self.depth)
        sure = torch.full_like(self.depth[part], 5.0)
        return Geometry(
            cameras=self.cameras[part][None],
            wrist=self.wrist[part],
            depth=self.depth[part],
            depth_confidence=sure,
            points=self.points[part],
            points_confidence=sure,
        )


@pytest.fixture(scope="module")
def episode():
    dataset = open_dataset(CORPUS, "droid")
    read = training_episodes(dataset, ["train"], dataset.profile.wrist.key, depth=True)
    return next(islice(read, 1, None))


def seen(episode, recipe, pose="auto", network=None):
    """(how near the condition maps are to the recorded wrist, in dB where covered; coverage)."""
    network = network or TrueVGGT(episode, recipe)
    found = reconstruct(network, episode, recipe, pose=pose, batch=3)
    K = scaled_wrist_K(episode.wrist_K, episode.wrist_size, found.wrist_fov, recipe)
    maps = condition_maps(
        episode.anchors, found.depth, found.confidence, found.K, found.pose, K, found.wrist_pose,
        recipe, points=found.points,
    )  # fmt: skip
    truth = resize_frames(episode.wrist.frames, SIZE).astype(float)
    error = ((maps.color - truth) ** 2)[maps.covered].mean()
    return 10 * np.log10(255**2 / error), float(maps.coverage.mean()), found


def uncalibrated(episode):
    anchors = [replace(view, K=None, pose=None) for view in episode.anchors]
    return replace(episode, anchors=anchors, wrist_K=None)


@pytest.mark.parametrize("name", ["paper", "official"])
def test_every_source_of_cameras_and_pose_gives_the_same_view(episode, name):
    recipe = replace(RECIPES[name], wrist_size=SIZE, side=280)
    ways = {
        "measured": seen(episode, recipe),
        "head": seen(episode, recipe, "head"),
        "alone": seen(uncalibrated(episode), recipe, network=TrueVGGT(episode, recipe)),
    }
    for way, (quality, coverage, found) in ways.items():
        assert quality > ways["measured"][0] - 1 > 18, way
        assert coverage > 0.7, way
        assert found.calibrated == (way != "alone")
    truth = torch.tensor(episode.measured_wrist_pose()).float()
    torch.testing.assert_close(ways["head"][2].wrist_pose, truth, atol=2e-3, rtol=0)


def test_frame_by_frame_the_scale_is_each_timesteps_own(episode):
    recipe = replace(RECIPES["official"], wrist_size=SIZE, side=140)
    network = TrueVGGT(episode, recipe)
    bare = uncalibrated(episode)
    still = reconstruct(network, bare, recipe, batch=3)
    jumping = reconstruct(network, bare, replace(recipe, static=False), batch=3)
    assert still.pose.shape == (2, 4, 4) and jumping.pose.shape == (episode.length, 2, 4, 4)

    def spread(found):
        """How unlike each other the distances of a static corner are over the episode."""
        corner = found.points[:, 0, :4, :4].norm(dim=-1).mean((1, 2))
        return float(corner.std() / corner.mean())

    assert spread(still) < 0.02 < 0.1 < spread(jumping)


class Ignorant(TrueVGGT):
    """Has no idea of depth; says it in half of its true unit."""

    def __init__(self, episode, recipe):
        super().__init__(episode, recipe)
        self.depth = torch.ones_like(self.depth)
        self.points = torch.ones_like(self.points)


def with_depth(depth: bool = True):
    dataset = open_dataset(CORPUS, "droid")
    raw = next(iter(dataset.records(dataset.splits[0].shards[0])))
    return dataset.episode(raw, wrist="wrist_image_left", depth=depth)


def test_recorded_depth_takes_the_place_of_the_network_s():
    episode, recipe = with_depth(), replace(RECIPES["nano"], wrist_size=SIZE)
    blind = Ignorant(episode, recipe)
    found = reconstruct(blind, episode, recipe)
    assert found.notes["geometry"].startswith("depth and cameras of the dataset (recorded: every")
    assert found.calibrated
    size = network_size(*episode.anchors[0].size, recipe)
    for s, view in enumerate(episode.anchors):
        want = nearest_resize(view.depth, size)
        assert np.abs(found.depth[:, s].numpy() - want).max() < 1e-6
        known = view.depth > 0
        assert torch.isfinite(found.depth).all() and known.any()
    K = scaled_wrist_K(episode.wrist_K, episode.wrist_size, found.wrist_fov, recipe)
    maps = condition_maps(
        episode.anchors,
        found.depth,
        found.confidence,
        found.K,
        found.pose,
        K,
        found.wrist_pose,
        recipe,
    )
    truth = resize_frames(episode.wrist.frames, SIZE).astype(float)
    seen = maps.covered & (maps.color.max(-1) > 0)
    error = np.abs(maps.color.astype(float) - truth).mean(-1)[seen]
    assert seen.mean() > 0.3 and np.median(error) < 20


def test_recorded_depth_scales_a_wrist_head_that_knows_no_metres():
    episode, recipe = with_depth(), replace(RECIPES["nano"], wrist_size=SIZE)
    episode.anchors = episode.anchors[:1]  # one camera: its distances tell no scale
    network = TrueVGGT(episode, recipe)
    found = reconstruct(network, episode, recipe, pose="head")
    assert found.notes["pose"].startswith("head")
    true = torch.tensor(episode.measured_wrist_pose()).float()
    off = torch.linalg.norm(
        torch.linalg.inv(found.wrist_pose)[:, :3, 3] - torch.linalg.inv(true)[:, :3, 3], dim=-1
    )
    assert off.median() < 0.1  # metres; the unit is 1.7 times as long, and jitters


def test_geometry_that_is_not_there_is_refused_and_predicted_is_kept():
    episode, recipe = with_depth(False), RECIPES["nano"]
    network = TrueVGGT(with_depth(), recipe)
    with pytest.raises(ValueError, match=r"no depth of every anchor.*--geometry predicted"):
        reconstruct(network, episode, recipe, geometry="recorded")
    episode = with_depth()
    found = reconstruct(network, episode, recipe, geometry="predicted")
    assert "dataset's cameras" in found.notes["geometry"]
    for view in episode.anchors:
        view.K = None
    with pytest.raises(ValueError, match="no calibrated anchors"):
        reconstruct(network, episode, recipe, geometry="recorded")


def test_a_rigid_pose_places_the_robot_by_the_wrist_head_where_nothing_is_calibrated(episode):
    """The true mount, and a head that is right but for a unit of its own: as near as measured."""
    recipe = replace(RECIPES["official"], wrist_size=SIZE, side=280)
    bare = uncalibrated(episode)
    network = TrueVGGT(episode, recipe)
    found = reconstruct(network, bare, recipe, pose="rigid")
    assert found.notes["pose"].startswith("rigid: ") and "the wrist head's poses" in str(
        found.notes
    )
    head = reconstruct(network, bare, recipe, pose="head").wrist_pose.double().numpy()
    first = episode.anchors[0].pose
    truth = episode.measured_wrist_pose() @ np.linalg.inv(first)
    # The world has a unit of its own: the head's, which is right, tells it.
    true_centres, head_centres = (np.linalg.inv(p)[:, :3, 3] for p in (truth, head))
    unit = np.linalg.norm(head_centres) / np.linalg.norm(true_centres)
    rigid = found.wrist_pose.double().numpy()
    rigid[:, :3, 3] /= unit
    degrees, centimetres = pose_error(rigid, truth)
    assert np.median(degrees) < 0.5 and np.median(centimetres) < 0.5


def test_a_rigid_pose_with_calibrated_anchors_takes_the_mount_that_is_given(episode):
    recipe = replace(RECIPES["nano"], wrist_size=SIZE)
    network = TrueVGGT(episode, recipe)
    blind = replace(episode, wrist_mount=None)
    with pytest.raises(ValueError, match=r"no mount of the hand camera.*`wristaugment mount`"):
        reconstruct(network, blind, recipe, pose="rigid")
    found = reconstruct(network, blind, recipe, pose="rigid", mount=episode.wrist_mount)
    truth = episode.measured_wrist_pose()
    np.testing.assert_allclose(found.wrist_pose.numpy(), truth, atol=1e-5)
    assert "the mount of --mount" in found.notes["pose"] and "degrees" in found.notes["pose"]
    auto = reconstruct(network, blind, recipe, mount=episode.wrist_mount)
    np.testing.assert_array_equal(auto.wrist_pose, found.wrist_pose)
    without = reconstruct(network, blind, recipe)
    assert without.notes["pose"].startswith("head") and "`wristaugment mount`" in str(without.notes)
    moved = episode.wrist_mount.copy()
    moved[:3, 3] += (0, 0, 0.02)
    found = reconstruct(network, episode, recipe, pose="rigid", mount=moved)
    assert np.median(pose_error(found.wrist_pose.double().numpy(), truth)[1]) == pytest.approx(2)
    with pytest.raises(ValueError, match="no end-effector poses"):
        reconstruct(network, replace(episode, eef_pose=None), recipe, pose="rigid")


def test_a_robot_that_cannot_be_placed_keeps_the_head_s_pose_and_says_so(episode):
    recipe = replace(RECIPES["official"], wrist_size=SIZE, side=280)
    bare = uncalibrated(episode)
    network = TrueVGGT(episode, recipe)
    network.wrist = network.wrist[:1].expand_as(network.wrist)  # does not follow the hand
    head = reconstruct(network, bare, recipe, pose="head")
    found = reconstruct(network, bare, recipe, pose="rigid")
    assert found.notes["pose"].startswith("head") and "does not follow" in found.notes["pose"]
    torch.testing.assert_close(found.wrist_pose, head.wrist_pose)
