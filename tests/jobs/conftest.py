"""Small RLDS datasets in DROID's schema, made with plain protobuf; ways to run the job on them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2
from wristaugment.readers.tfrecord import frame

FEATURE = "tensorflow_datasets.core.features."
ANCHORS = ("exterior_image_1_left", "exterior_image_2_left")
STEPS = 12
# The job with its shards made in the process itself: the same driver, ledger, actor object, reader
# and writer, without the seconds that a Ray cluster takes to start. For what is not about Ray.
WITHOUT_RAY = """
import resource, sys
from wristaugment.jobs import cli, run
from wristaugment.jobs.actor import ShardActor

def made(job, args, pending, resumed, say):
    actor = ShardActor(job.work)
    for task in pending:
        staged = job.ledger.grant(task.split, task.index)
        outcome = actor.make_shard(task.split, task.index, staged)
        if outcome.kind == "disk":
            raise run.DiskError(outcome.text)
        assert outcome.kind == "done", outcome
        job.ledger.publish(task.split, task.index, staged, job.plan["place"], outcome.entry)
        yield task, outcome.entry

run._made = made
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(cli.main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Source:
    """A dataset that was made: its TFDS root and its version folder."""

    root: Path
    folder: Path

    def shard(self, index: int) -> Path:
        return sorted(self.folder.glob("*train.tfrecord-*"))[index]

    def args(self, out: Path, *more: str) -> list[str]:
        """The command line of the job on it, with the recipe that costs nothing."""
        given = ["--dataset", "droid", "--data-dir", self.root, "--out", out]
        return ["run", *map(str, given), "--recipe", "constant", *more]


def make_source(root: Path, *, shards: int, episodes: int, steps: int = STEPS) -> Source:
    """A `droid` dataset: `shards` files of `episodes` records of `steps` steps, seeded noise."""
    folder = root / "droid" / "1.0.0"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    lengths, total = [], 0
    for shard in range(shards):
        name = f"r2d2_faceblur-train.tfrecord-{shard:05d}-of-{shards:05d}"
        with open(folder / name, "wb") as file:
            for index in range(episodes):
                payload = _episode(rng, steps, f"put {shard} on {index}")
                file.write(frame(payload))
                total += len(payload)
        lengths.append(str(episodes))
    split = {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": "train",
        "numBytes": str(total),
        "shardLengths": lengths,
    }
    info = {"fileFormat": "tfrecord", "name": "r2d2_faceblur", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info | {"version": "1.0.0"}, indent=2))
    (folder / "features.json").write_text(json.dumps(_features(), indent=4))
    return Source(root, folder)


def _episode(rng, steps: int, text: str) -> bytes:
    example = tf_example_pb2.Example()
    feature = example.features.feature
    for name in ANCHORS:
        for _ in range(steps):
            picture = rng.integers(0, 255, (24, 32, 3), np.uint8)
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "JPEG")
            feature[f"steps/observation/{name}"].bytes_list.value.append(file.getvalue())
    feature["steps/observation/cartesian_position"].float_list.value.extend(rng.random(6 * steps))
    for name in ("is_first", "is_last"):
        feature[f"steps/{name}"].int64_list.value.extend([0] * steps)
    feature["steps/is_first"].int64_list.value[0] = 1
    feature["steps/is_last"].int64_list.value[-1] = 1
    feature["steps/language_instruction"].bytes_list.value.extend([text.encode()] * steps)
    feature["episode_metadata/file_path"].bytes_list.value.append(b"/success/somewhere")
    # Maps have no order of their own in protobuf; the files must be the same each time.
    return example.SerializeToString(deterministic=True)


def _features() -> dict:
    def many(features: dict) -> dict:
        return {
            "pythonClassName": FEATURE + "features_dict.FeaturesDict",
            "featuresDict": {"features": features},
        }

    def tensor(dtype: str, *sizes: int) -> dict:
        shape = {"dimensions": [str(size) for size in sizes]} if sizes else {}
        tensor = {"shape": shape, "dtype": dtype, "encoding": "none"}
        return {"pythonClassName": FEATURE + "tensor_feature.Tensor", "tensor": tensor}

    text = {"pythonClassName": FEATURE + "text_feature.Text", "text": {}}
    image = {"shape": {"dimensions": ["24", "32", "3"]}, "dtype": "uint8", "encodingFormat": "jpeg"}
    picture = {"pythonClassName": FEATURE + "image_feature.Image", "image": image}
    observation = {name: picture for name in ANCHORS}
    observation["cartesian_position"] = tensor("float64", 6)
    steps = {
        "is_first": tensor("bool"),
        "is_last": tensor("bool"),
        "language_instruction": text,
        "observation": many(observation),
    }
    sequence = {"feature": many(steps), "length": "-1"}
    dataset = {"pythonClassName": FEATURE + "dataset_feature.Dataset", "sequence": sequence}
    return many({"steps": dataset, "episode_metadata": many({"file_path": text})})


def tree(folder: Path) -> dict[str, str]:
    """Every path under a folder, folders too, with the hash of each file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def command(*args: str) -> list[str]:
    """The real command line, Ray and all."""
    return [sys.executable, "-m", "wristaugment", *args]


def without_ray(args: list[str], *, crash: str = "", file_limit: int = 0):
    """Run the job in a process of its own, without Ray; see WITHOUT_RAY."""
    env = os.environ | {"WRISTAUGMENT_CRASH_AT": crash}
    line = [sys.executable, "-c", WITHOUT_RAY, str(file_limit), *args]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """The functions of this file; test files are no package, so they cannot import them."""
    return SimpleNamespace(
        make_source=make_source, tree=tree, command=command, without_ray=without_ray, steps=STEPS
    )


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Source:
    """4 shards of 2 episodes; not to be changed."""
    return make_source(tmp_path_factory.mktemp("small"), shards=4, episodes=2)


@pytest.fixture(scope="session")
def whole(small, tmp_path_factory) -> dict[str, str]:
    """The tree that an uninterrupted job on `small` leaves."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = without_ray(small.args(out))
    assert done.returncode == 0, done.stderr
    return tree(out)
