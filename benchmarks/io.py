"""What the splice costs: episodes per second against a plain copy and against a round trip.

    python benchmarks/io.py [--data-dir DIR] [--dataset NAME] [--json FILE]

One run measures three ways on the same records, each with a generator that costs nothing (one
constant picture, a frame of the dataset), so that what is left is the cost of reading and writing:

    splice       readers and writers of this package: check, append, write
    cp + jpeg    `cp -r` of the same folder, plus the JPEG encoding of the new frames
    tfds         tensorflow-datasets decodes each episode and encodes it again with the new stream

All start from an empty target and bring every file to the disk (fsync). The ways take turns, and
the best turn of each counts, since other work on the machine can only make one slower.
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
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from wristaugment.readers import open_dataset
from wristaugment.readers.episode import WristStream
from wristaugment.readers.errors import SourceError
from wristaugment.writers.atomic import fsync_dir
from wristaugment.writers.rlds import RldsCopy
from wristaugment.writers.splice import encode_jpeg

SAMPLE = Path(__file__).resolve().parents[1] / "sample"
LIMIT = 1.3


def main() -> int:
    """Measure, print the table, and return 1 if the splice is slower than it may be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, default=SAMPLE)
    parser.add_argument("--dataset", default="droid")
    parser.add_argument("--size", default="128x128", help="HxW of the new stream")
    parser.add_argument("--turns", type=int, default=5, help="how often each way is measured")
    parser.add_argument(
        "--scratch", type=Path, help="folder to write to (default: a temporary one)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON (- = stdout)")
    args = parser.parse_args()
    try:
        dataset = open_dataset(args.data_dir, args.dataset)
    except SourceError as error:
        print(f"benchmark: error: {error}", file=sys.stderr)
        return 2
    height, width = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        report = measure(dataset, Path(scratch), (height, width), args.turns)
    text = "\n".join(table(report))
    print(text, file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json == "-":
        print(json.dumps(report, indent=2))
    elif args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")
    return 0 if report["ratio"] <= LIMIT else 1


def measure(dataset, scratch: Path, size: tuple[int, int], turns: int) -> dict:
    """Seconds of every way, taken in turns after one turn to warm up."""
    out = scratch / "splice"
    copy = RldsCopy(dataset, out, size=size, description="a benchmark's constant picture")
    picture = sample_picture(dataset, size)
    steps = [dataset.steps(raw) for s in copy.shards for raw in dataset.records(s) if raw.payload]
    longest = np.repeat(picture[None], max(steps), 0)
    ones = np.ones(max(steps), bool)

    def constant(raw) -> WristStream:
        count = dataset.steps(raw)
        return WristStream(longest[:count], ones[:count], ones[:count].astype(np.float32))

    def splice() -> None:
        copy.folder.mkdir(parents=True)
        results = [copy.write_shard(s, copy.shard_path(s), constant) for s in copy.shards]
        copy.finish(results)

    def plain() -> None:
        target = scratch / "plain"
        subprocess.run(["cp", "-r", dataset.folder, target], check=True)
        for path in target.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        fsync_dir(target)

    def jpeg() -> None:
        for count in steps:
            for frame in longest[:count]:
                encode_jpeg(frame, copy.quality)

    ways: dict[str, Callable[[], None]] = {"splice": splice, "cp": plain, "jpeg": jpeg}
    splice()  # warms the caches
    skipped = None
    if importlib.util.find_spec("tensorflow"):
        # It reads the patched features.json now, and only the records later.
        ways["tfds"] = round_trip(dataset.folder, copy.folder, copy.wrist_key, picture, scratch)
    else:
        skipped = "tensorflow is not installed"
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
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
        "episodes": len(steps),
        "frames": sum(steps),
        "bytes": sum(shard.path.stat().st_size for shard in copy.shards),
        "size": list(size),
        "seconds": seconds,
        "best": best,
        "cpu": {name: min(values) for name, values in cpu.items()},
        "ratio": best["splice"] / (best["cp"] + best["jpeg"]),
        "limit": LIMIT,
        "tfds_skipped": skipped,
    }


def sample_picture(dataset, size: tuple[int, int]) -> np.ndarray:
    """A frame of the dataset's own first camera, resized: a JPEG of usual length."""
    raw = next(raw for raw in dataset.records(dataset.splits[0].shards[0]) if raw.payload)
    frame = Image.fromarray(dataset.episode(raw).anchors[0].frames[0])
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


def table(report: dict) -> list[str]:
    """The figures for people."""
    count = report["episodes"]
    names = {
        "splice": ("splice",),
        "cp": ("cp",),
        "jpeg of the new frames": ("jpeg",),
        "cp + jpeg": ("cp", "jpeg"),
        "tfds decode and encode": ("tfds",),
    }
    height, width = report["size"]
    out = [
        f"{count} episodes, {report['frames']} frames, {report['bytes'] / 1e6:.1f} MB, "
        f"new stream {height}x{width}; best of {len(report['seconds']['splice'])}",
        f"{'way':<24}{'seconds':>10}{'cpu':>10}{'episodes/s':>13}{'MB/s':>9}",
    ]
    for name, parts in names.items():
        if all(part in report["best"] for part in parts):
            value = sum(report["best"][part] for part in parts)
            cpu = sum(report["cpu"][part] for part in parts)
            speed = report["bytes"] / 1e6 / value
            out.append(f"{name:<24}{value:>10.4f}{cpu:>10.4f}{count / value:>13.1f}{speed:>9.1f}")
    if report["tfds_skipped"]:
        out.append(f"tfds decode and encode: skipped, {report['tfds_skipped']}")
    verdict = "as it must be" if report["ratio"] <= report["limit"] else "TOO SLOW"
    out.append(
        f"splice / (cp + jpeg) = {report['ratio']:.2f}, at most {report['limit']}: {verdict}"
    )
    return out


if __name__ == "__main__":
    sys.exit(main())
