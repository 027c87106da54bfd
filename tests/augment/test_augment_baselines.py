"""What `--recipes` may name, and the pictures that the baselines make."""

import numpy as np
import pytest
from PIL import Image
from wristaugment.augment.baselines import (
    MEAN_PICTURE,
    Way,
    holes_of,
    make_frames,
    mean_wrist,
    parse_ways,
    run_recipe,
)
from wristaugment.augment.recipe import RECIPES, Recipe
from wristaugment.readers.episode import Episode, Record, View, WristStream
from wristaugment.readers.errors import SourceError


@pytest.fixture
def stream():
    """Two 6x8 frames of which the condition map saw little: one black pixel it did see."""
    condition = np.zeros((2, 6, 8, 3), np.uint8)
    holes = np.ones((2, 6, 8), bool)
    condition[0, 1, 1], holes[0, 1, 1] = (200, 10, 0), False
    condition[0, 4, 6], holes[0, 4, 6] = (0, 0, 0), False
    return WristStream(
        frames=np.full((2, 6, 8, 3), 77, np.uint8),
        valid=np.ones(2, bool),
        coverage=np.array([2 / 48, 0], np.float32),
        condition=condition,
        holes=holes,
    )


@pytest.fixture
def episode():
    frames = np.zeros((2, 12, 16, 3), np.uint8)
    frames[:, :, 8:] = 240
    return Episode(Record("val", 0, 1), [View("observation/a", frames)])


def test_names_become_ways_in_order():
    ways = parse_ways(["mean", "nano", "nano:head", " projection-holes ", "anchor"])
    assert ways == [
        Way("mean", "mean", "nano", None),
        Way("nano", "recipe", "nano", "auto"),
        Way("nano:head", "recipe", "nano", "head"),
        Way("projection-holes", "projection-holes", "nano", "auto"),
        Way("anchor", "anchor", "nano", None),
    ]


def test_a_recipe_can_be_run_frame_by_frame():
    plain, way, posed = parse_ways(["nano", "nano+perframe", "nano+perframe:head"])
    assert way == Way("nano+perframe", "recipe", "nano", "auto", "perframe")
    assert posed.pose == "head" and posed.name == "nano+perframe:head"
    assert plain.runs == "nano" and way.runs == posed.runs == "nano+perframe"
    assert run_recipe("nano") == RECIPES["nano"]
    alone = run_recipe(way.runs)
    assert (alone.name, alone.clip, alone.overlap) == ("nano", 1, 0)
    for wrong in ("nano+other", "nano+", "mean+perframe", "projection+perframe"):
        with pytest.raises(SourceError, match=r"variant.*perframe, rgb"):
            parse_ways([wrong])
    assert run_recipe("nano+rgb") == RECIPES["nano"]


def test_several_poses_run_each_posed_way_with_each():
    names = [
        w.name for w in parse_ways(["nano", "projection:head", "mean"], poses=["auto", "head"])
    ]
    assert names == ["nano:auto", "nano:head", "projection:head", "mean"]


def test_one_pose_applies_to_all_without_changing_names():
    ways = parse_ways(["nano", "projection:measured", "anchor"], poses=["head"])
    assert [(w.name, w.pose) for w in ways] == [
        ("nano", "head"),
        ("projection:measured", "measured"),
        ("anchor", None),
    ]


def test_baselines_belong_to_the_first_learnt_recipe_named():
    recipes = {
        "plain": Recipe("plain", "", "constant", None),
        "big": Recipe("big", "", "wrist-dit", "big"),
        "nano": Recipe("nano", "", "wrist-dit", "nano"),
    }
    ways = parse_ways(["projection", "plain", "big", "nano"], recipes=recipes)
    assert [way.recipe for way in ways] == ["big", "plain", "big", "nano"]


def test_projection_alone_runs_the_recipe_without_generator():
    (way,) = parse_ways(["projection:head"])
    assert RECIPES[way.recipe].generator == "projection"
    assert (way.kind, way.pose) == ("projection", "head")


def test_a_name_given_twice_is_scored_once():
    assert [way.name for way in parse_ways(["anchor", "nano", "anchor"])] == ["anchor", "nano"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["nanoo"], "unknown way 'nanoo'"),
        (["nano:tail"], "unknown pose 'tail'"),
        (["mean:head"], "'mean' involves no pose"),
        (["nano:"], "unknown pose ''"),
        ([" "], "no way is named"),
    ],
)
def test_what_is_not_known_is_refused_with_the_choices(names, said):
    with pytest.raises(SourceError) as caught:
        parse_ways(names)
    text = str(caught.value)
    assert said in text and "--recipes" in text and "\n" not in text
    assert caught.value.todo


def test_holes_take_the_nearest_colour_that_was_seen(episode, stream):
    way = Way("projection", "projection", "nano", "auto")
    filled = make_frames(way, episode, stream, (6, 8))
    assert filled[0, 0, 0].tolist() == [200, 10, 0]
    assert filled[0, 5, 7].tolist() == [0, 0, 0]  # nearest to the black pixel that was seen
    assert {tuple(p) for p in filled[0].reshape(-1, 3)} == {(200, 10, 0), (0, 0, 0)}
    assert not filled[1].any()  # nothing seen, nothing invented
    assert not stream.condition[0, 0, 0].any()  # the source is not written to


def test_without_a_mask_black_is_a_hole(stream):
    stream.holes = None
    holes = holes_of(stream)
    assert holes[0].sum() == 47 and not holes[0, 1, 1] and holes[1].all()


def test_each_way_makes_its_own_frames(episode, stream, tmp_path):
    Image.new("RGB", (4, 3), (9, 99, 199)).save(tmp_path / MEAN_PICTURE)
    made = {
        kind: make_frames(Way(kind, kind, "nano", None), episode, stream, (6, 8), tmp_path)
        for kind in ("recipe", "projection", "projection-holes", "mean", "anchor")
    }
    assert all(f.shape == (2, 6, 8, 3) and f.dtype == np.uint8 for f in made.values())
    assert (made["recipe"] == 77).all()
    assert (made["projection-holes"] == stream.condition).all()
    assert made["projection"][0, 0, 0].tolist() == [200, 10, 0]
    assert (made["mean"] == [9, 99, 199]).all()
    assert (made["anchor"][:, :, :4] == 0).all() and (made["anchor"][:, :, 4:] == 240).all()


def test_a_recipe_without_condition_map_has_no_projection(episode, stream):
    stream.condition = stream.holes = None
    with pytest.raises(SourceError, match="makes no condition map"):
        make_frames(Way("projection", "projection", "x", "auto"), episode, stream, (6, 8))


def test_a_missing_or_broken_mean_picture_is_named(tmp_path):
    with pytest.raises(SourceError, match="there is no mean wrist picture") as caught:
        mean_wrist(tmp_path, (6, 8))
    assert caught.value.file == str(tmp_path / MEAN_PICTURE)
    (tmp_path / MEAN_PICTURE).write_bytes(b"no picture")
    with pytest.raises(SourceError, match="no picture"):
        mean_wrist(tmp_path, (6, 8))
    with pytest.raises(SourceError, match="learnt from nothing"):
        mean_wrist(None, (6, 8))
