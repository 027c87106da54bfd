"""The Franka Panda with a Robotiq 2F-85 (DROID's pair): its meshes, kinematics and gripper linkage.

The model and its meshes are read from the installed `gym_hil` package, which is never imported, so
that what it requires (a window system, an older mujoco) need not be there; nothing of it is carried
here. Frames: `link8` is the flange, whose pose DROID calls cartesian_position; `tool` is
the point between the fingertips, z out of the hand, the fingers moving along y.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from ..readers.errors import SourceError
from .meshes import Mesh, cluster, merge

ARM_JOINTS = tuple(f"joint{i}" for i in range(1, 8))
HOME = np.array([0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, np.pi / 4])
FLANGE = np.array([0.0, 0.0, 0.107])  # link8 in link7; their axes are parallel
PINCH = 0.145  # the point between the fingertips, along z of the gripper's base
DRIVER_CLOSED = 0.8  # the driver joint, in radians, when the gripper is closed
_COARSE, _FINE = 0.010, 0.0028  # grid cells of the simplified arm and gripper, in metres


@dataclass(frozen=True)
class Body:
    """A link: its place in its parent, its hinge if it has one, its meshes with their colours."""

    name: str
    parent: str | None
    pos: np.ndarray
    quat: np.ndarray
    joint: str | None
    anchor: np.ndarray
    axis: np.ndarray
    limits: np.ndarray
    meshes: list[tuple[Mesh, np.ndarray]]


@dataclass(frozen=True)
class Robot:
    """The robot as a tree of bodies, and the fixed transform from the flange to the tool."""

    bodies: list[Body]
    tool_in_link8: np.ndarray
    tip: float  # how far the fingertips reach beyond the tool point, in metres

    def gripper_joints(self, closed: float) -> dict[str, float]:
        """The angles of the gripper's eight hinges, in radians, at `closed` in 0 (open) to 1."""
        driver, coupler, spring = _linkage(closed * DRIVER_CLOSED)
        angles = {"driver": driver, "coupler": coupler, "spring_link": spring, "follower": -spring}
        return {f"{side}_{k}_joint": v for side in ("left", "right") for k, v in angles.items()}

    def closed_for(self, width: float) -> float:
        """How far closed, 0 to 1, the gripper is when its pads hold something `width` metres."""
        grid = np.linspace(0.0, 1.0, 81)
        gaps = np.array([_gap(c * DRIVER_CLOSED) for c in grid])
        return float(np.interp(-width, -gaps, grid))


@lru_cache(maxsize=1)
def load_robot() -> Robot:
    """Read the robot from the installed package.

    Raises:
        SourceError: the package is not installed.
    """
    spec = importlib.util.find_spec("gym_hil")
    if spec is None or spec.origin is None:
        raise SourceError(
            "the robot's model is not installed", key="gym_hil",
            todo="pip install --no-deps gym-hil==0.1.14",  # its pin on mujoco is too old
        )  # fmt: skip
    model_spec = mujoco.MjSpec.from_file(str(Path(spec.origin).parent / "assets" / "panda.xml"))
    for geom in list(model_spec.geoms):
        if geom.classname.name in ("panda/collision", "2f85/collision"):
            model_spec.delete(geom)
    model = model_spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)

    bodies = [_body(model, i) for i in range(1, model.nbody)]
    link7, base = data.body("link7"), data.body("base")
    rotation = link7.xmat.reshape(3, 3)
    tool = np.eye(4)
    tool[:3, :3] = rotation.T @ base.xmat.reshape(3, 3)
    point = base.xpos + base.xmat.reshape(3, 3) @ [0, 0, PINCH]
    tool[:3, 3] = rotation.T @ (point - link7.xpos) - FLANGE
    return Robot(bodies, tool, _tip_reach(bodies))


def _body(model: mujoco.MjModel, index: int) -> Body:
    view = model.body(index)
    parent = model.body(view.parentid[0]).name
    joint, anchor, axis, limits = None, np.zeros(3), np.zeros(3), np.zeros(2)
    if view.jntnum[0]:
        hinge = model.joint(view.jntadr[0])
        joint, anchor = hinge.name, hinge.pos.copy()
        axis, limits = hinge.axis.copy(), hinge.range.copy()
    by_colour: dict[tuple[float, ...], list[Mesh]] = {}
    for geom in range(view.geomadr[0], view.geomadr[0] + view.geomnum[0]):
        if model.geom_type[geom] != mujoco.mjtGeom.mjGEOM_MESH:
            continue
        mesh = model.mesh(model.geom_dataid[geom])
        start, number = mesh.vertadr[0], mesh.vertnum[0]
        vertices = model.mesh_vert[start : start + number].astype(float)
        turn = Rotation.from_quat(model.geom_quat[geom], scalar_first=True)
        vertices = turn.apply(vertices) + model.geom_pos[geom]
        faces = model.mesh_face[mesh.faceadr[0] : mesh.faceadr[0] + mesh.facenum[0]]
        material = model.geom_matid[geom]
        rgba = model.mat_rgba[material] if material >= 0 else model.geom_rgba[geom]
        by_colour.setdefault(tuple(np.round(rgba, 4).tolist()), []).append(Mesh(vertices, faces))
    cell = _COARSE if view.name.startswith("link") else _FINE
    meshes = [(cluster(merge(group), cell), np.array(rgba)) for rgba, group in by_colour.items()]
    meshes = [(mesh, rgba) for mesh, rgba in meshes if len(mesh.faces) >= 8]  # the rest is dust
    return Body(
        view.name, None if parent == "world" else parent, view.pos.copy(), view.quat.copy(),
        joint, anchor, axis, limits, meshes,
    )  # fmt: skip


# The gripper's four-bar linkage, in the y-z plane of its base. The driver turns a short crank; the
# coupler ties the crank's end to the end of the spring link; the follower (the finger) hangs on the
# spring link and stays parallel to the hand.
_DRIVER_AT = np.array([0.0306011, 0.054904])
_CRANK = np.array([0.0315, -0.0041])
_SPRING_AT = np.array([0.0132, 0.0609])
_SPRING = np.array([0.037, 0.044])  # from the spring link's hinge to the follower's
_FINGER = np.array([0.018, -0.0065])  # from the follower's hinge to its origin, where the rod ends
_PAD = np.array([-0.0189, 0.01352])  # the pad in the follower
_PAD_FACE = -0.0066  # the silicone's face in the pad, along y


def _turn(vector: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([c * vector[0] - s * vector[1], s * vector[0] + c * vector[1]])


def _finger(spring: float) -> np.ndarray:
    """The follower's origin (y, z) when the spring link is at `spring` radians."""
    return _SPRING_AT + _turn(_SPRING, spring) + _FINGER


@lru_cache(maxsize=512)
def _linkage(driver: float) -> tuple[float, float, float]:
    """(driver, coupler, spring link) angles that keep the linkage closed; bisection on the rod."""
    rod = _finger(0.0) - _DRIVER_AT - _CRANK
    length = np.linalg.norm(rod)
    pin = _DRIVER_AT + _turn(_CRANK, driver)

    def excess(spring: float) -> float:
        return float(np.linalg.norm(_finger(spring) - pin) - length)

    low, high = driver - 0.3, driver + 0.3
    sign = np.sign(excess(low))
    for _ in range(50):
        middle = (low + high) / 2
        if np.sign(excess(middle)) == sign:
            low = middle
        else:
            high = middle
    now = _finger(low) - pin
    coupler = np.arctan2(now[1], now[0]) - np.arctan2(rod[1], rod[0]) - driver
    return float(driver), float(coupler), float(low)


def _gap(driver: float) -> float:
    """The distance between the pads, in metres."""
    return 2.0 * float(_finger(_linkage(driver)[2])[0] + _PAD[0] + _PAD_FACE)


def _tip_reach(bodies: list[Body]) -> float:
    """How far the fingertips reach beyond the tool point, over the gripper's whole travel."""
    above = {"right_follower": 0.0, "right_pad": _PAD[1], "right_silicone_pad": _PAD[1]}
    tip = max(
        float(mesh.vertices[:, 2].max()) + above[body.name]
        for body in bodies
        if body.name in above
        for mesh, _ in body.meshes
    )
    return max(_finger(_linkage(d)[2])[1] for d in np.linspace(0, DRIVER_CLOSED, 9)) + tip - PINCH


def pose_matrix(position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """[4, 4] from a position [3] and a rotation matrix [3, 3] or [9]."""
    pose = np.eye(4)
    pose[:3, :3] = np.asarray(rotation).reshape(3, 3)
    pose[:3, 3] = position
    return pose


class Arm:
    """Forward and inverse kinematics of the robot inside a compiled scene."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, robot: Robot):
        self.model, self.data, self.robot = model, data, robot
        self._link7 = model.body("link7").id
        self._qpos = np.array([model.joint(name).qposadr[0] for name in ARM_JOINTS])
        self._dofs = np.array([model.joint(name).dofadr[0] for name in ARM_JOINTS])
        self._range = np.array([model.joint(name).range for name in ARM_JOINTS])

    def set(self, joints: np.ndarray, closed: float | None = None) -> None:
        """Move to `joints` [7] in radians and, if given, the gripper to `closed` (0 to 1)."""
        self.data.qpos[self._qpos] = joints
        if closed is not None:
            for name, angle in self.robot.gripper_joints(closed).items():
                self.data.qpos[self.model.joint(name).qposadr[0]] = angle
        mujoco.mj_kinematics(self.model, self.data)

    def link8(self) -> np.ndarray:
        """[4, 4] the flange in the base frame, as the arm now stands."""
        rotation = self.data.xmat[self._link7].reshape(3, 3)
        return pose_matrix(self.data.xpos[self._link7] + rotation @ FLANGE, rotation)

    def solve(self, tool: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float]:
        """Joints [7] that bring the tool to the pose `tool` [4, 4], by damped least squares.

        Returns:
            The joints and the error that is left, in metres plus radians.
        """
        goal = tool @ np.linalg.inv(self.robot.tool_in_link8)
        joints = start.copy()
        jacobian = np.zeros((6, self.model.nv))
        error = np.inf
        for _ in range(60):
            self.set(joints)
            now = self.link8()
            turn = Rotation.from_matrix(goal[:3, :3] @ now[:3, :3].T).as_rotvec()
            delta = np.r_[goal[:3, 3] - now[:3, 3], turn]
            error = float(np.linalg.norm(delta[:3]) + np.linalg.norm(delta[3:]))
            if error < 1e-5:
                break
            mujoco.mj_comPos(self.model, self.data)
            mujoco.mj_jac(
                self.model, self.data, jacobian[:3], jacobian[3:], now[:3, 3], self._link7
            )
            j = jacobian[:, self._dofs]
            inverse = j.T @ np.linalg.inv(j @ j.T + 1e-5 * np.eye(6))
            # The spare seventh freedom pulls towards the home posture.
            step = inverse @ delta
            step += 0.05 * (np.eye(7) - inverse @ j) @ (HOME - joints) * (error > 1e-3)
            joints = np.clip(joints + np.clip(step, -0.3, 0.3), *self._range.T)
        return joints, error
