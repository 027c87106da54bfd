"""features.json: both spellings, names with slashes, ragged features, and adding a camera."""

import json
import shutil

import numpy as np
import pytest
from wristaugment.readers.errors import SourceError
from wristaugment.readers.example import ExampleIndex
from wristaugment.readers.features import Features
from wristaugment.readers.tfrecord import read_frames

ADDITIONS = {
    "wrist_rgb": {
        "kind": "Image",
        "shape": (16, 20, 3),
        "dtype": "uint8",
        "description": "synthetic",
    },
    "wrist_valid": {"kind": "Scalar", "shape": (), "dtype": "bool", "description": "valid"},
}


@pytest.fixture(scope="session")
def odd_source(tmp_path_factory, rlds_maker):
    """A dataset whose names hold slashes, with ragged and fixed sequences inside the steps."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    build, _, _ = rlds_maker
    image = tfds.features.Image(shape=(8, 8, 3), encoding_format="png")
    features = tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset(
                {
                    "is_first": np.bool_,
                    "observation": {
                        "cam/front": image,
                        "points": tfds.features.Sequence(
                            tfds.features.Tensor(shape=(2,), dtype=np.float32)
                        ),
                        "pair": tfds.features.Sequence(image, length=2),
                    },
                    "task/text": tfds.features.Text(),
                }
            ),
            "info/id": np.int64,
        }
    )
    rng = np.random.default_rng(0)
    picture = lambda: rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    episodes = [
        {
            "steps": [
                {
                    "is_first": step == 0,
                    "observation": {
                        "cam/front": picture(),
                        "points": rng.normal(size=(step, 2)).astype(np.float32),
                        "pair": [picture(), picture()],
                    },
                    "task/text": "go",
                }
                for step in range(3)
            ],
            "info/id": i,
        }
        for i in range(2)
    ]
    root = tmp_path_factory.mktemp("odd")
    return build(root, "odd_set", "2.0.0", features, {"train": episodes}, per_shard=4)


def to_legacy(node: dict, as_text: bool) -> dict:
    """The old `type` / `content` spelling of a modern feature node."""
    out = {"type": node["pythonClassName"]}
    if "featuresDict" in node:
        children = node["featuresDict"]["features"]
        out["content"] = {key: to_legacy(child, as_text) for key, child in children.items()}
    elif "sequence" in node:
        length = int(node["sequence"].get("length", -1))
        out["content"] = {
            "feature": to_legacy(node["sequence"]["feature"], as_text),
            "length": None if length == -1 else length,
        }
    else:
        kinds = {"image": "ImageFeature", "tensor": "TensorFeature", "text": "TextFeature"}
        field = next(key for key in node if key in kinds)
        out["content"] = json.dumps(node[field]) if as_text else node[field]
        out["proto_cls"] = f"tensorflow_datasets.{kinds[field]}"
    return out


@pytest.fixture(params=["modern", "legacy", "legacy-text", "legacy-root-proto", "legacy-root-text"])
def spelled(request, odd_source, tmp_path):
    """A copy of the odd dataset with features.json in one of the spellings."""
    folder = tmp_path / "odd_set" / "2.0.0"
    shutil.copytree(odd_source, folder)
    path = folder / "features.json"
    tree = json.loads(path.read_text())
    if request.param.startswith("legacy-root"):
        content = tree["featuresDict"]
        tree = {
            "type": tree["pythonClassName"],
            "content": json.dumps(content, indent=2) if "text" in request.param else content,
            "proto_cls": "tensorflow_datasets.FeaturesDict",
        }
    elif request.param != "modern":
        tree = to_legacy(tree, as_text=request.param == "legacy-text")
    path.write_text(json.dumps(tree, indent=4))
    return folder


def test_keys_are_those_of_the_records(spelled):
    features = Features(spelled / "features.json")
    frame = next(read_frames(next(spelled.glob("*.tfrecord*"))))
    stored = set(ExampleIndex(frame.payload).keys())
    # A nested sequence is stored under its key and a suffix.
    assert "steps/observation/points/ragged_flat_values" in stored
    assert set(features.leaves) == {key.split("/ragged_")[0] for key in stored}
    assert [leaf.key for leaf in features.pictures()] == ["observation/cam/front"]
    front = features.find("cam/front")
    assert front.path == ("steps", "observation", "cam/front")
    assert (front.shape, front.encoding, front.nested) == ((8, 8, 3), "png", 0)
    assert features.find("pair").nested == 1 and not features.find("pair").is_picture
    assert features.length_key() == "steps/is_first"


def test_tfds_reads_a_patched_tree_of_either_spelling(spelled):
    tfds = pytest.importorskip("tensorflow_datasets")
    before = tfds.features.FeatureConnector.from_config(str(spelled))
    features = Features(spelled / "features.json")
    (spelled / "features.json").write_text(features.patched(ADDITIONS))
    after = tfds.features.FeatureConnector.from_config(str(spelled))
    observation = after["steps"].feature["observation"]
    assert observation["wrist_rgb"].shape == (16, 20, 3)
    assert observation["wrist_rgb"].np_dtype == np.uint8
    assert (
        observation["wrist_valid"].np_dtype == np.bool_ and observation["wrist_valid"].shape == ()
    )
    assert set(observation) - {"wrist_rgb", "wrist_valid"} == set(
        before["steps"].feature["observation"]
    )


def test_a_patch_adds_lines_and_changes_none(odd_source):
    features = Features(odd_source / "features.json")
    old, new = features.text.splitlines(), features.patched(ADDITIONS).splitlines()
    kept = iter(line.rstrip(",") for line in new)
    assert all(line.rstrip(",") in kept for line in old)  # every old line, in its order
    tree = json.loads(features.patched(ADDITIONS))
    assert Features.without(features, ()) == features.tree
    observation = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"][
        "features"
    ]["observation"]["featuresDict"]["features"]
    assert observation["wrist_rgb"]["description"] == "synthetic"


@pytest.mark.parametrize("indent", [None, 1, 2, 4])
def test_a_patch_keeps_the_files_own_style(odd_source, tmp_path, indent):
    path = tmp_path / "features.json"
    tree = json.loads((odd_source / "features.json").read_text())
    tree["description"] = "Öl"
    path.write_text(json.dumps(tree, indent=indent, ensure_ascii=False) + "\n")
    text = Features(path).patched(ADDITIONS)
    assert text == json.dumps(json.loads(text), indent=indent, ensure_ascii=False) + "\n"


def test_an_existing_name_is_refused_unless_replaced(odd_source):
    features = Features(odd_source / "features.json")
    again = {"cam/front": ADDITIONS["wrist_rgb"]}
    with pytest.raises(SourceError, match=r"observation/cam/front.*already has.*--replace"):
        features.patched(again)
    names = list(Features(odd_source / "features.json").leaves)
    text = features.patched(again, replace=True)
    assert "synthetic" in text
    (odd_source.parent / "other.json").write_text(text)
    assert list(Features(odd_source.parent / "other.json").leaves) == names


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a feature tree"),
        ('{"type": "x.FeaturesDict", "content": {}}', "has no `steps`"),
        ('{"pythonClassName": "x.FeaturesDict", "featuresDict": {}}', "is not a feature tree"),
    ],
)
def test_damage_is_named(tmp_path, text, found):
    (tmp_path / "features.json").write_text(text)
    with pytest.raises(SourceError, match=found):
        Features(tmp_path / "features.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"features\.json: cannot be read"):
        Features(tmp_path / "features.json")
