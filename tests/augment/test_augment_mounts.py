"""Files of mounts: what is written is read again, and what is no mount is refused."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from wristaugment.augment.mounts import read_mount, write_mount
from wristaugment.readers.errors import SourceError


@pytest.fixture
def mount():
    out = np.eye(4)
    out[:3, :3] = Rotation.from_euler("xyz", [0.3, -0.2, 2.0]).as_matrix()
    out[:3, 3] = [0.05, -0.05, 0.01]
    return out


def test_a_mount_is_read_as_it_was_written(mount, tmp_path):
    path = tmp_path / "mount.json"
    write_mount(path, mount, {"dataset": "droid"})
    np.testing.assert_allclose(read_mount(path), mount, atol=1e-9)
    assert json.loads(path.read_text())["dataset"] == "droid"
    assert [p.name for p in tmp_path.iterdir()] == ["mount.json"]
    before = path.read_bytes()
    write_mount(path, read_mount(path), {"dataset": "droid"})
    assert path.read_bytes() == before


def test_rounded_numbers_by_hand_are_a_mount(mount, tmp_path):
    path = tmp_path / "mount.json"
    path.write_text(json.dumps({"mount": mount.round(4).tolist()}))
    np.testing.assert_allclose(read_mount(path), mount, atol=1e-4)


def _changed(mount, row, column, value):
    mount = mount.copy()
    mount[row, column] = value
    return {"mount": mount.tolist()}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda m: {"mount": m[:3].tolist()}, "shape \\(3, 4\\)"),
        (lambda m: {"matrix": m.tolist()}, "no matrix"),
        (lambda m: [1], "no matrix"),
        (lambda m: {"mount": m.T.tolist()}, "row 0 0 0 1"),
        (lambda m: _changed(m, 0, 0, 2.0), "no rotation"),
        (lambda m: {"mount": (m * [[1, 1, -1, 1]] * 1.0).tolist()}, "no rotation"),
        (lambda m: _changed(m, 0, 3, 53.0), "53 m from the hand.*in metres"),
        (lambda m: _changed(m, 0, 3, float("nan")), "not finite"),
    ],
)
def test_what_is_no_mount_is_refused_by_name(mount, tmp_path, content, said):
    path = tmp_path / "mount.json"
    path.write_text(json.dumps(content(mount)))
    with pytest.raises(SourceError, match=said) as caught:
        read_mount(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_or_no_json_is_refused(tmp_path):
    with pytest.raises(SourceError, match="No such file"):
        read_mount(tmp_path / "nothing.json")
    (tmp_path / "text").write_text("mount")
    with pytest.raises(SourceError, match="no matrix"):
        read_mount(tmp_path / "text")
