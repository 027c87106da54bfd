"""Very large datasets of other formats, for benchmarks/scale.py: one real episode, a million times.

Every file that the format has for each episode is there, as a hard link to one episode's; metadata
say what they would say. Nothing is made of them: they are opened, planned and looked at.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from wristaugment.jobs.simulate import convert

CORPUS = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "corpus" / "droid_101"
_LINKS = 30_000  # to one file; ext4 has room for 65,000
_TOGETHER = 50  # episodes of a file of LeRobot 3.0, of a million bytes each


def make(name: str, root: Path, episodes: int) -> Path:
    """A dataset of `episodes` episodes; returns what one gives as --data-dir.

    Args:
        name: of FORMATS.
        root: an empty folder where hard links can be made.
    """
    made = convert(CORPUS / "1.0.1", root / "one", name)
    return FORMATS[name](made, root / "many", episodes)


def linked(source: Path, targets: list[str]) -> None:
    """The same file at many paths."""
    first = source
    for number, target in enumerate(targets):
        if number % _LINKS == 0:
            shutil.copyfile(source, target)
            first = Path(target)
        else:
            os.link(first, target)


def _calvin(one: Path, many: Path, episodes: int) -> Path:
    """Episodes of one frame each: CALVIN has a file a frame, whatever the episodes' lengths."""
    shutil.copytree(one, many / one.name, ignore=shutil.ignore_patterns("*.npz", "validation"))
    frame = sorted((one / "training").glob("episode_*.npz"))[0]
    folder = many / one.name / "training"
    linked(frame, [f"{folder}/episode_{number:07d}.npz" for number in range(episodes)])
    numbers = np.arange(episodes)
    np.save(folder / "ep_start_end_ids.npy", np.stack([numbers, numbers], axis=1))
    (folder / "lang_annotations" / "auto_lang_ann.npy").unlink()
    return many / one.name


def _lerobot2(one: Path, many: Path, episodes: int) -> Path:
    """Three files an episode, and a line of metadata; the statistics of episodes are left out."""
    many = many / one.name
    shutil.copytree(one / "meta", many / "meta")
    (many / "meta" / "episodes_stats.jsonl").unlink()
    tree = json.loads((one / "meta" / "info.json").read_text())
    row = json.loads((one / "meta" / "episodes.jsonl").read_text().splitlines()[0])
    chunk = tree["chunks_size"]
    for file in sorted(one.rglob("*episode_000000.*")):
        below = file.relative_to(one).as_posix().replace("chunk-000", "chunk-{0:03d}")
        below = below.replace("000000", "{1:06d}")
        names = [f"{many}/{below.format(i // chunk, i)}" for i in range(episodes)]
        for folder in sorted({os.path.dirname(name) for name in names}):
            os.makedirs(folder)
        linked(file, names)
    lines = (json.dumps(row | {"episode_index": i}) + "\n" for i in range(episodes))
    (many / "meta" / "episodes.jsonl").write_text("".join(lines))
    _declare(many, tree, episodes, row["length"])
    return many


def _lerobot3(one: Path, many: Path, episodes: int) -> Path:
    """Files that hold many episodes each, and a row of metadata for each, without statistics."""
    many = many / one.name
    shutil.copytree(one / "meta", many / "meta")
    tree = json.loads((one / "meta" / "info.json").read_text())
    path = many / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path)
    table = table.select([name for name in table.schema.names if not name.startswith("stats/")])
    number = np.arange(episodes)
    length, fps = int(table["length"][0].as_py()), tree["fps"]
    file, at = number // _TOGETHER, number % _TOGETHER
    columns: dict[str, np.ndarray] = {
        "episode_index": number,
        "dataset_from_index": number * length,
        "dataset_to_index": (number + 1) * length,
    }
    for name in table.schema.names:
        if name.startswith(("data/", "videos/")):
            end = name.rpartition("/")[2]
            columns[name] = {
                "chunk_index": file // tree["chunks_size"],
                "file_index": file % tree["chunks_size"],
                "from_timestamp": at * length / fps,
                "to_timestamp": (at + 1) * length / fps,
            }[end]
    first = table.take(np.zeros(episodes, np.int64))
    arrays = [
        pa.array(columns[field.name]).cast(field.type) if field.name in columns else first[i]
        for i, field in enumerate(first.schema)
    ]
    pq.write_table(pa.Table.from_arrays(arrays, schema=first.schema), path, row_group_size=10_000)
    count = int(file[-1]) + 1
    for source in sorted([*one.glob("data/*/*"), *one.glob("videos/*/*/*")]):
        below = source.relative_to(one).as_posix().replace("chunk-000", "chunk-{0:03d}")
        below = below.replace("file-000", "file-{1:03d}")
        size = tree["chunks_size"]
        names = [f"{many}/{below.format(i // size, i % size)}" for i in range(count)]
        for folder in sorted({os.path.dirname(name) for name in names}):
            os.makedirs(folder)
        linked(source, names)
    _declare(many, tree, episodes, length)
    return many


def _declare(many: Path, tree: dict, episodes: int, length: int) -> None:
    tree |= {"total_episodes": episodes, "total_frames": episodes * length}
    tree |= {"splits": {"train": f"0:{episodes}"}}
    (many / "meta" / "info.json").write_text(json.dumps(tree, indent=4))


def _raw(one: Path, many: Path, episodes: int) -> Path:
    """A folder an episode, a thousand a day."""
    folder = next(path.parent for path in sorted(one.rglob("trajectory.h5")))
    above = many / one.name / folder.parent.parent.relative_to(one)
    targets = [f"{above}/day_{number // 1000:04d}/{number:06d}" for number in range(episodes)]
    for target in targets:
        os.makedirs(f"{target}/recordings/MP4")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        below = file.relative_to(folder).as_posix()
        linked(file, [f"{target}/{below}" for target in targets])
    return many / one.name


FORMATS: dict[str, Callable[[Path, Path, int], Path]] = {
    "calvin": _calvin,
    "lerobot-v2.1": _lerobot2,
    "lerobot-v3.0": _lerobot3,
    "droid-raw": _raw,
}
