"""benchmarks/scale.py makes what it measures, and measures it."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("scale", FOLDER / "scale.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "scale", module)
    spec.loader.exec_module(module)
    return module


def test_a_small_one_is_planned_and_looked_at(scale, tmp_path):
    report = scale.measure(tmp_path, episodes=80, shards=20)
    assert set(report["runs"]) == {
        "plan", "status (none)", "status (half)", "status (all)", "resume (half)",
    }  # fmt: skip
    assert report["plan_bytes"] > 1000 and all(row["bytes"] for row in report["runs"].values())


@pytest.mark.parametrize("name", ["calvin", "lerobot-v2.1", "lerobot-v3.0", "droid-raw"])
def test_a_small_one_of_every_format_is_a_dataset(scale, tmp_path, name):
    from scale_formats import make
    from wristaugment.readers import open_dataset

    source = open_dataset(make(name, tmp_path, 120))
    assert sum(split.records for split in source.splits) == 120
    first = source.splits[0].shards[0]
    assert next(source.records(first)).error is None
