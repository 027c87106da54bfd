"""How far the job is: a bar on a terminal, a line every 30 s elsewhere, and events."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise

from .events import EventLog

_EVERY = 30.0  # seconds between lines where there is no terminal, and between events
_WINDOW = 600.0  # seconds that the rate looks back, where enough episodes fall into them
_LEAST = 10  # episodes that it looks back over, however long they took
_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Rate:
    """Episodes a second of late.

    Loading the models takes minutes and is over once every worker has finished an episode, so the
    rate is measured from then on. Until as many more are finished there is little to go by, and the
    rate is that of the whole run, loading and all, which promises nothing too early.

    Args:
        workers: that finish episodes side by side, maybe all at the same moment.
        now: seconds, of the clock that `add` is given times of.
    """

    def __init__(self, workers: int, now: float):
        self.workers = max(1, workers)
        self.began, self.made = now, 0
        self.samples: deque[tuple[float, int]] = deque()  # when the count rose, and to what

    def add(self, now: float, made: int) -> None:
        """Note that so many episodes were made by now; fewer than before where some were lost."""
        if made == self.made:
            return
        self.made = made
        while self.samples and self.samples[-1][1] >= made:  # lost: they did not come so far
            self.samples.pop()
        if made >= self.workers:
            self.samples.append((now, made))
        # Forget as many as finish side by side: a window from the middle of them would count the
        # rest of them as made in no time.
        while following := self._following():
            time, count = self.samples[following]
            if now - time < _WINDOW or made - count < max(_LEAST, 2 * self.workers):
                break
            for _ in range(following):
                self.samples.popleft()

    def _following(self) -> int:
        """The first sample that is `workers` episodes after the oldest; 0 where there is none."""
        for index, (_, count) in enumerate(self.samples):
            if count - self.samples[0][1] >= self.workers:
                return index
        return 0

    def per_second(self, now: float) -> float:
        """Episodes a second; 0.0 where none was made yet.

        The time since the last episode counts once it is longer than any wait of late, so that a
        job that stands still does not promise its end.
        """
        if self.made <= 0:
            return 0.0
        if self.samples:
            (first, before), (last, count) = self.samples[0], self.samples[-1]
            if count - before >= self.workers:
                spent = last - first
                usual = max(b[0] - a[0] for a, b in pairwise(self.samples))
                spent += max(0.0, now - last - usual)
                return (count - before) / spent if spent > 0 else 0.0
        return self.made / (now - self.began) if now > self.began else 0.0


class Progress:
    """Counts episodes on stderr.

    Args:
        total: episodes in the whole job.
        start: episodes done before this run; they count as done, not towards the rate.
        workers: actors.
        events: gets a `progress` event every 30 s.
        clock: seconds.
    """

    def __init__(
        self,
        total: int,
        start: int,
        *,
        workers: int = 1,
        events: EventLog | None = None,
        stream=None,
        every: float = _EVERY,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.start, self.count = total, start, start
        self.stream = stream or sys.stderr
        self.every, self.clock = every, clock
        self.events = events or EventLog.open(None)
        self.last = clock()
        self.rate = Rate(workers, self.last)
        self.bar = None
        if self.stream.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total,
                initial=start,
                unit="episode",
                file=self.stream,
                dynamic_ncols=True,
                bar_format=_FORMAT,
            )

    def update(self, count: int, kept: int = 0) -> None:
        """Show that `count` episodes are done; it may fall when an attempt is lost.

        Args:
            kept: how many of them this run only had to load, of shards that an earlier one began;
                like `start`, they say nothing of the rate.
        """
        now = self.clock()
        self.count = count
        self.rate.add(now, count - self.start - kept)
        due = now - self.last >= self.every
        if self.bar is not None:
            self.bar.n = count
            self.bar.set_postfix_str(self._speed(now), refresh=False)
            self.bar.refresh()
        elif due:
            self.say(self.line())
        if due:
            self.last = now
            self.events.write("progress", **self.facts())

    def facts(self) -> dict:
        """For programs: {"episodes", "total", "per_second", "seconds_left" (None: not known)}."""
        rate = self.rate.per_second(self.clock())
        left = (self.total - self.count) / rate if rate > 0 else None
        return {
            "episodes": self.count,
            "total": self.total,
            "per_second": float(f"{rate:.4g}"),
            "seconds_left": None if left is None else round(left),
        }

    def line(self) -> str:
        """As in "12/96 episodes, 0.41 episodes/s, about 3 min left"."""
        speed = self._speed(self.clock())
        return f"{self.count}/{self.total} episodes" + (f", {speed}" if speed else "")

    def _speed(self, now: float) -> str:
        rate = self.rate.per_second(now)
        if rate <= 0:
            return ""
        left = f"about {duration((self.total - self.count) / rate)} left"
        per = f"{rate:.2f} episodes/s" if rate >= 0.1 else f"{duration(1 / rate)} an episode"
        return f"{per}, {left}"

    def say(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if self.bar is not None:
            self.bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    """As in "45 s", "12 min", "3.5 h", "2.1 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def size(count: float) -> str:
    """Bytes for people, as in "1.5 MB" (powers of ten)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
