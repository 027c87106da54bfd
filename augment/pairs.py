"""The episodes of an evaluation: each with its recorded wrist view, and a copy's frames."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from ..readers import open_dataset
from ..readers.dataset import Dataset, RawRecord, Shard, Split
from ..readers.episode import Episode, Record, WristStream
from ..readers.errors import SourceError
from ..writers.copy import CONFIDENCE, VALID

Pair = tuple[Episode | None, WristStream | None]


class MismatchError(SourceError):
    """Copy and source are not of one dataset: it concerns every episode, so it ends the walk."""


@dataclass
class Pairs:
    """Episodes with a recorded wrist view, each with the stream of the copy where one is given.

    Iterating yields (Episode, stream or None), or (None, None) for a record that had to be left
    out; `left_out` says which and why. With `depth`, anchors carry what depth the dataset has.
    """

    dataset: Dataset
    against: str
    splits: list[Split]
    limit: int | None
    copy: Dataset | None = None
    wrist_key: str = ""
    depth: bool = False
    left_out: list[dict[str, str]] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many records will be looked at."""
        count = sum(split.records for split in self.splits)
        return count if self.limit is None else min(count, self.limit)

    @contextlib.contextmanager
    def leaving_out(self, record: Record) -> Iterator[None]:
        """Turns a SourceError inside into an entry of `left_out`."""
        try:
            yield
        except MismatchError:
            raise
        except SourceError as error:
            self.left_out.append({"record": str(record), "reason": str(error)})

    def __iter__(self) -> Iterator[Pair]:
        return islice(self._walk(), self.limit)

    def _walk(self) -> Iterator[Pair]:
        for split in self.splits:
            for shard in split.shards:
                theirs = self._copied(split, shard)
                for raw in self.dataset.records(shard):
                    episode = stream = None
                    with self.leaving_out(raw.record):
                        # The copy leaves out what has no length, so only the others pair up.
                        self.dataset.steps(raw)
                        twin = next(theirs, None) if theirs is not None else None
                        found = self.dataset.episode(raw, wrist=self.against, depth=self.depth)
                        if theirs is not None:
                            stream = self._stream(twin, found)
                        episode = found
                    yield episode, stream

    def _copied(self, split: Split, shard: Shard) -> Iterator[RawRecord] | None:
        """The readable records of the copy's twin of a shard; None where no copy is scored."""
        if self.copy is None:
            return None
        twin = next((s for s in self.copy.splits if s.name == split.name), None)
        if twin is None or shard.index >= len(twin.shards):
            return iter(())
        return (r for r in self.copy.records(twin.shards[shard.index]) if r.error is None)

    def _stream(self, twin: RawRecord | None, episode: Episode) -> WristStream:
        """The generated stream of an episode in the copy, whose anchors must be the same."""
        assert self.copy is not None
        if twin is None:
            raise SourceError(
                "the copy does not hold this episode",
                file=self.copy.folder,
                record=episode.record.index,
                todo="finish it with `wristaugment run`, or score fewer with --episodes or --split",
            )
        other = self.copy.episode(twin, wrist=self.wrist_key)
        same = len(other.anchors) == len(episode.anchors) and all(
            a.key == b.key and np.array_equal(a.frames, b.frames)
            for a, b in zip(other.anchors, episode.anchors, strict=True)
        )
        if not same:
            raise MismatchError(
                "the copy holds another episode here than the source",
                file=self.copy.file_of(twin.record),
                record=twin.record.index,
                todo="give --data-dir the dataset that the copy was made from",
            )
        assert other.wrist is not None
        flags = self.copy.flags(twin, VALID)
        steps = other.length
        valid = np.ones(steps, bool) if flags is None else flags.astype(bool)
        confidence = self.copy.flags(twin, CONFIDENCE)
        return WristStream(
            np.asarray(other.wrist.frames),
            valid,
            np.full(steps, np.nan, np.float32),
            confidence=None if confidence is None else confidence.astype(np.float32),
        )


def open_pairs(
    data_dir: Path | str,
    dataset: str | None,
    *,
    against: str,
    anchor_keys: list[str] | None = None,
    splits: list[str] | None = None,
    limit: int | None = None,
    copy: Path | str | None = None,
    wrist_key: str = "wrist_rgb",
    depth: bool = False,
) -> Pairs:
    """Opens the dataset, and the copy if one is given, and checks all that can be checked ahead.

    Raises:
        SourceError: a folder, split or key that is not there, or one that makes no sense.
    """
    if limit is not None and limit < 1:
        raise SourceError(f"{limit} episodes", key="--episodes", todo="give 1 or more")
    source = open_dataset(Path(data_dir), dataset, anchor_keys=anchor_keys)
    key = picture_key(source, against, "--against")
    require_recorded(source, key)
    require_splits(source, splits or ())
    chosen = [split for split in source.splits if splits is None or split.name in splits]
    pairs = Pairs(source, key, chosen, limit, depth=depth)
    if copy is not None:
        pairs.copy = open_dataset(_copied(Path(copy), source), dataset, anchor_keys=anchor_keys)
        pairs.wrist_key = picture_key(pairs.copy, wrist_key, "--wrist-key")
    return pairs


def training_pairs(pairs: Pairs, names: list[str] | None, limit: int) -> tuple[Pairs, str]:
    """(the episodes that `nearest` looks in, in words which they are).

    Those of the splits named; of `train`, if there is one; of all splits that are not evaluated;
    or, where that leaves nothing, of what is evaluated, where each episode looks in the others.

    Raises:
        SourceError: there is no such split.
    """
    source = pairs.dataset
    require_splits(source, names or (), "--train-split")
    evaluated = {split.name for split in pairs.splits}
    if names is None:
        names = [split.name for split in source.splits if split.name == "train"]
        names = names or [s.name for s in source.splits if s.name not in evaluated]
    said = f"split {', '.join(names)}"
    if not names:
        names = sorted(evaluated)
        said = f"no training split: the other episodes of {', '.join(names)}"
    elif evaluated & set(names):
        said += " (never the episode itself)"
    chosen = [split for split in source.splits if split.name in names]
    found = Pairs(source, pairs.against, chosen, limit)
    records = sum(split.records for split in chosen)
    if records > limit:
        said += f", the first {limit} of {records} episodes"
    return found, said


def _copied(out: Path, source: Dataset) -> Path:
    """Where the copy of `source` lies in an --out; the path itself where it is not one."""
    place = out / source.place
    if not source.folder.is_dir():
        place = place / source.folder.name
    return place if place.exists() else out


def require_recorded(dataset, key: str) -> None:
    """SourceError for a wrist view that is also an anchor: nothing would be learnt or shown."""
    if key in [camera.key for camera in dataset.profile.anchors]:
        raise SourceError(
            "is an anchor view, so what is made could be copied from what it is held against",
            file=dataset.folder,
            key=key,
            todo="take it out of --anchor-keys, or name another with --against",
        )


def require_splits(dataset, names: Iterable[str], option: str = "--split") -> None:
    """SourceError for a split that the dataset does not have; lists those that it has."""
    known = [split.name for split in dataset.splits]
    for name in names:
        if name not in known:
            raise SourceError(
                f"there is no split {name!r}",
                file=dataset.folder,
                key=option,
                todo=f"name one of: {', '.join(known)}",
            )


def picture_key(dataset, name: str, option: str) -> str:
    """The canonical key of a stream of pictures that a user named with `option`.

    Raises:
        SourceError: there is none of that name; lists those that there are.
    """
    streams = {stream.key: stream for stream in dataset.streams()}
    # The last part of a key will do where no other key ends in it.
    name = name.removeprefix("steps/")
    ends = [key for key in streams if key.endswith(f"/{name}")]
    found = streams.get(name) or (streams[ends[0]] if len(ends) == 1 else None)
    if found is None or found.depth:
        keys = ", ".join(stream.key for stream in streams.values() if not stream.depth) or "none"
        what = "there is no such stream" if found is None else "this is depth, no pictures"
        raise SourceError(
            f"{what}; the dataset's image keys are: {keys}",
            file=dataset.folder,
            key=name,
            todo=f"name one of them with {option}",
        )
    return found.key
