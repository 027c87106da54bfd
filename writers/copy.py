"""What every format's writer is: a copy of a dataset, shard by shard, with one new camera stream.

A format is one module in writers/ with a class `Copy` that derives from DatasetCopy. It stages
whole shards; whoever calls it publishes them (rename by rename, then the ledger's record), and
calls `finish` at the end. Everything in here is safe to do twice.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import google_crc32c
import numpy as np

from ..readers.dataset import Dataset, RawRecord, Shard, Split
from ..readers.episode import WristStream
from ..readers.errors import SourceError
from ..readers.files import file_sha256, present
from ..readers.frames import Frames
from .atomic import copy_atomic, fsync_dir, sync_files, write_atomic

VALID, CONFIDENCE = "wrist_valid", "wrist_confidence"
FLAGS = (VALID, CONFIDENCE)  # what stands beside the frames, by name
LEFT_OUT, PLACEHOLDER = "left out", "placeholder"
Make = Callable[[Any], "WristStream | SourceError"]  # from a RawRecord
_BUFFER = 1 << 20
_AT_ONCE = 8  # plain files copied at a time


@dataclass
class ShardResult:
    """What became of one shard; all of it survives `json.dumps(dataclasses.asdict(...))`.

    Attributes:
        split, shard: which one.
        records: how many records the copy's shard holds.
        files: path below the copy's folder -> [its bytes, its crc32c or None where the format has
            hashes of its own]. A path that ends in "/" is a folder that is renamed as a whole, with
            the sum of its files.
        bad: what could not be augmented, in order. Each has `record` (from 0, in the source's
            shard), `count` (how many declared records it stands for), `what` ("left out": not
            readable, so not in the copy; "placeholder": in the copy with black frames), `file`,
            `key`, `found` and `todo`.
        facts: what the format's own metadata and checks need to know of it, as plain JSON.
    """

    split: str
    shard: int
    records: int = 0
    files: dict[str, list] = field(default_factory=dict)
    bad: list[dict] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """The size of its files."""
        return sum(size for size, _ in self.files.values())


class DatasetCopy(abc.ABC):
    """Writes the augmented copy of a dataset.

    Args:
        dataset: the source; it is only read.
        out: the root of the copy; the dataset lies below it as `dataset.place` says.
        wrist_key: the new stream's name; every format accepts short and full spellings.
        size: (height, width) of its frames.
        description: what the copy's metadata says of it: that it is synthetic, and how made.
        quality: of its JPEGs, where the format stores JPEGs.
        replace: overwrite a stream of that name; without it a name that exists is refused.
        splits: only these. limit: only the first so many records, in the order of splits and
            shards. What is not wanted is left out where `subset` is true, and else is in the copy
            with black frames that are marked as not valid.

    Attributes:
        folder: where the copy's files lie (`dataset.root`'s counterpart).
        splits: the chosen splits of the source, `records` of their shards cut by `limit`.
        wrist_key: the short name. stream_key: the key that the format's reader knows it by.
        replaces: whether the source has a stream of that name, to be replaced.
        ahead: what the source's records pass through as `write_shard` reads them, for whoever wants
            to see them early.

    Raises:
        SourceError: the name is taken or unusable, a split is unknown, or `out` is in the source.
    """

    subset: ClassVar[bool] = True
    default_size: ClassVar[tuple[int, int] | None] = None  # what the format's readers expect
    like_siblings: ClassVar[bool] = False  # readers stack the cameras, so that sizes must agree
    gives_back: ClassVar[bool] = False  # whether `stored` gives anything
    closes_gaps: ClassVar[bool] = False  # what is left out is not in its shard; the rest moves up
    wrist_key: str
    stream_key: str
    replaces: bool

    def __init__(
        self,
        dataset: Dataset,
        out: Path,
        *,
        wrist_key: str = "wrist_rgb",
        size: tuple[int, int],
        description: str,
        quality: int = 95,
        replace: bool = False,
        splits: Sequence[str] | None = None,
        limit: int | None = None,
    ):
        self.dataset, self.size, self.quality = dataset, size, quality
        self.replace, self.description = replace, description
        self.ahead: Callable[[Iterator[Any]], Iterator[Any]] = lambda raws: raws
        self.folder = Path(out) / dataset.place
        _apart(dataset.folder, self.folder)
        self.splits = chosen_splits(dataset, splits, limit, leave_out=self.subset)
        self.wrist_key, self.stream_key = self.names(wrist_key)
        self.replaces = self.stream_key in {stream.key for stream in dataset.streams()}
        if self.replaces and not replace:
            raise SourceError(
                "there is a stream of this name already",
                file=dataset.folder,
                key=self.stream_key,
                todo="choose another --wrist-key, or say --replace to overwrite it in the copy",
            )

    @classmethod
    def usual_size(cls, dataset: Dataset) -> tuple[int, int] | None:
        """(height, width) of the new frames where the user names none; None: the recipe's own."""
        if cls.like_siblings:
            streams = {stream.key: stream.shape[:2] for stream in dataset.streams()}
            for camera in dataset.profile.anchors:
                height, width = streams.get(camera.key, (None, None))
                if height and width:
                    return height, width
        return cls.default_size

    @property
    def shards(self) -> list[Shard]:
        """The source shards of `splits`, in order."""
        return [shard for split in self.splits for shard in split.shards]

    @abc.abstractmethod
    def names(self, wrist_key: str) -> tuple[str, str]:
        """(the short name, the reader's key) of the new stream from any spelling of it.

        Raises:
            SourceError: it cannot be a name in this format.
        """

    @abc.abstractmethod
    def write_shard(self, shard: Shard, staged: Path, make: Make) -> ShardResult:
        """Make the copy of a source shard in the folder `staged`, with the new stream.

        Files lie below `staged` as they will lie below `folder`; they are fsynced
        (`staged_files`). A record that cannot be read, or for which `make` gives (or raises) a
        SourceError, gets black frames, all marked as not valid, and is listed in `bad`; only where
        the format cannot hold it is it left out.

        Args:
            shard: of `self.shards`; records from `shard.records` on are not wanted (see `limit`).
            staged: an empty folder on the file system of `folder`.
            make: gives the wrist stream of a record.

        Raises:
            ValueError: `make` gave a stream of another length or size than the episode's.
            OSError: the disk is full, or `staged` may not be written.
        """

    @abc.abstractmethod
    def metadata(self, results: Sequence[ShardResult]) -> dict[str, bytes]:
        """The patched metadata files: path below `folder` -> what is in it.

        It follows from the source and `results` alone, so that `verify` can ask for it again.
        """

    def other_files(self) -> Iterator[Path]:
        """The source's files that are copied as they are, less those of `metadata`."""
        return self.dataset.other_files()

    def records(self, shard: Shard) -> Iterator[Any]:
        """The source's records of a shard; every format's `write_shard` takes them from here."""
        return self.ahead(self.dataset.records(shard))

    def rest(self, results: Sequence[ShardResult]) -> tuple[dict[str, Path], dict[str, bytes]]:
        """What belongs into the copy beside the shards' files, by path below `folder`.

        Returns:
            (files that are copied as they are: path -> the source's, `metadata`)

        Raises:
            ValueError: `results` are not those of exactly `self.shards`.
        """
        found = [(result.split, result.shard) for result in results]
        places = [(shard.split, shard.index) for shard in self.shards]
        if sorted(found) != sorted(places):
            raise ValueError(f"results of {sorted(found)}, but the copy is made of {places}")
        patched = self.metadata(results)
        plain = {
            path.relative_to(self.dataset.root).as_posix(): path for path in self.other_files()
        }
        return {name: path for name, path in plain.items() if name not in patched}, patched

    def finish(
        self, results: Sequence[ShardResult], known: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Copy every other file of the source, then write `metadata` (in its order).

        Each file is staged, fsynced and renamed; a second call makes the same again.

        Args:
            known: what an earlier call returned; a file that is left as it was then (see
                `copy_atomic`) is not read again.

        Returns:
            {path below `folder`: SHA-256} of every file that belongs there beside the shards'.

        Raises:
            ValueError: `results` are not those of exactly `self.shards`.
            OSError: the disk is full, or the folder may not be written.
        """
        plain, patched = self.rest(results)
        folders = {self.folder, *((self.folder / name).parent for name in (*plain, *patched))}
        # Each waits for the disk: several wait at a time.
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            jobs = {
                name: pool.submit(_copied, path, self.folder / name, (known or {}).get(name))
                for name, path in plain.items()
            }
            hashes = {name: job.result() for name, job in jobs.items()}
        for name, data in patched.items():
            write_atomic(self.folder / name, data, sync_dir=False)
            hashes[name] = hashlib.sha256(data).hexdigest()
        for folder in sorted(folders):
            fsync_dir(folder)
        return hashes

    def stored(self, made: Dataset, raw: RawRecord) -> np.ndarray | Frames | None:
        """The new frames of a record of a published copy, to be written once more.

        Args:
            made: the published copy. raw: a record of it, without an error.

        Returns:
            [T, H, W, 3] uint8, upright, which `write_shard` makes the same bytes of as of the
            frames that were written; None where what is stored does not tell them, as video, which
            is not what was encoded and becomes another video each time.

        Raises:
            SourceError: they cannot be read.
        """
        return None

    def stream(
        self, raw: RawRecord, shard: Shard, make: Make, steps: int, result: ShardResult
    ) -> WristStream:
        """The new stream of a record, black where there is none; `bad` is kept in `result`.

        Raises:
            ValueError: `make` gave a stream of another length or size than the episode's.
        """
        if raw.record.index >= shard.records:
            return self.black(steps)
        if raw.error is not None:
            result.bad.append(listed(raw, raw.error, PLACEHOLDER, 1))
            return self.black(steps)
        made = asked(make, raw)
        if isinstance(made, SourceError):
            result.bad.append(listed(raw, made, PLACEHOLDER, 1))
            return self.black(steps)
        want = (steps, *self.size, 3)
        frames = np.asarray(made.frames)
        check_stream(raw, want, frames, flags_of(made))
        return made

    def black(self, steps: int) -> WristStream:
        """[steps] black frames (which take no memory), none of them valid."""
        frames = np.broadcast_to(np.uint8(0), (steps, *self.size, 3))
        return WristStream(frames, np.zeros(steps, bool), np.zeros(steps, np.float32))


def _copied(source: Path, path: Path, known: str | None) -> str:
    """Copy a file, or leave the copy that is there; returns its SHA-256."""
    copied = copy_atomic(source, path, sync_dir=False, keep=True)
    return file_sha256(path) if copied or known is None else known


def flags_of(stream: WristStream) -> dict[str, np.ndarray]:
    """What is written beside the frames: name (of `FLAGS`) -> [T] one value per step."""
    confidence = stream.confidence
    if confidence is None:
        confidence = np.full(len(stream.valid), np.nan)
    return {
        VALID: np.asarray(stream.valid, bool),
        CONFIDENCE: np.asarray(confidence, np.float32),
    }


def about_flag(name: str, wrist_key: str) -> str:
    """What one of `FLAGS` says of the stream `wrist_key`, for the formats that describe arrays."""
    if name == VALID:
        return (
            f"False where the synthetic frame of {wrist_key} could not be made (it is black then), "
            "or where its expected SSIM is below what was asked for"
        )
    return (
        f"the SSIM that is expected of the synthetic frame of {wrist_key}, in [0, 1]; 0 where it "
        "could not be made, NaN where nothing is known of it"
    )


def check_stream(
    raw: RawRecord, want: tuple[int, ...], frames: Any, flags: Mapping[str, np.ndarray]
) -> None:
    """ValueError unless frames are of the shape `want` and uint8, with a flag of each for each."""
    steps = want[:1]
    wrong = [values.shape for values in flags.values() if values.shape != steps]
    if frames.shape != want or frames.dtype != np.uint8 or wrong:
        raise ValueError(
            f"{raw.record}: a wrist stream of {frames.shape} {frames.dtype} with "
            f"{(wrong or [steps])[0]} flags, where {want} uint8 is due"
        )


def asked(make: Make, raw: RawRecord) -> WristStream | SourceError:
    """What `make` gives for a record; a SourceError that it raises counts as given."""
    try:
        return make(raw)
    except SourceError as error:
        return error


def listed(raw: RawRecord, error: SourceError, what: str, count: int) -> dict:
    """A row of ShardResult.bad."""
    # The file's name alone: what is written under OUT must not depend on where the source lies.
    return {
        "record": raw.record.index,
        "count": count,
        "what": what,
        "file": Path(error.file).name if error.file else None,
        "key": error.key,
        "found": error.found,
        "todo": error.todo,
    }


def staged_files(staged: Path, known: Mapping[str, list] | None = None) -> dict[str, list]:
    """{path below `staged`: [bytes, crc32c]} of every file in it, each brought to the disk.

    Args:
        known: what the writer knows already, from the bytes it had at hand; other files are read.
    """
    found = {}
    for folder, _, names in os.walk(staged):
        below = os.path.relpath(folder, staged).replace(os.sep, "/")
        for name in names:
            relative = name if below == "." else f"{below}/{name}"
            row = known.get(relative) if known else None
            if row is None:
                path = Path(folder, name)
                row = [path.stat().st_size, file_crc(path)]
            found[relative] = row
    found = {name: found[name] for name in sorted(found)}
    sync_files(staged, list(found))
    return found


def folded(files: dict[str, list], folders: Sequence[str]) -> dict[str, list]:
    """What `staged_files` found, with one entry for each of some folders instead of their files.

    A ledger could not hold the million small files of some stores.

    Args:
        folders: paths, as in "data/img/"; they end in "/" and none lies in another.

    Returns:
        As `files`; that of a folder is [sum of bytes, crc32c of a line "path size crc" a file, in
        the order of their names], with the paths below the folder.
    """
    found: dict[str, list] = {}
    for name in sorted(files):
        # Names are sorted with "/" between others; each folder's own are still in one order.
        folder = next((folder for folder in folders if name.startswith(folder)), None)
        size, crc = files[name]
        if folder is None:
            found[name] = [size, crc]
            continue
        entry = found.setdefault(folder, [0, 0])
        line = f"{name.removeprefix(folder)} {size} {crc}\n".encode()
        entry[:] = [entry[0] + size, google_crc32c.extend(entry[1], line)]
    return found


def folder_entry(folder: Path) -> list:
    """The entry that `folded` makes of a folder, from what lies in it now."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    files = {
        f"/{name}": [(folder / name).stat().st_size, file_crc(folder / name)] for name in names
    }
    return folded(files, ["/"]).get("/", [0, 0])


def file_crc(path: Path) -> int:
    """The crc32c of a file's bytes."""
    crc = 0
    with open(present(path), "rb", buffering=0) as file:
        while chunk := file.read(_BUFFER):
            crc = google_crc32c.extend(crc, chunk)
    return crc


def chosen_splits(
    dataset: Dataset, splits: Sequence[str] | None, limit: int | None, *, leave_out: bool = True
) -> list[Split]:
    """The named splits (None: all) in the dataset's order, cut after `limit` records.

    Args:
        leave_out: leave out shards that are not wanted; False keeps them with `records` 0.

    Raises:
        SourceError: a split is unknown, or `limit` leaves nothing.
    """
    names = [split.name for split in dataset.splits]
    for name in splits or ():
        if name not in names:
            raise SourceError(
                f"there is no such split; there are {', '.join(names)}",
                file=dataset.folder,
                key=name,
                todo="choose one of them",
            )
    if limit is not None and limit < 1:
        raise SourceError(f"{limit} episodes are nothing to do", todo="ask for at least one")
    chosen, left = [], limit
    for split in dataset.splits:
        wanted = splits is None or split.name in splits
        if not wanted and leave_out:
            continue
        shards = []
        for shard in split.shards:
            take = 0 if not wanted else shard.records if left is None else min(left, shard.records)
            if left is not None and left <= 0 and leave_out:
                break
            shards.append(dataclasses.replace(shard, records=take))
            left = None if left is None else left - take
        if shards or not leave_out:
            chosen.append(Split(split.name, shards))
    return chosen


def _apart(source: Path, folder: Path) -> None:
    """Refuse a copy that lies in its source, or the other way round."""
    a, b = source.resolve(), folder.resolve()
    # A dataset that is one file would be overwritten by a copy of its name beside it.
    beside = b == a.parent and not source.is_dir()
    if a == b or beside or a in b.parents or (b in a.parents and source.is_dir()):
        raise SourceError(
            "the copy would lie in the dataset that it copies",
            file=folder,
            todo="choose another --out",
        )
