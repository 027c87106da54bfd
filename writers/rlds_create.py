"""A new RLDS / TFDS dataset from scratch: a feature tree and episodes become a version folder.

TensorFlow-free: the feature tree is tensorflow-datasets' own, the records are tf.train.Example
messages written through its proto classes, and the files are what `tfds.builder_from_directory`
reads. The other writer, `rlds.py`, copies a dataset; this one makes one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from ..readers.errors import SourceError
from ..readers.tfrecord import OVERHEAD, frame
from .atomic import publish, staged_name, write_atomic

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def encode_example(features: tfds.features.FeaturesDict, episode: Mapping) -> bytes:
    """One episode as a serialized tf.train.Example; equal episodes give equal bytes.

    Args:
        features: the tree; what stands below a Dataset has one value a step.
        episode: a nested mapping of the same shape. Images come encoded (bytes), below a Dataset
            as a list of them; texts as str; tensors as arrays, below a Dataset with the steps in
            front, [T, ...].

    Raises:
        SourceError: a value is missing, of the wrong shape, or has another number of steps.
    """
    lengths: dict[str, int] = {}
    flat: dict[str, tf_feature_pb2.Feature] = {}
    _encode(features, episode, "", None, flat, lengths)
    if len(set(lengths.values())) > 1:
        usual = max(set(lengths.values()), key=list(lengths.values()).count)
        key = next(key for key, length in lengths.items() if length != usual)
        raise SourceError(
            f"{lengths[key]} steps where the others have {usual}", key=key,
            todo="give one value a step",
        )  # fmt: skip
    # Entries in the order of their names: protobuf's own order of map entries is not fixed.
    parts = []
    for key in sorted(flat):
        entry = tf_feature_pb2.Features(feature={key: flat[key]})
        parts.append(tf_example_pb2.Example(features=entry).SerializeToString())
    return b"".join(_joined(parts))


def _joined(parts: list[bytes]) -> list[bytes]:
    """Many one-entry Examples as one: all entries under one `features` field."""
    bodies = []
    for part in parts:
        start = 1
        while part[start] & 0x80:
            start += 1
        bodies.append(part[start + 1 :])
    total, varint = sum(map(len, bodies)), bytearray()
    while total > 0x7F:
        varint.append(total & 0x7F | 0x80)
        total >>= 7
    varint.append(total)
    return [b"\x0a", bytes(varint), *bodies]


def _encode(node, value, path: str, steps: bool | None, flat: dict, lengths: dict) -> None:
    f = tfds.features
    if isinstance(node, f.FeaturesDict):
        for name, child in node.items():
            key = f"{path}/{name}" if path else name
            if not isinstance(value, Mapping) or name not in value:
                raise SourceError("the episode has no such value", key=key, todo="give one")
            _encode(child, value[name], key, steps, flat, lengths)
        extra = sorted(set(value) - set(node.keys()))
        if extra:
            key = f"{path}/{extra[0]}" if path else extra[0]
            raise SourceError("not in the feature tree", key=key, todo="declare it or leave it out")
    elif isinstance(node, f.Dataset):
        if steps:
            raise SourceError("a Dataset inside a Dataset", key=path, todo="flatten it")
        _encode(node.feature, value, path, True, flat, lengths)
    else:
        flat[path] = _leaf(node, value, path, bool(steps))
        if steps:
            lengths[path] = len(value)


def _leaf(node, value, path: str, steps: bool) -> tf_feature_pb2.Feature:
    f = tfds.features
    if isinstance(node, f.Text | f.Image):
        kind = str if isinstance(node, f.Text) else bytes
        values = list(value) if steps else [value]
        if isinstance(value, str | bytes) == steps or not all(isinstance(v, kind) for v in values):
            many = "a list of " if steps else ""
            raise SourceError(f"not {many}{kind.__name__}", key=path, todo="see encode_example")
        encoded = [v.encode() if isinstance(v, str) else v for v in values]
        return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=encoded))
    array = np.asarray(value)
    shape = array.shape[1:] if steps else array.shape
    if (steps and array.ndim == 0) or shape != tuple(node.shape):
        raise SourceError(
            f"shape {array.shape} where {('T', *node.shape) if steps else node.shape} is declared",
            key=path, todo="reshape it",
        )  # fmt: skip
    if np.issubdtype(node.np_dtype, np.floating):
        numbers = array.astype(np.float32).ravel().tolist()
        return tf_feature_pb2.Feature(float_list=tf_feature_pb2.FloatList(value=numbers))
    numbers = array.astype(np.int64).ravel().tolist()
    return tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=numbers))


class RldsCreate:
    """Writes the shards and the metadata of a new dataset.

    Args:
        root: the TFDS root; the dataset goes to `root/<name>/<version>`.
        name, version: the dataset's, as in "droid_101", "1.0.1".
        features: the feature tree.
        description: what it is, for dataset_info.json.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        version: str,
        features: tfds.features.FeaturesDict,
        *,
        description: str,
    ):
        self.folder = Path(root) / name / version
        self.name, self.version, self.features = name, version, features
        self.description = description

    def shard_path(self, split: str, index: int, count: int) -> Path:
        """The final path of shard `index` of `count`."""
        return self.folder / f"{self.name}-{split}.tfrecord-{index:05d}-of-{count:05d}"

    def write_shard(self, path: Path, payloads: Iterable[bytes]) -> int:
        """Write serialized Examples to `path`, which appears only when whole; returns how many."""
        path.parent.mkdir(parents=True, exist_ok=True)
        staged, number = staged_name(path), 0
        with staged.open("wb") as file:
            for payload in payloads:
                file.write(frame(payload))
                number += 1
            file.flush()
            os.fsync(file.fileno())
        publish(staged, path)
        return number

    def finish(self, splits: Mapping[str, Sequence[int]]) -> None:
        """Write features.json and dataset_info.json.

        Args:
            splits: for every split, how many episodes each of its shards holds.

        Raises:
            SourceError: a shard is missing.
        """
        info = {
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "fileFormat": "tfrecord",
            "splits": [self._split(split, list(lengths)) for split, lengths in splits.items()],
        }
        write_atomic(self.folder / "features.json", _json(feature_json(self.features)))
        write_atomic(self.folder / "dataset_info.json", _json(info))

    def _split(self, split: str, lengths: list[int]) -> dict:
        total = 0
        for index, length in enumerate(lengths):
            path = self.shard_path(split, index, len(lengths))
            if not path.is_file():
                raise SourceError("a shard is missing", file=path, todo="write it before finishing")
            total += path.stat().st_size - OVERHEAD * length
        return {
            "name": split,
            "filepathTemplate": _TEMPLATE,
            "numBytes": str(total),
            "shardLengths": [str(length) for length in lengths],
        }


def feature_json(features: tfds.features.FeaturesDict) -> dict:
    """The tree as features.json spells it."""
    found = dict(features.to_json())
    if "content" in found:
        # The top of the tree still comes in the old spelling; everything below is in the new one.
        return {"pythonClassName": found["type"], "featuresDict": found["content"]}
    return found


def _json(tree: dict) -> bytes:
    return (json.dumps(tree, indent=4, sort_keys=True) + "\n").encode()
