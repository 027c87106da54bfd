"""Frames of a video file by their number, decoded when they are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.error import FileNotFoundError as NoSuchFile
from av.video.reformatter import Interpolation

from .errors import SourceError
from .files import present

_LARGEST = 1 << 14  # pixels along one side; what declares more is no camera
_DAMAGED = "fetch this file again"
# The library's default conversion to RGB is up to 3 levels too dark; this one is within 1, and the
# same on every processor.
_EXACT = (
    Interpolation.BILINEAR
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)


class Video:
    """An opened video file; a frame is known by its place in the order of display, from 0.

    The file is read once, without decoding, to know where each frame is; a frame costs what lies
    between it and the key frame before it, and one frame at a time is in memory.

    Attributes:
        path: the file.
        frames: how many frames there are.
        size: (height, width) in pixels.
        fps: frames a second as the file says, exact.
        codec: as in "h264", "av1".
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        with self._readable(), self._opened() as (container, stream):
            codec = stream.codec_context
            self.codec, self.size = codec.codec.canonical_name, (codec.height, codec.width)
            # Everything is taken while the file is open: the library frees it when it closes.
            self.fps = Fraction(stream.average_rate or 0)
            self._seconds = Fraction(stream.time_base or 1)
            if not all(0 < side <= _LARGEST for side in self.size):
                raise SourceError(
                    f"declares pictures of {self.size[0]}x{self.size[1]}",
                    file=self.path,
                    todo=_DAMAGED,
                )
            shown, keys = [], []
            for packet in container.demux(stream):
                if packet.pts is None or packet.is_discard or not packet.size:
                    continue
                if packet.is_corrupt:
                    raise SourceError(
                        f"frame {len(shown)} is cut off", file=self.path, todo=_DAMAGED
                    )
                shown.append(packet.pts)
                if packet.is_keyframe:
                    keys.append((packet.pts, packet.dts if packet.dts is not None else packet.pts))
        self._shown = np.sort(np.asarray(shown, np.int64))
        self._keys = sorted(keys)
        self.frames = len(shown)

    def seconds(self, index: int) -> float:
        """When a frame is shown, in seconds of the file's clock."""
        return float(int(self._shown[index]) * self._seconds)

    def at(self, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The frames that are shown closest to some times.

        Args:
            seconds: [N] in seconds of the file's clock.

        Returns:
            ([N] frame numbers, [N] how many seconds each is away).

        Raises:
            SourceError: the file has no frame.
        """
        if not self.frames:
            raise SourceError("holds no frame", file=self.path, todo=_DAMAGED)
        ticks = np.asarray(seconds, np.float64) / float(self._seconds)
        after = np.clip(np.searchsorted(self._shown, ticks), 0, self.frames - 1)
        before = np.maximum(after - 1, 0)
        far = np.abs(self._shown[after] - ticks)
        closer = np.abs(self._shown[before] - ticks) <= far
        found = np.where(closer, before, after)
        return found, np.abs(self._shown[found] - ticks) * float(self._seconds)

    def packets(self, first: int, count: int) -> Iterator[bytes]:
        """The encoded frames first .. first + count, in the order of the file.

        Raises:
            SourceError: the file is damaged.
        """
        if count < 1:
            return
        low, high = self._shown[first], self._shown[first + count - 1]
        with self._readable(), self._opened() as (container, stream):
            self._seek(container, stream, self._key_before(low))
            left = count
            for packet in container.demux(stream):
                if packet.pts is not None and low <= packet.pts <= high and not packet.is_discard:
                    left -= 1
                    yield bytes(packet)
                    if not left:
                        return
        raise SourceError(f"{left} frames cannot be reached", file=self.path, todo=_DAMAGED)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Decode frames.

        Args:
            indices: N increasing frame numbers.

        Returns:
            [N, H, W, 3] uint8 RGB.

        Raises:
            SourceError: the file has no such frame, or cannot be decoded there.
        """
        indices = np.asarray(indices, np.int64)
        out = np.empty((len(indices), *self.size, 3), np.uint8)
        for place, picture in enumerate(self.walk(indices)):
            out[place] = picture
        return out

    def walk(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """As `read`, one [H, W, 3] at a time."""
        indices = np.asarray(indices, np.int64)
        if len(indices) and not (indices[0] >= 0 and indices[-1] < self.frames):
            raise SourceError(
                f"frame {indices[-1]} is asked for, but there are {self.frames}",
                file=self.path,
                todo=_DAMAGED,
            )
        if (np.diff(indices) <= 0).any():
            raise ValueError("the frame numbers must increase")
        if not len(indices):
            return
        with self._readable(), self._opened() as (container, stream):
            place = 0
            while place < len(indices):
                found = yield from self._run(container, stream, indices[place:])
                if not found:
                    raise SourceError(
                        f"frame {indices[place]} cannot be decoded", file=self.path, todo=_DAMAGED
                    )
                place += found

    def _run(self, container, stream, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Decode from the key frame before the first index; returns how many were found.

        It ends where a seek is cheaper than what lies between two wanted frames.
        """
        want = self._shown[indices]
        starts = np.asarray([shown for shown, _ in self._keys])
        chosen = self._key_before(want[0])
        found = 0
        while chosen >= 0 and not found:
            self._seek(container, stream, chosen)
            for frame in container.decode(stream):
                if frame.pts is None or frame.pts < want[found]:
                    continue
                if frame.pts > want[found] or frame.is_corrupt:
                    break
                yield self._picture(frame)
                found += 1
                if found == len(want) or self._far(starts, want[found - 1], want[found]):
                    return found
            chosen -= 1  # some files list a key frame that decoding does not start from
        return found

    def _key_before(self, shown: int) -> int:
        """The number of the last key frame that is not shown after `shown`."""
        starts = [start for start, _ in self._keys]
        return max(int(np.searchsorted(starts, shown, "right")) - 1, 0)

    def _seek(self, container, stream, key: int) -> None:
        container.seek(self._keys[key][1] if self._keys else 0, stream=stream)

    @staticmethod
    def _far(starts: np.ndarray, now: int, then: int) -> bool:
        """Whether a key frame lies between two frames, and not just in front of the next one."""
        first, last = np.searchsorted(starts, [now, then], "right")
        return last - first > 1

    def _picture(self, frame) -> np.ndarray:
        if (frame.height, frame.width) != self.size:
            raise SourceError(
                f"a frame is {frame.height}x{frame.width} where the file declares "
                f"{self.size[0]}x{self.size[1]}",
                file=self.path,
                todo=_DAMAGED,
            )
        return frame.to_ndarray(format="rgb24", interpolation=_EXACT, threads=1)

    @contextlib.contextmanager
    def _opened(self):
        with av.open(str(present(self.path)), metadata_errors="replace") as container:
            if not container.streams.video:
                raise SourceError("holds no video", file=self.path, todo=_DAMAGED)
            stream = container.streams.video[0]
            # A damaged frame is an error, not a picture that was guessed.
            stream.codec_context.options = {"err_detect": "explode", "threads": "1"}
            yield container, stream

    def _readable(self):
        return self.readable(self.path)

    @staticmethod
    @contextlib.contextmanager
    def readable(path: Path):
        """Damage of a file as a SourceError; the disk's own errors pass."""
        try:
            yield
        except NoSuchFile:
            raise SourceError("there is no such video", file=path, todo=_DAMAGED) from None
        except (FFmpegError, ValueError) as error:
            if isinstance(error, SourceError):
                raise
            what = getattr(error, "strerror", None) or str(error)
            raise SourceError(f"cannot be decoded ({what})", file=path, todo=_DAMAGED) from None


def open_video(path: Path | str) -> Video:
    """Open a video file.

    Raises:
        SourceError: there is none, or it is damaged.
    """
    return Video(path)


@dataclass(frozen=True)
class Header:
    """What a video file's header says: how many frames, their size, how many a second.

    Of frames and fps, 0 means that it does not say.
    """

    frames: int
    size: tuple[int, int]
    fps: Fraction = Fraction(0)


def read_header(path: Path | str) -> Header:
    """Look at a video file without reading its frames.

    Raises:
        SourceError: there is no such file, or it is damaged.
    """
    text = str(present(Path(path)))
    with Video.readable(Path(path)), av.open(text, metadata_errors="replace") as container:
        if not container.streams.video:
            raise SourceError("holds no video", file=path, todo=_DAMAGED)
        stream = container.streams.video[0]
        codec = stream.codec_context
        rate = Fraction(stream.average_rate or 0)
        return Header(stream.frames, (codec.height, codec.width), rate)
