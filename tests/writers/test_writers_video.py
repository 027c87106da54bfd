"""New videos: near to what was given, random access, and the same bytes every time."""

import av
import numpy as np
import pytest
from wristaugment.readers.errors import SourceError
from wristaugment.readers.video import open_video
from wristaugment.writers.video import VideoWriter

SIZE = (90, 160)


def picture(t):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.stack([x + 3 * t, y + t, 250 - x], -1).astype(np.uint8)


def write(path, frames, fps=15):
    with VideoWriter(path, SIZE, fps) as video:
        for frame in frames:
            video.add(frame)
    return path


def test_frames_come_back(tmp_path):
    frames = [picture(t) for t in range(20)] + [np.zeros((*SIZE, 3), np.uint8)]
    video = open_video(write(tmp_path / "deep" / "a.mp4", frames))
    assert (video.frames, video.size, video.fps, video.codec) == (21, SIZE, 15, "h264")
    found = video.read(np.arange(21))
    assert np.abs(found.astype(int) - np.stack(frames)).mean() < 2.5
    assert found[20].max() <= 4  # black is black
    flat = np.full((*SIZE, 3), (200, 30, 60), np.uint8)
    found = open_video(write(tmp_path / "flat.mp4", [flat] * 3)).read(np.arange(3))
    assert np.abs(found.astype(int) - flat).max() <= 2
    assert [video.seconds(n) for n in range(21)] == [n / 15 for n in range(21)]


def test_the_bytes_depend_on_the_frames_alone(tmp_path):
    frames = [picture(t // 2) for t in range(12)]
    first = write(tmp_path / "a.mp4", frames).read_bytes()
    assert write(tmp_path / "b.mp4", [frame.copy() for frame in frames]).read_bytes() == first
    assert write(tmp_path / "c.mp4", frames[::-1]).read_bytes() != first
    for word in (b"x264", b"Lavf", b"Lavc", b"options:"):
        assert word not in first


def test_every_second_frame_is_a_key_frame_and_none_is_out_of_order(tmp_path):
    path = write(tmp_path / "a.mp4", [picture(t) for t in range(9)])
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [packet.is_keyframe for packet in packets] == [t % 2 == 0 for t in range(9)]
    assert all(packet.pts == packet.dts for packet in packets)


@pytest.mark.parametrize("fps", [10, 29.97, 30, 50])
def test_time_does_not_drift(tmp_path, fps):
    path = write(tmp_path / "a.mp4", [np.zeros((*SIZE, 3), np.uint8)] * 400, fps)
    video = open_video(path)
    assert abs(video.seconds(399) - 399 / fps) < 1e-4


def test_what_cannot_be_stored_is_refused(tmp_path):
    with pytest.raises(SourceError, match="45x160"):
        VideoWriter(tmp_path / "a.mp4", (45, 160), 15)
    with VideoWriter(tmp_path / "a.mp4", SIZE, 15) as video:
        with pytest.raises(ValueError, match="is due"):
            video.add(np.zeros((90, 158, 3), np.uint8))
        video.add(np.zeros((*SIZE, 3), np.uint8))
