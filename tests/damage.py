"""Seeded damage to a finished copy, one piece at a time, each of which `verify` must find.

Used by the tests with a few pieces of damage, and by benchmarks/chaos.py with a thousand.
"""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from wristaugment.jobs import cli

LOCK = ".wristaugment/lock"
KINDS = ("flip", "flip", "flip", "truncate", "truncate", "append", "remove", "add")
FOUND = 3  # the exit code of a `verify` that found something


class Damage(str):
    """What was done, in words; `undo()` takes it back."""

    undo: Callable[[], object]


def _done(text: str, undo: Callable[[], object]) -> Damage:
    damage = Damage(text)
    damage.undo = undo
    return damage


def random_damage(rng: random.Random, path: Path) -> Damage:
    """Damage one file below the --out `path`: any of its files, at any place.

    A bit of a byte is flipped, the file is cut to any shorter length, a byte is put behind it, it
    is removed, or a file that nobody knows is put beside it. The lock is always empty, and belongs
    to the job and not to the copy: it is only made longer.

    Returns:
        A Damage, as in "flip bit 3 of byte 71 of droid_101/1.0.1/features.json (of 5321)".
    """
    files = sorted(file for file in path.rglob("*") if file.is_file())
    file, kind = rng.choice(files), rng.choice(KINDS)
    name, size = file.relative_to(path).as_posix(), file.stat().st_size
    if name == LOCK or (size == 0 and kind in ("flip", "truncate")):
        kind = "append"
    if kind == "add":
        return _added(rng, file, path)
    data = file.read_bytes()
    undo: Callable[[], object] = lambda: file.write_bytes(data)
    if kind == "remove":
        file.unlink()
        return _done(f"remove {name}", undo)
    if kind == "append":
        file.write_bytes(data + rng.randbytes(1))
        text = f"append a byte to {name}"
    elif kind == "truncate":
        kept = rng.choice((0, rng.randrange(size), size - 1))
        file.write_bytes(data[:kept])
        text = f"truncate {name} to {kept} of {size} bytes"
    else:
        place, bit = rng.randrange(size), rng.randrange(8)
        changed = bytes([data[place] ^ (1 << bit)])
        file.write_bytes(data[:place] + changed + data[place + 1 :])
        text = f"flip bit {bit} of byte {place} of {name} (of {size})"
    return _done(text, undo)


def _added(rng: random.Random, beside: Path, path: Path) -> Damage:
    """A file that nobody knows, beside a known one, with a name and bytes of any kind."""
    folder = beside.parent
    stem = rng.choice(("stray", ".hidden", "notes", beside.stem, "0.0.0", "\udcff\udcfe"))
    new = folder / f"{stem}{rng.choice(('', '.json', '.tmp', beside.suffix, '.staged'))}"
    while new.exists():
        new = new.with_name(f"{new.name}x")
    if rng.random() < 0.5:
        new.write_bytes(rng.randbytes(rng.randrange(40)))
    else:
        shutil.copyfile(beside, new)
    return _done(f"add {new.relative_to(path).as_posix()!a}", new.unlink)


def survey(
    rng: random.Random, out: Path, times: int, source: Path | None = None
) -> tuple[int, list[str]]:
    """Damage a finished copy `times` times, one piece at a time, and run `verify` on each.

    Args:
        out: the copy; whole before and after.
        source: compare with it too.

    Returns:
        (how many were found, what was done and said where `verify` gave another exit code than 3).
    """
    words = ["verify", str(out), *(["--source", str(source)] if source else [])]
    missed = []
    for _ in range(times):
        damage = random_damage(rng, out)
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = cli.main(words)
        finally:
            damage.undo()
        if code != FOUND or "Traceback" in said.getvalue():
            missed.append(f"{damage}: exit {code}: {said.getvalue()[-2000:]}")
    return times - len(missed), missed
