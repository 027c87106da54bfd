"""The contact sheet: which pictures, where, and under which heading."""

import numpy as np
import pytest
from PIL import Image
from wristaugment.augment.evaluate import Result
from wristaugment.augment.picture import GAP, HEADING, sheet_row, write_sheet
from wristaugment.readers.episode import Episode, Record, View, WristStream
from wristaugment.readers.errors import SourceError


def flat(value: int, steps: int = 3, size: tuple[int, int] = (20, 30)) -> np.ndarray:
    frames = np.full((steps, *size, 3), value, np.uint8)
    frames[1:] += 1  # the first timestep differs
    return frames


def result(**views: np.ndarray) -> Result:
    stream = WristStream(flat(0), np.ones(3, bool), np.ones(3, np.float32), condition=flat(40))
    episode = Episode(Record("val", 0, 0), [View("a", flat(10, size=(40, 60)))])
    return Result(episode, {}, views, flat(200), {("nano", "auto"): stream})


def test_a_row_goes_from_the_anchors_to_the_truth():
    row = sheet_row(result(nano=flat(80)))
    assert [name for name, _ in row] == ["anchor 1", "condition map, nano", "nano", "recorded"]
    assert [int(frame.mean()) for _, frame in row] == [11, 41, 81, 201]
    assert row[0][1].shape == (20, 30, 3)
    first = sheet_row(result(nano=flat(80)), share=0)
    assert [int(frame.mean()) for _, frame in first] == [10, 40, 80, 200]


def test_a_sheet_has_every_picture_in_its_place(tmp_path):
    rows = [sheet_row(result(nano=flat(80))), sheet_row(result(nano=flat(90), mean=flat(120)))]
    path = tmp_path / "made" / "sheet.png"
    assert write_sheet(path, rows) == path.stat().st_size
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (HEADING + 2 * 20 + GAP, 5 * 30 + 4 * GAP, 3)
    middles = [[sheet[HEADING + 10 + r * (20 + GAP), 15 + c * (30 + GAP), 0] for c in range(5)]
               for r in range(2)]  # fmt: skip
    assert middles == [[11, 41, 81, 255, 201], [11, 41, 91, 121, 201]]
    assert (sheet[:HEADING] == 0).any()


def test_nothing_to_show_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs a row"):
        write_sheet(tmp_path / "a.png", [])
    for name in ("sheet.foo", "sheet"):
        with pytest.raises(SourceError, match="no format of pictures"):
            write_sheet(tmp_path / name, [sheet_row(result(nano=flat(80)))])
    assert not list(tmp_path.iterdir())
