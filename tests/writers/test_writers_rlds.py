"""The augmented copy: every old byte in place, the new stream readable by tensorflow-datasets."""

import dataclasses
import hashlib
import json
import os
import shutil
import stat
import tracemalloc

import numpy as np
import pytest
from copying import write_copy
from wristaugment.readers import open_dataset
from wristaugment.readers.episode import WristStream
from wristaugment.readers.errors import SourceError
from wristaugment.readers.example import ExampleIndex
from wristaugment.readers.tfrecord import frame, read_frames
from wristaugment.writers.copy import ShardResult
from wristaugment.writers.rlds import RldsCopy

SIZE = (16, 20)
COLOUR = (200, 30, 60)


def stream(steps, size=SIZE, valid=True):
    frames = np.full((steps, *size, 3), COLOUR, np.uint8)
    told = np.linspace(0.25, 0.75, steps, dtype=np.float32)
    return WristStream(frames, np.full(steps, valid), np.ones(steps, np.float32), confidence=told)


def constant(dataset):
    return lambda raw: stream(dataset.steps(raw))


def copy_dataset(source, out, make=None, **options):
    """Open, copy and finish; returns (the copy, its results)."""
    dataset = open_dataset(source, "droid")
    options = {"size": SIZE, "description": "synthetic, for tests"} | options
    copy = RldsCopy(dataset, out, **options)
    return copy, write_copy(copy, make or constant(dataset))


def tree_hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def payloads(path):
    return [place.payload for place in read_frames(path)]


def take_wrist(rows):
    """The new stream of decoded episodes, removed from them."""
    out = []
    for row in rows:
        frames = [step["observation"].pop("wrist_rgb") for step in row["steps"]]
        valid = [step["observation"].pop("wrist_valid") for step in row["steps"]]
        told = [step["observation"].pop("wrist_confidence") for step in row["steps"]]
        assert all(value.dtype == np.float32 for value in told)
        expected = np.linspace(0.25, 0.75, len(told), dtype=np.float32)
        assert np.isnan(told).all() or np.array_equal(told, expected)
        out.append((np.stack(frames), np.stack(valid)))
    return out


def test_tfds_reads_the_copy_and_everything_else_is_equal(
    droid_source, tmp_path, decode, equal_trees
):
    before = tree_hashes(droid_source)
    copy, results = copy_dataset(droid_source, tmp_path / "out")
    assert copy.folder == tmp_path / "out" / "droid_101" / "1.0.1"
    old, new = decode(droid_source), decode(copy.folder)
    for split in old:
        for frames, valid in take_wrist(new[split]):
            assert frames.shape[1:] == (*SIZE, 3) and frames.dtype == np.uint8
            assert np.abs(frames.astype(int) - COLOUR).max() <= 4
            assert valid.dtype == bool and valid.all()
    equal_trees(new, old)
    assert tree_hashes(droid_source) == before
    assert (copy.folder / "notes" / "readme.txt").read_text() == "kept as it is\n"
    assert all(result.bad == [] for result in results)


def test_tfds_load_finds_the_copy_by_name(droid_source, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    copy_dataset(droid_source, tmp_path / "out")
    rows = tfds.load("droid_101", data_dir=str(tmp_path / "out"), split="train")
    assert len(list(rows)) == 5


def test_each_record_is_an_exact_prefix(droid_source, tmp_path):
    copy, results = copy_dataset(droid_source, tmp_path / "out")
    for shard, result in zip(copy.shards, results, strict=True):
        path = copy.shard_path(shard)
        assert path.name == shard.path.name
        old, new = payloads(shard.path), payloads(path)
        assert len(old) == len(new) == result.records
        assert all(b.startswith(a) and len(b) > len(a) for a, b in zip(old, new, strict=True))
        assert result.facts["num_bytes"] == sum(map(len, new))
        assert result.bytes == path.stat().st_size
        # The digest is of what is added: all that is not the source's own bytes.
        added, at, data = b"", 0, path.read_bytes()
        for a, b in zip(old, new, strict=True):
            at += 12
            added += data[at - 12 : at] + data[at + len(a) : at + len(b) + 4]
            at += len(b) + 4
        assert result.facts["added_sha256"] == hashlib.sha256(added).hexdigest()


def test_dataset_info_changes_in_sizes_alone(droid_source, tmp_path):
    copy, _ = copy_dataset(droid_source, tmp_path / "out")
    old = (droid_source / "dataset_info.json").read_text().splitlines()
    new = (copy.folder / "dataset_info.json").read_text().splitlines()
    changed = [b for a, b in zip(old, new, strict=True) if a != b]
    assert len(changed) == 2 and all("numBytes" in line for line in changed)
    for row in json.loads("\n".join(new))["splits"]:
        paths = [p for p in copy.folder.glob(f"*{row['name']}.tfrecord*")]
        episodes = sum(map(int, row["shardLengths"]))
        assert int(row["numBytes"]) == sum(p.stat().st_size for p in paths) - 16 * episodes


def test_the_same_source_gives_the_same_bytes_and_finish_can_be_repeated(droid_source, tmp_path):
    first, results = copy_dataset(droid_source, tmp_path / "a")
    copy_dataset(droid_source, tmp_path / "b")
    hashes = tree_hashes(tmp_path / "a")
    assert tree_hashes(tmp_path / "b") == hashes
    # A kill in the middle of `finish` leaves a staged file; the second call clears it.
    (first.folder / ".features.json.staged").write_text("half of i")
    (first.folder / "dataset_info.json").unlink()
    restored = [ShardResult(**json.loads(json.dumps(dataclasses.asdict(r)))) for r in results]
    first.finish(restored)
    assert tree_hashes(tmp_path / "a") == hashes


def test_finish_refuses_results_that_are_not_all(droid_source, tmp_path):
    copy, results = copy_dataset(droid_source, tmp_path / "out")
    with pytest.raises(ValueError, match="made of"):
        copy.finish(results[:-1])
    with pytest.raises(ValueError, match="made of"):
        copy.finish([*results, results[0]])


@pytest.mark.parametrize(
    ("limit", "names", "lengths"),
    [
        (1, ["droid_101-train.tfrecord-00000-of-00001"], {"train": [4]}),
        (
            4,
            [f"droid_101-train.tfrecord-0000{i}-of-00002" for i in range(2)],
            {"train": [4, 6, 3, 5]},
        ),
        (
            6,
            [
                "droid_101-train.tfrecord-00000-of-00002",
                "droid_101-train.tfrecord-00001-of-00002",
                "droid_101-val.tfrecord-00000-of-00001",
            ],
            {"train": [4, 6, 3, 5, 4], "val": [3]},
        ),
    ],
)
def test_limit_takes_the_first_records(droid_source, tmp_path, decode, limit, names, lengths):
    copy, _ = copy_dataset(droid_source, tmp_path / "out", limit=limit)
    assert sorted(path.name for path in copy.folder.glob("*.tfrecord*")) == names
    rows = decode(copy.folder)
    assert {split: [len(row["steps"]) for row in rows[split]] for split in rows} == lengths


def test_splits_choose_what_is_copied(droid_source, tmp_path, decode, equal_trees):
    copy, _ = copy_dataset(droid_source, tmp_path / "out", splits=["val"])
    rows = decode(copy.folder)
    assert list(rows) == ["val"]
    take_wrist(rows["val"])
    equal_trees(rows["val"], decode(droid_source)["val"])
    assert not list(copy.folder.glob("*train*"))
    with pytest.raises(SourceError, match=r"'test'.*there are train, val"):
        copy_dataset(droid_source, tmp_path / "other", splits=["test"])
    with pytest.raises(SourceError, match="at least one"):
        copy_dataset(droid_source, tmp_path / "other", limit=0)


def test_a_taken_name_is_refused_and_nothing_is_written(droid_source, tmp_path):
    with pytest.raises(SourceError, match=r"observation/wrist_image_left.*--replace"):
        copy_dataset(droid_source, tmp_path / "out", wrist_key="wrist_image_left")
    assert not (tmp_path / "out").exists()
    for name in ("wrist_valid", "", "observation/"):
        with pytest.raises(SourceError, match="cannot be the name"):
            copy_dataset(droid_source, tmp_path / "out", wrist_key=name)


def test_long_spellings_of_the_key_mean_the_same(droid_source, tmp_path):
    dataset = open_dataset(droid_source, "droid")
    for name in ("hand", "observation/hand", "steps/observation/hand"):
        copy = RldsCopy(dataset, tmp_path, wrist_key=name, size=SIZE, description="")
        assert copy.wrist_key == "hand"


def test_replace_takes_the_old_stream_out_and_leaves_the_rest(
    droid_source, tmp_path, decode, equal_trees
):
    key = "steps/observation/wrist_image_left"
    copy, _ = copy_dataset(
        droid_source, tmp_path / "out", wrist_key="wrist_image_left", replace=True
    )
    old, new = decode(droid_source), decode(copy.folder)
    for split in old:
        for before, after in zip(old[split], new[split], strict=True):
            for a, b in zip(before["steps"], after["steps"], strict=True):
                assert np.abs(b["observation"].pop("wrist_image_left") - COLOUR).max() <= 4
                assert b["observation"].pop("wrist_valid")
                b["observation"].pop("wrist_confidence")
                a["observation"].pop("wrist_image_left")
    equal_trees(new, old)
    for shard in copy.shards:
        for a, b in zip(payloads(shard.path), payloads(copy.shard_path(shard)), strict=True):
            before, after = ExampleIndex(a), ExampleIndex(b)
            kept = [name for name in before if name != key]
            assert list(after)[: len(kept)] == kept  # in their order
            assert all(before.value(name) == after.value(name) for name in kept)
            entries = [entry.key for group in after.groups for entry in group[3]]
            assert entries.count(key) == 1


def test_a_copy_of_a_copy_with_replace_is_the_same_as_the_copy(droid_source, tmp_path):
    first, _ = copy_dataset(droid_source, tmp_path / "a")
    second, _ = copy_dataset(first.folder, tmp_path / "b", replace=True)
    for shard in first.shards:
        assert payloads(first.shard_path(shard)) == payloads(second.shard_path(shard))
    assert tree_hashes(first.folder) == tree_hashes(second.folder)


def test_what_cannot_be_made_is_black_and_says_so(droid_source, tmp_path, decode):
    dataset = open_dataset(droid_source, "droid")

    def make(raw):
        error = SourceError("no usable camera", record=raw.record.index, key="k", todo="t")
        if raw.record.index == 1:
            return error
        if raw.record.index == 2:
            raise error
        return stream(dataset.steps(raw))

    copy, results = copy_dataset(droid_source, tmp_path / "out", make=make)
    got = take_wrist(decode(copy.folder)["train"])
    assert [bool(valid.all()) for _, valid in got] == [True, False, False, True, False]
    assert all(frames.max() <= 3 and not valid.any() for frames, valid in (got[1], got[2]))
    assert [(item["record"], item["what"], item["found"]) for item in results[0].bad] == [
        (1, "placeholder", "no usable camera"),
        (2, "placeholder", "no usable camera"),
    ]


def test_unreadable_records_are_left_out_and_listed(
    droid_folder, droid_source, tmp_path, decode, equal_trees
):
    shard = droid_folder / "droid_101-train.tfrecord-00000-of-00002"
    frames = list(map(frame, payloads(shard)))
    spoilt = bytearray(frames[1])
    spoilt[len(spoilt) // 2] ^= 4
    shard.write_bytes(frames[0] + bytes(spoilt) + frames[2])
    copy, results = copy_dataset(droid_folder, tmp_path / "out")
    new, old = decode(copy.folder), decode(droid_source)
    take_wrist(new["train"])
    equal_trees(new["train"], [old["train"][i] for i in (0, 2, 3, 4)])
    (bad,) = results[0].bad
    assert (bad["record"], bad["count"], bad["what"], bad["file"]) == (1, 1, "left out", shard.name)
    assert "crc" in bad["found"] and str(tmp_path) not in json.dumps(results[0].bad)
    info = json.loads((copy.folder / "dataset_info.json").read_text())
    assert info["splits"][0]["shardLengths"] == ["2", "2"]


def test_a_truncated_shard_keeps_what_can_be_read(droid_folder, tmp_path, decode):
    shard = droid_folder / "droid_101-train.tfrecord-00000-of-00002"
    os.truncate(shard, shard.stat().st_size // 2)
    copy, results = copy_dataset(droid_folder, tmp_path / "out")
    (bad,) = results[0].bad
    assert bad["what"] == "left out" and bad["count"] == 3 - results[0].records > 0
    assert len(decode(copy.folder)["train"]) == results[0].records + 2


def test_a_shard_of_which_nothing_is_left_does_not_stop_tfds(droid_folder, tmp_path, decode):
    (droid_folder / "droid_101-train.tfrecord-00000-of-00002").write_bytes(b"")
    copy, results = copy_dataset(droid_folder, tmp_path / "out")
    assert (results[0].records, results[0].bytes) == (0, 0) and results[0].bad[0]["count"] == 3
    assert [len(row["steps"]) for row in decode(copy.folder)["train"]] == [5, 4]


def test_records_beyond_the_declared_are_listed(droid_folder, tmp_path, decode):
    shard = droid_folder / "droid_101-val.tfrecord-00000-of-00001"
    shard.write_bytes(shard.read_bytes() + frame(b"more"))
    copy, results = copy_dataset(droid_folder, tmp_path / "out")
    assert results[-1].records == 2
    assert [(item["what"], item["count"]) for item in results[-1].bad] == [("left out", 0)]
    assert len(decode(copy.folder)["val"]) == 2


def test_a_generator_of_another_length_or_size_is_a_bug_and_raises(droid_source, tmp_path):
    for wrong in (stream(2), stream(4, size=(16, 16)), stream(4)):
        if wrong.frames.shape == (4, *SIZE, 3):
            wrong.frames = wrong.frames.astype(np.float32)
        with pytest.raises(ValueError, match="train/0/0: a wrist stream"):
            copy_dataset(droid_source, tmp_path / "out", make=lambda raw, wrong=wrong: wrong)


def test_a_copy_into_its_source_is_refused(droid_folder):
    for out in (droid_folder.parents[1], droid_folder):
        with pytest.raises(SourceError, match="would lie in the dataset"):
            copy_dataset(droid_folder, out)


def test_a_read_only_source_is_enough(droid_folder, tmp_path):
    for path in [*droid_folder.rglob("*"), droid_folder]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        copy, _ = copy_dataset(droid_folder, tmp_path / "out")
        assert os.access(copy.folder / "features.json", os.W_OK)
        assert (copy.folder / "features.json").stat().st_mode & stat.S_IWUSR
    finally:
        for path in [droid_folder, *droid_folder.rglob("*")]:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_memory_is_bounded_by_one_record(droid_source, tmp_path):
    """Forty records of 1 MB each must not need 40 MB."""
    folder = tmp_path / "source" / "droid_101" / "1.0.1"
    shutil.copytree(droid_source, folder)
    path = folder / "droid_101-train.tfrecord-00000-of-00002"
    first = payloads(path)[0]
    filler = b"\x12" + b"\x80\x80\x40" + bytes(1 << 20)  # an unknown field of 1 MiB: legal
    path.write_bytes(frame(first + filler) * 40)
    info = folder / "dataset_info.json"
    tree = json.loads(info.read_text())
    tree["splits"][0]["shardLengths"][0] = "40"
    info.write_text(json.dumps(tree))
    copy_dataset(droid_source, tmp_path / "warm")  # imports and caches
    tracemalloc.start()
    _, results = copy_dataset(folder, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert results[0].records == 40 and results[0].bytes > 40 << 20
    assert peak < 8 << 20
