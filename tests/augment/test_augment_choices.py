"""What `auto` takes, and what it says of it."""

import pytest
from wristaugment.augment.choices import (
    GEOMETRIES,
    Known,
    choose_depth,
    choose_pose,
    split_geometry,
)

ALL = {"calibrated": True, "eef": True, "mount": True}


@pytest.mark.parametrize(
    ("known", "name", "words"),
    [
        (Known(**ALL), "measured", "mount on the hand"),
        (Known(**ALL, solved=True), "measured", "mount on the hand"),
        (Known(**(ALL | {"mount": False}), solved=True), "rigid", "--mount"),
        (Known(**(ALL | {"mount": False})), "head", "wristaugment mount"),
        (Known(**(ALL | {"calibrated": False})), "head", "--pose rigid"),
        (Known(False, True, False), "head", "wristaugment mount"),
        (Known(False, True, False, solved=True), "head", "follow the hand"),
        (Known(**(ALL | {"eef": False}), solved=True), "head", "no end-effector poses"),
    ],
)
def test_the_wrist_pose_is_the_best_that_the_data_allow(known, name, words):
    choice = choose_pose(known)
    assert choice.name == name and words in str(choice)
    assert (choice.better == "") == (name != "head" or not known.eef)


def test_recorded_depth_needs_cameras():
    assert choose_depth(Known(**ALL, depth=True)).name == "recorded"
    assert choose_depth(Known(**ALL)).name == "predicted"
    lost = choose_depth(Known(**(ALL | {"calibrated": False}), depth=True))
    assert lost.name == "predicted" and "calibrated" in lost.why


def test_names_of_geometries_say_whose_depth_and_whether_it_is_fused():
    found = {name: split_geometry(name) for name in GEOMETRIES}
    assert found["fused"] == ("auto", True) and found["fused-recorded"] == ("recorded", True)
    assert found["predicted"] == ("predicted", False)
    assert {whose for whose, _ in found.values()} == {"auto", "recorded", "predicted"}
    with pytest.raises(ValueError, match="no geometry 'lidar'"):
        split_geometry("lidar")
