"""Where a TFDS dataset lies, and what its dataset_info.json declares."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import array_record_file, tfrecord
from .dataset import Shard, Split
from .errors import SourceError
from .files import is_plain_name, read_text

INFO, FEATURES = "dataset_info.json", "features.json"
_MOST = 1 << 40  # records in a file; more could not be counted in a lifetime
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True)
class Info:
    """What dataset_info.json says.

    Attributes:
        path: the file. text: as it is. tree: as JSON.
        name, version, config: of the builder (config is "" where there is none).
        templates: split -> the template of its file names.
        splits: the splits in their order.
        file_format: of the shards: "tfrecord" or "array_record".
    """

    path: Path
    text: str
    tree: dict
    name: str
    version: str
    config: str
    templates: dict[str, str]
    splits: list[Split]
    file_format: str = "tfrecord"

    def read_frames(self, path: Path) -> Iterator[tfrecord.Frame]:
        """The records of a shard file; see readers/tfrecord.read_frames.

        Raises:
            SourceError: the file cannot be opened.
        """
        kind = array_record_file if self.file_format == array_record_file.KIND else tfrecord
        return kind.read_frames(path)

    def shard_name(self, split: str, index: int, count: int) -> str:
        """The file name of shard `index` of `count`.

        Raises:
            SourceError: the template makes a path of it.
        """
        values = {
            "DATASET": self.name,
            "SPLIT": split,
            "FILEFORMAT": self.file_format,
            "SHARD_INDEX": f"{index:05d}",
            "NUM_SHARDS": f"{count:05d}",
            "SHARD_X_OF_Y": f"{index:05d}-of-{count:05d}",
        }
        name = self.templates[split]
        for variable, value in values.items():
            name = str(name).replace("{" + variable + "}", value)
        _plain(self.path, "filepathTemplate", name)
        return name


def read_info(folder: Path) -> Info:
    """Read dataset_info.json of a version folder.

    Raises:
        SourceError: it is missing, damaged, names files elsewhere, or declares records of another
            kind of file.
    """
    path = folder / INFO
    text = read_text(path)
    try:
        tree = json.loads(text)
        name, version = tree["name"], tree["version"]
        config, declared = tree.get("configName") or "", tree.get("splits", [])
        lengths = {row["name"]: [int(n) for n in row.get("shardLengths", [])] for row in declared}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"is not a dataset_info of tensorflow-datasets ({type(error).__name__}: {error})",
            file=path,
            todo="restore it from the source",
        ) from None
    # A copy's folders and files are called so; a path in their place would lead out of it.
    for key, value in {"name": name, "version": version, "configName": config or "none"}.items():
        _plain(path, key, value)
    for split, counts in lengths.items():
        _plain(path, "splits", split)
        if any(not 0 <= count < _MOST for count in counts):
            raise SourceError(
                f"declares shards of {min(counts)} to {max(counts)} records",
                file=path,
                key="shardLengths",
                todo="restore it from the source",
            )
    kind = tree.get("fileFormat") or "tfrecord"
    if kind not in ("tfrecord", array_record_file.KIND):
        raise SourceError(
            f"its records are {kind} files",
            file=path,
            todo="convert it with tensorflow-datasets' convert_format to tfrecord",
        )
    templates = {row["name"]: row.get("filepathTemplate") or TEMPLATE for row in declared}
    info = Info(path, text, tree, name, version, config, templates, [], kind)
    for split, shards in lengths.items():
        files = [
            Shard(split, i, folder / info.shard_name(split, i, len(shards)), records)
            for i, records in enumerate(shards)
        ]
        info.splits.append(Split(split, files))
    names = [shard.path.name for split in info.splits for shard in split.shards]
    if len({INFO, FEATURES, *names}) < len(names) + 2:
        raise SourceError(
            "gives two files the same name",
            file=path,
            key="filepathTemplate",
            todo="restore it from the source",
        )
    if not any(split.records for split in info.splits):
        raise SourceError("declares no records", file=path, todo="give a dataset that has some")
    return info


def _plain(path: Path, key: str, value: object) -> None:
    if not is_plain_name(value):
        raise SourceError(
            f"{str(value)[:80]!r} is not the name of a file or folder",
            file=path,
            key=key,
            todo="restore it from the source",
        )


def find_folder(data_dir: Path, names: Sequence[str]) -> Path:
    """The version folder that `data_dir` means.

    Args:
        data_dir: a version folder, a dataset folder (the newest version counts), or a root that
            holds a dataset folder of one of `names`.
        names: folder names to look for in a root, the best first; empty takes what there is if
            it is the only one.

    Raises:
        SourceError: nothing of the kind is there; it says what is.
    """
    data_dir = data_dir.expanduser()
    if not data_dir.is_dir():
        raise SourceError(
            "there is no such folder", file=data_dir, todo="give --data-dir a TFDS root or dataset"
        )
    if (data_dir / INFO).is_file():
        return data_dir
    if found := _newest(data_dir):
        return found
    sets = {path.name: path for path in _folders(data_dir)}
    for name in names:
        if name in sets and (found := _newest(sets[name]) or _only_config(sets[name])):
            return found
    here = [name for name, path in sets.items() if _newest(path) or _only_config(path)]
    if not names and len(here) == 1:
        return find_folder(data_dir / here[0], ())
    if found := _only_config(data_dir):
        return found
    listed = f"it holds {', '.join(here)}" if here else "no dataset is in it"
    raise SourceError(
        f"no dataset {' or '.join(names)} is here; {listed}"
        if names
        else f"{'several datasets are' if here else 'nothing is'} here; {listed}",
        file=data_dir,
        todo="give the folder that holds dataset_info.json, or another --dataset",
    )


def has_datasets(folder: Path) -> bool:
    """Whether `find_folder` would find something in a folder, by one name or another."""
    if (folder / INFO).is_file() or _newest(folder) or _only_config(folder):
        return True
    return any(_newest(path) or _only_config(path) for path in _folders(folder))


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder; none where it may not be read (a lost+found beside the data)."""
    try:
        with os.scandir(folder) as entries:  # no stat of a file: there may be a million of CALVIN's
            return [folder / name for name in sorted(e.name for e in entries if e.is_dir())]
    except OSError:
        return []


def _version(name: str) -> tuple[int, ...] | None:
    parts = name.split(".")
    return tuple(map(int, parts)) if len(parts) == 3 and all(map(str.isdecimal, parts)) else None


def _newest(folder: Path) -> Path | None:
    """The highest version below a dataset folder."""
    versions = [
        (number, path)
        for path in _folders(folder)
        if (number := _version(path.name)) and (path / INFO).is_file()
    ]
    return max(versions)[1] if versions else None


def _only_config(folder: Path) -> Path | None:
    """The newest version of a dataset that has a single configuration."""
    configs = [found for path in _folders(folder) if (found := _newest(path))]
    return configs[0] if len(configs) == 1 else None
