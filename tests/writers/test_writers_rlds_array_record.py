"""The augmented copy of a dataset in array_record shards, read by tensorflow-datasets."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from copying import write_copy
from wristaugment.readers import open_dataset
from wristaugment.readers.array_record_file import read_frames, writer_options
from wristaugment.readers.episode import WristStream
from wristaugment.readers.errors import SourceError
from wristaugment.writers.record_files import ArrayRecordSink, open_sink
from wristaugment.writers.rlds import RldsCopy

pytest.importorskip("array_record.python.array_record_module")
SIZE = (12, 16)


@pytest.fixture(scope="module")
def boxed(tmp_path_factory, rlds_maker):
    """DROID's tree in array_record shards: 3 and 2 episodes."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    build, features, episode = rlds_maker
    rows = {"train": [episode(seed, steps) for seed, steps in enumerate((4, 3, 5, 3, 4))]}
    root = tmp_path_factory.mktemp("boxed")
    folder = build(root, "droid_101", "1.0.1", features(tfds), rows, 3, file_format="array_record")
    assert len(list(folder.glob("*.array_record*"))) == 2
    return folder


def stream(dataset, raw) -> WristStream:
    steps = dataset.steps(raw)
    value = 40 + 30 * raw.record.index
    frames = np.full((steps, *SIZE, 3), value, np.uint8)
    return WristStream(frames, np.ones(steps, bool), np.ones(steps, np.float32))


def copied(source, out, **options):
    dataset = open_dataset(source, "droid")
    copy = RldsCopy(dataset, out, size=SIZE, description="synthetic", **options)
    return copy, write_copy(copy, lambda raw: stream(dataset, raw))


def payloads(folder):
    return [
        frame.payload
        for path in sorted(folder.glob("*.array_record*"))
        for frame in read_frames(path)
    ]


def decoded(folder):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(str(folder)).as_data_source(split="train")
    return [{**source[i], "steps": list(source[i]["steps"])} for i in range(len(source))]


def test_tfds_reads_the_copy_and_every_record_is_kept(boxed, tmp_path, equal_trees):
    copy, results = copied(boxed, tmp_path)
    for new, old in zip(payloads(copy.folder), payloads(boxed), strict=True):
        assert new.startswith(old) and len(new) > len(old)
    got, want = decoded(copy.folder), decoded(boxed)
    place = [0, 1, 2, 0, 1]
    for number, row in enumerate(got):
        for step in row["steps"]:
            frame = step["observation"].pop("wrist_rgb")
            assert frame.shape == (*SIZE, 3)
            assert abs(float(frame.mean()) - 40 - 30 * place[number]) <= 2
            assert bool(step["observation"].pop("wrist_valid"))
            assert np.isnan(step["observation"].pop("wrist_confidence"))
    equal_trees(got, want)
    info = json.loads((copy.folder / "dataset_info.json").read_text())
    assert info["splits"][0]["numBytes"] == str(sum(map(len, payloads(copy.folder))))
    assert [result.records for result in results] == [3, 2]
    options = {writer_options(path) for path in copy.folder.glob("*.array_record*")}
    assert options == {writer_options(path) for path in boxed.glob("*.array_record*")}


def test_the_same_source_gives_the_same_bytes(boxed, tmp_path):
    first, _ = copied(boxed, tmp_path / "a")
    second, _ = copied(boxed, tmp_path / "b")
    for path in sorted(first.folder.iterdir()):
        assert path.read_bytes() == (second.folder / path.name).read_bytes(), path.name


def test_damage_is_named_and_the_rest_is_copied(boxed, tmp_path):
    folder = tmp_path / "source" / "droid_101" / "1.0.1"
    shutil.copytree(boxed, folder)
    first, second = sorted(folder.glob("*.array_record*"))
    data = bytearray(first.read_bytes())
    # Somewhere inside the second record, found by its text.
    data[data.index(b"/data/success/1.h5") if b"/data/success/1.h5" in data else 9000] ^= 1
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:50_000])
    copy, results = copied(folder, tmp_path / "out")
    (bad,) = results[0].bad
    assert bad["what"] == "left out" and bad["count"] == 1 and bad["file"] == first.name
    assert "the record cannot be read (chunk" in bad["found"] and results[0].records == 2
    (bad,) = results[1].bad
    assert bad["count"] == 2 and "so 2 of the 2 declared records cannot be reached" in bad["found"]
    assert len(decoded(copy.folder)) == 2


def test_replacing_takes_the_old_entries_out(boxed, tmp_path):
    once, _ = copied(boxed, tmp_path / "a")
    with pytest.raises(SourceError, match="--replace"):
        copied(once.folder, tmp_path / "b")
    twice, _ = copied(once.folder, tmp_path / "c", replace=True)
    assert payloads(twice.folder) == payloads(once.folder)


def test_a_full_disk_is_an_os_error():
    with (
        pytest.raises(OSError, match="No space left") as caught,
        ArrayRecordSink(Path("/dev/full")) as sink,
    ):
        for _ in range(20):
            sink.add(np.random.default_rng(0).bytes(1 << 20), 0, b"")
    assert caught.value.errno == 28


def test_unusual_options_of_a_source_are_not_taken_over(tmp_path):
    from array_record.python import array_record_module

    odd = tmp_path / "odd"
    writer = array_record_module.ArrayRecordWriter(str(odd), "group_size:60000,window_log:30")
    writer.write(b"x")
    writer.close()
    with open_sink(tmp_path / "new", "array_record", odd) as sink:
        sink.add(b"x", 0, b"y")
    assert writer_options(tmp_path / "new").startswith("group_size:1,")
    assert "window_log:30" not in writer_options(tmp_path / "new")
    assert [frame.payload for frame in read_frames(tmp_path / "new")] == [b"xy"]
