"""Small RLDS datasets made by tensorflow-datasets itself, and reading them back with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from remote import serving

HEIGHT, WIDTH = 24, 32


def smooth_picture(rng: np.random.Generator, height: int = HEIGHT, width: int = WIDTH):
    """[H, W, 3] uint8: a random gradient, kind to JPEG."""
    corners = rng.integers(20, 235, (2, 2, 3)).astype(float)
    y = np.linspace(0, 1, height)[:, None, None]
    x = np.linspace(0, 1, width)[None, :, None]
    top = corners[0, 0] * (1 - x) + corners[0, 1] * x
    bottom = corners[1, 0] * (1 - x) + corners[1, 1] * x
    return (top * (1 - y) + bottom * y).astype(np.uint8)


def build_dataset(
    root: Path,
    name: str,
    version: str,
    features,
    episodes: dict[str, list],
    per_shard: int,
    file_format: str = "tfrecord",
) -> Path:
    """Write a dataset with tensorflow-datasets; returns its version folder.

    Args:
        features: a tfds FeaturesDict.
        episodes: split -> examples as tfds encodes them.
        per_shard: how many episodes a file holds.
        file_format: of the shards: "tfrecord" or "array_record".
    """
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = root / name / version
    folder.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=str(folder), module_name=name
    )
    info = tfds.core.DatasetInfo(builder=identity, description="for tests", features=features)
    writer = tfds.core.SequentialWriter(
        info, max_examples_per_shard=per_shard, file_format=file_format
    )
    writer.initialize_splits(list(episodes))
    for split, rows in episodes.items():
        writer.add_examples({split: rows})
    writer.close_all()
    return folder


def rename_shards(folder: Path) -> Path:
    """Name the files as download_and_prepare does, with the number of shards (DROID's naming)."""
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    for split in info["splits"]:
        old, count = split["filepathTemplate"], len(split["shardLengths"])
        split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        for index in range(count):
            values = {"DATASET": info["name"], "SPLIT": split["name"], "FILEFORMAT": "tfrecord"}
            source = folder / old.format(**values, SHARD_INDEX=f"{index:05d}")
            stem = f"{info['name']}-{split['name']}.tfrecord"
            source.rename(folder / f"{stem}-{index:05d}-of-{count:05d}")
    path.write_text(json.dumps(info, indent=2, sort_keys=True))
    return folder


def droid_features(tfds, *, depth: bool = False, intrinsics: bool = True):
    """DROID 1.0.1's tree at 24x32, with intrinsics as simulated datasets carry them."""
    image = lambda: tfds.features.Image(
        shape=(HEIGHT, WIDTH, 3), dtype=np.uint8, encoding_format="jpeg"
    )
    vector = lambda n, dtype=np.float64: tfds.features.Tensor(shape=(n,), dtype=dtype)
    observation = {
        "gripper_position": vector(1),
        "cartesian_position": vector(6),
        "joint_position": vector(7),
        "wrist_image_left": image(),
        "exterior_image_1_left": image(),
        "exterior_image_2_left": image(),
    }
    if depth:
        observation["exterior_depth_1_left"] = tfds.features.Image(
            shape=(HEIGHT, WIDTH, 1), dtype=np.uint16, encoding_format="png"
        )
    metadata = {
        "file_path": tfds.features.Text(),
        "extrinsics_wrist_cam": vector(6),
        "extrinsics_exterior_cam_1": vector(6),
        "extrinsics_exterior_cam_2": vector(6),
    }
    if intrinsics:
        for camera in ("wrist_cam", "exterior_cam_1", "exterior_cam_2"):
            metadata[f"intrinsics_{camera}"] = vector(4, np.float32)
    return tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset(
                {
                    "is_first": tfds.features.Scalar(dtype=np.bool_),
                    "is_last": tfds.features.Scalar(dtype=np.bool_),
                    "is_terminal": tfds.features.Scalar(dtype=np.bool_),
                    "language_instruction": tfds.features.Text(),
                    "language_instruction_2": tfds.features.Text(),
                    "observation": observation,
                    "action": vector(7),
                    "reward": tfds.features.Scalar(dtype=np.float32),
                }
            ),
            "episode_metadata": metadata,
        }
    )


def droid_episode(seed: int, length: int, *, depth: bool = False, black: tuple[str, ...] = ()):
    """One episode of `droid_features`; cameras in `black` carry none."""
    rng = np.random.default_rng(seed)
    cameras = ("wrist_image_left", "exterior_image_1_left", "exterior_image_2_left")
    steps = []
    for step in range(length):
        observation = {
            key: np.zeros((HEIGHT, WIDTH, 3), np.uint8) if key in black else smooth_picture(rng)
            for key in cameras
        }
        observation |= {
            "gripper_position": [step / max(1, length - 1)],
            "cartesian_position": [0.4, 0.01 * step, 0.3, 3.0, 0.1 * step, -0.2],
            "joint_position": rng.normal(size=7),
        }
        if depth:
            observation["exterior_depth_1_left"] = rng.integers(
                0, 4000, (HEIGHT, WIDTH, 1), dtype=np.uint16
            )
        steps.append(
            {
                "is_first": step == 0,
                "is_last": step == length - 1,
                "is_terminal": step == length - 1,
                "language_instruction": "",
                "language_instruction_2": f"pick object {seed}",
                "observation": observation,
                "action": rng.normal(size=7),
                "reward": 0.0,
            }
        )
    metadata = {
        "file_path": f"/data/success/{seed}.h5",
        "extrinsics_wrist_cam": [0.45, 0.02, 0.35, -3.0, 0.05, -1.6],
        "extrinsics_exterior_cam_1": [0.2, 0.6, 0.4, -1.9, 0.1, -2.6],
        "extrinsics_exterior_cam_2": [0.0] * 6,
    }
    for camera in ("wrist_cam", "exterior_cam_1", "exterior_cam_2"):
        metadata[f"intrinsics_{camera}"] = [30.0, 31.0, 16.0, 12.0]
    return {"steps": steps, "episode_metadata": metadata}


@pytest.fixture(scope="session")
def droid_source(tmp_path_factory) -> Path:
    """A droid_101 dataset: train has 5 episodes in 2 shards, val 2 in 1. Do not write to it.

    Episode 1 of train has a black second camera.
    """
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")
    episodes = {
        "train": [
            droid_episode(i, n, black=("exterior_image_2_left",) if i == 1 else ())
            for i, n in enumerate((4, 6, 3, 5, 4))
        ],
        "val": [droid_episode(10 + i, 3) for i in range(2)],
    }
    root = tmp_path_factory.mktemp("droid")
    folder = build_dataset(root, "droid_101", "1.0.1", droid_features(tfds), episodes, per_shard=3)
    rename_shards(folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "readme.txt").write_text("kept as it is\n")
    return folder


@pytest.fixture
def droid_folder(droid_source, tmp_path) -> Path:
    """A private copy of `droid_source`, in <tmp>/source/droid_101/1.0.1."""
    folder = tmp_path / "source" / "droid_101" / "1.0.1"
    shutil.copytree(droid_source, folder)
    return folder


@pytest.fixture(scope="session")
def decode():
    """folder -> {split: [episode as numpy trees]}, decoded by tensorflow-datasets."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow")

    def read(folder: Path) -> dict[str, list]:
        builder = tfds.builder_from_directory(str(folder))
        config = tfds.ReadConfig(interleave_cycle_length=1)
        out = {}
        for split in builder.info.splits:
            rows = builder.as_dataset(split=split, read_config=config, shuffle_files=False)
            out[split] = [_numpy(tfds, row) for row in rows]
        return out

    return read


def _numpy(tfds, row):
    return {key: _tree(tfds, value) for key, value in row.items()}


def _tree(tfds, value):
    if isinstance(value, dict):
        return {key: _tree(tfds, item) for key, item in value.items()}
    if hasattr(value, "as_numpy_iterator"):  # a dataset, which may hold others
        return [_tree(tfds, item) for item in value]
    if hasattr(value, "to_list"):  # a ragged tensor
        return value.to_list()
    return value.numpy()


@pytest.fixture(scope="session")
def equal_trees():
    """Assert that two decoded trees are equal, naming the first key that is not."""

    def check(a, b, where="") -> None:
        assert type(a) is type(b), where
        if isinstance(a, dict):
            assert a.keys() == b.keys(), where
            for key in a:
                check(a[key], b[key], f"{where}/{key}")
        elif isinstance(a, list):
            assert len(a) == len(b), where
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                check(x, y, f"{where}[{i}]")
        elif hasattr(a, "to_list"):
            assert a.to_list() == b.to_list(), where
        else:
            assert np.array_equal(a, b), where

    return check


@pytest.fixture(scope="session")
def rlds_maker():
    """The functions that make datasets: (build_dataset, droid_features, droid_episode)."""
    return build_dataset, droid_features, droid_episode


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """A real S3-speaking server; see remote.S3. Buckets are shared by the session's tests."""
    with serving(tmp_path_factory.mktemp("scratch")) as server:
        yield server
