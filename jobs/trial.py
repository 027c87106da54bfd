"""A suspect record, made alone in a child process, so that it can harm nobody and its end is seen.

`python -m wristaugment.jobs.trial` is the child: it takes the work on stdin, makes the one record,
keeps its stream, and says on stdout how it went.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from ..readers.errors import SourceError
from .failures import how_it_ended
from .streams import StreamStore
from .work import RecordMaker, Work

_LOOK = 0.5  # seconds
_BEGUN = b"begun\n"
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class Trial:
    """What came of it.

    Attributes:
        harm: how the record ended its process, as in "SIGSEGV"; "" where it did not.
        error: what else went wrong and is not the record's fault, or None.
    """

    harm: str = ""
    error: Exception | None = None


def try_alone(
    work: Work,
    split: str,
    shard: int,
    record: int,
    streams: str,
    begun: Callable[[], None],
    alive: Callable[[], None],
) -> Trial:
    """Make one record in a child process and keep its stream below OUT in the folder `streams`.

    Args:
        begun: called when the child has loaded all and begins with the record.
        alive: called about once a second; what it raises ends the child.
    """
    # What a script defines travels by value, as it does to actors.
    from ray.cloudpickle import dumps  # type: ignore[attr-defined]

    said = b""
    with subprocess.Popen(
        [sys.executable, "-m", __name__, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as child:
        try:
            assert child.stdin is not None and child.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(dumps((work, split, shard, record, streams)))
                child.stdin.close()
            while True:
                ready, _, _ = select.select([child.stdout], [], [], _LOOK)
                alive()
                if not ready:
                    continue
                data = os.read(child.stdout.fileno(), 1 << 16)
                if not data:
                    break
                if not said:
                    begun()
                said += data
            code = child.wait()
        finally:
            child.kill()
    if code != 0:
        return Trial(how_it_ended(code))
    return Trial(error=pickle.loads(said.removeprefix(_BEGUN)))


def _die_with_parent() -> None:
    """Be killed when the actor is, however that dies; at once if it is dead already.

    Called in the child itself: between fork and exec, where threads of the actor may hold locks,
    nothing but a few system calls would be safe.
    """
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """The child."""
    _die_with_parent()
    answer = os.dup(1)
    os.dup2(2, 1)  # what libraries print is not the answer
    work, split, shard, record, streams = pickle.load(sys.stdin.buffer)
    error: Exception | None = None
    try:
        _make(work, split, shard, record, streams, lambda: os.write(answer, _BEGUN))
    except Exception as wrong:
        error = wrong
    try:
        data = pickle.dumps(error)
    except Exception:  # an exception that holds what cannot be pickled
        data = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    with os.fdopen(answer, "wb") as file:
        file.write(data)


def _make(
    work: Work, split: str, shard: int, record: int, streams: str, begin: Callable[[], object]
) -> None:
    dataset = work.open_source()
    maker = RecordMaker(work, dataset)
    maker.load()
    begin()
    raw = next(
        (raw for raw in dataset.records(dataset.shard(split, shard)) if raw.record.index == record),
        None,
    )
    if raw is None or raw.error is not None:
        return  # a record that cannot be read is told, and listed, where the shard is made
    made = maker.make(raw, maker.read(raw))
    if isinstance(made.stream, SourceError):
        return  # likewise
    assert made.quality is not None
    StreamStore(work.open_storage(), streams).keep(record, made.stream, made.quality)


if __name__ == "__main__":
    main()
