"""What stage 2 is trained on, made once a corpus: every record through the frozen encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..models.encoders import ImageEncoder, PromptEncoder, VideoAutoencoder
from ..models.video_dit import VideoDiTConfig, latent_shape
from ..readers.episode import Episode, Record
from ..readers.errors import SourceError
from . import assess
from .latents import Entry, LatentStore
from .recipe import Recipe
from .video import padded_length, to_video


@dataclass
class Encoders:
    """The frozen networks that a store is made with.

    Attributes:
        conditions: an episode -> its condition frames [T, H, W, 3] uint8 at the recipe's wrist
            size, holes black.
    """

    autoencoder: VideoAutoencoder
    prompts: PromptEncoder
    images: ImageEncoder
    conditions: Callable[[Episode], np.ndarray]


@dataclass
class Filled:
    """What `fill` did: records made now, found there, and left out (record -> why)."""

    made: int = 0
    found: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def check_sizes(recipe: Recipe) -> None:
    """SourceError for a clip or wrist size that the networks would crop in silence."""
    try:
        latent_shape(VideoDiTConfig(form=recipe.form), recipe.clip, *recipe.wrist_size)
    except ValueError as error:
        found, _, todo = str(error).partition(": ")
        raise SourceError(
            found, key=f"recipe {recipe.name}", todo=todo or "choose another size with --set"
        ) from None


@torch.no_grad()
def encode(episode: Episode, encoders: Encoders, recipe: Recipe) -> Entry:
    """All that is kept of an episode, in float16.

    Raises:
        SourceError: an episode without a recorded wrist view or without anchors, or with a size
            that the networks refuse.
    """
    number = episode.record.index
    if episode.wrist is None or not episode.anchors:
        what = "recorded wrist view" if episode.wrist is None else "anchor view with a picture"
        raise SourceError(f"has no {what}", record=number, todo="leave it out")
    T = len(episode.wrist.frames)
    seen = encoders.conditions(episode)
    size = (T, *recipe.wrist_size, 3)
    if seen.shape != size:
        raise SourceError(
            f"its condition map is {list(seen.shape)} instead of {list(size)}", record=number
        )
    true = assess.resize_frames(episode.wrist.frames, recipe.wrist_size)
    frames = np.minimum(np.arange(padded_length(T, recipe.clip)), T - 1)
    latents = {}
    for name, pixels in (("wrist", true), ("condition", seen)):
        found = encoders.autoencoder.encode(to_video(np.ascontiguousarray(pixels[frames])))
        latents[name] = found[0].cpu().numpy().astype(np.float16)
    features = torch.stack([encoders.images(np.asarray(view.frames)) for view in episode.anchors])
    return Entry(
        **latents,
        features=features.cpu().numpy().astype(np.float16),
        prompt=recipe.prompt or episode.language,
        views=[view.key for view in episode.anchors],
    )


def fill(
    store: LatentStore,
    episodes: Iterable[tuple[Record, Callable[[], Episode]]],
    encoders: Encoders,
    recipe: Recipe,
    *,
    progress: Callable[[Filled], None] | None = None,
) -> Filled:
    """Make every record that the store lacks; what cannot be made is left out and said.

    Args:
        episodes: records, each with what reads it.
        progress: called after each record.
    """
    filled = Filled()
    if not store.has_prompt(recipe.negative):
        store.write_prompt(recipe.negative, encoders.prompts([recipe.negative])[0])
    for record, read in episodes:
        if store.has(record):
            filled.found += 1
        else:
            try:
                entry = encode(read(), encoders, recipe)
                if not store.has_prompt(entry.prompt):
                    store.write_prompt(entry.prompt, encoders.prompts([entry.prompt])[0])
                store.write(record, entry)
                filled.made += 1
            except SourceError as error:
                filled.left_out[str(record)] = str(error)
        if progress is not None:
            progress(filled)
    return filled


def source_episodes(
    dataset: Any,
    splits: Sequence[str],
    wrist_key: str,
    *,
    limit: int | None = None,
    part: tuple[int, int] = (0, 1),
    have: Callable[[Record], bool] = lambda record: False,
) -> Iterator[tuple[Record, Callable[[], Episode]]]:
    """The records of a dataset, each with what reads it.

    Args:
        limit: only the first records. part: (k, n) for every n-th record from the k-th on.
        have: records that nobody will read; a shard of them alone is not opened.
    """
    first = 0  # of the records that come before the shard
    for split in dataset.splits:
        if split.name not in splits:
            continue
        for shard in split.shards:
            wanted = [
                index
                for index in range(shard.records)
                if (limit is None or first + index < limit) and (first + index) % part[1] == part[0]
            ]
            first += shard.records
            records = [Record(split.name, shard.index, index) for index in wanted]
            if all(have(record) for record in records):
                yield from ((record, _unread) for record in records)
                continue
            chosen = set(wanted)
            for raw in dataset.records(shard):
                if raw.record.index in chosen:
                    yield raw.record, _reader(dataset, raw, wrist_key)


def _unread() -> Episode:
    raise RuntimeError("this record is there already, and was not read again")


def _reader(dataset: Any, raw: Any, wrist_key: str) -> Callable[[], Episode]:
    def read() -> Episode:
        if raw.error is not None:
            raise raw.error
        return dataset.episode(raw, wrist=wrist_key)

    return read
