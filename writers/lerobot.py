"""The augmented copy of a LeRobot dataset: a video more for every episode, and the metadata of it.

Tables with steps, and the videos that were there, are copied as they are. Whether a frame could be
made is told in meta/wristaugment, since a column more in the tables would change every file, and
one that begins with `observation.` would be taken for a state.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..readers.dataset import Shard
from ..readers.episode import WristStream
from ..readers.errors import SourceError
from ..readers.features import dump_like
from ..readers.lerobot import FLAG, LeRobotDataset, LeRobotRecord, flags_file
from ..readers.lerobot_meta import (
    EPISODES_STATS,
    FLAGS_DIR,
    INFO,
    LONGEST,
    STATS,
    Place,
    read_text,
)
from ..readers.lerobot_profiles import IMAGES
from .copy import LEFT_OUT, DatasetCopy, Make, ShardResult, flags_of, listed, staged_files
from .lerobot_stats import NAMES, QUANTILES, ImageStats, Stats, aggregate
from .lerobot_table import with_columns
from .video import CODEC, PIX_FMT, VideoWriter, check_size

MODALITY = "meta/modality.json"  # GR00T's names of the streams
_DEFAULT, _USUAL = "wrist_rgb", f"{IMAGES}wrist"
_GATHER = 1 << 16  # rows of flags that are written together


class Copy(DatasetCopy):
    """See DatasetCopy. Every episode is in the copy; those not wanted have black frames.

    The stream's name: `wrist_rgb` means `observation.images.wrist` where that is free, as training
    code expects it; any other name x means `observation.images.x`; `observation.…` is taken as is.
    """

    dataset: LeRobotDataset
    subset = False
    like_siblings = True

    @classmethod
    def usual_size(cls, dataset):
        """That of the other cameras, made even, as H.264 wants it."""
        found = super().usual_size(dataset)
        return found and (found[0] // 2 * 2, found[1] // 2 * 2)

    def __init__(self, dataset: LeRobotDataset, out: Path, **options: Any):
        super().__init__(dataset, out, **options)
        check_size(self.size)
        if (dataset.folder / FLAGS_DIR).exists() and not self.replace:
            raise SourceError(
                "the dataset has a synthetic stream already, with its flags here",
                file=dataset.folder / FLAGS_DIR,
                todo="give the recorded dataset, or say --replace to have the flags replaced",
            )
        every = [shard for split in dataset.splits for shard in split.shards]
        self._ordinals = {(shard.split, shard.index): n for n, shard in enumerate(every)}

    def names(self, wrist_key: str) -> tuple[str, str]:
        features = self.dataset.meta.features
        key = wrist_key if wrist_key.startswith("observation.") else IMAGES + wrist_key
        usual = _USUAL not in features or (self.replace and key not in features)
        if wrist_key == _DEFAULT and usual:
            key = _USUAL
        if not re.fullmatch(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*", key):
            raise SourceError(
                "cannot be the name of the new camera",
                key=wrist_key,
                todo="choose another --wrist-key, of letters, digits, dots and underscores",
            )
        if key in features and features[key].dtype != "video":
            raise SourceError(
                f"is a feature of type {features[key].dtype!r} already, and no video",
                file=self.dataset.meta.path,
                key=key,
                todo="choose another --wrist-key",
            )
        return key.removeprefix(IMAGES), key

    def write_shard(self, shard: Shard, staged: Path, make: Make) -> ShardResult:
        result = ShardResult(shard.split, shard.index)
        work = _ShardWork(self, shard, staged)
        try:
            for raw in self.records(shard):
                if raw.span is None and not 0 < raw.length <= LONGEST:
                    assert raw.error is not None
                    result.bad.append(listed(raw, raw.error, LEFT_OUT, 1))
                    work.skip(raw)
                    continue
                work.add(raw, self.stream(raw, shard, make, raw.length, result))
                result.records += 1
        finally:
            work.close()
        result.facts = {"episodes": work.facts}
        result.files = staged_files(staged)
        return result

    def place(self, shard: Shard) -> Place:
        """The file of a shard's episodes, where they lie together in one (version 3)."""
        ordinal = self._ordinals[shard.split, shard.index]
        return Place(ordinal // self.dataset.meta.chunk, ordinal % self.dataset.meta.chunk)

    def other_files(self) -> Iterator[Path]:
        """As they are, less the stream that is replaced and its flags."""
        old: set[Path] = set()
        if self.replaces:
            meta = self.dataset.meta
            rows = (meta.episode(position) for position in range(len(meta.indices)))
            old = {meta.video_file(row, self.stream_key) for row in rows}
        flags = self.dataset.folder / FLAGS_DIR
        return (
            path for path in super().other_files() if path not in old and flags not in path.parents
        )

    def metadata(self, results: Sequence[ShardResult]) -> dict[str, bytes]:
        facts = {fact["episode"]: fact for result in results for fact in result.facts["episodes"]}
        stats = {e: fact["stats"] for e, fact in sorted(facts.items()) if fact["stats"]}
        out = {}
        meta, key = self.dataset.meta, self.stream_key
        if meta.major == 3:
            for path in meta.episode_files():
                columns = lambda table: self._columns(table, facts)
                name = path.relative_to(meta.folder).as_posix()
                out[name] = with_columns(path, key, columns)
        elif (meta.folder / EPISODES_STATS).is_file():
            out[EPISODES_STATS] = self._episodes_stats(stats).encode()
        if (meta.folder / STATS).is_file() and stats:
            joined = aggregate(list(stats.values()))
            joined = {name: joined[name] for name in joined if meta.major == 3 or name in NAMES}
            out[STATS] = self._patched(STATS, lambda tree: tree.update({key: joined}))
        if (meta.folder / MODALITY).is_file():
            out[MODALITY] = self._patched(MODALITY, self._modality)
        made = sum(result.records for result in results)
        out[INFO] = self._patched(INFO, lambda tree: self._info(tree, made))
        return out

    def _patched(self, name: str, change) -> bytes:
        """A JSON file of the source with a change, in the file's own style."""
        path = self.dataset.folder / name
        text = read_text(path)
        try:
            tree = json.loads(text)
            changed = copy.deepcopy(tree)
            change(changed)
        except (ValueError, TypeError, AttributeError) as error:
            raise SourceError(
                f"cannot be extended ({error})", file=path, todo="check the source"
            ) from None
        return dump_like(text, tree, changed).encode()

    def _info(self, tree: dict, made: int) -> None:
        features = tree["features"]
        node = {
            "dtype": "video",
            "shape": [*self.size, 3],
            "names": ["height", "width", "channels"],
            "info": self._video_info(),
        }
        if self.replaces:
            features[self.stream_key] = node
        else:
            # After the cameras that are there: training code takes them in this order.
            at = [n for n, old in enumerate(features.values()) if old["dtype"] in _CAMERAS]
            rows = list(features.items())
            rows.insert(at[-1] + 1 if at else len(rows), (self.stream_key, node))
            tree["features"] = dict(rows)
            if isinstance(tree.get("total_videos"), int):
                tree["total_videos"] += made
        if tree.get("video_path") is None:
            tree["video_path"] = self.dataset.meta.video_path

    def _video_info(self) -> dict:
        """As lerobot describes a video, and that this one is synthetic."""
        fps = self.dataset.meta.fps
        return {
            "video.height": self.size[0],
            "video.width": self.size[1],
            "video.codec": CODEC,
            "video.pix_fmt": PIX_FMT,
            "video.is_depth_map": False,
            "video.fps": int(fps) if int(fps) == fps else fps,
            "video.channels": 3,
            "has_audio": False,
            "video.synthetic": True,
            "video.description": self.description,
        }

    def _modality(self, tree: dict) -> None:
        video = tree.setdefault("video", {})
        row = {"original_key": self.stream_key}
        if row not in video.values():
            short = self.stream_key.rsplit(".", 1)[-1]
            name = next(n for n in (short, _DEFAULT, f"{short}_synthetic") if n not in video)
            video[name] = row

    def _episodes_stats(self, stats: dict[int, Stats]) -> str:
        """meta/episodes_stats.jsonl with the new stream at the end of each line's "stats"."""
        out = []
        for line in read_text(self.dataset.folder / EPISODES_STATS).splitlines(keepends=True):
            tree = json.loads(line) if line.strip() else {}
            mine = stats.get(tree.get("episode_index", -1))
            if mine is None or not isinstance(tree.get("stats"), dict):
                out.append(line)
                continue
            known = {name: mine[name] for name in NAMES}
            had = self.stream_key in tree["stats"]
            changed = copy.deepcopy(tree)
            changed["stats"][self.stream_key] = known
            addition = f', "{self.stream_key}": {json.dumps(known)}}}}}'
            body, end = line.rstrip(), line[len(line.rstrip()) :]
            spliced = body.removesuffix("}}") + addition
            if had or not tree["stats"] or not _says(spliced, changed):
                spliced = dump_like(body, tree, changed)
            out.append(spliced + end)
        return "".join(out)

    def _columns(self, table: pa.Table, facts: dict[int, dict]) -> dict[str, list]:
        """The new columns for some rows of meta/episodes: name -> values."""
        rows = [facts[episode] for episode in table["episode_index"].to_pylist()]
        prefix = f"videos/{self.stream_key}/"
        out = {
            prefix + name: [row["place"][number] for row in rows]
            for number, name in enumerate(
                ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            )
        }
        for name in (*NAMES, *QUANTILES):
            values = [row["stats"][name] if row["stats"] else None for row in rows]
            out[f"stats/{self.stream_key}/{name}"] = values
        return out


_CAMERAS = ("video", "image")


class _ShardWork:
    """The new files of one shard while they are written."""

    def __init__(self, copy: Copy, shard: Shard, staged: Path):
        self._copy, self._shard, self._staged = copy, shard, staged
        self._meta = copy.dataset.meta
        self._video: VideoWriter | None = None
        self._flags: list[pa.Table] = []
        self._table: pq.ParquetWriter | None = None
        self._together = self._meta.major == 3
        self.facts: list[dict] = []

    def add(self, raw: LeRobotRecord, stream: WristStream) -> None:
        """Write an episode's stream and note what the metadata must say of it."""
        place = self._copy.place(self._shard) if self._together else None
        if self._video is None:
            row, key = raw.row, self._copy.stream_key
            assert row is not None
            name = self._meta.filled(self._meta.video_path, row, place, key)
            self._video = VideoWriter(self._staged / name, self._copy.size, self._meta.fps)
        first, stats = self._video.frames, ImageStats()
        for step in range(raw.length):
            frame = np.asarray(stream.frames[step])
            stats.add(frame, again=self._video.add(frame))
        self._note(raw, [first, self._video.frames], stats.result())
        self._keep_flags(raw, stream)
        if not self._together:
            self._video.close()
            self._video = None

    def skip(self, raw: LeRobotRecord) -> None:
        """Note an episode that has no frames."""
        now = self._video.frames if self._video else 0
        self._note(raw, [now, now], None)

    def close(self) -> None:
        """Finish what is open."""
        if self._video is not None:
            self._video.close()
        self._write_flags()
        if self._table is not None:
            self._table.close()

    def _note(self, raw: LeRobotRecord, span: list[int], stats: Stats | None) -> None:
        place = None
        if self._together:
            at = self._copy.place(self._shard)
            place = [at.chunk, at.file, *(frame / self._meta.fps for frame in span)]
        self.facts.append({"episode": raw.episode, "place": place, "stats": stats})

    def _keep_flags(self, raw: LeRobotRecord, stream: WristStream) -> None:
        columns: dict[str, Any] = {
            "episode_index": np.full(raw.length, raw.episode, np.int64),
            "frame_index": np.arange(raw.length, dtype=np.int64),
        }
        columns |= {FLAG + name: np.asarray(values) for name, values in flags_of(stream).items()}
        self._flags.append(pa.table(columns))
        if sum(table.num_rows for table in self._flags) >= _GATHER:
            self._write_flags()

    def _write_flags(self) -> None:
        if not self._flags:
            return
        table = pa.concat_tables(self._flags)
        if self._table is None:
            path = self._staged / flags_file(self._shard.split, self._shard.index)
            path.parent.mkdir(parents=True, exist_ok=True)
            said = {"stream": self._copy.stream_key, "description": self._copy.description}
            self._table = pq.ParquetWriter(path, table.schema.with_metadata(said))
        self._table.write_table(table)
        self._flags = []


def _says(text: str, tree: dict) -> bool:
    try:
        return json.loads(text) == tree
    except ValueError:
        return False
