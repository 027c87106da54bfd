"""A dataset written from scratch: any feature tree, read back by tensorflow-datasets."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from wristaugment.readers.errors import SourceError
from wristaugment.readers.tfrecord import read_frames
from wristaugment.writers.rlds_create import RldsCreate, encode_example, feature_json

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def features():
    f = tfds.features
    return f.FeaturesDict(
        {
            "steps": f.Dataset(
                {
                    "flag": f.Scalar(dtype=np.bool_),
                    "number": f.Scalar(dtype=np.int64),
                    "observation": {
                        "image": f.Image(shape=(6, 8, 3), dtype=np.uint8, encoding_format="png"),
                        "depth": f.Image(shape=(6, 8, 1), dtype=np.uint16, encoding_format="png"),
                        "state": f.Tensor(shape=(2, 3), dtype=np.float64),
                    },
                    "words": f.Text(),
                }
            ),
            "meta": {"name": f.Text(), "size": f.Tensor(shape=(2,), dtype=np.float32)},
        }
    )


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def make_episode(seed, length=4):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (length, 6, 8, 3), np.uint8)
    depths = rng.integers(0, 65536, (length, 6, 8), np.uint16)
    raw = {
        "flag": np.arange(length) == 0,
        "number": rng.integers(-5, 5, length),
        "state": rng.normal(size=(length, 2, 3)),
    }
    episode = {
        "steps": {
            "flag": raw["flag"],
            "number": raw["number"],
            "observation": {
                "image": [png(image) for image in images],
                "depth": [png(depth) for depth in depths],
                "state": raw["state"],
            },
            "words": [f"wörd {i}" for i in range(length)],
        },
        "meta": {"name": f"episode {seed}", "size": np.array([1.5, seed])},
    }
    return episode, raw | {"image": images, "depth": depths}


@pytest.fixture
def dataset(features, tmp_path):
    """(writer, raw arrays) of five episodes in two shards of a train split, and one of val."""
    writer = RldsCreate(tmp_path, "made_up", "2.1.0", features, description="made up")
    raws, payloads = [], []
    for seed in range(6):
        episode, raw = make_episode(seed, length=3 + seed)
        payloads.append(encode_example(features, episode))
        raws.append(raw)
    assert writer.write_shard(writer.shard_path("train", 0, 2), payloads[:3]) == 3
    writer.write_shard(writer.shard_path("train", 1, 2), payloads[3:5])
    writer.write_shard(writer.shard_path("val", 0, 1), payloads[5:])
    writer.finish({"train": [3, 2], "val": [1]})
    return writer, raws


def test_tensorflow_datasets_gives_back_what_was_written(dataset):
    pytest.importorskip("tensorflow")
    writer, raws = dataset
    builder = tfds.builder_from_directory(str(writer.folder))
    assert builder.info.name == "made_up" and str(builder.info.version) == "2.1.0"
    assert {k: v.num_examples for k, v in builder.info.splits.items()} == {"train": 5, "val": 1}
    config = tfds.ReadConfig(interleave_cycle_length=1)
    got = list(builder.as_dataset("train", read_config=config))
    got += list(builder.as_dataset("val"))
    for seed, (episode, raw) in enumerate(zip(got, raws, strict=True)):
        assert episode["meta"]["name"].numpy().decode() == f"episode {seed}"
        assert episode["meta"]["size"].numpy().tolist() == [1.5, seed]
        steps = list(episode["steps"].as_numpy_iterator())
        assert len(steps) == 3 + seed
        for i, step in enumerate(steps):
            assert step["flag"] == raw["flag"][i] and step["number"] == raw["number"][i]
            assert step["words"].decode() == f"wörd {i}"
            assert np.array_equal(step["observation"]["image"], raw["image"][i])
            assert np.array_equal(step["observation"]["depth"][..., 0], raw["depth"][i])
            assert np.allclose(step["observation"]["state"], raw["state"][i].astype(np.float32))


def test_metadata_matches_the_files(dataset):
    writer, _ = dataset
    info = json.loads((writer.folder / "dataset_info.json").read_text())
    for split in info["splits"]:
        count = len(split["shardLengths"])
        frames = [
            list(read_frames(writer.shard_path(split["name"], i, count))) for i in range(count)
        ]
        assert [len(f) for f in frames] == [int(n) for n in split["shardLengths"]]
        assert all(frame.error is None for shard in frames for frame in shard)
        assert sum(len(f.payload) for s in frames for f in s) == int(split["numBytes"])
    assert not list(writer.folder.glob("*staged*"))


def test_payload_is_an_example_with_flat_sorted_keys_and_fixed_bytes(features):
    from tensorflow_datasets.proto import tf_example_pb2

    episode, _ = make_episode(1)
    payload = encode_example(features, episode)
    backwards = {key: episode[key] for key in reversed(episode)}
    assert encode_example(features, backwards) == payload
    example = tf_example_pb2.Example.FromString(payload).features.feature
    assert set(example) == {
        "meta/name", "meta/size", "steps/flag", "steps/number", "steps/observation/depth",
        "steps/observation/image", "steps/observation/state", "steps/words",
    }  # fmt: skip
    assert list(example["steps/flag"].int64_list.value) == [1, 0, 0, 0]
    assert len(example["steps/observation/state"].float_list.value) == 4 * 6


def test_feature_json_reads_back_as_the_same_tree(features):
    again = tfds.features.FeaturesDict.from_json(feature_json(features))
    assert repr(again) == repr(features)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda e: e["steps"].pop("words"), "steps/words.*no such value"),
        (lambda e: e["steps"].update(more=1), "steps/more.*not in the feature tree"),
        (lambda e: e["steps"].update(flag=np.ones(3, bool)), "steps/flag.*3 steps.*have 4"),
        (lambda e: e["meta"].update(size=np.ones(3)), "meta/size.*shape"),
        (lambda e: e["meta"].update(name=b"x"), "meta/name.*not str"),
        (lambda e: e["steps"].update(words="one"), "steps/words.*not a list of str"),
        (lambda e: e["steps"].update(number=np.int64(3)), "steps/number.*shape"),
    ],
)
def test_what_does_not_fit_the_tree_is_refused(features, change, match):
    episode, _ = make_episode(0)
    change(episode)
    with pytest.raises(SourceError, match=match):
        encode_example(features, episode)


def test_an_interrupted_shard_leaves_no_file(features, tmp_path):
    writer = RldsCreate(tmp_path, "made_up", "1.0.0", features, description="")
    path = writer.shard_path("train", 0, 1)

    def broken():
        yield encode_example(features, make_episode(0)[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write_shard(path, broken())
    assert not path.exists()
    with pytest.raises(SourceError, match="missing"):
        writer.finish({"train": [1]})
    assert not (writer.folder / "dataset_info.json").exists()
