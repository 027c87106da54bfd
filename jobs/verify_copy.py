"""The comparison of a copy of any format with its source, through the format's own reader.

Three things are held against each other: every file's bytes (against the source, against what the
metadata must be, or against the checksum that was recorded when it was made), everything that each
record holds, and the new frames.
"""

from __future__ import annotations

import filecmp
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..readers import open_dataset
from ..readers.dataset import Dataset, RawRecord, Shard
from ..readers.errors import SourceError
from ..readers.files import present
from ..writers.copy import (
    CONFIDENCE,
    FLAGS,
    LEFT_OUT,
    VALID,
    DatasetCopy,
    ShardResult,
    file_crc,
    folder_entry,
)
from ..writers.formats import open_copy
from .findings import BLACK, NOT_BLACK, Findings, unmade, wrong_confidence
from .job import description
from .ledger import FOLDER, Ledger
from .mirror import release_all

_PIECE = 64  # frames decoded at a time
_PARTS = re.compile(r"[/:@\[\]\s]+")  # what parts of a key of Dataset.content are told by


class Comparison(Findings):
    """A copy with its ledger beside its source.

    Args:
        out: what was given as --out.
        source: what was given as --data-dir.
        bar: show a progress bar on stderr.
        damaged: files of the ledger that are not as they were written (see Checksums), and are
            not believed.

    Raises:
        SourceError: they cannot be compared at all.
    """

    def __init__(self, out: Path, source: Path, bar: bool, damaged: Collection[str] = ()):
        super().__init__(bar, damaged)
        self.ledger = Ledger(out)
        plan = self.ledger.plan()
        assert plan is not None
        self.source = open_dataset(source, plan["dataset"], plain=True)
        if (self.source.format, self.source.name) != (plan["format"], plan["dataset"]):
            raise SourceError(
                f"holds {self.source.name} ({self.source.format}), but the copy was made of "
                f"{plan['dataset']} ({plan['format']})",
                file=self.source.folder,
                key="--source",
                todo="give the --data-dir that the copy was made of",
            )
        self.copy: DatasetCopy = open_copy(
            self.source,
            out,
            wrist_key=plan["wrist_key"],
            size=tuple(plan["wrist_size"]),
            description=description(plan["wristaugment"], plan["recipe"]["name"]),
            replace=plan["replace"],
            splits=plan["splits"],
            limit=plan["episodes"],
        )

    def report(self) -> dict:
        """Compare; returns what verify.verify returns."""
        if not self.ledger.complete():
            self.problem(
                self.ledger.manifest_path, "the job is not complete", todo="run it again to go on"
            )
        results = self._results()
        self._files(results)
        self._metadata(results)
        release_all(below=self.ledger.folder)
        made = self._open()
        if made is not None:
            from tqdm import tqdm

            total = sum(split.records for split in self.source.splits)
            with tqdm(total=total, unit="record", disable=not self.bar) as bar:
                for shard in self.copy.shards:
                    result = results.get((shard.split, shard.index))
                    if result is not None and result.records:
                        self._shard(made, shard, result, bar)
                    release_all(below=self.ledger.folder)
        return {
            "copy": str(self.copy.folder),
            "source": str(self.source.folder),
            "wrist_key": self.copy.wrist_key,
            **self.counts,
            "problems": self.problems,
        }

    def _results(self) -> dict[tuple[str, int], ShardResult]:
        found = {}
        for shard in self.copy.shards:
            entry = self.recorded(self.ledger, shard.split, shard.index)
            if entry is None:
                self.problem(
                    shard.path,
                    f"the ledger has no record of {shard.split} shard {shard.index}",
                    todo="run the job again to go on",
                )
            else:
                result = ShardResult(**entry["result"])
                found[shard.split, shard.index] = result
                gone = (item["count"] for item in result.bad if item["what"] == LEFT_OUT)
                self.counts["left_out"] += sum(gone)
        return found

    def _files(self, results: dict) -> None:
        """Every published file against the checksum that was recorded of it."""
        for result in results.values():
            release_all(below=self.ledger.folder)
            for name, (size, crc) in result.files.items():
                path = self.copy.folder / name
                if name.endswith("/"):
                    self._folder(path, size, crc)
                elif not path.is_file():
                    self.problem(path, "is missing", todo="run the job again to go on")
                elif path.stat().st_size != size:
                    self.problem(path, f"has {path.stat().st_size} bytes, not {size}")
                elif crc is not None and file_crc(path) != crc:
                    self.problem(path, "is not what was published (its crc32c)")

    def _folder(self, path: Path, size: int, crc: int | None) -> None:
        if not path.is_dir():
            self.problem(path, "is missing", todo="run the job again to go on")
            return
        found = folder_entry(path)
        if found[0] != size:
            self.problem(path, f"has {found[0]} bytes, not {size}")
        elif crc is not None and found[1] != crc:
            self.problem(path, "is not what was published (the crc32c of its files)")

    def _metadata(self, results: dict) -> None:
        """Patched files, files that are as in the source, and files that nobody knows."""
        patched: dict[str, bytes] = {}
        if len(results) == len(self.copy.shards):
            patched = self.copy.metadata(list(results.values()))
        published = {name for result in results.values() for name in result.files}
        expected = {self.copy.folder / name for name in (*patched, *published)}
        for name, data in patched.items():
            path = self.copy.folder / name
            if not path.is_file():
                self.problem(path, "is missing", todo="run the job again to go on")
            elif present(path).read_bytes() != data:
                self.problem(path, "is not what the source and the ledger make of it")
        for path in self.copy.other_files():
            name = path.relative_to(self.source.root)
            target = self.copy.folder / name
            if name.as_posix() in patched or target in expected:
                continue
            expected.add(target)
            if not target.is_file():
                self.problem(target, "is missing", todo="run the job again to go on")
            elif not filecmp.cmp(present(path), present(target), shallow=False):
                self.problem(target, "is not as in the source")
        if len(results) < len(self.copy.shards):
            return  # what belongs to the others is not known
        whole = tuple(name for name in published if name.endswith("/"))
        for path in sorted(self.copy.folder.rglob("*")):
            name = path.relative_to(self.copy.folder)
            known = path in expected or name.as_posix().startswith(whole or ("\0",))
            if path.is_file() and not known and name.parts[0] != FOLDER:
                self.problem(path, "does not belong to the copy", todo="remove it")

    def _open(self) -> Dataset | None:
        """The copy as its reader sees it."""
        try:
            return open_made(self.copy)
        except SourceError as error:
            self.problem(error.file or self.copy.folder, error.found, key=error.key)
            return None

    def _shard(self, made: Dataset, shard: Shard, result: ShardResult, bar) -> None:
        bad = {item["record"]: item for item in result.bad}
        declared = self.source.shard(shard.split, shard.index)
        twin = twin_of(self.source, made, declared)
        if twin is None:
            self.problem(self.copy.folder, f"has no {shard.split} shard {shard.index}")
            return
        self._same(self.source.shared_content(declared), made.shared_content(twin), twin.path, None)
        others = made.records(twin)
        for raw in self.source.records(declared):
            bar.update(1)
            other = next(others, None)
            if other is None:
                self.problem(twin.path, "this record is missing", record=raw.record.index)
                return
            self.counts["records"] += 1
            if raw.error is not None and other.error is not None:
                self.counts["placeholders"] += raw.record.index in bad
                continue  # as broken as in the source; its files have been compared
            try:
                self._record(made, raw, other, raw.record.index in bad)
            except SourceError as error:
                if raw.record.index in bad and self._broken(raw):
                    self.counts["placeholders"] += 1
                    continue  # as above, but found later
                self.problem(
                    error.file or twin.path, error.found, record=raw.record.index, key=error.key
                )
        if next(others, None) is not None:
            self.problem(twin.path, "holds more than the source's records")

    def _broken(self, raw: RawRecord) -> bool:
        """Whether the source's record cannot be read from end to end."""
        try:
            for _ in self.source.content(raw):
                pass
            for stream in self.source.streams():
                frames = self.source.frames(raw, stream.key)
                for first in range(0, len(frames), _PIECE):
                    np.asarray(frames[first : first + _PIECE])
        except SourceError:
            return True
        return False

    def _record(self, made: Dataset, raw: RawRecord, other: RawRecord, bad: bool) -> None:
        file = made.file_of(other.record)
        if not bad:
            old, new = self.source.content(raw), made.content(other)
            self._same(old, new, file, raw.record.index)
        steps = made.steps(other)
        frames = made.frames(other, self.copy.stream_key)
        valid, confidence = (made.flags(other, name) for name in (VALID, CONFIDENCE))
        where: dict[str, Any] = {"record": raw.record.index, "key": self.copy.stream_key}
        if valid is None or len(valid) != steps or len(frames) != steps:
            count = "no" if valid is None else len(valid)
            self.problem(file, f"{len(frames)} frames and {count} flags of {steps} steps", **where)
            return
        if confidence is None or len(confidence) != steps:
            count = "no" if confidence is None else len(confidence)
            self.problem(file, f"{count} confidences of {steps} steps", **where)
            return
        if found := wrong_confidence(confidence, valid):
            self.problem(file, found, record=raw.record.index, key=CONFIDENCE)
            return
        self.counts["frames"] += steps
        self.counts["valid_frames"] += int(valid.sum())
        self.counts["placeholders"] += bad
        if bad and valid.any():
            self.problem(file, "is listed as not made, but is marked as valid", **where)
        for first in range(0, steps, _PIECE):
            piece = np.asarray(frames[first : first + _PIECE])
            if piece.shape[1:] != (*self.copy.size, 3) or piece.dtype != np.uint8:
                self.problem(file, f"holds pictures of {piece.shape[1:]} {piece.dtype}", **where)
                return
            part = slice(first, first + _PIECE)
            dark = unmade(valid[part], confidence[part])
            if piece[dark].max(initial=0) > BLACK:
                self.problem(file, NOT_BLACK, **where)
                return

    def _same(self, old: Iterator, new: Iterator, file: Path, record: int | None) -> None:
        """Note the first thing that is not in the copy as it is in the source."""
        if found := first_difference(old, new, self._own):
            self.problem(file, found[1], record=record, key=found[0])

    def _own(self, key: str) -> bool:
        """Whether a key belongs to the new stream."""
        return is_new(key, self.copy)


def open_made(copy: DatasetCopy) -> Dataset:
    """A published copy as its own reader sees it, without anchors.

    Raises:
        SourceError: it cannot be opened.
    """
    source = copy.dataset.folder
    return open_dataset(copy.folder if source.is_dir() else copy.folder / source.name, plain=True)


def twin_of(source: Dataset, made: Dataset, shard: Shard) -> Shard | None:
    """The copy's counterpart of a source shard: of the same path, where paths tell them apart.

    Numbers do not tell it: a file that no one can read is not in the copy.
    """
    place = shard.path.relative_to(source.root)
    there = [s for split in made.splits for s in split.shards if split.name == shard.split]
    same = [s for s in there if s.path.relative_to(made.root) == place]
    if len(same) == 1:
        return same[0]
    return next((s for s in there if s.index == shard.index), None)


def is_new(key: str, copy: DatasetCopy) -> bool:
    """Whether a key of Dataset.content belongs to the stream that `copy` adds."""
    names = {copy.wrist_key, copy.stream_key.rpartition("/")[2], *FLAGS}
    return not names.isdisjoint(_PARTS.split(key))


def first_difference(old: Iterator, new: Iterator, own) -> tuple[str, str] | None:
    """(key, what is wrong) of the first item of `old` that is not in `new`, or of one too many.

    Args:
        old, new: as of Dataset.content.
        own: tells the keys of the new stream, which only `new` has to have.
    """
    for key, value in old:
        if own(key):
            continue  # replaced
        found: tuple[str, Any] | None = next(((k, v) for k, v in new if not own(k)), None)
        if found is None:
            return key, "is missing"
        if found[0] != key:
            return found[0], f"is where the source has {key!r}"
        if found[1] != value:
            return key, "is not as in the source"
    extra = next((k for k, _ in new if not own(k)), None)
    return None if extra is None else (extra, "is not in the source")
