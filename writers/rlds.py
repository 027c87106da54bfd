"""The augmented copy of an RLDS dataset: every old byte, and one new camera stream.

Records are streamed, one in memory at a time; new entries are appended to each (writers/splice),
features.json and dataset_info.json are patched, and everything else is copied.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from ..readers.dataset import Dataset, RawRecord, Shard
from ..readers.episode import WristStream
from ..readers.errors import SourceError
from ..readers.features import STEPS, dump_like
from ..readers.frames import Frames, JpegFrames
from ..readers.rlds import RldsDataset, RldsRecord
from ..readers.tfds_folder import FEATURES, INFO
from .copy import (
    CONFIDENCE,
    FLAGS,
    LEFT_OUT,
    PLACEHOLDER,
    VALID,
    DatasetCopy,
    Make,
    ShardResult,
    about_flag,
    asked,
    check_stream,
    flags_of,
    listed,
)
from .record_files import open_sink
from .splice import addition, encode_jpeg, encode_stream, without

_OBSERVATION = "observation/"


class RldsCopy(DatasetCopy):
    """Writes the augmented copy of an RLDS dataset; see DatasetCopy for its arguments.

    The `facts` of a shard are `num_bytes`, the sum of its payloads (dataset_info's numBytes), and
    `added_sha256` of what the copy adds: each record's length, new bytes and crc (which covers the
    record's old bytes too); not of the whole file.
    """

    gives_back = True
    closes_gaps = True
    dataset: RldsDataset

    def __init__(self, dataset: RldsDataset, out: Path, **options: Any):
        super().__init__(dataset, out, **options)
        wrist = {
            "kind": "Image",
            "shape": (*self.size, 3),
            "dtype": "uint8",
            "description": self.description,
        }
        flags = {
            name: {
                "kind": "Scalar",
                "shape": (),
                "dtype": values.dtype.name,
                "description": about_flag(name, self.wrist_key) + ".",
            }
            for name, values in flags_of(self.black(0)).items()
        }
        self._features = dataset.features.patched(
            {self.wrist_key: wrist, **flags}, replace=self.replace
        )
        prefix = f"{STEPS}/{dataset.features.home}"
        self._flat = tuple(prefix + name for name in (self.wrist_key, VALID, CONFIDENCE))
        self._counts = {split.name: len(split.shards) for split in self.splits}
        self._black = encode_jpeg(np.zeros((*self.size, 3), np.uint8), self.quality)

    def names(self, wrist_key: str) -> tuple[str, str]:
        """("wrist_rgb", "observation/wrist_rgb") from any spelling of it."""
        short = wrist_key.removeprefix(f"{STEPS}/").removeprefix(_OBSERVATION)
        if not short or short in FLAGS or short.strip() != short:
            raise SourceError(
                "cannot be the name of the new camera",
                key=wrist_key,
                todo="choose another --wrist-key",
            )
        return short, self.dataset.features.home + short

    def shard_path(self, shard: Shard) -> Path:
        """Where the copy of a shard belongs; its name tells the copy's number of shards."""
        count = self._counts[shard.split]
        return self.folder / self.dataset.info.shard_name(shard.split, shard.index, count)

    def write_shard(self, shard: Shard, staged: Path, make: Make) -> ShardResult:
        """Stream a source shard to a file in `staged`, with the new stream in every record.

        A record that cannot be read is left out; one for which `make` gives (or raises) a
        SourceError gets black frames, all marked as not valid. Both are listed in `bad`.

        Raises:
            ValueError: `make` gave a stream of another length or size than the episode's.
            OSError: the disk is full, or `staged` may not be written.
        """
        wanted = next(s for s in self.shards if (s.split, s.index) == (shard.split, shard.index))
        declared = self.dataset.shard(shard.split, shard.index)
        result = ShardResult(shard.split, shard.index)
        name = self.shard_path(shard).name
        with open_sink(staged / name, self.dataset.info.file_format, shard.path) as sink:
            for raw in self.records(declared):
                left = wanted.records - raw.record.index
                if left <= 0:
                    if raw.error is not None and not raw.missing:
                        result.bad.append(listed(raw, raw.error, LEFT_OUT, 0))
                    break
                try:
                    steps = self.dataset.steps(raw)
                except SourceError as error:
                    count = min(raw.missing or 1, left)
                    result.bad.append(listed(raw, error, LEFT_OUT, count))
                    continue
                made = asked(make, raw)
                if isinstance(made, SourceError):
                    result.bad.append(listed(raw, made, PLACEHOLDER, 1))
                extra = self._extra(raw, made, steps)
                payload, crc = self._kept(raw)
                sink.add(payload, crc, extra)
        result.records = sink.records
        # No crc32c of the file: every record has its own checksum.
        result.files[name] = [(staged / name).stat().st_size, None]
        result.facts = {"num_bytes": sink.num_bytes, "added_sha256": sink.added_sha256}
        return result

    def metadata(self, results: Sequence[ShardResult]) -> dict[str, bytes]:
        """features.json and dataset_info.json."""
        by_place = {(result.split, result.shard): result for result in results}
        return {FEATURES: self._features.encode(), INFO: self._info(by_place).encode()}

    def stored(self, made: Dataset, raw: RawRecord) -> JpegFrames:
        """The JPEGs themselves, since encoding what they decode to would make others."""
        assert isinstance(made, RldsDataset) and isinstance(raw, RldsRecord)
        frames = made.frames(raw, self.stream_key)
        return JpegFrames(frames, made.index(raw).blobs(self._flat[0]))

    def _extra(self, raw: RldsRecord, made: WristStream | SourceError, steps: int) -> bytes:
        """The bytes to append to a record."""
        if isinstance(made, SourceError):
            pictures, flags = [self._black] * steps, flags_of(self.black(steps))
        else:
            frames, flags = made.frames, flags_of(made)
            if not isinstance(frames, Frames):
                frames = np.asarray(frames)
            check_stream(raw, (steps, *self.size, 3), frames, flags)
            pictures = encode_stream(frames, self.quality)
        key, valid_key, confidence_key = self._flat
        valid = [int(flag) for flag in flags[VALID]]
        return addition({key: pictures}, {valid_key: valid}, {confidence_key: flags[CONFIDENCE]})

    def _kept(self, raw: RldsRecord) -> tuple[bytes, int]:
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
            row["numBytes"] = str(sum(result.facts["num_bytes"] for result in shards))
        return dump_like(info.text, info.tree, tree)


Copy = RldsCopy
