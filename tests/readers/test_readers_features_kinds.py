"""Every kind of feature that tensorflow-datasets writes, opened from features.json alone."""

import json
import shutil

import numpy as np
import pytest
from wristaugment.readers import open_dataset
from wristaugment.readers.errors import SourceError
from wristaugment.readers.example import ExampleIndex
from wristaugment.readers.features import Features
from wristaugment.readers.profiles import Numbers
from wristaugment.readers.tfrecord import frame, read_frames
from wristaugment.writers.splice import addition

T = 3
PROTOS = {
    "image": "ImageFeature",
    "tensor": "TensorFeature",
    "text": "TextFeature",
    "classLabel": "ClassLabel",
    "video": "VideoFeature",
    "audio": "AudioFeature",
    "boundingBox": "BoundingBoxFeature",
}


def tree(tfds):
    f = tfds.features
    image = lambda **spec: f.Image(shape=(8, 8, 3), **spec)
    return f.FeaturesDict(
        {
            "steps": f.Dataset(
                {
                    "image": image(),  # directly under steps, no encoding declared: stored as PNG
                    "front": {"rgb": image(encoding_format="jpeg")},
                    "state": {
                        "packed": f.Tensor(shape=(7,), dtype=np.float32, encoding="zlib"),
                        "double": f.Tensor(shape=(2, 3), dtype=np.float64, encoding="bytes"),
                        "free": f.Tensor(shape=(None, None), dtype=np.float32, encoding="zlib"),
                        "plain": f.Tensor(shape=(2, 2), dtype=np.float32),
                        "grid": f.Tensor(shape=(2, 2, 3), dtype=np.uint8),
                    },
                    "label": f.ClassLabel(num_classes=3),
                    "box": f.BBoxFeature(),
                    "clip": f.Video(shape=(None, 8, 8, 3)),
                    "counts": f.Sequence(np.int64),
                    "inner": f.Dataset({"x": np.int64}),
                    "notes": f.Sequence({"at": np.float32, "text": f.Text()}),
                    "sound": f.Audio(shape=(3,)),
                    "any/size": f.Image(),
                    "far": f.Image(shape=(8, 8, 1), dtype=np.float32),
                    "codes": f.Tensor(shape=(6,), dtype=np.int32),
                }
            ),
            "other": f.Dataset({"q": np.int64}),
            "rate": f.Scalar(dtype=np.float32),
        }
    )


def episode(tfds, seed: int):
    rng = np.random.default_rng(seed)
    picture = lambda: rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    steps = [
        {
            "image": picture(),
            "front": {"rgb": picture()},
            "state": {
                "packed": rng.normal(size=7).astype(np.float32),
                "double": rng.normal(size=(2, 3)),
                "free": np.ones((step + 1, 2), np.float32),
                "plain": rng.normal(size=(2, 2)).astype(np.float32),
                "grid": np.ones((2, 2, 3), np.uint8),
            },
            "label": step % 3,
            "box": tfds.features.BBox(0.0, 0.0, 0.5, 0.5),
            "clip": [picture(), picture()],
            "counts": list(range(step)),
            "inner": [{"x": 1}] * (step + 1),
            "notes": [{"at": 0.5, "text": "x"}] * step,
            "sound": np.arange(3),
            "any/size": picture(),
            "far": np.full((8, 8, 1), 2.5, np.float32),
            "codes": np.array([*map(ord, "lift"), 0, 0], np.int32),
        }
        for step in range(T)
    ]
    return {"steps": steps, "other": [{"q": 1}], "rate": 5.0}


@pytest.fixture(scope="session")
def kinds_source(tmp_path_factory, rlds_maker):
    """A dataset with every kind of feature, without is_first and without an observation."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    root = tmp_path_factory.mktemp("kinds")
    rows = [episode(tfds, seed) for seed in range(2)]
    return rlds_maker[0](root, "kinds", "1.0.0", tree(tfds), {"train": rows}, per_shard=4)


def to_legacy(node: dict) -> dict:
    """The `type` / `content` spelling, its leaves as proto objects."""
    out = {"type": node["pythonClassName"]}
    if "featuresDict" in node:
        children = node["featuresDict"]["features"]
        out["content"] = {key: to_legacy(child) for key, child in children.items()}
    elif "sequence" in node:
        length = int(node["sequence"].get("length", -1))
        inner = to_legacy(node["sequence"]["feature"])
        out["content"] = {"feature": inner, "length": None if length == -1 else length}
    else:
        field = next(key for key in node if key in PROTOS)
        out |= {"content": node[field], "proto_cls": f"tensorflow_datasets.{PROTOS[field]}"}
    return out


@pytest.fixture(params=["modern", "legacy"])
def kinds(request, kinds_source, tmp_path):
    folder = tmp_path / "source" / "kinds" / "1.0.0"
    shutil.copytree(kinds_source, folder)
    if request.param == "legacy":
        path = folder / "features.json"
        path.write_text(json.dumps(to_legacy(json.loads(path.read_text())), indent=4))
    return folder


def opened(folder):
    dataset = open_dataset(folder, "kinds", anchor_keys=["image", "front/rgb", "any/size"])
    raws = [raw for shard in dataset.splits[0].shards for raw in dataset.records(shard)]
    return dataset, raws


def test_leaves_stand_for_what_the_records_hold(kinds):
    features = Features(kinds / "features.json")
    stored = set(ExampleIndex(next(read_frames(next(kinds.glob("*.tfrecord*")))).payload))
    strip = lambda key: key.split("/ragged_")[0].removesuffix("/value").removesuffix("/shape")
    assert set(features.leaves) == {strip(key) for key in stored}
    assert [leaf.key for leaf in features.pictures()] == ["any/size", "front/rgb", "image"]
    assert features.find("image").encoding == "" and features.find("front/rgb").encoding == "jpeg"
    assert features.find("state/packed").packing == ("float32", 7, True)
    assert features.find("state/double").packing == ("float64", 6, False)
    assert features.find("state/plain").packing is None
    assert features.find("state/free").shape_is_stored
    single = {leaf.key for leaf in features.leaves.values() if leaf.is_single}
    assert single == {
        "image", "front/rgb", "any/size", "far", "label", "state/packed", "state/double"
    }  # fmt: skip
    assert features.home == ""


def test_episodes_without_is_first_are_as_tfds_decodes_them(kinds, decode):
    dataset, raws = opened(kinds)
    rows = decode(kinds)["train"]
    assert len(raws) == len(rows) == 2
    for raw, row in zip(raws, rows, strict=True):
        assert dataset.steps(raw) == T
        got = dataset.episode(raw).anchors
        assert [view.key for view in got] == ["image", "front/rgb", "any/size"]
        pick = lambda *path, row=row: np.stack([_at(step, path) for step in row["steps"]])
        np.testing.assert_array_equal(got[0].frames, pick("image"))  # PNG: the same everywhere
        np.testing.assert_array_equal(got[2].frames, pick("any/size"))
        assert np.abs(got[1].frames.astype(int) - pick("front", "rgb")).mean() < 3
        index = dataset.index(raw)
        for name in ("packed", "double"):
            leaf = dataset.features.find(f"state/{name}")
            numbers = index.numbers(leaf.flat, leaf.packing)
            want = pick("state", name)
            assert numbers.dtype == want.dtype
            np.testing.assert_array_equal(numbers, want.ravel())
        assert list(index.texts("steps/codes")) == ["lift"]


def _at(step, path):
    for name in path:
        step = step[name]
    return step


def test_packed_numbers_give_poses_and_grippers(kinds, monkeypatch):
    from dataclasses import replace

    dataset, raws = opened(kinds)
    leaf = dataset.features.find("state/packed")
    want = dataset.index(raws[0]).numbers(leaf.flat, leaf.packing).reshape(T, 7)
    profile = replace(
        dataset.profile,
        eef=Numbers("state/packed", 0, 6),
        gripper=Numbers("state/packed", 6, inverted=True),
    )
    object.__setattr__(dataset, "profile", profile)
    got = dataset.episode(raws[0])
    np.testing.assert_allclose(got.eef_pose[:, :3, 3], want[:, :3], atol=1e-6)
    np.testing.assert_allclose(got.gripper, 1 - np.clip(want[:, 6], 0, 1))


def write_record(folder, index_key: str, blobs: list[bytes]) -> None:
    """One record whose packed tensor holds `blobs`; the last of two equal keys counts."""
    path = next(folder.glob("*.tfrecord*"))
    payload = next(read_frames(path)).payload + addition({index_key: blobs}, {})
    path.write_bytes(frame(payload))


@pytest.mark.parametrize(
    ("blobs", "found"),
    [
        ("short", r"step 1 holds 8 bytes, not 28"),
        ("broken", r"step 1 is no zlib data"),
        ("cut", r"step 1 is no zlib data \(it breaks off\)"),
        ("bomb", r"step 1 unpacks to more than the 28 bytes"),
    ],
)
def test_damaged_packed_numbers_are_named(kinds, blobs, found):
    import zlib
    from dataclasses import replace

    good = zlib.compress(np.zeros(7, np.float32).tobytes())
    bad = {
        "short": zlib.compress(b"12345678"),
        "broken": b"no zlib",
        "cut": zlib.compress(np.random.default_rng(0).bytes(28))[:-6],
        "bomb": zlib.compress(bytes(1 << 30)),
    }[blobs]
    write_record(kinds, "steps/state/packed", [good, bad, good])
    dataset, raws = opened(kinds)
    profile = replace(dataset.profile, eef=Numbers("state/packed", 0, 6))
    object.__setattr__(dataset, "profile", profile)
    with pytest.raises(SourceError, match=rf"record 0, key 'steps/state/packed': {found}"):
        dataset.episode(raws[0])


def test_no_declared_size_is_allocated(kinds):
    """A tensor that declares terabytes is refused before a byte is unpacked."""
    from dataclasses import replace

    path = kinds / "features.json"
    path.write_text(path.read_text().replace('"7"', '"700000000000"'))
    dataset, raws = opened(kinds)
    profile = replace(dataset.profile, eef=Numbers("state/packed", 0, 6))
    object.__setattr__(dataset, "profile", profile)
    with pytest.raises(SourceError, match="2800000000000 declared bytes are too many"):
        dataset.episode(raws[0])
