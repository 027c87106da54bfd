"""The splice into trees whose pictures do not lie in an observation, read back by tfds."""

import json

import numpy as np
import pytest
from copying import write_copy
from wristaugment.readers import open_dataset
from wristaugment.readers.episode import WristStream
from wristaugment.readers.errors import SourceError
from wristaugment.readers.features import Features
from wristaugment.writers.rlds import RldsCopy

T = 3


@pytest.fixture(scope="module")
def bare(tmp_path_factory, rlds_maker):
    """Pictures directly under steps, ragged and nested things beside them, no is_first."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    f = tfds.features
    features = f.FeaturesDict(
        {
            "steps": f.Dataset(
                {
                    "image": f.Image(shape=(8, 8, 3)),
                    "clip": f.Video(shape=(None, 8, 8, 3)),
                    "inner": f.Dataset({"x": np.int64}),
                    "state": f.Tensor(shape=(7,), dtype=np.float32, encoding="zlib"),
                }
            )
        }
    )
    rng = np.random.default_rng(0)
    picture = lambda: rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    steps = [
        {
            "image": picture(),
            "clip": [picture()] * (step + 1),
            "inner": [{"x": step}] * step,
            "state": rng.normal(size=7).astype(np.float32),
        }
        for step in range(T)
    ]
    root = tmp_path_factory.mktemp("bare")
    return rlds_maker[0](root, "bare", "1.0.0", features, {"train": [{"steps": steps}]}, 1)


def copied(source, out, **options):
    dataset = open_dataset(source, "bare", anchor_keys=["image"])
    copy = RldsCopy(dataset, out, size=(6, 8), description="synthetic", **options)
    frames = np.stack([np.full((6, 8, 3), 40 + 20 * step, np.uint8) for step in range(T)])
    new = WristStream(frames, np.array([1, 0, 1], bool), np.ones(T, np.float32))
    write_copy(copy, lambda raw: new)
    return copy.folder


def test_the_new_camera_goes_beside_the_others(bare, tmp_path, decode, equal_trees):
    folder = copied(bare, tmp_path)
    old, got = decode(bare)["train"], decode(folder)["train"]
    for number, step in enumerate(got[0]["steps"]):
        frame = step.pop("wrist_rgb")
        assert frame.shape == (6, 8, 3) and abs(int(frame.mean()) - 40 - 20 * number) <= 2
        assert bool(step.pop("wrist_valid")) is (number != 1)
        assert np.isnan(step.pop("wrist_confidence"))
    equal_trees(got, old)
    described = Features(folder / "features.json")
    assert [leaf.key for leaf in described.pictures()] == ["image", "wrist_rgb"]
    assert described.home == ""
    reopened = open_dataset(folder, "bare", anchor_keys=["image"])
    raw = next(iter(reopened.records(reopened.splits[0].shards[0])))
    wrist = reopened.episode(raw, wrist="wrist_rgb").wrist
    assert wrist.frames.shape == (T, 6, 8, 3)


def test_a_name_beside_them_is_refused_unless_replaced(bare, tmp_path, decode):
    with pytest.raises(SourceError, match=r"key 'image'.*--replace"):
        copied(bare, tmp_path / "a", wrist_key="image")
    folder = copied(bare, tmp_path / "b", wrist_key="image", replace=True)
    step = decode(folder)["train"][0]["steps"][0]
    assert step["image"].shape == (6, 8, 3) and set(step) >= {"clip", "inner", "state"}
    info = json.loads((folder / "dataset_info.json").read_text())
    assert info["splits"][0]["shardLengths"] == ["1"]
