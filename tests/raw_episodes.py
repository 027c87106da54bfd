"""Raw DROID episodes for tests, made with h5py and PyAV, and copies of them."""

import json
import shutil

import av
import h5py
import numpy as np
from copying import confidences
from wristaugment.readers.droid_raw import open_source
from wristaugment.readers.episode import WristStream
from wristaugment.writers.droid_raw import Copy

SERIALS = {"ext1": "111", "ext2": "222", "wrist": "333"}
SIZE = (16, 32)
STEPS = 6


def pictures(steps=STEPS, height=48, width=64, seed=0):
    """[T, H, W, 3] uint8: smooth, so that a video keeps it, and another for each seed."""
    y, x = np.mgrid[0:height, 0:width]
    frames = [
        np.stack([x * 3, y * 4, (x + y + 20 * t + 40 * seed) % 256], axis=2) for t in range(steps)
    ]
    return np.clip(frames, 0, 255).astype(np.uint8)


def write_video(path, frames, rate=60):
    """An mp4 as any encoder makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "10"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def make_episode(folder, steps=STEPS, serials=SERIALS, videos=None, **metadata):
    """One episode; `videos`: serial -> frames, None for those of all cameras."""
    folder.mkdir(parents=True)
    if videos is None:
        videos = {serial: pictures(steps, seed=n) for n, serial in enumerate(serials.values())}
        videos[f"{serials['ext1']}-stereo"] = pictures(steps, width=128)
    for name, frames in videos.items():
        write_video(folder / f"recordings/MP4/{name}.mp4", frames)
    rng = np.random.default_rng(steps)
    with h5py.File(folder / "trajectory.h5", "w") as file:
        state = file.create_group("observation/robot_state")
        state["cartesian_position"] = rng.uniform(-1, 1, (steps, 6))
        state["gripper_position"] = np.linspace(0, 1, steps)
        for serial in serials.values():
            K = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
            file[f"observation/camera_intrinsics/{serial}_left"] = np.broadcast_to(K, (steps, 3, 3))
            places = rng.uniform(-1, 1, (steps, 6))
            file[f"observation/camera_extrinsics/{serial}_left"] = places
    tree = {"current_task": "put it there", "trajectory_length": steps}
    for role, serial in serials.items():
        tree |= {f"{role}_cam_serial": serial, f"{role}_cam_extrinsics": [0.1, 0.2, 0.3, 0, 1, 2]}
    name = f"metadata_LAB+{folder.name}.json"
    (folder / name).write_text(json.dumps({**tree, **metadata}))
    return folder


def make_dataset(root, count=3):
    """A dataset of two laboratories' successes and one failure."""
    for index in range(count):
        outcome = "failure" if index == 1 else "success"
        make_episode(root / f"LAB/{outcome}/2023-07-07/ep{index}", STEPS + index)
    (root / "README.txt").write_text("about it")
    return root


def records(dataset):
    return [r for split in dataset.splits for s in split.shards for r in dataset.records(s)]


def stream(steps, seed):
    """A smooth wrist view, every other frame valid."""
    valid = np.arange(steps) % 2 == 0
    return WristStream(
        pictures(steps, *SIZE, seed=seed),
        valid,
        np.ones(steps, np.float32),
        confidence=confidences(valid),
    )


def smooth(dataset):
    """The `make` that gives each record a wrist view of its own."""
    return lambda raw: stream(dataset.steps(raw), raw.record.shard)


def copy_dataset(source, out, make=None, **options):
    """Copy as a job does; returns (the copy's folder, what became of its shards)."""
    dataset = open_source(source, plain=True)
    copy = Copy(dataset, out, **({"size": SIZE, "description": "synthetic, for tests"} | options))
    results = []
    for shard in copy.shards:
        staged = out / ".staging"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        results.append(copy.write_shard(shard, staged, make or smooth(dataset)))
        for name in results[-1].files:
            target = copy.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (staged / name).replace(target)
        shutil.rmtree(staged)
    copy.finish(results)
    copy.finish(results)
    return copy.folder, results


def tree(root):
    """Every file with its bytes."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
