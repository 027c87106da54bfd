"""Pix2Pix as `evaluate` trains it, as `train` does, and as `run` uses it.

The small datasets have no hand camera, so one side view plays the recorded wrist view.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from wristaugment.augment.recipe import GENERATION, PIX2PIX, RECIPES, WEIGHTS
from wristaugment.jobs import cli, interrupt

LEFT, RIGHT = "exterior_image_1_left", "exterior_image_2_left"
STEPS = 6


@pytest.fixture(autouse=True)
def little(monkeypatch, tmp_path):
    """Pictures of the size of the small datasets', one thread, and a user's cache of its own."""
    small = replace(RECIPES["pix2pix"], wrist_size=(32, 32))
    monkeypatch.setitem(RECIPES, "pix2pix", small)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def source(root) -> list[str]:
    return ["--dataset", "droid", "--data-dir", str(root)]


def evaluate(root, tmp_path, *more, code=0) -> dict:
    """What --json holds; nothing where the command is to end with another code."""
    path = tmp_path / "figures.json"
    line = ["evaluate", *source(root), "--against", RIGHT, "--anchor-keys", LEFT]
    line += ["--recipes", "pix2pix,anchor", "--episodes", "3", "--baseline-steps", str(STEPS)]
    line += ["--json", str(path), *map(str, more)]
    assert cli.main(line) == code
    return json.loads(path.read_text()) if code == 0 else {}


def test_it_is_trained_once_on_what_is_not_scored_and_found_again(small, lab, tmp_path, capsys):
    report = evaluate(small.root, tmp_path)
    assert "training pix2pix for 6 steps" in capsys.readouterr().out
    trained = report["trained"]["pix2pix"]
    # 8 episodes in all: the first 3 are scored, and it never saw them.
    assert (trained["steps"], trained["episodes"]) == (STEPS, 5)
    assert trained["frames"] == 5 * lab.steps
    assert "without the episodes that were to be scored" in trained["source"]
    row = report["recipes"]["pix2pix"]
    assert 0 < row["psnr"]["mean"] < 30 and row["coverage"] is None
    assert row["pose_rotation_deg"] is None and row["seconds_per_frame"]["mean"] > 0
    (folder,) = (tmp_path / "cache" / "wristaugment" / "baselines").iterdir()
    weights = folder / "pix2pix.safetensors"
    assert not (folder / "cache").exists()
    written = weights.stat().st_mtime_ns
    again = evaluate(small.root, tmp_path)
    said = capsys.readouterr().out
    assert "training" not in said and "trained for 6 steps of 4 on 60 frames" in said
    assert weights.stat().st_mtime_ns == written
    assert again["recipes"]["pix2pix"]["psnr"] == row["psnr"]
    # Scoring others, it must not have learnt from them: another training.
    evaluate(small.root, tmp_path, "--episodes", "2")
    assert "training pix2pix" in capsys.readouterr().out
    assert len(list(folder.parent.iterdir())) == 2


def test_stopped_it_goes_on_to_the_same_weights(small, tmp_path, monkeypatch, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    evaluate(small.root, tmp_path, "--baselines", whole)
    calls = []

    def asked():
        calls.append(1)
        return "SIGINT" if len(calls) >= 3 else ""

    with monkeypatch.context() as patched:
        patched.setattr(interrupt, "asked", asked)
        evaluate(small.root, tmp_path, "--baselines", stopped, code=interrupt.EXIT_CODE)
    assert "stopped at step 3 of 6" in capsys.readouterr().out
    assert not (stopped / "pix2pix.safetensors").exists()
    evaluate(small.root, tmp_path, "--baselines", stopped)
    ours, theirs = (load_file(out / "pix2pix.safetensors") for out in (stopped, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    # What lies in a folder of one's own is not taken for another training.
    evaluate(small.root, tmp_path, "--baselines", whole, "--baseline-steps", "7", code=2)
    assert "holds another training" in capsys.readouterr().err


def test_there_must_be_an_episode_to_learn_from(small, tmp_path, capsys):
    evaluate(small.root, tmp_path, "--episodes", "8", code=2)
    said = capsys.readouterr().err
    assert "no episode to learn from" in said and "--train-split" in said
    evaluate(small.root, tmp_path, "--baseline-steps", "0", code=2)
    assert "--baseline-steps" in capsys.readouterr().err


def test_no_pose_is_involved(small, tmp_path, capsys):
    evaluate(small.root, tmp_path, "--recipes", "pix2pix:head", code=2)
    assert "'pix2pix' involves no pose" in capsys.readouterr().err


@pytest.fixture
def weights(small, tmp_path):
    """A folder with weights of 4 steps, from `train` on a corpus with a hand camera."""
    corpus = Path(__file__).resolve().parents[1] / "fixtures" / "corpus"
    out = tmp_path / "mine"
    line = ["train", "generation", "--recipe", "pix2pix", *source(corpus), "--out", str(out)]
    line += ["--steps", "4", "--batch", "2", "--episodes", "2", "--log-every", "1"]
    assert cli.main([*line, "--json", str(tmp_path / "reached.json")]) == 0
    return out


def test_train_writes_weights_that_evaluate_and_run_take(small, lab, weights, tmp_path, capsys):
    reached = json.loads((tmp_path / "reached.json").read_text())
    assert reached["weights"] == str(weights / "pix2pix.safetensors")
    assert reached["validation"]["psnr"] > 0 and 0 < reached["validation"]["ssim"] < 1
    lines = (weights / "pix2pix" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    with safe_open(weights / "pix2pix.safetensors", framework="pt") as file:
        assert all(not name.startswith("judge") for name in file.keys())  # noqa: SIM118
    capsys.readouterr()
    report = evaluate(small.root, tmp_path, "--weights", weights)
    assert "training pix2pix" not in capsys.readouterr().out
    assert report["trained"]["pix2pix"]["steps"] == 4
    # Two views were learnt from, one is there: that is no reason to refuse.
    out = tmp_path / "out"
    options = ["--recipe", "pix2pix", "--weights", str(weights), "--wrist-size", "20x36"]
    done = lab.without_ray(small.args(out, "--anchor-keys", LEFT, *options))
    assert done.returncode == 0, done.stderr
    assert cli.main(["verify", str(out)]) == 0
    line = ["evaluate", *source(small.root), "--against", RIGHT, "--anchor-keys", LEFT]
    assert cli.main([*line, "--copy", str(out), "--json", str(tmp_path / "copy.json")]) == 0
    copied = json.loads((tmp_path / "copy.json").read_text())
    assert np.isfinite(copied["recipes"]["copy"]["psnr"]["mean"])


def test_other_weights_and_none_are_refused(small, tmp_path, capsys):
    out = tmp_path / "out"
    line = ["run", *source(small.root), "--out", str(out), "--recipe", "pix2pix"]
    assert cli.main([*line, "--weights", str(tmp_path)]) == 2
    assert "wristaugment train generation --recipe pix2pix" in capsys.readouterr().err
    (tmp_path / PIX2PIX).write_bytes((WEIGHTS / "nano" / GENERATION).read_bytes())
    assert cli.main([*line, "--weights", str(tmp_path)]) == 2
    assert "Pix2PixConfig does not know" in capsys.readouterr().err
    assert not out.exists()
