"""Encoded pictures -> arrays, and streams that carry no picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .errors import SourceError

FORMATS = ("JPEG", "PNG")  # what tensorflow-datasets' Image feature stores
_FLAT = 2  # grey levels; a JPEG of one colour decodes to that colour within a level or two


def decode_stream(
    blobs: Sequence[bytes],
    shape: Sequence[int | None],
    *,
    file: object,
    record: int,
    key: str,
) -> np.ndarray:
    """Decode the pictures of one stream of one episode.

    Args:
        blobs: T encoded pictures, JPEG or PNG.
        shape: the declared (height, width, channels); None where it is free.
        file, record, key: where they are, for messages.

    Returns:
        [T, H, W, 3] uint8 RGB, or [T, H, W] uint16 where one 16-bit channel is declared.

    Raises:
        SourceError: a picture cannot be decoded or has another size; it names the step.
    """
    frames: np.ndarray | None = None
    height, width, channels = (*shape, None, None, None)[:3]
    previous: bytes | None = None
    where = {"file": file, "record": record, "key": key}
    for step, blob in enumerate(blobs):
        if frames is not None and blob == previous:
            frames[step] = frames[step - 1]  # a camera that stands still, or a placeholder
            continue
        want = frames.shape[1:3] if frames is not None else (height, width)
        picture = _decode(blob, channels == 1, step, want, where)
        if frames is None:
            frames = _room(len(blobs), picture, where)
        frames[step] = picture
        previous = blob
    if frames is None:
        tail = () if channels == 1 else (3,)
        frames = np.empty(
            (0, height or 0, width or 0, *tail), np.uint16 if channels == 1 else np.uint8
        )
    return frames


def no_picture(frames: np.ndarray) -> str | None:
    """Why a stream carries no picture (it is one colour from start to end), or None if it does.

    Args:
        frames: [T, H, W, 3] uint8.
    """
    if frames.size == 0:
        return "has no pixels"
    # Most streams differ within their first row: look there before looking at all.
    if (np.ptp(frames[0, 0], axis=0) > _FLAT).any():
        return None
    low, high = frames.min(axis=(0, 1, 2)), frames.max(axis=(0, 1, 2))
    if (high - low > _FLAT).any():
        return None
    if (high <= 2 * _FLAT).all():
        return "black from start to end"
    return f"one colour from start to end (rgb {', '.join(map(str, low))})"


def _room(count: int, picture: np.ndarray, where: dict) -> np.ndarray:
    """Memory for `count` pictures as large as one."""
    try:
        return np.empty((count, *picture.shape), picture.dtype)
    except MemoryError:
        raise SourceError(
            f"{count} pictures of {picture.shape[0]}x{picture.shape[1]} do not fit into memory",
            **where,
            todo="the episode is left without a wrist view; check the source",
        ) from None


def _decode(blob: bytes, depth: bool, step: int, want: Sequence, where: dict) -> np.ndarray:
    """One picture of the (height, width) `want`, which is compared before anything is unpacked."""
    try:
        with Image.open(io.BytesIO(blob), formats=FORMATS) as image:
            size = (image.height, image.width)
            if any(w not in (None, found) for w, found in zip(want, size, strict=True)):
                due = f"{want[0] or 'any'}x{want[1] or 'any'}"
                raise SourceError(
                    f"step {step} is {size[0]}x{size[1]}, not {due}",
                    **where,
                    todo="the episode is left without a wrist view; check the source",
                )
            if depth:
                return np.asarray(image).astype(np.uint16)
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except SourceError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        what = "is empty" if not blob else f"cannot be decoded ({_short(error)})"
        raise SourceError(
            f"step {step}: the picture {what}",
            **where,
            todo="the episode is left without a wrist view; check the source",
        ) from None


def _short(error: Exception) -> str:
    # Pillow puts the address of its buffer into one message; messages must not differ by run.
    text = str(error)
    return "neither JPEG nor PNG" if "BytesIO" in text else text
