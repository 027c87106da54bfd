"""The things on the table: their kinds, shapes, named colours, and how each may be grasped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .meshes import Mesh, box, merge, revolve, tube

COLOURS = {
    "red": (0.75, 0.08, 0.08),
    "green": (0.1, 0.55, 0.15),
    "blue": (0.08, 0.2, 0.7),
    "yellow": (0.9, 0.78, 0.1),
    "orange": (0.92, 0.45, 0.06),
    "purple": (0.42, 0.14, 0.6),
    "pink": (0.92, 0.45, 0.6),
    "white": (0.92, 0.92, 0.9),
    "black": (0.08, 0.08, 0.09),
    "brown": (0.42, 0.24, 0.12),
    "gray": (0.5, 0.5, 0.52),
    "cyan": (0.1, 0.68, 0.75),
}
GRASPABLE = ("cube", "block", "cylinder", "can", "ball", "mug", "bottle", "cup")
CONTAINERS = ("bowl", "plate", "tray")
_FLOOR = 0.006  # how thick the bottom of a container is, in metres


@dataclass(frozen=True)
class Shape:
    """The form of an object, with its origin in the middle of its underside and z up.

    Attributes:
        form: "box", "cylinder", "sphere" or "mesh".
        size: half-extents (box), radius and half-height (cylinder), radius (sphere).
        mesh: the triangles of a "mesh".
        footprint: radius of its footprint in metres; height: in metres.
        width: what the fingers close on, in metres (0: not to be grasped).
        grasp_height: of the tool above its underside when grasped.
    """

    form: str
    size: tuple[float, ...]
    footprint: float
    height: float
    width: float = 0.0
    grasp_height: float = 0.0
    mesh: Mesh | None = None


@dataclass(frozen=True)
class Thing:
    """One object: `kind` and `colour` as the instruction names them, its shade `rgb` in 0..1."""

    kind: str
    colour: str
    rgb: np.ndarray
    shape: Shape

    @property
    def name(self) -> str:
        """As in "red cube"."""
        return f"{self.colour} {self.kind}"

    @property
    def rest(self) -> float:
        """How high above its underside another object comes to rest on or in it, in metres."""
        return _FLOOR if self.kind in CONTAINERS else self.shape.height


def make_thing(rng: np.random.Generator, kind: str, colour: str) -> Thing:
    """An object of `kind` with random proportions, in a shade of `colour`.

    Raises:
        KeyError: no such kind or colour.
    """
    shade = np.array(COLOURS[colour]) * rng.uniform(0.85, 1.1) + rng.uniform(-0.04, 0.04, 3)
    return Thing(kind, colour, np.clip(shade, 0, 1), _SHAPES[kind](rng))


def choose_things(rng: np.random.Generator) -> list[Thing]:
    """Two to five objects; the first can be grasped, no two have the same name."""
    number = int(rng.integers(2, 6))
    kinds = [str(rng.choice(GRASPABLE))]
    for _ in range(number - 1):
        pool = GRASPABLE
        if rng.random() < 0.35 and not set(kinds) & set(CONTAINERS):
            pool = CONTAINERS
        kinds.append(str(rng.choice(pool)))
    colours = rng.choice(list(COLOURS), size=number, replace=False)
    return [make_thing(rng, kind, str(colour)) for kind, colour in zip(kinds, colours, strict=True)]


def _cube(rng: np.random.Generator) -> Shape:
    half = rng.uniform(0.018, 0.028)
    return Shape("box", (half, half, half), half * 1.42, 2 * half, 2 * half, half)


def _block(rng: np.random.Generator) -> Shape:
    thin, long = rng.uniform(0.014, 0.022), rng.uniform(0.035, 0.055)
    tall = rng.uniform(0.015, 0.03)
    return Shape("box", (long, thin, tall), long, 2 * tall, 2 * thin, tall)


def _cylinder(rng: np.random.Generator) -> Shape:
    return _upright(rng.uniform(0.018, 0.03), rng.uniform(0.022, 0.035))


def _can(rng: np.random.Generator) -> Shape:
    # Two numbers go unused: the corpus that the weights were trained on was drawn like that.
    rng.uniform(size=2)
    return _upright(rng.uniform(0.026, 0.033), rng.uniform(0.045, 0.06))


def _upright(radius: float, half: float) -> Shape:
    grasp = max(half, 2 * half - 0.04)
    return Shape("cylinder", (radius, half), radius, 2 * half, 2 * radius, grasp)


def _ball(rng: np.random.Generator) -> Shape:
    radius = rng.uniform(0.02, 0.033)
    return Shape("sphere", (radius,), radius, 2 * radius, 2 * radius, radius)


def _cup(rng: np.random.Generator) -> Shape:
    radius, height = rng.uniform(0.03, 0.036), rng.uniform(0.07, 0.1)
    return _vessel(radius, radius * rng.uniform(0.7, 0.85), height)


def _mug(rng: np.random.Generator) -> Shape:
    radius, height = rng.uniform(0.03, 0.036), rng.uniform(0.07, 0.1)
    return _vessel(radius, radius * 0.97, height, handle=0.025)


def _vessel(radius: float, base: float, height: float, handle: float = 0.0) -> Shape:
    wall = 0.004
    outside = [(0, 0), (base, 0), (radius, height)]
    inside = [(radius - wall, height), (base - wall, _FLOOR), (0, _FLOOR)]
    mesh = revolve(np.array(outside + inside))
    if handle:
        # Along x, so that fingers closing along y pass it by.
        turn = np.linspace(-np.pi / 2, np.pi / 2, 9)
        across = radius - 0.002 + 0.024 * np.cos(turn)
        path = np.c_[across, np.zeros(9), height / 2 + height * 0.3 * np.sin(turn)]
        mesh = merge([mesh, tube(path, 0.005)])
    return Shape("mesh", (), radius + handle, height, 2 * radius, height - 0.03, mesh)


def _bottle(rng: np.random.Generator) -> Shape:
    radius, height = rng.uniform(0.024, 0.031), rng.uniform(0.13, 0.18)
    neck = radius * rng.uniform(0.4, 0.55)
    body = [(0, 0), (radius, 0), (radius, height * 0.6)]
    top = [(neck, height * 0.78), (neck, height), (0, height)]
    mesh = revolve(np.array(body + top))
    return Shape("mesh", (), radius, height, 2 * radius, height * 0.5, mesh)


def _bowl(rng: np.random.Generator) -> Shape:
    radius, height = rng.uniform(0.06, 0.08), rng.uniform(0.04, 0.06)
    arc = np.linspace(0, 1, 6)
    return _dish(radius, height, 0.45 + (1 - 0.45) * arc**0.6, arc**2)


def _plate(rng: np.random.Generator) -> Shape:
    arc = np.linspace(0, 1, 6)
    return _dish(rng.uniform(0.075, 0.1), 0.018, 0.7 + (1 - 0.7) * arc, arc)


def _dish(radius: float, height: float, spread: np.ndarray, rise: np.ndarray) -> Shape:
    outer = np.c_[radius * spread, height * rise]
    inner = np.c_[np.maximum(outer[::-1, 0] - 0.004, 0), np.maximum(outer[::-1, 1], 0.005)]
    mesh = revolve(np.r_[[[0, 0]], outer, inner, [[0, 0.005]]], sides=36)
    return Shape("mesh", (), radius, height, mesh=mesh)


def _tray(rng: np.random.Generator) -> Shape:
    a, b, height = rng.uniform(0.07, 0.1), rng.uniform(0.06, 0.08), rng.uniform(0.02, 0.04)
    wall = 0.006
    parts = [box(np.array([2 * a, 2 * b, wall]), np.array([0, 0, wall / 2]))]
    for sign in (-1, 1):
        x, y = sign * (a - wall / 2), sign * (b - wall / 2)
        parts.append(box(np.array([wall, 2 * b, height]), np.array([x, 0, height / 2])))
        parts.append(box(np.array([2 * a, wall, height]), np.array([0, y, height / 2])))
    return Shape("mesh", (), float(np.hypot(a, b)) * 0.9, height, mesh=merge(parts))


_SHAPES: dict[str, Callable[[np.random.Generator], Shape]] = {
    "cube": _cube,
    "block": _block,
    "cylinder": _cylinder,
    "can": _can,
    "ball": _ball,
    "mug": _mug,
    "cup": _cup,
    "bottle": _bottle,
    "bowl": _bowl,
    "plate": _plate,
    "tray": _tray,
}
