"""Datasets of tiny episodes that can be told apart, and what is in a copy of one."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

NAME, CAMERA = "chaos", "image_0"
HEIGHT, WIDTH = 24, 32


@dataclass(frozen=True)
class Source:
    """An RLDS dataset of `shards` files of `episodes` episodes each.

    Attributes:
        root: its TFDS root.
    """

    root: Path
    shards: int
    episodes: int

    @property
    def names(self) -> Counter[str]:
        """The instruction of every episode, which no two share."""
        return Counter(name(s, e) for s in range(self.shards) for e in range(self.episodes))

    def args(self, out: Path | str, *more: str) -> list[str]:
        """The command line of a job on it."""
        given = ["run", "--dataset", NAME, "--data-dir", str(self.root), "--out", str(out)]
        return [*given, "--recipe", "constant", "--anchor-keys", CAMERA, *more]


def name(shard: int, episode: int) -> str:
    """The instruction of one episode."""
    return f"put {episode} on {shard}"


def make_source(
    root: Path, shards: int, episodes: int, *, steps: int = 3, ballast: dict[int, int] | None = None
) -> Source:
    """A dataset whose pictures are seeded noise; the same each time.

    Args:
        ballast: bytes that the shards of these numbers are longer by, in their first episodes.
    """
    import tensorflow_datasets as tfds
    from wristaugment.writers.rlds_create import RldsCreate, encode_example

    f = tfds.features
    tree = f.FeaturesDict(
        {
            "steps": f.Dataset(
                {
                    "is_first": f.Scalar(dtype=np.bool_),
                    "is_last": f.Scalar(dtype=np.bool_),
                    "language_instruction": f.Text(),
                    "observation": {
                        CAMERA: f.Image(shape=(HEIGHT, WIDTH, 3), encoding_format="jpeg"),
                        "state": f.Tensor(shape=(7,), dtype=np.float32),
                    },
                }
            ),
            "episode_metadata": {"file_path": f.Text()},
        }
    )
    rng = np.random.default_rng(11)
    pictures = [_jpeg(rng) for _ in range(64)]
    writer = RldsCreate(root, NAME, "1.0.0", tree, description="noise")

    def episode(shard: int, index: int) -> bytes:
        first = int(rng.integers(64))
        extra = (ballast or {}).get(shard, 0) if index == 0 else 0
        steps_ = {
            "is_first": np.arange(steps) == 0,
            "is_last": np.arange(steps) == steps - 1,
            "language_instruction": [name(shard, index)] * steps,
            "observation": {
                CAMERA: [pictures[(first + step) % 64] for step in range(steps)],
                "state": rng.normal(size=(steps, 7)),
            },
        }
        return encode_example(
            tree, {"steps": steps_, "episode_metadata": {"file_path": "/" + "x" * extra}}
        )

    for shard in range(shards):
        path = writer.shard_path("train", shard, shards)
        writer.write_shard(path, (episode(shard, index) for index in range(episodes)))
    writer.finish({"train": [episodes] * shards})
    return Source(root, shards, episodes)


def _jpeg(rng) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def episodes_of(root: Path) -> tuple[Counter[str], set[str]]:
    """(every episode of a dataset by its instruction, those of them with frames that are valid).

    Read from the files themselves; the job's own records are not asked.
    """
    from wristaugment.readers import open_dataset

    dataset = open_dataset(root, NAME, anchor_keys=(CAMERA,))
    found: Counter[str] = Counter()
    valid = set()
    for split in dataset.splits:
        for shard in split.shards:
            for raw in dataset.records(shard):
                if raw.error is not None:
                    found[f"unreadable: {raw.record}"] += 1
                    continue
                index = dataset.index(raw)
                text = index.blobs("steps/language_instruction")[0].decode()
                found[text] += 1
                if all(index.numbers("steps/observation/wrist_valid")):
                    valid.add(text)
    return found, valid
