"""The SHA-256 of every file of a finished copy, and the check of them without the source.

    shards/<split>-<i>.json   has under "sha256" those of the shard's own files
    checksums.json            {"files": {path below OUT: SHA-256}, "folder": where the copy's files
                              lie below OUT, "sha256": of this file's text without this key}: every
                              other file but itself and the lock, which is empty

Both are written in the one spelling of `to_json`, so that a changed byte changes what is read, or
is not that spelling any more. checksums.json is written just before the manifest, which it lists.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from ..readers.errors import RemoteError
from ..readers.files import file_sha256, present
from .findings import Findings
from .lease import is_token
from .ledger import Ledger, to_json
from .mirror import mirror_of
from .storage import FOLDER, Storage

NAME = f"{FOLDER}/checksums.json"
PLAN, MANIFEST, LOCK = (f"{FOLDER}/{name}" for name in ("plan.json", "manifest.json", "lock"))
RECORDS = f"{FOLDER}/shards/"
_UNDER_WAY = tuple(
    f"{FOLDER}/{name}/" for name in ("staging", "streams", "leases")
)  # of a job that is not finished
_AT_ONCE = 16  # files hashed at a time; some wait for the disk while others are computed
_BATCH, _BATCH_BYTES = 64, 16 * 2**20  # small files are handed to a thread together
_HEX = frozenset("0123456789abcdef")


# -- making them -------------------------------------------------------------------------------


def staged_sha256(staged: Path, files: Iterable[str]) -> dict[str, str]:
    """What the record of a shard says of its files under "sha256".

    Args:
        staged: the folder that holds them.
        files: as of ShardResult.files: paths below it; one that ends in "/" is a whole folder.

    Returns:
        {path: SHA-256}; that of a folder as `folder_sha256` makes it.
    """
    found = {}
    for name in files:
        path = staged / name
        if name.endswith("/"):
            below = (p for p in path.rglob("*") if p.is_file())
            rows = {
                p.relative_to(path).as_posix(): (p.stat().st_size, file_sha256(p)) for p in below
            }
            found[name] = folder_sha256(rows)
        else:
            found[name] = file_sha256(path)
    return found


def folder_sha256(files: Mapping[str, tuple[int, str]]) -> str:
    """One SHA-256 for {path below a folder: (bytes, SHA-256)}: of a line a file, sorted."""
    digest = hashlib.sha256()
    for name in sorted(files):
        size, sha256 = files[name]
        digest.update(f"{name} {size} {sha256}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def collect(folder: str, copied: Mapping[str, str], own: Mapping[str, str]) -> str:
    """The text of checksums.json, from hashes that the job has at hand; nothing is read again.

    Args:
        folder: where the copy's files lie below OUT (the plan's "place").
        copied: what DatasetCopy.finish returned.
        own: {name below .wristaugment: SHA-256} of every other file there: the plan, the card, the
            manifest, and each shard's two.
    """
    files = {_below(folder, name): sha256 for name, sha256 in copied.items()}
    files |= {f"{FOLDER}/{name}": sha256 for name, sha256 in own.items()}
    return spelled(files, folder)


def spelled(files: Mapping[str, str], folder: str) -> str:
    """The text of checksums.json for {path below OUT: SHA-256} and the copy's folder."""
    rest = {"files": dict(files), "folder": folder}
    return to_json({**rest, "sha256": hashlib.sha256(to_json(rest).encode()).hexdigest()})


def read(data: bytes) -> dict[str, Any] | None:
    """What checksums.json says, or None where a single byte of it is not as it was written."""
    value = _json(data)
    try:
        same = spelled(value["files"], value["folder"]).encode() == data
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    return value if same else None


def known(store: Storage, folder: str) -> dict[str, str]:
    """{path below the copy's folder: SHA-256} as checksums.json has it; {} where there is none.

    For DatasetCopy.finish, when a job is finished again.
    """
    try:
        stored = read(store.read(NAME))
    except OSError:
        return {}
    start = _below(folder, "")
    files = stored["files"] if stored else {}
    return {name[len(start) :]: files[name] for name in files if name.startswith(start)}


# -- checking them -----------------------------------------------------------------------------


class Tree(Protocol):
    """The files below one --out."""

    def sizes(self) -> dict[str, int | None]:
        """{path below OUT: bytes} of every file; None for what is no regular file."""
        ...

    def read(self, name: str) -> bytes:
        """What is in a file."""
        ...

    def sha256(self, name: str) -> str:
        """The SHA-256 of a file."""
        ...


class LocalTree:
    """The files below a folder.

    Args:
        out: the folder; links in it are followed to files, not to folders.
    """

    def __init__(self, out: Path):
        self.out = out

    def sizes(self) -> dict[str, int | None]:
        """As of Tree."""
        return dict(_walk(self.out, ""))

    def read(self, name: str) -> bytes:
        """As of Tree."""
        return present(self.out / name).read_bytes()

    def sha256(self, name: str) -> str:
        """As of Tree."""
        path = present(self.out / name)
        try:
            return file_sha256(path)
        finally:
            mirror = mirror_of(path)
            if mirror is not None and not name.startswith(f"{FOLDER}/"):
                mirror.release([path])


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, int | None]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), f"{name}/")
                continue
            try:
                yield name, entry.stat().st_size if entry.is_file() else None
            except FileNotFoundError:  # removed meanwhile, by a job that is running
                continue
            except OSError:  # a link to itself
                yield name, None


class Checksums(Findings):
    """Everything below one --out against the SHA-256 that were recorded of it.

    Args:
        out: the folder, or what messages call it.
        bar: show a progress bar on stderr.
        tree: how its files are read; None: as a local folder.
        running: whether a driver is at work there (its half-made files are no damage).

    Attributes:
        damaged: paths below OUT of the files in the ledger that are not as they were written.
        files, bytes: how many were compared.
    """

    def __init__(self, out: Path, *, bar: bool = False, tree: Tree | None = None, running=False):
        super().__init__(bar)
        self.out, self.running = out, running
        self.tree: Tree = tree or LocalTree(out)
        self.damaged: set[str] = set()
        self.files = self.bytes = 0
        self._partial = False  # whether what belongs to the copy is not known in full

    def check(self) -> list[dict]:
        """Compare; returns the problems, as Findings has them."""
        self.sizes = self.tree.sizes()
        stored = self._stored()
        expected = dict(stored["files"]) if stored else {}
        place = stored["folder"] if stored else self._place()
        folders: dict[str, str] = {}
        names = sorted(name for name in {*self.sizes, *expected} if name.startswith(RECORDS))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for name, data in zip(names, pool.map(self._read, names), strict=True):
                for file, sha256 in self._published(name, data, expected.pop(name, None)).items():
                    path = _below(place, file)
                    (folders if file.endswith("/") else expected)[path] = sha256
            own = {*names, NAME, LOCK}
            self._unknown(expected, folders, own)
            there = [n for n, size in self.sizes.items() if n not in own and size is not None]
            wanted = [n for n in there if n in expected or _above(n, folders)]
            self._compare(expected, folders, self._hashes(pool, wanted))
        if self.sizes.get(LOCK) and not (self.running or is_token(self._read(LOCK) or b"")):
            self._wrong(LOCK, f"has {self.sizes[LOCK]} bytes, not 0", todo="empty it")
        return self.problems

    def _stored(self) -> dict | None:
        """What checksums.json says, or None."""
        complete = self.sizes.get(MANIFEST) is not None
        data = self._read(NAME)
        stored = None if data is None else read(data)
        if stored is None and data is not None:
            self.damaged.add(NAME)
            self._wrong(NAME, "is not what was written", todo="run the job again to write it")
        elif stored is None and complete:
            self.damaged.add(NAME)
            self._wrong(NAME, "is missing", todo="run the job again to write it")
        if not complete:
            todo = "run it again to go on"
            self._wrong(MANIFEST, "the job is not complete", todo=todo)
            self._partial = True
            return None  # what an earlier end of the job wrote, before it was begun again
        self._partial = stored is None
        return stored

    def _place(self) -> str:
        """The copy's folder, where only the plan says it."""
        plan = _json(self._read(PLAN) or b"")
        place = plan.get("place") if isinstance(plan, dict) else None
        if not isinstance(place, str):
            self.damaged.add(PLAN)
            found = "is no plan" if PLAN in self.sizes else "is missing"
            self._wrong(PLAN, found, todo="restore it, or use a new --out")
            return "."
        return place

    def _published(self, name: str, data: bytes | None, sha256: str | None) -> dict[str, str]:
        """{file: SHA-256} as the record of a shard has it."""
        where = self.out / name
        again = "remove it and run the job again, which makes this shard again"
        if data is None:
            self.damaged.add(name)
            self._partial = True
            self.problem(where, "is missing", todo="run the job again to make this shard again")
            return {}
        record = _json(data)
        files = record.get("sha256") if isinstance(record, dict) else None
        if not isinstance(files, dict) or not all(map(_is_hash, files.values())):
            files = None
        if sha256 is None and not self._partial:
            self.damaged.add(name)
            self.problem(where, "does not belong to the copy", todo="remove it")
            return {}
        self.files, self.bytes = self.files + 1, self.bytes + len(data)
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            self.damaged.add(name)
            self._partial = True
            self.problem(where, "is not what was written (its SHA-256)", todo=again)
            return {}
        if files is None or to_json(record).encode() != data:
            self.damaged.add(name)
            self._partial = True
            self.problem(where, "is no record of a shard's files", todo=again)
            return {}
        return files

    def _unknown(self, expected: Mapping, folders: Mapping, own: set[str]) -> None:
        """What is not there, and what is there and nobody knows."""
        for name in sorted(expected.keys() - self.sizes.keys()):
            self._wrong(name, "is missing", todo="run the job again to go on")
        for name, size in self.sizes.items():
            ours = name in expected or name in own or _above(name, folders)
            if size is None and ours:
                self._wrong(name, "is no regular file", todo="remove it and run the job again")
            under_way = self.running and name.startswith(_UNDER_WAY)
            if not (ours or self._partial or under_way):
                self._wrong(name, "does not belong to the copy", todo="remove it")

    def _compare(self, expected: Mapping, folders: Mapping, hashes: Mapping[str, str]) -> None:
        # A folder's own files, told by walking up each path: there may be many of both.
        inside: dict[str, dict[str, tuple[int, str]]] = {name: {} for name in folders}
        for name, sha256 in hashes.items():
            if name in expected:
                if sha256 and sha256 != expected[name]:
                    again = "remove it and run the job again"
                    self._wrong(name, "is not what was written (its SHA-256)", todo=again)
                continue
            folder = _above(name, folders)
            inside[folder][name[len(folder) :]] = (self.sizes[name] or 0, sha256)
        for name, files in inside.items():
            if not files:
                self._wrong(name, "is missing", todo="run the job again to go on")
            elif folder_sha256(files) != folders[name]:
                found = "its files are not what was written (their names, sizes and SHA-256)"
                self._wrong(name, found, todo="remove this folder and run the job again")

    def _hashes(self, pool: ThreadPoolExecutor, names: Sequence[str]) -> dict[str, str]:
        """{path: SHA-256} of many files; those that cannot be read are problems."""
        sizes = [self.sizes[name] or 0 for name in names]
        found: dict[str, str] = {}
        with tqdm(
            total=sum(sizes), unit="B", unit_scale=True, disable=not self.bar, dynamic_ncols=True
        ) as bar:

            def hashed(batch: list[str]) -> list[tuple[str, str | OSError]]:
                return [(name, _tried(self.tree.sha256, name)) for name in batch]

            for rows in pool.map(hashed, _batches(names, sizes)):
                for name, sha256 in rows:
                    if isinstance(sha256, str):
                        found[name] = sha256
                        self.files, self.bytes = (
                            self.files + 1,
                            self.bytes + (self.sizes[name] or 0),
                        )
                    else:
                        found[name] = ""
                        self._wrong(name, f"cannot be read ({sha256.strerror})", todo="look at it")
                    bar.update(self.sizes[name] or 0)
        return found

    def _read(self, name: str) -> bytes | None:
        """What is in a file of the ledger; None where it is not there or cannot be read."""
        if self.sizes.get(name) is None:
            return None
        data = _tried(self.tree.read, name)
        return data if isinstance(data, bytes) else None

    def _wrong(self, name: str, found: str, *, todo: str) -> None:
        if name.startswith(f"{FOLDER}/"):
            self.damaged.add(name)
        self.problem(self.out / name, found, todo=todo)


def check(out: Path, *, bar: bool = False) -> Checksums:
    """Compare a local OUT with its checksums; see `problems` and `damaged` of what is returned.

    Raises:
        OSError: OUT may not be read.
    """
    found = Checksums(out, bar=bar, running=Ledger(out).running())
    found.check()
    return found


def _below(folder: str, name: str) -> str:
    """A path below OUT from one below the copy's folder."""
    return name if folder == "." else f"{folder}/{name}"


def _above(name: str, folders: Mapping[str, Any]) -> str:
    """The one of some folders that a path lies in; "" where there is none."""
    end = name.rfind("/")
    while end >= 0 and name[: end + 1] not in folders:
        end = name.rfind("/", 0, end)
    return name[: end + 1]


def _batches(names: Sequence[str], sizes: Sequence[int]) -> Iterator[list[str]]:
    """The names in order, many small files or one large one at a time."""
    batch: list[str] = []
    total = 0
    for name, size in zip(names, sizes, strict=True):
        if batch and (len(batch) >= _BATCH or total + size > _BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(name)
        total += size
    if batch:
        yield batch


def _tried(call: Callable[[str], Any], name: str) -> Any:
    """What `call` gives for a name, or the OSError that it raises."""
    try:
        return call(name)
    except RemoteError:  # which tells nothing of the file
        raise
    except OSError as error:
        return error


def _json(data: bytes) -> Any:
    """`data` as JSON; None where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and _HEX.issuperset(value)
