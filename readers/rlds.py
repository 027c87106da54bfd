"""RLDS datasets as tensorflow-datasets stores them, without TensorFlow, a record at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from .dataset import Dataset, RawRecord, Shard, Stream
from .episode import Episode, Record, View
from .errors import SourceError
from .example import ExampleIndex
from .features import Features, Leaf
from .files import present
from .frames import Frames
from .pictures import decode_stream, no_picture
from .poses import decode_poses
from .profiles import Camera, Numbers, Profile, find_profile, known, resolve
from .tfds_folder import FEATURES, Info, find_folder, has_datasets, read_info


@dataclass(frozen=True)
class RldsRecord(RawRecord):
    """A record as it lies in its shard.

    Attributes:
        payload: the serialized Example, or None where it cannot be read.
        crc: the plain crc32c of `payload`.
    """

    payload: bytes | None = None
    crc: int = 0

    @cached_property
    def example(self) -> ExampleIndex:
        """Where each key of the payload is; found once.

        Raises:
            ValueError: there is no payload, or it is not an Example.
        """
        if self.payload is None:
            raise self.error or ValueError("the record has no payload")
        return ExampleIndex(self.payload)


class RldsDataset(Dataset):
    """An opened dataset: what it declares, and its records.

    Attributes:
        info: what dataset_info.json says.
        features: the feature tree.
        length_key: the flat key that tells an episode's length.
    """

    format = "rlds"

    def __init__(self, folder: Path, info: Info, features: Features, profile: Profile, place: Path):
        self.folder, self.info, self.features = folder, info, features
        self.profile, self.place = profile, place
        self.name, self.version, self.splits = info.name, info.version, info.splits
        self.length_key = features.length_key()

    def records(self, shard: Shard) -> Iterator[RldsRecord]:
        """The records of one shard, in order; raises nothing for damage, but says so in `error`.

        A record with a flipped byte comes without payload and the walk goes on. Where the rest of
        the shard cannot be reached, one last RawRecord stands for all that is missing.
        """
        seen = 0
        try:
            for frame in self.info.read_frames(shard.path):
                place = Record(shard.split, shard.index, frame.index)
                if frame.index >= shard.records:
                    yield _lost(
                        place,
                        shard,
                        0,
                        f"more follows after the {shard.records} records that dataset_info.json "
                        "declares",
                    )
                    return
                if frame.last:
                    found = frame.error.found if frame.error else "the file ends early"
                    yield _lost(place, shard, shard.records - frame.index, found)
                    return
                seen += 1
                missing = 1 if frame.error else 0
                yield RldsRecord(place, frame.error, missing, frame.payload, frame.crc)
        except SourceError as error:  # the file is not there, or may not be read
            place = Record(shard.split, shard.index, seen)
            yield RldsRecord(place, error, shard.records - seen)
            return
        if seen < shard.records:
            place = Record(shard.split, shard.index, seen)
            yield _lost(place, shard, shard.records - seen, "the file ends early")

    def index(self, raw: RldsRecord) -> ExampleIndex:
        """The keys of a record.

        Raises:
            SourceError: the record cannot be read, or is no tf.train.Example.
        """
        try:
            return raw.example
        except SourceError:
            raise
        except ValueError as error:
            raise self.error(raw, str(error), None, "fetch this shard again") from None

    def steps(self, raw: RldsRecord, index: ExampleIndex | None = None) -> int:
        """The number of steps of an episode, found without parsing anything else of it.

        Raises:
            SourceError: the record cannot be read or lacks the key that tells it.
        """
        index = index or self.index(raw)
        return self._get(raw, index, self.length_key, index.count)

    def streams(self) -> list[Stream]:
        """Every key with one picture per step."""
        out = []
        for leaf in self.features.leaves.values():
            if leaf.is_image and leaf.per_step and not leaf.nested:
                height, width, channels = (*leaf.shape, None, None, None)[:3]
                encoding = leaf.encoding or "jpeg or png"
                depth = not leaf.is_picture
                shape = (height, width, channels)
                out.append(Stream(leaf.key, shape, leaf.dtype or "uint8", encoding, depth))
        return out

    def frames(self, raw: RldsRecord, key: str) -> Frames:
        """The pictures of one stream, decoded when indexed."""
        leaf = self.features.find(key)
        if leaf is None or not leaf.is_image:
            raise self.error(raw, "there is no such stream", key, "name one of the streams")
        index = self.index(raw)
        blobs = self._get(raw, index, leaf.flat, index.blobs)
        where = {"file": self.file_of(raw.record), "record": raw.record.index, "key": leaf.key}
        first = decode_stream(blobs[:1], leaf.shape, **where)

        def read(steps: np.ndarray) -> np.ndarray:
            return decode_stream([blobs[step] for step in steps], leaf.shape, **where)

        return Frames((len(blobs), *first.shape[1:]), read, first.dtype)

    def flags(self, raw: RldsRecord, name: str) -> np.ndarray | None:
        """[T] numbers at steps/observation/`name`; None where the dataset has none."""
        leaf = self.features.find(self.features.home + name)
        if leaf is None:
            return None
        index = self.index(raw)
        return self._get(raw, index, leaf.flat, index.numbers)

    def content(self, raw: RldsRecord) -> Iterator[tuple[str, object]]:
        """Each key with its serialized values."""
        index = self.index(raw)
        for key in index:
            yield key, index.value(key)

    def identity(self) -> str:
        """The SHA-256 of dataset_info.json, which has the bytes of every split."""
        return hashlib.sha256(present(self.info.path).read_bytes()).hexdigest()

    def shard_files(self, shard: Shard) -> list[Path]:
        """The shard is a file."""
        return [shard.path]

    def episode(self, raw: RldsRecord, *, wrist: str | None = None, depth: bool = False) -> Episode:
        """Decode what the pipeline needs of one record.

        Args:
            raw: as it comes from `records`.
            wrist: the key of a recorded wrist stream to decode too.
            depth: decode depth streams into `View.depth` where the dataset has them.

        Returns:
            An Episode; `anchors` is empty if no camera carries a picture (see `dropped`).

        Raises:
            SourceError: the record cannot be read, lacks a declared key, or a picture is damaged.
        """
        index = self.index(raw)
        length = self.steps(raw, index)
        anchors: list[View] = []
        dropped: dict[str, str] = {}
        for camera in self.profile.anchors:
            view = self._view(raw, index, camera, length, depth)
            if isinstance(view, str):
                dropped[camera.key] = view
            else:
                anchors.append(view)
        eef = self._eef(raw, index, length)
        hand = self.profile.wrist
        mount = K = size = None
        if hand:
            in_base = self._camera_in_base(raw, index, hand)
            if eef is not None and in_base is not None:
                mount = np.linalg.inv(eef[0]) @ in_base
            K = self._intrinsics(raw, index, hand)
            size = self._stored_size(hand, anchors) if K is not None else None
        episode = Episode(
            raw.record,
            anchors,
            language=self._language(raw, index),
            eef_pose=eef,
            gripper=self._gripper(raw, index, length),
            wrist_mount=mount,
            wrist_K=K,
            wrist_size=size,
            dropped=dropped,
        )
        if wrist is not None:
            episode.wrist = self._recorded_wrist(raw, index, wrist, length, depth, episode)
        return episode

    def _recorded_wrist(self, raw, index, key, length, depth, episode) -> View:
        leaf = self.features.find(key)
        if leaf is None or not leaf.is_picture:
            found = ", ".join(leaf.key for leaf in self.features.pictures())
            raise SourceError(
                f"there is no such wrist stream; the dataset's image keys are: {found}",
                file=self.features.path,
                key=key,
                todo="name one of them",
            )
        hand = self.profile.wrist
        camera = hand if hand and hand.key == leaf.key else Camera(leaf.key)
        view = self._view(raw, index, camera, length, depth)
        if isinstance(view, str):
            raise self.error(raw, f"the wrist stream is {view}", leaf.key, "leave this episode out")
        if camera is hand:
            view.pose = episode.measured_wrist_pose()
        return view

    def _view(self, raw, index, camera: Camera, length: int, depth: bool) -> View | str:
        """The decoded stream of `camera`, or why it carries no picture."""
        leaf = self._leaf(camera.key)
        blobs = self._get(raw, index, leaf.flat, index.blobs)
        self._same_length(raw, leaf, len(blobs), length)
        if not any(blobs):
            return "empty from start to end"  # the padding of some training code
        where = {"file": self.file_of(raw.record), "record": raw.record.index}
        frames = decode_stream(blobs, leaf.shape, key=leaf.key, **where)
        if reason := no_picture(frames):
            return reason
        in_base = self._camera_in_base(raw, index, camera)
        view = View(
            leaf.key,
            frames,
            K=self._intrinsics(raw, index, camera),
            pose=None if in_base is None else np.linalg.inv(in_base),
        )
        if depth and camera.depth:
            leaf = self._leaf(camera.depth)
            blobs = self._get(raw, index, leaf.flat, index.blobs)
            self._same_length(raw, leaf, len(blobs), length)
            units = decode_stream(blobs, leaf.shape, key=leaf.key, **where)
            view.depth = units.astype(np.float32) * np.float32(camera.depth_unit)
        return view

    def _camera_in_base(self, raw, index, camera: Camera) -> np.ndarray | None:
        """[4, 4] base <- camera, or None where it is not known (missing, zeros, not finite)."""
        values = self._episode_numbers(raw, index, camera.extrinsics, 6)
        return None if values is None else pose_matrix(values[None])[0]

    def _intrinsics(self, raw, index, camera: Camera) -> np.ndarray | None:
        values = self._episode_numbers(raw, index, camera.intrinsics, 4)
        if values is None or (values[:2] <= 0).any():
            return None
        fx, fy, cx, cy = values
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)

    def _episode_numbers(self, raw, index, key: str | None, count: int) -> np.ndarray | None:
        if key is None:
            return None
        values = self._numbers(raw, index, self._leaf(key)).astype(np.float64)
        if len(values) != count:
            raise self.error(
                raw, f"holds {len(values)} numbers, not {count}", key, "check the source"
            )
        return values if np.isfinite(values).all() and values.any() else None

    def _step_numbers(self, raw, index, numbers: Numbers | None, length: int) -> np.ndarray | None:
        """[T, count] float64, or None where the dataset has none or they are not finite."""
        if numbers is None or not length:
            return None
        leaf = self._leaf(numbers.key)
        values = self._numbers(raw, index, leaf)
        if len(values) % length or len(values) // length < numbers.start + numbers.count:
            raise self.error(
                raw, f"holds {len(values)} numbers for {length} steps", leaf.key, "check the source"
            )
        table = values.reshape(length, -1)[:, numbers.start : numbers.start + numbers.count]
        return table.astype(np.float64) if np.isfinite(table).all() else None

    def _eef(self, raw, index, length: int) -> np.ndarray | None:
        eef = self.profile.eef
        table = self._step_numbers(raw, index, eef, length)
        if eef is None or table is None:
            return None
        if eef.rotation is not None:
            rotation = self._step_numbers(raw, index, eef.rotation, length)
            if rotation is None:
                return None
            table = np.hstack((table, rotation))
        return decode_poses(table, eef.encoding)

    def _gripper(self, raw, index, length: int) -> np.ndarray | None:
        numbers = self.profile.gripper
        table = self._step_numbers(raw, index, numbers, length)
        if numbers is None or table is None:
            return None
        reach = numbers.highest - numbers.lowest
        closed = np.clip((table[:, 0] - numbers.lowest) / reach, 0.0, 1.0)
        return 1.0 - closed if numbers.inverted else closed

    def _language(self, raw, index) -> str:
        for key in self.profile.language:
            flat = self._leaf(key).flat
            if flat in index:
                for text in self._get(raw, index, flat, index.texts):
                    if text := text.strip():
                        return text
        return ""

    def _stored_size(self, camera: Camera, anchors: Sequence[View]) -> tuple[int, int] | None:
        """(height, width) of the pictures that a camera's intrinsics belong to."""
        leaf = self.features.find(camera.key)
        if leaf and len(leaf.shape) == 3 and leaf.shape[0] and leaf.shape[1]:
            return leaf.shape[0], leaf.shape[1]
        return anchors[0].size if anchors else None

    def _leaf(self, key: str) -> Leaf:
        leaf = self.features.find(key)
        assert leaf is not None, f"the profile was resolved, yet {key!r} is not in features.json"
        return leaf

    def _numbers(self, raw, index: ExampleIndex, leaf: Leaf) -> np.ndarray:
        read = lambda flat: index.numbers(flat, leaf.packing)
        return self._get(raw, index, leaf.flat, read)

    def _get(self, raw, index: ExampleIndex, flat: str, read):
        try:
            return read(flat)
        except KeyError:
            found = "the record lacks this key, which features.json declares"
        except ValueError as error:
            found = str(error)
        raise self.error(raw, found, flat, "check the source")

    def _same_length(self, raw, leaf: Leaf, found: int, length: int) -> None:
        if found != length:
            raise self.error(
                raw, f"holds {found} pictures for {length} steps", leaf.key, "check the source"
            )


def recognise(path: Path) -> bool:
    """Whether a version folder, a dataset folder or a root of datasets lies at `path`."""
    return path.is_dir() and has_datasets(path)


def open_source(
    path: Path,
    dataset: str | None = None,
    *,
    anchor_keys: Sequence[str] | None = None,
    plain: bool = False,
) -> RldsDataset:
    """Open a dataset; see readers.formats.open_dataset.

    Raises:
        SourceError: as `open_rlds`, or several datasets are here and none is named.
    """
    if dataset is not None and not plain:
        return open_rlds(path, dataset, anchor_keys=anchor_keys)
    profile = find_profile(dataset) if dataset else None
    folder = find_folder(path, tuple(filter(None, (dataset, *(profile.names if profile else ())))))
    if plain:
        return open_plain(folder)
    info = read_info(folder)
    known_as = [name for name in (info.name, *folder.parts[-3:-1]) if find_profile(name)]
    return open_rlds(folder, known_as[0] if known_as else info.name, anchor_keys=anchor_keys)


def open_rlds(
    data_dir: Path | str, dataset: str, *, anchor_keys: Sequence[str] | None = None
) -> RldsDataset:
    """Open a dataset.

    Args:
        data_dir: a TFDS root, a dataset folder or a version folder.
        dataset: a profile's name or alias, or (with `anchor_keys`) the dataset's own name.
        anchor_keys: the third-person cameras, where the profile knows none or others are wanted.

    Raises:
        SourceError: there is no such dataset, it is another one than `dataset`, a declared file
            is damaged, or a camera key does not exist.
    """
    profile = find_profile(dataset)
    names = dict.fromkeys((dataset, *(profile.names if profile else ())))
    folder = find_folder(Path(data_dir), tuple(names))
    info = read_info(folder)
    place = _place(folder, info, names)
    if info.name not in names and place.parts[0] not in names:
        raise SourceError(
            f"the folder holds {info.name!r} {info.version}, not {dataset!r}",
            file=folder,
            todo=f"say --dataset {info.name}, or give another folder (known profiles: {known()})",
        )
    features = Features(folder / FEATURES)
    resolved = resolve(dataset, features, anchor_keys, folder)
    return RldsDataset(folder, info, features, resolved, place)


def open_plain(folder: Path) -> RldsDataset:
    """A version folder as it is, whatever its name, with a profile that knows no camera.

    For looking at datasets and comparing them; `episode` decodes no anchors.

    Raises:
        SourceError: a declared file is damaged.
    """
    info = read_info(folder)
    features = Features(folder / FEATURES)
    named = find_profile(info.name)
    place = _place(folder, info, named.names if named else (info.name,))
    return RldsDataset(folder, info, features, Profile(info.name), place)


def pose_matrix(values: np.ndarray) -> np.ndarray:
    """Poses from DROID's encoding.

    Args:
        values: [N, 6] xyz in metres, then extrinsic "xyz" euler angles in radians.

    Returns:
        [N, 4, 4] float64, reference <- body.
    """
    out = np.tile(np.eye(4), (len(values), 1, 1))
    out[:, :3, :3] = Rotation.from_euler("xyz", values[:, 3:6]).as_matrix()
    out[:, :3, 3] = values[:, :3]
    return out


def _place(folder: Path, info: Info, names) -> Path:
    """<name>/[<config>/]<version>, with the folder's own name where users load it by that.

    DROID lies in droid/1.0.1, though its builder is called droid_101, and training code asks for
    `droid`; a copy must answer to the same name.
    """
    parts = [info.config, info.version] if info.config else [info.version]
    resolved = folder.resolve()
    own = resolved.parts[-len(parts) - 1 : -1] if len(resolved.parts) > len(parts) else ()
    tail = resolved.parts[-len(parts) :]
    name = own[0] if own and tail == tuple(parts) and own[0] in names else info.name
    return Path(name, *parts)


def _lost(place: Record, shard: Shard, missing: int, found: str) -> RldsRecord:
    if missing > 1:
        found += f", so {missing} of the {shard.records} declared records cannot be reached"
    error = SourceError(found, file=shard.path, record=place.index, todo="fetch this shard again")
    return RldsRecord(place, error, missing)
