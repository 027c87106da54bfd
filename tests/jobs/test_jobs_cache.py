"""`wristaugment cache`: a dataset in, a store for training out; killed, resumed and refused."""

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import small_weights
from wristaugment.augment.corpus import training_episodes
from wristaugment.augment.latents import LatentStore, record_name
from wristaugment.augment.pipeline import Augmenter
from wristaugment.augment.recipe import get_recipe
from wristaugment.augment.train_video import train_video
from wristaugment.augment.training import Schedule
from wristaugment.augment.video_networks import open_base
from wristaugment.augment.weights import fingerprint, locate
from wristaugment.jobs import cache, cli
from wristaugment.jobs.interrupt import EXIT_CODE, Interrupted
from wristaugment.readers import open_dataset
from wristaugment.readers.episode import Record

SMALL = ["--wrist-size", "32x48", "--set", "clip=5", "side=56", "--device", "cpu"]
WRIST = "observation/wrist_image_left"


@pytest.fixture(scope="module", params=["paper", "official"])
def weights(request, tmp_path_factory) -> tuple[str, Path]:
    recipe = request.param
    return recipe, small_weights.make_weights(tmp_path_factory.mktemp(recipe), recipe)


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> Path:
    return small_weights.make_weights(tmp_path_factory.mktemp("weights"), "paper")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Prompts and hashes are remembered in the user's cache; tests have their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


def line(source: Path, weights: Path, out: Path, recipe: str, *more: object) -> list[str]:
    given = ["cache", "--dataset", "droid_101", "--data-dir", source, "--weights", weights]
    return [str(x) for x in (*given, "--out", out, "--recipe", recipe, *SMALL, *more)]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_record_of_a_dataset_is_kept(droid_source, weights, tmp_path):
    recipe, root = weights
    report = tmp_path / "report.json"
    for part in (root / "generation.safetensors", root / small_weights.DIT_PAPER):
        if part.exists():  # stage 2 is yet to be trained
            part.rename(part.with_suffix(".away"))
    try:
        out = tmp_path / "out"
        code = cli.main(line(droid_source, root, out, recipe, "--json", report))
    finally:
        for part in root.rglob("*.away"):
            part.rename(part.with_suffix(".safetensors"))
    assert code == 0
    assert json.loads(report.read_text()) == {
        "cache": str(out),
        "made": 7,
        "found": 0,
        "left_out": {},
    }
    store = LatentStore.open(out)
    assert len(store.records()) == 7
    assert len(store.records(["val"])) == 2
    assert store.clip == 5
    # train 1, shard 0: six steps, and its second camera carries no picture
    name = record_name(Record("train", 0, 1))
    assert store.views(name) == ["observation/exterior_image_1_left"]
    assert store.starts(name) == 2
    first = store.window(record_name(Record("train", 0, 0)))
    assert first.features.shape == (2, 5, small_weights.EXT[recipe])
    assert first.wrist.shape == first.condition.shape == (16, 2, 4, 6)
    assert np.ptp(first.condition.numpy()) > 0
    assert store.identity["source"]["wrist"] == WRIST
    assert not [p for p in store.identity["weights"] if "generation" in p or "dit" in p.lower()]
    text = json.dumps(store.identity)
    assert str(root) not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_what_is_kept_is_trained_on_and_then_drawn_with(droid_source, weights, tmp_path, mode):
    recipe, root = weights
    out = tmp_path / "store"
    assert cli.main(line(droid_source, root, out, recipe, "--episodes", 3)) == 0
    own = shutil.copytree(root, tmp_path / "own")
    located = locate(recipe, root, parts=["dit"])
    trained = train_video(
        LatentStore.open(out),
        open_base(get_recipe(recipe), located),
        Schedule(steps=2, batch=2, rate=1e-2, warmup=1, bf16=False, average=0.0),
        own,
        mode=mode,
        fingerprint=fingerprint(recipe, located=located),
    )
    assert trained == own / "generation.safetensors"
    recipe_made = replace(
        get_recipe(recipe), clip=5, overlap=2, wrist_size=(32, 48), side=56, steps=2
    )
    (first,) = islice(training_episodes(open_dataset(droid_source, "droid_101"), ["val"], WRIST,
                                        depth=False), 1)  # fmt: skip
    streams = [
        Augmenter(recipe_made, weights=folder)(first, seed=0).frames for folder in (own, root)
    ]
    assert streams[0].shape == (3, 32, 48, 3)
    assert not np.array_equal(*streams)


def test_a_killed_cache_goes_on_and_is_the_same(droid_source, paper, tmp_path, monkeypatch):
    few = ("--split", "train", "--episodes", 3)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli.main(line(droid_source, paper, whole, "paper", *few)) == 0
    calls = 0

    def dies() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Interrupted("SIGTERM")

    monkeypatch.setattr(cache, "check", dies)
    assert cli.main(line(droid_source, paper, killed, "paper", *few)) == EXIT_CODE
    assert len(LatentStore.open(killed).records()) == 2
    report = tmp_path / "report.json"
    monkeypatch.undo()
    assert cli.main(line(droid_source, paper, killed, "paper", *few, "--json", report)) == 0
    assert (json.loads(report.read_text())["made"], len(contents(killed))) == (
        1,
        len(contents(whole)),
    )
    assert contents(killed) == contents(whole)
    parts = tmp_path / "parts"
    for k in (2, 1):
        assert cli.main(line(droid_source, paper, parts, "paper", *few, "--part", f"{k}/2")) == 0
    assert contents(parts) == contents(whole)


def test_records_that_cannot_be_made_are_listed(droid_folder, paper, tmp_path, capsys):
    shard = sorted(droid_folder.glob("*val*tfrecord*"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 4] ^= 0xFF  # inside the first record
    shard.write_bytes(bytes(data))
    code = cli.main(line(droid_folder, paper, tmp_path / "out", "paper", "--split", "val"))
    assert code == 3
    assert "left out val/0/0" in capsys.readouterr().out
    assert LatentStore.open(tmp_path / "out").records() == ["val-00000-000001"]


def test_shards_of_which_all_is_kept_are_not_read_again(droid_folder, paper, tmp_path, capsys):
    given = line(droid_folder, paper, tmp_path / "out", "paper", "--split", "train")
    assert cli.main([*given, "--episodes", "3"]) == 0  # the first of two shards
    first, second = sorted(droid_folder.glob("*train*tfrecord*"))
    first.unlink()
    assert cli.main(given) == 0
    assert "2 records made, 3 were there" in capsys.readouterr().out
    second.unlink()
    assert cli.main(given) == 0
    assert "0 records made, 5 were there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (["--recipe", "nano"], "trained without a cache of latents"),
        (["--recipe", "huge"], "unknown recipe 'huge'"),
        (["--wrist-size", "40x48"], "height of 40 pixels; it must be a multiple of 16"),
        (["--set", "clip=8"], "clips have 4n + 1 frames; found 8"),
        (["--part", "5/4"], "is no part K/N"),
        (["--split", "test"], "there is no split 'test'"),
        (["--episodes", "0"], "0 episodes"),
        (["--against", "exterior_image_1_left"], "is an anchor view"),
        (["--against", "nothing"], "there is no such stream"),
        (["--weights", "/nowhere"], "weights of recipe 'paper' are missing"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_written(
    droid_source, paper, tmp_path, capsys, more, found
):
    out = tmp_path / "out"
    assert cli.main(line(droid_source, paper, out, "paper", *more)) == 2
    error = capsys.readouterr().err.strip()
    assert found in error
    assert error.count("wristaugment: error") == 1
    assert not out.exists()


def test_a_store_of_other_settings_or_weights_is_refused(droid_source, paper, tmp_path, capsys):
    out = tmp_path / "out"
    few = ("--split", "val", "--episodes", 1)
    assert cli.main(line(droid_source, paper, out, "paper", *few)) == 0
    before = contents(out)
    assert cli.main(line(droid_source, paper, out, "paper", *few, "--pose", "head")) == 2
    assert "source.pose auto instead of head; use those to go on" in capsys.readouterr().err
    other = small_weights.make_weights(tmp_path / "other", "official")
    assert cli.main(line(droid_source, other, out, "official", *few)) == 2
    assert "made with other settings" in capsys.readouterr().err
    assert contents(out) == before
