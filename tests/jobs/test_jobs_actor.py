"""One actor's work on a shard, in this process: whose fault is what, and what is recorded of it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil

import numpy as np
import pytest
from wristaugment.augment.constant import ConstantAugmenter
from wristaugment.augment.recipe import get_recipe
from wristaugment.jobs import board
from wristaugment.jobs import work as works
from wristaugment.jobs.actor import ShardActor
from wristaugment.jobs.plan import edge_sha256
from wristaugment.jobs.progress import Progress, duration, size
from wristaugment.jobs.storage import FolderStorage
from wristaugment.jobs.work import Work
from wristaugment.readers.errors import SourceError


@pytest.fixture
def work(small, tmp_path) -> Work:
    return Work(
        data_dir=str(small.root),
        dataset="droid",
        anchor_keys=None,
        out=str(tmp_path / "out"),
        splits=None,
        limit=None,
        recipe="constant",
        settings=(),
        weights=None,
        device="cpu",
        wrist_key="wrist_rgb",
        size=(24, 32),
        made=(24, 32),
        pose="auto",
        geometry="auto",
        seed=0,
        replace=False,
        description="synthetic",
    )


def make(work, tmp_path, monkeypatch, augmenter=None):
    """The outcome of shard 1, made with an augmenter of the test's own."""
    if augmenter is not None:
        monkeypatch.setattr(Work, "open_augmenter", lambda self: augmenter)
    # These are set for a process of its own; the tests' process gets its own values back.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    return granted(ShardActor(work), 1, tmp_path / "staged")


def granted(actor, index, staged):
    """The outcome of a shard whose attempt is granted, as the driver does it."""
    board.grant(FolderStorage(staged.parent), staged.name)
    return actor.make_shard("train", index, str(staged))


class Faulty(ConstantAugmenter):
    """Makes grey frames, and raises `error` on its first `times` calls."""

    def __init__(self, error: BaseException, times: int):
        super().__init__(get_recipe("constant"))
        self.recipe = type(self.recipe)(**{**self.recipe.to_dict(), "wrist_size": (24, 32)})
        self.error, self.times, self.calls = error, times, 0

    def __call__(self, episode, **how):
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return super().__call__(episode, **how)


def test_a_shard_is_made_with_its_quality(work, tmp_path, monkeypatch, lab):
    outcome = make(work, tmp_path, monkeypatch)
    assert outcome.kind == "done", outcome.trace
    json.dumps(outcome.entry)
    assert [item["record"] for item in outcome.entry["quality"]] == ["train/1/0", "train/1/1"]
    assert {item["frames"] for item in outcome.entry["quality"]} == {lab.steps}
    assert outcome.entry["result"]["files"] == {
        path.name: [path.stat().st_size, None] for path in (tmp_path / "staged").iterdir()
    }
    assert not (tmp_path / "staged.fault").exists()


def test_a_fault_that_passes_leaves_no_trace(work, tmp_path, monkeypatch):
    healthy = make(work, tmp_path, monkeypatch)
    shutil.rmtree(tmp_path / "staged")
    again = make(work, tmp_path, monkeypatch, Faulty(RuntimeError("hiccup"), 1))
    assert again.entry == healthy.entry


@pytest.mark.parametrize(
    ("error", "times", "found"),
    [
        (RuntimeError("no <thing at 0x7f12ab>"), 2, "RuntimeError: no <thing at 0x...>"),
        (SourceError("no usable anchor", todo="name others"), 1, "no usable anchor"),
    ],
)
def test_a_record_that_cannot_be_made_is_listed_and_the_next_one_is_made(
    work, tmp_path, monkeypatch, error, times, found
):
    outcome = make(work, tmp_path, monkeypatch, Faulty(error, times))
    assert outcome.kind == "done"
    [bad] = outcome.entry["result"]["bad"]
    assert bad["record"] == 0 and found in bad["found"] and bad["todo"]
    assert [item["record"] for item in outcome.entry["quality"]] == ["train/1/1"]
    assert str(tmp_path) not in json.dumps(outcome.entry)


class OutOfMemoryError(RuntimeError):
    """Named as torch's own, which is told by its name since torch may not be loaded."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (MemoryError(), "failed"),
        (OutOfMemoryError("CUDA out of memory"), "failed"),
    ],
)
def test_what_is_the_machines_fault_is_not_put_on_the_record(
    work, tmp_path, monkeypatch, error, kind
):
    assert make(work, tmp_path, monkeypatch, Faulty(error, 99)).kind == kind


def test_weights_that_do_not_load_are_refused_without_another_try(work, tmp_path, monkeypatch):
    def broken(self):
        raise ValueError("reconstruction.safetensors: not a readable file")

    monkeypatch.setattr(Work, "open_augmenter", broken)
    outcome = make(work, tmp_path, monkeypatch)
    assert outcome.kind == "refused" and "reconstruction.safetensors" in outcome.text


def test_seeds_reach_the_frames_and_do_not_depend_on_the_order(work, tmp_path, monkeypatch):
    actor = ShardActor(work)
    shas, count = {}, itertools.count()
    for index in (2, 0, 2):
        outcome = granted(actor, index, tmp_path / f"s{next(count)}")
        shas.setdefault(index, set()).add(outcome.entry["result"]["facts"]["added_sha256"])
    assert [len(found) for found in shas.values()] == [1, 1]
    other = ShardActor(Work(**{**work.__dict__, "seed": 1}))
    outcome = granted(other, 2, tmp_path / "other")
    assert outcome.entry["result"]["facts"]["added_sha256"] not in shas[2]


def test_an_actor_computes_with_one_thread(monkeypatch):
    import torch

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        works.after_loading("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_the_cheap_hash_sees_both_ends_and_the_length_of_a_large_file(tmp_path):
    path = tmp_path / "shard"
    data = bytearray(random.Random(0).randbytes(300_000))
    path.write_bytes(data)
    seen = {edge_sha256(path)}
    for place in (0, 16_383, 299_999, 284_000):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        seen.add(edge_sha256(path))
    path.write_bytes(data + b"\0")
    seen.add(edge_sha256(path))
    assert len(seen) == 6


def test_constant_frames_differ_by_seed_and_step(work):
    class Episode:
        length, anchors = 5, ()

    augmenter = ConstantAugmenter(get_recipe("constant"))
    one, other = augmenter(Episode, seed=1), augmenter(Episode, seed=2)
    assert one.frames.shape == (5, *augmenter.recipe.wrist_size, 3)
    assert one.frames.dtype == np.uint8 and one.valid.all()
    assert len({frame.tobytes() for frame in one.frames}) == 5
    assert not np.array_equal(one.frames, other.frames)


def test_progress_speaks_rarely_where_there_is_no_terminal(tmp_path):
    with open(tmp_path / "log", "w") as log:
        progress = Progress(100, 20, stream=log, every=0.0)
        progress.update(60)
        progress.every = 3600.0
        progress.update(61)
        progress.close()
    [line] = (tmp_path / "log").read_text().splitlines()
    assert line.startswith("60/100 episodes") and "left" in line


def test_figures_for_people():
    assert [duration(s) for s in (5, 600, 7200, 200_000)] == ["5 s", "10 min", "2.0 h", "2.3 days"]
    assert [size(n) for n in (12, 1500, 1.7e12)] == ["12 bytes", "1.5 kB", "1.7 TB"]
