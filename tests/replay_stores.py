"""Zarr ReplayBuffers for tests, made by zarr's own library, and copies of them."""

import shutil
import zipfile

import numpy as np
import zarr
from copying import confidences
from wristaugment.readers.episode import WristStream
from wristaugment.readers.replay_buffer import open_source
from wristaugment.writers.replay_buffer import Copy

ENDS = (3, 5, 9)
SIZE = (16, 20)


def pictures(steps=ENDS[-1], height=12, width=14, seed=0):
    """[T, H, W, 3] uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (steps, height, width, 3), np.uint8)


def arrays(**more):
    """A camera and what diffusion_policy keeps beside it."""
    rng = np.random.default_rng(1)
    eef = rng.normal(size=(ENDS[-1], 3)).astype(np.float32)
    quat = rng.normal(size=(ENDS[-1], 4)).astype(np.float32)
    found = {
        "agentview_image": pictures(),
        "robot0_eef_pos": eef,
        "robot0_eef_quat": quat / np.linalg.norm(quat, axis=1, keepdims=True),
        "robot0_gripper_qpos": np.full((ENDS[-1], 2), 0.02, np.float32),
    }
    return {key: value for key, value in {**found, **more}.items() if value is not None}


def make_store(path, data=None, ends=ENDS, zarr_format=2, chunk=1, consolidate=False, **options):
    """Write a store with zarr; `chunk` steps of a camera lie in one file."""
    options = {"config": {"write_empty_chunks": True}} | options
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    root.create_group("data").attrs["note"] = "kept"
    for key, values in (arrays() if data is None else data).items():
        chunks = (chunk, *values.shape[1:]) if values.ndim == 4 else values.shape
        array = root["data"].create_array(
            key, shape=values.shape, chunks=chunks, dtype=values.dtype, **options
        )
        array[:] = values
    root.create_group("meta").create_array("episode_ends", data=np.asarray(ends, np.int64))
    if consolidate:
        zarr.consolidate_metadata(path, zarr_format=zarr_format)
    return path


def zip_store(folder, method=zipfile.ZIP_STORED):
    """The same store as a zip, beside it."""
    path = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


def stream(steps, seed):
    """Noise as a wrist view, every other frame valid."""
    frames = pictures(steps, *SIZE, seed=100 + seed)
    valid = np.arange(steps) % 2 == 0
    return WristStream(frames, valid, np.ones(steps, np.float32), confidence=confidences(valid))


def noise(dataset):
    """The `make` that gives each record a noise of its own."""
    return lambda raw: stream(dataset.steps(raw), raw.record.index)


def copy_store(source, out, make=None, dataset=None, **options):
    """Copy a store as a job does; returns (the copy's store, what became of its shard)."""
    dataset = dataset or open_source(source, plain=True)
    copy = Copy(dataset, out, **({"size": SIZE, "description": "synthetic, for tests"} | options))
    staged = out / ".staging"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    result = copy.write_shard(copy.shards[0], staged, make or noise(dataset))
    for name in result.files:
        target = copy.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        (staged / name).rename(target)
    shutil.rmtree(staged)
    copy.finish([result])
    copy.finish([result])
    return (copy.folder / source.name if source.is_file() else copy.folder), result


def tree(path):
    """Every file of a store with its bytes."""
    if path.is_file():
        with zipfile.ZipFile(path) as archive:
            return {info.filename: archive.read(info) for info in archive.infolist()}
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
