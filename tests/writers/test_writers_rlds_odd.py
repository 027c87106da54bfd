"""The splice on unusual trees: slashes in names, ragged features, the legacy features.json."""

import json
import os

import numpy as np
import pytest
from copying import write_copy
from wristaugment.readers import open_dataset
from wristaugment.readers.episode import WristStream
from wristaugment.readers.example import ExampleIndex
from wristaugment.readers.tfrecord import read_frames
from wristaugment.writers.atomic import copy_atomic, write_atomic
from wristaugment.writers.rlds import RldsCopy
from wristaugment.writers.splice import addition, without


@pytest.fixture(scope="module")
def slashed(tmp_path_factory, rlds_maker):
    """Episodes with `cam/front`, ragged points, and a features.json in the legacy spelling."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    build, _, _ = rlds_maker
    tree = {
        "is_first": tfds.features.Scalar(dtype=np.bool_),
        "observation": {
            "cam/front": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
            "points": tfds.features.Sequence(tfds.features.Tensor(shape=(2,), dtype=np.float32)),
        },
    }
    rng = np.random.default_rng(0)
    steps = [
        {
            "is_first": step == 0,
            "observation": {
                "cam/front": rng.integers(0, 255, (8, 8, 3), dtype=np.uint8),
                "points": rng.normal(size=(step, 2)).astype(np.float32),
            },
        }
        for step in range(4)
    ]
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(tree)})
    root = tmp_path_factory.mktemp("slashed")
    folder = build(root, "my_set", "1.2.3", features, {"train": [{"steps": steps}]}, 1)
    prefix = "tensorflow_datasets.core.features."
    leaf = lambda name, **content: {"type": prefix + name, "content": content}
    points = leaf("tensor_feature.Tensor", shape=[2], dtype="float32", encoding="none")
    observation = {
        "cam/front": leaf(
            "image_feature.Image", shape=[8, 8, 3], dtype="uint8", encoding_format="png"
        ),
        "points": leaf("sequence_feature.Sequence", feature=points, length=None),
    }
    steps_tree = {
        "is_first": leaf("tensor_feature.Tensor", shape=[], dtype="bool", encoding="none"),
        "observation": {"type": prefix + "features_dict.FeaturesDict", "content": observation},
    }
    inner = {"type": prefix + "features_dict.FeaturesDict", "content": steps_tree}
    dataset = leaf("dataset_feature.Dataset", feature=inner, length=None)
    legacy = {"type": prefix + "features_dict.FeaturesDict", "content": {"steps": dataset}}
    (folder / "features.json").write_text(json.dumps(legacy, indent=2))
    return folder


def test_a_legacy_dataset_with_slashes_and_ragged_points(slashed, tmp_path, decode, equal_trees):
    dataset = open_dataset(slashed, "my_set", anchor_keys=["cam/front"])
    raw = next(iter(dataset.records(dataset.splits[0].shards[0])))
    frames = dataset.episode(raw).anchors[0].frames
    copy = RldsCopy(dataset, tmp_path, wrist_key="hand/left", size=(6, 8), description="made")
    new = WristStream(
        np.full((4, 6, 8, 3), 77, np.uint8), np.array([1, 1, 0, 1], bool), np.ones(4, np.float32)
    )
    write_copy(copy, lambda raw: new)
    old, got = decode(slashed)["train"], decode(copy.folder)["train"]
    for step, valid in zip(got[0]["steps"], (True, True, False, True), strict=True):
        assert np.abs(step["observation"].pop("hand/left").astype(int) - 77).max() <= 2
        assert step["observation"].pop("wrist_valid") == valid
        assert np.isnan(step["observation"].pop("wrist_confidence"))  # the recipe told none
    equal_trees(got, old)
    np.testing.assert_array_equal(  # PNG: the same from either decoder
        frames, np.stack([step["observation"]["cam/front"] for step in old[0]["steps"]])
    )


def test_taking_entries_out_of_merged_messages(slashed):
    """A spliced record holds two Features messages; a key may be in either."""
    payload = next(read_frames(next(slashed.glob("*.tfrecord*")))).payload
    merged = payload + addition({"a": [b"1", b"2"]}, {"b": [0, 1]})
    index = ExampleIndex(merged)
    assert len(index.groups) == 2 and index.blobs("a") == [b"1", b"2"]
    assert list(index.numbers("b")) == [0, 1]
    less = ExampleIndex(without(index, {"a", "steps/is_first"}))
    assert set(index) - set(less) == {"a", "steps/is_first"}
    assert all(index.value(key) == less.value(key) for key in less)
    assert without(index, {"none"}) == merged
    # TensorFlow agrees on what is left.
    tf = pytest.importorskip("tensorflow")
    parsed = tf.train.Example.FromString(less.payload).features.feature
    assert set(parsed) == set(less) and list(parsed["b"].int64_list.value) == [0, 1]


def test_the_last_of_two_equal_keys_counts():
    index = ExampleIndex(addition({}, {"k": [1]}) + addition({}, {"k": [2, 3]}))
    assert list(index.numbers("k")) == [2, 3] and index.count("k") == 2
    assert "k" not in ExampleIndex(without(index, {"k"}))


def test_an_atomic_write_never_shows_a_part(tmp_path, monkeypatch):
    path = tmp_path / "sub" / "a.json"
    write_atomic(path, b"old")

    def broken(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new and longer")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    copy_atomic(path, tmp_path / "b" / "c")
    assert (tmp_path / "b" / "c").read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.json", "b", "c", "sub"]
