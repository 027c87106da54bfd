"""How good nano is: everything that the README says of it, measured by one command.

    python benchmarks/fidelity.py --corpus runs/nano/corpus --weights runs/nano [--episodes N]
        [--parts table,views,confidence,mount,temporal] [--out runs/nano/fidelity] [--json FILE]
        [--readme README.md] [--picture docs/nano.jpg]

The corpus is a simulated one (`make nano` makes it); what is scored is its test split, whose scenes
no training saw. Parts:

    table       nano, with the measured and the wrist head's pose and from RGB alone, and what it
                must beat: the mean picture, the resized anchor, the nearest training frame, the
                bare projection, Pix2Pix and its own generator without the projection (both trained
                here)
    ablation    the rows of WristWorld's table 4 at nano's size: --ablations has the weights, each
                trained for the same steps (`make ablations` trains and measures)
    views       nano with one anchor and with three, where it learnt with two (zero-shot)
    mount       the wrist head's poses against a rigid mount: solved on the validation split, true
    confidence  how well wrist_confidence ranks frames, and what the best half gains
    temporal    flicker against the same weights frame by frame, and seams where clips meet, on
                episodes of 200 steps that are simulated here

Each part is a call of `wristaugment` whose report is kept in --out, so that an interrupted run goes
on; remove the folder to measure again. Every bound is printed beside the figure that it is held
against; exit status 1 if one is missed. --readme puts the table between the marks in that file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

AGAINST = "observation/wrist_image_left"
BASELINES = {
    "projection": "bare projection, holes filled",
    "mean": "mean wrist picture of the training set",
    "anchor": "anchor view, resized",
    "nearest": "nearest training frame",
    "pix2pix": "Pix2Pix",
    "nano-no-map": "the generator without the projection",
}
LABELS = {
    "nano": "nano, calibrated cameras, measured wrist pose",
    **BASELINES,
    "nano:head": "nano, calibrated cameras, the wrist head's pose",
    "nano+rgb": "nano, from RGB alone: no calibration, no end-effector poses",
}
MARKS = ("<!-- fidelity: made by `make fidelity` -->", "<!-- fidelity: end -->")
LONG = {"steps": 200, "episodes": 3, "seed": 7}


class Bench:
    """Calls of the command line, their reports kept.

    Args:
        args: of this program.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, Any] = {}
        self.checks: list[dict[str, Any]] = []

    def wristaugment(self, *words: str | Path) -> None:
        """Run a command; its exit status must be 0."""
        line = [sys.executable, "-m", "wristaugment", *map(str, words)]
        print("$ wristaugment", *map(str, words), file=sys.stderr, flush=True)
        code = subprocess.run(line, stdout=sys.stderr).returncode
        if code:
            raise SystemExit(f"this ended with exit status {code}: {' '.join(line[2:])}")

    def evaluate(self, name: str, *words: str | Path, corpus: Path | None = None) -> dict:
        """The report of `wristaugment evaluate`, made now or by a call before."""
        path = self.out / f"{name}.json"
        if not path.exists():
            staged = path.with_suffix(".partial")
            data = corpus or self.args.corpus
            source = ["--dataset", "droid", "--data-dir", data, "--against", AGAINST]
            limit = ["--episodes", str(self.args.episodes)] if corpus is None else []
            self.wristaugment(
                "evaluate", *source, "--split", "test", *limit, "--weights", self.args.weights,
                *words, "--json", staged,
            )  # fmt: skip
            os.replace(staged, path)
        return json.loads(path.read_text())

    def check(self, what: str, value: float, bound: str, holds: bool) -> None:
        """Note whether a bound holds, and print it."""
        self.checks.append({"what": what, "value": value, "bound": bound, "holds": bool(holds)})
        print(f"{'ok  ' if holds else 'MISS'} {what}: {value:.3f} ({bound})", flush=True)


def figure(report: dict, way: str, metric: str) -> dict[str, float]:
    """{"mean", "low", "high"} of a way's metric."""
    found = report["recipes"][way][metric]
    if not isinstance(found, dict):
        raise SystemExit(f"{way} has no {metric}: {found}")
    return found


def print_rows(report: dict, metrics: Sequence[str], where: str = "") -> None:
    """A line a way, with its intervals."""
    for way in report["recipes"]:
        row = [figure(report, way, metric) for metric in metrics]
        cells = ("{mean:.3f} [{low:.3f}, {high:.3f}]".format(**cell) for cell in row)
        print("    ", f"{way}{where}".ljust(30), *cells, flush=True)


def table(bench: Bench) -> None:
    """nano against all that is simpler."""
    words = ["--recipes", ",".join(LABELS), "--train-episodes", "800"]
    report = bench.results["table"] = bench.evaluate("table", *words)
    if bench.args.picture and not Path(bench.args.picture).exists():
        shown = ["--recipes", "nano,pix2pix", "--picture", bench.args.picture]
        bench.evaluate("picture", *shown, "--picture-episodes", "5", "--episodes", "5")
    for metric, least, unit in (("psnr", 2.0, " dB"), ("ssim", 0.05, "")):
        own = figure(report, "nano", metric)
        best = max(BASELINES, key=lambda way: figure(report, way, metric)["mean"])
        other = figure(report, best, metric)
        bench.check(
            f"nano's {metric} ahead of the best other, {best}",
            own["mean"] - other["mean"],
            f"at least {least}{unit}",
            own["mean"] - other["mean"] >= least,
        )
        bench.check(
            f"low end of nano's {metric} less the high end of {best}'s",
            own["low"] - other["high"],
            "intervals that do not overlap",
            own["low"] > other["high"],
        )


def ablation(bench: Bench) -> None:
    """WristWorld's table 4: what each part gives, with equal training."""
    ways = ["--weights", bench.args.ablations, "--recipes", "nano,nano-no-clip,nano-no-map"]
    generators = bench.evaluate("ablation", *ways)
    ways = ["--weights", bench.args.ablations / "heads", "--recipes", "nano,nano-no-spc"]
    heads = bench.evaluate("ablation-spc", *ways, "--pose", "head")
    bench.results["ablation"] = {"generators": generators, "heads": heads}
    for report in (generators, heads):
        print_rows(report, ("psnr", "ssim"))


def views(bench: Bench) -> None:
    """One anchor, and three, where the weights learnt with two; of the same scenes."""
    three = bench.out / "three"
    corpus = simulated_test(bench.args.corpus)
    words = ["--views", "3", "--episodes", str(bench.args.episodes), "--split", "test"]
    words += ["--steps", str(corpus["steps"]), "--seed", str(corpus["seed"])]
    bench.wristaugment("simulate", *words, "--shards", "1", "--out", three)
    cases = {"1": ["1"], "2": ["2"], "1, 2, 3": ["1", "2", "3"]}
    bench.results["views"] = {}
    for name, numbers in cases.items():
        keys = [f"observation/exterior_image_{number}_left" for number in numbers]
        words = ["--anchor-keys", *keys, "--recipes", "nano,projection"]
        report = bench.evaluate(f"views-{'-'.join(numbers)}", *words, corpus=three)
        bench.results["views"][name] = report
        print_rows(report, ("psnr", "ssim", "coverage"), f", anchors {name}")


def simulated_test(corpus: Path) -> dict[str, int]:
    """What was simulated as a corpus's test split, so that its scenes can be made again."""
    found = next(corpus.glob("*/*/simulate.json"), None)
    if found is None:
        raise SystemExit(f"{corpus} has no simulate.json; give --corpus what `make nano` simulates")
    return json.loads(found.read_text())["splits"]["test"]


def mount(bench: Bench) -> None:
    """The wrist head against a rigid mount."""
    path = bench.out / "mount.json"
    if not path.exists():
        source = ["--dataset", "droid", "--data-dir", bench.args.corpus, "--split", "val"]
        staged = path.with_suffix(".partial")
        bench.wristaugment(
            "mount", *source, "--episodes", "50", "--weights", bench.args.weights, "--out", staged
        )  # fmt: skip
        os.replace(staged, path)
    ways = ["--recipes", "projection:head,projection:rigid"]
    solved = bench.evaluate("mount-solved", *ways, "--mount", path)
    true = bench.evaluate("mount-true", *ways)
    bench.results["mount"] = {"solved": solved, "true": true}
    for metric, most in (("pose_rotation_deg", 0.5), ("pose_translation_cm", 0.5)):
        head = figure(solved, "projection:head", metric)["mean"]
        rigid = figure(solved, "projection:rigid", metric)["mean"]
        bench.check(f"solved mount, {metric} over the head's", rigid / head, "at most 0.5",
                    rigid <= head / 2)  # fmt: skip
        exact = figure(true, "projection:rigid", metric)["mean"]
        bench.check(f"true mount, {metric}", exact, f"under {most}", exact < most)


def confidence(bench: Bench) -> None:
    """How wrist_confidence ranks the frames of the table's run."""
    report = bench.results.get("table") or bench.evaluate("confidence", "--recipes", "nano")
    rank = figure(report, "nano", "confidence_rank")["mean"]
    gain = figure(report, "nano", "confidence_best_half")["mean"]
    bench.check("Spearman of confidence and SSIM over frames", rank, "at least 0.6", rank >= 0.6)
    bench.check("mean PSNR of the best half less that of all", gain, "at least 1.5 dB", gain >= 1.5)


def temporal(bench: Bench) -> None:
    """Flicker and seams on long episodes."""
    corpus = bench.out / "long"
    words = ["--steps", str(LONG["steps"]), "--episodes", str(LONG["episodes"])]
    words += ["--seed", str(LONG["seed"]), "--split", "test", "--shards", "1", "--out", corpus]
    bench.wristaugment("simulate", *words)
    report = bench.evaluate("temporal", "--recipes", "nano,nano+perframe", corpus=corpus)
    bench.results["temporal"] = report
    ratio = (
        figure(report, "nano", "flicker")["mean"]
        / figure(report, "nano+perframe", "flicker")["mean"]
    )
    seam = figure(report, "nano", "seam")["mean"]
    bench.check("flicker over that of frames made alone", ratio, "at most 0.7", ratio <= 0.7)
    bench.check("error where clips meet over that within", seam, "0.9 to 1.1", 0.9 <= seam <= 1.1)


PARTS: dict[str, Callable[[Bench], None]] = {
    "table": table,
    "ablation": ablation,
    "views": views,
    "mount": mount,
    "confidence": confidence,
    "temporal": temporal,
}


def readme_table(report: dict) -> str:
    """The table as Markdown, best first."""
    ways = [way for way in LABELS if way in report["recipes"]]
    ways.sort(key=lambda way: -figure(report, way, "psnr")["mean"])
    ways.sort(key=lambda way: way != "nano")
    lines = ["| way | PSNR, dB [95%] | SSIM [95%] |", "|---|---|---|"]
    for way in ways:
        psnr = "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**figure(report, way, "psnr"))
        ssim = "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**figure(report, way, "ssim"))
        lines.append(f"| {LABELS[way]} | {psnr} | {ssim.replace('0.', '.')} |")
    return "\n".join(lines)


def put_table(path: Path, report: dict) -> None:
    """Put the table between the marks of a file; SystemExit where they are not there."""
    text = path.read_text()
    before, mark, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not mark or not end:
        raise SystemExit(f"{path} has no line {MARKS[0]!r} with {MARKS[1]!r} below it")
    path.write_text(f"{before}{mark}\n{readme_table(report)}\n{end}{after}")


def main() -> int:
    """Measure the parts that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, type=Path)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--ablations", type=Path, help="weights of equal training")
    parser.add_argument("--episodes", type=int, default=60, help="of the test split")
    parser.add_argument("--parts", default="table,views,confidence,mount,temporal")
    parser.add_argument("--out", default="runs/nano/fidelity")
    parser.add_argument("--picture")
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    names = args.parts.split(",")
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if "ablation" in names and args.ablations is None:
        parser.error("the part ablation wants --ablations, or leave it out of --parts")
    bench = Bench(args)
    for name in names:
        PARTS[name](bench)
    if args.readme and "table" in bench.results:
        put_table(args.readme, bench.results["table"])
    if args.json:
        tree = {"checks": bench.checks, "reports": bench.results}
        args.json.write_text(json.dumps(tree, indent=1) + "\n")
    return int(not all(check["holds"] for check in bench.checks))


if __name__ == "__main__":
    sys.exit(main())
