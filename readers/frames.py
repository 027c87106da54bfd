"""Pictures that are read when they are asked for, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


class Frames:
    """[T, H, W, C] pictures that behave as an array does, but stay on the disk until indexed.

    A view of an hour's recording is gigabytes; what needs a few frames of it reads a few.

    Args:
        shape: (T, H, W, C), or (T, H, W) of depth.
        read: from an increasing array of N step numbers to their pictures, [N, *shape[1:]].
        dtype: of the pictures.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        read: Callable[[np.ndarray], np.ndarray],
        dtype: np.typing.DTypeLike = np.uint8,
    ):
        self.shape, self.ndim, self.dtype = tuple(shape), len(shape), np.dtype(dtype)
        self._read = read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        """As of an array; what the first index does not choose is not read."""
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        steps = np.arange(len(self))[first]
        wanted, back = np.unique(np.atleast_1d(steps), return_inverse=True)
        pictures = np.asarray(self._read(wanted)) if len(wanted) else self._none()
        if pictures.shape != (len(wanted), *self.shape[1:]):
            raise ValueError(
                f"pictures of {pictures.shape}, where {(len(wanted), *self.shape[1:])} are due"
            )
        chosen = pictures if np.array_equal(back, np.arange(len(wanted))) else pictures[back]
        chosen = chosen[0] if np.ndim(steps) == 0 else chosen
        return chosen[(..., *rest)] if np.ndim(steps) == 0 else chosen[(slice(None), *rest)]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _none(self) -> np.ndarray:
        return np.empty((0, *self.shape[1:]), self.dtype)


class JpegFrames(Frames):
    """Pictures with the JPEGs that they are read from, which a writer of JPEGs takes as they are.

    Decoded and encoded again they would be others.

    Args:
        frames: the pictures, [T, H, W, 3] uint8.
        blobs: their T JPEGs.
    """

    def __init__(self, frames: Frames, blobs: Sequence[bytes]):
        super().__init__(frames.shape, frames.__getitem__, frames.dtype)
        self.blobs = blobs
