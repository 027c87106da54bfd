"""Recipes that continue the first recorded wrist frame: what they see, how they are scored, where
they run. The small datasets have no hand camera; there one side view plays the recorded wrist view.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from first_frame_weights import REPOSITORIES, write_pipeline
from wristaugment.augment.baselines import parse_ways
from wristaugment.augment.evaluate import Scorer
from wristaugment.augment.first_frame import GUARDRAIL
from wristaugment.augment.recipe import RECIPES
from wristaugment.jobs import cli
from wristaugment.readers.episode import Episode, Record, View, WristStream

LEFT, RIGHT = "exterior_image_1_left", "exterior_image_2_left"
CORPUS = Path(__file__).resolve().parents[1] / "fixtures" / "corpus"
SIZE = (32, 48)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    for name in REPOSITORIES:
        write_pipeline(root, name)
    return root


@pytest.fixture(autouse=True)
def little(monkeypatch):
    for name in REPOSITORIES:
        small = replace(RECIPES[name], wrist_size=SIZE, steps=2, clip=5)
        monkeypatch.setitem(RECIPES, name, small)
    monkeypatch.delenv(GUARDRAIL, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def source(root) -> list[str]:
    return ["--dataset", "droid", "--data-dir", str(root)]


def test_it_sees_the_first_frame_alone_and_is_not_scored_on_it():
    rng = np.random.default_rng(0)
    truth, side = (rng.integers(0, 255, (4, *SIZE, 3), np.uint8) for _ in range(2))
    episode = Episode(Record("val", 0, 0), [View("a", side)], wrist=View("w", truth))
    seen = []

    class Recorded:
        fingerprint: dict[str, str] = {}  # noqa: RUF012

        def __call__(self, episode, *, seed, pose, geometry):
            seen.append(episode)
            frames = truth.copy()
            frames[0] = 0  # only this frame is wrong
            zeros = np.zeros(4, np.float32)
            return WristStream(frames, np.ones(4, bool), zeros, notes={"pose": "none"})

    def scorer(names):
        return Scorer(
            parse_ways(names),
            lambda recipe: Recorded(),
            wrist_size=lambda recipe: SIZE,
            weights=lambda recipe: None,
        )

    guided = scorer(["svd", "anchor"])(episode)
    assert seen[0].wrist is None and np.array_equal(seen[0].first_wrist, truth[0])
    assert len(guided.scores["svd"].psnr) == 3 and guided.scores["svd"].psnr.min() == 100
    assert guided.scores["svd"].values["flicker"] == 0
    assert len(guided.scores["anchor"].psnr) == 4
    blind = scorer(["pix2pix"])(episode)
    assert seen[1].wrist is None and seen[1].first_wrist is None
    assert len(blind.scores["pix2pix"].psnr) == 4 and blind.scores["pix2pix"].psnr[0] < 20


def test_all_three_are_evaluated_at_one_size(small, lab, weights, tmp_path, monkeypatch):
    monkeypatch.setenv(GUARDRAIL, "off")
    path, page = tmp_path / "figures.json", tmp_path / "page.html"
    line = ["evaluate", *source(small.root), "--against", RIGHT, "--anchor-keys", LEFT]
    line += ["--recipes", "anchor,svd,wan-i2v,cosmos-predict2", "--episodes", "2"]
    line += ["--weights", str(weights), "--json", str(path), "--page", str(page)]
    assert cli.main(line) == 0
    report = json.loads(path.read_text())
    for name in REPOSITORIES:
        row = report["recipes"][name]
        assert 0 < row["psnr"]["mean"] < 40 and row["coverage"] is None
        files = report["weights"][name]
        assert len(files) >= 8 and all(place.startswith(REPOSITORIES[name]) for place in files)
    assert report["frames"] == 2 * lab.steps
    assert report["given_frames"] == dict.fromkeys(REPOSITORIES, 1)
    assert "svd (first frame given)" in page.read_text()
    assert "guardrail: none" in page.read_text()


def test_cosmos_wants_its_guardrail_or_a_word(small, weights, capsys):
    line = ["evaluate", *source(small.root), "--against", RIGHT, "--anchor-keys", LEFT]
    line += ["--recipes", "cosmos-predict2", "--episodes", "1", "--weights", str(weights)]
    assert cli.main(line) == 2
    said = capsys.readouterr().err
    assert "cosmos_guardrail" in said and f"{GUARDRAIL}=off" in said


def test_run_refuses_data_without_a_recorded_wrist_view(small, weights, tmp_path, capsys):
    line = ["run", *source(small.root), "--out", str(tmp_path / "out"), "--recipe", "svd"]
    assert cli.main([*line, "--weights", str(weights)]) == 2
    assert "has no recorded wrist view" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_run_continues_the_first_frame_where_there_is_one(lab, weights, tmp_path):
    # In a process of its own, where the recipe is as it is packaged.
    line = ["run", *source(CORPUS), "--out", str(tmp_path / "out"), "--recipe", "svd"]
    line += ["--weights", str(weights), "--wrist-size", "32x48", "--split", "val"]
    line += ["--episodes", "1", "--set", "steps=1", "clip=5"]
    done = lab.without_ray(line)
    assert done.returncode == 0, done.stderr
    manifest = (tmp_path / "out" / ".wristaugment" / "manifest.json").read_text()
    assert "the first frame is the recorded one" in manifest


@pytest.mark.parametrize("name", REPOSITORIES)
def test_weights_says_what_is_needed_and_what_is_wrong(name, weights, tmp_path, capsys):
    report = tmp_path / "weights.json"
    line = ["weights", name, "--json", str(report)]
    assert cli.main([*line, "--weights", str(weights)]) == 0
    parts = {part["part"]: part for part in json.loads(report.read_text())["parts"]}
    assert all(part["repository"] == REPOSITORIES[name] for part in parts.values())
    assert {"vae", "scheduler"} < parts.keys()
    assert cli.main([*line, "--weights", str(tmp_path)]) == 2
    assert "missing" in capsys.readouterr().out
