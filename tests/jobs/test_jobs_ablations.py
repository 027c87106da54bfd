"""nano with a part left out: which files are trained and read, and what stays as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from wristaugment.augment.recipe import ABLATIONS, get_recipe
from wristaugment.augment.weights import requirements
from wristaugment.jobs import cli
from wristaugment.models.checkpoints import read_config

HERE = Path(__file__).resolve().parents[1]
CORPUS = HERE / "fixtures" / "corpus"
NANO = HERE.parent / "models" / "weights" / "nano"
SOURCE = ("--dataset", "droid", "--data-dir", str(CORPUS))
SHORT = ("--steps", "1", "--batch", "1", "--episodes", "1", "--warmup", "0", "--threads", "1")


@pytest.mark.parametrize("part", ABLATIONS)
def test_an_ablation_has_files_of_its_own_for_what_is_trained_without_it(part):
    files = {need.part: need.main for need in requirements(f"nano-no-{part}")}
    other, stage = ("generation", "reconstruction")[:: -1 if part == "spc" else 1]
    assert files.pop(other) == f"{other}-no-{part}.safetensors"
    # The projection is all that stage 1 is for.
    assert list(files.items()) == ([] if part == "map" else [(stage, f"{stage}.safetensors")])
    assert get_recipe(f"nano-no-{part}").without == (part,)


def test_a_generator_without_a_part_is_trained_beside_the_whole_one(tmp_path, capsys):
    shutil.copyfile(NANO / "reconstruction.safetensors", tmp_path / "reconstruction.safetensors")
    for part in ("map", "clip"):
        recipe = f"nano-no-{part}"
        line = ["train", "generation", "--recipe", recipe, *SOURCE, "--out", str(tmp_path)]
        assert cli.main([*line, *SHORT]) == 0
        made = tmp_path / f"generation-no-{part}.safetensors"
        assert read_config(made)["without"] == [part]
        assert (tmp_path / made.stem / "log.jsonl").exists()
    assert not (tmp_path / "generation.safetensors").exists()
    report = tmp_path / "figures.json"
    scored = ["evaluate", *SOURCE, "--against", "observation/wrist_image_left", "--episodes", "1"]
    scored += ["--recipes", "nano-no-map,nano-no-clip", "--weights", str(tmp_path)]
    assert cli.main([*scored, "--json", str(report)]) == 0
    figures = json.loads(report.read_text())
    assert set(figures["weights"]["nano-no-clip"]) == {
        "generation-no-clip.safetensors", "reconstruction.safetensors"
    }  # fmt: skip
    assert set(figures["weights"]["nano-no-map"]) == {"generation-no-map.safetensors"}
    assert figures["trained"]["nano-no-map"]["steps"] == 1
    for row in figures["recipes"].values():
        assert row["psnr"]["mean"] > 5
    # Without --weights there is nothing to run it with, and that is said.
    capsys.readouterr()
    assert cli.main([*scored[:-3], "nano-no-clip", "--json", str(tmp_path / "none.json")]) == 2
    assert "generation-no-clip.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["nano", "nano-no-spc"])
def test_a_wrist_head_alone_leaves_everything_else(recipe, tmp_path):
    before = NANO / "reconstruction.safetensors"
    line = ["train", "wrist", "--recipe", recipe, *SOURCE, "--out", str(tmp_path), *SHORT]
    assert cli.main([*line, "--init", str(before)]) == 0
    stem = "reconstruction-no-spc" if recipe == "nano-no-spc" else "reconstruction"
    old, new = load_file(before), load_file(tmp_path / f"{stem}.safetensors")
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"wrist_head"} and old.keys() == new.keys()
    # The first step's loss differs by the projection's, which comes in later: it is logged anyway.
    assert any("spc" in line for line in (tmp_path / stem / "log.jsonl").read_text().splitlines())


def test_a_wrist_head_without_features_to_learn_on_is_refused(tmp_path, capsys):
    line = ["train", "wrist", *SOURCE, "--out", str(tmp_path / "out"), *SHORT]
    assert cli.main(line) == 2
    assert "--init" in capsys.readouterr().err
    kept = tmp_path / "reconstruction.safetensors"
    shutil.copyfile(NANO / "reconstruction.safetensors", kept)
    line = ["train", "wrist", *SOURCE, "--out", str(tmp_path), *SHORT, "--init", str(kept)]
    assert cli.main(line) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
