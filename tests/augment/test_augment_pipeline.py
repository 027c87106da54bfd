"""Both stages on an episode, with small untrained networks."""

import json
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from wristaugment.augment.generate import blend_weights, clip_joins, clip_windows
from wristaugment.augment.pipeline import Augmenter
from wristaugment.augment.recipe import RECIPES
from wristaugment.augment.reconstruct import network_size, reconstruct
from wristaugment.augment.static_cameras import mean_pose
from wristaugment.models.checkpoints import WeightsError, save_weights
from wristaugment.models.generator import GeneratorConfig, WristGenerator
from wristaugment.models.vggt import VGGT, VGGTConfig
from wristaugment.readers.episode import Episode, Record, View
from wristaugment.readers.errors import SourceError

DIT_CONFIG = GeneratorConfig(layers=1, heads=2, head_dim=16, ffn_dim=32, text_dim=32, detail=12)
RECIPE = replace(
    RECIPES["nano"],
    wrist_size=(32, 48),
    pixels=56 * 98,
    clip=4,
    overlap=1,
    steps=2,
    edge=0.5,
    min_confidence=1.0,
    noise=1.0,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, small_vggt):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    network = VGGT(small_vggt)
    network.prepare_from_scratch()
    save_weights(folder / "reconstruction.safetensors", network, asdict(small_vggt))
    generator = WristGenerator(DIT_CONFIG)
    torch.nn.init.normal_(generator.detail.last.weight, std=0.1)
    save_weights(folder / "generation.safetensors", generator, DIT_CONFIG.to_dict())
    return folder


@pytest.fixture(scope="module")
def augmenter(weights):
    return Augmenter(RECIPE, weights=weights)


@pytest.fixture(scope="session")
def episode(looking):
    """Makes episodes."""

    def make(steps: int = 6, *, calibrated: bool = True, size: tuple[int, int] = (45, 80)):
        rng = np.random.default_rng(0)
        K = np.array([[60.0, 0, size[1] / 2], [0, 60, size[0] / 2], [0, 0, 1]])
        anchors = [
            View(
                f"observation/image_{i}",
                rng.integers(0, 255, (steps, *size, 3), dtype=np.uint8),
                K if calibrated else None,
                looking([0.5, side, 0.6], [0.5, 0, 0.1]) if calibrated else None,
            )
            for i, side in enumerate((0.8, -0.8))
        ]
        eef = np.tile(np.eye(4), (steps, 1, 1))
        eef[:, :3, :3] = np.diag([1, -1, -1])
        eef[:, :3, 3] = [0.5, 0, 0.35]
        mount = np.eye(4)
        known = {"eef_pose": eef, "wrist_mount": mount, "wrist_K": K, "wrist_size": size}
        return Episode(Record("train", 0, 0), anchors, "pick up the cube", **known)

    return make


def test_a_stream_has_a_frame_a_step_and_says_where_its_pose_came_from(augmenter, episode):
    stream = augmenter(episode(), seed=3)
    assert stream.frames.shape == (6, 32, 48, 3) and stream.frames.dtype == np.uint8
    assert stream.valid.all() and (stream.coverage > 0.3).all()
    assert "measured" in stream.notes["pose"]
    np.testing.assert_allclose(stream.pose, episode().measured_wrist_pose(), atol=1e-5)
    assert set(stream.seconds) == {"reconstruct", "project", "generate"}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(augmenter, episode):
    first = augmenter(episode(), seed=3).frames
    assert np.array_equal(first, augmenter(episode(), seed=3).frames)
    assert not np.array_equal(first, augmenter(episode(), seed=4).frames)


def test_the_bytes_do_not_depend_on_what_was_made_before(augmenter, weights, episode):
    augmenter(episode(9), seed=8)
    fresh = Augmenter(RECIPE, weights=weights)
    assert np.array_equal(augmenter(episode(), seed=3).frames, fresh(episode(), seed=3).frames)


def test_without_calibration_the_head_gives_the_pose(augmenter, episode):
    stream = augmenter(episode(calibrated=False), seed=0)
    assert "head" in stream.notes["pose"] and "no calibration" in stream.notes["geometry"]
    assert stream.frames.shape == (6, 32, 48, 3) and np.isfinite(stream.pose).all()
    head = augmenter(episode(), seed=0, pose="head")
    assert "asked for" in head.notes["pose"]


def test_a_measured_pose_that_is_not_there_is_refused(augmenter, episode):
    with pytest.raises(SourceError, match="--pose head"):
        augmenter(episode(calibrated=False), seed=0, pose="measured")


def test_an_episode_without_a_picture_is_refused(augmenter):
    empty = Episode(Record("train", 0, 4), [], dropped={"observation/image_0": "all black"})
    with pytest.raises(SourceError, match=r"record 4.*all black.*--anchor-keys"):
        augmenter(empty, seed=0)


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 11])
def test_every_length_comes_out_whole(augmenter, steps, episode):
    stream = augmenter(episode(steps), seed=0)
    assert len(stream.frames) == len(stream.valid) == len(stream.coverage) == steps


def test_three_square_views_go_through(augmenter, episode):
    views = episode(calibrated=False, size=(64, 64))
    views.anchors.append(replace(views.anchors[0], key="observation/image_2"))
    assert augmenter(views, seed=0).frames.shape == (6, 32, 48, 3)


def test_frames_that_saw_too_little_are_black_and_invalid(weights, episode):
    strict = Augmenter(replace(RECIPE, min_coverage=1.01), weights=weights)
    stream = strict(episode(), seed=0)
    assert not stream.valid.any() and not stream.frames.any()


def test_predicted_cameras_are_one_for_the_episode(augmenter, episode):
    found = reconstruct(augmenter.reconstruction, episode(calibrated=False), RECIPE)
    assert found.pose.shape == (2, 4, 4)
    torch.testing.assert_close(found.pose[0], torch.eye(4))


def test_the_median_of_quaternions_is_over_rotations():
    encodings = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 1.0]]).repeat(5, 1)
    encodings[1::2, 3:7] *= -1  # the same rotation
    torch.testing.assert_close(mean_pose(encodings), encodings[0])


def test_network_sizes_are_multiples_of_the_patch_in_the_views_shape():
    assert network_size(180, 320, RECIPES["nano"]) == (140, 252)
    assert network_size(64, 64, RECIPES["nano"]) == (182, 182)
    assert network_size(180, 320, RECIPES["paper"]) == (518, 518)
    assert network_size(180, 320, RECIPES["official"]) == (294, 518)
    assert network_size(480, 640, RECIPES["official"]) == (392, 518)


def test_joins_are_where_clips_meet_or_fade():
    # Clips 0-3, 3-6, 6-9, 7-10: frames 3, 6 are mixed, and from the third clip on all but the last.
    joins = clip_joins(11, 4, 1)
    assert joins.tolist() == [False, False, True, True, False, True, True, True, True, True]
    assert clip_joins(8, 4, 0).tolist() == [False] * 3 + [True] + [False] * 3
    assert not clip_joins(3, 4, 1).any() and len(clip_joins(3, 4, 1)) == 2
    assert clip_joins(5, 1, 0).all() and len(clip_joins(1, 8, 2)) == 0


def test_windows_cover_every_step_and_overlap():
    assert [w.tolist() for w in clip_windows(3, 4, 1)] == [[0, 1, 2, 2]]
    windows = clip_windows(11, 4, 1)
    assert sorted({int(t) for w in windows for t in w}) == list(range(11))
    assert all(len(w) == 4 for w in windows) and windows[-1][-1] == 10
    assert all(b[0] <= a[-1] for a, b in pairwise(windows))
    assert blend_weights(4, 1).tolist() == [0.5, 1.0, 1.0, 0.5]


def test_weights_of_another_network_are_refused(weights, tmp_path):
    other = WristGenerator(replace(DIT_CONFIG, layers=2))
    for name in ("reconstruction", "generation"):
        (tmp_path / f"{name}.safetensors").write_bytes(
            (weights / f"{name}.safetensors").read_bytes()
        )
    save_weights(tmp_path / "generation.safetensors", other, DIT_CONFIG.to_dict())
    with pytest.raises(WeightsError, match=r"unexpected: dit\.blocks\.1.*and \d+ more"):
        Augmenter(RECIPE, weights=tmp_path)
    (tmp_path / "generation.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        Augmenter(RECIPE, weights=tmp_path)
    (tmp_path / "generation.safetensors").unlink()
    with pytest.raises(SourceError, match=r"generation\.safetensors.*are not here; give --weights"):
        Augmenter(RECIPE, weights=tmp_path)


def test_files_that_changed_places_are_refused_and_so_is_a_missing_head(weights, tmp_path):
    from wristaugment.augment.pipeline import load_generator, load_reconstruction

    with pytest.raises(WeightsError, match="weights of another network"):
        load_reconstruction(weights / "generation.safetensors")
    with pytest.raises(WeightsError, match="weights of another network"):
        load_generator(weights / "reconstruction.safetensors")
    unknown = tmp_path / "unknown.safetensors"
    save_file({}, unknown, metadata={"config": json.dumps({"heads_built": ["smell"]})})
    with pytest.raises(WeightsError, match=r"weights of another network.*no head smell"):
        load_reconstruction(unknown)
    config = VGGTConfig(dim=32, depth=1, heads=1, encoder_depth=1, encoder_heads=1, grid=4,
                        layers=(0, 0, 0, 0), heads_built=("camera",))  # fmt: skip
    save_weights(tmp_path / "w.safetensors", VGGT(config), asdict(config))
    with pytest.raises(WeightsError, match="no depth and no wrist head"):
        load_reconstruction(tmp_path / "w.safetensors")
