"""What is done, kept in the file system alone: OUT/.wristaugment.

    plan.json             what decides the bytes; written once
    lock                  held (flock) by the one driver, or shared by those of --shard; empty
    shards/<split>-<i>.json   one per published shard: its files, checksums, bad records
    quality/<split>-<i>.json  one per published shard: what is said of each of its episodes
    streams/<split>-<i>/  finished episodes of a shard that is not published yet
    staging/<token>/      half-made files of the driver that runs now; gone at the end. Drivers of
                          --shard I/N have <I>-of-<N>.<token>/ each, and <I>-of-<N>.lock
    manifest.json         provenance; its existence says that the dataset is complete

A shard is made in staging by an actor and published by the driver alone: rename, fsync of the
folder, then the record. So nothing an orphaned actor does late can reach the dataset: it knows a
staging folder that no longer exists. Nothing here depends on time, host, path or attempt.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from ..readers.errors import SourceError
from ..writers.atomic import fsync_dir, publish, write_synced
from .plan import differences

FOLDER = ".wristaugment"
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
_LOCK_PATIENCE = 2.0  # seconds; `status` holds the lock for an instant while it looks
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


class Ledger:
    """The state of one job in `out`. Reading needs nothing; writing needs `opened()`.

    Args:
        out: the folder given as --out; it need not exist.
    """

    def __init__(self, out: Path):
        self.out = Path(out)
        self.folder = self.out / FOLDER
        self.plan_path = self.folder / "plan.json"
        self.manifest_path = self.folder / "manifest.json"
        self.token = secrets.token_hex(4)
        self.staging = self.folder / "staging" / self.token
        self._count = 0

    # -- looking ---------------------------------------------------------------------------------

    def plan(self) -> dict | None:
        """The stored plan, or None where there is none.

        Raises:
            SourceError: plan.json is not JSON.
        """
        try:
            return json.loads(self.plan_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise SourceError(
                "is not a folder", file=self.out, key="--out", todo="give --out a folder"
            ) from error
        except ValueError as error:
            raise SourceError(
                f"is not a plan ({error})", file=self.plan_path, todo="use a new --out"
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
                    file=self.out,
                    key="--out",
                    todo="use a new --out, or the options of that job to continue it",
                )
            return True
        if not self.out.exists():
            return False
        if not self.out.is_dir():
            raise SourceError(
                "is not a folder", file=self.out, key="--out", todo="give --out a folder"
            )
        # A driver that died before its plan was written leaves these and no more.
        inside = {entry.name for entry in self.out.iterdir()} - {FOLDER}
        if self.folder.is_dir():
            inside |= {entry.name for entry in self.folder.iterdir()} - {"lock", "staging"}
        if inside:
            raise SourceError(
                f"is not empty (it has {sorted(inside)[0]!r}) and holds no job",
                file=self.out,
                key="--out",
                todo="use a new or empty --out",
            )
        return False

    def shard_name(self, split: str, index: int) -> str:
        """The name of a shard in the ledger, as in `train-00003`."""
        return f"{split}-{index:05d}"

    def entry(self, split: str, index: int) -> dict | None:
        """What was recorded of a shard (see `publish`), or None; its file is not looked at."""
        path = self.folder / "shards" / f"{self.shard_name(split, index)}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def entries(self) -> dict[str, dict]:
        """Every recorded entry by shard name; files are not looked at."""
        found = {}
        for path in sorted((self.folder / "shards").glob("*.json")):
            with contextlib.suppress(FileNotFoundError, ValueError):
                found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def done(self, split: str, index: int, folder: Path) -> dict | None:
        """What was published of a shard (see `publish`) whose files are in place, or None.

        Args:
            folder: the copy's folder, which the recorded paths start from.
        """
        entry = self.entry(split, index)
        if entry is None or not in_place(entry, folder):
            return None
        try:
            return {**entry, "quality": self.quality(split, index)}
        except (OSError, ValueError):
            return None

    def complete(self) -> bool:
        """True once the manifest, the last file of a job, is in place."""
        return self.manifest_path.is_file()

    def running(self) -> bool:
        """True while a driver holds the lock (on this machine or, where flock spans them, any)."""
        try:
            handle = os.open(self.folder / "lock", os.O_RDONLY)
        except OSError:
            return False
        try:
            # Exclusive, since the drivers of an array share it.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(handle)

    def episodes_under_way(self) -> int:
        """Episodes made of shards not yet published, from the counters that actors keep."""
        total = 0
        with contextlib.suppress(OSError):
            for counter in (self.folder / "staging").glob("*/*.count"):
                with contextlib.suppress(OSError):
                    total += counter.stat().st_size
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
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        held, own, stack = False, None, contextlib.ExitStack()
        try:
            self._lock(handle, shared=part is not None)
            if part is not None:
                own = stack.enter_context(self._part(*part))
            held = True
            resumed = self.check(plan)  # again: another driver may have begun in between
            # What a killed driver left. Its actors, should one live on, find their folder gone.
            self._clear_staging(own)
            self.staging.mkdir(parents=True)
            crash_point("locked")
            if not resumed:
                self.write(self.plan_path, to_json(plan))
                fsync_dir(self.out)
                fsync_dir(self.out.parent)
            for name in ("shards", "quality"):
                (self.folder / name).mkdir(exist_ok=True)
            crash_point("planned")
            yield resumed
        finally:
            if held:  # a driver refused at the lock must leave the other's staging alone
                self._clear_staging(own)
            stack.close()
            if own is not None and self.complete():  # nobody needs the parts' locks any more
                self._clear_staging()
            os.close(handle)

    @contextlib.contextmanager
    def _part(self, index: int, count: int) -> Iterator[str]:
        """Hold one part of an array; yields what its folders in staging begin with."""
        name = f"{index}-of-{count}"
        with self._locked(f"{name}.lock"):
            self.staging = self.folder / "staging" / f"{name}.{self.token}"
            yield f"{name}."

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Hold the right to finish the dataset, where the last parts of an array may both try."""
        with self._locked("finish.lock", patience=600.0):
            yield

    @contextlib.contextmanager
    def _locked(self, name: str, patience: float = _LOCK_PATIENCE) -> Iterator[None]:
        folder = self.folder / "staging"
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock(handle, patience=patience)
            yield
        finally:
            os.close(handle)

    def _clear_staging(self, own: str | None = None) -> None:
        """Remove staging, or (of a part of an array) the folders that begin with `own`."""
        folder = self.folder / "staging"
        for _ in range(20):  # an orphaned actor may add a file between the listing and the rmdir
            paths = [folder] if own is None else [p for p in folder.glob(f"{own}*") if p.is_dir()]
            for path in paths:
                shutil.rmtree(path, ignore_errors=True)
            if not any(path.exists() for path in paths):
                return
            time.sleep(0.05)

    def _lock(self, handle: int, *, shared: bool = False, patience: float = _LOCK_PATIENCE) -> None:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise SourceError(
                        "another run is writing here",
                        file=self.out,
                        key="--out",
                        todo="wait for it (see `wristaugment status`) or use a new --out",
                    ) from None
                time.sleep(0.05)

    def streams(self, split: str, index: int) -> Path:
        """Where the finished episodes of a shard are kept until it is published."""
        return self.folder / "streams" / self.shard_name(split, index)

    def quality(self, split: str, index: int) -> list[dict]:
        """What was said of each episode of a recorded shard.

        Raises:
            OSError, ValueError: it is not there, or no JSON.
        """
        path = self.folder / "quality" / f"{self.shard_name(split, index)}.json"
        return json.loads(path.read_text(encoding="utf-8"))

    def stage(self, name: str) -> Path:
        """A path in staging that no other attempt has had."""
        self._count += 1
        return self.staging / f"{self._count}-{name}"

    def write(self, path: Path, text: str) -> None:
        """Write a file whole or not at all: stage, fsync, rename, fsync of its folder."""
        staged = self.stage(path.name)
        write_synced(staged, text.encode())
        publish(staged, path)

    def publish(self, split: str, index: int, staged: Path, folder: Path, entry: dict) -> None:
        """Put a finished shard in its place and record it. Only the driver calls this.

        Its files are renamed one by one, and the record comes last: until then the shard counts as
        not made, and making it again renames the same bytes over them.

        Args:
            staged: the folder in staging that holds its whole, fsynced files.
            folder: the copy's folder, where they belong.
            entry: {"result": the writer's ShardResult as a dict, "quality": [one dict an episode]}.

        Raises:
            SourceError: a staged file is not there, or not as long as the result says.
        """
        files = entry["result"]["files"]
        for name, (size, _) in files.items():
            found = _size(staged / name)
            if found != size:
                raise SourceError(
                    f"staged shard has {found} bytes, expected {size}",
                    file=folder / name,
                    key="--out",
                    todo="with --address, --out must be one folder that every machine sees",
                )
        from .checksums import staged_sha256

        entry["sha256"] = staged_sha256(staged, files)
        crash_point("staged")
        folders = dict.fromkeys((folder / name).parent for name in files)
        for parent in folders:
            _make_folders(parent, self.out)
        for name in files:
            target = folder / name
            if name.endswith("/") and target.is_dir():  # os.replace takes no folder that is full
                os.replace(target, self.stage("replaced"))
            publish(staged / name, target, sync_dir=False)
        for parent in folders:
            fsync_dir(parent)
        crash_point("renamed")
        # Apart, since `status` reads the record of every shard, and has no use for these.
        name = f"{self.shard_name(split, index)}.json"
        self.write(self.folder / "quality" / name, to_json(entry["quality"]))
        self.write(
            self.folder / "shards" / name,
            to_json({key: entry[key] for key in ("result", "sha256")}),
        )
        crash_point("recorded")
        shutil.rmtree(staged, ignore_errors=True)
        shutil.rmtree(self.streams(split, index), ignore_errors=True)

    def reopen(self) -> None:
        """Say that the dataset is not complete (any more): a shard of a finished job was lost."""
        with contextlib.suppress(FileNotFoundError):
            self.manifest_path.unlink()
            fsync_dir(self.folder)

    def finish(self, manifest: str) -> None:
        """Write the manifest, which marks the dataset as complete."""
        shutil.rmtree(self.folder / "streams", ignore_errors=True)
        self.write(self.manifest_path, manifest)
        crash_point("complete")


def in_place(entry: dict, folder: Path) -> bool:
    """Whether the files of a recorded shard are below `folder`, each as long as recorded."""
    for name, (size, _) in entry["result"]["files"].items():
        path = folder / name
        if name.endswith("/"):  # renamed as a whole; `verify` looks into it
            if not path.is_dir():
                return False
        else:
            try:
                if path.stat().st_size != size:
                    return False
            except FileNotFoundError:
                return False
    return True


def _size(path: Path) -> int | None:
    """The bytes of a file, or of all files in a folder; None where there is nothing."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else None


def _make_folders(folder: Path, above: Path) -> None:
    """mkdir -p, with each new name made durable in its parent."""
    if folder == above or folder.is_dir():
        return
    _make_folders(folder.parent, above)
    folder.mkdir(exist_ok=True)
    fsync_dir(folder.parent)
