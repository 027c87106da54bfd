"""The augmented copy of an RLDS dataset: every old byte, and one new camera stream.

Records are streamed, one in memory at a time; new entries are appended to each (writers/splice),
features.json and dataset_info.json are patched, and everything else is copied.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import numpy as np

from ..readers.dataset import Shard, Split
from ..readers.episode import WristStream
from ..readers.errors import SourceError
from ..readers.features import STEPS, dump_like
from ..readers.rlds import RawRecord, RldsDataset
from ..readers.tfds_folder import FEATURES, INFO
from ..readers.tfrecord import OVERHEAD, extend_crc, footer, header
from .atomic import copy_atomic, fsync_dir, write_atomic
from .splice import addition, encode_jpeg, without

VALID = "wrist_valid"
LEFT_OUT, PLACEHOLDER = "left out", "placeholder"
_OBSERVATION = "observation/"
_BUFFER = 1 << 18  # small records are written several at a time


@dataclass
class ShardResult:
    """What became of one shard; all of it survives `json.dumps(dataclasses.asdict(...))`.

    Attributes:
        split, shard: which one.
        records: how many records are in the copy's file.
        num_bytes: the sum of their payloads (dataset_info's numBytes).
        added_sha256: of what the copy adds: each record's length, new bytes and crc (which covers
            the record's old bytes too); not of the whole file.
        bytes: the size of the file.
        bad: what could not be augmented, in order. Each has `record` (from 0, in the source's
            file), `count` (how many declared records it stands for), `what` ("left out": not
            readable, so not in the copy; "placeholder": in the copy with black frames), `file`,
            `key`, `found` and `todo`.
    """

    split: str
    shard: int
    records: int
    num_bytes: int
    added_sha256: str
    bytes: int
    bad: list[dict] = field(default_factory=list)


class RldsCopy:
    """Writes the augmented copy of a dataset.

    Args:
        dataset: the source; it is only read.
        out: the root of the copy; the dataset lies below it as `dataset.place` says.
        wrist_key: the new stream's name under `steps/observation` (longer spellings are accepted).
        size: (height, width) of its frames.
        description: what features.json says of the new stream: that it is synthetic, and how made.
        quality: of its JPEGs.
        replace: overwrite a stream of that name; without it a name that exists is refused.
        splits: copy only these.
        limit: copy only the first so many records, in the order of splits and shards.

    Attributes:
        folder: the version folder of the copy.
        splits: what it is made of: the chosen splits of the source, cut by `limit`.

    Raises:
        SourceError: the name is taken or unusable, a split is unknown, or `out` is in the source.
    """

    def __init__(
        self,
        dataset: RldsDataset,
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
        self.replace = replace
        self.wrist_key = _short(wrist_key)
        self.folder = Path(out) / dataset.place
        _apart(dataset.folder, self.folder)
        wrist = {
            "kind": "Image",
            "shape": (*size, 3),
            "dtype": "uint8",
            "description": description,
        }
        valid = {
            "kind": "Scalar",
            "shape": (),
            "dtype": "bool",
            "description": f"False where the synthetic frame of {self.wrist_key} could not be "
            "made; it is black then.",
        }
        self._features = dataset.features.patched(
            {self.wrist_key: wrist, VALID: valid}, replace=replace
        )
        prefix = f"{STEPS}/{_OBSERVATION}"
        self._flat = (prefix + self.wrist_key, prefix + VALID)
        self.splits = chosen_splits(dataset, splits, limit)
        self._counts = {split.name: len(split.shards) for split in self.splits}
        self._black = encode_jpeg(np.zeros((*size, 3), np.uint8), quality)

    @property
    def shards(self) -> list[Shard]:
        """The source shards of `splits`, in order."""
        return [shard for split in self.splits for shard in split.shards]

    def shard_path(self, shard: Shard) -> Path:
        """Where the copy of a shard belongs; its name tells the copy's number of shards."""
        count = self._counts[shard.split]
        return self.folder / self.dataset.info.shard_name(shard.split, shard.index, count)

    def write_shard(
        self,
        shard: Shard,
        staged: Path,
        make: Callable[[RawRecord], WristStream | SourceError],
    ) -> ShardResult:
        """Stream a source shard to `staged`, with the new stream in every record; fsynced.

        A record that cannot be read is left out; one for which `make` gives (or raises) a
        SourceError gets black frames, all marked as not valid. Both are listed in `bad`.

        Raises:
            ValueError: `make` gave a stream of another length or size than the episode's.
            OSError: the disk is full, or `staged` may not be written.
        """
        declared = next(s for s in self.shards if (s.split, s.index) == (shard.split, shard.index))
        result = ShardResult(shard.split, shard.index, 0, 0, "", 0)
        digest = hashlib.sha256()
        with open(staged, "wb", buffering=_BUFFER) as file:
            for raw in self.dataset.records(shard):
                left = declared.records - raw.record.index
                if left <= 0:
                    if raw.error is not None and not raw.missing:
                        result.bad.append(_bad(raw, raw.error, LEFT_OUT, 0))
                    break
                try:
                    steps = self.dataset.steps(raw)
                except SourceError as error:
                    count = min(raw.missing or 1, left)
                    result.bad.append(_bad(raw, error, LEFT_OUT, count))
                    continue
                made = _made(make, raw)
                if isinstance(made, SourceError):
                    result.bad.append(_bad(raw, made, PLACEHOLDER, 1))
                extra = self._extra(raw, made, steps)
                payload, crc = self._kept(raw)
                length = len(payload) + len(extra)
                head, tail = header(length), footer(extend_crc(crc, extra))
                file.writelines((head, payload, extra, tail))
                # The old bytes are in the crc of the tail, and are compared with the source by
                # `verify`; hashing them too would cost more than reading and writing them.
                digest.update(head + extra + tail)
                result.bytes += OVERHEAD + length
                result.records += 1
                result.num_bytes += length
            file.flush()
            os.fsync(file.fileno())
        result.added_sha256 = digest.hexdigest()
        return result

    def finish(self, results: Sequence[ShardResult]) -> None:
        """Write features.json, dataset_info.json (last) and every other file of the source.

        Each file is staged, fsynced and renamed; a second call writes the same again.

        Raises:
            ValueError: `results` are not those of exactly `self.shards`.
            OSError: the disk is full, or the folder may not be written.
        """
        by_place = {(result.split, result.shard): result for result in results}
        places = [(shard.split, shard.index) for shard in self.shards]
        if set(by_place) != set(places) or len(results) != len(places):
            raise ValueError(f"results of {sorted(by_place)}, but the copy is made of {places}")
        folders = {self.folder}
        for path in other_files(self.dataset):
            target = self.folder / path.relative_to(self.dataset.folder)
            copy_atomic(path, target, sync_dir=False)
            folders.add(target.parent)
        write_atomic(self.folder / FEATURES, self._features.encode(), sync_dir=False)
        write_atomic(self.folder / INFO, self._info(by_place).encode(), sync_dir=False)
        for folder in folders:
            fsync_dir(folder)

    def _extra(self, raw: RawRecord, made: WristStream | SourceError, steps: int) -> bytes:
        """The bytes to append to a record."""
        if isinstance(made, SourceError):
            pictures, valid = [self._black] * steps, [0] * steps
        else:
            want = (steps, *self.size, 3)
            frames, flags = np.asarray(made.frames), np.asarray(made.valid)
            if frames.shape != want or frames.dtype != np.uint8 or flags.shape != (steps,):
                raise ValueError(
                    f"{raw.record}: a wrist stream of {frames.shape} {frames.dtype} with "
                    f"{flags.shape} flags, where {want} uint8 is due"
                )
            pictures = [encode_jpeg(frame, self.quality) for frame in frames]
            valid = [int(flag) for flag in flags]
        key, valid_key = self._flat
        return addition({key: pictures}, {valid_key: valid})

    def _kept(self, raw: RawRecord) -> tuple[bytes, int]:
        """What is kept of a record, and its plain crc32c: all of it unless a stream is replaced."""
        assert raw.payload is not None
        if not self.replace:
            return raw.payload, raw.crc
        payload = without(self.dataset.index(raw), self._flat)
        return payload, google_crc32c.value(payload)

    def _info(self, results: dict[tuple[str, int], ShardResult]) -> str:
        """dataset_info.json with the copy's splits, shard lengths and sizes."""
        info = self.dataset.info
        tree = copy.deepcopy(info.tree)
        tree["splits"] = [row for row in tree["splits"] if row["name"] in self._counts]
        for row in tree["splits"]:
            shards = [results[row["name"], index] for index in range(self._counts[row["name"]])]
            row["shardLengths"] = [str(result.records) for result in shards]
            row["numBytes"] = str(sum(result.num_bytes for result in shards))
        return dump_like(info.text, info.tree, tree)


def other_files(dataset: RldsDataset) -> Iterator[Path]:
    """The files of the version folder that are neither records nor the two patched ones."""
    own = {shard.path for split in dataset.splits for shard in split.shards}
    own |= {dataset.folder / FEATURES, dataset.folder / INFO}
    for path in sorted(dataset.folder.rglob("*")):
        if path.is_file() and path not in own:
            yield path


def _short(name: str) -> str:
    """`wrist_rgb` from any spelling of the key."""
    short = name.removeprefix(f"{STEPS}/").removeprefix(_OBSERVATION)
    if not short or short == VALID or short.strip() != short:
        raise SourceError(
            "cannot be the name of the new camera", key=name, todo="choose another --wrist-key"
        )
    return short


def _apart(source: Path, folder: Path) -> None:
    """Refuse a copy that lies in its source, or the other way round."""
    a, b = source.resolve(), folder.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise SourceError(
            "the copy would lie in the dataset that it copies",
            file=folder,
            todo="choose another --out",
        )


def chosen_splits(
    dataset: RldsDataset, splits: Sequence[str] | None, limit: int | None
) -> list[Split]:
    """The named splits (None: all) in the dataset's order, cut after `limit` records.

    Raises:
        SourceError: a split is unknown, or `limit` leaves nothing.
    """
    names = [split.name for split in dataset.splits]
    for name in splits or ():
        if name not in names:
            raise SourceError(
                f"there is no such split; there are {', '.join(names)}",
                file=dataset.info.path,
                key=name,
                todo="choose one of them",
            )
    if limit is not None and limit < 1:
        raise SourceError(f"{limit} episodes are nothing to do", todo="ask for at least one")
    chosen, left = [], limit
    for split in dataset.splits:
        if splits is not None and split.name not in splits:
            continue
        shards = []
        for shard in split.shards:
            if left is not None and left <= 0:
                break
            take = shard.records if left is None else min(left, shard.records)
            shards.append(dataclasses.replace(shard, records=take))
            left = None if left is None else left - take
        if shards:
            chosen.append(Split(split.name, shards))
    return chosen


def _made(make: Callable, raw: RawRecord) -> WristStream | SourceError:
    try:
        return make(raw)
    except SourceError as error:
        return error


def _bad(raw: RawRecord, error: SourceError, what: str, count: int) -> dict:
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
