"""Jobs whose source and copy lie in an object store: the same tree, the same promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from wristaugment.jobs import cli, lease
from wristaugment.jobs.ledger import CRASH_POINTS, Ledger
from wristaugment.jobs.storage import FOLDER, ObjectStorage
from wristaugment.readers.errors import SourceError

SIGKILLED = -9


def files(tree: dict[str, str]) -> dict[str, str]:
    """The files of a `lab.tree`; an object store has no folders."""
    return {name: value for name, value in tree.items() if value != "folder"}


@pytest.fixture
def there(s3, small, request):
    """(the command line from S3 to S3, the URL of the copy), a bucket a test."""
    bucket = s3.url(f"remote-{abs(hash(request.node.name)) % 10**8}-{time.time_ns() % 10**6}")
    s3.put_tree(small.root, f"{bucket}/data")
    out = f"{bucket}/out"
    given = ["--dataset", "droid", "--data-dir", f"{bucket}/data", "--out", out]
    return ["run", *given, "--recipe", "constant", "--events", "none"], out


def test_from_s3_to_s3_gives_the_tree_of_a_folder(there, s3, lab, whole, capsys, tmp_path):
    line, out = there
    done = lab.without_ray([*line, "--json", str(tmp_path / "said.json")])
    assert done.returncode == 0, done.stderr
    assert s3.tree(out) == files(whole)
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["out"] == out and said["folder"] == f"{out}/droid/1.0.0"
    assert cli.main(["status", out, "--json", "-"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert state["complete"] and state["episodes_done"] == 8 and not state["running"]
    assert cli.main(["verify", out]) == 0
    assert cli.main(["verify", out, "--source", line[line.index("--data-dir") + 1]]) == 0
    name = next(name for name in s3.tree(out) if name.endswith("-00002-of-00004"))
    data = bytearray(s3.get(f"{out}/{name}"))
    data[len(data) // 2] ^= 1
    s3.put(f"{out}/{name}", bytes(data))
    assert cli.main(["verify", out]) == 3
    assert name.rpartition("/")[2] in capsys.readouterr().out


@pytest.mark.parametrize("point", [*CRASH_POINTS, "renamed:3"])
def test_a_job_killed_at_any_point_ends_as_if_uninterrupted(there, s3, lab, whole, point):
    line, out = there
    killed = lab.without_ray(line, crash=point)
    assert killed.returncode == SIGKILLED, killed.stderr
    assert s3.tree(out) != files(whole)
    done = lab.without_ray(line)
    assert done.returncode == 0, done.stderr
    assert s3.tree(out) == files(whole)


def test_a_folder_to_s3_and_back_give_the_same_tree(s3, small, lab, whole, tmp_path):
    bucket = s3.url("across")
    assert lab.without_ray(small.args(f"{bucket}/out", "--events", "none")).returncode == 0
    assert s3.tree(f"{bucket}/out") == files(whole)
    line = small.args(tmp_path / "out")
    line[line.index("--data-dir") + 1] = s3.put_tree(small.root, f"{bucket}/data")
    assert lab.without_ray(line).returncode == 0
    assert lab.tree(tmp_path / "out") == whole


def test_another_job_there_is_refused(there, s3, lab, capsys):
    line, out = there
    s3.put(f"{out}/holiday.jpg", b"x")
    assert cli.main(line) == 2
    assert "holiday.jpg" in capsys.readouterr().err
    assert set(s3.tree(out)) == {"holiday.jpg"}
    s3.remove(f"{out}/holiday.jpg")
    assert lab.without_ray(line).returncode == 0
    assert cli.main([*line, "--seed", "3"]) == 2
    assert "seed is 0 there and 3 here" in capsys.readouterr().err


@pytest.fixture
def hasty(monkeypatch):
    """Leases whose holders are given up soon."""
    monkeypatch.setattr(lease, "BEAT", 0.2)
    monkeypatch.setattr(lease, "DEAD", 1.5)
    monkeypatch.setattr(lease, "PATIENCE", 0.1)


def elsewhere(monkeypatch, host: str) -> None:
    """Have leases from here on look as if another machine held them."""
    holder = {"host": host, "boot": "b", "pid": 1, "born": "1"}
    monkeypatch.setattr(lease, "_myself", lambda: holder)


def test_two_drivers_of_two_machines(s3, hasty, monkeypatch):
    out = s3.url("drivers") + "/out"
    with monkeypatch.context() as patch:
        elsewhere(patch, "far")
        with Ledger(out).opened({"seed": 0}):
            with pytest.raises(SourceError, match="another run"), Ledger(out).opened({"seed": 0}):
                pass
            assert Ledger(out).running()
    with Ledger(out).opened({"seed": 0}) as resumed:
        assert resumed
    assert set(s3.tree(out)) == {f"{FOLDER}/lock", f"{FOLDER}/plan.json"}


def test_who_was_held_up_publishes_nothing_any_more(s3, hasty, monkeypatch):
    out = s3.url("heldup") + "/out"
    with monkeypatch.context() as patch:
        elsewhere(patch, "far")
        patch.setattr(lease, "BEAT", 1000.0)  # it shows no life
        first = Ledger(out)
        with first.opened({"seed": 0}):
            staged = first.grant("train", 0)
            first.store.note(f"{staged}/shard", b"late")
            with Ledger(out).opened({"seed": 0}):
                first.store.note(f"{staged}/shard", b"late")
                entry = {"result": {"files": {"shard": [4, None]}}, "sha256": {}, "quality": []}
                with pytest.raises(lease.JobError, match="another driver has taken over"):
                    first.publish("train", 0, staged, ".", entry)
    assert "shard" not in s3.tree(out)


def test_one_number_of_a_lease_is_created_by_one_only(s3):
    store = ObjectStorage(s3.url("numbers") + "/out")
    assert store.create("lease.000001", b"a")
    assert not store.create("lease.000001", b"b")
    assert store.read("lease.000001") == b"a"


def test_the_parts_of_an_array_make_one_dataset_there_too(there, s3, lab, whole):
    line, out = there
    for part in (1, 0):
        assert lab.without_ray([*line, "--shard", f"{part}/2"]).returncode == 0
    assert s3.tree(out) == files(whole)


def test_a_bucket_that_is_not_there_is_one_line(s3, small, capsys):
    assert cli.main(small.args("s3://nowhere-to-be-found/out", "--events", "none")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "s3://nowhere-to-be-found/out" in error and "bucket" in error


def test_a_store_that_cannot_be_reached_is_one_line(s3, small, tmp_path):
    env = {**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    line = small.args("s3://somewhere/out", "--events", "none")
    command = [sys.executable, "-m", "wristaugment", *line]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 4, done.stderr
    assert done.stderr.count("\n") == 1 and "s3://somewhere/out" in done.stderr
