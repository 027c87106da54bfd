"""Reading what a ledger holds of many thousand shards: quickly, and whatever the disk made of it.

Each small file costs one or two waits for the disk or the network, so several wait at a time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

_AT_ONCE = 16
_TRIED, _QUICK = 64, 0.0005  # items that are timed, and seconds that one takes on a quick disk
_BATCH = 32  # items handed to a thread together; handing over costs as much as a small read
_In = TypeVar("_In")
_Out = TypeVar("_Out")


def in_batches(pool: Executor, call: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """`map(call, items)` in the order of the items; many at a time where one takes long.

    The first few are timed. On a quick disk threads would only wait for each other: 20,000 shards'
    ends take 1.6 s in one thread and 4.8 s in 32.

    Raises:
        Exception: what `call` raised first, in the order of the items.
    """
    rest = iter(items)
    began = time.perf_counter()
    count = 0
    for item in islice(rest, _TRIED):
        count += 1
        yield call(item)
    if time.perf_counter() - began < _QUICK * count:
        yield from map(call, rest)
        return
    batches = iter(lambda: list(islice(rest, _BATCH)), [])
    for results in pool.map(lambda batch: [call(item) for item in batch], batches):
        yield from results


def read_entries(folder: Path) -> dict[str, dict]:
    """Every shard's record by the shard's name, sorted; files that hold none are left out.

    Args:
        folder: OUT/.wristaugment/shards; it need not exist.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = in_batches(pool, lambda name: _read(os.path.join(folder, name)), names)
        pairs = zip(names, found, strict=True)
        return {name.removesuffix(".json"): entry for name, entry in pairs if entry is not None}


def in_place(entries: dict[str, dict], folder: Path) -> dict[str, bool]:
    """Of each recorded shard, whether its files are below `folder`, each as long as recorded.

    A folder that was published as a whole only has to be there.
    """
    root = str(folder)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        whole = in_batches(
            pool, lambda entry: _whole(entry["result"]["files"], root), entries.values()
        )
        return dict(zip(entries, whole, strict=True))


def is_entry(value: Any) -> bool:
    """Whether JSON is the record of a shard, as far as `status` and a run that goes on need it."""
    result = value.get("result") if isinstance(value, dict) else None
    if not isinstance(result, dict) or not isinstance(result.get("records"), int):
        return False
    files, bad = result.get("files"), result.get("bad")
    if not isinstance(files, dict) or not isinstance(bad, list):
        return False
    sizes = all(isinstance(row, list) and len(row) == 2 for row in files.values())
    return sizes and all(isinstance(item, dict) for item in bad)


def _read(path: str) -> dict | None:
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return value if is_entry(value) else None


def _whole(files: dict[str, list], root: str) -> bool:
    for name, (size, _) in files.items():
        path = f"{root}/{name}"
        try:
            if name.endswith("/"):
                if not os.path.isdir(path):
                    return False
            elif os.stat(path).st_size != size:
                return False
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return False
    return True
