"""A disk that fills up, and files that may not grow: exit 4, nothing corrupt, and on with room."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections import Counter
from pathlib import Path

from .kills import bad, figures, note
from .kit import Expected, Lab, Run, Skipped, Stuck, tree, tree_sha256

_BALLAST = 500_000  # bytes a shard, so that a disk fills up in the middle of a file
# Nobody takes these for results.
_PRIVATE = (".wristaugment/staging", ".wristaugment/streams", ".wristaugment/lock")


def disk_full(lab: Lab) -> dict:
    """--out lies on a tmpfs that is too small by this or that much, then is made larger.

    The sizes go from a few kB to nearly enough, so that the disk is full at the plan, in shards,
    in metadata. Some have too few inodes instead.
    """
    source = lab.source(6, 3, ballast=dict.fromkeys(range(6), _BALLAST))
    expected = Expected.of(lab, source)
    whole = lab.place("measured")
    lab.done(source.args(whole), {"ray": False})
    needed = sum(path.stat().st_blocks * 512 for path in whole.rglob("*") if path.is_file())
    totals: Counter[str] = Counter()
    with_ray, without, inodes = (1, 8, 2) if lab.quick else (8, 60, 20)
    sizes = [(True, needed * (n + 1) // (with_ray + 1)) for n in range(with_ray)]
    sizes += [(False, 8192 + needed * n // without) for n in range(without)]
    for ray, size in sizes:
        fill(lab, expected, ray, f"size={size}", totals)
    entries = sum(1 for _ in whole.rglob("*")) + 1
    for n in range(inodes):
        few = 3 + (entries - 3) * n // inodes
        fill(lab, expected, False, f"size=1g,nr_inodes={few}", totals)
    return {
        "ok": not bad(totals) and not totals["corrupt"] and totals["exit 4"] >= with_ray + without,
        "disks_that_were_full": totals["exit 4"],
        "of_them_with_ray": totals["with Ray"],
        "disks_that_were_large_enough": totals["exit 0"],
        "corrupt_final_files": totals["corrupt"],
        **figures(totals),
        "tree_sha256": tree_sha256(expected.whole),
    }


def fill(lab: Lab, expected: Expected, ray: bool, limit: str, totals: Counter[str]) -> None:
    """One job on a disk that is too small, and again when it is larger.

    Args:
        limit: of the tmpfs, as mount knows it. totals: what is found is added to.
    """
    with tmpfs(lab, limit) as disk:
        out = disk / "out"
        args = expected.source.args(out, "--num-actors", "2")
        code = _refused(lab.job(args, {"ray": ray}), totals)
        totals["with Ray"] += ray and code == 4
        totals["corrupt"] += corrupt(expected, out)
        more = "remount,size=1g,nr_inodes=100k"
        subprocess.run(["mount", "-o", more, disk], check=True, capture_output=True)
        lab.done(args, {"ray": ray})
        note(expected, out, totals)


def _refused(run: Run, totals: Counter[str]) -> int:
    """The exit code of a job that may lack room."""
    code = run.wait()
    if code not in (0, 4):
        raise Stuck(f"exit code {code}, not 4: {run.tail()}")
    totals[f"exit {code}"] += 1
    if code == 4 and "make room" not in run.text():
        raise Stuck(f"it does not say what to do: {run.tail()}")
    return code


def corrupt(expected: Expected, out: Path) -> int:
    """How many files that readers may take for results are not what a whole job leaves there."""
    found = 0
    for path, value in tree(out).items() if out.is_dir() else ():
        name = path.rpartition("/")[2]
        half_made = path.startswith(_PRIVATE) or (name[:1] == "." and name.endswith(".staged"))
        found += not half_made and expected.whole.get(path) != value
    return found


@contextlib.contextmanager
def tmpfs(lab: Lab, limit: str):
    """A small file system in memory; yields its folder.

    Raises:
        Skipped: this machine or this user may not mount one.
    """
    folder = lab.place("disk")
    folder.mkdir()
    if os.geteuid() != 0:
        raise Skipped("only root may mount a tmpfs")
    line = ["mount", "-t", "tmpfs", "-o", limit, "tmpfs", folder]
    try:
        subprocess.run(line, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Skipped(f"no tmpfs: {getattr(error, 'stderr', '') or error}".strip()) from None
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False, capture_output=True)


def file_limit(lab: Lab) -> dict:
    """No file may be larger than a limit (ulimit -f), which then is lifted.

    With Ray, whose own files must fit, one shard is larger than all of them.
    """
    totals: Counter[str] = Counter()
    large = Expected.of(lab, lab.source(3, 2, ballast={1: 150_000_000}), ray=False)
    limited(lab, large, True, 130_000_000, totals)
    source = lab.source(6, 3, ballast=dict.fromkeys(range(6), _BALLAST))
    expected = Expected.of(lab, source, ray=False)
    turns = 6 if lab.quick else 60
    for n in range(turns):
        # What the job prints goes to a file, too.
        limited(lab, expected, False, 3000 + _BALLAST * n // turns, totals)
    return {
        "ok": not bad(totals) and not totals["corrupt"] and totals["exit 4"] == turns + 1,
        "limits_that_were_met": totals["exit 4"],
        "of_them_with_ray": totals["with Ray"],
        "corrupt_final_files": totals["corrupt"],
        **figures(totals),
    }


def limited(lab: Lab, expected: Expected, ray: bool, limit: int, totals: Counter[str]) -> None:
    """One job whose files may have so many bytes, and again where they may have more."""
    out = lab.place("out")
    args = expected.source.args(out, "--num-actors", "2")
    code = _refused(lab.job(args, {"ray": ray, "file_limit": limit}), totals)
    totals["with Ray"] += ray and code == 4
    totals["corrupt"] += corrupt(expected, out)
    lab.done(args, {"ray": ray})
    note(expected, out, totals)
