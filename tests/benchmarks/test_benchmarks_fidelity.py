"""The fidelity benchmark: which bounds it sees missed, and what it puts into the README."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "fidelity.py"


@pytest.fixture(scope="module")
def fidelity():
    spec = importlib.util.spec_from_file_location("benchmark_fidelity", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def around(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def report(fidelity, psnr: float, best: float, **more) -> dict:
    """nano at `psnr`, the projection at `best`, all else below, in one report of `evaluate`."""
    ways = {way: (10.0, 0.3) for way in fidelity.LABELS}
    ways |= {"nano": (psnr, 0.7), "projection": (best, 0.5)}
    rows = {
        way: {"psnr": around(db, 1.25), "ssim": around(ssim, 0.02)}
        for way, (db, ssim) in ways.items()
    }
    rows["nano"] |= more
    return {"recipes": rows}


def bench(fidelity, folder: Path, **reports: dict):
    """A bench that finds these reports already made."""
    for name, tree in reports.items():
        (folder / f"{name}.json").write_text(json.dumps(tree))
    return fidelity.Bench(Namespace(out=folder, picture=None, weights="w", corpus="c", episodes=5))


@pytest.mark.parametrize(
    ("psnr", "held"),
    [(20.0, [True, True]), (18.0, [True, False]), (16.5, [False, False])],
)
def test_a_lead_that_is_small_or_within_the_intervals_is_missed(fidelity, tmp_path, psnr, held):
    made = bench(fidelity, tmp_path, table=report(fidelity, psnr, 15.75))
    fidelity.table(made)
    assert [check["holds"] for check in made.checks] == [*held, True, True]
    assert "projection" in made.checks[0]["what"]


def test_confidence_and_time_have_their_bounds(fidelity, tmp_path):
    told = {"confidence_rank": around(0.59, 0.1), "confidence_best_half": around(1.6, 0.1)}
    made = bench(fidelity, tmp_path, confidence=report(fidelity, 20, 15, **told))
    fidelity.confidence(made)
    assert [check["holds"] for check in made.checks] == [False, True]


def test_one_and_three_anchors_are_those_of_the_same_scenes(fidelity, tmp_path, capsys):
    row = {metric: around(0.5, 0.1) for metric in ("psnr", "ssim", "coverage")}
    tree = {"recipes": {"nano": row, "projection": row}}
    reports = {f"views-{name}": tree for name in ("1", "2", "1-2-3")}
    made = bench(fidelity, tmp_path, **reports)
    made.args.corpus = tmp_path / "corpus"
    called = []
    made.wristaugment = lambda *words: called.append([str(word) for word in words])
    with pytest.raises(SystemExit, match=r"has no simulate\.json"):
        fidelity.views(made)
    told = made.args.corpus / "droid_101" / "1.0.1" / "simulate.json"
    told.parent.mkdir(parents=True)
    told.write_text(json.dumps({"splits": {"test": {"steps": 9, "seed": 4}}}))
    fidelity.views(made)
    [words] = called
    assert "--steps 9" in " ".join(words) and "--seed 4" in " ".join(words)
    assert words[0] == "simulate" and " ".join(words).count("--views 3") == 1
    assert "--split test" in " ".join(words) and "--episodes 5" in " ".join(words)
    assert list(made.results["views"]) == ["1", "2", "1, 2, 3"]
    assert "0.500 [0.400, 0.600]" in capsys.readouterr().out
    # Without the reports every case is measured with its own anchors.
    (tmp_path / "views-1-2-3.json").unlink()
    (tmp_path / "views-1-2-3.partial").write_text(json.dumps(tree))
    fidelity.views(made)
    keys = [word for word in called[-1] if word.startswith("observation/exterior")]
    assert keys == [f"observation/exterior_image_{n}_left" for n in (1, 2, 3)]


def test_the_table_stands_between_its_marks_and_nothing_else_changes(fidelity, tmp_path):
    path = tmp_path / "README.md"
    first, last = fidelity.MARKS
    path.write_text(f"before\n{first}\nold\n{last}\nafter\n")
    fidelity.put_table(path, report(fidelity, 20.0, 15.0))
    lines = path.read_text().splitlines()
    assert (lines[0], lines[1], lines[-2], lines[-1]) == ("before", first, last, "after")
    rows = lines[2:-2]
    assert len(rows) == 2 + len(fidelity.LABELS) and "old" not in rows
    assert rows[2].startswith("| nano") and "20.00 [18.75, 21.25] | .700 [.680, .720]" in rows[2]
    assert rows[3].startswith("| bare projection")
    path.write_text("no marks")
    with pytest.raises(SystemExit, match="has no line"):
        fidelity.put_table(path, report(fidelity, 20.0, 15.0))
    assert path.read_text() == "no marks"


def test_a_corpus_that_is_not_there_is_one_line_and_no_traceback(tmp_path):
    words = ["--corpus", tmp_path / "none", "--weights", tmp_path, "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, FILE, *map(str, words), "--parts", "table"], capture_output=True, text=True
    )
    assert done.returncode == 1 and "this ended with exit status 2" in done.stderr
    assert "Traceback" not in done.stderr and not list((tmp_path / "out").iterdir())
    done = subprocess.run(
        [sys.executable, FILE, *map(str, words), "--parts", "ablation"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "wants --ablations" in done.stderr
