"""The augmented copy of a CALVIN dataset: every frame's file with one more picture in it.

A frame's other arrays are copied packed, as they lie (writers/npz_append). A copy always holds all
frames, since its readers go by their numbers; frames that are not wanted get black pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np
import yaml

from ..readers.calvin import GRIPPER, GRIPPER_SIZE, STATIC, CalvinDataset, CalvinRecord
from ..readers.calvin_folder import SplitFolder
from ..readers.dataset import Dataset, RawRecord, Shard
from ..readers.episode import WristStream
from ..readers.errors import SourceError
from ..readers.files import present_all
from ..readers.npz import Directory, Npz, open_regular
from .atomic import copy_bytes
from .copy import DatasetCopy, Make, ShardResult, file_crc, flags_of, staged_files
from .npz_append import NewArray, appended

SPACE = "wristaugment_observation_space"
_USUAL = "wrist_rgb"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_PREFIXES = ("observation/", "obs/", "rgb_obs/")


class Copy(DatasetCopy):
    """Writes the augmented copy; see DatasetCopy.

    The usual name, wrist_rgb, becomes rgb_gripper where the frames have none, since that is what
    CALVIN's own agent, MDT and GR-1 read; any other name is taken as it is. An archive that is
    damaged is copied as it is, and named; so is the rest of its record, with black pictures. What
    is packed in an old array is neither read nor checked here (`CalvinDataset.check` does that).
    """

    subset = False
    default_size = GRIPPER_SIZE  # those readers take no other
    gives_back = True
    dataset: CalvinDataset

    def __init__(self, dataset: CalvinDataset, out: Path, **options):
        super().__init__(dataset, out, **options)
        self._picture = NewArray(self.stream_key, (*self.size, 3), np.uint8)
        self._flags = {
            name: NewArray(name, values.shape[1:], values.dtype)
            for name, values in flags_of(self.black(1)).items()
        }
        for name in self._flags:
            if name == self.stream_key or (name in dataset.sample and not self.replace):
                raise SourceError(
                    "the frames have this key already, which would tell which new frames are valid",
                    file=dataset.folder,
                    key=name,
                    todo="say --replace to overwrite it in the copy",
                )

    @property
    def new_keys(self) -> tuple[str, ...]:
        """What every frame of the copy has more than the source's."""
        return (self.stream_key, *self._flags)

    def names(self, wrist_key: str) -> tuple[str, str]:
        short = wrist_key
        for prefix in _PREFIXES:
            short = short.removeprefix(prefix)
        sample = self.dataset.sample
        if short == _USUAL and GRIPPER not in sample:
            short = GRIPPER
        streams = {stream.key for stream in self.dataset.streams()}
        found = None
        if not _NAME.fullmatch(short) or short == "language":
            found = "cannot be the name of an array in a frame"
        elif short in sample and short not in streams:
            found = "is a key of the frames, and no picture"
        if found:
            raise SourceError(found, key=wrist_key, todo="choose another --wrist-key")
        return short, short

    def write_shard(self, shard: Shard, staged: Path, make: Make) -> ShardResult:
        place = self.dataset.places[shard.split]
        folder = staged / place.folder.relative_to(self.dataset.root)
        folder.mkdir(parents=True, exist_ok=True)
        result = ShardResult(shard.split, shard.index)
        written: dict[str, list] = {}
        for raw in self.records(self.dataset.shard(shard.split, shard.index)):
            found, error = self._checked(place, raw)
            if error is not None and raw.error is None:
                raw = dataclasses.replace(raw, error=error)
            stream = self.stream(raw, shard, make, len(raw.numbers), result)
            self._write(place, raw, found, stream, folder, written)
            result.records += 1
        where = folder.relative_to(staged).as_posix()
        below = "" if where == "." else f"{where}/"
        known = {f"{below}{name}": found for name, found in written.items()}
        result.files = staged_files(staged, known)
        result.facts = {"frames": len(written)}
        return result

    def stored(self, made: Dataset, raw: RawRecord) -> np.ndarray:
        return np.asarray(made.frames(raw, self.stream_key))

    def metadata(self, results: Sequence[ShardResult]) -> dict[str, bytes]:
        facts = {
            "key": self.stream_key,
            "synthetic": True,
            "description": self.description,
            "shape": [*self.size, 3],
            "dtype": "uint8",
            "flags": list(self._flags),
        }
        if self.stream_key == GRIPPER and tuple(self.size) != GRIPPER_SIZE:
            facts["note"] = self._size_note
        files = {f"wristaugment_{self.stream_key}.json": _json(facts)}
        if self.stream_key != GRIPPER:
            files[self._space_name()] = self._space()
        return files

    @property
    def _size_note(self) -> str:
        height, width = GRIPPER_SIZE
        return (
            f"these pictures are {self.size[0]}x{self.size[1]}; code that expects CALVIN's "
            f"{height}x{width} under {GRIPPER} will not take them"
        )

    def _checked(
        self, place: SplitFolder, raw: CalvinRecord
    ) -> tuple[list[Directory | None], SourceError | None]:
        """The frames' directories, None where no array can be added, and the first reason why not.

        All are looked at before any is written: a record with a damaged one gets black frames
        throughout. Only headers are read for that.
        """
        found: list[Directory | None] = []
        first = None
        present_all(place.fast_path(number) for number in raw.numbers.tolist())
        for number in raw.numbers.tolist():
            try:
                with Npz(place.fast_path(number), soon=True) as archive:
                    directory = archive.check()
                    for key in () if self.replace else self.new_keys:
                        if directory.find(key):
                            raise archive.error("the frame has this key, unlike the first", key)
                    found.append(directory)
            except SourceError as error:
                found.append(None)
                first = first or SourceError(
                    error.found,
                    file=error.file,
                    record=raw.record.index,
                    key=error.key,
                    todo="fetch this file again; it is copied as it is, without the new pictures",
                )
        return found, first

    def _write(
        self,
        place: SplitFolder,
        raw: CalvinRecord,
        found: list[Directory | None],
        stream: WristStream,
        folder: Path,
        written: dict[str, list],
    ) -> None:
        frames, flags = np.asarray(stream.frames), flags_of(stream)
        drop = self.new_keys if self.replace else ()
        makers = [(maker, flags[name]) for name, maker in self._flags.items()]
        base = f"{folder}{os.sep}"
        for step, number in enumerate(raw.numbers.tolist()):
            name, directory = place.file_name(number), found[step]
            if directory is None:
                # It is named in `bad` already; what cannot even be opened is not in the copy.
                with contextlib.suppress(SourceError):
                    written[name] = _copied(place.path(number), folder / name)
                continue
            body = _body(place.fast_path(number), directory)
            arrays = [(self._picture, frames[step])]
            arrays += [(maker, np.asarray(values[step])) for maker, values in makers]
            written[name] = _written(base + name, appended(body, directory, arrays, drop))

    def _space_name(self) -> str:
        """The name of the observation space's file; one that is there already stays as it is."""
        taken = (self.dataset.root / f"{SPACE}.yaml").exists()
        return f"{SPACE}_{self.stream_key}.yaml" if taken else f"{SPACE}.yaml"

    def _space(self) -> bytes:
        """An observation space as calvin_agent's configuration has them, with the new pictures."""
        sample = self.dataset.sample
        streams = [key for key in (STATIC,) if key in sample]
        tree = {
            "rgb_obs": [*streams, self.stream_key],
            "depth_obs": [],
            "state_obs": [key for key in ("robot_obs",) if key in sample],
            "actions": ["rel_actions" if "rel_actions" in sample else "actions"],
            "language": ["language"],
        }
        says = json.dumps(self.description)
        head = f"# {self.stream_key} is synthetic: {says}\n"
        if tuple(self.size) != GRIPPER_SIZE:
            head += f"# Its pictures are {self.size[0]}x{self.size[1]}; {GRIPPER}'s are 84x84.\n"
        return (head + yaml.safe_dump(tree, sort_keys=False, default_flow_style=None)).encode()


def _body(path: str, directory: Directory) -> bytes:
    """What stands before an archive's directory."""
    handle = open_regular(path)
    try:
        body = os.pread(handle, directory.start, 0)
    finally:
        os.close(handle)
    if len(body) != directory.start:
        raise OSError(errno.EIO, "the file was changed while it was copied", path)
    return body


def _written(path: str, pieces: Sequence[bytes]) -> list:
    """Write a file; [its bytes, its crc32c]. It is brought to the disk later, with its shard."""
    size, crc = sum(map(len, pieces)), 0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        done = os.writev(handle, pieces)
        if done < size:
            rest = memoryview(b"".join(pieces))[done:]
            while rest:
                rest = rest[os.write(handle, rest) :]
        # Let it go to the disk now, while the next ones are made, and not stay in the cache.
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
    for piece in pieces:
        crc = google_crc32c.extend(crc, piece)
    return [size, crc]


def _copied(source: Path, path: Path) -> list:
    """Copy a file that is no archive, whatever it is; [its bytes, its crc32c]."""
    with open(open_regular(source), "rb") as old, open(path, "wb") as new:
        copy_bytes(old, new)
    return [path.stat().st_size, file_crc(path)]


def _json(tree: dict) -> bytes:
    return (json.dumps(tree, indent=2, sort_keys=True) + "\n").encode()
