"""Training: the loop resumes to the same numbers, both stages learn, corpora are what they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from wristaugment.augment import assess
from wristaugment.augment.corpus import Arrays, build_arrays, require_calibration
from wristaugment.augment.pipeline import Augmenter
from wristaugment.augment.recipe import RECIPES
from wristaugment.augment.train_generation import (
    clip_rows,
    disturb,
    plain_rows,
    similarity,
    take_clips,
    train_generation,
)
from wristaugment.augment.train_generation import validate as validate_generation
from wristaugment.augment.train_reconstruction import (
    WRIST_GRID,
    correspondences,
    frame_rows,
    nearest_resize,
    relevance,
    take_batch,
    train_reconstruction,
    validate,
)
from wristaugment.augment.training import Schedule, train
from wristaugment.models.checkpoints import read_training
from wristaugment.models.generator import GeneratorConfig
from wristaugment.models.geometry import transform, unproject
from wristaugment.readers.episode import Episode, Record, View
from wristaugment.readers.errors import SourceError

RECIPE = replace(RECIPES["projection"], wrist_size=(24, 40), pixels=42 * 84, clip=4, edge=0.5)
SIZE = (45, 80)
SMALL = GeneratorConfig(layers=1, heads=2, head_dim=16, ffn_dim=32, text_dim=32, detail=8, frames=4)


def table_view(key: str, pose: np.ndarray, steps: int, depth: bool = True) -> View:
    """What a camera sees of a bare table z = 0 whose colours are a function of the place."""
    K = np.array([[60.0, 0, 39.5], [0, 60, 22], [0, 0, 1]])
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    rays = np.stack([(x - 39.5) / 60, (y - 22) / 60, np.ones(SIZE)], -1) @ pose[:3, :3]
    eye = -pose[:3, :3].T @ pose[:3, 3]
    z = np.where(rays[..., 2] < -1e-3, -eye[2] / np.minimum(rays[..., 2], -1e-3), 0)
    z = np.where(z < 3.5, z, 0)
    place = eye + rays * z[..., None]
    color = (np.sin(place * [9, 7, 0] + [0, 2, 1]) * 90 + 128) * (z > 0)[..., None]
    frames = np.repeat(color.astype(np.uint8)[None], steps, 0)
    known = np.repeat(z.astype(np.float32)[None], steps, 0) if depth else None
    return View(key, frames, K, pose, known)


@pytest.fixture(scope="session")
def episode(looking):
    """Makes episodes."""

    def make(index: int = 0, steps: int = 4, depth: bool = True, views: int = 2) -> Episode:
        places = ([0.4, 0.7, 0.6], [0.4, -0.7, 0.6], [0.9, 0.1, 0.75])[:views]
        anchors = [
            table_view(f"observation/image_{i}", looking(place, [0.5, 0, 0]), steps, depth)
            for i, place in enumerate(places)
        ]
        eef = np.tile(np.eye(4), (steps, 1, 1))
        eef[:, :3, 3] = [0.5, 0.02 * index, 0.4]
        pose = looking([0.5, 0.02 * index, 0.4], [0.52, 0.02 * index, 0], up=(1, 0, 0))
        mount = np.linalg.inv(eef[0]) @ np.linalg.inv(pose)
        wrist = table_view("observation/wrist", pose, steps, depth)
        known = {"eef_pose": eef, "wrist_mount": mount, "wrist_K": wrist.K, "wrist_size": SIZE}
        return Episode(Record("train", 0, index), anchors, "push the cube", wrist=wrist, **known)

    return make


@pytest.fixture(scope="module")
def frames(tmp_path_factory, episode) -> Arrays:
    folder = tmp_path_factory.mktemp("frames")
    episodes = (episode(i) for i in range(3))
    return build_arrays(folder, episodes, lambda e: frame_rows(e, RECIPE), 12, {"a": 1})


def test_a_row_a_timestep(frames):
    assert len(frames) == 12
    assert frames["images"].shape == (12, 2, 3, 42, 70) and frames["images"].dtype == np.uint8
    assert frames["depth"].shape == (12, 2, 42, 70)
    assert frames["wrist_depth"].shape == (12, *WRIST_GRID)


def test_arrays_are_opened_again_and_made_anew_for_another_source(tmp_path):
    calls = []

    def rows(e):
        calls.append(e)
        return {"x": np.full((2, 3), e, np.float32)}

    first = build_arrays(tmp_path, iter([1, 2, 3]), rows, 2, {"source": "a"})  # grows past 2
    assert first["x"][:, 0].tolist() == [1, 1, 2, 2, 3, 3]
    again = build_arrays(tmp_path, iter([7]), rows, 2, {"source": "a"})
    assert len(calls) == 3 and again["x"][:, 0].tolist() == [1, 1, 2, 2, 3, 3]
    other = build_arrays(tmp_path, iter([7]), rows, 2, {"source": "b"})
    assert other["x"][:, 0].tolist() == [7, 7]


def test_rows_are_the_same_from_memory_and_from_a_device(frames):
    index = np.array([5, 0, 5])
    disk = frames.held("cpu")
    there = {name: torch.as_tensor(np.array(value)) for name, value in frames.values.items()}
    device = replace(disk, tensors=there)
    assert len(device) == 12 and device.names == disk.names and "K" in device.names
    for name in disk.names:
        expected = torch.as_tensor(frames[name][index])
        for held in (disk, device):
            assert torch.equal(held.rows(name, index), expected)
            assert torch.equal(held.rows(name, index, slice(0, 1)), expected[:, :1])


def test_similarity_is_the_ssim_that_evaluate_reports():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    made = np.clip(truth + rng.normal(0, 30, truth.shape), 0, 255).astype(np.uint8)
    a, b = (torch.as_tensor(x).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (made, truth))
    with torch.autocast("cpu", torch.bfloat16):
        found = similarity(a, b)
    assert found.dtype == torch.float32
    assert abs(float(found) - assess.ssim(made, truth).mean()) < 1e-4
    assert abs(float(similarity(b, b)) - 1) < 1e-6


def test_correspondences_lift_to_the_true_points(frames):
    batch = take_batch(frames.held("cpu"), np.arange(4), torch.Generator().manual_seed(1))
    points, pixels, valid = correspondences(batch, batch["depth"])
    assert valid.float().mean() > 0.7
    truth = unproject(batch["wrist_depth"], batch["wrist_K"], batch["wrist_pose"]).flatten(1, 2)
    truth = transform(batch["pose"][:, 0], truth)
    assert (points - truth)[valid].norm(dim=-1).median() < 0.02
    assert pixels[0, 33].tolist() == [1, 1]


def test_depth_is_never_mixed():
    depth = np.where(np.arange(64).reshape(1, 8, 8) % 2, 1.0, 3.0)
    assert set(np.unique(nearest_resize(depth, (5, 3)))) <= {1.0, 3.0}


def test_reconstruction_learns_and_reports(frames, tmp_path, small_vggt):
    schedule = Schedule(steps=30, batch=4, rate=2e-3, warmup=5, save=30, bf16=False)
    path = train_reconstruction(frames, schedule, tmp_path, config=small_vggt)
    lines = (tmp_path / "reconstruction" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 3
    figures = validate(path, frames)
    assert figures["depth_cm_rays"] < 5
    assert {"wrist_deg_rays", "wrist_cm_rgb", "camera_deg_rgb"} <= figures.keys()


def test_generation_learns_the_difference_between_map_and_truth(tmp_path):
    rng = np.random.default_rng(0)
    looking_down = np.diag(np.float32([1, -1, -1, 1]))
    looking_down[2, 3] = 1.0
    wrist = rng.integers(60, 200, (6, 4, 16, 32, 3), dtype=np.uint8)
    wrist[:, :, 10:] = 20  # what no map shows: always there, so it can be learnt
    filled = wrist.copy()
    filled[:, :, 10:] = 128
    covered = np.ones((6, 4, 16, 32), bool)
    covered[:, :, 10:] = False
    values = {
        "filled": filled,
        "covered": covered,
        "nearness": np.full(covered.shape, 100, np.uint8),
        "wrist": wrist,
        "anchors": rng.integers(0, 255, (6, 4, 2, 3, 18, 32), dtype=np.uint8),
        "text": np.zeros((6, 64), np.uint8),
        "gripper": np.zeros((6, 4), np.float32),
        "swept_K": np.tile(np.float32([[20, 0, 16], [0, 20, 9], [0, 0, 1]]), (6, 4, 2, 1, 1)),
        "swept_pose": np.tile(looking_down, (6, 4, 2, 1, 1)),
        "swept_depth": np.full((6, 4, 2, 9, 16), 1.0, np.float16),
        "swept_wrist_K": np.tile(np.float32([[12, 0, 12], [0, 12, 8], [0, 0, 1]]), (6, 4, 1, 1)),
        "swept_wrist_pose": np.tile(looking_down, (6, 4, 1, 1)),
        "swept_tool": np.tile(looking_down, (6, 4, 1, 1)),
    }
    config = SMALL
    schedule = Schedule(steps=60, batch=3, rate=5e-3, warmup=5, save=60, bf16=False, average=0.9)
    train_generation(Arrays(values), schedule, tmp_path, config=config)
    found = validate_generation(tmp_path / "generation.safetensors", Arrays(values), 0)
    assert found["psnr_steps3"] > found["psnr_map"] + 3
    assert (tmp_path / "mean_wrist.png").exists()


def test_an_error_behind_the_hand_camera_or_far_from_it_weighs_little():
    K = torch.tensor([[50.0, 0, 20], [0, 50, 15], [0, 0, 1]])
    above = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    above[2, 3] = 0.9  # anchor 0.9 m above the table, the hand camera 0.3 m above it, both down
    hand = above.clone()
    hand[2, 3] = 0.3
    depth = torch.full((1, 1, 30, 40), 0.9)
    depth[..., 0, :] = 0.3  # 0.6 m above the table: behind the hand camera
    depth[..., 1, :] = 3.0
    batch = {"depth": depth, "K": K[None, None], "pose": above[None, None],
             "wrist_pose": hand[None]}  # fmt: skip
    weight = relevance(batch)[0, 0]
    assert (weight[:2] == 0.05).all()
    assert abs(weight[15, 20] - 0.25 / 0.3) < 1e-3 and weight[15, 20] > weight[29, 0] > 0.05


def test_clips_pair_the_map_with_the_truth(episode):
    from wristaugment.augment.reconstruct import Reconstruction

    source = episode()

    class TrueGeometry:
        """Stage 1 with the true depth, so that a map must look like the truth."""

        recipe = RECIPE
        device = "cpu"

        def reconstruct(self, e, *, geometry):
            assert geometry == "predicted" and e.anchors[0].depth is not None
            K = torch.as_tensor(np.stack([v.K for v in e.anchors])).float()
            pose = torch.as_tensor(np.stack([v.pose for v in e.anchors])).float()
            depth = torch.as_tensor(np.stack([v.depth for v in e.anchors], 1))
            wrist = torch.as_tensor(e.measured_wrist_pose()).float()
            seen = torch.where(depth > 0, 9.0, 0.0)
            return Reconstruction(depth, seen, K, pose, wrist, torch.ones(2))

        def project(self, e, geometry):
            from wristaugment.augment.pipeline import Augmenter

            return Augmenter.project(self, e, geometry)

    rows = clip_rows(source, TrueGeometry(), seed=4)
    assert rows["filled"].shape == rows["wrist"].shape == (1, 4, 24, 40, 3)
    seen = rows["covered"]
    difference = np.abs(rows["filled"].astype(int) - rows["wrist"])[seen].mean()
    assert seen.mean() > 0.6 and difference < 12
    condition, truth = take_clips(Arrays(rows).held("cpu"), np.array([0]), [1, 0])
    assert truth.shape == (1, 4, 3, 24, 40) and condition.anchors.shape[:3] == (1, 4, 2)
    part, cut = take_clips(Arrays(rows).held("cpu"), np.array([0, 0]), [0], slice(1, 3))
    assert cut.shape == (2, 2, 3, 24, 40) and torch.equal(cut[1], truth[0, 1:3])
    assert part.gripper.shape == (2, 2) and part.text.shape == (2, 64)
    assert part.views is not None and condition.views is not None
    assert torch.equal(part.views.depth[0, :, 0], condition.views.depth[0, 1:3, 1])
    assert torch.equal(part.views.wrist_pose[0], condition.views.wrist_pose[0, 1:3])
    assert bytes((condition.text[0, :4] - 1).tolist()) == b"push"


@pytest.mark.parametrize("views", [1, 3])
def test_both_stages_learn_from_one_view_and_from_three(views, episode, small_vggt, tmp_path):
    """From rows of the corpus to a generated wrist, with weights that are made on the way."""
    recipe = replace(RECIPES["nano"], wrist_size=(32, 48), pixels=42 * 84, clip=4, overlap=1)
    sources = [episode(i, views=views) for i in range(3)]
    frames = build_arrays(tmp_path / "f", iter(sources), lambda e: frame_rows(e, recipe), 12, {})
    assert frames["images"].shape[:2] == frames["pose"].shape[:2] == (12, views)
    batch = take_batch(frames.held("cpu"), np.arange(12), torch.Generator().manual_seed(0))
    centre = -(batch["pose"][..., :3, :3].mT @ batch["pose"][..., :3, 3:])[..., 0]
    first = set(centre[:, 0, 1].mul(10).round().int().tolist())
    assert first == {1: {7}, 3: {7, -7, 1}}[views]  # every view comes first now and then
    schedule = Schedule(steps=2, batch=2, rate=1e-3, warmup=0, save=2, bf16=False)
    said = {"schedule": schedule, "folder": tmp_path, "source": "tables"}
    train_reconstruction(frames, config=small_vggt, **said)
    figures = validate(tmp_path / "reconstruction.safetensors", frames)
    assert all(np.isfinite(value) for value in figures.values())
    assert ("camera_deg_rgb" in figures) == (views > 1)  # one view has no other camera

    first_stage = Augmenter(replace(recipe, generator="none"), weights=tmp_path, generator=False)
    rows = lambda e: clip_rows(e, first_stage, 0)
    clips = build_arrays(tmp_path / "c", iter(sources), rows, 3, {})
    assert clips["anchors"].shape[:3] == clips["swept_depth"].shape[:3] == (3, 4, views)
    condition, _ = take_clips(clips.held("cpu"), np.array([0]), list(range(views)))
    assert condition.views is not None and condition.views.colors.shape[2] == views
    train_generation(clips, config=SMALL, **said)
    found = validate_generation(tmp_path / "generation.safetensors", clips, 0)
    assert all(np.isfinite(value) for value in found.values())
    augmenter = Augmenter(recipe, weights=tmp_path)
    # What learnt on some number of views runs on any other.
    for number in (1, 2, 3):
        stream = augmenter(episode(7, views=number), seed=0)
        assert stream.frames.shape == (4, 32, 48, 3) and stream.frames.std() > 0
    assert stream.valid.any()
    for stage, count in (("reconstruction", 12), ("generation", 12)):
        training = read_training(tmp_path / f"{stage}.safetensors")
        assert training == {
            "steps": 2, "batch": 2 if stage == "reconstruction" else 8, "frames": count,
            "episodes": 3, "views": views, "source": "tables",
        }  # fmt: skip


def test_some_steps_see_fewer_views_where_that_is_asked_for(episode, tmp_path, monkeypatch):
    from wristaugment.augment import train_generation as module

    source = episode(views=3)
    arrays = Arrays(plain_rows(source, replace(RECIPE, wrist_size=(16, 32))), episodes=1)
    seen: list[list[int]] = []

    def noted(arrays, index, views, part=slice(None)):
        seen.append(views)
        return take_clips(arrays, index, views, part)

    monkeypatch.setattr(module, "take_clips", noted)
    config = replace(SMALL, without=("map",))

    def learn(name: str, steps: int = 24, **more) -> bytes:
        seen.clear()
        schedule = Schedule(steps=steps, batch=1, rate=1e-3, warmup=0, save=steps, bf16=False)
        path = train_generation(arrays, schedule, tmp_path / name, config=config, **more)
        return path.read_bytes()

    learn("fewer", fewer=0.5, source="a table")
    counts = [len(views) for views in seen]
    assert len(counts) == 24 and set(counts) == {1, 2, 3} and 6 < counts.count(3) < 18
    assert {view for views in seen if len(views) < 3 for view in views} == {0, 1, 2}
    assert all(len(set(views)) == len(views) for views in seen)
    assert read_training(tmp_path / "fewer" / "generation.safetensors")["fewer"] == 0.5
    learn("always", fewer=1.0)
    assert max(len(views) for views in seen) == 2
    # Not asked for, it draws nothing: the weights are those of a training that never heard of it.
    usual = learn("usual", steps=3)
    assert [len(views) for views in seen] == [3, 3, 3]
    assert usual == learn("zero", steps=3, fewer=0.0)
    assert usual != learn("some", steps=3, fewer=1.0)


def test_a_disturbed_pose_is_near_and_rigid():
    poses = torch.eye(4).repeat(3, 1, 1)
    moved = disturb(poses, np.random.default_rng(0), degrees=1, metres=0.01)
    assert 0 < (moved - poses).abs().max() < 0.1
    identity = moved[:, :3, :3] @ moved[:, :3, :3].mT
    torch.testing.assert_close(identity, poses[:, :3, :3], atol=1e-5, rtol=0)


def test_a_corpus_without_depth_is_refused(episode):
    with pytest.raises(SourceError, match=r"no anchor depth and no wrist depth.*--depth"):
        require_calibration(episode(depth=False))


class _Stopped(Exception):
    pass


def test_a_killed_training_resumes_to_the_same_weights(tmp_path):
    schedule = Schedule(steps=12, batch=1, rate=1e-2, warmup=2, save=4, bf16=False)

    def run(folder, stop_at=None):
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 1)

        def losses(step, generator):
            if step == stop_at:
                raise _Stopped
            x = torch.randn(8, 3, generator=generator)
            return {"loss": (network(x) - x.sum(1, keepdim=True)).square().mean()}

        return train(network, losses, schedule, folder)

    whole = run(tmp_path / "a")
    with pytest.raises(_Stopped):
        run(tmp_path / "b", stop_at=9)
    resumed = run(tmp_path / "b")
    for name, value in whole.values.items():
        assert torch.equal(value, resumed.values[name])
    changed = replace(schedule, rate=2e-2)
    with pytest.raises(ValueError, match="rate"):
        train(torch.nn.Linear(3, 1), lambda *_: {}, changed, tmp_path / "b")
