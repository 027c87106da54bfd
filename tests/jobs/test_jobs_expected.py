"""What a job says of the quality of its frames, and that a resumed one says the same."""

import numpy as np
import pytest
from wristaugment.jobs.expected import About, Expected, least_ssim
from wristaugment.jobs.findings import unmade, wrong_confidence
from wristaugment.jobs.storage import FolderStorage
from wristaugment.jobs.streams import StreamStore
from wristaugment.jobs.work import quality
from wristaugment.readers.episode import Record, WristStream
from wristaugment.readers.errors import SourceError

NAN = float("nan")
KNOWN = About("fitted", 0.5, {"confidence.json": "ab"})


def stream(valid, told):
    T = len(valid)
    frames = np.full((T, 4, 4, 3), 7, np.uint8)
    confidence = None if told is None else np.array(told, np.float32)
    return WristStream(frames, np.array(valid, bool), np.ones(T, "f4"), confidence=confidence)


def test_the_threshold_is_as_asked_or_the_weights_own():
    assert least_ssim(None, KNOWN) == 0.5 and least_ssim("none", KNOWN) is None
    assert least_ssim("0.62", KNOWN) == 0.62 and least_ssim("0", KNOWN) == 0
    assert least_ssim(None, About("unknown")) is None
    for asked, about, said in (
        ("best", KNOWN, "is no number"),
        ("1.2", KNOWN, "is no SSIM"),
        ("nan", KNOWN, "is no SSIM"),
        ("0.5", About("unknown: no confidence.json"), "no confidence.json"),
    ):
        with pytest.raises(SourceError, match=said) as caught:
            least_ssim(asked, about)
        assert caught.value.key == "--min-ssim" and caught.value.todo


def test_quality_counts_what_is_below_apart_from_what_was_not_made():
    said = quality(Record("train", 0, 1), stream([1, 0, 0, 1], [0.75, 0.25, NAN, 0.5]))
    assert (said["confidence"], said["below"], said["valid"]) == (0.5, 1, 0.5)
    assert said["unmade"] == 1
    said = quality(Record("train", 0, 1), stream([1, 0, 0, 1], [0.75, 0.25, 0, 0.6]))
    assert (said["confidence"], said["below"], said["unmade"]) == (0.4, 2, 1)
    unknown = quality(Record("train", 0, 1), stream([1, 0], None))
    assert (unknown["confidence"], unknown["below"], unknown["unmade"]) == (None, 0, 1)


def told(*episodes, least=0.5):
    expected = Expected(least)
    for number, (valid, confidence) in enumerate(episodes):
        expected.add([quality(Record("train", 0, number), stream(valid, confidence))])
    return expected


def test_the_words_say_how_many_fall_below():
    some = told(([1, 1], [0.8, 0.6]), ([0, 1], [0.3, 0.55]))
    [line] = some.lines()
    assert "1 of 4 frames (25%) and 1 of 2 episodes fall below 0.5" in line
    assert some.facts()["below_frames"] == 1 and some.facts()["confidence"] == 0.5625
    outside = told(*[([0] * 9 + [1], [0.3] * 9 + [0.6])] * 2)
    assert "another robot or other cameras" in outside.lines()[-1]
    assert "--min-ssim" in outside.lines()[-1]
    black = told(([0, 0, 1], [0.3, NAN, 0.6])).lines()
    assert "1 frames could not be made" in black[1] and len(black) == 2
    [line, unmade] = told(([0, 0, 1], [0.3, 0, 0.6])).lines()
    assert "2 of 3 frames (67%)" in line and "1 frames could not be made" in unmade
    assert "not known" in told(([1, 1], None), least=None).lines()[0]
    assert "nothing was filtered" in told(([1], [0.9]), least=None).lines()[0]


def test_a_frame_that_was_not_made_is_told_from_one_that_falls_below():
    valid, confidence = np.array([1, 0, 0, 0]), np.array([0.0, 0.3, 0.0, NAN])
    assert unmade(valid, confidence).tolist() == [False, False, True, True]


def test_a_kept_stream_has_its_confidence_to_the_bit(tmp_path):
    (tmp_path / "kept").mkdir()
    store = StreamStore(FolderStorage(tmp_path), "kept")
    for index, confidence in enumerate(([0.1, NAN, 0.7], None)):
        made = stream([1, 0, 1], confidence)
        store.keep(index, made, {"n": index})
        found, said = store.load(index)
        assert said == {"n": index}
        if confidence is None:
            assert found.confidence is None
        else:
            assert found.confidence.tobytes() == made.confidence.tobytes()


def test_confidences_that_cannot_be_are_found():
    valid = np.array([1, 0, 0])
    assert wrong_confidence(np.array([0.7, 0.3, NAN]), valid) is None
    assert wrong_confidence(np.full(3, NAN), valid) is None
    assert "from 0 to 1" in wrong_confidence(np.array([0.7, 1.3, NAN]), valid)
    assert "no confidence" in wrong_confidence(np.array([NAN, 0.3, 0.4]), valid)
