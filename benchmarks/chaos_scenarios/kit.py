"""What all scenarios use: processes that are swept up, trees that are compared, figures."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .source import Source, episodes_of, make_source

_MARK = "WRISTAUGMENT_CHAOS"  # in the environment of all that a scenario starts
_JOB = Path(__file__).with_name("job.py")
LIMIT = 600.0  # seconds that anything may take before it counts as stuck


class Skipped(Exception):
    """This machine lacks what the scenario needs; says what."""


class Stuck(Exception):
    """Something did not happen in time, or a process ended that should not have."""


@dataclass
class Run:
    """A process that a scenario started.

    Attributes:
        process: the child, leader of a process group of its own.
        said: the file with what it prints.
    """

    process: subprocess.Popen
    said: Path

    def wait(self, limit: float = LIMIT) -> int:
        """Its exit code, once it has ended.

        Raises:
            Stuck: it has not ended after `limit` seconds.
        """
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise Stuck(f"still runs after {limit:g} s; it said: {self.tail()}") from None

    def kill(self, *, group: bool = True) -> None:
        """kill -9 of it alone, or of its whole group."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def text(self) -> str:
        """All that it has printed."""
        return self.said.read_text(errors="replace")

    def tail(self) -> str:
        """The last of what it has printed, in one line."""
        return " | ".join(self.text().split("\n")[-6:])[-800:]


@dataclass
class Lab:
    """A temporary folder, and the processes that are started in it. Use as a context manager.

    Attributes:
        quick: whether the short form of each scenario is asked for.
        root: the temporary folder.
    """

    quick: bool
    root: Path = field(init=False)
    _mark: str = field(default_factory=lambda: secrets.token_hex(8))
    _count: int = 0

    def __enter__(self) -> Lab:
        # A short path: Ray puts sockets below it, whose names have 107 bytes at most.
        self.root = Path(tempfile.mkdtemp(prefix="chaos-"))
        return self

    def __exit__(self, *_) -> None:
        self.sweep()
        shutil.rmtree(self.root, ignore_errors=True)

    def place(self, name: str) -> Path:
        """A path below the temporary folder that nothing has."""
        self._count += 1
        return self.root / f"{self._count:04d}-{name}"

    def source(self, shards: int, episodes: int, **how) -> Source:
        """A new dataset (see `make_source`)."""
        return make_source(self.place("source"), shards, episodes, **how)

    def start(self, line: list[str], **env: str) -> Run:
        """Start a process in a group of its own; `env` is added to the environment."""
        said = self.place("said")
        own = {_MARK: self._mark, "RAY_TMPDIR": str(self.root), "PYTHONUNBUFFERED": "1"}
        with open(said, "wb") as file:
            process = subprocess.Popen(
                line,
                env={**os.environ, **own, **env},
                cwd=self.root,  # logs of jobs at URLs go to the current folder
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Run(process, said)

    def job(
        self,
        args: list[str],
        faults: dict | None = None,
        *,
        crash: str = "",
        env: dict[str, str] | None = None,
    ) -> Run:
        """Start a job; without faults it is the plain command line.

        Args:
            args: of `wristaugment`.
            faults: see job.py.
            crash: a point of the commit path at which the driver kills itself.
            env: more of the environment.
        """
        program = ["-m", "wristaugment"]
        if faults is not None:
            program = ["-P", str(_JOB), json.dumps(faults)]
        more = {"WRISTAUGMENT_CRASH_AT": crash, **(env or {})}
        return self.start([sys.executable, *program, *args], **more)

    def done(self, args: list[str], faults: dict | None = None, *, code: int = 0) -> Run:
        """Run a job to its end.

        Raises:
            Stuck: it ended with another exit code, or not at all.
        """
        run = self.job(args, faults)
        if run.wait() != code:
            raise Stuck(f"exit code {run.process.returncode}, not {code}: {run.tail()}")
        return run

    def sweep(self) -> int:
        """Kill whatever this lab has started and is still there; returns how many."""
        total = 0
        for _ in range(50):  # a process may start another while it is being looked for
            found = [pid for pid in processes() if pid != os.getpid() and self._ours(pid)]
            if not found:
                break
            total += len(found)
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        return total

    def _ours(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return f"{_MARK}={self._mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        return False


def processes() -> Iterator[int]:
    """The ids of all processes that are there and no zombies."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            yield int(entry.name)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def parent(pid: int) -> int:
    """The id of a process's parent; 0 where there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def below(pid: int) -> list[int]:
    """Every process below one."""
    parents = {child: parent(child) for child in processes()}
    found = {pid}
    while more := {child for child, above in parents.items() if above in found} - found:
        found |= more
    return sorted(found - {pid})


def title(pid: int) -> str:
    """What a process calls itself."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def actors(pid: int) -> list[int]:
    """The actors of the driver `pid` (or of the cluster that it started)."""
    return [child for child in below(pid) if title(child).startswith("ray::ShardActor")]


def rss(pid: int) -> int:
    """Bytes of a process that are in memory; 0 where it is gone."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def wait_for(happened: Callable[[], object], what: str, *, run: Run | None = None,
             limit: float = LIMIT) -> None:  # fmt: skip
    """Wait until something happens.

    Args:
        what: its name, for people.
        run: a process that must not end before.

    Raises:
        Stuck: it did not happen in time, or `run` ended.
    """
    until = time.monotonic() + limit
    while not happened():
        if run is not None and run.ended and not happened():
            code = run.process.returncode
            raise Stuck(f"exit code {code} while waiting for {what}: {run.tail()}")
        if time.monotonic() > until:
            raise Stuck(f"{limit:g} s without {what}; {run.tail() if run else ''}")
        time.sleep(0.005)


def published(out: Path) -> int:
    """How many shards a job has recorded as published."""
    return len(list((out / ".wristaugment" / "shards").glob("*.json")))


def staged(out: Path) -> bool:
    """Whether an actor is at a shard."""
    return any((out / ".wristaugment" / "staging").glob("*/*.board"))


def complete(out: Path) -> bool:
    """Whether a job says that its dataset is complete."""
    return (out / ".wristaugment" / "manifest.json").exists()


def tree(folder: Path) -> dict[str, str]:
    """Every path below a folder, folders too, with the hash of each file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        whole = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[path.relative_to(folder).as_posix()] = whole
    return found


def tree_sha256(found: dict[str, str]) -> str:
    """One hash of a whole tree: every path and every content."""
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()


@dataclass
class Expected:
    """What a job on a source must leave, whatever happens to it.

    Attributes:
        whole: the tree of an uninterrupted job.
    """

    source: Source
    whole: dict[str, str]

    @classmethod
    def of(cls, lab: Lab, source: Source, *, ray: bool = True) -> Expected:
        """From a job with one actor, to which nothing happens: the plain command line with Ray."""
        out = lab.place("whole")
        lab.done(source.args(out, "--num-actors", "1"), None if ray else {"ray": False})
        expected = cls(source, tree(out))
        if wrong := expected.wrong(out):
            raise Stuck(f"an uninterrupted job is wrong already: {wrong}")
        return expected

    def look(self, out: Path) -> dict[str, int]:
        """What is wrong with a finished copy; all zeros where nothing is.

        Returns:
            {"lost": episodes of the source that it lacks, "duplicate": episodes that it has once
            more, "invalid": those without a valid frame, "leftovers": paths that an uninterrupted
            job does not leave, "differing": paths that are missing or have other bytes}.
        """
        found = tree(out)
        there, valid = episodes_of(out)
        names = self.source.names
        return {
            "lost": sum((names - there).values()),
            "duplicate": sum((there - names).values()),
            "invalid": len(names) - len(valid),
            "leftovers": len(found.keys() - self.whole.keys()),
            "differing": sum(found.get(path) != value for path, value in self.whole.items()),
        }

    def wrong(self, out: Path) -> dict[str, int]:
        """Of `look` what is not zero."""
        return {key: value for key, value in self.look(out).items() if value}


@dataclass(frozen=True)
class Begun:
    """An episode that an actor has begun: when (monotonic clock), in which process, which one."""

    time: float
    pid: int
    place: str


def begun(log: Path) -> list[Begun]:
    """The episodes that were begun, in order, from what job.py writes to its log."""
    try:
        lines = log.read_text().split("\n")[:-1]  # behind the last line break nothing is whole
    except FileNotFoundError:
        return []
    rows = (line.split() for line in lines)
    return [Begun(float(when), int(pid), place) for when, pid, place in rows]


def manifest(out: Path) -> dict:
    """The manifest of a finished job."""
    return json.loads((out / ".wristaugment" / "manifest.json").read_text())
