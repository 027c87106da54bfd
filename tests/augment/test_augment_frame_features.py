"""What frames tell about themselves, on an episode of the sample and nano's own networks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from wristaugment.augment.confidence import FEATURES, PICTURE
from wristaugment.augment.frame_features import _compared, frame_features, picture_statistics
from wristaugment.augment.pipeline import Augmenter
from wristaugment.augment.project import Conditions
from wristaugment.augment.train_confidence import as_case
from wristaugment.models.geometry import rescale_intrinsics
from wristaugment.readers import open_dataset
from wristaugment.readers.episode import View

SAMPLE = Path(__file__).resolve().parents[2] / "sample"


@pytest.fixture(scope="module")
def made():
    """(augmenter, an episode of three steps, its geometry)."""
    dataset = open_dataset(SAMPLE, "droid")
    episode = dataset.episode(next(iter(dataset.records(dataset.splits[0].shards[0]))))
    views = [replace(v, frames=np.asarray(v.frames)[:3], depth=None) for v in episode.anchors]
    episode = replace(
        episode, anchors=views, eef_pose=episode.eef_pose[:3], gripper=episode.gripper[:3]
    )
    augmenter = Augmenter("nano")
    return augmenter, episode, augmenter.reconstruct(episode)


def test_they_are_told_of_every_frame_and_do_not_depend_on_the_size(made):
    augmenter, episode, found = made
    maps, K = augmenter.project(episode, found)
    small = frame_features(episode.anchors, found, maps, maps.filled, K, augmenter.recipe)
    assert set(small) == set(FEATURES)
    large = Conditions(*(twice(v) for v in (maps.color, maps.covered, maps.depth)))
    size = maps.depth.shape[1:]
    K = rescale_intrinsics(torch.as_tensor(K), size, (2 * size[0], 2 * size[1])).numpy()
    double = frame_features(episode.anchors, found, large, large.filled, K, augmenter.recipe)
    for name, values in small.items():
        assert values.shape == (3,) and np.isfinite(values).all(), name
        assert np.abs(values - double[name]).max() < 0.1, name
    assert (small["map_apart"] < 0.01).all()  # the frame is the map itself


def twice(values):
    return values.repeat(2, 1).repeat(2, 2)


def test_anchors_that_contradict_each_other_show():
    grey, depth, seen = np.full((1, 4, 4, 3), 50.0), np.ones((1, 4, 4)), np.ones((1, 4, 4), bool)
    half = np.arange(4) < 2
    farther = np.where(half, 1.5, 1.05) * depth
    told = _compared([(grey, depth, seen), (grey + 9, farther, seen)])
    assert told["depth_apart"] == pytest.approx(0.5) and told["both"] == pytest.approx(1.0)
    assert told["colour_apart"] == pytest.approx(np.log(10))
    told = _compared([(grey, depth, seen), (grey, farther, seen & half)])
    assert told["depth_apart"] == pytest.approx(1.0) and told["both"] == pytest.approx(0.5)
    assert set(_compared([(grey, depth, seen)])) == {"depth_confidence"}  # one says no more


def test_picture_statistics_tell_real_kinds_apart_not_sizes(made):
    views = made[1].anchors
    told = picture_statistics(views)
    assert told.shape == (3, 2, len(PICTURE)) and np.isfinite(told).all()
    noisy = [
        View(v.key, np.random.default_rng(0).integers(0, 256, v.frames.shape, dtype=np.uint8))
        for v in views
    ]
    assert (picture_statistics(noisy)[..., 7:9] > told[..., 7:9] + 0.5).all()  # fine edges
    double = [View(v.key, v.frames.repeat(2, 1).repeat(2, 2)) for v in views]
    assert np.abs(picture_statistics(double) - told).max() < 0.25


def test_the_cases_of_the_fit(made):
    episode = made[1]
    bare = as_case("pictures", episode, 0)
    assert all(v.K is None and v.pose is None for v in bare.anchors) and bare.eef_pose is None
    assert as_case("measured", bare, 0) is None and as_case("head", bare, 0) is None
    off, again = (as_case("disturbed", episode, seed) for seed in (3, 3))
    assert np.array_equal(off.wrist_mount, again.wrist_mount)
    assert not np.allclose(off.wrist_mount, episode.wrist_mount, atol=1e-3)
    assert np.array_equal(off.anchors[0].pose, episode.anchors[0].pose)
    shift = np.linalg.norm((off.anchors[1].pose - episode.anchors[1].pose)[:3, 3])
    assert 0 < shift < 0.2


def test_a_run_has_the_confidence_of_the_weights(made, tmp_path):
    augmenter, episode, _ = made
    augmenter.recipe = replace(augmenter.recipe, wrist_size=(64, 112))
    stream = augmenter(episode, seed=0)
    assert stream.confidence.dtype == np.float32 and stream.confidence.shape == (3,)
    assert ((stream.confidence > 0) & (stream.confidence < 1)).all()
    assert stream.valid.all() and "expected SSIM" in stream.notes["confidence"]
    again = augmenter(episode, seed=0)
    assert again.confidence.tobytes() == stream.confidence.tobytes()
