"""A job from S3 to S3, killed and run again, against the same job on local disks."""

from __future__ import annotations

import importlib.util
import random
import signal
from collections import Counter

from wristaugment.jobs.ledger import CRASH_POINTS

from .borrowed import tests_tool
from .kills import bad, figures
from .kit import Expected, Lab, Skipped, Stuck, begun, tree_sha256, wait_for


def through_s3(lab: Lab) -> dict:
    """Source and --out on a real S3-speaking server; the objects must be the local tree's files.

    Uninterrupted; killed in the middle, and at points of the commit path, and run again.
    """
    for name in ("pytest", "s3fs", "moto"):
        if importlib.util.find_spec(name) is None:
            raise Skipped(f"no {name}; install the extras `test` and `remote`")
    rng = random.Random(9)
    source = lab.source(6, 4)
    expected = Expected.of(lab, source)
    # An object store has no folders.
    files = {path: value for path, value in expected.whole.items() if value != "folder"}
    points = list(CRASH_POINTS[3:4] if lab.quick else CRASH_POINTS)
    totals: Counter[str] = Counter()
    with tests_tool("remote").serving(lab.place("scratch")) as server:
        url = server.url("chaos")
        server.put_tree(source.root, f"{url}/source")

        def args(out: str) -> list[str]:
            words = source.args(f"{url}/{out}", "--num-actors", "2")
            words[words.index("--data-dir") + 1] = f"{url}/source"
            return words

        def compare(out: str) -> None:
            found = server.tree(f"{url}/{out}")
            totals["trees"] += 1
            totals["leftovers"] += len(found.keys() - files.keys())
            totals["differing"] += sum(found.get(path) != value for path, value in files.items())
            totals["unequal trees"] += found != files

        lab.done(args("whole"))
        compare("whole")
        for turn in range(1 if lab.quick else 10):
            out, log = f"killed-{turn}", lab.place("log")
            run = lab.job(args(out), {"sleep": 0.3, "log": str(log)})
            wanted = rng.randrange(2, 20)
            wait_for(lambda log=log, n=wanted: len(begun(log)) >= n, "episodes", run=run)
            run.kill(group=turn % 2 == 0)
            totals["kills"] += 1
            lab.done(args(out), {})
            compare(out)
        for point in points:
            run = lab.job(args(f"at-{point}"), {}, crash=point)
            if run.wait() != -signal.SIGKILL:
                raise Stuck(f"no crash at {point}: {run.tail()}")
            totals["kills"] += 1
            lab.done(args(f"at-{point}"), {})
            compare(f"at-{point}")
    return {
        "ok": not bad(totals),
        "trees": totals["trees"],
        "kills": totals["kills"],
        "at_points": points,
        **{k: v for k, v in figures(totals).items() if k in ("leftovers", "differing")},
        "unequal_trees": totals["unequal trees"],
        "tree_sha256": tree_sha256(files),
    }
