"""New video files: equal frames give equal bytes, whatever the time, host or number of cores."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import Interpolation

from ..readers.errors import SourceError

CODEC, PIX_FMT = "h264", "yuv420p"
CRF, PRESET, GOP = 20, "superfast", 2  # a key frame every second frame, for random access
_SEI = 6  # the H.264 unit in which x264 writes its version and settings
# The same colours on every processor; four pixels' colour is their mean.
_EXACT = (
    Interpolation.AREA
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)


class VideoWriter:
    """Encodes frames to an H.264 mp4, one at a time.

    Args:
        path: the file; its folder is made.
        size: (height, width), both even.
        fps: frames a second; frame n is shown at n / fps.
        crf: x264's quality, 0 (lossless) to 51.
        gop: the distance of key frames.

    Raises:
        SourceError: H.264's pictures cannot have this size.
        OSError: the disk is full, or the folder may not be written.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: float | Fraction,
        *,
        crf: int = CRF,
        preset: str = PRESET,
        gop: int = GOP,
    ):
        check_size(size)
        self.path, self.size, self.frames = Path(path), size, 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rate = Fraction(fps).limit_denominator(100_000)
        # Without `bitexact` the file would name the library's version.
        self._container = av.open(
            str(self.path), "w", format="mp4", container_options={"fflags": "+bitexact"}
        )
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = PIX_FMT
        self._stream.codec_context.time_base = 1 / rate
        self._stream.codec_context.gop_size = gop
        # One thread: x264 divides a frame by the number of threads, and the bytes follow.
        self._stream.codec_context.thread_count = 1
        self._stream.codec_context.options = {
            "preset": preset,
            "crf": str(crf),
            "bf": "0",  # a frame is stored in the order of display, so times start at 0
            "flags": "+bitexact",
        }
        self._plain = None
        self._last: tuple[np.ndarray, av.VideoFrame] | None = None

    def add(self, frame: np.ndarray) -> None:
        """Append one frame, [H, W, 3] uint8 RGB."""
        frame = np.asarray(frame)
        if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
            raise ValueError(
                f"a frame of {frame.shape} {frame.dtype} where {(*self.size, 3)} uint8 is due"
            )
        picture = self._converted(frame)
        picture.pts = self.frames
        picture.time_base = self._stream.codec_context.time_base
        self._mux(self._stream.encode(picture))
        self.frames += 1

    def close(self) -> None:
        """Write what is left and bring the file to the disk."""
        if self.frames:
            self._mux(self._stream.encode())
        self._container.close()
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _converted(self, frame: np.ndarray) -> av.VideoFrame:
        """The frame in the encoder's colours; one that was given just before is not made again."""
        if self._last is not None and np.array_equal(frame, self._last[0]):
            return self._last[1]
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(format=PIX_FMT, interpolation=_EXACT, threads=1)
        self._last = (frame.copy(), picture)
        return picture

    def _mux(self, packets: Iterable[av.Packet]) -> None:
        for packet in packets:
            if self._plain is None:
                self._plain = BitStreamFilterContext(
                    f"filter_units=remove_types={_SEI}", self._stream
                )
            for plain in self._plain.filter(packet):
                plain.stream = self._stream
                self._container.mux(plain)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_size(size: tuple[int, int]) -> None:
    """Refuse a size that the stored colours (one for two by two pixels) cannot have.

    Raises:
        SourceError: a side is odd, or not positive.
    """
    if any(side <= 0 or side % 2 for side in size):
        raise SourceError(
            f"frames of {size[0]}x{size[1]} cannot be H.264 video, whose sides are even",
            todo="choose an even --size",
        )
