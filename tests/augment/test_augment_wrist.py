"""Training of the full-size recipes' wrist head, at reduced width: losses, rows, runs and files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from wristaugment.augment.corpus import Arrays
from wristaugment.augment.recipe import RECIPES
from wristaugment.augment.reconstruct import network_size
from wristaugment.augment.train_wrist import (
    WristTraining,
    load_wrist,
    observe,
    show_matches,
    train_wrist,
    validate_wrist,
    wrist_batch,
    wrist_rows,
)
from wristaugment.augment.training import Schedule
from wristaugment.augment.wrist_losses import (
    SETTINGS,
    WristSettings,
    relative,
    wrist_losses,
)
from wristaugment.models.checkpoints import read_config
from wristaugment.models.correspond import Matching, query_grid
from wristaugment.models.errors import WeightsError
from wristaugment.models.geometry import encode_pose, project, transform
from wristaugment.models.vggt import VGGT, Geometry
from wristaugment.readers.errors import SourceError

SIZE = (56, 56)
RECIPE = replace(RECIPES["paper"], side=56)
ANY = Matching(grid=(4, 4), visibility=0.0, confidence=0.0)  # random weights are sure of nothing
SCHEDULE = Schedule(
    steps=12, batch=2, rate=1e-3, warmup=2, save=6, bf16=False, average=0.0, validate_every=6
)
HEADS = {
    "paper": {"dim": 32, "depth": 1, "heads": 2, "queries": 2},
    "official": {"layers": 1, "heads": 2, "trunk_depth": 1, "trunk_heads": 2, "iterations": 2},
}


@pytest.fixture(scope="module")
def make_base(small_vggt):
    """Makes bases with random weights, the same at every call."""

    def make(form: str = "paper", **more) -> VGGT:
        torch.manual_seed(0)
        config = replace(
            small_vggt,
            heads_built=("camera", "depth", "point", "track", "wrist"),
            ray_channels=0,
            wrist_kind=form,
            wrist=HEADS[form],
            track={
                "features": 8, "hidden": 16, "depth": 1, "heads": 2, "virtual": 4, "levels": 3,
                "radius": 1, "iterations": 2,
            },
        )  # fmt: skip
        base = VGGT(replace(config, **more)).eval()
        base.prepare_from_scratch()
        return base

    return make


@pytest.fixture(scope="module")
def bare_rows(wrist_episode) -> Arrays:
    return Arrays(wrist_rows(wrist_episode(calibrated=False), RECIPE))


@pytest.mark.parametrize(
    ("name", "view", "size"),
    [
        ("paper", (180, 320), (518, 518)),
        ("official", (180, 320), (294, 518)),
        ("official", (480, 640), (392, 518)),
        ("nano", (180, 320), (140, 252)),
    ],
)
def test_sizes_follow_the_recipe(name, view, size):
    assert network_size(*view, RECIPES[name]) == size


def test_rows_hold_pictures_and_what_is_known(rows, bare_rows, wrist_episode):
    assert rows["images"].shape == (4, 2, 3, *SIZE) and rows["images"].dtype == np.uint8
    assert rows["wrist"].shape == (4, 3, *SIZE)
    # 40 x 30 pixels become 56 x 56, and the image's edges stay its edges.
    K = rows["wrist_K"][0]
    assert K[0, 0] == pytest.approx(36 * 56 / 40) and K[1, 1] == pytest.approx(36 * 56 / 30)
    assert K[:2, 2] == pytest.approx([27.5, 27.5])
    np.testing.assert_allclose(rows["K"][1, 1], K)
    np.testing.assert_allclose(rows["wrist_pose"], wrist_episode().measured_wrist_pose(), rtol=1e-5)
    assert rows["wrist_K_known"].all() and not bare_rows["wrist_K_known"].any()
    for name in ("K", "pose", "wrist_pose"):
        assert np.isfinite(rows[name]).all() and np.isnan(bare_rows[name]).all()
    fov = 2 * np.degrees(np.arctan(28 / bare_rows["wrist_K"][0, 0, 0]))
    assert fov == pytest.approx(RECIPE.wrist_hfov)
    few = wrist_rows(wrist_episode(), RECIPE, views=1, every=3)
    assert few["images"].shape[:2] == (2, 1)
    np.testing.assert_array_equal(few["images"][1, 0], rows["images"][3, 0])


def test_episodes_that_cannot_be_trained_on_are_refused(wrist_episode):
    with pytest.raises(SourceError, match="record 7: has 1 usable anchor views, and 2 are trained"):
        wrist_rows(wrist_episode(views=1), RECIPE, views=2)
    blind = wrist_episode()
    blind.wrist = None
    with pytest.raises(SourceError, match="no recorded wrist view"):
        wrist_rows(blind, RECIPE)


@pytest.mark.parametrize(
    ("form", "matching"),
    [
        ("paper", ANY),
        ("official", ANY),
        ("official", replace(ANY, lift="depth", known_cameras=True)),
    ],
)
def test_gradients_reach_what_is_trained_alone(make_base, rows, form, matching):
    base = make_base(form)
    base.requires_grad_(False)
    settings = replace(SETTINGS[form], matching=matching)
    module = WristTraining(base, settings.camera > 0)
    kept = {"wrist_head"} | ({"camera_head"} if form == "official" else set())
    assert {name.split(".")[0] for name in module.state_dict()} == kept
    batch = wrist_batch(rows, np.arange(2))
    with torch.autocast("cpu", torch.bfloat16):
        tokens, found, scale = observe(base, batch, settings)
        encodings, cameras = module(tokens.float())
        assert encodings.dtype == torch.float32
        losses = wrist_losses(encodings, cameras, batch, found, scale, SIZE, settings)
    assert ("camera" in losses) == (form == "official") and scale.isfinite().all()
    losses["loss"].backward()
    got = {name.split(".")[0] for name, p in base.named_parameters() if p.grad is not None}
    assert got == kept
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)
    assert any(p.grad.any() for p in base.wrist_head.parameters() if p.grad is not None)


@pytest.mark.parametrize("form", ["paper", "official"])
def test_recomputing_layers_changes_no_gradient(make_base, form):
    tokens, found = torch.randn(2, 2, 9, 64), []
    for recompute in (False, True):
        base = make_base(form)
        module = WristTraining(base, camera=False).train()
        head, calls = base.wrist_head, []
        layers = head.decoder.layers if form == "paper" else head.token_aggregation_layers
        layers[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        if recompute:
            module.enable_gradient_checkpointing()
        torch.manual_seed(1)  # dropout
        encodings, _ = module(tokens)
        encodings.square().sum().backward()
        found.append([p.grad for p in module.parameters() if p.grad is not None])
        assert len(calls) == 1 + recompute
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


class Seeing(VGGT):
    """A base that sees the bare table z = 0 as it is, in a unit of its own: 1.7 to the metre."""

    scale = 1.7

    def know(self, rows: Arrays) -> "Seeing":
        """Take the cameras, which are the same in every row."""
        self.batch = wrist_batch(rows, np.arange(1))
        self.tokens = torch.randn(2, 21, 64, generator=torch.Generator().manual_seed(1))
        return self

    def aggregate(self, images, rays=None):
        return {self.last: self.tokens.expand(len(images), -1, -1, -1)}  # one picture suffices

    def table(self, K, pose, pixels):
        """What pixels [N, 2] of a measured camera see, [N, 3] in the robot's base, metres."""
        rays = torch.cat([pixels, torch.ones(len(pixels), 1)], -1) @ torch.linalg.inv(K).T
        along, eye = rays @ pose[:3, :3], -pose[:3, 3] @ pose[:3, :3]
        return eye - along * (eye[2] / along[:, 2:])

    def read(self, tokens, images, rays=None, priors=None, *, query_points=None, heads=None):
        b, out = self.batch, Geometry()
        K, pose = b["K"][0], b["pose"][0]
        if "camera" in heads:
            seen = relative(b["pose"], b["pose"][:, 0], torch.tensor([self.scale]))
            out.cameras = encode_pose(seen, b["K"], SIZE).expand(1, len(images), -1, -1)
        if "point" in heads:
            grid = query_grid(SIZE, SIZE)
            found = [
                self.scale * transform(pose[0], self.table(K[s], pose[s], grid))
                for s in range(len(pose))
            ]
            points = torch.stack(found).view(1, len(pose), *SIZE, 3)
            out.points = points.expand(len(images), -1, -1, -1, -1)
        if "track" in heads:
            places = self.table(b["wrist_K"][0], b["wrist_pose"][0], query_points[0])
            tracks = [
                query_points[0],
                *(project(places, *camera)[0] for camera in zip(K, pose, strict=True)),
            ]
            out.tracks = torch.stack(tracks).expand(1, len(images), -1, -1, -1)
            out.visibility = torch.full(out.tracks.shape[1:-1], 0.9)
            out.tracks_confidence = out.visibility
        return out


@pytest.mark.parametrize("form", ["paper", "official"])
def test_spc_alone_finds_the_wrist_where_tracks_and_points_are_true(
    make_base, rows, tmp_path, form
):
    base = Seeing(make_base(form).config).know(rows)
    base.prepare_from_scratch()
    settings = WristSettings(spc_form=SETTINGS[form].spc_form, matching=Matching(grid=(8, 8)))
    schedule = replace(
        SCHEDULE, steps=250, batch=1, rate=5e-3, save=50, average=0.9, validate_every=50
    )
    train_wrist(rows, base, schedule, tmp_path, form=form, settings=settings, validation=rows)
    first, *_, last = (line["validation"] for line in lines_of(tmp_path) if "validation" in line)
    assert last["matched"] > 0.9 and last["front_share"] == 1
    assert last["reprojection_px"] < 3 and first["reprojection_px"] > 2 * last["reprojection_px"]
    # Nobody told it a pose, nor how long a metre is.
    assert last["wrist_deg"] < 8 and last["wrist_cm"] < 8
    picture = show_matches(base, rows, settings)["wrist_matches"]
    red = np.argwhere((picture == (255, 0, 0)).all(-1))
    assert picture.shape == (*SIZE, 3) and 32 < len(red) <= 2 * 64
    queries = query_grid(SIZE, (8, 8)).flip(-1).numpy()
    assert (np.abs(red[:, None] - queries).sum(-1).min(1) < 12).all()


def lines_of(folder):
    text = (folder / "reconstruction" / "log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("form", ["paper", "official"])
def test_training_changes_the_trained_heads_alone_and_its_file_brings_them_back(
    make_base, rows, tmp_path, form
):
    base = make_base(form)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    settings = replace(SETTINGS[form], matching=ANY, camera_rate=1e-3)
    schedule = replace(SCHEDULE, steps=20, save=10, validate_every=10)
    said = []
    path = train_wrist(
        rows, base, schedule, tmp_path, form=form, settings=settings, base_sha256="ab" * 32,
        validation=rows, say=said.append,
    )  # fmt: skip
    checks = [line["validation"] for line in lines_of(tmp_path) if "validation" in line]
    assert len(checks) == 2 and not said
    assert {"wrist_deg", "wrist_cm", "reprojection_px", "front_share"} <= checks[-1].keys()
    trained = ("wrist_head", "camera_head") if form == "official" else ("wrist_head",)
    changed = {
        k.split(".")[0] for k, v in base.state_dict().items() if not torch.equal(v, before[k])
    }
    assert changed == set(trained)
    learning = {k.split(".")[0] for k, p in base.named_parameters() if p.requires_grad}
    assert learning == set(trained)  # what is frozen keeps nothing for the way back

    header = read_config(path)
    assert header["trained"] == sorted(name.removesuffix("_head") for name in trained)
    assert header["wrist"] == HEADS[form] and header["base_sha256"] == "ab" * 32
    fov = 2 * np.arctan(28 / rows["wrist_K"][0, [1, 0], [1, 0]])
    assert header["wrist_fov"] == pytest.approx(fov, rel=1e-4)
    again = make_base(form)
    load_wrist(path, again, base_sha256="ab" * 32)
    assert all(torch.equal(v, base.state_dict()[k]) for k, v in again.state_dict().items())
    found = validate_wrist(again, rows, settings)
    assert found == pytest.approx(checks[-1], rel=1e-3)


@pytest.mark.parametrize("form", ["paper", "official"])
def test_a_killed_run_goes_on_to_the_same_weights(make_base, rows, tmp_path, form, monkeypatch):
    settings = replace(SETTINGS[form], matching=ANY)

    def run(folder):
        return train_wrist(rows, make_base(form), SCHEDULE, folder, form=form, settings=settings)

    whole = run(tmp_path / "whole").read_bytes()
    from wristaugment.augment import train_wrist as module

    real, calls = module.observe, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "observe", dies)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed")
    torch.manual_seed(99)  # nothing may depend on what was drawn before
    assert run(tmp_path / "killed").read_bytes() == whole


def test_the_camera_head_learns_at_its_own_rate(make_base, rows, tmp_path):
    settings = replace(SETTINGS["official"], matching=ANY, camera_rate=0.0)
    base = make_base("official")
    before = {k: v.clone() for k, v in base.camera_head.state_dict().items()}
    train_wrist(
        rows, base, replace(SCHEDULE, steps=3), tmp_path, form="official", settings=settings
    )
    assert all(torch.equal(v, before[k]) for k, v in base.camera_head.state_dict().items())


def test_an_aggregator_in_half_precision_does(make_base, rows, tmp_path):
    settings, found = replace(SETTINGS["official"], matching=ANY), []
    for half in (False, True):
        base = make_base("official")
        if half:
            base.aggregator.bfloat16()
        schedule = replace(SCHEDULE, steps=3, bf16=True)
        train_wrist(rows, base, schedule, tmp_path / str(half), form="official", settings=settings)
        assert base.wrist_head.token_query.dtype == torch.float32
        found.append(validate_wrist(base, rows, settings, bf16=True))
    assert found[0]["wrist_deg"] == pytest.approx(found[1]["wrist_deg"], abs=3)
    assert np.isfinite(list(found[1].values())).all()


def test_one_anchor_trains_without_a_scale(make_base, wrist_episode, tmp_path):
    single, said = Arrays(wrist_rows(wrist_episode(), RECIPE, views=1)), []
    settings = replace(SETTINGS["official"], matching=ANY, translation=1.0, rotation=1.0)
    base = make_base("official")
    path = train_wrist(
        single, base, replace(SCHEDULE, steps=2), tmp_path, form="official", settings=settings,
        say=said.append,
    )  # fmt: skip
    assert read_config(path)["trained"] == ["wrist"] and read_config(path)["views"] == 1
    assert len(said) == 2 and "one view, which has no scale" in said[0]
    assert "translation is left out" in said[1]
    assert {"wrist_rotation", "wrist_fov"} <= lines_of(tmp_path)[0].keys()
    assert "wrist_cm" not in validate_wrist(base, single, settings)


def test_data_without_calibration_train_on_spc_and_say_so(make_base, bare_rows, tmp_path):
    said, base = [], make_base("official")
    settings = replace(SETTINGS["official"], matching=ANY, rotation=1.0)
    path = train_wrist(
        bare_rows, base, replace(SCHEDULE, steps=2), tmp_path, form="official",
        settings=settings, say=said.append,
    )  # fmt: skip
    assert read_config(path)["trained"] == ["wrist"]
    text = "\n".join(said)
    assert "no intrinsics of the hand camera on 100%" in text
    assert "the camera head stays as it is" in text and "rotation is left out" in text
    found = validate_wrist(base, bare_rows, settings)
    assert "wrist_deg" not in found and "matched" in found


def test_an_official_training_starts_from_the_bases_head_and_a_paper_one_anew(
    make_base, rows, tmp_path
):
    still = replace(SCHEDULE, steps=1, rate=0.0)
    for form, same in (("official", True), ("paper", False)):
        base = make_base(form)
        before = {k: v.clone() for k, v in base.wrist_head.state_dict().items()}
        settings = replace(SETTINGS[form], matching=ANY, camera=0.0)
        train_wrist(rows, base, still, tmp_path / form, form=form, settings=settings)
        after = base.wrist_head.state_dict()
        assert all(torch.equal(v, after[k]) for k, v in before.items()) == same
    path, base = tmp_path / "paper" / "reconstruction.safetensors", make_base("paper")
    train_wrist(
        rows, base, replace(still, seed=5), tmp_path / "more", form="paper", initial=path,
        settings=replace(SETTINGS["paper"], matching=ANY),
    )  # fmt: skip
    assert (tmp_path / "more" / path.name).read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def trained(make_base, rows, tmp_path_factory):
    settings = replace(SETTINGS["paper"], matching=ANY)
    return train_wrist(
        rows, make_base(), replace(SCHEDULE, steps=1), tmp_path_factory.mktemp("trained"),
        form="paper", settings=settings, base_sha256="ab" * 32,
    )  # fmt: skip


def test_a_file_of_another_network_is_refused(make_base, trained, tmp_path):
    with pytest.raises(WeightsError, match="of the form paper, and the recipe's is official"):
        load_wrist(trained, make_base("official"))
    with pytest.raises(WeightsError, match=r"sha256 abababababab, and this one's is cdcdcdcdcdcd"):
        load_wrist(trained, make_base(), base_sha256="cd" * 32)
    wider = make_base(wrist={**HEADS["paper"], "queries": 3})
    before = wider.wrist_head.wrist_queries.clone()
    with pytest.raises(WeightsError, match=r"of another shape: .*wrist_queries") as caught:
        load_wrist(trained, wider)
    assert "\n" not in str(caught.value) and torch.equal(before, wider.wrist_head.wrist_queries)
    with pytest.raises(WeightsError, match="no such weights file"):
        load_wrist(tmp_path / "none.safetensors", make_base())
    nano = RECIPES["nano"]
    from wristaugment.augment.weights import locate

    with pytest.raises(WeightsError, match="is not a trained wrist head"):
        load_wrist(locate(nano)["reconstruction"].path, make_base())


def test_a_base_that_cannot_be_trained_is_refused(make_base, rows, tmp_path):
    with pytest.raises(ValueError, match="paper or official; found nano"):
        train_wrist(rows, make_base(), SCHEDULE, tmp_path, form="nano")
    with pytest.raises(ValueError, match="the official wrist head is trained; this one's is paper"):
        train_wrist(rows, make_base(), SCHEDULE, tmp_path, form="official")
    without = make_base("official", heads_built=("camera", "track", "wrist"))
    with pytest.raises(ValueError, match="needs the point head as well"):
        train_wrist(rows, without, SCHEDULE, tmp_path, form="official")
    assert not list(tmp_path.iterdir())
