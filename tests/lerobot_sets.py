"""LeRobot datasets for tests: made from the simulated corpus, copied, taken apart, compared."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
from copying import confidences
from wristaugment.readers.episode import WristStream
from wristaugment.readers.lerobot import open_source
from wristaugment.writers.lerobot import Copy
from wristaugment.writers.lerobot_create import create
from wristaugment.writers.recorded import recorded_splits

CORPUS = Path(__file__).parent / "fixtures" / "corpus" / "droid_101" / "1.0.1"
VERSIONS = ("v2.1", "v3.0")
SIZE = (48, 64)
KEY = "observation.images.wrist"
FRONT = "observation.images.exterior_1_left"
STEPS = 8  # of every episode of the corpus; three in train, one in val


def made(folder, version, wrist=False):
    """The corpus as a LeRobot dataset."""
    return create(folder, recorded_splits(CORPUS), version=version, wrist=wrist)


def picture(number, step, size=SIZE):
    """[H, W, 3]: tells its episode and step."""
    y, x = np.mgrid[: size[0], : size[1]]
    rows = [x * 2 + 10 * step, y * 2 + 40 * number, np.full_like(x, 60)]
    return np.clip(np.stack(rows, -1), 0, 255).astype(np.uint8)


def stream_of(raw, steps, size=SIZE):
    """The stream that `copied` writes; its last frame could not be made."""
    frames = np.stack([picture(raw.episode, step, size) for step in range(steps)])
    valid = np.ones(steps, bool)
    frames[-1], valid[-1] = 0, False
    return WristStream(frames, valid, np.ones(steps, np.float32), confidence=confidences(valid))


def copied(source, out, make=None, dataset=None, **options):
    """Open, copy and finish (twice); returns (the copy, its results)."""
    dataset = dataset or open_source(source)
    make = make or (lambda raw: stream_of(raw, dataset.steps(raw)))
    options = {"size": SIZE, "description": "synthetic, for tests"} | options
    copy = Copy(dataset, out, **options)
    results = [written(copy, shard, make) for shard in copy.shards]
    copy.finish(results)
    before = hashes(copy.folder)
    copy.finish(json.loads(json.dumps([vars(r) for r in results]), object_hook=_result))
    assert hashes(copy.folder) == before
    return copy, results


def written(copy, shard, make):
    """One shard, staged and moved to its place."""
    staged = copy.folder / ".staged"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    result = copy.write_shard(shard, staged, make)
    found = {p.relative_to(staged).as_posix() for p in staged.rglob("*") if p.is_file()}
    assert found == set(result.files)
    for name in result.files:
        (copy.folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged / name, copy.folder / name)
    shutil.rmtree(staged)
    return result


def hashes(folder):
    """Every file of a folder: name -> hash."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


def every(dataset):
    """(shard, record) of a dataset, in order."""
    return [
        (shard, raw)
        for split in dataset.splits
        for shard in split.shards
        for raw in dataset.records(shard)
    ]


def gathered(pairs):
    """`content` as a dict: key -> list of its parts."""
    out = {}
    for key, value in pairs:
        out.setdefault(key, []).append(value)
    return out


def edit_info(folder, change):
    """Change meta/info.json."""
    path = Path(folder) / "meta" / "info.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree, indent=4))


def _result(tree):
    from wristaugment.writers.copy import ShardResult

    return ShardResult(**tree) if "files" in tree and "facts" in tree else tree
