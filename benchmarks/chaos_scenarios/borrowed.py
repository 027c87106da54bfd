"""Scenarios whose tools the tests and other benchmarks hold: damage, a million episodes."""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

from .kit import Lab, Skipped, Stuck, tree

_TURNS = 3
_ROOT = Path(__file__).resolve().parents[2]


def tests_tool(module: str):
    """A module of the tests that is no test.

    Raises:
        Skipped: it needs a package that is not installed.
    """
    folder = str(_ROOT / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        return __import__(module)
    except ModuleNotFoundError as error:
        raise Skipped(f"no {error.name}; install the extra `test`") from None


def damage(lab: Lab) -> dict:
    """Flips of one bit and truncations anywhere in copies of every format; `verify` looks alone.

    Files that are removed, added or made longer come as often as the tests' damage has them, and
    are not counted among the thousand (three hundred in the quick form).
    """
    from wristaugment.jobs.verify import verify
    from wristaugment.readers.errors import SourceError

    kinds, tool = tests_tool("format_kinds"), tests_tool("damage")
    rng, wanted = random.Random(1), 300 if lab.quick else 1000
    made: Counter[str] = Counter()
    missed = []
    share = -(-wanted // len(kinds.KINDS))
    seconds = []
    for kind in kinds.KINDS:
        root, out = lab.place(kind.name), lab.place("out")
        source = kind.create(root)
        size = f"{kinds.SIZE[0]}x{kinds.SIZE[1]}"
        args = ["run", "--data-dir", str(source), "--out", str(out), "--recipe", "constant"]
        lab.done([*args, "--wrist-size", size], {"ray": False})
        if problems := verify(out)["problems"]:
            raise Stuck(f"{kind.name}: a whole copy has problems: {problems[:3]}")
        before, done = tree(out), 0
        while done < share:
            what = tool.random_damage(rng, out)
            word = what.split()[0]
            began = time.monotonic()
            try:
                found = bool(verify(out)["problems"])
            except SourceError:
                found = True  # refused, with the file named
            finally:
                what.undo()
            seconds.append(time.monotonic() - began)
            made[word] += 1
            done += word in ("flip", "truncate")
            if not found:
                missed.append(f"{kind.name}: {what}")
        if tree(out) != before:
            raise Stuck(f"{kind.name}: the damage was not taken back")
    return {
        "ok": not missed and made["flip"] + made["truncate"] >= wanted,
        "formats": len(kinds.KINDS),
        "flips": made["flip"],
        "truncations": made["truncate"],
        "other_damage": sum(made.values()) - made["flip"] - made["truncate"],
        "missed": len(missed),
        "which": missed[:10],
        "seconds_a_verify": round(sum(seconds) / len(seconds), 3),
    }


def million(lab: Lab) -> dict:
    """`benchmarks/scale.py`: a plan of a million episodes and `status` on it, with its bounds.

    Other work on the machine can only make it slower: where a bound is missed it is measured again,
    up to three times.
    """
    target = lab.place("scale.json")
    script = _ROOT / "benchmarks" / "scale.py"
    line = [sys.executable, "-P", str(script), "--scratch", str(lab.root), "--json", str(target)]
    found: dict = {}
    for turn in range(1, _TURNS + 1):
        run = lab.start(line)
        code = run.wait()
        if code not in (0, 1) or not target.exists():
            raise Stuck(f"exit code {code}: {run.tail()}")
        found = {"ok": code == 0, "turns": turn, **json.loads(target.read_text())}
        if found["ok"]:
            break
    return found
