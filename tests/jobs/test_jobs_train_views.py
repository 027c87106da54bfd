"""`train` on some of a corpus's views and episodes, and what its weights say of that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from wristaugment.jobs import cli
from wristaugment.models.checkpoints import read_training

HERE = Path(__file__).resolve().parents[1]
CORPUS = HERE / "fixtures" / "corpus"
SOURCE = ("--dataset", "droid", "--data-dir", str(CORPUS))
SHORT = ("--batch", "1", "--warmup", "0", "--threads", "1")
LEFT, RIGHT = "exterior_image_1_left", "exterior_image_2_left"
VERSION = "droid_101 1.0.1, split train"


def train(stage: str, out: Path, *more: str) -> int:
    return cli.main(["train", stage, *SOURCE, *SHORT, "--out", str(out), *more])


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """Both stages of nano after a step or two on the second camera of one episode."""
    out = tmp_path_factory.mktemp("one")
    for stage, steps in (("reconstruction", "1"), ("generation", "2")):
        options = ("--anchor-keys", RIGHT, "--episodes", "1", "--steps", steps)
        assert train(stage, out, *options, "--json", str(out / f"{stage}.json")) == 0
    return out


def test_weights_say_which_views_episodes_and_steps_made_them(one):
    seen = f"{VERSION}, seen by observation/{RIGHT}"
    for stage, steps in (("reconstruction", 1), ("generation", 2)):
        said = read_training(one / f"{stage}.safetensors")
        assert (said["steps"], said["episodes"], said["views"]) == (steps, 1, 1)
        assert said["source"] == seen and "initial" not in said
        report = json.loads((one / f"{stage}.json").read_text())
        assert report["training"] == said and report["steps"] == steps
        assert json.loads((one / stage / "plan.json").read_text())["anchor_keys"] == [RIGHT]
    stage_one = json.loads((one / "reconstruction.json").read_text())["validation"]
    assert "wrist_deg_rays" in stage_one and "camera_deg_rays" not in stage_one


def test_all_views_are_the_default_and_the_plan_is_as_it_was(one, tmp_path, capsys):
    options = ("--steps", "1", "--init", str(one / "reconstruction.safetensors"))
    assert train("reconstruction", tmp_path, *options) == 0
    said = read_training(tmp_path / "reconstruction.safetensors")
    assert (said["views"], said["episodes"], said["source"]) == (2, 3, VERSION)
    assert said["initial"] == read_training(one / "reconstruction.safetensors")
    printed = capsys.readouterr().out
    assert "trained for 1 steps of 1 on" in printed
    assert "frames of 3 episodes seen by 2 views" in printed
    assert "from weights (trained for 1 steps" in printed
    assert "anchor_keys" not in json.loads((tmp_path / "reconstruction/plan.json").read_text())


def test_arrays_of_other_views_are_never_taken(one):
    """Nor is a checkpoint: --out holds a training on the other camera."""
    marker = one / "cache" / "frames-train" / "complete.json"
    before = json.loads(marker.read_text())
    assert before["identity"]["anchors"] == [f"observation/{RIGHT}"] and before["episodes"] == 1
    assert train("reconstruction", one, "--episodes", "1", "--steps", "1") == 2
    (one / "reconstruction" / "checkpoint.pt").unlink()
    options = ("--episodes", "1", "--steps", "1", "--anchor-keys", f"{LEFT},{RIGHT}")
    assert train("reconstruction", one, *options) == 0
    assert read_training(one / "reconstruction.safetensors")["views"] == 2


def test_a_view_that_is_not_there_is_one_line(tmp_path, capsys):
    asked = ("--anchor-keys", "exterior_image_3_left")
    for stage in ("reconstruction", "generation", "confidence"):
        line = ["train", stage, *SOURCE, "--out", str(tmp_path), *asked]
        assert cli.main(line) == 2
        said = capsys.readouterr().err
        assert "exterior_image_3_left" in said and "there is no such key" in said
        assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
