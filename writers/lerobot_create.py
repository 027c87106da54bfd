"""New LeRobot datasets, 2.1 or 3.0, from recorded episodes, in the schema of lerobot's DROID."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.spatial.transform import Rotation

from ..readers.lerobot_meta import (
    EPISODES,
    EPISODES_DIR,
    EPISODES_STATS,
    INFO,
    STATS,
    TASKS,
    TASKS_TABLE,
    VIDEO_PATH,
)
from ..readers.lerobot_profiles import IMAGES
from .atomic import write_atomic
from .lerobot_stats import NAMES, QUANTILES, ImageStats, aggregate
from .recorded import ANCHORS, WRIST, Recorded, RecordedSplit
from .video import CODEC, PIX_FMT, VideoWriter

NAME = "droid_sim"
VERSIONS = ("v2.1", "v3.0")
DATA_PATH = {
    2: "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    3: "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
_CHUNK = 1000
_POSE = ["x", "y", "z", "roll", "pitch", "yaw"]
_JOINTS = [f"joint_{number}" for number in range(7)]
_STATE = "observation.state"
_CAMERAS = {ANCHORS[0]: "exterior_1_left", ANCHORS[1]: "exterior_2_left", WRIST: "wrist_left"}
_INDICES = ("frame_index", "episode_index", "index", "task_index")


@dataclass
class _Saved:
    """What the metadata says of a written episode."""

    index: int
    length: int
    task: str
    stats: dict[str, dict]
    first: int


def create(
    out: Path,
    splits: Mapping[str, RecordedSplit],
    *,
    version: str = "v3.0",
    wrist: bool = False,
) -> Path:
    """Write the dataset `droid_sim`; the episodes of the splits follow one another.

    Args:
        out: the folder that the dataset's is made in.
        version: "v2.1" or "v3.0".
        wrist: store the recorded hand camera too, as `observation.images.wrist_left`.

    Returns:
        The dataset's folder.

    Raises:
        ValueError: there is no such version, or there are no episodes.
    """
    if version not in VERSIONS:
        raise ValueError(f"no version {version!r}; known: {', '.join(VERSIONS)}")
    made = _Dataset(Path(out) / NAME, 2 if version == "v2.1" else 3, wrist)
    spans, start = {}, 0
    for name, split in splits.items():
        for episode in split:
            made.add(episode)
        spans[name] = f"{start}:{len(made.saved)}"
        start = len(made.saved)
    made.finish(version, spans)
    return made.folder


class _Dataset:
    """The files of a dataset while they are written."""

    def __init__(self, folder: Path, major: int, wrist: bool):
        self.folder, self.major = folder, major
        self.cameras = {v: k for v, k in _CAMERAS.items() if wrist or v != WRIST}
        self.saved: list[_Saved] = []
        self.tasks: dict[str, int] = {}
        self.fps, self.sizes = 0, {}
        self._videos: dict[str, VideoWriter] = {}
        self._rows: pq.ParquetWriter | None = None
        self._total = 0

    def add(self, episode: Recorded) -> None:
        """Write one episode's rows and videos."""
        index, task = len(self.saved), episode.language[0]
        self.tasks.setdefault(task, len(self.tasks))
        self.fps = episode.hz
        columns = _columns(episode) | self._counters(index, episode, task)
        table = _typed(columns)
        stats = {key: _number_stats(np.asarray(values)) for key, values in columns.items()
                 if not isinstance(values, list)}  # fmt: skip
        self._write_rows(index, table)
        for view, short in self.cameras.items():
            stats[IMAGES + short] = self._write_video(
                index, short, np.asarray(episode.views[view].frames)
            )
        names = NAMES if self.major == 2 else (*NAMES, *QUANTILES)
        stats = {key: {name: values[name] for name in names} for key, values in stats.items()}
        self.saved.append(_Saved(index, episode.steps, task, stats, self._total))
        self._total += episode.steps

    def finish(self, version: str, spans: dict[str, str]) -> None:
        """Write the metadata."""
        for open_file in (*self._videos.values(), *([self._rows] if self._rows else [])):
            open_file.close()
        if not self.saved:
            raise ValueError("there are no episodes to write")
        features = self._features()
        if self.major == 2:
            lines = [
                {"episode_index": row.index, "tasks": [row.task], "length": row.length}
                for row in self.saved
            ]
            self._write(EPISODES, _lines(lines))
            stats = [{"episode_index": row.index, "stats": row.stats} for row in self.saved]
            self._write(EPISODES_STATS, _lines(stats))
            tasks = [{"task_index": number, "task": task} for task, number in self.tasks.items()]
            self._write(TASKS, _lines(tasks))
        else:
            self._write_tables()
            joined = {
                key: aggregate([row.stats[key] for row in self.saved])
                if key.startswith(IMAGES)
                else _joined([row.stats[key] for row in self.saved])
                for key in self.saved[0].stats
            }
            self._write(STATS, _json(joined))
        info: dict[str, Any] = {
            "codebase_version": version,
            "robot_type": "panda",
            "total_episodes": len(self.saved),
            "total_frames": self._total,
            "total_tasks": len(self.tasks),
        }
        if self.major == 2:
            info["total_videos"] = len(self.saved) * len(self.cameras)
            info["total_chunks"] = (len(self.saved) - 1) // _CHUNK + 1
            info["chunks_size"] = _CHUNK
        else:
            info |= {"chunks_size": _CHUNK, "data_files_size_in_mb": 100}
            info["video_files_size_in_mb"] = 200
        info |= {
            "fps": self.fps,
            "splits": spans,
            "data_path": DATA_PATH[self.major],
            "video_path": VIDEO_PATH[self.major],
            "features": features,
        }
        self._write(INFO, _json(info))

    def _counters(self, index: int, episode: Recorded, task: str) -> dict[str, np.ndarray]:
        """The columns that every dataset has."""
        steps = np.arange(episode.steps)
        return {
            "timestamp": (steps / episode.hz).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(episode.steps, index),
            "index": steps + self._total,
            "task_index": np.full(episode.steps, self.tasks[task]),
        }

    def _write_rows(self, index: int, table: pa.Table) -> None:
        if self.major == 2:
            path = self.folder / DATA_PATH[2].format(
                episode_chunk=index // _CHUNK, episode_index=index
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)
            return
        if self._rows is None:
            path = self.folder / DATA_PATH[3].format(chunk_index=0, file_index=0)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._rows = pq.ParquetWriter(path, table.schema)
        self._rows.write_table(table)

    def _write_video(self, index: int, short: str, frames: np.ndarray) -> dict:
        """Encode an episode's frames; returns their statistics."""
        key, size = IMAGES + short, (frames.shape[1], frames.shape[2])
        self.sizes[key] = size
        if self.major == 2 or key not in self._videos:
            where = {"video_key": key, "episode_chunk": index // _CHUNK, "episode_index": index}
            where |= {"chunk_index": 0, "file_index": 0}
            path = self.folder / VIDEO_PATH[self.major].format(**where)
            self._videos[key] = VideoWriter(path, size, self.fps)
        stats = ImageStats()
        for frame in frames:
            self._videos[key].add(frame)
            stats.add(frame)
        if self.major == 2:
            self._videos.pop(key).close()
        return stats.result()

    def _write_tables(self) -> None:
        """meta/episodes and meta/tasks.parquet."""
        at = {"chunk_index": 0, "file_index": 0}
        rows = []
        for row in self.saved:
            end = row.first + row.length
            place: dict[str, Any] = {"episode_index": row.index, "tasks": [row.task]}
            place["length"] = row.length
            place |= {f"data/{name}": value for name, value in at.items()}
            place |= {"dataset_from_index": row.first, "dataset_to_index": end}
            for short in self.cameras.values():
                prefix = f"videos/{IMAGES}{short}/"
                place |= {prefix + name: value for name, value in at.items()}
                place[prefix + "from_timestamp"] = row.first / self.fps
                place[prefix + "to_timestamp"] = end / self.fps
            for key, stats in row.stats.items():
                place |= {f"stats/{key}/{name}": value for name, value in stats.items()}
            place |= {f"meta/episodes/{name}": value for name, value in at.items()}
            rows.append(place)
        path = self.folder / EPISODES_DIR / "chunk-000" / "file-000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path, compression="snappy")
        tasks = {"task_index": list(self.tasks.values()), "__index_level_0__": list(self.tasks)}
        table = pa.table(tasks)
        # The words are the index of a pandas table, which lerobot looks a task up in.
        note = {
            "index_columns": ["__index_level_0__"],
            "column_indexes": [],
            "columns": [
                _pandas("task_index", "task_index", "int64"),
                _pandas(None, "__index_level_0__", "unicode"),
            ],
            "creator": {"library": "pyarrow"},
            "pandas_version": "2.0.0",
        }
        table = table.replace_schema_metadata({"pandas": json.dumps(note)})
        pq.write_table(table, self.folder / TASKS_TABLE)

    def _features(self) -> dict[str, dict]:
        """info.json's `features`, the cameras first."""
        out: dict[str, dict] = {}
        for key, size in self.sizes.items():
            info = {
                "video.height": size[0],
                "video.width": size[1],
                "video.codec": CODEC,
                "video.pix_fmt": PIX_FMT,
                "video.is_depth_map": False,
                "video.fps": self.fps,
                "video.channels": 3,
                "has_audio": False,
            }
            names = ["height", "width", "channels"]
            out[key] = {"dtype": "video", "shape": [*size, 3], "names": names, "info": info}
        for key, names in _NAMES.items():
            axes = {"axes": names} if names else None
            out[key] = {"dtype": "float32", "shape": [len(names or [0])], "names": axes}
        for key in ("language_instruction", "language_instruction_2", "language_instruction_3"):
            out[key] = {"dtype": "string", "shape": [1], "names": None}
        for key in ("timestamp", *_INDICES):
            kind = "float32" if key == "timestamp" else "int64"
            out[key] = {"dtype": kind, "shape": [1], "names": None}
        return out

    def _write(self, name: str, text: str) -> None:
        write_atomic(self.folder / name, text.encode())


_NAMES: dict[str, list[str] | None] = {
    f"{_STATE}.gripper_position": ["gripper"],
    f"{_STATE}.cartesian_position": _POSE,
    f"{_STATE}.joint_position": _JOINTS,
    _STATE: [*_JOINTS, "gripper"],
    "action": [*_POSE, "gripper"],
    "camera_extrinsics.wrist_left": _POSE,
    "camera_extrinsics.exterior_1_left": _POSE,
    "camera_extrinsics.exterior_2_left": _POSE,
}


def _columns(episode: Recorded) -> dict[str, Any]:
    """An episode's own columns: [T, N] float32, or [T] texts."""
    gripper = episode.gripper.reshape(-1, 1)
    columns: dict[str, Any] = {
        f"{_STATE}.gripper_position": gripper,
        f"{_STATE}.cartesian_position": _six(episode.eef),
        f"{_STATE}.joint_position": episode.joints,
        _STATE: np.concatenate([episode.joints, gripper], axis=1),
        "action": episode.action,
    }
    for view, short in _CAMERAS.items():
        pose = episode.views[view].pose
        six = np.zeros((episode.steps, 6))
        if pose is not None:
            six = np.broadcast_to(_six(np.linalg.inv(pose.reshape(-1, 4, 4))), six.shape)
        columns[f"camera_extrinsics.{short}"] = six
    columns = {key: np.asarray(values, np.float32) for key, values in columns.items()}
    words = [*episode.language, "", "", ""][:3]
    for number, text in enumerate(words):
        suffix = f"_{number + 1}" if number else ""
        columns[f"language_instruction{suffix}"] = [text] * episode.steps
    return columns


def _six(poses: np.ndarray) -> np.ndarray:
    """[N, 6] xyz and extrinsic "xyz" Euler angles of [N, 4, 4] poses."""
    euler = Rotation.from_matrix(poses[:, :3, :3]).as_euler("xyz")
    return np.concatenate([poses[:, :3, 3], euler], axis=1)


def _typed(columns: Mapping[str, Any]) -> pa.Table:
    """A table as lerobot stores it: vectors as lists of fixed length, one number as a number."""
    arrays = {}
    for key, values in columns.items():
        if isinstance(values, list):
            arrays[key] = pa.array(values, pa.string())
        elif values.ndim == 2 and values.shape[1] > 1:
            flat = pa.array(values.ravel())
            arrays[key] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        else:
            arrays[key] = pa.array(values.ravel())
    table = pa.table(arrays)
    features = {field.name: _hf(field.type) for field in table.schema}
    note = {"info": {"features": features}}
    return table.replace_schema_metadata({"huggingface": json.dumps(note)})


def _hf(kind: pa.DataType) -> dict:
    """A column's type as the `datasets` library notes it."""
    if pa.types.is_fixed_size_list(kind):
        return {"feature": _hf(kind.value_type), "length": kind.list_size, "_type": "Sequence"}
    name = {"float": "float32", "double": "float64"}.get(str(kind), str(kind))
    return {"dtype": name, "_type": "Value"}


def _number_stats(values: np.ndarray) -> dict[str, list]:
    """LeRobot's statistics of a column of numbers, per component."""
    table = values.reshape(len(values), -1).astype(np.float64)
    out = {
        "min": table.min(axis=0).tolist(),
        "max": table.max(axis=0).tolist(),
        "mean": table.mean(axis=0).tolist(),
        "std": table.std(axis=0).tolist(),
        "count": [len(table)],
    }
    return out | {
        name: np.quantile(table, share, axis=0).tolist() for name, share in QUANTILES.items()
    }


def _joined(parts: list[dict[str, list]]) -> dict[str, list]:
    """`aggregate` for vectors."""
    nested = [
        {name: value if name == "count" else [[[v]] for v in value] for name, value in part.items()}
        for part in parts
    ]
    return {
        name: value if name == "count" else [row[0][0] for row in value]
        for name, value in aggregate(nested).items()
    }


def _pandas(name: str | None, field: str, kind: str) -> dict:
    numpy = "object" if kind == "unicode" else kind
    return {
        "name": name,
        "field_name": field,
        "pandas_type": kind,
        "numpy_type": numpy,
        "metadata": None,
    }


def _lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _json(tree: dict) -> str:
    return json.dumps(tree, indent=4, ensure_ascii=False)
