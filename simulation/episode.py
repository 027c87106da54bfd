"""One simulated episode from its seed: scene, script, motion, pictures, as DROID stores them."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from . import VIEWS
from .motion import PERIOD, Motion, Script, perform, prolong, show, write_script
from .render import Renderer
from .robot import Arm, load_robot
from .scene import Scene, build_scene, seen_cameras
from .schema import CALIBRATION, DEPTHS, IMAGES

_QUALITY = 95
_ATTEMPTS = 50
ONE_TASK = 64  # steps up to which an episode is one task; longer ones do several


@dataclass(frozen=True)
class Request:
    """Which episode to make: `split` and `index` under `seed`, `steps` steps, with depth or not.

    `views` is how many side cameras see it (1 to 3); what happens does not depend on it.
    """

    seed: int
    split: str
    index: int
    steps: int
    depth: bool
    views: int = VIEWS


def generator(
    request: Request, attempt: int = 0, spawn: tuple[int, ...] = ()
) -> np.random.Generator:
    """The random numbers of one episode; no two of seed, split, index and attempt share any.

    Args:
        spawn: names a stream of its own beside the episode's (`numpy.random.SeedSequence`).
    """
    split = zlib.crc32(request.split.encode())
    entropy = [request.seed, split, request.index, attempt]
    return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=spawn))


def simulate(request: Request, renderer: Renderer) -> dict:
    """The episode as a tree for the writer: `steps` and `episode_metadata`.

    Images are encoded already (JPEG, PNG for depth); everything else is a numpy array, or text.

    Raises:
        RuntimeError: no task that the arm can reach was found, which does not happen in practice.
    """
    scene, arm, script, motion, rng = _stage(request)
    chosen = _choose_steps(rng, len(motion.joints), request.steps)
    renderer.load(scene.model)
    cameras = seen_cameras(request.views)
    images: dict[str, list[bytes]] = {IMAGES[camera]: [] for camera in cameras}
    depths: dict[str, list[bytes]] = {}
    if request.depth:
        depths = {DEPTHS[camera]: [] for camera in cameras}
    flange, first_poses = [], {}
    for step in chosen:
        show(scene, arm, motion, step)
        flange.append(euler_pose(arm.link8()))
        for camera in cameras:
            rgb, depth = renderer.render(scene.data, camera)
            images[IMAGES[camera]].append(_jpeg(rgb))
            if request.depth:
                depths[DEPTHS[camera]].append(_png(depth))
            first_poses.setdefault(camera, scene.camera_pose(camera))
    steps = _steps(motion, chosen, np.array(flange), script)
    steps["observation"] |= images | depths
    return {"steps": steps, "episode_metadata": _metadata(request, scene, script, first_poses)}


def _stage(request: Request) -> tuple[Scene, Arm, Script, Motion, np.random.Generator]:
    robot = load_robot()
    for attempt in range(_ATTEMPTS):
        rng = generator(request, attempt)
        third = generator(request, attempt, (3,)) if request.views > 2 else None
        scene = build_scene(rng, robot, third)
        arm = Arm(scene.model, scene.data, robot)
        script = write_script(rng, scene, robot)
        motion = perform(rng, scene, arm, script)
        if motion is None:
            continue
        if request.steps <= max(ONE_TASK, len(motion.joints)):
            return scene, arm, script, motion, rng
        if more := prolong(rng, scene, arm, script, motion, request.steps):
            scripts, motion = more
            words = [", then ".join(s.words[i] for s in scripts) for i in range(3)]
            return scene, arm, replace(script, words=tuple(words)), motion, rng
    raise RuntimeError(f"no reachable task in {_ATTEMPTS} scenes for {request}")


def _choose_steps(rng: np.random.Generator, length: int, steps: int) -> np.ndarray:
    """[steps] indices: a window of every step, every second or every third, placed at random.

    A script shorter than the window is held at its end (of up to `ONE_TASK` steps).
    """
    largest = max(1, min(3, (length - 1) // max(steps - 1, 1)))
    stride = int(rng.integers(1, largest + 1))
    room = max(length - 1 - stride * (steps - 1), 0)
    start = int(rng.integers(0, room + 1))
    return np.minimum(start + stride * np.arange(steps), length - 1)


def _steps(motion: Motion, chosen: np.ndarray, flange: np.ndarray, script: Script) -> dict:
    number = len(chosen)
    seconds = PERIOD * max(int(chosen[-1] - chosen[0]), 1) / max(number - 1, 1)
    joints, closed = motion.joints[chosen], motion.closed[chosen][:, None]
    # The action of a step is what brings the robot to the next one; the last one holds still.
    following = np.minimum(np.arange(number) + 1, number - 1)
    turn = flange[following] - flange
    turn[:, 3:] = (turn[:, 3:] + np.pi) % (2 * np.pi) - np.pi
    velocity = turn / seconds
    last = np.arange(number) == number - 1
    return {
        "is_first": np.arange(number) == 0,
        "is_last": last,
        "is_terminal": last,
        "language_instruction": [script.words[0]] * number,
        "language_instruction_2": [script.words[1]] * number,
        "language_instruction_3": [script.words[2]] * number,
        "observation": {
            "gripper_position": closed,
            "cartesian_position": flange,
            "joint_position": joints,
        },
        "action_dict": {
            "gripper_position": closed[following],
            "gripper_velocity": (closed[following] - closed) / seconds,
            "cartesian_position": flange[following],
            "cartesian_velocity": velocity,
            "joint_position": joints[following],
            "joint_velocity": (joints[following] - joints) / seconds,
        },
        "action": np.concatenate([velocity, closed[following]], axis=1),
        "discount": np.ones(number, np.float32),
        "reward": last.astype(np.float32),
    }


def _metadata(request: Request, scene: Scene, script: Script, poses: dict[str, np.ndarray]) -> dict:
    folder = f"simulation/success/{request.split}/{request.index:06d}"
    metadata: dict = {
        "recording_folderpath": f"{folder}/recordings/MP4",
        "file_path": f"{folder}/trajectory.h5",
        "building": "simulation",
        "collector_id": "simulation",
        "date": "simulation",
        "scene_id": f"{request.seed}-{request.split}-{request.index}",
        "task_category": script.category,
    }
    for camera, first in poses.items():
        key = CALIBRATION[camera]
        metadata[f"extrinsics_{key}"] = euler_pose(first)
        metadata[f"intrinsics_{key}"] = scene.intrinsics(camera)
    return metadata


def euler_pose(pose: np.ndarray) -> np.ndarray:
    """[6] metres and extrinsic "xyz" Euler angles of a [4, 4] pose, as DROID writes them."""
    return np.r_[pose[:3, 3], Rotation.from_matrix(pose[:3, :3]).as_euler("xyz")]


def _jpeg(rgb: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _png(depth: np.ndarray) -> bytes:
    millimetres = np.clip(np.round(depth * 1000), 0, 65535).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(millimetres).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
