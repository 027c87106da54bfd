"""New video files: equal frames give equal bytes, whatever the time, host or number of cores."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import Interpolation

from ..readers.errors import SourceError

CODEC, PIX_FMT = "h264", "yuv420p"
# x264's fastest preset: for its quality (about 38 dB on the simulation) it costs a third more bytes
# than the next one, and half the time. A key frame every second frame, for random access.
CRF, PRESET, GOP = 20, "ultrafast", 2
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
        self._last: tuple[bytes, av.VideoFrame] | None = None

    def add(self, frame: np.ndarray) -> bool:
        """Append one frame, [H, W, 3] uint8 RGB; returns whether it is the one before again."""
        frame = np.asarray(frame)
        if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
            raise ValueError(
                f"a frame of {frame.shape} {frame.dtype} where {(*self.size, 3)} uint8 is due"
            )
        data = frame.tobytes()
        again = self._last is not None and self._last[0] == data
        picture = self._last[1] if self._last and again else self._converted(frame)
        self._last = (data, picture)
        picture.pts = self.frames
        picture.time_base = self._stream.codec_context.time_base
        self._mux(self._stream.encode(picture))
        self.frames += 1
        return again

    def close(self) -> None:
        """Write what is left; the file's bytes are brought to the disk by who publishes it."""
        if self.frames:
            self._mux(self._stream.encode())
        self._container.close()

    def _converted(self, frame: np.ndarray) -> av.VideoFrame:
        """The frame in the encoder's colours."""
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        return picture.reformat(format=PIX_FMT, interpolation=_EXACT, threads=1)

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
