"""One random scene: room, table, lights, objects, side cameras and the hand camera, compiled.

Camera placements are kept to a moderate range on purpose (one on each side of the robot, 0.6 to
0.95 m from the workspace, 56 to 70 degrees wide; the hand camera bolted to one place up to 1 cm and
2 degrees): a model with few parameters can learn them, and its model card must say so. A third one,
where it is wanted, is high in front of the robot and looks back at it (see `_front_camera`).
Coordinates: the robot's base frame, metres, x ahead, y to the robot's left, z up; the table's top
is at z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from . import textures
from .objects import Thing, choose_things
from .robot import FLANGE, Robot

HEIGHT, WIDTH = 180, 320
SIDE_CAMERAS = ("exterior_1", "exterior_2", "exterior_3")
HAND_CAMERA = "wrist"
WORKSPACE = np.array([[0.4, 0.66], [-0.24, 0.24]])  # where objects stand: x and y
# The hand camera in the tool frame's axes, seen from the flange: behind the hand, so that it looks
# across the fingers' travel, tilted towards the fingertips.
_MOUNT = np.array([-0.078, 0.0, 0.012])
_MOUNT_TILT = np.deg2rad(19.0)


@dataclass
class Scene:
    """A compiled scene.

    Attributes:
        model, data: MuJoCo's.
        things: the objects; object i is the body `thing_i`.
        poses: [N, 3] x, y and yaw at the start (z is 0).
    """

    model: mujoco.MjModel
    data: mujoco.MjData
    things: list[Thing]
    poses: np.ndarray

    def intrinsics(self, camera: str) -> np.ndarray:
        """[4] fx, fy, cx, cy in pixels: centres at whole numbers, the middle at (159.5, 89.5)."""
        focal = HEIGHT / 2 / np.tan(np.deg2rad(self.model.camera(camera).fovy[0]) / 2)
        return np.array([focal, focal, (WIDTH - 1) / 2, (HEIGHT - 1) / 2])

    def camera_pose(self, camera: str) -> np.ndarray:
        """[4, 4] the camera in the base frame, OpenCV axes, as the arm now stands."""
        view = self.data.cam(camera)
        pose = np.eye(4)
        pose[:3, :3] = view.xmat.reshape(3, 3) * [1, -1, -1]
        pose[:3, 3] = view.xpos
        return pose


def seen_cameras(views: int) -> tuple[str, ...]:
    """The hand camera and the first `views` side cameras, in the order in which they are shown."""
    return (HAND_CAMERA, *SIDE_CAMERAS[:views])


def build_scene(
    rng: np.random.Generator, robot: Robot, third: np.random.Generator | None = None
) -> Scene:
    """Draw a scene from `rng` and compile it.

    Args:
        third: draws a third side camera. It is a generator of its own, so that the scene and what
            happens in it are the same with and without that camera.
    """
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.stat.extent, spec.stat.center = 1.0, [0.4, 0.0, 0.1]
    spec.visual.map.znear, spec.visual.map.zfar = 0.01, 12.0
    spec.visual.map.shadowclip = 1.7
    spec.visual.quality.shadowsize, spec.visual.quality.offsamples = 1024, 4
    spec.visual.global_.offwidth, spec.visual.global_.offheight = WIDTH, HEIGHT
    _room(spec, rng)
    _lights(spec, rng)
    _robot(spec, rng, robot)
    things = choose_things(rng)
    poses = _place(rng, things)
    things = things[: len(poses)]
    for index, (thing, pose) in enumerate(zip(things, poses, strict=True)):
        _thing(spec, rng, index, thing, pose)
    _side_cameras(spec, rng)
    if third is not None:
        _front_camera(spec, third)
    model = spec.compile()
    return Scene(model, mujoco.MjData(model), things, poses)


def _texture(spec, name: str, picture: np.ndarray, cube: bool = False):
    texture = spec.add_texture()
    texture.name = name
    texture.type = mujoco.mjtTexture.mjTEXTURE_CUBE if cube else mujoco.mjtTexture.mjTEXTURE_2D
    texture.height, texture.width, texture.nchannel = picture.shape
    texture.data = picture.tobytes()


def _material(spec, name: str, *, rgb=None, picture=None, cube=False, repeat=1.0, shine=0.2):
    material = spec.add_material()
    material.name = name
    material.specular, material.shininess = shine, shine
    material.rgba = [*(np.ones(3) if rgb is None else rgb), 1.0]
    if picture is not None:
        _texture(spec, name, picture, cube)
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
        material.texrepeat = [repeat, repeat]
    return name


def _geom(parent, kind: str, size, pos, material: str | None = None, **more):
    geom = parent.add_geom()
    geom.type = getattr(mujoco.mjtGeom, f"mjGEOM_{kind.upper()}")
    padded = np.zeros(3)
    padded[: len(size)] = size
    geom.size, geom.pos = padded, pos
    geom.contype = geom.conaffinity = 0
    geom.mass = 0.0
    if material is not None:
        geom.material = material
    for key, value in more.items():
        setattr(geom, key, value)
    return geom


def _room(spec, rng: np.random.Generator) -> None:
    world = spec.worldbody
    floor_z = -rng.uniform(0.6, 0.85)
    wall_colour = rng.uniform(0.35, 0.95) + rng.uniform(-0.12, 0.12, 3)
    floor = textures.surface(rng, rng.uniform(0.15, 0.75) + rng.uniform(-0.1, 0.1, 3))
    _material(spec, "floor", picture=floor, repeat=rng.uniform(2, 6))
    _geom(world, "plane", (5, 5, 1), (0.4, 0, floor_z), "floor")
    centre = np.array([0.4, 0.0])
    for index, angle in enumerate(np.arange(4) * np.pi / 2):
        distance = rng.uniform(1.3, 2.8)
        picture = textures.surface(rng, np.clip(wall_colour, 0, 1))
        _material(spec, f"wall_{index}", picture=picture, repeat=rng.uniform(1, 3))
        ahead = np.array([np.cos(angle), np.sin(angle)])
        # A plane shows its front alone: its normal (z) points into the room.
        axes = np.stack([[-ahead[1], ahead[0], 0], [0, 0, 1], [*-ahead, 0]], axis=1)
        if np.linalg.det(axes) < 0:
            axes[:, 0] *= -1
        quat = Rotation.from_matrix(axes).as_quat(scalar_first=True)
        place = [*(centre + ahead * distance), floor_z + 2]
        _geom(world, "plane", (4, 2, 1), place, f"wall_{index}", quat=quat)
        if rng.random() < 0.7:
            _furniture(spec, rng, index, centre + ahead * (distance - 0.25), ahead, floor_z)
    colour = rng.uniform(0.12, 0.8) + rng.uniform(-0.14, 0.14, 3)
    top = textures.surface(rng, np.clip(colour, 0.05, 1), size=384)
    _material(spec, "table", picture=top, repeat=rng.uniform(1, 2.5), shine=rng.uniform(0, 0.4))
    half = np.array([rng.uniform(0.6, 0.9), rng.uniform(0.55, 0.95), 0.02])
    _geom(world, "box", half, (half[0] - rng.uniform(0.25, 0.5), 0, -0.02), "table")


def _furniture(spec, rng, index: int, at: np.ndarray, ahead: np.ndarray, floor_z: float) -> None:
    """A shelf-like box and a panel by a wall: something for the background to show."""
    along = np.array([-ahead[1], ahead[0]])
    for part in range(int(rng.integers(1, 4))):
        size = np.array([rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5), rng.uniform(0.2, 1.0)])
        place = at + along * rng.uniform(-1.2, 1.2)
        name = f"furniture_{index}_{part}"
        picture = textures.wrap(rng, rng.uniform(0.1, 0.95, 3))
        plain = rng.random() < 0.5
        _material(
            spec, name, picture=None if plain else picture, cube=True, shine=0.1,
            rgb=rng.uniform(0.1, 0.9, 3) if plain else None,
        )  # fmt: skip
        _geom(spec.worldbody, "box", size, (*place, floor_z + size[2]), name)


def _lights(spec, rng: np.random.Generator) -> None:
    head = spec.visual.headlight
    head.ambient = np.full(3, rng.uniform(0.28, 0.46))
    head.diffuse = np.full(3, rng.uniform(0.08, 0.25))
    head.specular = np.zeros(3)
    for index in range(2):
        light = spec.worldbody.add_light()
        angle, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.7)
        away = np.array([np.cos(angle) * np.sin(tilt), np.sin(angle) * np.sin(tilt), np.cos(tilt)])
        light.type = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
        light.pos, light.dir = np.array([0.4, 0, 0.1]) + 1.5 * away, -away
        warmth = rng.uniform(-0.08, 0.08)
        strength = rng.uniform(0.42, 0.7) if index == 0 else rng.uniform(0.05, 0.2)
        light.diffuse = strength * np.array([1 + warmth, 1, 1 - warmth])
        light.specular = np.full(3, 0.2)
        light.ambient = np.zeros(3)
        light.castshadow = index == 0  # a second shadow map would double the cost


def _robot(spec, rng: np.random.Generator, robot: Robot) -> None:
    made = {}
    for body in robot.bodies:
        parent = spec.worldbody if body.parent is None else made[body.parent]
        new = parent.add_body(name=body.name, pos=body.pos, quat=body.quat)
        made[body.name] = new
        if body.joint is not None:
            joint = new.add_joint(name=body.joint, axis=body.axis, pos=body.anchor)
            joint.range, joint.limited = body.limits, True
        # The motion is kinematic; the compiler only wants some inertia on what moves.
        new.mass, new.inertia, new.explicitinertial = 1.0, np.full(3, 0.01), True
        for index, (mesh, rgba) in enumerate(body.meshes):
            _mesh_geom(spec, new, f"{body.name}_{index}", mesh, rgba=rgba)
    _hand_camera(spec, rng, made["link7"], robot)


def _mesh_geom(spec, parent, name: str, mesh, **more) -> None:
    asset = spec.add_mesh(name=name)
    asset.uservert, asset.userface = mesh.vertices.ravel(), mesh.faces.ravel()
    asset.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
    _geom(parent, "mesh", (), (0, 0, 0), meshname=name, **more)


def _hand_camera(spec, rng: np.random.Generator, link7, robot: Robot) -> None:
    """Bolt the camera to the flange: the same place in every scene up to 1 cm and 2 degrees."""
    hand = robot.tool_in_link8[:3, :3]
    # Looking along the hand's z, its picture's top away from the fingers' side; then tilted.
    axes = np.stack([[0, 1.0, 0], [-1.0, 0, 0], [0, 0, 1.0]], axis=1)
    tilt = Rotation.from_euler("y", _MOUNT_TILT).as_matrix()
    jitter = Rotation.from_rotvec(np.deg2rad(rng.uniform(-1.1, 1.1, 3))).as_matrix()
    opencv = hand @ tilt @ jitter @ axes
    place = FLANGE + hand @ (_MOUNT + rng.uniform(-0.005, 0.005, 3))
    camera = link7.add_camera(name=HAND_CAMERA, pos=place)
    camera.quat = Rotation.from_matrix(opencv * [1, -1, -1]).as_quat(scalar_first=True)
    camera.fovy = _vertical(rng.uniform(77, 83))
    body = place - opencv[:, 2] * 0.017
    quat = Rotation.from_matrix(opencv).as_quat(scalar_first=True)
    _geom(link7, "box", (0.05, 0.014, 0.013), body, quat=quat, rgba=[0.12, 0.12, 0.13, 1])


def _vertical(horizontal: float) -> float:
    """The vertical field of view for a horizontal one, in degrees."""
    return float(np.rad2deg(2 * np.arctan(np.tan(np.deg2rad(horizontal) / 2) * HEIGHT / WIDTH)))


def _place(rng: np.random.Generator, things: list[Thing]) -> np.ndarray:
    """[N, 3] x, y, yaw; objects that find no room among the others are left out."""
    poses: list[np.ndarray] = []
    for thing in things:
        for _ in range(60):
            where = rng.uniform(WORKSPACE[:, 0], WORKSPACE[:, 1])
            gap = 0.05 if len(poses) else 0.0
            free = all(
                np.hypot(*(where - other[:2])) > thing.shape.footprint + done.shape.footprint + gap
                for other, done in zip(poses, things, strict=False)
            )
            if free:
                poses.append(np.array([*where, rng.uniform(-np.pi / 4, np.pi / 4)]))
                break
        else:
            break
    return np.array(poses)


def _thing(spec, rng: np.random.Generator, index: int, thing: Thing, pose: np.ndarray) -> None:
    quat = Rotation.from_euler("z", pose[2]).as_quat(scalar_first=True)
    body = spec.worldbody.add_body(name=f"thing_{index}", pos=[*pose[:2], 0.0], quat=quat)
    name = f"thing_{index}"
    shine = rng.uniform(0.05, 0.6)
    if rng.random() < 0.4:
        _material(spec, name, picture=textures.wrap(rng, thing.rgb), cube=True, shine=shine)
    else:
        _material(spec, name, rgb=thing.rgb, shine=shine)
    shape = thing.shape
    if shape.mesh is not None:
        _mesh_geom(spec, body, name, shape.mesh, material=name)
    else:
        _geom(body, shape.form, shape.size, (0, 0, shape.height / 2), name)


def _side_cameras(spec, rng: np.random.Generator) -> None:
    for name, side in zip(SIDE_CAMERAS[:2], (1, -1), strict=True):
        place = np.array(
            [rng.uniform(0.05, 0.35), side * rng.uniform(0.56, 0.78), rng.uniform(0.38, 0.62)]
        )
        _still_camera(spec, rng, name, place)


def _front_camera(spec, rng: np.random.Generator) -> None:
    """The third side camera: beyond the workspace and above it, looking back at the robot.

    0.80 to 0.93 m ahead of the base, within 0.15 m of its middle line, 0.65 to 0.85 m above the
    table: 0.6 to 0.9 m from the workspace. It sees the sides of hand and objects that face away
    from the robot. The arm does not reach there, and no furniture does: a wall is at least 1.3 m
    from the room's centre, and what stands by it at most 0.75 m deep.
    """
    place = np.array([rng.uniform(0.80, 0.93), rng.uniform(-0.15, 0.15), rng.uniform(0.65, 0.85)])
    _still_camera(spec, rng, SIDE_CAMERAS[2], place)


def _still_camera(spec, rng: np.random.Generator, name: str, place: np.ndarray) -> None:
    """A camera at `place` that looks at the workspace, nearly upright, 56 to 70 degrees wide."""
    goal = np.array([rng.uniform(0.42, 0.54), rng.uniform(-0.06, 0.06), rng.uniform(0.1, 0.2)])
    back = (place - goal) / np.linalg.norm(place - goal)
    right = np.cross([0, 0, 1.0], back)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(back, right), back], axis=1)
    roll = Rotation.from_rotvec(back * np.deg2rad(rng.uniform(-3, 3))).as_matrix()
    camera = spec.worldbody.add_camera(name=name, pos=place)
    camera.quat = Rotation.from_matrix(roll @ axes).as_quat(scalar_first=True)
    camera.fovy = _vertical(rng.uniform(56, 70))
