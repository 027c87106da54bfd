"""What a comparison of a copy with its source has found so far, whatever the format."""

from __future__ import annotations

import os

RUN_AGAIN = "run the same job again into a new --out"
BLACK = 4  # grey levels: a frame marked as not valid may be no brighter, after JPEG and video
_COUNTED = ("records", "frames", "valid_frames", "left_out", "placeholders")


class Findings:
    """Problems and counts, as `verify.verify` returns them.

    Args:
        bar: whether progress is shown.
    """

    def __init__(self, bar: bool):
        self.bar = bar
        self.problems: list[dict] = []
        self.counts = dict.fromkeys(_COUNTED, 0)

    def problem(self, file, found: str, *, record=None, key=None, todo: str = RUN_AGAIN) -> None:
        """Note a problem."""
        # A stray file may have any bytes as its name; messages and JSON have to be text.
        name = os.fsencode(str(file)).decode("utf-8", "backslashreplace")
        row = {"file": name, "record": record, "key": key, "found": found, "todo": todo}
        self.problems.append(row)
