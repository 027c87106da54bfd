"""`simulate --from`: other formats from a simulated corpus, with no renderer."""

import hashlib
import json

import numpy as np
import pytest
from format_kinds import CORPUS, KINDS
from wristaugment.jobs.cli import main
from wristaugment.jobs.simulate import FORMATS
from wristaugment.readers import open_dataset


def test_every_format_that_is_simulated_is_held_to_the_contract():
    assert [kind.name for kind in KINDS] == list(FORMATS)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "rlds"])
def test_a_corpus_is_converted_with_its_true_wrist_view(name, tmp_path):
    report = tmp_path / "report.json"
    words = ["simulate", "--from", str(CORPUS), "--format", name, "--wrist"]
    assert main([*words, "--out", str(tmp_path / "out"), "--json", str(report)]) == 0
    folder = json.loads(report.read_text())["folder"]
    dataset = open_dataset(folder)
    records = [raw for split in dataset.splits for s in split.shards for raw in dataset.records(s)]
    assert sum(dataset.steps(raw) for raw in records) == 32
    wrist = dataset.profile.wrist
    assert wrist is not None and wrist.key not in [view.key for view in dataset.profile.anchors]
    views = [dataset.episode(raw, wrist=wrist.key).wrist for raw in records]
    # The same hand camera as in the corpus, at whatever size and crop the format has.
    truth = open_dataset(CORPUS)
    true = [
        truth.episode(raw, wrist="wrist_image_left").wrist
        for split in truth.splits
        for shard in split.shards
        for raw in truth.records(shard)
    ]
    means = sorted(float(np.asarray(view.frames).mean()) for view in views if view)
    wanted = sorted(float(np.asarray(view.frames).mean()) for view in true if view)
    assert len(means) == 4 and np.abs(np.subtract(means, wanted)).max() < 12
    assert not (tmp_path / "out" / ".making").exists()


def test_converting_twice_gives_the_same_bytes_and_never_overwrites(tmp_path, capsys):
    hashes = []
    for name in ("a", "b"):
        words = ["simulate", "--from", str(CORPUS), "--format", "libero"]
        assert main([*words, "--out", str(tmp_path / name)]) == 0
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        hashes.append([(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files])
    assert hashes[0] == hashes[1]
    assert main([*words, "--out", str(tmp_path / "b")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_what_makes_no_sense_is_one_line(tmp_path, capsys):
    assert main(["simulate", "--out", str(tmp_path / "x")]) == 2
    assert "--episodes" in capsys.readouterr().err
    assert main(["simulate", "--from", str(CORPUS), "--out", str(tmp_path / "x")]) == 2
    assert "--format" in capsys.readouterr().err
    words = ["--from", str(tmp_path), "--format", "calvin", "--out", str(tmp_path / "y")]
    assert main(["simulate", *words]) == 2
    assert not (tmp_path / "y").exists() and len(capsys.readouterr().err.splitlines()) == 1
