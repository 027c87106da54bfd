"""A contact sheet of an evaluation: a row an episode, from the anchors to the recorded view."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..readers.errors import SourceError
from ..writers.atomic import write_atomic
from .assess import resize_frames
from .evaluate import Result

GAP = 4  # pixels between pictures
HEADING = 18  # pixels above a column
_WHITE = (255, 255, 255)


def sheet_row(result: Result, *, share: float = 0.5) -> list[tuple[str, np.ndarray]]:
    """(heading, [H, W, 3] uint8) of one timestep: anchors, condition map, every way, the truth.

    Args:
        share: which timestep, 0 the first and 1 the last.
    """
    t = round(share * (len(result.truth) - 1))
    height = result.truth.shape[1]
    cells = []
    for number, view in enumerate(result.episode.anchors, 1):
        width = max(1, round(height * view.size[1] / view.size[0]))
        frame = np.asarray(view.frames[t : t + 1])
        cells.append((f"anchor {number}", resize_frames(frame, (height, width))[0]))
    for (recipe, pose), stream in result.streams.items():
        if stream.condition is not None:
            named = f"{recipe}:{pose}" if pose not in ("", "auto") else recipe
            cells.append((f"condition map, {named}", np.asarray(stream.condition[t])))
    cells += [(name, np.asarray(frames[t])) for name, frames in result.views.items()]
    return [*cells, ("recorded", result.truth[t])]


def write_sheet(path: Path, rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> int:
    """Write the rows below each other, under the first row's headings; returns the file's bytes.

    Args:
        path: its suffix says the format, as in .png or .jpg.

    Raises:
        ValueError: there is no row. SourceError: a suffix that names no format of pictures.
    """
    check_name(path)
    if not rows:
        raise ValueError("a contact sheet needs a row")
    names: list[str] = []
    for row in rows:
        names += [name for name, _ in row if name not in names]
    if "recorded" in names:  # last, also where a later row brought a column
        names.append(names.pop(names.index("recorded")))
    height = max(frame.shape[0] for row in rows for _, frame in row)
    widths = {
        name: max(round(f.shape[1] * height / f.shape[0]) for r in rows for n, f in r if n == name)
        for name in names
    }
    lefts = np.cumsum([0, *(widths[name] + GAP for name in names)])
    size = (int(lefts[-1]) - GAP, HEADING + len(rows) * (height + GAP) - GAP)
    sheet = Image.new("RGB", size, _WHITE)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    for name, left in zip(names, lefts, strict=False):
        draw.text((int(left) + 2, 2), name, fill=(0, 0, 0), font=font)
    for number, row in enumerate(rows):
        top = HEADING + number * (height + GAP)
        for name, frame in row:
            shown = resize_frames(frame[None], (height, widths[name]))[0]
            sheet.paste(Image.fromarray(shown), (int(lefts[names.index(name)]), top))
    data = io.BytesIO()
    sheet.save(data, Image.registered_extensions()[path.suffix.lower()])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data.getvalue())
    return len(data.getvalue())


def check_name(path: Path) -> None:
    """SourceError for a file name that says no format that pictures can be written in."""
    known = Image.registered_extensions()
    if known.get(path.suffix.lower()) not in Image.SAVE:
        raise SourceError(
            f"{path.suffix or 'a name without a suffix'} is no format of pictures",
            file=path,
            key="--picture",
            todo="name it .png or .jpg",
        )
