"""What is done, kept in OUT alone: OUT/.wristaugment, in a file system or an object store.

    plan.json             what decides the bytes; written once
    lock                  held by the one driver, or shared by those of --shard; see `lease`
    shards/<split>-<i>.json   one per published shard: its files, checksums, bad records
    quality/<split>-<i>.json  one per published shard: what is said of each of its episodes
    streams/<split>-<i>/  finished episodes of a shard that is not published yet
    staging/<token>/      half-made files of the driver that runs now; gone at the end. Drivers of
                          --shard I/N have <I>-of-<N>.<token>/ each, and <I>-of-<N>.lock
    checksums.json        of all else; see `checksums`
    manifest.json         provenance; its existence says that the dataset is complete

A shard is made in staging by an actor and published by the driver alone, and only while it holds
the lock: rename (in an object store, a copy inside the store), fsync of the folder, then the
record. So nothing an orphaned actor does late can reach the dataset: it knows a staging folder that
no longer exists, or has no grant to it any more. Nothing here depends on time, host, path or
attempt.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..readers.errors import SourceError
from . import board
from .lease import Lease, hold, is_held
from .ledger_read import in_place, is_entry, read_entries
from .plan import differences
from .storage import FOLDER, FolderStorage, open_storage
from .streams import stream_name

CRASH_VARIABLE = "WRISTAUGMENT_CRASH_AT"
# The points of the commit path where the tests (and only they) let the process die.
CRASH_POINTS = (
    "locked",  # OUT exists, no plan yet
    "planned",  # plan written, nothing made
    "staged",  # a shard is made, not published
    "renamed",  # its file is in place, its record is not
    "recorded",  # its record is in place
    "finishing",  # all shards are recorded, the metadata is not written
    "finished",  # the metadata is written, the manifest is not
    "complete",  # the manifest is written, staging is still there
)
_FINISHING = 600.0  # seconds to wait for another part that is finishing the dataset
_AT_ONCE = 32  # records read at a time from an object store
_passed: dict[str, int] = {}


def crash_point(name: str) -> None:
    """Die here, as by kill -9, where WRISTAUGMENT_CRASH_AT is `name`, or `name:n` the n-th time."""
    wanted = os.environ.get(CRASH_VARIABLE)
    if not wanted:
        return
    point, _, count = wanted.partition(":")
    if point == name:
        _passed[name] = _passed.get(name, 0) + 1
        if _passed[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)


def to_json(value: object) -> str:
    """The one spelling of JSON used under OUT: sorted keys, so equal values give equal bytes."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def record_of(entry: dict) -> dict:
    """What shards/<name>.json holds of what `Ledger.publish` is given."""
    return {key: entry[key] for key in ("result", "sha256")}


class Ledger:
    """The state of one job in `out`. Reading needs nothing; writing needs `opened()`.

    Args:
        out: the path or URL given as --out; it need not exist.
    """

    def __init__(self, out: Path | str):
        self.store = open_storage(out)
        self.out = out
        self.folder = Path(out) / FOLDER if self.store.folder is not None else None
        self.token = secrets.token_hex(4)
        self.staging = f"{FOLDER}/staging/{self.token}"
        self.lease: Lease | None = None
        self._count = 0

    @property
    def manifest_path(self) -> Path:
        """What messages call the manifest."""
        return Path(self.store.where(f"{FOLDER}/manifest.json"))

    # -- looking ---------------------------------------------------------------------------------

    def plan(self) -> dict | None:
        """The stored plan, or None where there is none.

        Raises:
            SourceError: plan.json is not JSON.
        """
        name = f"{FOLDER}/plan.json"
        try:
            return json.loads(self.store.read(name).decode())
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise self._no_folder() from error
        except ValueError as error:
            raise SourceError(
                f"is not a plan ({error})", file=self.store.where(name), todo="use a new --out"
            ) from error

    def check(self, plan: dict) -> bool:
        """True where `out` holds this same job already, False where it is free. Writes nothing.

        Raises:
            SourceError: `out` holds another job, or something that is no job at all.
        """
        stored = self.plan()
        if stored is not None:
            changes = differences(stored, plan)
            if changes:
                shown = "; ".join(changes[:4])
                more = f"; and {len(changes) - 4} more" if len(changes) > 4 else ""
                raise SourceError(
                    f"holds another job: {shown}{more}",
                    file=self.store.place,
                    key="--out",
                    todo="use a new --out, or the options of that job to continue it",
                )
            return True
        if isinstance(self.store, FolderStorage):
            path = self.store.folder
            if path.exists() and not path.is_dir():
                raise self._no_folder()
        # A driver that died before its plan was written leaves these and no more.
        inside = self.store.children("") - {FOLDER}
        inside |= self.store.children(FOLDER) - {"lock", "leases", "staging"}
        if inside:
            raise SourceError(
                f"is not empty (it has {sorted(inside)[0]!r}) and holds no job",
                file=self.store.place,
                key="--out",
                todo="use a new or empty --out",
            )
        return False

    def _no_folder(self) -> SourceError:
        return SourceError(
            "is not a folder", file=self.store.place, key="--out", todo="give --out a folder"
        )

    def shard_name(self, split: str, index: int) -> str:
        """The name of a shard in the ledger, as in `train-00003`."""
        return f"{split}-{index:05d}"

    def entry(self, split: str, index: int) -> dict | None:
        """What was recorded of a shard (see `publish`), or None; its file is not looked at."""
        return self._entry(self.shard_name(split, index))

    def _entry(self, name: str) -> dict | None:
        try:
            return json.loads(self.store.read(f"{FOLDER}/shards/{name}.json").decode())
        except (FileNotFoundError, ValueError):
            return None

    def entries(self) -> dict[str, dict]:
        """Every recorded entry by shard name, sorted; files are not looked at."""
        if self.folder is not None:
            return read_entries(self.folder / "shards")
        found = self.store.children(f"{FOLDER}/shards")
        names = sorted(name[: -len(".json")] for name in found if name.endswith(".json"))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            entries = dict(zip(names, pool.map(self._entry, names), strict=True))
        return {name: entry for name, entry in entries.items() if entry and is_entry(entry)}

    def in_place(self, entries: dict[str, dict], place: str) -> dict[str, bool]:
        """Of each recorded shard, whether its files are there, each as long as recorded.

        Args:
            place: of the copy below OUT, which the recorded paths start from (the plan's "place").
        """
        if self.store.folder is not None:
            return in_place(entries, self.store.folder / place)
        # A request for each file would take long; a listing tells of a thousand at a time.
        sizes = self.store.files("" if place == "." else place)
        folders = {name[: end + 1] for name in sizes for end in _slashes(name)}
        return {
            name: all(
                file in folders if file.endswith("/") else sizes.get(file) == size
                for file, (size, _) in entry["result"]["files"].items()
            )
            for name, entry in entries.items()
        }

    def done(self, names: Iterable[str], place: str) -> dict[str, dict]:
        """What was published of some shards (see `publish`) whose files are in place, by name.

        Args:
            names: as of `shard_name`. place: as of `in_place`.
        """
        entries = self.entries()
        told = self.store.children(f"{FOLDER}/quality")
        whole = self.in_place(entries, place)
        return {
            name: entries[name]
            for name in names
            if whole.get(name) and f"{name}.json" in told and "sha256" in entries[name]
        }

    def quality(self, name: str) -> list[dict]:
        """What was said of each episode of a recorded shard.

        Raises:
            SourceError: it is not there, or no JSON.
        """
        path = f"{FOLDER}/quality/{name}.json"
        try:
            return json.loads(self.store.read(path).decode())
        except (FileNotFoundError, ValueError) as error:
            raise SourceError(
                "cannot be read",
                file=self.store.where(path),
                todo="remove it and run the job again, which makes its shard again",
            ) from error

    def complete(self) -> bool:
        """True once the manifest, the last file of a job, is in place."""
        return self.store.size(f"{FOLDER}/manifest.json") is not None

    def running(self) -> bool:
        """True while a driver holds the lock (on this machine or, where that can be told, any)."""
        return is_held(self.store)

    def episodes_under_way(self) -> int:
        """Episodes made of shards not yet published, from what actors say on their boards."""
        total = 0
        with contextlib.suppress(OSError):
            for name in self.store.files(f"{FOLDER}/staging"):
                if name.endswith(".board"):
                    said = board.look(self.store, f"{FOLDER}/staging/{name.removesuffix('.board')}")
                    total += said.made if said else 0
        return total

    # -- writing ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def opened(self, plan: dict, part: tuple[int, int] | None = None) -> Iterator[bool]:
        """Hold `out` as its one driver; yields True where the job is resumed.

        Args:
            part: (i, n) holds it together with the drivers of the other parts of n.

        Raises:
            SourceError: another driver holds it, or as `check`.
            OSError: it cannot be written.
        """
        self.check(plan)  # before the first write
        self._folder_for("")
        with contextlib.ExitStack() as stack:
            own = None
            self.lease = stack.enter_context(hold(self.store, shared=part is not None))
            if part is not None:
                own = f"{part[0]}-of-{part[1]}"
                self._folder_for("staging")
                self.lease = stack.enter_context(hold(self.store, own))
                self.staging = f"{FOLDER}/staging/{own}.{self.token}"
            resumed = self.check(plan)  # again: another driver may have begun in between
            try:
                # What a killed driver left. Its actors, should one live on, find their folder gone.
                self._clear_staging(own)
                self._folder_for(self.staging.removeprefix(f"{FOLDER}/"))
                crash_point("locked")
                if not resumed:
                    self.write(f"{FOLDER}/plan.json", to_json(plan))
                    if isinstance(self.store, FolderStorage):
                        self.store.settle("")
                        self.store.settle("..")
                for name in ("shards", "quality"):
                    self._folder_for(name)
                crash_point("planned")
                yield resumed
            finally:
                self._clear_staging(own)
        if part is not None and self.complete():
            # The last part to leave takes the locks of all along.
            with contextlib.suppress(SourceError), hold(self.store, patience=0.0):
                self._clear_staging(None)

    def _folder_for(self, name: str) -> None:
        if isinstance(self.store, FolderStorage):
            self.store.path(f"{FOLDER}/{name}").mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Hold the right to finish the dataset, where the last parts of an array may both try."""
        with hold(self.store, "finish", patience=_FINISHING):
            yield

    def _clear_staging(self, own: str | None = None) -> None:
        """Remove staging, or (of a part of an array) the folders that begin with `own`."""
        folder = f"{FOLDER}/staging"
        if own is None:
            self.store.remove_folder(folder)
            return
        for name in self.store.children(folder):
            if name.startswith(f"{own}.") and not name.endswith(".lock"):
                self.store.remove_folder(f"{folder}/{name}")

    def streams(self, split: str, index: int) -> str:
        """Where the finished episodes of a shard are kept until it is published."""
        return f"{FOLDER}/streams/{self.shard_name(split, index)}"

    def kept(self, split: str, index: int, record: int) -> bool:
        """Whether a finished episode is kept there."""
        return self.store.size(stream_name(self.streams(split, index), record)) is not None

    def stage(self, name: str) -> str:
        """A name in staging that no other attempt has had."""
        self._count += 1
        return f"{self.staging}/{self._count}-{name}"

    def grant(self, split: str, index: int) -> str:
        """Grant an attempt at a shard; returns the name of its folder, which the actor makes."""
        staged = self.stage(self.shard_name(split, index))
        self._folder_for(self.streams(split, index).removeprefix(f"{FOLDER}/"))
        board.grant(self.store, staged)
        return staged

    def revoke(self, staged: str) -> None:
        """Take an attempt back, with all that it left."""
        board.revoke(self.store, staged)

    def write(self, name: str, text: str) -> None:
        """Write a file below OUT whole or not at all."""
        self.store.write(name, text.encode(), self.stage(name.rpartition("/")[2]))

    def write_pieces(self, staged: str, pieces: Iterable[str]) -> str:
        """Write a long text to a file in staging, on the disk; returns its SHA-256."""
        digest = hashlib.sha256()
        with self.store.writing(staged) as file:
            for piece in pieces:
                data = piece.encode()
                digest.update(data)
                file.write(data)
        return digest.hexdigest()

    def publish(self, split: str, index: int, staged: str, place: str, entry: dict) -> None:
        """Put a finished shard in its place and record it. Only the driver calls this.

        Its files are put there one by one, and the record comes last: until then the shard counts
        as not made, and making it again puts the same bytes over them.

        Args:
            staged: the folder in staging that holds its whole, fsynced files.
            place: of the copy below OUT, where they belong.
            entry: {"result": the writer's ShardResult as a dict, "sha256": {file: hash},
                "quality": [one dict an episode]}.

        Raises:
            SourceError: a staged file is not there, or not as long as the result says.
            JobError: another driver has taken over.
        """
        files = entry["result"]["files"]
        for name, (size, _) in files.items():
            found = self.store.size(f"{staged}/{name}")
            if found != size:
                raise SourceError(
                    f"staged shard has {found} bytes, expected {size}",
                    file=self.store.where(f"{place}/{name}"),
                    key="--out",
                    todo="with --address, --out must be one folder that every machine sees, or an "
                    "object store",
                )
        crash_point("staged")
        if self.lease is not None:
            self.lease.check()
        self.store.publish(staged, files, place, self.stage("replaced"))
        crash_point("renamed")
        # Apart, since `status` reads the record of every shard, and has no use for these.
        name = f"{self.shard_name(split, index)}.json"
        self.write(f"{FOLDER}/quality/{name}", to_json(entry["quality"]))
        self.write(f"{FOLDER}/shards/{name}", to_json(record_of(entry)))
        crash_point("recorded")
        self.revoke(staged)
        self.store.remove_folder(self.streams(split, index))

    def reopen(self) -> None:
        """Say that the dataset is not complete (any more): a shard of a finished job was lost."""
        if self.complete():
            self.store.remove(f"{FOLDER}/manifest.json")
            self.store.settle(FOLDER)

    def finish(self, manifest: str) -> None:
        """Put the manifest in place, which marks the dataset as complete.

        Args:
            manifest: its name in staging.
        """
        self.store.remove_folder(f"{FOLDER}/streams")
        if self.lease is not None:
            self.lease.check()
        self.store.move(manifest, f"{FOLDER}/manifest.json")
        crash_point("complete")


def _slashes(name: str) -> list[int]:
    return [index for index, char in enumerate(name) if char == "/"]
