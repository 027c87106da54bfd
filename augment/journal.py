"""What a training run writes about itself: log.jsonl for programs, TensorBoard for people.

Both are cut back to the checkpoint that a run goes on from, so that no point is there twice, and
are on the disk before a checkpoint is, so that none is lost.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..writers.atomic import write_atomic

LOG = "log.jsonl"


class Journal:
    """The records of one training run in `folder`, from `step` steps on.

    Lines of the log are {"step", "seconds", figures ...} and {"step", "validation": {figures ...}}.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter

        self.path = folder / LOG
        self._cut(step)
        # TensorBoard reads files in the order of their names and hides what a later one purges;
        # names begin with the second they were made in, so the step tells those of one apart.
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1, filename_suffix=f".{step:09d}"
        )

    def _cut(self, step: int) -> None:
        """Drop the lines of steps after `step`, and a last one that was cut by a kill."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        write_atomic(self.path, "".join(kept).encode())

    def train(self, step: int, seconds: float, rate: float, figures: Mapping[str, float]) -> None:
        """The means since the line before, after `step` steps."""
        self._line({"step": step, "seconds": seconds, **_plain(figures)})
        for name, value in {"rate": rate, **figures}.items():
            self._board.add_scalar(f"train/{name}", value, step)

    def validation(
        self, step: int, figures: Mapping[str, float], images: Mapping[str, np.ndarray]
    ) -> None:
        """What was measured after `step` steps. Images are [H, W, 3] uint8."""
        self._line({"step": step, "validation": _plain(figures)})
        for name, value in figures.items():
            self._board.add_scalar(f"validation/{name}", value, step)
        for name, image in images.items():
            self._board.add_image(f"validation/{name}", image, step, dataformats="HWC")

    def _line(self, values: dict) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(values) + "\n")

    def flush(self) -> None:
        """Bring all that was written to the disk."""
        self._board.flush()
        if self.path.exists():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        """Write what is left."""
        self._board.close()


def _plain(figures: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN and no infinity: None."""
    return {k: v if math.isfinite(v) else None for k, v in figures.items()}
