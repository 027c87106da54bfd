"""The fingerprint of a source: what is hashed whole, and how much of it a plan names."""

import hashlib
import shutil

import pytest
from wristaugment.jobs import plan
from wristaugment.readers import open_dataset


@pytest.fixture
def source(small, tmp_path):
    """A private dataset with three files beside its own, of 3, 40,000 and 50,000 bytes."""
    folder = shutil.copytree(small.folder, tmp_path / "droid" / "1.0.0")
    (folder / "extra").mkdir()
    for name, size in (("a", 3), ("b", 40_000), ("c", 50_000)):
        (folder / "extra" / name).write_bytes(name.encode() * size)
    return folder


def fingerprint(folder):
    dataset = open_dataset(folder, "droid")
    shards = [shard for split in dataset.splits for shard in split.shards]
    return plan.source_fingerprint(dataset, shards)


def test_files_and_shards_are_named(source):
    found = fingerprint(source)
    assert set(found["files"]) == {
        "dataset_info.json", "features.json", "extra/a", "extra/b", "extra/c",
    }  # fmt: skip
    shards = sorted(path for path in source.glob("*tfrecord*"))
    assert {name: row[0] for name, row in found["shards"].items()} == {
        path.name: path.stat().st_size for path in shards
    }
    assert found["files"]["extra/c"] == hashlib.sha256(b"c" * 50_000).hexdigest()
    assert found == fingerprint(source)


def test_large_files_are_known_by_their_ends_when_many_were_hashed_whole(source, monkeypatch):
    before = fingerprint(source)["files"]
    small = sum(path.stat().st_size for path in source.glob("*.json"))
    monkeypatch.setattr(plan, "_WHOLE", small + 3 + 40_000)
    after = fingerprint(source)["files"]
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"extra/c"}
    assert after["extra/c"] == plan.edge_sha256(source / "extra" / "c")


def test_very_many_files_are_named_by_their_folders(source, monkeypatch):
    monkeypatch.setattr(plan, "_FILES", 4)
    before = fingerprint(source)["files"]
    assert set(before) == {"/", "extra/"}
    (source / "extra" / "b").rename(source / "extra" / "d")
    after = fingerprint(source)["files"]
    assert after["/"] == before["/"] and after["extra/"] != before["extra/"]
    (source / "extra" / "d").rename(source / "extra" / "b")
    assert fingerprint(source)["files"] == before
