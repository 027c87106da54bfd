"""The ledger: a job killed at every point of the commit path; refusals; what `status` says."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading

import pytest
from wristaugment.jobs import cli
from wristaugment.jobs.ledger import CRASH_POINTS, Ledger
from wristaugment.readers.errors import SourceError

SIGKILLED = -9


@pytest.mark.parametrize("point", [*CRASH_POINTS, "staged:3", "renamed:2", "recorded:4"])
def test_a_job_killed_at_any_point_of_the_commit_path_ends_as_if_uninterrupted(
    lab, small, whole, tmp_path, point
):
    out = tmp_path / "out"
    killed = lab.without_ray(small.args(out), crash=point)
    assert killed.returncode == SIGKILLED, killed.stderr
    assert lab.tree(out) != whole, "it died too late to show anything"
    done = lab.without_ray(small.args(out))
    assert done.returncode == 0, done.stderr
    assert lab.tree(out) == whole


def test_a_resumed_job_keeps_the_shards_that_were_done(lab, small, tmp_path):
    out = tmp_path / "out"
    lab.without_ray(small.args(out), crash="recorded:2")
    shards = sorted(out.glob("droid/1.0.0/*tfrecord*"))
    before = [path.stat().st_mtime_ns for path in shards]
    assert len(shards) == 2
    done = lab.without_ray(small.args(out, "--json", "-"))
    summary = json.loads(done.stdout)
    assert [path.stat().st_mtime_ns for path in shards] == before
    assert (summary["made_episodes"], summary["resumed_episodes"]) == (4, 4)


def test_a_shard_that_was_lost_is_made_again(lab, small, whole, tmp_path):
    out = tmp_path / "out"
    lab.without_ray(small.args(out))
    lost = sorted(out.glob("droid/1.0.0/*tfrecord*"))[1]
    lost.unlink()
    (out / "droid/1.0.0/features.json").unlink()
    done = lab.without_ray(small.args(out, "--json", "-"))
    assert json.loads(done.stdout)["made_episodes"] == 2
    assert lab.tree(out) == whole


def test_nothing_in_the_copy_depends_on_where_the_source_lies(lab, small, whole, tmp_path):
    moved = shutil.copytree(small.root, tmp_path / "elsewhere" / "data")
    source = type(small)(moved, moved / "droid" / "1.0.0")
    out = tmp_path / "other" / "out"
    assert lab.without_ray(source.args(out)).returncode == 0
    assert lab.tree(out) == whole
    for path in out.rglob("*.json"):
        assert str(tmp_path) not in path.read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", "5"], "seed is 0 there and 5 here"),
        (["--wrist-size", "40x56"], "wrist_size is [96, 176] there and [40, 56] here"),
        (["--episodes", "3"], "episodes is none there and 3 here"),
        (
            ["--anchor-keys", "exterior_image_2_left"],
            "_image_1_left', 'observation/exterior_image_2_left'] there and ['observation/ext",
        ),
    ],
)
def test_an_out_that_holds_another_job_is_refused_and_says_how_it_differs(
    lab, small, tmp_path, capsys, options, said
):
    out = tmp_path / "out"
    lab.without_ray(small.args(out), crash="recorded")
    before = lab.tree(out)
    assert cli.main(small.args(out, *options)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error and "new --out" in error
    assert lab.tree(out) == before


def test_a_changed_source_is_another_job(lab, tmp_path, capsys):
    source = lab.make_source(tmp_path / "data", shards=2, episodes=1)
    out = tmp_path / "out"
    lab.without_ray(source.args(out), crash="recorded")
    with open(source.shard(1), "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0")
    assert cli.main(source.args(out)) == 2
    assert f"source.shards.{source.shard(1).name}" in capsys.readouterr().err


def test_a_folder_with_something_else_in_it_is_refused_and_an_empty_one_is_not(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(SourceError, match=r"holiday\.jpg"):
        Ledger(tmp_path).check({"seed": 0})
    (tmp_path / "holiday.jpg").unlink()
    assert Ledger(tmp_path).check({"seed": 0}) is False
    assert list(tmp_path.iterdir()) == []


def test_a_second_driver_is_refused_and_leaves_the_first_ones_staging_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("wristaugment.jobs.lease.PATIENCE", 0.1)
    first, second = Ledger(tmp_path), Ledger(tmp_path)
    with first.opened({"seed": 0}):
        staged = tmp_path / first.stage("shard")
        staged.write_bytes(b"half a shard")
        with pytest.raises(SourceError, match="another run"), second.opened({"seed": 0}):
            pass
        assert staged.read_bytes() == b"half a shard"
        assert first.running()
    assert not first.running()
    with second.opened({"seed": 0}) as resumed:
        assert resumed


def test_looking_at_a_job_does_not_keep_a_driver_out(tmp_path):
    ledger = Ledger(tmp_path)
    with ledger.opened({"seed": 0}):
        pass
    with open(ledger.folder / "lock") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        leaving = threading.Timer(0.3, fcntl.flock, (looking, fcntl.LOCK_UN))
        leaving.start()
        with ledger.opened({"seed": 0}) as resumed:
            assert resumed
        leaving.join()


def test_what_an_orphaned_actor_does_late_cannot_reach_the_next_job(tmp_path):
    dead, alive = Ledger(tmp_path), Ledger(tmp_path)
    with dead.opened({"seed": 0}):
        late = tmp_path / dead.stage("train-00000")
        late.write_bytes(b"from the dead")
    with alive.opened({"seed": 0}):
        with pytest.raises(FileNotFoundError):
            late.write_bytes(b"from the dead")
        assert tmp_path / alive.stage("train-00000") != late
    assert not (tmp_path / ".wristaugment" / "staging").exists()


def test_a_staged_shard_of_another_length_is_not_published(tmp_path):
    ledger = Ledger(tmp_path)
    final = tmp_path / "droid" / "shard"
    with ledger.opened({"seed": 0}):
        staged = ledger.stage("train-00000")
        (tmp_path / staged).mkdir()
        (tmp_path / staged / "shard").write_bytes(b"12345")
        with pytest.raises(SourceError, match="5 bytes, expected 6"):
            entry = {"result": {"files": {"shard": [6, None]}}}
            ledger.publish("train", 0, staged, "droid", entry)
    assert not final.exists() and ledger.entry("train", 0) is None


def test_status_follows_a_job_from_nothing_to_complete(lab, small, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["status", str(out)]) == 2
    assert "holds no job" in capsys.readouterr().err

    def look():
        assert cli.main(["status", str(out), "--json", "-"]) == 0
        return json.loads(capsys.readouterr().out)

    lab.without_ray(small.args(out), crash="recorded:3")
    state = look()
    assert (state["shards_done"], state["shards"], state["episodes_done"]) == (3, 4, 6)
    assert not state["complete"] and not state["running"]
    assert "run the same command" in state["todo"]
    with Ledger(out).opened(Ledger(out).plan() or {}):
        assert look()["running"]
    lab.without_ray(small.args(out))
    state = look()
    assert state["complete"] and state["episodes_done"] == 8
    sorted(out.glob("droid/1.0.0/*tfrecord*"))[0].unlink()
    state = look()
    assert not state["complete"] and "1 finished shards were lost" in state["todo"]
