"""Raw DROID on the disk: which folders are episodes, and what an episode's metadata says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from .errors import SourceError
from .files import present

TRAJECTORY, VIDEOS, SIDECAR = "trajectory.h5", "recordings/MP4", "wristaugment.json"
STEREO = "-stereo"
ROLES = ("ext1", "ext2", "wrist")
ANCHORS, WRIST = ROLES[:2], ROLES[2]
SPLITS = ("success", "failure")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LARGEST = 16 << 20  # bytes of a metadata file
_LOOK = 4096  # names that telling the format looks at


@dataclass(frozen=True)
class Metadata:
    """What an episode's metadata_*.json says.

    Attributes:
        path: the file.
        serials: of its cameras, by their role in ROLES; those that it names.
        extrinsics: 6 numbers each, by role.
        language: the task. steps: the length, 0 where it does not say.
    """

    path: Path
    serials: dict[str, str]
    extrinsics: dict[str, list[float]]
    language: str
    steps: int


def is_episode(names: list[str]) -> bool:
    """Whether a folder of these names is an episode, perhaps one that lacks a piece."""
    metadata = any(_is_metadata(name) for name in names)
    return metadata + (TRAJECTORY in names) + ("recordings" in names) >= 2


def recognise(path: Path) -> bool:
    """Whether there is an episode at or below a folder, as far as a few thousand names tell."""
    left, folders = _LOOK, [Path(path)]
    try:
        while folders and left > 0:
            below = []
            with os.scandir(folders.pop()) as entries:
                names = []
                for entry in islice(entries, _LOOK // 4):  # a folder may have every episode
                    names.append(entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        below.append(Path(entry.path))
                    left -= 1
                    if left <= 0:
                        break
            if is_episode(names):
                return True
            folders += below
    except OSError:
        pass
    return False


def find_episodes(root: Path) -> tuple[list[Path], list[Path]]:
    """(the episode folders, all files that are in none), both sorted.

    Raises:
        SourceError: a link leads out of the folder.
    """
    episodes, others = [], []
    for folder, below, names in os.walk(root):
        below.sort()
        if is_episode(below + names):
            episodes.append(Path(folder))
            below.clear()
            continue
        for name in (*names, *below):
            refuse_link(Path(folder, name), root)
        others += [Path(folder, name) for name in names]
    return sorted(episodes), sorted(path for path in others if path.is_file())


def files_of(folder: Path) -> list[Path]:
    """Every file of an episode, sorted."""
    found = (Path(where, name) for where, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if path.is_file() or path.is_symlink())


def refuse_link(path: Path, root: Path) -> None:
    """Refuse a symbolic link to what is not in the dataset.

    Raises:
        SourceError: it is one.
    """
    if path.is_symlink() and root.resolve() not in path.resolve().parents:
        raise SourceError(
            "is a link to something outside of the dataset; it was not followed",
            file=path,
            todo="copy what it leads to, or remove the link",
        )


def read_metadata(folder: Path) -> Metadata:
    """What an episode's metadata says.

    Raises:
        SourceError: there is none, or it is damaged, or names no cameras.
    """
    paths = sorted(path for path in folder.iterdir() if _is_metadata(path.name))
    if not paths:
        raise SourceError(
            "the episode has no metadata_*.json", file=folder, todo="fetch this episode again"
        )
    path = paths[0]
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path.stat().st_size} bytes")
        tree = json.loads(present(path).read_bytes())
        if not isinstance(tree, dict):
            raise ValueError("no object")
        serials = dict(_serials(tree))
        return Metadata(
            path,
            serials,
            {role: v for role in ROLES if (v := _six(tree.get(f"{role}_cam_extrinsics")))},
            str(tree.get("current_task") or "").strip(),
            tree["trajectory_length"] if type(tree.get("trajectory_length")) is int else 0,
        )
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"is no metadata of an episode ({error})", file=path, todo="fetch this file again"
        ) from None


def read_sidecar(folder: Path) -> dict[str, dict]:
    """What was said of the streams that were added to an episode: name -> description, flags.

    Raises:
        SourceError: it is damaged.
    """
    path = folder / SIDECAR
    if not path.is_file():
        return {}
    try:
        streams = json.loads(present(path).read_bytes())["streams"]
        if not all(isinstance(row, dict) for row in streams.values()):
            raise ValueError("a stream is no object")
        return streams
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"does not say which streams were added ({error})",
            file=path,
            todo="make this copy again",
        ) from None


def video_name(name: str) -> bool:
    """Whether a text can be the name of a video beside others."""
    return bool(_NAME.fullmatch(name)) and ".." not in name


def _serials(tree: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for role in ROLES:
        serial = tree.get(f"{role}_cam_serial")
        if serial not in (None, ""):
            if not video_name(str(serial)):
                raise ValueError(f"{serial!r} is no serial number of a camera")
            yield role, str(serial)


def _six(values: object) -> list[float] | None:
    if not isinstance(values, list) or len(values) != 6:
        return None
    return [float(v) for v in values] if all(type(v) in (int, float) for v in values) else None


def _is_metadata(name: str) -> bool:
    return name.startswith("metadata_") and name.endswith(".json")
