"""Frames of a video by number: the right ones, from any file, and damage that is named."""

from fractions import Fraction

import av
import numpy as np
import pytest
from wristaugment.readers.errors import SourceError
from wristaugment.readers.video import Header, open_video, read_header

SIZE, COUNT = (48, 64), 60


def picture(number):
    """[H, W, 3]: its grey tells its number within half a step."""
    frame = np.full((*SIZE, 3), 10 + 4 * number, np.uint8)
    frame[10:20, 5 + number % 40 : 15 + number % 40] = 0
    return frame


def number_of(frame):
    return int(np.round((np.median(frame) - 10) / 4))


def make_video(path, options=None, codec="libx264", rate=Fraction(30000, 1001), count=COUNT):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"g": "2", "bf": "0", "crf": "5"}),
        ("libx264", {"g": "12", "bf": "3", "crf": "5"}),
        ("libx264", {"g": "1000", "bf": "2", "crf": "5", "x264-params": "open-gop=1"}),
        ("mpeg4", {"g": "10", "bf": "2", "qmin": "1", "qmax": "2"}),
        ("libsvtav1", {"g": "8", "preset": "12", "crf": "5"}),
    ],
)
def test_every_frame_is_found_by_its_number(tmp_path, codec, options):
    video = open_video(make_video(tmp_path / "a.mp4", options, codec))
    assert video.frames == COUNT and video.size == SIZE
    assert abs(video.fps - Fraction(30000, 1001)) < 1e-3
    assert [number_of(frame) for frame in video.read(np.arange(COUNT))] == list(range(COUNT))
    for indices in ([0], [COUNT - 1], [3, 4, 25, 59], [11, 12, 13], [1, 29, 31]):
        assert [number_of(frame) for frame in video.read(np.array(indices))] == indices
    assert video.read(np.array([], int)).shape == (0, *SIZE, 3)


def test_times_and_numbers_agree(tmp_path):
    video = open_video(make_video(tmp_path / "a.mp4", rate=15))
    numbers, far = video.at(np.array([0, 7 / 15, 7.4 / 15, 59 / 15, 100, -1]))
    assert numbers.tolist() == [0, 7, 7, 59, 59, 0]
    assert far[:2].max() < 1e-6 and abs(far[2] - 0.4 / 15) < 1e-6 and far[4] > 90
    assert video.seconds(7) == pytest.approx(7 / 15, abs=1e-6)
    assert read_header(tmp_path / "a.mp4") == Header(COUNT, SIZE, Fraction(15))


def test_encoded_frames_come_in_parts(tmp_path):
    video = open_video(make_video(tmp_path / "a.mp4", {"g": "6", "bf": "0"}))
    whole = list(video.packets(0, COUNT))
    assert len(whole) == COUNT and sum(map(len, whole)) < (tmp_path / "a.mp4").stat().st_size
    assert list(video.packets(0, 20)) == whole[:20]
    assert list(video.packets(50, 6)) == whole[50:56]


def test_a_number_that_is_not_there_is_refused(tmp_path):
    video = open_video(make_video(tmp_path / "a.mp4", count=5))
    with pytest.raises(SourceError, match="frame 5 is asked for, but there are 5"):
        video.read(np.array([1, 5]))
    with pytest.raises(ValueError, match="increase"):
        video.read(np.array([2, 1]))


def test_damage_is_named_with_the_file(tmp_path):
    good = make_video(tmp_path / "a.mp4", {"g": "2", "movflags": "faststart"})
    data = good.read_bytes()
    cut, flipped = tmp_path / "cut.mp4", tmp_path / "flipped.mp4"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"cut\.mp4"):
        open_video(cut)
    start = data.index(b"mdat") + 4
    middle = start + (len(data) - start) // 2
    flipped.write_bytes(data[:middle] + bytes(200) + data[middle + 200 :])
    with pytest.raises(SourceError, match=r"flipped\.mp4"):
        open_video(flipped).read(np.arange(COUNT))
    cut.write_bytes(b"not a video")
    with pytest.raises(SourceError, match=r"cut\.mp4"):
        open_video(cut)
    with pytest.raises(SourceError, match="no such video"):
        open_video(tmp_path / "none.mp4")
