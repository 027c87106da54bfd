"""The training loop itself: ranks, micro-batches, what is kept, journals, stops, validation."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboardX.proto import event_pb2
from torch import nn
from wristaugment.augment.checkpoint import WeightAverage, load_checkpoint
from wristaugment.augment.schedule import DEFAULTS, Schedule
from wristaugment.augment.training import Stopped, step_generator, stop_when, train
from wristaugment.readers.errors import SourceError
from wristaugment.readers.tfrecord import read_frames

SCHEDULE = Schedule(steps=12, batch=4, rate=1e-2, warmup=2, save=4, bf16=False, log=5)


class Partly(nn.Module):
    """A frozen backbone, dropout, a head, and a part that only some micro-batches use."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.BatchNorm1d(5))
        self.backbone.requires_grad_(False)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(5, 1)
        self.extra = nn.Linear(3, 1)
        self.checkpointed = False

    def enable_gradient_checkpointing(self):
        self.checkpointed = True


def losses_of(network: Partly, batch: int, seen: list | None = None):
    def losses(step, generator):
        x = torch.randn(batch, 3, generator=generator)
        if seen is not None:
            seen.append(x)
        found = network.head(network.drop(network.backbone(x)))
        with_extra = bool(torch.rand((), generator=generator) < 0.5)
        if with_extra:
            found = found + network.extra(x)
        loss = (found - x.sum(1, keepdim=True)).square().mean()
        return {"loss": loss, f"loss_{'extra' if with_extra else 'plain'}": loss.detach()}

    return losses


def run(folder: Path, schedule: Schedule = SCHEDULE, **more):
    network = Partly()
    return train(network, losses_of(network, schedule.batch), schedule, folder, **more), network


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def stop_after(step: int):
    calls = Counter()

    def asked():
        calls["step"] += 1
        return calls["step"] >= step

    stop_when(asked)


@pytest.fixture(autouse=True)
def never_stopped():
    yield
    stop_when(lambda: False)


def shown(folder: Path) -> Counter:
    """(tag, step) of what TensorBoard shows: a session's start hides later points before it."""
    points: list[tuple[str, int]] = []
    for path in sorted((folder / "tensorboard").iterdir()):
        for frame in read_frames(path):
            event = event_pb2.Event.FromString(frame.payload)
            if event.HasField("session_log"):
                points = [(tag, step) for tag, step in points if step < event.step]
            points += [(value.tag, event.step) for value in event.summary.value]
    return Counter(points)


def test_it_stops_on_request_and_goes_on_to_the_same_numbers(tmp_path):
    pictures = lambda: {"made": np.full((4, 6, 3), 7, np.uint8)}
    more = {"validate": lambda: {"figure": 1.5}, "images": pictures}
    schedule = replace(SCHEDULE, validate_every=3)
    whole, network = run(tmp_path / "a", schedule, **more)
    assert lines(tmp_path / "a")[-1] == {"step": 12, "validation": {"figure": 1.5}}
    for stop, done in ((7, 7), (3, 10)):  # in the middle of a line, of a save and of neither
        stop_after(stop)
        with pytest.raises(Stopped, match=f"step {done} of 12"):
            run(tmp_path / "b", schedule, **more)
    stop_when(lambda: False)
    # Killed after more steps than the checkpoint has: half a line, and lines of steps to come.
    with open(tmp_path / "b" / "log.jsonl", "a") as log:
        log.write('{"step": 11, "loss": 0}\n{"step": 1')
    resumed, again = run(tmp_path / "b", schedule, **more)
    assert lines(tmp_path / "b") == lines(tmp_path / "a")
    for name, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    for name, value in whole.values.items():
        assert torch.equal(value, resumed.values[name]), name
    points = shown(tmp_path / "a")
    assert points["train/loss", 5] == points["validation/made", 9] == 1
    assert shown(tmp_path / "b") == points and set(points.values()) == {1}


def test_only_what_learns_is_kept(tmp_path):
    average, network = run(tmp_path)
    kept = {"head.weight", "head.bias", "extra.weight", "extra.bias"}
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    assert saved is not None
    assert saved["network"].keys() == saved["average"].keys() == average.values.keys() == kept
    untouched = Partly().state_dict()
    for name, value in network.backbone.state_dict().items():  # its statistics, too
        assert torch.equal(value, untouched[f"backbone.{name}"])


def test_an_average_of_half_precision_weights_keeps_small_steps():
    network = nn.Linear(2, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(network.weight)
    average = WeightAverage(network, 0.999)
    nn.init.constant_(network.weight, 1.0078125)
    for step in range(20_000, 20_200):
        average.update(step)
    assert 1.001 < float(average.values["weight"][0, 0]) < 1.002
    with average.applied(network):
        assert network.weight[0, 0].item() != 1.0078125
    assert network.weight[0, 0].item() == 1.0078125


def test_validation_sees_the_average_in_evaluation_mode_and_changes_nothing(tmp_path):
    network = Partly()
    seen = []

    def validate():
        torch.rand(3)  # it may draw
        seen.append((network.training, network.head.weight.detach().clone()))
        return {"figure": 1.0}

    schedule = replace(SCHEDULE, validate_every=4)
    losses = losses_of(network, schedule.batch)
    average = train(network, losses, schedule, tmp_path / "a", validate=validate)
    assert [training for training, _ in seen] == [False] * 3
    assert torch.equal(seen[-1][1], average.values["head.weight"])
    assert not torch.equal(seen[-1][1], network.head.weight)
    without, _ = run(tmp_path / "b")
    assert torch.equal(average.values["head.weight"], without.values["head.weight"])


def test_a_wild_step_is_left_out(tmp_path):
    def trained(folder, bad):
        network = Partly()
        inner = losses_of(network, 4)

        def losses(step, generator):
            found = inner(step, generator)
            return {"loss": found["loss"] * (float("inf") if step in bad else 1.0)}

        return train(network, losses, replace(SCHEDULE, log=1), folder).values

    values = trained(tmp_path / "a", {3, 6})
    assert all(torch.isfinite(value).all() for value in values.values())
    assert not torch.equal(values["head.weight"], trained(tmp_path / "b", {3})["head.weight"])
    assert [line["step"] for line in lines(tmp_path / "a") if line["loss"] is None] == [4, 7]


def test_settings_that_change_numbers_may_not_change_and_others_may(tmp_path):
    short = replace(SCHEDULE, accumulate=2)
    stop_after(5)
    with pytest.raises(Stopped):
        run(tmp_path, short)
    stop_when(lambda: False)
    for name, value in {"rate": 2e-2, "seed": 1, "betas": (0.9, 0.999), "accumulate": 3}.items():
        with pytest.raises(SourceError, match=name):
            run(tmp_path, replace(short, **{name: value}))
    run(tmp_path, replace(short, save=100, log=3, validate_every=2, checkpointing=True))
    assert lines(tmp_path)[-1]["step"] == 12


def test_a_file_that_is_no_checkpoint_or_of_another_network_is_one_line(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(SourceError, match="not a readable checkpoint") as error:
        run(tmp_path)
    assert "\n" not in str(error.value)
    run(tmp_path / "a")
    other = nn.Linear(3, 1)
    with pytest.raises(SourceError, match="of another network"):
        train(other, lambda *_: {}, SCHEDULE, tmp_path / "a")


def test_rates_by_part_and_gradient_checkpointing(tmp_path):
    network = Partly()
    before = network.extra.weight.detach().clone()
    schedule = replace(SCHEDULE, checkpointing=True, decay=0.0)
    losses = losses_of(network, 4)
    train(network, losses, schedule, tmp_path, factors={"extra": 0.0})
    assert network.checkpointed and torch.equal(network.extra.weight, before)
    assert not torch.equal(network.head.weight, Partly().head.weight)


def test_streams_are_all_different_and_the_first_is_as_it_was():
    first = [float(torch.rand((), generator=step_generator(s, t, m)))
             for s in (0, 1) for t in (0, 1, 2) for m in (0, 1, 2, 3)]  # fmt: skip
    assert len(set(first)) == len(first)
    assert step_generator(3, 7).initial_seed() == 3_000_016


RANKED = replace(SCHEDULE, accumulate=2, validate_every=6)
PROGRAM = """
import runpy, sys
from pathlib import Path
runpy.run_path(sys.argv[1])["ranked"](int(sys.argv[2]), sys.argv[3], *map(Path, sys.argv[4:]))
"""


def ranked(rank: int, port: str, *folders: Path) -> None:
    """One of two processes that train together, in one folder after the other."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", address, world_size=2, rank=rank)
    for folder in folders:
        seen: list = []
        network = Partly()
        if rank > 0:
            nn.init.ones_(network.head.weight)  # rank 0's weights are what counts
        losses = losses_of(network, RANKED.batch, seen)
        validate = lambda: {"rank": float(rank), f"r{rank}": 1.0}
        average = train(network, losses, RANKED, folder, validate=validate)
        state = {"network": network.state_dict(), "average": average.values, "seen": seen}
        torch.save(state, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
    # The group's threads end with it: one that is left when Python ends may abort the process.
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert not [name for name in names if "gloo" in name], names


def together(*folders: Path) -> list[list[dict]]:
    """What the two ranks had in the end, for each folder."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    for folder in folders:
        folder.mkdir(exist_ok=True)
    line = [sys.executable, "-c", PROGRAM, __file__]
    started = [subprocess.Popen([*line, str(rank), port, *map(str, folders)]) for rank in range(2)]
    try:
        assert [process.wait(timeout=300) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    return [[torch.load(folder / f"rank{rank}.pt") for rank in range(2)] for folder in folders]


def test_two_ranks_are_one_that_accumulates_twice_as_much(tmp_path):
    alone = replace(RANKED, accumulate=4)
    # What two ranks go on with: one was stopped in the middle of a line.
    stop_after(7)
    with pytest.raises(Stopped):
        run(tmp_path / "cut", alone)
    stop_when(lambda: False)
    ranks, resumed = together(tmp_path / "ranks", tmp_path / "cut")
    for name in ("head.weight", "head.bias", "extra.weight", "extra.bias"):
        assert torch.equal(ranks[0]["network"][name], ranks[1]["network"][name])
    seen = []
    network = Partly()
    losses = losses_of(network, alone.batch, seen)
    average = train(network, losses, alone, tmp_path / "alone")
    assert len(seen) == 12 * 4 and all(len(rank["seen"]) == 12 * 2 for rank in ranks)
    for step in range(12):
        drawn = [x for rank in ranks for x in rank["seen"][2 * step :][:2]]
        for stream in range(4):
            assert torch.equal(drawn[stream], seen[4 * step + stream])
    for found in (*ranks, *resumed):
        for name, value in average.values.items():
            torch.testing.assert_close(value, found["average"][name], rtol=1e-3, atol=1e-5)
    expected = lines(tmp_path / "alone")
    assert [line["step"] for line in expected] == [5, 10, 12]
    for folder in ("ranks", "cut"):
        trained = [line for line in lines(tmp_path / folder) if "loss" in line]
        for found, wanted in zip(trained, expected, strict=True):
            assert found == pytest.approx(wanted, rel=1e-3)
    checks = [line["validation"] for line in lines(tmp_path / "ranks") if "validation" in line]
    assert checks == [{"rank": 0.5, "r0": 1.0, "r1": 1.0}] * 2


def test_schedules_of_the_recipes():
    paper = DEFAULTS["paper", "reconstruction"].schedule()
    assert (paper.rate, paper.decay, paper.batch, paper.accumulate) == (2e-5, 0.05, 4, 3)
    assert paper.rate_at(paper.warmup) == 2e-5 and paper.rate_at(paper.steps) == 0
    official = DEFAULTS["official", "generation"].schedule(steps=1000, rate=4e-5, batch=None)
    assert official.warmup == 50 and official.clip == 1.0 and official.bf16
    assert official.rate_at(1000) == pytest.approx(1e-8) and official.rate_at(49) == 4e-5
    generation = DEFAULTS["paper", "generation"]
    assert generation.tuning == "lora" and generation.schedule().rate == 1e-5
    nano = DEFAULTS["nano", "reconstruction"].schedule()
    assert nano == Schedule(steps=2400, batch=80, rate=8e-4, warmup=100, average=0.998)
