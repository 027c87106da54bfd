"""The store that stage 2 is trained from: latents, image features and prompts of a corpus (zarr 3).

    zarr.json                       what the store was made with ("identity")
    records/SPLIT-SHARD-INDEX/      wrist, condition: [16, F, h, w]; features: [V, T, E]
    prompts/SHA-256/embedding       [n, D], of a distinct prompt's n tokens

A record or prompt is there when its group says "complete", which is written last of all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from ..models.encoders import PROMPT_TOKENS
from ..models.video_dit import TEMPORAL
from ..readers.episode import Record
from ..readers.errors import SourceError
from .recipe import Recipe

FORMAT = 1
_RECORDS, _PROMPTS, _COMPLETE = "records", "prompts", "complete"
_ARRAYS = ("wrist", "condition", "features")
# What of a recipe has no say in what is kept here.
_SAMPLING = ("about", "steps", "guidance", "noise", "shift", "overlap", "min_coverage")


@dataclass
class Entry:
    """A record as it is kept.

    Attributes:
        wrist, condition: latents [16, F, h, w] of the recorded wrist view and of its condition
            map; where the record is shorter than they are, its last frame was repeated.
        features: [V, T, E] of the anchor views at each of its T steps.
        prompt: what the generator is told. views: the keys of the anchor views.
    """

    wrist: np.ndarray
    condition: np.ndarray
    features: np.ndarray
    prompt: str
    views: list[str]


@dataclass
class Window:
    """A clip of a record: latents [16, f, h, w], features [V, clip, E], prompt [512, D]."""

    wrist: Tensor
    condition: Tensor
    features: Tensor
    text: Tensor


def store_identity(
    recipe: Recipe, weights: Mapping[str, str], source: Mapping[str, Any]
) -> dict[str, Any]:
    """What a store depends on, as plain JSON.

    Args:
        weights: {name: SHA-256} of all that `Encoders` were read from.
        source: what names the corpus and its cameras.
    """
    settings = {k: v for k, v in recipe.to_dict().items() if k not in _SAMPLING}
    identity = {
        "format": FORMAT,
        "recipe": settings,
        "weights": dict(weights),
        "source": dict(source),
    }
    return json.loads(json.dumps(identity, sort_keys=True))


class LatentStore:
    """A zarr store of records and prompts; several processes may fill one together.

    Attributes:
        path: of the store. identity: see `store_identity`. clip: frames of a training clip.
    """

    def __init__(self, path: Path, group: zarr.Group):
        self.path = path
        self._group = group
        self.identity: dict[str, Any] = _attributes(group)["identity"]
        self.clip: int = self.identity["recipe"]["clip"]
        self.latent_clip = (self.clip - 1) // TEMPORAL + 1
        self._texts: dict[str, Tensor] = {}
        self._opened = lru_cache(maxsize=1024)(self._open_record)

    @classmethod
    def create(cls, path: Path, identity: Mapping[str, Any]) -> LatentStore:
        """A new store, or the one that is there if it was made with the same.

        Raises:
            SourceError: as `find_store`.
        """
        found = find_store(path, identity)
        if found is not None:
            return found
        group = zarr.open_group(path, mode="a", zarr_format=3)
        for name in (_RECORDS, _PROMPTS):
            group.require_group(name)
        group.attrs.update({"identity": dict(identity)})
        return cls(path, group)

    @classmethod
    def open(cls, path: Path) -> LatentStore:
        """A store that is there.

        Raises:
            SourceError: there is none, or it is of another version.
        """
        todo = "make one with `wristaugment cache`"
        try:
            group = zarr.open_group(path, mode="r+", zarr_format=3)
            identity: Any = _attributes(group)["identity"]
        except (OSError, ValueError, KeyError) as error:
            raise SourceError(
                f"is no cache ({type(error).__name__})", file=path, todo=todo
            ) from None
        if identity.get("format") != FORMAT:
            raise SourceError(
                f"is a cache of format {identity.get('format')}; this version reads {FORMAT}",
                file=path,
                todo=todo,
            )
        return cls(path, group)

    def records(self, splits: Sequence[str] | None = None) -> list[str]:
        """The names of the complete records (of some splits), in order."""
        root = self.path / _RECORDS
        folders = root.iterdir() if root.is_dir() else ()
        found = sorted(p.name for p in folders if not p.name.startswith("."))
        if splits is not None:
            found = [name for name in found if split_of(name) in splits]
        return [name for name in found if self._complete(_RECORDS, name)]

    def has(self, record: Record) -> bool:
        """Whether a record is there, whole."""
        return self._complete(_RECORDS, record_name(record))

    def write(self, record: Record, entry: Entry) -> None:
        """Keep a record; one that was begun before is made anew."""
        latents = {"wrist": entry.wrist, "condition": entry.condition}
        arrays = {k: (v, (v.shape[0], 1, *v.shape[2:])) for k, v in latents.items()}
        V, T, E = entry.features.shape
        arrays["features"] = (entry.features, (V, min(T, self.clip), E))
        for name, (value, _) in arrays.items():
            if not np.isfinite(value).all():
                raise SourceError(
                    f"its {name} came out as no finite numbers",
                    record=record.index,
                    todo="look at the record, or compute in float32",
                )
        about = {"prompt": prompt_name(entry.prompt), "steps": T, "views": list(entry.views)}
        self._write(f"{_RECORDS}/{record_name(record)}", arrays, about)

    def has_prompt(self, prompt: str) -> bool:
        """Whether a prompt's embedding is there, whole."""
        return self._complete(_PROMPTS, prompt_name(prompt))

    def write_prompt(self, prompt: str, embedding: Tensor) -> None:
        """Keep a prompt's embedding [512, D], its zeros behind the last token left out."""
        used = (embedding != 0).any(-1).nonzero()
        rows = embedding[: int(used[-1]) + 1 if len(used) else 1].float().cpu().numpy()
        place = f"{_PROMPTS}/{prompt_name(prompt)}"
        self._write(place, {"embedding": (rows, rows.shape)}, {"prompt": prompt})

    def text(self, prompt: str, *, named: bool = False) -> Tensor:
        """[512, D] of a prompt; `named`: given by `prompt_name`.

        Raises:
            SourceError: it was not kept.
        """
        name = prompt if named else prompt_name(prompt)
        if name not in self._texts:
            if not self._complete(_PROMPTS, name):
                raise SourceError(
                    f"the cache lacks the prompt {name}",
                    file=self.path,
                    todo="run `wristaugment cache` again",
                )
            rows = torch.from_numpy(self._array(f"{_PROMPTS}/{name}/embedding")[:])
            padding = (0, 0, 0, PROMPT_TOKENS - len(rows))
            self._texts[name] = torch.nn.functional.pad(rows, padding)
        return self._texts[name]

    def starts(self, name: str) -> int:
        """How many windows a record has: the places in its latents where a clip may start."""
        return self._opened(name)[1].shape[1] - self.latent_clip + 1

    def views(self, name: str) -> list[str]:
        """The keys of a record's anchor views."""
        return list(self._opened(name)[0]["views"])

    def window(self, name: str, start: int = 0) -> Window:
        """The clip that starts at a latent; its first pixel frame is 4 times that."""
        about, wrist, condition, features = self._opened(name)
        part = slice(start, start + self.latent_clip)
        first = start * TEMPORAL
        kept = features[:, first : min(first + self.clip, about["steps"])]
        if kept.shape[1] < self.clip:  # the last frame was repeated
            last = features[:, about["steps"] - 1 : about["steps"]]
            kept = np.concatenate([kept, np.repeat(last, self.clip - kept.shape[1], 1)], axis=1)
        return Window(
            torch.from_numpy(wrist[:, part]).float(),
            torch.from_numpy(condition[:, part]).float(),
            torch.from_numpy(kept).float(),
            self.text(about["prompt"], named=True),
        )

    def _array(self, path: str) -> Any:
        return self._group[path]

    def _open_record(self, name: str) -> tuple[dict[str, Any], Any, Any, Any]:
        """What a record says of itself, and its arrays."""
        place = f"{_RECORDS}/{name}"
        wrist, condition, features = (self._array(f"{place}/{array}") for array in _ARRAYS)
        return _attributes(self._array(place)), wrist, condition, features

    def _complete(self, kind: str, name: str) -> bool:
        try:
            text = (self.path / kind / name / "zarr.json").read_text()
            return json.loads(text)["attributes"].get(_COMPLETE) is True
        except (OSError, ValueError, KeyError):
            return False

    def _write(
        self, place: str, arrays: Mapping[str, tuple[np.ndarray, Sequence[int]]], about: dict
    ) -> None:
        """A group of arrays, each one file; it gets its name when it is whole and on the disk."""
        kind, name = place.split("/")
        staged = f"{kind}/.{name}.{os.getpid()}"
        for old in (self.path / kind).glob(f".{name}.*"):
            shutil.rmtree(old, ignore_errors=True)
        group = self._group.create_group(staged)
        for array, (value, chunks) in arrays.items():
            # One file an array, and a part of it can be read: a shard of small chunks.
            whole = [-(-n // c) * c for n, c in zip(value.shape, chunks, strict=True)]
            group.create_array(
                array, shape=value.shape, chunks=tuple(chunks), shards=tuple(whole),
                dtype=value.dtype,
            )[...] = value  # fmt: skip
        group.attrs.update(about | {_COMPLETE: True})
        for path in [self.path / staged, *sorted((self.path / staged).rglob("*"))]:
            fsync(path)
        if (self.path / place).exists():
            shutil.rmtree(self.path / place)
        os.rename(self.path / staged, self.path / place)
        fsync(self.path / kind)


def find_store(path: Path, identity: Mapping[str, Any]) -> LatentStore | None:
    """The store at a path, None where there is none yet; nothing is written.

    Raises:
        SourceError: it was made with other weights, settings or data, or something else lies there.
    """
    if not (path / "zarr.json").exists():
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise SourceError(
                "something else than a cache is here", file=path, todo="give another --out"
            )
        return None
    store = LatentStore.open(path)
    other = _differences(store.identity, identity)
    if other:
        shown = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if other[3:] else "")
        raise SourceError(
            f"this cache was made with other settings: {shown}",
            file=path,
            todo="use those to go on, or give another --out",
        )
    return store


def check_origin(
    store: LatentStore, recipe: Recipe, weights: Mapping[str, str], source: Mapping[str, Any]
) -> None:
    """Refuse a store that was made for another form, with other weights or of another corpus.

    Args:
        weights: {name: SHA-256} of those encoders that are here. source: what is known of the
            corpus, as in `store_identity`.

    Raises:
        SourceError: it was; says what differs.
    """
    own = store.identity
    other = _differences(own["recipe"]["form"], recipe.form, "recipe.form")
    for kind, given in (("weights", weights), ("source", source)):
        for name, value in json.loads(json.dumps(given)).items():
            other += _differences(own[kind].get(name), value, f"{kind}.{name}")
    if other:
        raise SourceError(
            f"this cache was made of something else: {', '.join(other[:3])}",
            file=store.path,
            todo="make one with `wristaugment cache` and these weights and data",
        )


def fsync(path: Path) -> None:
    """Bring a file or a folder's names to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def record_name(record: Record) -> str:
    """A record's group; names sort as records do."""
    return f"{record.split}-{record.shard:05d}-{record.index:06d}"


def split_of(name: str) -> str:
    """The split of a record's group."""
    return name.rsplit("-", 2)[0]


def prompt_name(prompt: str) -> str:
    """A prompt's group."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def _attributes(node: Any) -> dict[str, Any]:
    return node.attrs.asdict()


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What differs between two identities, as "name old instead of new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    if old == new:
        return []
    short = [str(v)[:12] if len(str(v)) == 64 else str(v) for v in (old, new)]
    return [f"{name} {short[0]} instead of {short[1]}"]
