"""What the tests of the HDF5 formats share: small sources, copies made shard by shard, compared."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from copying import confidences
from wristaugment.readers.episode import WristStream
from wristaugment.readers.hdf5_dataset import Hdf5Dataset
from wristaugment.writers.copy import DatasetCopy, ShardResult
from wristaugment.writers.recorded import recorded_splits

CORPUS = Path(__file__).parent / "fixtures" / "corpus" / "droid_101" / "1.0.1"
SIZE = (24, 32)
SAID = "made up by a test"


def corpus():
    """The recorded splits of the simulated corpus: 3 and 1 episodes of 8 steps, 90 x 160."""
    return recorded_splits(CORPUS)


def made_frames(seed: int, steps: int) -> np.ndarray:
    """[steps, 24, 32, 3] smooth pictures, different top and bottom, kind to JPEG."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(20, 235, (steps, 2, 2, 3)).astype(float)
    y = np.linspace(0, 1, SIZE[0])[None, :, None, None]
    x = np.linspace(0, 1, SIZE[1])[None, None, :, None]
    top = corners[:, None, None, 0, 0] * (1 - x) + corners[:, None, None, 0, 1] * x
    low = corners[:, None, None, 1, 0] * (1 - x) + corners[:, None, None, 1, 1] * x
    return (top * (1 - y) + low * y).astype(np.uint8)


def maker(dataset: Hdf5Dataset):
    """A `make` that looks at all of a record's pictures; step 1 of each stream is not valid."""

    def make(raw) -> WristStream:
        episode = dataset.episode(raw)
        for view in episode.anchors:
            assert view.frames[:].shape[0] == dataset.steps(raw)
        steps = dataset.steps(raw)
        valid = np.ones(steps, bool)
        valid[1:2] = False
        seed = 100 * raw.record.shard + raw.record.index
        frames = made_frames(seed, steps)
        return WristStream(frames, valid, np.ones(steps, np.float32), confidence=confidences(valid))

    return make


def copy_of(dataset: Hdf5Dataset, out: Path, **choices) -> DatasetCopy:
    """The Copy of a dataset's format."""
    module = importlib.import_module(f"wristaugment.writers.{dataset.format}")
    return module.Copy(dataset, out, **{"size": SIZE, "description": SAID, **choices})


def write(copy: DatasetCopy, make=None) -> list[ShardResult]:
    """Make all shards and finish twice, as a job does that is told to go on when all is done."""
    results = []
    for number, shard in enumerate(copy.shards):
        staged = copy.folder / f".staged-{number}"
        staged.mkdir(parents=True)
        result = copy.write_shard(shard, staged, make or maker(copy.dataset))
        assert json.loads(json.dumps(dataclasses.asdict(result)))["shard"] == shard.index
        for name, (size, _) in result.files.items():
            assert (staged / name).stat().st_size == size
            (copy.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).rename(copy.folder / name)
        shutil.rmtree(staged)
        results.append(result)
    copy.finish(results)
    copy.finish(results)
    return results


def peer(*words) -> object:
    """What a loader that others wrote reads (tests/peers/hdf5.py), in its own environment."""
    root = Path(__file__).parents[1]
    python = os.environ.get("WRISTAUGMENT_PEER_HDF5") or root / ".venv-hdf5" / "bin" / "python"
    if not Path(python).exists():
        pytest.skip(f"there is no environment of tests/peers/hdf5.txt at {python}")
    script = [str(python), str(root / "tests" / "peers" / "hdf5.py"), *map(str, words)]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def target(dataset: Hdf5Dataset, copy: DatasetCopy) -> Path:
    """What one gives as --data-dir to open the copy."""
    return copy.folder if dataset.folder.is_dir() else copy.folder / dataset.folder.name


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def records(dataset: Hdf5Dataset) -> list:
    """Every record of a dataset."""
    return [raw for split in dataset.splits for s in split.shards for raw in dataset.records(s)]


def assert_kept(source: Hdf5Dataset, copied: Hdf5Dataset) -> set[str]:
    """Assert that all of the source is in the copy; returns the keys that the copy has more."""
    more = set()
    for a, b in zip(source.splits[0].shards, copied.splits[0].shards, strict=True):
        assert list(source.shared_content(a)) == list(copied.shared_content(b))
    pairs = zip(records(source), records(copied), strict=True)
    for raw, new in pairs:
        if raw.error is not None and not getattr(raw, "reached", True):
            continue
        old, found = list(source.content(raw)), list(copied.content(new))
        keys = {key for key, _ in old}
        assert len(keys) == len(old) > 0
        kept = [(key, value) for key, value in found if key in keys]
        assert kept == old  # and in the same order
        more |= {key for key, _ in found} - keys
    return more
