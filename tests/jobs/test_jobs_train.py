"""`wristaugment train` as users start it: learns, is killed and resumed, stops, runs on two ranks.

The corpus in tests/fixtures/corpus was made by `wristaugment simulate --depth` with pictures of
half the size (scene.HEIGHT, WIDTH = 90, 160).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from wristaugment.augment.schedule import DEFAULTS
from wristaugment.jobs import cli

HERE = Path(__file__).resolve().parents[1]
CORPUS = HERE / "fixtures" / "corpus"
NANO = HERE.parent / "models" / "weights" / "nano"
SOURCE = ("--dataset", "droid", "--data-dir", str(CORPUS))
LIMIT = 600.0  # seconds for anything to happen
# No warm-up, and a line a step, so that a few steps have something to show.
SHORT = ("--log-every", "1", "--warmup", "0", "--threads", "1")
OPTIONS = {
    "reconstruction": ("--save", "3", "--steps", "8", "--batch", "1", "--episodes", "1", *SHORT),
    "generation": ("--save", "4", "--steps", "10", "--batch", "1", *SHORT),
}


def command(stage: str, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "wristaugment", "train", stage, *SOURCE, "--out", str(out), *more]


@contextlib.contextmanager
def running(line: list[str]):
    """A training in a process group of its own; killed whatever happens."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, start_new_session=True, env=env, **pipes) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def finish(process: subprocess.Popen) -> str:
    said, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, errors
    return said


def log(out: Path, stage: str) -> list[dict]:
    path = out / stage / "log.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def figures(out: Path, stage: str) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in log(out, stage)]


def wait_for_step(process: subprocess.Popen, out: Path, stage: str, step: int) -> None:
    """Until the log has `step`'s line; the process must not end before."""
    until = time.monotonic() + LIMIT
    while not any(line["step"] >= step for line in log(out, stage)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


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
    return {child: names[child] for child in found - {pid} if child in names}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with nano's first stage, for the second."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copyfile(NANO / "reconstruction.safetensors", folder / "reconstruction.safetensors")
    return folder


@pytest.mark.parametrize("stage", ["reconstruction", "generation"])
def test_it_learns_and_killed_it_goes_on_to_the_same_numbers(stage, prepared, tmp_path):
    kept, whole, killed = int(OPTIONS[stage][1]), tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        shutil.copytree(prepared, out)
    with running(command(stage, whole, *OPTIONS[stage])) as first:
        line = command(stage, killed, *OPTIONS[stage])
        with running(line) as second:
            # There is a checkpoint, and more was done since.
            wait_for_step(second, killed, stage, kept + 1)
            os.killpg(second.pid, signal.SIGKILL)
            assert second.wait() == -signal.SIGKILL
        assert (killed / stage / "checkpoint.pt").exists()
        with running(line) as third:
            said = finish(third)
        finish(first)
    assert f"weights: {killed / stage}.safetensors" in said
    found = figures(killed, stage)
    assert found == figures(whole, stage)
    losses = [line["loss"] for line in found]
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3]), losses
    ours, theirs = (load_file(out / f"{stage}.safetensors") for out in (killed, whole))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    again = torch.load(killed / stage / "checkpoint.pt", weights_only=True)
    assert again["step"] == len(found)
    assert (killed / stage / "tensorboard").is_dir()
    # A finished training is not begun again, and no other is mistaken for it.
    other = command(stage, killed, *OPTIONS[stage], "--rate", "1e-5")
    done = subprocess.run(other, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 2 and "holds another training" in done.stderr
    usual = DEFAULTS["nano", stage].schedule().rate
    assert f"rate is {usual} there and 1e-05 here" in done.stderr


def test_two_workers_are_stopped_and_go_on_to_what_one_reaches(prepared, tmp_path):
    stage, alone, ranks = "reconstruction", tmp_path / "alone", tmp_path / "ranks"
    options = ("--steps", "8", "--batch", "1", "--save", "100", *SHORT)
    line = command(stage, ranks, *options, "--workers", "2")
    one = running(command(stage, alone, *options, "--accumulate", "2"))
    with one as single, running(line) as process:
        wait_for_step(process, ranks, stage, 1)
        workers = [p for p, name in descendants(process.pid).items() if "RayTrainWorker" in name]
        assert len(workers) == 2
        for worker in workers:
            loaded = Path(f"/proc/{worker}/maps").read_text()
            assert "libtorch" in loaded and "tensorflow" not in loaded
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=LIMIT)
        finish(single)
    assert process.returncode == 75, errors
    assert "run the same command to go on" in said and "step 1: loss" in said
    saved = torch.load(ranks / stage / "checkpoint.pt", weights_only=True)
    assert 1 <= saved["step"] < 8
    with running([*line, "--json", "-"]) as process:
        reached = json.loads(finish(process))
    assert reached["validation"]["depth_cm_rays"] > 0
    left = {path.name for path in (ranks / stage).iterdir()}
    assert left == {"checkpoint.pt", "lock", "log.jsonl", "plan.json", "tensorboard"}
    for found, wanted in zip(figures(ranks, stage), figures(alone, stage), strict=True):
        assert found == pytest.approx(wanted, rel=1e-3)
    ours, theirs = (load_file(out / f"{stage}.safetensors") for out in (ranks, alone))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


def test_what_a_worker_was_refused_for_is_said_as_it_would_be_here():
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import WorkerGroupError
    from wristaugment.jobs.distribute import _in_words
    from wristaugment.jobs.output import DiskError, JobError
    from wristaugment.readers.errors import SourceError

    def told(error: Exception) -> BaseException:
        wrapped = UserExceptionWithTraceback(error, "Traceback ...")
        return _in_words(pickle.loads(pickle.dumps(WorkerGroupError("it failed", {1: wrapped}))))

    refused = told(SourceError("was trained with other settings", file="a.pt", todo="use those"))
    assert isinstance(refused, SourceError) and str(refused).startswith("a.pt: was trained")
    assert isinstance(told(OSError(errno.ENOSPC, "No space left")), DiskError)
    other = told(RuntimeError("CUDA error\nout of luck"))
    assert isinstance(other, JobError) and "RuntimeError: out of luck" in str(other)


def refused(capsys, tmp_path, *more: str, stage: str = "reconstruction") -> str:
    """The one line that a refused training gets."""
    out = tmp_path / "out"
    assert cli.main(["train", stage, *SOURCE, "--out", str(out), *more]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("wristaugment: error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--recipe", "mega"], "unknown recipe 'mega'"),
        (["--recipe", "constant"], "there is no training of reconstruction for recipe 'constant'"),
        (["--workers", "0"], "--workers"),
        (["--accumulate", "0"], "--accumulate"),
        (["--steps", "-1"], "--steps"),
        (["--rate", "3"], "--rate"),
        (["--validate-every", "-1"], "--validate-every"),
        (["--split", "holdout"], "holdout"),
        (["--validation", "holdout"], "holdout"),
        (["--init", "/nowhere.safetensors"], "/nowhere.safetensors"),
        (["--lora"], "'--lora'"),
        (["--full"], "'--full'"),
        (["--weights", "/nowhere"], "'--weights'"),
        (["--cache", "/nowhere"], "'--cache'"),
        (["--address", "127.0.0.1:9"], "give --workers"),
        (
            ["--workers", "2", "--address", "127.0.0.1:9"],
            "cannot reach a Ray cluster at 127.0.0.1:9",
        ),
    ],
)
def test_bad_options_are_one_line(capsys, tmp_path, more, said):
    assert said in refused(capsys, tmp_path, *more)
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network_are_refused(capsys, tmp_path):
    other = str(NANO / "generation.safetensors")
    assert "not the weights of this network" in refused(capsys, tmp_path, "--init", other)
    assert not (tmp_path / "out").exists()


def test_the_second_stage_needs_the_first(capsys, tmp_path):
    assert "train reconstruction" in refused(capsys, tmp_path, stage="generation")


def test_only_one_training_at_a_time_writes_to_a_folder(capsys, tmp_path):
    import fcntl

    folder = tmp_path / "out" / "reconstruction"
    folder.mkdir(parents=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another training is writing here" in refused(capsys, tmp_path)


def test_a_stage_can_be_plugged_in(capsys, tmp_path, monkeypatch):
    from wristaugment.jobs import stages, video_stages

    seen = []

    def train(job):
        seen.append(job)
        weights = job.out / f"{job.stage}.safetensors"
        weights.write_bytes(b"weights")
        return weights, {"figure": 2.0}

    stage = stages.Stage(
        lambda job: seen.append("check"),
        lambda job, check: seen.append("prepare"),
        train,
        options=frozenset({"tuning", "weights"}),
    )
    monkeypatch.setitem(video_stages.VIDEO_STAGES, ("video-dit", "generation"), stage)
    line = ["train", "generation", *SOURCE, "--out", str(tmp_path), "--recipe", "paper"]
    assert cli.main([*line, "--weights", str(tmp_path), "--precision", "fp32"]) == 0
    assert "figure: 2" in capsys.readouterr().out
    assert seen[:2] == ["check", "prepare"]
    job = seen[2]
    assert (job.tuning, job.schedule.rate, job.schedule.batch) == ("lora", 1e-5, 4)
    assert not job.schedule.bf16 and job.validation == "val" and job.weights == tmp_path


def test_asked_to_stop_it_finishes_the_step_and_goes_on(capsys, tmp_path, monkeypatch):
    """With a network of one layer, in this process; the signal is real."""
    from wristaugment.augment.training import train as loop
    from wristaugment.jobs import stages

    steps = []

    def train(job):
        network = torch.nn.Linear(2, 1)

        def losses(step, generator):
            steps.append(step)
            if len(steps) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return {"loss": network(torch.randn(4, 2, generator=generator)).square().mean()}

        loop(network, losses, job.schedule, job.folder)
        job.out.joinpath("reconstruction.safetensors").write_bytes(b"weights")
        return job.out / "reconstruction.safetensors", {}

    stage = stages.Stage(lambda job: None, lambda job, check: None, train)
    monkeypatch.setitem(stages.STAGES, ("wrist-dit", "reconstruction"), stage)
    line = ["train", "reconstruction", *SOURCE, "--out", str(tmp_path), "--steps", "5"]
    assert cli.main(line) == 75
    assert "interrupted at step 3 of 5; run the same command to go on" in capsys.readouterr().out
    assert cli.main(line) == 0
    assert steps == [0, 1, 2, 3, 4]


def test_help_shows_the_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    said = capsys.readouterr().out
    assert "paper reconstruction: 30000 steps, batch 4, accumulate 3, rate 2e-05" in said
