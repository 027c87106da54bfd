"""`wristaugment retry` makes the bad records alone, and leaves the tree of an untroubled run."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from format_kinds import KINDS, SIZE
from wristaugment.jobs import cli, run
from wristaugment.jobs.actor import ShardActor
from wristaugment.jobs.ledger import Ledger
from wristaugment.jobs.work import Work
from wristaugment.readers import open_dataset
from wristaugment.readers.episode import Record, WristStream
from wristaugment.readers.errors import SourceError
from wristaugment.writers import hdf5

VIDEO = ("droid-raw", "lerobot-v2.1", "lerobot-v3.0")
SINGLE = "aloha"  # a shard is one record: there is none to take over
BY_NAME = {kind.name: kind for kind in KINDS}


@dataclass
class Noisy:
    """An augmenter of noise, in which a pixel that is encoded twice shows.

    Attributes:
        fails: raises for these records. calls: the records that it was given.
    """

    fails: set[Record] = field(default_factory=set)
    calls: list[Record] = field(default_factory=list)
    recipe = SimpleNamespace(generator="noise", wrist_size=SIZE)

    def __call__(self, episode, *, seed, pose="auto", geometry="auto", progress=None):
        self.calls.append(episode.record)
        if episode.record in self.fails:
            raise SourceError("no usable camera", key="cam", todo="name another")
        rng = np.random.default_rng(seed)
        T = episode.length
        frames = rng.integers(0, 256, (T, *SIZE, 3), dtype=np.uint8)
        valid = np.arange(T) != 2
        frames[2] = 0
        coverage = rng.random(T, dtype=np.float32)
        told = np.where(valid, rng.random(T), np.nan).astype(np.float32)
        return WristStream(frames, valid, coverage, notes={"pose": "noise"}, confidence=told)


@dataclass
class Lab:
    """Runs the command line in this process, with an augmenter of noise.

    Attributes:
        noisy: the augmenter. said: what actors said of the last command's takeovers.
    """

    noisy: Noisy
    said: list[str] = field(default_factory=list)

    def __call__(self, command: str, path: Path, out: Path, *more: str) -> int:
        self.noisy.calls.clear()
        self.said.clear()
        words = f"{command} --data-dir {path} --out {out} --recipe constant --events none"
        return cli.main([*words.split(), "--wrist-size", f"{SIZE[0]}x{SIZE[1]}", *more])


@pytest.fixture
def lab(monkeypatch) -> Lab:
    lab = Lab(Noisy())
    monkeypatch.setattr(Work, "open_augmenter", lambda self: lab.noisy)
    # These are set for a process of its own; the tests' process gets its own values back.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))

    def made(job, args, pending, resumed, say):
        actor = ShardActor(job.work)
        for task in pending:
            staged = job.ledger.grant(task.split, task.index)
            streams = job.ledger.streams(task.split, task.index)
            outcome = actor.make_shard(task.split, task.index, staged, streams, None, args.retry)
            assert outcome.kind == "done", outcome
            if "takeover" in outcome.facts:
                lab.said.append(outcome.facts["takeover"])
            job.ledger.publish(task.split, task.index, staged, job.plan["place"], outcome.entry)
            yield task, outcome.entry

    monkeypatch.setattr(run, "_made", made)
    return lab


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def shards(path: Path) -> list[list[Record]]:
    """The records of a dataset, shard by shard."""
    source = open_dataset(path)
    return [
        [raw.record for raw in source.records(shard)]
        for split in source.splits
        for shard in split.shards
    ]


def create(kind, folder: Path) -> Path:
    """A dataset that has a shard of several records, unless the format has none such."""
    path = kind.create(folder)
    if kind.name == "libero":  # a file a task, and no task twice in the corpus
        into, other = sorted(path.rglob("*.hdf5"))[:2]
        with h5py.File(into, "r+") as file, h5py.File(other) as source:
            source.copy("data/demo_0", file["data"], "demo_1")
    return path


def largest(path: Path) -> list[Record]:
    """The records of the first shard that has most."""
    return max(shards(path), key=len)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request):
    return request.param


def test_only_the_bad_record_is_made_again_and_the_tree_is_the_same(kind, tmp_path, lab):
    path = create(kind, tmp_path / "source")
    assert lab("run", path, tmp_path / "whole") == 0
    group = largest(path)
    bad = group[len(group) // 2]
    out = tmp_path / "out"
    lab.noisy.fails = {bad}
    assert lab("run", path, out) == 3
    assert tree(out) != tree(tmp_path / "whole")
    lab.noisy.fails = set()
    assert lab("retry", path, out) == 0
    assert tree(out) == tree(tmp_path / "whole")
    [said] = lab.said
    if kind.name in (*VIDEO, SINGLE):
        assert lab.noisy.calls == group and "every episode" in said
        return
    assert len(group) > 1 and lab.noisy.calls == [bad]
    count = len(group) - 1
    assert said == f"takes over {count} episode{'s' if count > 1 else ''}, makes 1"


def test_a_record_that_fails_again_costs_its_neighbours_nothing(kind, tmp_path, lab):
    path = create(kind, tmp_path / "source")
    group = largest(path)
    lab.noisy.fails = {group[0]}
    assert lab("run", path, tmp_path / "out") == 3
    before = tree(tmp_path / "out")
    assert lab("retry", path, tmp_path / "out") == 3
    assert tree(tmp_path / "out") == before
    assert lab.noisy.calls == (group if kind.name in VIDEO else [group[0]])


def test_a_published_shard_that_was_damaged_is_made_again_whole(kind, tmp_path, lab):
    path, out = create(kind, tmp_path / "source"), tmp_path / "out"
    assert lab("run", path, tmp_path / "whole") == 0
    group = largest(path)
    lab.noisy.fails = {group[-1]}
    assert lab("run", path, out) == 3
    place = json.loads((out / ".wristaugment" / "plan.json").read_text())["place"]
    entry = Ledger(out).entry(group[0].split, group[0].shard)
    name = max(entry["result"]["files"], key=lambda name: ("wrist" in name, name))
    victim = out / place / name
    if victim.is_dir():
        victim = max((p for p in victim.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4  # its length stays
    victim.write_bytes(data)
    lab.noisy.fails = set()
    assert lab("retry", path, out) == 0
    assert lab.noisy.calls == group
    assert tree(out) == tree(tmp_path / "whole")
    if kind.name not in (*VIDEO, SINGLE):
        assert "not what was published" in lab.said[0]


def test_what_is_left_out_shifts_the_rest_and_a_repaired_source_is_seen(tmp_path, lab):
    path, out = BY_NAME["rlds"].create(tmp_path / "source"), tmp_path / "out"
    source = open_dataset(path)
    shard = max((s for split in source.splits for s in split.shards), key=lambda s: s.records)
    assert shard.records > 2
    whole = shard.path.read_bytes()
    raws = list(source.records(shard))
    # The middle one cannot be read, so that the copy holds the others only; and the last fails.
    damaged = bytearray(whole)
    damaged[whole.index(raws[1].payload) + len(raws[1].payload) // 2] ^= 4
    shard.path.write_bytes(damaged)
    lab.noisy.fails = {raws[2].record}
    assert lab("run", path, out) == 3
    lab.noisy.fails = set()
    assert lab("retry", path, out) == 3
    assert lab.noisy.calls == [raws[2].record]
    assert lab("run", path, tmp_path / "damaged") == 3
    assert tree(out) == tree(tmp_path / "damaged")
    # The source is repaired: its second record is made, the others are taken over.
    shard.path.write_bytes(whole)
    assert lab("retry", path, out) == 0
    assert lab.noisy.calls == [raws[1].record]
    assert lab("run", path, tmp_path / "whole") == 0
    assert tree(out) == tree(tmp_path / "whole")


def test_a_good_record_whose_source_was_changed_is_made_again(tmp_path, lab):
    path, out = BY_NAME["robomimic"].create(tmp_path / "source"), tmp_path / "out"
    group = largest(path)
    lab.noisy.fails = {group[0]}
    assert lab("run", path, out) == 3
    source = open_dataset(path)
    raw = next(raw for raw in source.records(source.splits[0].shards[0]) if raw.record == group[1])
    with h5py.File(source.file_of(raw.record), "r+") as file:
        file[raw.group]["actions"][0] += 1.0  # as large as before, which is all a plan looks at
    lab.noisy.fails = set()
    assert lab("retry", path, out) == 0
    assert lab.noisy.calls == group[:2]


def test_what_a_filter_that_may_lose_something_has_packed_is_made_again(tmp_path, lab, monkeypatch):
    path, out = BY_NAME["robomimic"].create(tmp_path / "source"), tmp_path / "out"
    with h5py.File(path if path.is_file() else next(path.rglob("*.hdf5")), "r+") as file:
        for demo in file["data"].values():
            for key in [key for key in demo["obs"] if key.endswith("image")]:
                frames = demo["obs"][key][()]
                del demo["obs"][key]
                chunks = (1, *frames.shape[1:])
                demo["obs"].create_dataset(key, data=frames, chunks=chunks, compression="gzip")
    group = largest(path)
    lab.noisy.fails = {group[0]}
    assert lab("run", path, out) == 3
    lab.noisy.fails = set()
    # What loses something is a plugin: gzip stands for one here.
    with monkeypatch.context() as patch:
        patch.setattr(hdf5, "_LOSSLESS", frozenset())
        assert lab("retry", path, out) == 0
    assert lab.noisy.calls == group
    lab.noisy.fails = {group[0]}
    assert lab("run", path, tmp_path / "again") == 3
    lab.noisy.fails = set()
    assert lab("retry", path, tmp_path / "again") == 0
    assert lab.noisy.calls == group[:1] and tree(out) == tree(tmp_path / "again")
