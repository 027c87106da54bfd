"""How far the job is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

_EVERY = 30.0  # seconds between lines where there is no terminal


class Progress:
    """Counts episodes on stderr.

    Args:
        total: episodes in the whole job.
        start: episodes done before this run; they count as done, not towards the rate.
    """

    def __init__(self, total: int, start: int, *, stream=None, every: float = _EVERY):
        self.total, self.start, self.count = total, start, start
        self.stream = stream or sys.stderr
        self.every = every
        self.began = self.last = time.monotonic()
        self.bar = None
        if self.stream.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total, initial=start, unit="episode", file=self.stream, dynamic_ncols=True
            )

    def update(self, count: int) -> None:
        """Show that `count` episodes are done; it may fall when an attempt is lost."""
        self.count = count
        if self.bar is not None:
            self.bar.n = count
            self.bar.refresh()
        elif time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            self.say(self.line())

    def line(self) -> str:
        """As in "12/96 episodes, 0.41 episodes/s, about 3 min left"."""
        spent = time.monotonic() - self.began
        made = self.count - self.start
        text = f"{self.count}/{self.total} episodes"
        if made > 0 and spent > 0:
            left = (self.total - self.count) * spent / made
            text += f", {made / spent:.2f} episodes/s, about {duration(left)} left"
        return text

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
