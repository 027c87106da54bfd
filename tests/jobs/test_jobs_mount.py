"""`wristaugment mount` and `--pose rigid --mount` on the simulated corpus, with nano."""

import json
from pathlib import Path

import numpy as np
import pytest
from wristaugment.augment import rigid_mount
from wristaugment.augment.mounts import read_mount, write_mount
from wristaugment.jobs import cli
from wristaugment.readers import open_dataset

CORPUS = Path(__file__).resolve().parents[1] / "fixtures" / "corpus"
SOURCE = ["--dataset", "droid", "--data-dir", str(CORPUS)]


@pytest.fixture
def calibrated(tmp_path):
    """A file with the mount of the first episode of the validation split."""
    dataset = open_dataset(CORPUS, "droid")
    shard = next(split for split in dataset.splits if split.name == "val").shards[0]
    mount = dataset.episode(next(iter(dataset.records(shard)))).wrist_mount
    write_mount(tmp_path / "true.json", mount, {})
    return tmp_path / "true.json"


def test_two_episodes_do_not_tell_the_mount_and_four_say_how_well(tmp_path, capsys, monkeypatch):
    out, figures = tmp_path / "mount.json", tmp_path / "figures.json"
    command = ["mount", *SOURCE, "--out", str(out), "--json", str(figures)]
    assert cli.main([*command, "--episodes", "2"]) == 2
    assert "2 episodes: the motions do not tell the mount" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setattr(rigid_mount, "MAX_ROTATION", 90.0)  # four are near the limit
    monkeypatch.setattr(rigid_mount, "MAX_OFFSET", 1.0)
    assert cli.main(command) == 0
    said = json.loads(figures.read_text())
    assert said["episodes"] == said["told"] == 4 and 4 < said["rotation_error_deg"] < 6
    np.testing.assert_allclose(read_mount(out), said["mount"], atol=1e-8)
    compared = said["against_calibration"]
    assert compared["episodes"] == 4 and compared["head"]["rotation_deg"] > 1
    assert "against the dataset's own calibration" in capsys.readouterr().out


def test_the_mount_is_part_of_the_plan_and_the_manifest_has_the_residuals(
    calibrated, lab, tmp_path, capsys
):
    out = tmp_path / "out"
    rigid = ["--pose", "rigid", "--mount", str(calibrated)]
    command = ["run", *SOURCE, "--split", "val", "--out", str(out), "--recipe", "projection"]
    done = lab.without_ray([*command, *rigid])
    assert done.returncode == 0, done.stderr
    manifests = [p.read_text() for p in (out / ".wristaugment").rglob("*.json")]
    assert any("rigid: end-effector poses, the mount of --mount" in text for text in manifests)
    # Another mount is another job, though its file has the same name.
    other = read_mount(calibrated)
    other[2, 3] += 0.01
    write_mount(calibrated, other, {})
    assert cli.main([*command, *rigid]) == 2
    assert "mount" in capsys.readouterr().err


def test_what_cannot_be_used_is_refused_and_nothing_is_written(calibrated, small, tmp_path, capsys):
    out = tmp_path / "out"
    run = ["run", *SOURCE, "--out", str(out)]
    for args, said in [
        ([*run, "--mount", str(calibrated)], "--pose rigid"),
        ([*run, "--pose", "rigid", "--mount", str(tmp_path / "none")], "cannot be read"),
        (small.args(out, "--pose", "rigid"), "give --mount"),
        (["mount", *SOURCE, "--out", str(out), "--episodes", "0"], "--episodes"),
        (["mount", *SOURCE, "--out", str(out), "--recipe", "constant"], "no wrist head"),
    ]:
        assert cli.main(args) == 2
        assert said in capsys.readouterr().err
        assert not out.exists()
