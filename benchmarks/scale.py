"""What a very large dataset costs before its first episode is made, and to look at.

    python benchmarks/scale.py [--episodes N] [--shards N] [--scratch DIR] [--json FILE]
    python benchmarks/scale.py --formats calvin,lerobot-v3.0,droid-raw [--episodes N]

An RLDS dataset of a million episodes in 20,000 shards (DROID, too, has about 50 in each) is made of
hard links to one small shard, and a job's ledger of it with no, half and all of the shards. Each
command then runs in a process of its own, all that Python takes to start included:

    plan      everything that `run` does up to a plan on the disk, in an empty --out
    status    `wristaugment status`, with no, half and all shards recorded
    resume    the same `run` again with half of the shards: until the first shard would be made

With --formats, datasets of other formats (see benchmarks/scale_formats.py) are planned and looked
at; droid-raw has a folder an episode, so that 100,000 will do.

Bounds: a plan, and a resumed run, in 10 s, status in 2 s, and 1 GB of memory. Exit status 1 if one
is passed. The links share their pages in memory, so that these are the figures of files that a
machine has read before; on a network file system, its latency counts once a shard and thread.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from wristaugment.jobs.ledger import FOLDER, Ledger, to_json
from wristaugment.readers.tfrecord import frame, read_frames

CORPUS = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "corpus" / "droid_101"
BOUNDS = {"plan": 10.0, "status": 2.0, "resume": 10.0}  # seconds
MEMORY = 1e9  # bytes
_LINKS = 30_000  # to one file; ext4 has room for 65,000
# Runs in the measured process: the command line of `run` is followed up to where shards are made.
_CHILD = """
import contextlib, sys, time
from wristaugment.jobs import cli, interrupt, run

def made(*_):
    raise interrupt.Interrupted("the first shard would be made here")
    yield

what, words = sys.argv[1], sys.argv[2:]
if what == "plan":
    from wristaugment.jobs import job  # `status` does not load it

    with contextlib.ExitStack() as stack:
        ready = job.prepare(cli.parser().parse_args(words), stack)
        stack.enter_context(ready.ledger.opened(ready.plan))
else:
    run._made = made
    sys.stdout = sys.stderr
    cli.main(words)
sys.stdout = sys.__stdout__
with open("/proc/self/status") as file:
    memory = next(line.split()[1] for line in file if line.startswith("VmHWM"))
print(time.process_time(), memory)
"""


def main() -> int:
    """Measure, print the figures, and return 1 if a bound is passed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--episodes", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--shards", type=int, default=20_000, help="default: %(default)s")
    parser.add_argument("--formats", default="", help="of other datasets; not RLDS then")
    parser.add_argument("--scratch", type=Path, help="folder to write to (a temporary one)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON (- = stdout)")
    args = parser.parse_args()
    out = sys.stderr if args.json == "-" else sys.stdout
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        if args.formats:
            report = measure_formats(Path(scratch), args.formats.split(","), args.episodes)
        else:
            report = measure(Path(scratch), args.episodes, args.shards)
    for name, row in report["runs"].items():
        print(
            f"{name:20} {row['seconds']:6.2f} s ({row['cpu_seconds']:.2f} of CPU) "
            f"{row['bytes'] / 1e6:7.0f} MB",
            file=out,
        )
    print(f"the largest plan.json is {report['plan_bytes'] / 1e6:.1f} MB", file=out)
    if args.json == "-":
        print(json.dumps(report, indent=2))
    elif args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")
    return 0 if report["ok"] else 1


def measure(scratch: Path, episodes: int = 1_000_000, shards: int = 20_000) -> dict:
    """Make the dataset and its job, and time the commands.

    Args:
        scratch: an empty folder; hard links must be possible in it.
        episodes, shards: of the dataset; every shard has equally many.

    Returns:
        {"ok": whether all is within bounds, "episodes", "shards", "plan_bytes",
        "runs": {name: {"seconds", "cpu_seconds", "bytes" (of memory, at most)}}}
    """
    source, out = scratch / "source", scratch / "out"
    make_source(source, episodes, shards)
    words = ["run", "--dataset", "droid", "--data-dir", str(source), "--out", str(out)]
    words += ["--recipe", "constant", "--num-actors", "1"]
    runs = {"plan": _timed("plan", words)}
    plan = out / FOLDER / "plan.json"
    for name, share in (("none", 0.0), ("half", 0.5), ("all", 1.0)):
        record_shards(source, out, int(shards * share))
        runs[f"status ({name})"] = _timed("status", ["status", str(out), "--json", "-"])
        if name == "half":
            runs["resume (half)"] = _timed("resume", words)
    counts = {"episodes": episodes, "shards": shards, "plan_bytes": plan.stat().st_size}
    return {"ok": _within(runs), **counts, "runs": runs}


def measure_formats(scratch: Path, names: Sequence[str], episodes: int) -> dict:
    """As `measure`, of datasets of other formats, with no shard recorded.

    Args:
        names: of scale_formats.FORMATS.
    """
    from scale_formats import make

    runs, largest = {}, 0
    for name in names:
        root = scratch / name
        out = root / "out"
        words = ["run", "--data-dir", str(make(name, root, episodes)), "--out", str(out)]
        words += ["--recipe", "constant", "--num-actors", "1"]
        runs[f"plan {name}"] = _timed("plan", words)
        runs[f"status {name}"] = _timed("status", ["status", str(out), "--json", "-"])
        largest = max(largest, (out / FOLDER / "plan.json").stat().st_size)
        shutil.rmtree(root)
    return {"ok": _within(runs), "episodes": episodes, "plan_bytes": largest, "runs": runs}


def _within(runs: dict[str, dict]) -> bool:
    return all(
        row["seconds"] <= BOUNDS[name.split()[0]] and row["bytes"] <= MEMORY
        for name, row in runs.items()
    )


def make_source(root: Path, episodes: int, shards: int) -> None:
    """A TFDS root with `droid`: hard links to one shard of the tests' corpus, its records repeated.

    Raises:
        OSError: no room, or no hard links.
    """
    corpus = CORPUS / "1.0.1"
    folder = root / "droid" / "1.0.1"
    folder.mkdir(parents=True)
    each = episodes // shards
    shard = next(corpus.glob("*.tfrecord-00000-*"))
    payloads = [item.payload for item in read_frames(shard) if item.payload]
    payloads = [payloads[i % len(payloads)] for i in range(each)]
    info = json.loads((corpus / "dataset_info.json").read_text())
    split = info["splits"][0] | {"shardLengths": [str(each)] * shards}
    split["numBytes"] = str(shards * sum(map(len, payloads)))
    (folder / "dataset_info.json").write_text(json.dumps(info | {"splits": [split]}))
    (folder / "features.json").write_bytes((corpus / "features.json").read_bytes())
    data = b"".join(map(frame, payloads))
    names = (
        f"{info['name']}-{split['name']}.tfrecord-{i:05d}-of-{shards:05d}" for i in range(shards)
    )
    _link(data, [folder / name for name in names])


def record_shards(source: Path, out: Path, count: int) -> None:
    """Give the job in `out` the files and records of its first `count` shards.

    They are as the ledger publishes them, of the source's own bytes: how large a record is, and
    how many there are, is what is to be measured.
    """
    ledger = Ledger(out)
    plan = ledger.plan()
    assert plan is not None
    files = sorted((source / plan["place"]).glob("*.tfrecord-*"))
    info = json.loads((source / plan["place"] / "dataset_info.json").read_text())
    each = int(info["splits"][0]["shardLengths"][0])
    split, size = info["splits"][0]["name"], files[0].stat().st_size
    folder = out / plan["place"]
    for name in ("shards", "quality"):
        (ledger.folder / name).mkdir(exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for index, file in enumerate(files[:count]):
        target = folder / file.name
        if target.exists():
            continue
        os.link(file, target)
        result = {"split": split, "shard": index, "records": each, "bad": []}
        result["files"] = {file.name: [size, None]}
        result["facts"] = {"num_bytes": size, "added_sha256": "0" * 64}
        quality = [
            {
                "record": f"{split}/{index}/{record}",
                "frames": 8,
                "valid": 1.0,
                "coverage": 1.0,
                "notes": {"geometry": "recorded", "pose": "measured"},
            }
            for record in range(each)
        ]
        name = f"{ledger.shard_name(split, index)}.json"
        record = {"result": result, "sha256": {file.name: "0" * 64}}
        (ledger.folder / "shards" / name).write_text(to_json(record))
        (ledger.folder / "quality" / name).write_text(to_json(quality))


def _link(data: bytes, paths: Sequence[Path]) -> None:
    """The same bytes at many paths."""
    first = paths[0]
    for number, path in enumerate(paths):
        if number % _LINKS == 0:
            first = path
            path.write_bytes(data)
        else:
            os.link(first, path)


def _timed(what: str, words: Sequence[str]) -> dict:
    """Run the command line in a new process; its time, and the memory that it held at most."""
    line = [sys.executable, "-c", _CHILD, what, *words]
    start = time.perf_counter()
    done = subprocess.run(line, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr[-4000:]}")
    cpu, memory = done.stdout.split()[-2:]
    figures = {"seconds": round(seconds, 3), "cpu_seconds": round(float(cpu), 3)}
    return figures | {"bytes": int(memory) * 1024}


if __name__ == "__main__":
    sys.exit(main())
