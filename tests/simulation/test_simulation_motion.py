"""Scripts over many seeds: what the words say is what happens to the object."""

import numpy as np
import pytest
from wristaugment.readers.errors import SourceError

SEEDS = 16


@pytest.fixture(scope="module")
def played(robot):
    """(scene, script, motion, tools [N, 4, 4]) of many episodes, without rendering."""
    from wristaugment.simulation.episode import Request, _stage

    out = []
    for index in range(SEEDS):
        scene, arm, script, motion, _ = _stage(Request(3, "train", index, 8, False))
        tools = []
        for joints in motion.joints:
            arm.set(joints)
            tools.append(arm.link8() @ robot.tool_in_link8)
        out.append((scene, script, motion, np.array(tools)))
    return out


def test_all_tasks_occur_and_take_a_plausible_time(played):
    kinds = {script.words[0].split()[0] for _, script, _, _ in played}
    assert {"pick", "push", "put"} <= kinds
    lengths = [len(motion.joints) for _, _, motion, _ in played]
    assert min(lengths) >= 15 and 30 <= np.mean(lengths) <= 65


def test_long_episodes_do_one_task_after_another_and_short_ones_are_as_they_were(played, robot):
    from wristaugment.simulation.episode import ONE_TASK, Request, _stage

    for index in range(3):
        _, _, script, motion, _ = _stage(Request(3, "train", index, 200, False))
        assert len(motion.joints) >= 200 and script.words[0].count(", then ") >= 2
        turns = np.abs(np.diff(motion.joints, axis=0)).max(axis=1)
        assert turns.max() < 0.5 and np.mean(turns > 1e-4) > 0.75
        moves = np.flatnonzero(turns > 1e-4)
        assert np.diff(moves).max() <= 8  # it waits while the hand closes, and no longer
        steps = np.linalg.norm(np.diff(motion.things[:, :, :3, 3], axis=0), axis=-1)
        assert steps.max() < 0.1 and motion.things[:, :, 2, 3].min() > -1e-6
        assert (steps > 1e-6).any(axis=1)[120:].any()  # things are moved in later tasks too
        assert len(motion.closed) == len(motion.things) == len(motion.joints)
        short = _stage(Request(3, "train", index, ONE_TASK, False))[3]
        np.testing.assert_array_equal(short.joints, played[index][2].joints)
        np.testing.assert_array_equal(motion.joints[: len(short.joints)], short.joints)


def test_joints_move_smoothly_and_fingertips_stay_above_the_table(played, robot):
    for _, script, motion, tools in played:
        assert abs(np.diff(motion.joints, axis=0)).max() < 0.5, script.words[0]
        assert np.linalg.norm(np.diff(tools[:, :3, 3], axis=0), axis=1).max() < 0.09
        assert tools[:, 2, 3].min() >= robot.tip
        assert motion.closed.min() >= 0 and motion.closed.max() <= 1


def test_the_target_alone_moves_and_ends_where_the_words_say(played):
    ahead = {"left": (1, 1), "right": (1, -1), "forward": (0, 1), "back": (0, -1)}
    for scene, script, motion, _ in played:
        words, path = script.words[0], motion.things[:, :, :3, 3]
        travel = path[-1] - path[0]
        others = np.arange(len(scene.things)) != script.target
        assert np.all(travel[others] == 0)
        moved = travel[script.target]
        assert path[:, :, 2].min() > -1e-6
        name = scene.things[script.target].name
        assert name in words
        if words.startswith("pick up the") and words.endswith(name):
            assert moved[2] > 0.05
        elif words.startswith("put"):
            ends = [other.name for i, other in enumerate(scene.things) if i != script.target]
            goal = next(
                i for i, o in enumerate(scene.things) if o.name in ends and words.endswith(o.name)
            )
            near = np.hypot(*(path[-1, script.target] - path[-1, goal])[:2])
            assert near < 0.02
        elif words.startswith(("push", "move")):
            axis, sign = next(v for k, v in ahead.items() if k in words.removeprefix(name))
            assert moved[axis] * sign > 0.03
            assert abs(moved[1 - axis]) < 0.02 and abs(moved[2]) < 1e-3


def test_a_carried_object_keeps_its_place_in_the_hand(played):
    seen = 0
    for _, script, motion, tools in played:
        object_ = motion.things[:, script.target]
        lifted = np.flatnonzero(object_[:, 2, 3] > 0.03)
        if script.words[0].startswith("push") or len(lifted) < 3:
            continue
        inside = np.linalg.inv(tools[lifted[:3]]) @ object_[lifted[:3]]
        assert np.allclose(inside, inside[0], atol=1e-6)
        seen += 1
    assert seen > 3


def test_steps_are_a_window_with_one_stride(mujoco):
    from wristaugment.simulation.episode import _choose_steps

    strides = set()
    for seed in range(40):
        chosen = _choose_steps(np.random.default_rng(seed), 50, 8)
        step = np.unique(np.diff(chosen))
        assert len(chosen) == 8 and len(step) == 1 and chosen[-1] < 50
        strides.add(int(step[0]))
    assert strides == {1, 2, 3}
    held = _choose_steps(np.random.default_rng(0), 5, 8)
    assert held.tolist() == [0, 1, 2, 3, 4, 4, 4, 4]


def test_no_two_episodes_share_random_numbers():
    pytest.importorskip("mujoco")
    from wristaugment.simulation.episode import Request, generator

    seen = {
        generator(Request(seed, split, index, 8, True), attempt).bytes(16)
        for seed in (0, 1)
        for split in ("train", "val", "test")
        for index in range(20)
        for attempt in (0, 1)
    }
    assert len(seen) == 2 * 3 * 20 * 2


def test_objects_fit_the_gripper_and_have_names_of_their_own(robot):
    from wristaugment.simulation.objects import CONTAINERS, choose_things, make_thing

    for seed in range(60):
        things = choose_things(np.random.default_rng(seed))
        assert 2 <= len(things) <= 5
        assert len({thing.name for thing in things}) == len(things)
        assert things[0].shape.width > 0
        for thing in things:
            assert thing.shape.width < 0.08
            assert (thing.shape.width == 0) == (thing.kind in CONTAINERS)
    with pytest.raises(KeyError):
        make_thing(np.random.default_rng(0), "teapot", "red")


def test_no_renderer_is_an_error_with_what_to_install(monkeypatch):
    from wristaugment.simulation import render

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(render.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(SourceError, match=r"MUJOCO_GL.*libegl1"):
        render.choose_backend()
