"""What a copy costs in every format, with a generator that costs nothing.

    python benchmarks/io.py [--formats rlds,calvin,...] [--repeat N] [--json FILE]
    python benchmarks/io.py --data-dir DIR [--dataset NAME]

Without --data-dir the embedded sample is converted to each format, its episodes eight times as long
(144 steps, as a demonstration has) and each N times. One run measures, on the same dataset and the
same constant picture (a frame of its own):

    copy         readers and writers of this package: read, add the stream, write, fsync
    cp + jpeg    `cp -r` of the same files, fsynced, plus the JPEG encoding of the new frames
    peer         RLDS: tensorflow-datasets decodes each episode and encodes it again with the new
                 stream; CALVIN: np.load and np.savez_compressed of each frame with it

All start from an empty target. The ways take turns, and the best turn of each counts, since other
work on the machine can only make one slower. The copy may take 1.3 times as long as cp + jpeg, and
CALVIN's, which touches every one of its small files, a twentieth of the peer's time instead. Exit
status 1 if a bound is passed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from wristaugment.jobs.simulate import FORMATS
from wristaugment.readers import open_dataset
from wristaugment.readers.dataset import Dataset
from wristaugment.readers.episode import WristStream
from wristaugment.readers.errors import SourceError
from wristaugment.writers.atomic import fsync_dir
from wristaugment.writers.copy import DatasetCopy
from wristaugment.writers.formats import open_copy
from wristaugment.writers.recorded import Recorded, RecordedSplit, recorded_splits
from wristaugment.writers.splice import encode_jpeg

SAMPLE = Path(__file__).resolve().parents[1] / "sample"
LIMIT, CALVIN_LIMIT = 1.3, 20.0
LONGER = 8


def main() -> int:
    """Measure, print the table, and return 1 if a bound is passed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="measure this dataset alone")
    parser.add_argument("--dataset", help="its profile")
    parser.add_argument("--formats", default=",".join(FORMATS), help="default: %(default)s")
    parser.add_argument("--repeat", type=int, default=1, help="times each episode is taken (1)")
    parser.add_argument("--size", default="128x128", help="HxW of the new stream")
    parser.add_argument("--turns", type=int, default=3, help="how often each way is measured")
    parser.add_argument("--no-peer", action="store_true", help="leave the slow peers out")
    parser.add_argument("--scratch", type=Path, help="folder to write to (a temporary one)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON (- = stdout)")
    args = parser.parse_args()
    height, width = map(int, args.size.split("x"))
    reports = {}
    out = sys.stderr if args.json == "-" else sys.stdout
    for line in heading((height, width), args.turns):
        print(line, file=out, flush=True)
    try:
        for name, make in datasets(args):
            with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
                dataset = make(Path(scratch) / "source")
                (Path(scratch) / "work").mkdir()
                reports[name] = measure(
                    dataset, Path(scratch) / "work", (height, width), args.turns, not args.no_peer
                )
            print(row(name, reports[name]), file=out, flush=True)
    except SourceError as error:
        print(f"benchmark: error: {error}", file=sys.stderr)
        return 2
    if args.json == "-":
        print(json.dumps(reports, indent=2))
    elif args.json:
        Path(args.json).write_text(json.dumps(reports, indent=2) + "\n")
    return 0 if all(within(report) for report in reports.values()) else 1


class Repeated:
    """The episodes of a recorded split, made longer, each several times."""

    def __init__(self, split: RecordedSplit, times: int):
        self._split, self._times = split, times

    def __len__(self) -> int:
        return len(self._split) * self._times

    def __iter__(self) -> Iterator[Recorded]:
        for time_ in range(self._times):
            for episode in self._split:
                yield longer(episode, episode.index + time_ * len(self._split))


def longer(episode: Recorded, index: int) -> Recorded:
    """An episode that is gone through several times."""

    def again(values):
        return None if values is None else np.concatenate([np.asarray(values)] * LONGER)

    views = {
        key: replace(
            view,
            frames=again(view.frames),
            depth=again(view.depth),
            pose=again(view.pose) if np.ndim(view.pose) == 3 else view.pose,
        )
        for key, view in episode.views.items()
    }
    arrays = {key: again(getattr(episode, key)) for key in ("eef", "joints", "gripper", "action")}
    return replace(episode, index=index, views=views, **arrays)


def datasets(args) -> Iterator[tuple[str, Callable[[Path], Dataset]]]:
    """(name, what makes the dataset in a folder) of each row."""
    if args.data_dir:
        yield args.data_dir.name, lambda folder: open_dataset(args.data_dir, args.dataset)
        return
    for name in args.formats.split(","):
        if name not in FORMATS:
            raise SourceError(f"no format is called {name!r}", key="--formats", todo="see --help")
        yield name, lambda folder, name=name: made(folder, name, args.repeat)


def made(folder: Path, name: str, times: int) -> Dataset:
    """The embedded sample as another format."""
    module, options = FORMATS[name]
    folder.mkdir(parents=True)
    if not module:
        return longer_rlds(folder, times)
    splits = {key: Repeated(split, times) for key, split in recorded_splits(SAMPLE).items()}
    maker = importlib.import_module(f"wristaugment.writers.{module}")
    dataset = maker.create(folder, splits, **options)
    if name == "calvin":
        like_recorded(dataset)
    return open_dataset(dataset)


def like_recorded(folder: Path) -> None:
    """Give CALVIN's frames the noise and the tactile arrays that recorded ones have.

    A rendered frame packs to a fifth of a recorded one's 290 kB, and numpy's part of the comparison
    would be that much cheaper.
    """
    rng = np.random.default_rng(0)
    for path in sorted(folder.rglob("episode_*.npz")):
        with np.load(path) as frame:
            arrays = dict(frame)
        noise = rng.integers(-6, 7, arrays["rgb_static"].shape)
        arrays["rgb_static"] = np.clip(arrays["rgb_static"] + noise, 0, 255).astype(np.uint8)
        arrays["depth_static"] = rng.normal(4, 1e-3, (200, 200)).astype(np.float32)
        arrays["rgb_tactile"] = rng.integers(90, 110, (160, 120, 6)).astype(np.uint8)
        arrays["depth_tactile"] = np.zeros((160, 120, 2), np.float32)
        np.savez_compressed(path, **arrays)


def longer_rlds(folder: Path, times: int) -> Dataset:
    """The sample with its shards' records several times over: as many bytes as the others have."""
    source = open_dataset(SAMPLE, "droid")
    target = folder / source.place
    target.mkdir(parents=True)
    tree = json.loads((source.folder / "dataset_info.json").read_text())
    for path in source.other_files():
        shutil.copy(path, target / path.name)
    for split, row in zip(source.splits, tree["splits"], strict=True):
        for shard in split.shards:
            data = shard.path.read_bytes()
            (target / shard.path.name).write_bytes(data * times * LONGER)
        row["shardLengths"] = [str(int(n) * times * LONGER) for n in row["shardLengths"]]
        row["numBytes"] = str(int(row["numBytes"]) * times * LONGER)
    (target / "dataset_info.json").write_text(json.dumps(tree))
    return open_dataset(target, "droid")


def measure(dataset: Dataset, scratch: Path, size: tuple[int, int], turns: int, peer: bool) -> dict:
    """Seconds of every way, taken in turns after one turn to warm up."""
    out = scratch / "copy"
    copy = open_copy(dataset, out, size=size, description="a benchmark's constant picture")
    picture = sample_picture(dataset, size)
    steps = [dataset.steps(raw) for s in copy.shards for raw in dataset.records(s)]
    ones = np.ones(max(steps), bool)

    def constant(raw) -> WristStream:
        count = dataset.steps(raw)
        frames = np.broadcast_to(picture, (count, *picture.shape))
        return WristStream(frames, ones[:count], ones[:count].astype(np.float32))

    def augment() -> None:
        write(copy, constant)

    def plain() -> None:
        target = scratch / "plain"
        subprocess.run(["cp", "-r", dataset.folder, target], check=True)
        os.sync()
        if target.is_dir():
            fsync_dir(target)

    def jpeg() -> None:
        for _ in range(sum(steps)):
            encode_jpeg(picture, copy.quality)

    ways: dict[str, Callable[[], None]] = {"copy": augment, "cp": plain, "jpeg": jpeg}
    augment()  # warms the caches
    skipped = None
    if dataset.format == "rlds" and peer:
        if importlib.util.find_spec("tensorflow"):
            # It reads the patched features.json now, and only the records later.
            ways["peer"] = round_trip(dataset.folder, copy.folder, copy.wrist_key, picture, scratch)
        else:
            skipped = "tensorflow is not installed"
    elif dataset.format == "calvin":
        ways["peer"] = saved_again(dataset, copy.stream_key, picture, scratch)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            if name == "peer" and turn > 1:
                continue  # it takes minutes, and is far from its bound
            for target in scratch.iterdir():
                shutil.rmtree(target) if target.is_dir() else target.unlink()
            os.sync()  # one way's dirty pages are not the next one's business
            start, busy = time.perf_counter(), cpu_seconds()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - start)
                cpu[name].append(cpu_seconds() - busy)
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "format": dataset.format,
        "episodes": len(steps),
        "frames": sum(steps),
        "files": sum(1 for _ in dataset.files()),
        "bytes": sum(path.stat().st_size for path in dataset.files()),
        "size": list(size),
        "seconds": seconds,
        "best": best,
        "cpu": {name: min(values) for name, values in cpu.items()},
        "ratio": best["copy"] / (best["cp"] + best["jpeg"]),
        "faster_than_peer": best["peer"] / best["copy"] if "peer" in best else None,
        "peer_skipped": skipped,
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def write(copy: DatasetCopy, make: Callable) -> None:
    """Stage every shard, rename its files, and write the metadata, as a job does."""
    copy.folder.mkdir(parents=True)
    staged, results = copy.folder.parent / ".staged", []
    for shard in copy.shards:
        staged.mkdir()
        result = copy.write_shard(shard, staged, make)
        for name in result.files:
            target = copy.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / name, target)
        results.append(result)
        shutil.rmtree(staged)
    copy.finish(results)


def sample_picture(dataset: Dataset, size: tuple[int, int]) -> np.ndarray:
    """A frame of the dataset's own first camera, resized: a JPEG of usual length."""
    raw = next(raw for raw in dataset.records(dataset.splits[0].shards[0]) if raw.error is None)
    frame = Image.fromarray(np.asarray(dataset.episode(raw).anchors[0].frames[0]))
    return np.asarray(frame.resize(size[::-1], Image.Resampling.BICUBIC))


def cpu_seconds() -> float:
    """CPU time of this process, its threads and its finished children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def round_trip(source: Path, patched: Path, key: str, picture, scratch: Path) -> Callable:
    """Decode and encode every episode with tensorflow-datasets, the new stream added."""
    import tensorflow as tf
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = tfds.features.FeatureConnector.from_config(str(patched))
    serializer = ExampleSerializer(features.get_serialized_info())
    builder = tfds.builder_from_directory(str(source))

    def run() -> None:
        with tf.io.TFRecordWriter(str(scratch / "tfds")) as writer:
            for split in builder.info.splits:
                for row in builder.as_dataset(split=split):
                    steps = list(row["steps"].as_numpy_iterator())
                    for step in steps:
                        step["observation"] |= {key: picture, "wrist_valid": True}
                    example = tfds.as_numpy({k: v for k, v in row.items() if k != "steps"})
                    encoded = features.encode_example({**example, "steps": steps})
                    writer.write(serializer.serialize_example(encoded))
        with open(scratch / "tfds", "rb") as file:
            os.fsync(file.fileno())

    return run


def saved_again(dataset: Dataset, key: str, picture, scratch: Path) -> Callable:
    """Load and save every frame of a CALVIN dataset with numpy, the new stream added."""
    frames = [path for path in dataset.files() if path.suffix == ".npz"]

    def run() -> None:
        target = scratch / "npz"
        target.mkdir()
        for path in frames:
            with np.load(path) as frame:
                np.savez_compressed(target / path.name, **frame, **{key: picture})
        os.sync()

    return run


def within(report: dict) -> bool:
    """Whether the figures keep their bounds."""
    if report["format"] == "calvin":
        return report["faster_than_peer"] >= CALVIN_LIMIT
    return report["ratio"] <= LIMIT


def heading(size: tuple[int, int], turns: int) -> list[str]:
    """What stands above the rows."""
    return [
        f"new stream {size[0]}x{size[1]}, one constant picture; seconds, best of {turns}",
        f"{'format':<14}{'episodes':>9}{'frames':>8}{'files':>7}{'MB':>9}{'copy':>9}{'cp':>8}"
        f"{'jpeg':>8}{'ratio':>7}{'peer':>9}{'times':>7}",
    ]


def row(name: str, report: dict) -> str:
    """One format's figures."""
    best = report["best"]
    peer = f"{best['peer']:>9.2f}{report['faster_than_peer']:>7.1f}" if "peer" in best else ""
    if report["peer_skipped"]:
        peer = f"  ({report['peer_skipped']})"
    verdict = "" if within(report) else "  TOO SLOW"
    return (
        f"{name:<14}{report['episodes']:>9}{report['frames']:>8}{report['files']:>7}"
        f"{report['bytes'] / 1e6:>9.1f}{best['copy']:>9.3f}{best['cp']:>8.3f}{best['jpeg']:>8.3f}"
        f"{report['ratio']:>7.2f}{peer}{verdict}"
    )


if __name__ == "__main__":
    sys.exit(main())
