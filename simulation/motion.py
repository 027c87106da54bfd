"""Scripted motion: pick, place and push, as waypoints, as joints over time, and as words.

Everything is kinematic: joints come from inverse kinematics, a grasped object keeps its place in
the hand, a pushed one slides along. One script is 40 to 60 steps at 5 Hz; longer episodes do one
task after another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from .objects import CONTAINERS, Thing
from .robot import HOME, Arm, Robot
from .scene import WORKSPACE, Scene

PERIOD = 0.2  # seconds between steps
_TRIES = 20  # of a further task that the arm can reach
_SPEED, _TURN = 0.12, 0.6  # metres and radians a second
_DIRECTIONS = {
    "to the left": (0.0, 1.0),
    "to the right": (0.0, -1.0),
    "forward": (1.0, 0.0),
    "back towards the robot": (-1.0, 0.0),
}


@dataclass
class Waypoint:
    """Where the tool goes next: pose [4, 4], gripper (0 open to 1), and what it does on the way.

    `hold` is "" (nothing), "carry" (the object moves with the tool) or "slide" (it is pushed).
    """

    pose: np.ndarray
    closed: float
    hold: str = ""


@dataclass
class Script:
    """A task: `words` three wordings of it, `target` the object it moves, and its waypoints."""

    words: tuple[str, str, str]
    category: str
    target: int
    waypoints: list[Waypoint]
    push: np.ndarray
    contact: float


@dataclass
class Motion:
    """A script in time: joints [N, 7], closed [N], and the objects' poses [N, things, 4, 4]."""

    joints: np.ndarray
    closed: np.ndarray
    things: np.ndarray


def tool_pose(position, yaw: float = 0.0, tilt=(0.0, 0.0)) -> np.ndarray:
    """[4, 4] the tool pointing down, turned by `yaw` and leaning by `tilt` (radians about x, y)."""
    pose = np.eye(4)
    down = np.array([[1.0, 0, 0], [0, -1.0, 0], [0, 0, -1.0]])
    lean = Rotation.from_euler("xy", tilt).as_matrix()
    pose[:3, :3] = lean @ Rotation.from_euler("z", yaw).as_matrix() @ down
    pose[:3, 3] = position
    return pose


def thing_pose(place: np.ndarray) -> np.ndarray:
    """[4, 4] from x, y, yaw on the table."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", place[2]).as_matrix()
    pose[:2, 3] = place[:2]
    return pose


def write_script(rng: np.random.Generator, scene: Scene, robot: Robot) -> Script:
    """Choose a task for the scene and lay out its waypoints."""
    able = [i for i, thing in enumerate(scene.things) if thing.shape.width > 0]
    target = int(rng.choice(able))
    task = rng.choice(["pick", "place", "push"], p=[0.3, 0.45, 0.25])
    start = Waypoint(
        tool_pose(
            [rng.uniform(0.38, 0.55), rng.uniform(-0.16, 0.16), rng.uniform(0.2, 0.36)],
            rng.uniform(-0.4, 0.4),
            np.deg2rad(rng.uniform(-8, 8, 2)),
        ),
        0.0,
    )
    if task == "push":
        return _push(rng, scene, target, start, robot)
    return _pick(rng, scene, target, start, robot, place=task == "place")


def _pick(
    rng, scene: Scene, target: int, start: Waypoint, robot: Robot, place: bool, free: bool = False
) -> Script:
    thing, at = scene.things[target], scene.poses[target]
    yaw = _grasp_yaw(rng, thing, at)
    low = max(thing.shape.grasp_height, robot.tip + 0.003)
    grip = robot.closed_for(thing.shape.width - 0.001)
    above = [*at[:2], low + rng.uniform(0.09, 0.14)]
    grasp = tool_pose([*at[:2], low], yaw)
    lift = [*at[:2], low + rng.uniform(0.12, 0.2)]
    lean = np.deg2rad(rng.uniform(-6, 6, (2, 2)))
    waypoints = [
        start,
        Waypoint(tool_pose(above, yaw, lean[0]), 0.0),
        Waypoint(grasp, 0.0),
        Waypoint(grasp, grip),
        Waypoint(tool_pose(lift, yaw), grip, "carry"),
    ]
    name = thing.name
    words = (f"pick up the {name}", f"lift the {name} off the table", f"grasp the {name}")
    category = "Lift up object"
    if place:
        goal, height, words = _goal(rng, scene, target, free)
        category = "Move object into or out of container" if height else "Move object"
        turned = yaw + rng.uniform(-0.3, 0.3)
        down = tool_pose([*goal, low + height + 0.004], turned)
        waypoints += [
            Waypoint(tool_pose([*goal, lift[2] + height], turned), grip, "carry"),
            Waypoint(down, grip, "carry"),
            Waypoint(down, 0.0),
            Waypoint(tool_pose([*goal, lift[2] + height], turned, lean[1]), 0.0),
        ]
    else:
        drift = [*(at[:2] + rng.uniform(-0.06, 0.06, 2)), lift[2] + rng.uniform(0.02, 0.08)]
        waypoints.append(Waypoint(tool_pose(drift, yaw, lean[1]), grip, "carry"))
    return Script(words, category, target, waypoints, np.zeros(2), 0.0)


def _goal(
    rng, scene: Scene, target: int, free: bool
) -> tuple[np.ndarray, float, tuple[str, str, str]]:
    """Where to put the target: in a container, on another object (not if `free`), or beside."""
    thing, name = scene.things[target], scene.things[target].name
    for index, other in enumerate(scene.things):
        if index == target or free:
            continue
        place = scene.poses[index][:2]
        if other.kind in CONTAINERS:
            word = "on" if other.kind == "plate" else "in"
            return place, other.rest, (
                f"put the {name} {word} the {other.name}",
                f"place the {name} {word} the {other.name}",
                f"move the {name} {word}to the {other.name}",
            )  # fmt: skip
        flat = other.kind in ("cube", "block", "cylinder")
        wide = other.shape.footprint > 0.6 * thing.shape.footprint
        if flat and wide and rng.random() < 0.5:
            return place, other.rest, (
                f"put the {name} on the {other.name}",
                f"stack the {name} on the {other.name}",
                f"place the {name} on top of the {other.name}",
            )  # fmt: skip
    for _ in range(40):
        direction = str(rng.choice(list(_DIRECTIONS)))
        goal = scene.poses[target][:2] + rng.uniform(0.1, 0.22) * np.array(_DIRECTIONS[direction])
        if _inside(goal) and _clear(scene, target, goal):
            break
    else:
        return scene.poses[target][:2], 0.0, (
            f"pick up the {name} and put it back down",
            f"lift the {name} and set it down again",
            f"raise the {name}, then lower it",
        )  # fmt: skip
    return goal, 0.0, (
        f"move the {name} {direction}",
        f"pick up the {name} and put it down {direction.removesuffix(' towards the robot')}",
        f"place the {name} further {direction.removeprefix('to the ')}",
    )  # fmt: skip


def _push(rng, scene: Scene, target: int, start: Waypoint, robot: Robot) -> Script:
    thing, at = scene.things[target], scene.poses[target]
    best: tuple[str, np.ndarray, float] | None = None
    for direction in rng.permutation(list(_DIRECTIONS)):
        way = np.array(_DIRECTIONS[direction])
        length = rng.uniform(0.08, 0.15)
        behind = at[:2] - way * (thing.shape.footprint + 0.07)
        if _inside(at[:2] + way * length, 0.04) and _clear(scene, target, behind, 0.04):
            if _clear(scene, target, at[:2] + way * length):
                best = (str(direction), way, length)
                break
            best = best or (str(direction), way, length * 0.5)
    if best is None:
        return _pick(rng, scene, target, start, robot, place=False)
    direction, way, length = best
    # The closed fingers are a bar along x of the tool: turn its broad side or its edge to the way.
    yaw = 0.0 if abs(way[1]) > 0 else float(rng.choice([0.0, np.pi / 4, -np.pi / 4]))
    yaw += rng.uniform(-0.15, 0.15)
    half_finger = 0.016
    height = max(min(thing.shape.height * 0.5, 0.05), robot.tip + 0.006)
    far, near = thing.shape.footprint + half_finger + 0.05, thing.shape.footprint + half_finger
    begin, touch = at[:2] - way * far, at[:2] - way * near
    end = touch + way * length
    closed = 1.0
    lean = np.deg2rad(rng.uniform(-6, 6, (2, 2)))
    above, after = height + rng.uniform(0.08, 0.13), height + rng.uniform(0.1, 0.16)
    waypoints = [
        start,
        Waypoint(tool_pose([*begin, above], yaw, lean[0]), closed),
        Waypoint(tool_pose([*begin, height], yaw), closed),
        Waypoint(tool_pose([*touch, height], yaw), closed),
        Waypoint(tool_pose([*end, height], yaw), closed, "slide"),
        Waypoint(tool_pose([*(end - way * 0.03), height], yaw), closed),
        Waypoint(tool_pose([*(end - way * 0.05), after], yaw, lean[1]), closed),
    ]
    words = (
        f"push the {thing.name} {direction}",
        f"slide the {thing.name} {direction}",
        f"use the gripper to push the {thing.name} {direction}",
    )
    return Script(words, "Push object", target, waypoints, way, near)


def _grasp_yaw(rng, thing: Thing, at: np.ndarray) -> float:
    """The fingers move along the tool's y: across the narrow side of the object."""
    # A mug's handle points along its x, so that fingers which close along y pass it by.
    if thing.kind in ("block", "cube", "mug"):
        return float(at[2])
    return float(rng.uniform(-np.pi / 5, np.pi / 5))


def _inside(where: np.ndarray, margin: float = 0.02) -> bool:
    low, high = WORKSPACE[:, 0] - margin, WORKSPACE[:, 1] + margin
    return bool(np.all(where >= low) and np.all(where <= high))


def _clear(scene: Scene, target: int, where: np.ndarray, radius: float | None = None) -> bool:
    radius = scene.things[target].shape.footprint if radius is None else radius
    return all(
        np.hypot(*(where - place[:2])) > radius + other.shape.footprint + 0.01
        for i, (other, place) in enumerate(zip(scene.things, scene.poses, strict=True))
        if i != target
    )


def continue_script(
    rng: np.random.Generator, scene: Scene, robot: Robot, before: Script, things: np.ndarray
) -> Script | None:
    """What comes after a script: what is held is put back, else another task; None without one.

    Args:
        scene: with the places of the objects before `before`.
        things: [N, 4, 4] the objects' poses after it.
    """
    last = before.waypoints[-1]
    start = Waypoint(last.pose, last.closed)
    if last.hold == "carry":
        thing = scene.things[before.target]
        low = max(thing.shape.grasp_height, robot.tip + 0.003)
        down = last.pose.copy()
        down[:3, 3] = [*scene.poses[before.target][:2], low + 0.004]
        above = down.copy()
        above[2, 3] = max(low + 0.12, last.pose[2, 3])
        waypoints = [
            start,
            Waypoint(above, last.closed, "carry"),
            Waypoint(down, last.closed, "carry"),
            Waypoint(down, 0.0),
            Waypoint(above, 0.0),
        ]
        words = (f"put the {thing.name} back down", f"set the {thing.name} down", "put it back")
        return Script(words, before.category, before.target, waypoints, np.zeros(2), 0.0)
    yaw = np.arctan2(things[:, 1, 0], things[:, 0, 0])
    now = replace(scene, poses=np.column_stack([things[:, :2, 3], yaw]))
    able = [
        i
        for i, thing in enumerate(scene.things)
        if thing.shape.width > 0
        and abs(things[i, 2, 3]) < 1e-3  # neither in nor on another
        and _inside(things[i, :2, 3])
        and all(
            np.hypot(*(things[i, :2, 3] - things[j, :2, 3])) > 0.7 * thing.shape.footprint
            for j in range(len(things))
            if j != i
        )
    ]
    if not able:
        return None
    target = int(rng.choice(able))
    if rng.random() < 0.3:
        return _push(rng, now, target, start, robot)
    return _pick(rng, now, target, start, robot, place=True, free=True)


def perform(
    rng: np.random.Generator,
    scene: Scene,
    arm: Arm,
    script: Script,
    earlier: Motion | None = None,
) -> Motion | None:
    """Play the script at 5 Hz; None if the arm cannot reach all of it.

    Args:
        earlier: what was played before; joints and objects go on from its end.
    """
    poses, closed, hold = [script.waypoints[0].pose], [script.waypoints[0].closed], [""]
    for before, after in zip(script.waypoints, script.waypoints[1:], strict=False):
        distance = np.linalg.norm(after.pose[:3, 3] - before.pose[:3, 3])
        turn = Rotation.from_matrix(before.pose[:3, :3].T @ after.pose[:3, :3]).magnitude()
        travel = 0.6 if before.closed != after.closed and distance < 0.01 else 0.3
        seconds = max(distance / _SPEED, turn / _TURN, travel) * rng.uniform(0.9, 1.3)
        number = max(2, round(seconds / PERIOD))
        share = np.arange(1, number + 1) / number
        share = share**3 * (10 - 15 * share + 6 * share**2)  # minimum jerk
        turns = Slerp([0, 1], Rotation.from_matrix([before.pose[:3, :3], after.pose[:3, :3]]))
        for part, rotation in zip(share, turns(share).as_matrix(), strict=True):
            pose = np.eye(4)
            pose[:3, :3] = rotation
            pose[:3, 3] = before.pose[:3, 3] * (1 - part) + after.pose[:3, 3] * part
            poses.append(pose)
            closed.append(before.closed * (1 - part) + after.closed * part)
            hold.append(after.hold)

    joints, now = np.zeros((len(poses), 7)), HOME if earlier is None else earlier.joints[-1]
    for index, pose in enumerate(poses):
        now, error = arm.solve(pose, now)
        if error > 2e-3:
            return None
        joints[index] = now
    tools = np.zeros((len(poses), 4, 4))
    for index in range(len(poses)):
        arm.set(joints[index])
        tools[index] = arm.link8() @ arm.robot.tool_in_link8
    first = np.stack([thing_pose(place) for place in scene.poses])
    first = first if earlier is None else earlier.things[-1].copy()
    return Motion(joints, np.array(closed), _carry(scene, script, tools, hold, first))


def prolong(
    rng: np.random.Generator, scene: Scene, arm: Arm, script: Script, motion: Motion, steps: int
) -> tuple[list[Script], Motion] | None:
    """Do one task after another until there are at least `steps` steps.

    Returns:
        The scripts and the whole motion; None where no further task is found that the arm reaches.
    """
    scripts = [script]
    while len(motion.joints) < steps:
        for _ in range(_TRIES):
            following = continue_script(rng, scene, arm.robot, scripts[-1], motion.things[-1])
            more = following and perform(rng, scene, arm, following, motion)
            if following and more:
                break
        else:
            return None
        if scripts[-1].waypoints[-1].hold != "carry":  # what is held goes back where it came from
            yaw = np.arctan2(motion.things[-1][:, 1, 0], motion.things[-1][:, 0, 0])
            places = np.column_stack([motion.things[-1][:, :2, 3], yaw])
            scene = replace(scene, poses=places)
        # A motion begins where the one before ended: that step is there already.
        motion = Motion(
            np.concatenate([motion.joints, more.joints[1:]]),
            np.concatenate([motion.closed, more.closed[1:]]),
            np.concatenate([motion.things, more.things[1:]]),
        )
        scripts.append(following)
    return scripts, motion


def _carry(
    scene: Scene, script: Script, tools: np.ndarray, hold: list[str], now: np.ndarray
) -> np.ndarray:
    """[N, things, 4, 4] the objects' poses while the tool goes through `tools` [N, 4, 4].

    Args:
        now: [things, 4, 4] the poses at the start.
    """
    out = np.zeros((len(tools), *now.shape))
    for index, tool in enumerate(tools):
        if index and hold[index] == "carry":
            held = np.linalg.inv(tools[index - 1]) @ now[script.target]
            now[script.target] = tool @ held
        elif index and hold[index] == "slide":
            step = (tool - tools[index - 1])[:2, 3] @ script.push
            now[script.target, :2, 3] += max(step, 0.0) * script.push
        elif index and hold[index - 1] == "carry":
            # Let go: the last millimetres down, and upright again.
            now[script.target] = _settle(now[script.target], scene, script.target, now)
        out[index] = now
    return out


def _settle(pose: np.ndarray, scene: Scene, target: int, poses: np.ndarray) -> np.ndarray:
    settled = pose.copy()
    yaw = np.arctan2(pose[1, 0], pose[0, 0])
    settled[:3, :3] = Rotation.from_euler("z", yaw).as_matrix()
    below = [
        other.rest + poses[i][2, 3]
        for i, other in enumerate(scene.things)
        if i != target and np.hypot(*(pose[:2, 3] - poses[i][:2, 3])) < other.shape.footprint * 0.7
    ]
    settled[2, 3] = max(below, default=0.0)
    return settled


def show(scene: Scene, arm: Arm, motion: Motion, index: int) -> None:
    """Bring the scene to step `index` of `motion`, ready to be rendered."""
    model, data = scene.model, scene.data
    for i in range(len(scene.things)):
        body = model.body(f"thing_{i}").id
        pose = motion.things[index, i]
        model.body_pos[body] = pose[:3, 3]
        model.body_quat[body] = Rotation.from_matrix(pose[:3, :3]).as_quat(scalar_first=True)
    arm.set(motion.joints[index], float(motion.closed[index]))
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
