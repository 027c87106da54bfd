"""The paper's recipe at reduced width, from public weights alone to an augmented dataset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_weights import make_weights
from wristaugment.jobs import cli
from wristaugment.models.checkpoints import read_config
from wristaugment.models.lora import read_generation

CORPUS = Path(__file__).resolve().parents[1] / "fixtures" / "corpus"
SOURCE = ("--dataset", "droid", "--data-dir", str(CORPUS))
SHORT = ("--log-every", "1", "--warmup", "0", "--threads", "1", "--precision", "fp32")
SMALL = ("side=70", "clip=5", "overlap=4", "steps=2")


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A weights root as `--download` leaves it: nothing that training writes."""
    root = make_weights(tmp_path_factory.mktemp("public"), "paper")
    for stage in ("reconstruction", "generation"):
        (root / f"{stage}.safetensors").unlink()
    return root


@pytest.fixture(scope="module")
def trained(public, tmp_path_factory):
    """(folder of what was trained, the cache), through the three commands."""
    out = tmp_path_factory.mktemp("trained")
    store = out / "latents"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WRISTAUGMENT_WEIGHTS", str(public))
        reach(
            *("train", "reconstruction", "--recipe", "paper", *SOURCE, "--out", out, *SHORT),
            *("--set", *SMALL, "--loss", "visibility=0", "confidence=0"),
            *("--steps", "16", "--batch", "4", "--rate", "3e-3", "--accumulate", "1"),
        )
        reach(
            *("cache", "--recipe", "paper", *SOURCE, "--weights", out, "--out", store),
            *("--set", *SMALL, "--wrist-size", "32x48", "--device", "cpu"),
        )
        reach(
            *("train", "generation", "--recipe", "paper", *SOURCE, "--out", out, *SHORT),
            *("--cache", store, "--steps", "12", "--batch", "2", "--rate", "2e-2"),
        )
    return out, store


def reach(*line) -> None:
    assert cli.main(list(map(str, line))) == 0


def losses(out: Path, stage: str) -> list[float]:
    lines = (out / stage / "log.jsonl").read_text().splitlines()
    return [values["loss"] for values in map(json.loads, lines) if "loss" in values]


def test_both_stages_learn_and_leave_what_a_run_needs(trained):
    out, _ = trained
    for stage, steps in (("reconstruction", 16), ("generation", 12)):
        found = losses(out, stage)
        assert len(found) == steps
        assert sum(found[-4:]) < 0.98 * sum(found[:4]), found
        assert any((out / stage / "tensorboard").iterdir())
    assert read_config(out / "reconstruction.safetensors")["trained"] == ["wrist"]
    generation = read_generation(out / "generation.safetensors")
    assert (generation.mode, generation.rank, generation.alpha) == ("lora", 4, 4.0)
    assert generation.base


def test_a_run_takes_public_and_trained_weights_together(trained, public, tmp_path, monkeypatch):
    out, _ = trained
    monkeypatch.setenv("WRISTAUGMENT_WEIGHTS", str(public))
    copy = tmp_path / "copy"
    reach(
        *("run", "--recipe", "paper", *SOURCE, "--weights", out, "--out", copy, "--device", "cpu"),
        *("--wrist-size", "32x48", "--set", *SMALL, "--split", "val", "--num-actors", "1"),
    )
    manifest = json.loads((copy / ".wristaugment" / "manifest.json").read_text())
    assert "measured" in json.dumps(manifest)
    reach("verify", copy, "--source", CORPUS)


def test_stage_two_asks_for_its_cache_and_refuses_that_of_another_recipe(
    trained, public, tmp_path, monkeypatch, capsys
):
    _, store = trained
    monkeypatch.setenv("WRISTAUGMENT_WEIGHTS", str(public))
    line = ["train", "generation", "--recipe", "paper", *SOURCE, "--out", str(tmp_path / "out")]
    assert cli.main(line) == 2
    said = capsys.readouterr().err
    assert "wristaugment cache --recipe paper" in said and said.count("\n") == 1
    # The views of a store are those that it was made with.
    views = ["--cache", str(store), "--anchor-keys", "exterior_image_1_left"]
    assert cli.main([*line, *views]) == 2
    said = capsys.readouterr().err
    assert "--anchor-keys" in said and "wristaugment cache" in said
    official = make_weights(tmp_path / "official", "official")
    line[3] = "official"
    capsys.readouterr()
    assert cli.main([*line, "--cache", str(store), "--weights", str(official)]) == 2
    said = capsys.readouterr().err
    assert "recipe.form paper instead of official" in said and said.count("\n") <= 2
    assert not (tmp_path / "out").exists()


def test_a_setting_of_the_losses_that_does_not_exist_is_refused(public, tmp_path, capsys):
    line = ["train", "reconstruction", "--recipe", "paper", *SOURCE, "--out", str(tmp_path / "o")]
    assert cli.main([*line, "--weights", str(public), "--loss", "lamda_u=1"]) == 2
    assert "--loss" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
