"""Writes a page of side-by-side videos: one HTML file that opens from disk and fetches nothing.

Each view is one sprite (its frames in a grid, as WebP) that a few lines of script draw on a canvas,
so all views of an episode are in step, which separate video files would not promise. Knows nothing
of ways or metrics beyond curves to draw; `pages` makes its rows.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from .. import __version__
from ..writers.atomic import write_atomic
from .assess import resize_frames

KINDS = {
    "recorded": "recorded",
    "synthetic": "synthetic",
    "geometry": "projected points",
    "baseline": "baseline",
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8a6d00", "#7f7f7f")
SPEEDS = (2, 5, 10, 15, 30)  # frames shown per second
FRAMES = 24  # shown per episode, evenly spaced
# Tried in order until the page is small enough: width of recorded side views, then the WebP quality
# of those and of the hand's views.
SIZES = ((240, 78, 90), (240, 64, 82), (200, 55, 72), (160, 45, 60), (120, 30, 40))


@dataclass
class Player:
    """One view of an episode.

    Attributes:
        caption: its name.
        frames: [T, H, W, 3] uint8 RGB.
        kind: a key of `KINDS`; decides the badge that tells recorded from synthetic pixels.
        psnr: [T] dB against the truth, drawn as a curve, or None.
        expected: [T] the SSIM that was expected of each frame, shown with it, or None.
        wide: a side view, which may be shrunk to `SIZES`; the hand's views are kept as they are.
    """

    caption: str
    frames: np.ndarray
    kind: str
    psnr: np.ndarray | None = None
    wide: bool = False
    expected: np.ndarray | None = None


@dataclass
class Row:
    """One episode on the page: its views with one set of controls, and lines of text about it.

    Attributes:
        facts: lines under the title; details: lines that are folded away.
        steps: which steps the views' frames are of, out of `length`; None for all of them, before
            `thin` has picked some.
    """

    title: str
    players: list[Player]
    language: str = ""
    facts: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    steps: list[int] | None = None
    length: int = 0


@dataclass(frozen=True)
class Gauge:
    """A table cell with a mean and its interval, drawn on the axis of its column."""

    text: str
    low: float
    mean: float
    high: float
    best: bool = False


@dataclass
class Table:
    """The summary on top: the first cell of a row is its heading."""

    columns: list[str]
    rows: list[list[str | Gauge]]
    caption: str = ""


def write_page(
    path: Path,
    title: str,
    rows: Sequence[Row],
    table: Table | Sequence[Table] | None = None,
    *,
    lead: Sequence[str] = (),
    provenance: Sequence[str] = (),
    notes: Sequence[str] = (),
    frames: int = FRAMES,
    max_bytes: int = 10_000_000,
) -> int:
    """Writes the page, whole or not at all, and returns its size in bytes.

    Args:
        path: the file; its folder is made where it is missing.
        rows: the episodes, in order; views of one row must agree in T. Thinned or not.
        table: the summary, in one table or several below each other, or None (a run on a dataset
            that has no truth).
        lead: paragraphs under the title.
        provenance: what is synthetic and by what it was made; stands in a marked box.
        notes: how to read the page, as a list.
        frames: how many frames of an episode are shown at most, evenly spaced.
        max_bytes: pictures are compressed harder until the page is no larger (the hardest setting
            is kept where even that does not suffice).

    Raises:
        ValueError: the views of a row differ in length, or a kind is unknown.
        OSError: the file cannot be written.
    """
    rows = [thin(row, frames) for row in rows]
    text = ""
    for setting in SIZES:
        text = _page(title, rows, table, lead, provenance, notes, setting)
        if len(text.encode()) <= max_bytes:
            break
    data = text.encode()
    write_atomic(path, data)
    return len(data)


def thin(row: Row, frames: int = FRAMES) -> Row:
    """The row with no more pixels than the page shows, for keeping while others are made.

    Raises:
        ValueError: its views differ in length, or a kind is unknown.
    """
    if row.steps is not None:
        return row
    lengths = {player.caption: len(player.frames) for player in row.players}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"the views of {row.title!r} differ in length: {lengths}")
    for player in row.players:
        if player.kind not in KINDS:
            raise ValueError(f"unknown kind {player.kind!r} of view {player.caption!r}")
    length = len(row.players[0].frames)
    steps = shown_steps(length, frames)
    players = [
        replace(p, frames=_shrunk(p.frames[steps], SIZES[0][0] if p.wide else None))
        for p in row.players
    ]
    return replace(row, players=players, steps=steps, length=length)


def shown_steps(length: int, frames: int) -> list[int]:
    """The steps shown of an episode: evenly spaced, first and last among them."""
    if length <= frames:
        return list(range(length))
    return [int(step) for step in np.linspace(0, length - 1, frames).round()]


def _shrunk(frames: np.ndarray, width: int | None) -> np.ndarray:
    """A copy of the frames, no wider than `width`, aspect kept."""
    if width is None or frames.shape[2] <= width:
        return frames.copy()
    height = max(1, round(frames.shape[1] * width / frames.shape[2]))
    return resize_frames(frames, (height, width))


def _page(title, rows, table, lead, provenance, notes, setting) -> str:
    tables = [table] if isinstance(table, Table) else table or []
    slots = {
        "title": html.escape(title),
        "lead": "\n".join(f"<p>{html.escape(text)}</p>" for text in lead),
        "provenance": _box(provenance),
        "table": "\n".join(map(_table, tables)),
        "notes": _notes(notes),
        "count": f"{len(rows)} episode{'s' * (len(rows) != 1)} shown",
        "rows": "\n".join(_row(row, index, setting) for index, row in enumerate(rows)),
        "version": html.escape(__version__),
    }
    template = (
        resources.files(__package__ or "").joinpath("report.html").read_text(encoding="utf-8")
    )
    # One pass, so that text from a dataset which looks like a slot is not filled in turn.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: slots[match[1]], template)


def _box(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    inside = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    return f'<div class="card provenance" role="note" aria-label="Provenance">{inside}</div>'


def _notes(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    inside = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<div class="card"><ul class="notes">{inside}</ul></div>'


def _table(table: Table) -> str:
    gauges = [
        [cell for row in table.rows if isinstance(cell := row[i], Gauge)]
        for i in range(len(table.columns))
    ]
    axes = [
        (min(g.low for g in column), max(g.high for g in column)) if column else (0.0, 1.0)
        for column in gauges
    ]
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in table.columns)
    body = []
    for row in table.rows:
        cells = [f'<th scope="row">{html.escape(str(row[0]))}</th>']
        for cell, axis in zip(row[1:], axes[1:], strict=True):
            cells.append(f"<td>{_cell(cell, axis)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        '<div class="card scroll" tabindex="0" role="region" aria-label="Summary table"><table>'
        f"<caption>{html.escape(table.caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(cell: str | Gauge, axis: tuple[float, float]) -> str:
    if not isinstance(cell, Gauge):
        return html.escape(cell)
    span = max(axis[1] - axis[0], 1e-9)
    low, mean, high = (4 + 142 * (v - axis[0]) / span for v in (cell.low, cell.mean, cell.high))
    text = html.escape(cell.text)
    return (
        f"{f'<strong>{text}</strong>' if cell.best else text}"
        '<svg class="gauge" viewBox="0 0 150 12" aria-hidden="true">'
        '<line x1="4" x2="146" y1="6" y2="6" stroke="#dfe4ea"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="6" y2="6" stroke="#0b62c4" stroke-width="3"/>'
        f'<circle cx="{mean:.1f}" cy="6" r="4" fill="#0b62c4"/></svg>'
    )


def _row(row: Row, index: int, setting: tuple[int, int, int]) -> str:
    length, steps = row.length, row.steps or []
    curves = [player for player in row.players if player.psnr is not None]
    colours = {id(p): COLOURS[i % len(COLOURS)] for i, p in enumerate(curves)}
    views = "\n".join(_figure(p, row, steps, setting, colours.get(id(p))) for p in row.players)
    said = f"<span>{html.escape(row.language)}</span>" if row.language else ""
    facts = "".join(f'<div class="fact">{html.escape(fact)}</div>' for fact in row.facts)
    folded = "".join(f"<div>{html.escape(line)}</div>" for line in row.details)
    if folded:
        folded = f"<details><summary>How it was made</summary>{folded}</details>"
    speeds = "".join(
        f"<option value={speed}{' selected' * (speed == 5)}>{speed} frames/s</option>"
        for speed in SPEEDS
    )
    name = html.escape(row.title, quote=True)
    return (
        f'<section class="episode card" aria-labelledby="title{index}" data-length="{length}"'
        f' data-steps="{json.dumps(steps)}">\n'
        f'<div class="head"><h2 id="title{index}">{name}</h2>{said}</div>{facts}\n'
        f'<div class="views">{views}</div>\n'
        f'<div class="controls" role="group" aria-label="Playback of {name}">'
        '<button type="button">Pause</button>'
        f'<input type="range" min="0" max="{len(steps) - 1}" value="0" step="1"'
        f' aria-label="Frame of {name}"><span class="step"></span>'
        f'<label>speed <select aria-label="Speed of {name}">{speeds}</select></label></div>\n'
        f"{_chart(curves, colours, name)}{folded}</section>"
    )


def _figure(
    player: Player, row: Row, steps: list[int], setting: tuple[int, int, int], colour: str | None
) -> str:
    width, wide_quality, quality = setting
    frames = _shrunk(player.frames, width if player.wide else None)
    if (frames == frames[0]).all():
        frames = frames[:1]
    data, columns = _sprite(frames, wide_quality if player.wide else quality)
    what = html.escape(f"{player.caption} ({KINDS[player.kind]}) of {row.title}", quote=True)
    psnr = swatch = now = ""
    if player.psnr is not None:
        values = json.dumps([round(float(v), 2) for v in np.asarray(player.psnr)[steps]])
        psnr = f' data-psnr="{values}"'
        swatch = f'<span class="swatch" style="background:{colour}"></span>'
        now = ' <span class="now"></span>'
    told = ""
    if player.expected is not None:
        known = [float(value) for value in np.asarray(player.expected, float)[steps]]
        values = json.dumps([round(v, 2) if math.isfinite(v) else None for v in known])
        told = f' data-expected="{values}"'
        now = ' <span class="now"></span>'
    return (
        f'<figure><canvas role="img" aria-label="{what}" width="{frames.shape[2]}"'
        f' height="{frames.shape[1]}" data-frames="{len(frames)}" data-columns="{columns}"'
        f"{psnr}{told}>"
        f'<img alt="{what}, all frames" src="{data}"></canvas>'
        f'<figcaption>{swatch}<span class="name">{html.escape(player.caption)}</span>{now}<br>'
        f'<span class="badge {player.kind}">{KINDS[player.kind]}</span></figcaption></figure>'
    )


def _sprite(frames: np.ndarray, quality: int) -> tuple[str, int]:
    """(data URL of all frames in a grid, the number of columns)."""
    count, height, width = frames.shape[:3]
    columns = math.ceil(math.sqrt(count * height / width))
    lines = math.ceil(count / columns)
    sheet = np.zeros((lines * height, columns * width, 3), np.uint8)
    for i, frame in enumerate(frames):
        top, left = (i // columns) * height, (i % columns) * width
        sheet[top : top + height, left : left + width] = frame
    packed = io.BytesIO()
    Image.fromarray(sheet).save(packed, "WEBP", quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}", columns


def _chart(curves: list[Player], colours: dict[int, str], name: str) -> str:
    """PSNR by step, one line a view; stretched to the width of the page, its labels are not."""
    if not curves:
        return ""
    values = np.concatenate([np.asarray(p.psnr, float) for p in curves])
    # A frame equal to the truth is capped far above everything else and would flatten the rest.
    top = min(float(values.max()), 50.0)
    step = 5 if top - float(values.min()) < 20 else 10
    low, high = math.floor(min(values.min(), top) / step) * step, math.ceil(top / step) * step
    high = max(high, low + step)
    ticks = np.arange(low, high + step, step)
    lines = []
    for player in curves:
        curve = np.asarray(player.psnr, float)
        x = 1000 * np.arange(len(curve)) / max(1, len(curve) - 1)
        y = 100 * (high - np.clip(curve, low, high)) / (high - low)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        lines.append(f'<polyline points="{points}" stroke="{colours[id(player)]}"/>')
    grid = "".join(
        f'<line x1="0" x2="1000" y1="{y:g}" y2="{y:g}"/>'
        for y in 100 * (high - ticks) / (high - low)
    )
    labels = "".join(
        f'<span class="tick" style="top:{100 * (high - tick) / (high - low):g}%">{tick:g} dB</span>'
        for tick in ticks
    )
    means = ", ".join(
        f"{html.escape(p.caption)} {np.mean(np.asarray(p.psnr)):.1f} dB" for p in curves
    )
    return (
        f'<div class="chart">{labels}<svg viewBox="0 0 1000 100" preserveAspectRatio="none"'
        f' role="img" aria-label="PSNR by step of {name}; means: {means}">'
        f'{grid}{"".join(lines)}<line class="cursor" x1="0" x2="0" y1="0" y2="100"/></svg></div>\n'
        '<div class="axis">PSNR against the recorded view, by step</div>\n'
    )
