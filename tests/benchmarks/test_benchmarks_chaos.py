"""The chaos benchmark: what it sees when something is wrong, and that its figures come out."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def chaos():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_chaos", FOLDER / "chaos.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture
def lab(chaos):
    with chaos.Lab(True) as lab:
        yield lab
    assert not lab.root.exists()


@pytest.fixture
def made(chaos, lab):
    """(what a job must leave, a copy that is whole)."""
    from chaos_scenarios.kit import Expected, tree

    source = lab.source(3, 4)
    first, second = lab.place("first"), lab.place("second")
    for out in (first, second):
        lab.done(source.args(out), {"ray": False})
    expected = Expected(source, tree(first))
    assert not expected.wrong(second)
    return expected, second


def test_what_is_lost_twice_or_left_over_is_seen(made):
    expected, out = made
    shards = sorted(out.glob("chaos/1.0.0/*tfrecord*"))
    data = [path.read_bytes() for path in shards]
    shards[0].write_bytes(data[1])
    assert expected.wrong(out) == {"lost": 4, "duplicate": 4, "invalid": 4, "differing": 1}
    shards[0].write_bytes(data[0])
    left = out / ".wristaugment" / "staging" / "abc"
    left.mkdir(parents=True)
    assert expected.wrong(out) == {"leftovers": 2}
    left.rmdir()
    left.parent.rmdir()
    (out / ".wristaugment" / "README.md").write_text("another")
    assert expected.wrong(out) == {"differing": 1}


def test_a_file_that_is_half_there_is_corrupt_and_one_in_staging_is_not(chaos, made):
    from chaos_scenarios.disks import corrupt

    expected, out = made
    (out / ".wristaugment" / "manifest.json").unlink()
    half = out / ".wristaugment" / "staging" / "abc" / "1-train-00000"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    assert corrupt(expected, out) == 0
    shard = next(out.glob("chaos/1.0.0/*tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert corrupt(expected, out) == 1


def test_rates_and_growth_leave_out_the_start(chaos):
    from chaos_scenarios.pace import Timed

    # Slow and small at first; then a hundredth of a second an episode, and 3 % more memory.
    starts = [float(n) for n in range(300)] + [300 + n / 100 for n in range(2700)]
    timed = Timed(seconds=400.0, starts=starts)
    timed.memory[0] = [(50, 1), (500, 100), (900, 100), (2500, 103), (2999, 103)]
    timed.memory[17] = [(200, 200), (2900, 200)]
    assert timed.steady() == pytest.approx(0.01)
    assert timed.growth() == {"driver": [0.03], "actors": [0.0]}


def test_processes_are_swept_up_whatever_group_they_are_in(lab):
    from chaos_scenarios.kit import alive, below, wait_for

    program = "import subprocess, sys; subprocess.Popen(['sleep', '300'], start_new_session=True)"
    run = lab.start([sys.executable, "-c", f"{program}; sys.stdin.read()"])
    wait_for(lambda: below(run.process.pid), "a child", run=run)
    pids = [run.process.pid, *below(run.process.pid)]
    assert len(pids) == 2 and lab.sweep() >= 2
    assert not any(alive(pid) for pid in pids)


def test_the_exit_code_tells_what_failed_from_what_could_not_be_tried(chaos):
    ok, failed, skipped = {"ok": True}, {"ok": False}, {"ok": None, "skipped": "no root"}
    assert chaos.exit_code({"a": ok, "b": ok}) == 0
    assert chaos.exit_code({"a": ok, "b": skipped}) == 3
    assert chaos.exit_code({"a": skipped, "b": failed, "c": ok}) == 1


def test_a_scenario_that_breaks_or_lacks_its_means_is_a_result(chaos, monkeypatch, capsys):
    from chaos_scenarios.kit import Skipped

    def broken(lab):
        raise RuntimeError("no such luck")

    def impossible(lab):
        raise Skipped("only root may mount a tmpfs")

    monkeypatch.setattr(chaos, "SCENARIOS", {"broken": broken, "impossible": impossible})
    assert chaos.main(["--json", "-", "--quick"]) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["broken"]["ok"] is False and "no such luck" in report["broken"]["error"]
    assert report["impossible"]["ok"] is None and "root" in report["impossible"]["skipped"]
    assert "NOT OK" in err and "skipped" in err


def test_a_scenario_runs_as_a_script():
    line = [sys.executable, FOLDER / "chaos.py", "--quick", "--only", "segfault", "--json", "-"]
    env = {**os.environ, "TMPDIR": "/tmp"}  # a short path: sockets lie below it
    done = subprocess.run(line, capture_output=True, text=True, env=env)
    found = json.loads(done.stdout)["segfault"]
    assert done.returncode == 0 and found["ok"], done.stderr
    assert found["records"] == 1000 and found["quarantined"] == 1 and found["good"] == 999
