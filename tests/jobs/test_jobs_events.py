"""The log of events, the rate and the time left, and what the last lines tell to do."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from wristaugment.jobs import cli, next_steps
from wristaugment.jobs.events import EventLog, events_path, plan_id, read
from wristaugment.jobs.progress import Progress, Rate
from wristaugment.readers.errors import SourceError

WRITER = """
import sys
from pathlib import Path
from wristaugment.jobs.events import EventLog

log = EventLog.open(Path(sys.argv[1]), job="j", who=sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    log.write("retried", number=number, reason=sys.argv[2] * (number % 7000))
"""


def test_an_event_is_a_line_that_says_when_where_and_what(tmp_path):
    path = tmp_path / "new" / "log"
    with EventLog.open(path, job="abc") as log:
        log.write("shard_published", shard="train-00003", seconds=1.5, where=Path("/a"))
        log.write("progress", per_second=float("nan"), seconds_left=float("inf"))
        log.write("suspect", reason="zwei\nZeilen \udcff")
    log.write("finished", exit_code=0)  # after the end: nothing, and no error
    lines = path.read_text().splitlines()
    first, second, third = map(json.loads, lines)
    assert list(first)[:3] == ["time", "event", "job"]
    when = datetime.fromisoformat(first["time"])
    assert first["time"].endswith("Z") and len(first["time"]) == len("2026-03-01T09:12:44.103Z")
    assert abs(datetime.now(UTC) - when) < timedelta(minutes=1)
    assert first["event"] == "shard_published" and first["job"] == "abc"
    assert first["pid"] == os.getpid() and first["host"] == os.uname().nodename
    assert (first["shard"], first["seconds"], first["where"]) == ("train-00003", 1.5, "/a")
    assert second["per_second"] is None and second["seconds_left"] is None
    assert third["reason"].startswith("zwei\nZeilen")


def test_resuming_appends_and_half_a_line_spoils_no_other(tmp_path):
    path = tmp_path / "log"
    with EventLog.open(path) as log:
        log.write("started")
    with open(path, "a") as file:
        file.write('{"time": "2026-01')  # killed in the middle, or the power was cut
    with EventLog.open(path) as log:
        log.write("started", done=3)
        log.write("finished")
    assert [event["event"] for event in read(path)] == ["started", "started", "finished"]
    assert len(path.read_text().splitlines()) == 4


def test_two_processes_append_at_once_and_every_line_parses(tmp_path):
    path, count = tmp_path / "log", 3000
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    line = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*line, who, str(count)], **pipes) for who in "ab"]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=120)
        assert writer.returncode == 0
    seen: dict[str, list[int]] = {"a": [], "b": []}
    turns, before = 0, ""
    for text in path.read_text().splitlines():
        event = json.loads(text)
        assert event["reason"] == event["who"] * (event["number"] % 7000)
        seen[event["who"]].append(event["number"])
        turns, before = turns + (event["who"] != before), event["who"]
    assert seen == {"a": list(range(count)), "b": list(range(count))}
    assert turns > 4, "they did not write at the same time"


def test_a_full_disk_costs_lines_and_not_the_job(tmp_path):
    program = """
import resource, sys
from pathlib import Path
from wristaugment.jobs.events import EventLog

log = EventLog.open(Path(sys.argv[1]))
log.write("started")
room = Path(sys.argv[1]).stat().st_size + 50  # half a line
resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
log.write("progress", episodes=1)
assert log.problem and log.lost == 1
log.write("progress", episodes=2)
assert log.problem and log.lost == 2
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
log.write("progress", episodes=3)
assert not log.problem and log.lost == 0
log.write("finished")
"""
    path = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    events = list(read(path))
    assert [event["event"] for event in events] == ["started", "progress", "finished"]
    assert events[1]["episodes"] == 3 and events[1]["lost"] == 2
    assert "lost" not in events[2]
    with EventLog.open(Path("/dev/full")) as log:
        log.write("started")
        assert "No space left" in log.problem
    (tmp_path / "file").write_text("")
    with EventLog.open(tmp_path / "file" / "log") as log:  # no folder
        assert "no log of events" in log.problem
        log.write("started")


def test_the_log_lies_beside_out_and_never_below_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert events_path("none", "out") is None
    assert events_path(None, "out/") == tmp_path / "out.events.jsonl"
    assert events_path(None, "/a/b") == Path("/a/b.events.jsonl")
    assert events_path(None, "/a/b", (3, 8)) == Path("/a/b.3-of-8.events.jsonl")
    assert events_path(None, "s3://bucket/some/copy/") == tmp_path / "copy.events.jsonl"
    assert events_path("log", "out", (3, 8)) == tmp_path / "log"
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "data").mkdir()
    for wrong in ("out/log", "link/log", "out/a/../b", "data/log", "out", "s3://bucket/log"):
        with pytest.raises(SourceError, match="--events"):
            events_path(wrong, "out", source=tmp_path / "data")
    assert plan_id({"a": 1, "b": 2}) == plan_id({"b": 2, "a": 1}) != plan_id({"a": 1, "b": 3})


class Clock:
    """Seconds as the test says."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run_for(progress: Progress, clock: Clock, seconds: float, count) -> None:
    """Let time pass in half seconds; `count` says how many are done so long after the begin."""
    began = clock.now
    while clock.now < began + seconds:
        clock.now += 0.5
        progress.update(count(clock.now - began))


def test_the_rate_forgets_the_loading_of_models_and_what_was_done_before():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(2000, 1000, stream=stream, clock=clock)
    # Five minutes of loading, then an episode every 4 s.
    run_for(progress, clock, 900, lambda t: 1000 + max(0, int((t - 300) / 4)))
    assert progress.count == 1150
    facts = progress.facts()
    assert facts["per_second"] == pytest.approx(0.25, rel=0.02)
    assert facts["seconds_left"] == pytest.approx(850 * 4, rel=0.02)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 30 and lines[0] == "1000/2000 episodes"  # one every 30 s, and no promise
    assert lines[-1] == "1150/2000 episodes, 0.25 episodes/s, about 57 min left"


def test_the_time_left_is_never_far_too_short_though_actors_finish_together():
    clock = Clock()
    progress = Progress(160, 0, workers=8, stream=io.StringIO(), clock=clock)
    for _ in range(2 * 1500):  # a minute of loading, then 8 episodes every 120 s, a moment apart
        clock.now += 0.5
        t = clock.now - 1000.0 - 60
        turn, within = divmod(max(t, 0), 120)
        progress.update(max(0, int(turn) * 8 - max(0, 8 - int(within * 2)) if turn else 0))
        left, truth = progress.facts()["seconds_left"], 20 * 120 - t
        if left is not None:
            assert left > 0.7 * truth, (t, left)
    assert progress.facts()["seconds_left"] == pytest.approx(truth, rel=0.15)


def test_a_rate_that_changes_is_followed_and_a_standstill_is_admitted():
    rate, now, made = Rate(1, 0.0), 0.0, 0
    for _ in range(500):
        now, made = now + 1, made + 1
        rate.add(now, made)
    assert rate.per_second(now) == pytest.approx(1.0)
    for _ in range(300):
        now, made = now + 5, made + 1
        rate.add(now, made)
    assert rate.per_second(now) == pytest.approx(0.2, rel=0.02)  # only the last ten minutes
    assert rate.per_second(now + 4) == rate.per_second(now)  # within what is usual
    assert rate.per_second(now + 7200) < 0.02
    assert len(rate.samples) < 130


def test_episodes_longer_than_the_window_still_have_a_rate():
    rate = Rate(4, 0.0)
    for turn in range(1, 6):
        for worker in range(4):
            rate.add(turn * 3600 + worker, turn * 4 - 3 + worker)
    assert rate.per_second(5 * 3600 + 3) == pytest.approx(4 / 3600, rel=0.01)


def test_kept_and_lost_episodes_make_no_rate():
    clock = Clock()
    progress = Progress(1000, 0, stream=io.StringIO(), clock=clock)
    clock.now += 10
    progress.update(400, kept=400)  # of a run that was killed
    assert progress.facts()["seconds_left"] is None
    for _ in range(100):
        clock.now += 2
        progress.update(progress.count + 1, kept=400)
    assert progress.facts()["per_second"] == pytest.approx(0.5, rel=0.01)
    progress.update(progress.count - 40, kept=400)  # an attempt was lost
    clock.now += 2
    progress.update(progress.count + 1, kept=400)
    assert progress.facts()["per_second"] < 0.5


def test_progress_is_an_event_every_half_minute(tmp_path):
    clock = Clock()
    with EventLog.open(tmp_path / "log", job="j") as log:
        progress = Progress(50, 0, events=log, stream=io.StringIO(), clock=clock)
        run_for(progress, clock, 95, int)
    events = list(read(tmp_path / "log"))
    assert [event["episodes"] for event in events] == [30, 60, 90]
    assert events[-1]["event"] == "progress" and events[-1]["total"] == 50
    assert events[-1]["per_second"] == pytest.approx(1.0)


RUN = ["run", "--data-dir", "/my data/it's", "--out", "out dir"]
MANY = [
    *(
        "--episodes",
        "20",
        "--split",
        "train",
        "val",
        "--replace",
        "--set",
        "steps=3",
        "static=false",
    ),
    *(
        "--num-actors",
        "4",
        "--anchor-keys",
        "image_0",
        "image_1",
        "--wrist-key=-odd",
        "--shard",
        "0/2",
    ),
    *("--seed", "7", "--record-timeout", "12.5", "--json", "-", "--address", "auto"),
]


@pytest.mark.parametrize("more", [[], MANY])
@pytest.mark.parametrize("name", ["run", "retry"])
def test_the_shown_command_is_the_one_that_was_given(more, name):
    args = cli.parser().parse_args([name, *RUN[1:], *more])
    shown = shlex.split(next_steps.command(args))
    assert shown[0] == "wristaugment"
    assert vars(cli.parser().parse_args(shown[1:])) == vars(args)
    assert "default" not in next_steps.command(args) and "--pose" not in shown


def shown_commands(text: list[str]) -> list[list[str]]:
    """The commands of this program in lines, each parsed by its own parser."""
    found = [line[line.index("wristaugment ") :] for line in text if ": wristaugment " in line]
    words = [shlex.split(line)[1:] for line in found]
    for line in words:
        cli.parser().parse_args(line)
    return words


def test_the_last_lines_say_what_to_do_next(tmp_path):
    args = cli.parser().parse_args(RUN)
    bad = {"file": "a", "record": 3, "key": "", "found": "takes longer than 7200 s, 3 times"}
    bad |= {"what": "left blank", "todo": "look at this record"}
    facts = {"shards": 9, "shards_done": 4, "format": "rlds", "folder": "/x", "bad": [bad]}

    [verify] = shown_commands(next_steps.lines("complete", args, facts))
    assert verify == ["verify", "out dir", "--source", "/my data/it's"]
    text = next_steps.lines("quarantined", args, facts)
    status, retry, again = shown_commands(text)
    assert text[0] == "1 record could not be made; the rest is complete:" and again == verify
    assert status == ["status", "out dir", "--json", "-"]
    assert retry == ["retry", *RUN[1:], "--record-timeout", "28800.0"]
    for kind, more, first in (
        ("interrupted", {"signal": "SIGTERM"}, "interrupted (SIGTERM); 4 of 9 shards are done"),
        ("disk", {"reason": "/x: No space left on device"}, "stopped by the disk: /x: No space"),
        ("internal", {"reason": "boom", "events": tmp_path / "log"}, "stopped: boom"),
    ):
        text = next_steps.lines(kind, args, facts | more)
        assert text[0].startswith(first)
        run, status = shown_commands(text)
        assert run == RUN and status == ["status", "out dir"]
    assert any(str(tmp_path / "log") in line for line in text)
    assert any("df -h 'out dir'" in line for line in next_steps.lines("disk", args, facts))
    with pytest.raises(ValueError, match="none of"):
        next_steps.lines("else", args, facts)
