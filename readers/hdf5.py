"""HDF5 files from strangers: opened and walked without being led to other files, sizes or loops.

An HDF5 file can point anywhere: links and raw data in other files, loops, shapes that claim
terabytes. Everything here looks at what a link is before it follows it, and at what is stored
before it believes a shape.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5l, h5o  # type: ignore[attr-defined]
from h5py._objects import phil  # h5py's lock  # type: ignore[attr-defined]

from .errors import SourceError
from .files import present, ranged

SUFFIXES = (".hdf5", ".h5")
PIECE = 4 << 20  # bytes that a piece of content holds at most, where rows are not larger
# A chunk is decoded whole, so a file could ask for any amount of memory through one.
MAX_CHUNK = 512 << 20
_DEPTH = 64
_HOPS = 16
_SMALL = 1 << 20
_CACHE = 16 << 20
HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)


@dataclass(frozen=True)
class Link:
    """A name in a group: kind is "hard", "soft", "external" or "other"."""

    kind: str
    target: str = ""
    file: str = ""


def natural(text: str) -> tuple:
    """A key that sorts demo_10 behind demo_9."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text))


def find_files(path: Path) -> list[Path]:
    """The HDF5 files at or below `path`, in the natural order of their paths."""
    if path.is_file():
        return [path]
    found = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return sorted(found, key=lambda p: natural(p.relative_to(path).as_posix()))


def glance(path: Path, files: int = 8, entries: int = 4096) -> Iterator[Path]:
    """A few HDF5 files at or below `path`, after a look at so many names at most."""
    if path.is_file():
        if path.suffix.lower() in SUFFIXES:
            yield path
        return
    folders = [path]
    while folders and files and entries > 0:
        names, below = [], []
        with contextlib.suppress(OSError), os.scandir(folders.pop(0)) as scan:
            for entry in scan:
                entries -= 1
                if entries < 0:
                    break
                if entry.is_dir(follow_symlinks=False):
                    below.append(Path(entry.path))
                elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                    names.append(Path(entry.path))
        for name in sorted(names, key=lambda p: natural(p.name))[:files]:
            files -= 1
            yield name
        folders += sorted(below)


@contextlib.contextmanager
def named(todo: str = "check the source", **where) -> Iterator[None]:
    """Turn what h5py raises for a damaged file into a SourceError; a failing disk's error stays."""
    try:
        yield
    except SourceError:
        raise
    except HDF5_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise SourceError(f"cannot be read ({short(error)})", **where, todo=todo) from None


@contextlib.contextmanager
def opened(path: Path, *, glance: bool = False) -> Iterator[h5py.File]:
    """A file that is open for reading.

    Args:
        glance: only a little of it will be read, so that it need not be fetched from elsewhere.

    Raises:
        SourceError: it is missing, may not be read, or is no whole HDF5 file.
    """
    part = ranged(path) if glance else None
    if part is None:
        present(path)
    try:
        # Not locked: sources lie on disks that are read-only or know no locks.
        file = h5py.File(part or path, "r", locking=False, rdcc_nbytes=_CACHE)
    except HDF5_ERRORS as error:
        if part is not None and part.failed is not None:
            raise part.failed from None
        if isinstance(error, OSError) and error.errno not in (None, 2, 13):
            raise
        found = f"cannot be opened as HDF5 ({short(error)})"
        raise SourceError(found, file=path, todo="fetch this file again") from None
    with file:
        try:
            yield file
        except HDF5_ERRORS:
            if part is not None and part.failed is not None:
                raise part.failed from None
            raise


def links(group: h5py.Group) -> dict[str, Link]:
    """The names in a group and what they are, in the file's order, nothing of it opened."""
    found: dict[str, Link] = {}

    def see(name: bytes, info) -> None:
        text = name.decode("utf-8", "surrogateescape")
        if info.type == h5l.TYPE_HARD:
            found[text] = Link("hard")
        elif info.type == h5l.TYPE_SOFT:
            found[text] = Link("soft", _text(group.id.links.get_val(name)))
        elif info.type == h5l.TYPE_EXTERNAL:
            file, target = group.id.links.get_val(name)
            found[text] = Link("external", _text(target), _text(file))
        else:
            found[text] = Link("other")

    # In the order of creation where the group keeps one: that order is content, too.
    flags = group.id.get_create_plist().get_link_creation_order()
    by = h5py.h5.INDEX_CRT_ORDER if flags & h5py.h5p.CRT_ORDER_TRACKED else h5py.h5.INDEX_NAME
    group.id.links.iterate(see, idx_type=by, info=True)
    return found


def link(group: h5py.Group, name: str) -> Link | None:
    """One name of a group, or None where it has no such name."""
    raw = name.encode("utf-8", "surrogateescape")
    if not group.id.links.exists(raw):
        return None
    info = group.id.links.get_info(raw)
    if info.type == h5l.TYPE_HARD:
        return Link("hard")
    if info.type == h5l.TYPE_SOFT:
        return Link("soft", _text(group.id.links.get_val(raw)))
    if info.type == h5l.TYPE_EXTERNAL:
        file, target = group.id.links.get_val(raw)
        return Link("external", _text(target), _text(file))
    return Link("other")


def item(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset | None:
    """What lies at a path below `group`, soft links followed; None where there is nothing.

    Raises:
        ValueError: the path leads into another file, or round in circles.
    """
    parts, at, hops = [part for part in path.split("/") if part], group, 0
    while parts:
        name = parts.pop(0)
        if name == ".":
            continue
        if not isinstance(at, h5py.Group):
            return None
        found = link(at, name)
        if found is None:
            return None
        if found.kind == "soft":
            hops += 1
            if hops > _HOPS:
                raise ValueError("soft links lead round in circles")
            at = at.file if found.target.startswith("/") else at
            parts = [part for part in found.target.split("/") if part] + parts
        elif found.kind == "hard":
            at = at[name]
        else:
            raise ValueError(f"is a link into another file ({found.file or 'of its own kind'})")
    return at if isinstance(at, h5py.Group | h5py.Dataset) else None


def group_at(group: h5py.Group, path: str) -> h5py.Group | None:
    """The group at a path below `group` (at "": it), see `item`; None for anything else."""
    found = item(group, path)
    return found if isinstance(found, h5py.Group) else None


def dataset_at(group: h5py.Group, path: str) -> h5py.Dataset | None:
    """The dataset at a path below `group`, see `item`; None for anything else."""
    found = item(group, path)
    return found if isinstance(found, h5py.Dataset) else None


def refuse_links(file: h5py.File, path: Path, root: Path) -> None:
    """Refuse a file with a link to a file outside `root`; none of the links is followed.

    Raises:
        SourceError: there is one, or groups lie deeper in each other than anything sane.
    """
    inside = root.resolve()
    seen: set[int] = set()
    groups: list[tuple[h5py.Group, str, int]] = [(file, "", 0)]
    while groups:
        group, where, depth = groups.pop()
        if depth > _DEPTH:
            raise SourceError(
                f"groups lie more than {_DEPTH} deep in each other",
                file=path, key=where[:80], todo="this is no dataset; remove the file",
            )  # fmt: skip
        try:
            names = links(group)
        except HDF5_ERRORS:
            continue  # damaged; whoever reads this record will name it
        for name, found in names.items():
            key = f"{where}/{name}".lstrip("/")
            if found.kind == "external":
                target = (path.parent / found.file).resolve()
                if inside not in target.parents:
                    raise SourceError(
                        f"is a link to {found.file!r}, outside the dataset; it was not followed",
                        file=path,
                        key=key,
                        todo="remove the link, or copy what it leads to into this file",
                    )
            elif found.kind == "hard":
                with contextlib.suppress(*HDF5_ERRORS):
                    info = h5o.get_info(group.id, name.encode("utf-8", "surrogateescape"))
                    if info.type == h5o.TYPE_GROUP and info.addr not in seen:
                        seen.add(info.addr)
                        inner = group[name]
                        assert isinstance(inner, h5py.Group)
                        groups.append((inner, key, depth + 1))


def address(thing: h5py.Group | h5py.Dataset) -> int:
    """What tells two names of one object from two objects."""
    return int(h5o.get_info(thing.id).addr)


def elsewhere(dataset: h5py.Dataset) -> str | None:
    """Where a dataset's data lies if it is not in its own file, or None. It is not looked at."""
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL:
        count = plist.get_virtual_count()
        files = {plist.get_virtual_filename(index) for index in range(min(count, 100))} - {"."}
        return f"in other files ({', '.join(sorted(files)[:3]) or 'a virtual dataset'})"
    if plist.get_external_count():
        return f"in another file ({_text(plist.get_external(0)[0])!r})"
    return None


def unsound(dataset: h5py.Dataset) -> str | None:
    """Why a dataset's shape cannot be believed or its data not be read safely, or None."""
    if found := elsewhere(dataset):
        return f"its data lies {found}; it was not followed"
    if dataset.shape is None:
        return "holds nothing"
    declared = math.prod(dataset.shape) * max(1, dataset.dtype.itemsize)
    if declared <= _SMALL:
        return None
    if dataset.chunks is None:
        stored = dataset.id.get_storage_size()
        return None if stored >= declared else f"declares {declared} bytes and holds {stored}"
    chunk = math.prod(dataset.chunks) * max(1, dataset.dtype.itemsize)
    if chunk > MAX_CHUNK:
        return f"declares chunks of {chunk} bytes, more than {MAX_CHUNK}"
    due = math.prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
    found = dataset.id.get_num_chunks()
    return None if found >= due else f"declares {due} chunks of data and holds {found}"


def read_rows(dataset: h5py.Dataset, steps: np.ndarray) -> np.ndarray:
    """[N, ...] the rows of increasing numbers `steps`, read in runs."""
    out = np.empty((len(steps), *dataset.shape[1:]), dataset.dtype)
    cuts = np.flatnonzero(np.diff(steps) != 1) + 1
    for run in np.split(np.arange(len(steps)), cuts):
        if len(run):
            first, last = int(steps[run[0]]), int(steps[run[-1]]) + 1
            dataset.read_direct(out, np.s_[first:last], np.s_[int(run[0]) : int(run[-1]) + 1])
    return out


def attributes(thing: h5py.Group | h5py.Dataset) -> tuple:
    """((name, type, shape, value), ...) of every attribute; opaque bytes are never interpreted."""
    found = []
    for name in thing.attrs:
        attribute = thing.attrs.get_id(name)
        dtype = attribute.dtype
        if dtype.hasobject:
            found.append((name, str(dtype), attribute.shape, _plain(thing.attrs[name])))
            continue
        if attribute.get_space().get_simple_extent_type() == h5py.h5s.NULL:
            found.append((name, dtype.descr, None, b""))
            continue
        value = np.empty(attribute.shape, dtype)
        attribute.read(value)
        found.append((name, str(dtype), attribute.shape, value.tobytes()))
    return tuple(found)


def walk(
    group: h5py.Group | h5py.Dataset,
    name: str,
    skip=lambda path: False,
    told: Mapping[int, str] | None = None,
) -> Iterator[tuple[str, object]]:
    """Everything at and below a group (or dataset) of a file, see Dataset.content.

    Args:
        name: the group's path, as the keys begin.
        skip: which paths (relative to the file, without a slash in front) are left out.
        told: the addresses and names of what is told of elsewhere, should another name lead there.
    """
    yield from _walk(group, name, skip, dict(told or {}), 0)


def _walk(thing, path: str, skip, seen: dict, depth: int) -> Iterator[tuple[str, object]]:
    place = address(thing)
    if place in seen:
        yield path, ("the same as", seen[place])
        return
    seen[place] = path
    if isinstance(thing, h5py.Dataset):
        yield from _dataset(thing, path)
        return
    if not isinstance(thing, h5py.Group):
        yield path, ("a named type", thing.id.encode())
        return
    yield path, ("group", attributes(thing))
    for name, found in links(thing).items():
        below = f"{path}/{name}".lstrip("/")
        if skip(below):
            continue
        if found.kind != "hard" or depth > _DEPTH:
            yield below, (found.kind, found.file, found.target)
            continue
        yield from _walk(thing[name], below, skip, seen, depth + 1)


def _dataset(dataset: h5py.Dataset, path: str) -> Iterator[tuple[str, object]]:
    plist = dataset.id.get_create_plist()
    if found := elsewhere(dataset):
        yield path, ("dataset", found, attributes(dataset))
        return
    layout = plist.get_layout()
    filters = tuple(plist.get_filter(index) for index in range(plist.get_nfilters()))
    fill = None
    if plist.fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED:
        fill = _plain(dataset.fillvalue)
    yield (
        path,
        ("dataset", dataset.shape, dataset.maxshape, dataset.id.get_type().encode(), layout,
         dataset.chunks, filters, fill, attributes(dataset)),
    )  # fmt: skip
    if dataset.dtype.hasobject:
        for start in range(0, len(dataset) if dataset.shape else 0, 1024):
            yield f"{path}[{start}:]", _plain(dataset[start : start + 1024])
        if dataset.shape == ():
            yield f"{path}[()]", _plain(dataset[()])
        return
    if dataset.chunks is not None:
        yield from _chunks(dataset, path)
    elif dataset.shape == ():
        yield f"{path}[()]", np.asarray(dataset[()]).tobytes()
    elif dataset.shape and dataset.size and dataset.id.get_storage_size():
        row = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
        rows = max(1, PIECE // max(1, row))
        for start in range(0, len(dataset), rows):
            yield f"{path}[{start}:]", dataset[start : start + rows].tobytes()


def _chunks(dataset: h5py.Dataset, path: str) -> Iterator[tuple[str, object]]:
    """The chunks as they are stored, still compressed, some at a time."""
    offsets: list[tuple[int, ...]] = []
    dataset.id.chunk_iter(lambda info: offsets.append(info.chunk_offset))
    parts, first, size = [], None, 0
    for offset in sorted(offsets):
        with phil:  # h5py does not take it here: see writers.hdf5
            mask, data = dataset.id.read_direct_chunk(offset)
        first = offset if first is None else first
        parts.append((offset, mask, data))
        size += len(data)
        if size >= PIECE:
            yield f"{path}{list(first)}", tuple(parts)
            parts, first, size = [], None, 0
    if first is not None:
        yield f"{path}{list(first)}", tuple(parts)


def _plain(value) -> object:
    """A value in lists and plain types, for comparing; references become their kind alone."""
    if isinstance(value, np.ndarray):
        return [_plain(part) for part in value.tolist()] if value.ndim else _plain(value.item())
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        return value.tobytes()
    return value if isinstance(value, str | bytes | int | float | bool) else type(value).__name__


def _text(value) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def short(error: Exception) -> str:
    """What HDF5 says in an error, without what differs from run to run."""
    # HDF5 puts times, descriptors and addresses into some; messages must not differ by run.
    text = " ".join(str(error).split())
    return re.split(r"[,:]? *time = ", text)[0][:160] or type(error).__name__
