"""Where the time of a nano run goes, by stage: `python benchmarks/pipeline.py [--json FILE]`.

The share of each stage in one process with one thread, as an actor runs it; the peer is a bare
decode of the same episodes (what a copy without models would cost at the least).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from wristaugment.augment.pipeline import make_augmenter
from wristaugment.augment.seeds import record_seed
from wristaugment.readers import open_dataset
from wristaugment.writers.splice import encode_jpeg

SAMPLE = Path(__file__).resolve().parent.parent / "sample"


def measure(data_dir: Path, dataset_name: str, recipe: str, episodes: int) -> dict:
    """Seconds by stage over the first `episodes` episodes, and frames a second in all."""
    import torch

    torch.set_num_threads(1)
    seconds: dict[str, float] = {}

    def add(stage: str, start: float) -> None:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start

    start = time.perf_counter()
    augmenter = make_augmenter(recipe)
    load = time.perf_counter() - start
    dataset = open_dataset(data_dir, dataset_name)
    frames = done = 0
    for split in dataset.splits:
        for shard in split.shards:
            for raw in dataset.records(shard):
                if done == episodes:
                    break
                start = time.perf_counter()
                episode = dataset.episode(raw)
                add("decode", start)
                stream = augmenter(episode, seed=record_seed(0, raw.record))
                for stage, value in stream.seconds.items():
                    seconds[stage] = seconds.get(stage, 0.0) + value
                start = time.perf_counter()
                for frame in stream.frames:
                    encode_jpeg(frame, 95)
                add("encode", start)
                frames += len(stream.frames)
                done += 1
    total = sum(seconds.values())
    return {
        "recipe": recipe,
        "episodes": done,
        "frames": frames,
        "load_seconds": load,
        "stages": {
            name: {"seconds": value, "share": value / total, "ms_per_frame": 1000 * value / frames}
            for name, value in seconds.items()
        },
        "frames_per_second": frames / total,
        "ratio_to_decode": total / seconds["decode"],
    }


def main() -> int:
    """Print the table; write the JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=SAMPLE)
    parser.add_argument("--dataset", default="droid")
    parser.add_argument("--recipe", default="nano")
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--json", metavar="FILE", help="- = stdout")
    args = parser.parse_args()
    found = measure(args.data_dir, args.dataset, args.recipe, args.episodes)
    out = sys.stderr if args.json == "-" else sys.stdout
    print(f"{found['recipe']}: {found['episodes']} episodes, {found['frames']} frames, one thread; "
          f"weights loaded in {found['load_seconds']:.2f} s", file=out)  # fmt: skip
    for name, stage in found["stages"].items():
        print(f"  {name:12s} {stage['seconds']:8.2f} s {100 * stage['share']:5.1f}% "
              f"{stage['ms_per_frame']:8.2f} ms a frame", file=out)  # fmt: skip
    print(f"  {found['frames_per_second']:.2f} frames a second; {found['ratio_to_decode']:.0f} "
          "times the bare decoding of the same episodes", file=out)  # fmt: skip
    if args.json:
        text = json.dumps(found, indent=2) + "\n"
        sys.stdout.write(text) if args.json == "-" else Path(args.json).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
