"""ACT's and ALOHA's HDF5 files: one episode a file, cameras in `observations/images/<camera>`.

Pictures are raw, or JPEGs padded with zeros to one length (root attribute `compress`). Those JPEGs
are what OpenCV makes of an RGB array, which it takes for BGR; the loaders decode them with OpenCV
too and so see RGB. To any other decoder red and blue are exchanged, here they are exchanged back.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from .dataset import RawRecord, Stream
from .episode import Episode
from .errors import RemoteError, SourceError
from .frames import Frames
from .hdf5 import (
    MAX_CHUNK,
    dataset_at,
    glance,
    group_at,
    item,
    links,
    named,
    opened,
    unsound,
    walk,
)
from .hdf5_dataset import Hdf5Dataset
from .pictures import decode_stream
from .profiles import Camera, Profile

IMAGES = "observations/images"
COMPRESS, LENGTHS = "compress", "compress_len"
_CAMERAS = ("cam_high", "cam_low", "top", "angle", "front_close", "vis", "cam_front", "front")
_PIXELS = 1 << 26  # no camera has more, and a few bytes could claim any number
ALOHA = Profile(
    "aloha",
    aliases=("act", "mobile_aloha"),
    anchors=tuple(Camera(f"{IMAGES}/{name}") for name in _CAMERAS),
    language=(),
)


class AlohaDataset(Hdf5Dataset):
    """A folder of episodes, or one; a record is a file."""

    format = "aloha"
    pictures = IMAGES
    flag_group = "observations"
    profiles = (ALOHA,)

    def groups(self, file: h5py.File) -> list[str] | None:
        return [""] if _images(file) is not None else None

    def own_profile(self) -> Profile:
        return ALOHA

    def timed(self, group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
        for part in ("action", "observations/qpos", "observations/qvel"):
            if (found := dataset_at(group, part)) is not None:
                yield part, found
        images = group_at(group, IMAGES)
        if images is None:
            return
        for name in links(images):
            if (found := dataset_at(images, name)) is not None:
                yield f"{IMAGES}/{name}", found

    def stream_of(self, key: str, dataset: h5py.Dataset) -> Stream | None:
        if not padded(dataset):
            return super().stream_of(key, dataset)
        height = width = None
        if len(dataset):
            try:
                height, width = _size(dataset)
            except (OSError, ValueError):
                return None
        return Stream(key, (height, width, 3), "uint8", "jpeg")

    def decoded(self, file: h5py.File, dataset: h5py.Dataset, key: str) -> Frames | None:
        if not padded(dataset):
            return super().decoded(file, dataset, key)
        path = Path(file.filename)
        height, width = _size(dataset) if len(dataset) else (0, 0)

        def read(steps: np.ndarray) -> np.ndarray:
            out = np.empty((len(steps), height, width, 3), np.uint8)
            for row, step in enumerate(steps):
                blob = dataset[int(step)].tobytes()
                where = {"file": path, "record": 0, "key": key}
                decoded = decode_stream([blob], (height, width, 3), **where)
                out[row] = decoded[0, :, :, ::-1]
            return out

        return Frames((len(dataset), height, width, 3), read)

    def episode(self, raw: RawRecord, *, wrist: str | None = None, depth: bool = False) -> Episode:
        # ALOHA's arms are told in joint angles alone: no end effector, no calibration, no words.
        self.steps(raw)
        anchors, dropped, hand = self.views(raw, wrist)
        return Episode(raw.record, anchors, wrist=hand, dropped=dropped)

    def skipped(self, path: str) -> bool:
        return path == LENGTHS

    def content(self, raw: RawRecord) -> Iterator[tuple[str, object]]:
        yield from super().content(raw)
        # A row a camera: with a camera more, it has a row more, and else is what it was.
        path = self.file_of(raw.record)
        with opened(path) as file, named(file=path, record=raw.record.index, key=LENGTHS):
            found = dataset_at(file, LENGTHS)
            if found is None or found.ndim != 2 or unsound(found):
                if (other := item(file, LENGTHS)) is not None:
                    yield from walk(other, LENGTHS)
                return
            yield LENGTHS, (found.dtype.str, found.shape[1])
            for row in range(found.shape[0]):
                yield f"{LENGTHS}[{row}]", found[row].tobytes()


def recognise(path: Path) -> bool:
    """Whether a file, or one of the first files of a folder, is one of ALOHA's episodes."""
    for file in glance(path):
        try:
            with opened(file, glance=True) as opened_file, named(file=file):
                if _images(opened_file) is not None:
                    return True
        except RemoteError:
            raise
        except (SourceError, OSError):
            continue
    return False


def open_source(
    path: Path,
    dataset: str | None = None,
    *,
    anchor_keys: Sequence[str] | None = None,
    plain: bool = False,
) -> AlohaDataset:
    """Open a folder of episodes, or one.

    Args:
        path: the folder or file.
        dataset: a profile's name or alias, or the dataset's own name.
        anchor_keys: the third-person cameras, where others are wanted than the profile's.
        plain: open it even if no third-person camera is known.

    Raises:
        SourceError: no file is of this layout, one leads out of the folder, or the cameras are
            unknown.
    """
    return AlohaDataset(Path(path), dataset, anchor_keys=anchor_keys, plain=plain)


def padded(dataset: h5py.Dataset) -> bool:
    """Whether a camera is stored as JPEGs that are padded to one length."""
    return dataset.ndim == 2 and dataset.dtype == np.uint8 and dataset.shape[1] <= MAX_CHUNK


def _images(file: h5py.File) -> h5py.Group | None:
    """The group of the cameras, or None where a file is of another layout."""
    try:
        found = group_at(file, IMAGES)
    except ValueError:
        return None
    return found if found is not None and links(found) else None


def _size(dataset: h5py.Dataset) -> tuple[int, int]:
    """(height, width) of the first picture; its head alone is looked at.

    Raises:
        ValueError: it is no picture, or one of an absurd size.
    """
    try:
        with Image.open(io.BytesIO(dataset[0].tobytes()), formats=("JPEG", "PNG")) as image:
            height, width = image.height, image.width
    except Image.UnidentifiedImageError:
        raise ValueError("the first picture is neither JPEG nor PNG") from None
    except Image.DecompressionBombError:
        raise ValueError("the first picture declares an absurd size") from None
    if height * width > _PIXELS:
        raise ValueError(f"the first picture declares {height}x{width} pixels")
    return height, width
