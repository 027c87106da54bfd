"""Cameras of a MuJoCo model, as robosuite's datasets keep it beside each demo (`model_file`).

Only what does not depend on the joints is read: cameras that stand still in the world, and how what
is bolted to one body lies there. MuJoCo's cameras look along -z with y up; here they have OpenCV's
axes (x right, y down, z forward).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from xml.etree import ElementTree

import numpy as np
from scipy.spatial.transform import Rotation

_LARGEST = 1 << 22  # characters; robosuite's have 100 thousand
_DEEPEST = 200  # bodies inside each other
_USUAL_FOV = 45.0  # MuJoCo's own, degrees
_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
_TURNS = {"quat": 4, "axisangle": 4, "euler": 3, "xyaxes": 6, "zaxis": 3}  # and their numbers
_MOVING = ("joint", "freejoint")


@dataclass(frozen=True)
class Placed:
    """A camera or a site.

    Attributes:
        body: the body nearest above it that moves against what carries it, or "" for the world.
        pose: [4, 4] that body <- camera (OpenCV axes) or site.
        fov: a camera's vertical field of view in degrees; None for a site.
    """

    body: str
    pose: np.ndarray
    fov: float | None = None


@dataclass
class Model:
    """What of a model lies fixed: by name.

    Attributes:
        cameras, sites: where their place is understood.
        bodies: a body's own place, as that of a site at its origin.
    """

    cameras: dict[str, Placed] = field(default_factory=dict)
    sites: dict[str, Placed] = field(default_factory=dict)
    bodies: dict[str, Placed] = field(default_factory=dict)

    def static_pose(self, camera: str) -> np.ndarray | None:
        """[4, 4] world-to-camera of a camera that stands still, or None."""
        found = self.cameras.get(camera)
        return None if found is None or found.body else np.linalg.inv(found.pose)

    def mount(self, camera: str, hand: str, tip: re.Pattern) -> np.ndarray | None:
        """[4, 4] end effector <- camera, or None where they are not bolted together.

        robosuite's end effector has the axes of the body `hand` and its origin at a gripper's site
        whose name matches `tip` (robosuite's `eef_quat` and `eef_pos`).
        """
        seen, axes = self.cameras.get(camera), self.bodies.get(hand)
        tips = [placed for name, placed in self.sites.items() if tip.fullmatch(name)]
        if seen is None or axes is None or len(tips) != 1:
            return None
        if not seen.body == axes.body == tips[0].body:
            return None
        effector = axes.pose.copy()
        effector[:3, 3] = tips[0].pose[:3, 3]
        return np.linalg.inv(effector) @ seen.pose


def pinhole(fov: float | None, size: tuple[int, int]) -> np.ndarray | None:
    """[3, 3] of square pixels at (height, width); `fov` is the vertical angle in degrees."""
    if fov is None:
        return None
    focal = size[0] / 2 / math.tan(math.radians(fov) / 2)
    return np.array([[focal, 0, (size[1] - 1) / 2], [0, focal, (size[0] - 1) / 2], [0, 0, 1.0]])


def read_model(text: str) -> Model | None:
    """The model of an MJCF text, or None where it is none that is understood.

    What has a place that is not understood (a frame of another kind, defaults of classes, cameras
    that track) is left out with all that it carries.
    """
    if not 0 < len(text) <= _LARGEST or "<!" in text.replace("<!--", ""):
        return None  # no document types: entities can explode
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError):
        return None
    world = root.find("worldbody")
    if root.tag != "mujoco" or world is None:
        return None
    compiler = root.find("compiler")
    how = {} if compiler is None else compiler.attrib
    if how.get("coordinate", "local") != "local":
        return None
    reader = _Reader(
        degrees=how.get("angle", "degree") != "radian",
        order=how.get("eulerseq", "xyz"),
        fov=None if root.find(".//default/camera") is not None else _USUAL_FOV,
    )
    reader.look(world)
    return reader.model


class _Reader:
    """Walks the bodies; `degrees`, `order` and `fov` are the model's own defaults."""

    def __init__(self, degrees: bool, order: str, fov: float | None):
        self.degrees, self.order, self.fov = degrees, order, fov
        self.model = Model()

    def look(self, world: ElementTree.Element) -> None:
        """Note everything below the world that is understood."""
        waiting = [(world, "", np.eye(4), 0)]
        while waiting:
            element, body, pose, depth = waiting.pop()
            for child in element:
                name = child.get("name", "")
                if child.tag in ("body", "frame") and depth < _DEEPEST:
                    local = self.place(child)
                    if local is None:
                        continue
                    if child.tag == "body" and (
                        child.get("mocap") == "true" or any(c.tag in _MOVING for c in child)
                    ):
                        below = (child, name or f"?{id(child)}", np.eye(4), depth + 1)
                    else:
                        below = (child, body, pose @ local, depth + 1)
                    if child.tag == "body" and name:
                        self.model.bodies[name] = Placed(below[1], below[2])
                    waiting.append(below)
                elif child.tag in ("camera", "site") and name:
                    self._note(child, name, body, pose)

    def _note(self, child, name: str, body: str, pose: np.ndarray) -> None:
        local = self.place(child)
        if local is None:
            return
        if child.tag == "site":
            self.model.sites[name] = Placed(body, pose @ local)
            return
        odd = child.get("mode", "fixed") != "fixed" or any(
            child.get(key) is not None for key in ("focal", "focalpixel", "sensorsize", "class")
        )
        fov = self.fov if child.get("fovy") is None else _numbers(child.get("fovy"), 1)
        fov = float(fov[0]) if isinstance(fov, np.ndarray) else fov
        if odd or fov is None or not 0 < fov < 180:
            return
        self.model.cameras[name] = Placed(body, pose @ local @ _OPENCV, fov)

    def place(self, element) -> np.ndarray | None:
        """[4, 4] of an element in what carries it, or None where it is not understood."""
        out = np.eye(4)
        turns = [key for key in _TURNS if element.get(key) is not None]
        shift = _numbers(element.get("pos", "0 0 0"), 3)
        if shift is None or len(turns) > 1:
            return None
        out[:3, 3] = shift
        if turns:
            turn = self._turn(turns[0], element.get(turns[0]))
            if turn is None:
                return None
            out[:3, :3] = turn
        return out

    def _turn(self, kind: str, text: str) -> np.ndarray | None:
        values = _numbers(text, _TURNS[kind])
        if values is None:
            return None
        try:
            if kind == "quat":
                return Rotation.from_quat(values, scalar_first=True).as_matrix()
            if kind == "euler":
                # Lower case turns with the body in MuJoCo, and stays with the world in scipy.
                order = self.order.swapcase()
                return Rotation.from_euler(order, values, degrees=self.degrees).as_matrix()
            if kind == "axisangle":
                angle = math.radians(values[3]) if self.degrees else values[3]
                axis = values[:3] / np.linalg.norm(values[:3])
                return Rotation.from_rotvec(angle * axis).as_matrix()
        except ValueError:
            return None
        if kind == "zaxis":  # the least turn that brings z there, which leaves nothing open
            axis = np.cross([0.0, 0.0, 1.0], values)
            sine = np.linalg.norm(axis)
            if sine < 1e-9:
                return None
            angle = math.atan2(sine, values[2])
            return Rotation.from_rotvec(angle * axis / sine).as_matrix()
        x, y = values[:3], values[3:]
        x = x / max(np.linalg.norm(x), 1e-12)
        y = y - (x @ y) * x
        if np.linalg.norm(y) < 1e-9 or np.linalg.norm(x) < 0.5:
            return None
        y = y / np.linalg.norm(y)
        return np.stack([x, y, np.cross(x, y)], axis=1)


def _numbers(text: str | None, count: int) -> np.ndarray | None:
    try:
        found = np.array([float(part) for part in (text or "").split()])
    except ValueError:
        return None
    return found if found.shape == (count,) and np.isfinite(found).all() else None
