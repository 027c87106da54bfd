"""Small CALVIN datasets with the real ones' files and keys, and who reads them."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import yaml
from wristaugment.readers.calvin import CalvinDataset
from wristaugment.readers.episode import WristStream
from wristaugment.writers.calvin import Copy

STATIC, DEPTH = (20, 20), (20, 20)
SIZE = (12, 16)
FAR = 10.0
# Loose frames (30 and 31) lie in no range; numbers are not counted from 0, as in the real ones.
RANGES = {"training": [(5, 24), (40, 49)], "validation": [(100, 105)]}
NUMBERS = {"training": [*range(5, 25), 30, 31, *range(40, 50)], "validation": [*range(100, 106)]}


def frame(number: int, dtype=np.float64) -> dict[str, np.ndarray]:
    """A frame's arrays; all follow from its number."""
    rng = np.random.default_rng(number)
    robot = np.concatenate(
        [[0.1, 0.02 * number, 0.5, 3.1, 0.1, -0.01 * number], [0.04], np.zeros(7), [1.0]]
    )
    depth = rng.uniform(1, 4, DEPTH).astype(np.float32)
    depth[0] = FAR
    return {
        "actions": rng.normal(size=7).astype(dtype),
        "rel_actions": rng.normal(size=7).astype(dtype),
        "robot_obs": robot.astype(dtype),
        "scene_obs": rng.normal(size=24).astype(dtype),
        "rgb_static": rng.integers(0, 255, (*STATIC, 3), dtype=np.uint8),
        "depth_static": depth,
    }


def build(root: Path, *, gripper: bool = False, dtype=np.float64) -> Path:
    """Write a dataset of 32 + 6 frames; returns its folder."""
    folder = root / "task_T"
    for split, ranges in RANGES.items():
        place = folder / split
        (place / "lang_annotations").mkdir(parents=True)
        for number in NUMBERS[split]:
            arrays = frame(number, dtype)
            if gripper:
                hand = np.random.default_rng(~number % 2**32)
                arrays["rgb_gripper"] = hand.integers(0, 255, (84, 84, 3), dtype=np.uint8)
            np.savez_compressed(place / f"episode_{number:07d}.npz", **arrays)
        np.save(place / "ep_start_end_ids.npy", np.array(ranges))
        np.save(place / "ep_lens.npy", np.array([end - start + 1 for start, end in ranges]))
        spans = [(start, end) for start, end in ranges]
        language = {
            "language": {
                "ann": [f"open the drawer {i}" for i in range(len(ranges))],
                "task": ["open_drawer"] * len(ranges),
                "emb": np.zeros((len(ranges), 1, 384), np.float32),
            },
            "info": {"episodes": [], "indx": spans},
        }
        np.save(place / "lang_annotations" / "auto_lang_ann.npy", np.array(language, dtype=object))
        (place / "statistics.yaml").write_text("robot_obs: []\n")
    (folder / "notes.txt").write_text("kept as it is\n")
    return folder


def stream(numbers: np.ndarray, size: tuple[int, int] = SIZE) -> WristStream:
    """Pictures that follow from the frames' numbers; every third is not valid."""
    frames = np.stack(
        [
            np.random.default_rng(7000 + n).integers(0, 255, (*size, 3), dtype=np.uint8)
            for n in numbers.tolist()
        ]
    )
    valid = numbers % 3 != 0
    frames[~valid] = 0
    told = np.where(valid, 0.2 + numbers % 7 / 10, np.nan).astype(np.float32)
    return WristStream(frames, valid, valid.astype(np.float32), confidence=told)


def make(raw) -> WristStream:
    return stream(raw.numbers)


def write(copy: Copy, staged: Path, make=make) -> list:
    """Write a whole copy as a job does: shard by shard, renamed to its place, then finished."""
    results = []
    for shard in copy.shards:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        result = copy.write_shard(shard, staged, make)
        for name in result.files:
            (copy.folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged / name, copy.folder / name)
        results.append(result)
    copy.finish(results)
    return results


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder: its path -> its bytes."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def read_as_trainers_do(split: Path, space: Path, start: int, count: int) -> dict[str, np.ndarray]:
    """A window of frames as the public training code gets it.

    It takes the first .npz that a listing of the folder gives, makes the naming pattern of all
    files from that name, opens the numbers it wants with numpy.load, and stacks each key that the
    observation space names.
    """
    first = next(Path(entry.path) for entry in os.scandir(split) if entry.name.endswith(".npz"))
    digits = re.findall(r"\d+", first.stem)[0]
    prefix = re.split(r"\d+", first.stem)[0]
    wanted = yaml.safe_load(space.read_text())
    keys = [key for group in wanted.values() for key in group if key != "language"]
    opened = [
        np.load(split / f"{prefix}{number:0{len(digits)}d}.npz")
        for number in range(start, start + count)
    ]
    return {key: np.stack([file[key] for file in opened]) for key in [*keys, "scene_obs"]}


def raws(dataset: CalvinDataset) -> list:
    """Every record of a dataset."""
    return [
        raw for split in dataset.splits for shard in split.shards for raw in dataset.records(shard)
    ]
