"""The full-size recipes at reduced width, from RLDS in to RLDS out, as users start them."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_weights import make_weights

SMALL = ("steps=2", "clip=9", "overlap=4", "side=70")


@pytest.fixture(scope="module", params=["paper", "official"])
def made(request, tmp_path_factory, droid_source):
    """(recipe, its weights, the source, two copies) of runs on real Ray clusters of their own."""
    weights = make_weights(tmp_path_factory.mktemp("weights"), request.param)
    outs = [tmp_path_factory.mktemp("out") / "copy" for _ in range(2)]
    # At the same time: each keeps one core busy.
    with ThreadPoolExecutor(2) as pool:
        more = ((), ("overlap=4",))
        start = lambda out, more: launch(request.param, droid_source, out, weights, *more)
        for done in pool.map(start, outs, more):
            assert done.returncode == 0, done.stderr
    return request.param, weights, droid_source, *outs


def launch(recipe, source, out, weights, *more):
    command = [
        *(sys.executable, "-m", "wristaugment", "run", "--recipe", recipe),
        *("--dataset", "droid", "--data-dir", source, "--out", out, "--weights", weights),
        *("--wrist-size", "32x48", "--device", "cpu", "--num-actors", "1", "--set", *SMALL, *more),
    ]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


def version_folder(out):
    return next(out.glob("*/*/dataset_info.json")).parent


def test_a_whole_dataset_comes_out_with_a_wrist_view(made, decode, equal_trees):
    recipe, _, source, out, _ = made
    before, after = decode(source), decode(version_folder(out))
    for split, episodes in before.items():
        assert len(after[split]) == len(episodes)
        for old, new in zip(episodes, after[split], strict=True):
            pictures = []
            for step in new["steps"]:
                pictures.append(step["observation"].pop("wrist_rgb"))
                assert step["observation"].pop("wrist_valid") in (True, False)
                assert np.isnan(step["observation"].pop("wrist_confidence"))
            equal_trees(old, new)
            assert len(pictures) == len(old["steps"])
            assert all(p.shape == (32, 48, 3) and p.dtype == np.uint8 for p in pictures)
    manifest = json.loads((out / ".wristaugment" / "manifest.json").read_text())
    assert recipe in json.dumps(manifest)


def test_what_was_seen_and_chosen_is_noted(made):
    *_, out, _ = made
    manifest = (out / ".wristaugment" / "manifest.json").read_text()
    # One camera of the source is calibrated and one is not, or black.
    assert "head: the wrist head's prediction" in manifest
    assert "measured" in manifest or "anchors alone" in manifest


def test_the_same_command_on_other_actors_gives_the_same_bytes(made):
    *_, out, again = made
    files = sorted(p.relative_to(out) for p in out.rglob("*.tfrecord-*"))
    assert files
    for name in files:
        assert (out / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.parametrize(
    ("size", "settings", "says"),
    [
        ("40x48", (), "multiple of 16"),
        ("32x48", ("clip=8",), r"4n \+ 1"),
        ("32x48", ("geometry=cloud",), "geometry is depth or points"),
    ],
)
def test_what_would_be_cropped_is_refused_before_anything_is_written(
    made, tmp_path, size, settings, says, capsys
):
    import re

    from wristaugment.jobs.cli import main

    recipe, weights, source, *_ = made
    line = ["run", "--recipe", recipe, "--dataset", "droid", "--data-dir", str(source)]
    line += ["--out", str(tmp_path / "copy"), "--weights", str(weights), "--device", "cpu"]
    line += ["--wrist-size", size, "--set", *SMALL, *settings]
    assert main(line) == 2
    error = capsys.readouterr().err
    assert re.search(says, error) and error.count("\n") == 1, error
    assert not (tmp_path / "copy").exists()
