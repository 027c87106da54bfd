"""The job as users start it, on a real Ray cluster: kills, actors, signals."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SHARDS = 40
# Large grey pictures: a shard then takes long enough for a kill to fall into it.
SLOW = ("--wrist-size", "480x640", "--num-actors", "1")
LIMIT = 300.0  # seconds for anything to happen


@pytest.fixture(scope="module")
def source(lab, tmp_path_factory):
    return lab.make_source(tmp_path_factory.mktemp("source"), shards=SHARDS, episodes=2)


@pytest.fixture(scope="module")
def uninterrupted(lab, source, tmp_path_factory):
    """The tree of a job with one actor that nothing happens to."""
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    done = subprocess.run(
        lab.command(*source.args(out, *SLOW)), capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr
    return lab.tree(out)


@contextlib.contextmanager
def driving(line: list[str]):
    """A driver in a process group of its own; killed whatever happens."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, start_new_session=True, **pipes) as driver:
        try:
            yield driver
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)


def published(out: Path) -> int:
    return len(list((out / ".wristaugment" / "shards").glob("*.json")))


def wait_for(driver, happened) -> None:
    """Until `happened()`; the driver must not end before."""
    until = time.monotonic() + LIMIT
    while not happened():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)


def descendants(pid: int) -> dict[int, str]:
    """Every process below `pid`, with its command line."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes().decode()
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: names[child] for child in found - {pid}}


def test_ten_kills_at_random_moments_leave_no_trace(lab, source, uninterrupted, tmp_path):
    out = tmp_path / "out"
    line = lab.command(*source.args(out, *SLOW))
    rng = random.Random(20)
    done = []
    for turn in range(10):
        before = published(out)
        with driving(line) as driver:
            if turn in (0, 5):  # while it starts
                time.sleep(rng.uniform(0.1, 3.0))
            else:  # while it works
                more = rng.randrange(3)
                wait_for(driver, lambda n=before + more: published(out) >= n and staged(out))
                time.sleep(rng.uniform(0.0, 0.15))
            os.killpg(driver.pid, signal.SIGKILL)
            assert driver.wait() == -signal.SIGKILL
        done.append(published(out))
    assert done[-1] < SHARDS, "nothing was left to resume"
    assert len(set(done)) > 4, done
    # Asked to stop, it says how to go on.
    with driving(line) as driver:
        wait_for(driver, lambda: published(out) > done[-1])
        driver.send_signal(signal.SIGTERM)
        said, _ = driver.communicate(timeout=LIMIT)
    assert driver.returncode == 75
    assert "go on: wristaugment run" in said
    assert not (out / ".wristaugment" / "staging").exists()
    last = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT)
    assert last.returncode == 0, last.stderr
    assert lab.tree(out) == uninterrupted


def staged(out: Path) -> bool:
    return any((out / ".wristaugment" / "staging").glob("*/*.board"))


def test_two_actors_of_which_one_is_killed_make_the_same_tree(
    lab, source, uninterrupted, tmp_path, capsys
):
    out = tmp_path / "out"
    args = source.args(out, *SLOW[:2], "--num-actors", "2")
    with driving(lab.command(*args)) as driver:
        wait_for(driver, lambda: published(out) > 2)
        # While it runs (it is held up for it): another driver is refused, and status tells.
        driver.send_signal(signal.SIGSTOP)
        second = subprocess.run(lab.command(*args), capture_output=True, text=True, timeout=LIMIT)
        assert second.returncode == 2 and second.stderr.count("\n") == 1
        assert "another run is writing here" in second.stderr
        state = subprocess.run(
            lab.command("status", str(out), "--json", "-"), capture_output=True, text=True
        )
        assert json.loads(state.stdout)["running"]
        actors = [p for p, name in descendants(driver.pid).items() if "ray::ShardActor" in name]
        assert len(actors) == 2
        os.kill(actors[0], signal.SIGKILL)
        driver.send_signal(signal.SIGCONT)
        _, errors = driver.communicate(timeout=LIMIT)
    assert driver.returncode == 0, errors
    assert "its actor died" in errors
    assert lab.tree(out) == uninterrupted


def test_an_actor_loads_no_tensorflow_and_a_shard_that_always_fails_ends_the_job(lab, tmp_path):
    source = lab.make_source(tmp_path / "data", shards=2, episodes=1)
    program = """
import contextlib, json, sys
from wristaugment.jobs import cli
from wristaugment.jobs.job import prepare
from wristaugment.jobs.output import JobError
from wristaugment.jobs.pool import ActorPool

args = cli.parser().parse_args(sys.argv[1:])
said, outcomes, error = [], [], ""
with contextlib.ExitStack() as stack:
    job = prepare(args, stack)
    stack.enter_context(job.ledger.opened(job.plan))
    cluster = stack.enter_context(job.start_cluster(1, 2))
    pool = ActorPool(cluster, job.work, 1, job.ledger, said.append)
    for _, outcome, staged in pool.run(job.tasks, lambda: None):
        outcomes.append([outcome.kind, outcome.facts, job.ledger.store.size(staged + "/")])
    grant = job.ledger.grant

    def taken(split, index):
        # A place that is taken: nothing the actor can do about it.
        staged = grant(split, index)
        job.ledger.store.path(staged).mkdir()
        return staged

    job.ledger.grant = taken
    try:
        list(pool.run(job.tasks[:1], lambda: None))
    except JobError as wrong:
        error = str(wrong)
print(json.dumps([outcomes, said, error]))
"""
    line = [sys.executable, "-c", program, *source.args(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=LIMIT)
    outcomes, said, error = json.loads(done.stdout.splitlines()[-1])
    assert [kind for kind, _, _ in outcomes] == ["done", "done"]
    assert all(size > 1000 for _, _, size in outcomes)
    pids = {facts["pid"] for _, facts, _ in outcomes}
    assert len(pids) == 1 and not any(facts["tensorflow"] for _, facts, _ in outcomes)
    assert len(said) == 2
    assert "shard train-00000 failed 3 times" in error and "File exists" in error
