"""The robot's kinematics and gripper, against MuJoCo's own and against the closed linkage."""

import sys

import numpy as np
import pytest
from wristaugment.readers.errors import SourceError


@pytest.fixture(scope="module")
def stage(robot, mujoco):
    from wristaugment.simulation.robot import Arm
    from wristaugment.simulation.scene import build_scene

    scene = build_scene(np.random.default_rng(3), robot)
    return scene, Arm(scene.model, scene.data, robot)


def test_missing_package_is_named_with_what_to_do(mujoco, monkeypatch):
    from wristaugment.simulation import robot as module

    monkeypatch.setitem(sys.modules, "gym_hil", None)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    module.load_robot.cache_clear()
    try:
        with pytest.raises(SourceError, match=r"gym_hil.*pip install --no-deps gym-hil"):
            module.load_robot()
    finally:
        module.load_robot.cache_clear()


def test_solve_reaches_the_tool_pose_within_the_joints_limits(stage):
    from wristaugment.simulation.motion import tool_pose
    from wristaugment.simulation.robot import HOME

    scene, arm = stage
    goal = tool_pose([0.5, -0.15, 0.12], 0.5, (0.1, -0.05))
    joints, error = arm.solve(goal, HOME)
    assert error < 1e-4
    limits = np.array([scene.model.joint(f"joint{i}").range for i in range(1, 8)])
    assert np.all(joints >= limits[:, 0]) and np.all(joints <= limits[:, 1])
    arm.set(joints)
    assert np.allclose(arm.link8() @ arm.robot.tool_in_link8, goal, atol=1e-4)


def test_solve_says_how_far_it_is_from_what_it_cannot_reach(stage):
    from wristaugment.simulation.motion import tool_pose
    from wristaugment.simulation.robot import HOME

    _, arm = stage
    assert arm.solve(tool_pose([1.5, 0, 0.1]), HOME)[1] > 0.3


def test_link8_is_the_flange_of_the_model(stage, mujoco):
    """The package's own `attachment` body sits on the flange, turned about its axis alone."""
    scene, arm = stage
    arm.set(np.array([0.2, -0.3, 0.1, -2.0, 0.4, 1.9, 0.3]))
    flange, there = arm.link8(), scene.data.body("attachment")
    assert np.allclose(flange[:3, 3], there.xpos, atol=1e-9)
    assert np.allclose(flange[:3, 2], there.xmat.reshape(3, 3)[:, 2], atol=1e-9)


def test_gripper_linkage_stays_closed_and_its_pads_parallel(stage):
    scene, arm = stage
    ends, gaps = [], []
    for closed in np.linspace(0, 1, 6):
        arm.set(np.zeros(7), closed)
        data = scene.data
        base = data.body("base").xmat.reshape(3, 3)
        follower, coupler = data.body("left_follower"), data.body("left_coupler")
        # The rod from the coupler's hinge to the follower is fixed in the coupler.
        rod = coupler.xmat.reshape(3, 3).T @ (follower.xpos - coupler.xpos)
        ends.append(rod)
        pads = [data.body(f"{side}_pad") for side in ("left", "right")]
        for pad in pads:
            turn = base.T @ pad.xmat.reshape(3, 3)
            assert abs(abs(turn[2, 2]) - 1) < 1e-6
        gaps.append(np.linalg.norm(pads[0].xpos - pads[1].xpos))
    assert np.ptp(np.array(ends), axis=0).max() < 1e-4
    assert np.all(np.diff(gaps) < -0.01)
    assert gaps[0] == pytest.approx(0.085 + 2 * 0.0066, abs=1e-3)


def test_closing_on_a_width_leaves_that_width_between_the_pads(robot):
    from wristaugment.simulation import robot as module

    for width in (0.03, 0.05, 0.07):
        closed = robot.closed_for(width)
        assert module._gap(closed * module.DRIVER_CLOSED) == pytest.approx(width, abs=2e-4)
    assert robot.closed_for(0.2) == 0.0
