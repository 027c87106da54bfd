"""What an actor must know of a job, and how it makes one record."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..readers.episode import Episode, WristStream, begun
from ..readers.errors import SourceError
from ..readers.frames import Frames
from ..writers.copy import CONFIDENCE, VALID, flags_of
from .failures import is_disk, is_out_of_memory
from .remote import is_url
from .storage import FolderStorage, Storage, open_storage

_EARLY = 256 << 20  # bytes of pictures of an episode that are decoded ahead; more stay on the disk


@dataclasses.dataclass(frozen=True)
class Work:
    """What an actor must know of the job. All of it is small and picklable.

    Attributes:
        data_dir, out: paths, or URLs of an object store.
        data_key: what `mirror.pinned` says of data_dir where it is a URL, so that all actors read
            what was there when the job was planned.
        size: (height, width) of the new stream. made: at which the recipe makes it; frames are
            resized where the two differ.
        mount: rows of the matrix end effector <- camera that --mount names.
        min_ssim: frames of which less is expected are marked not valid; None marks none.
        settings: of the recipe, as in --set. device: "cpu" or "cuda".
    """

    data_dir: str
    dataset: str | None
    anchor_keys: tuple[str, ...] | None
    out: str
    splits: tuple[str, ...] | None
    limit: int | None
    recipe: str
    settings: tuple[str, ...]
    weights: str | None
    device: str
    wrist_key: str
    size: tuple[int, int]
    made: tuple[int, int]
    pose: str
    geometry: str
    seed: int
    replace: bool
    description: str
    data_key: str | None = None
    mount: tuple[tuple[float, ...], ...] | None = None
    min_ssim: float | None = None

    def open_source(self):
        """The dataset, opened by path; one in an object store, through its mirror here."""
        from ..readers import open_dataset
        from .mirror import localise

        path = localise(self.data_dir, key=self.data_key)
        return open_dataset(path, self.dataset, anchor_keys=self.anchor_keys)

    def open_copy(self, dataset):
        """The writer of the copy; opening it writes nothing."""
        from ..writers.formats import open_copy
        from .mirror import scratch_folder

        # A copy in an object store is staged elsewhere: no file of it will ever lie at this path.
        out = Path(self.out) if not is_url(self.out) else scratch_folder() / "no-copy"
        return open_copy(
            dataset,
            out,
            wrist_key=self.wrist_key,
            size=self.size,
            description=self.description,
            replace=self.replace,
            splits=self.splits,
            limit=self.limit,
        )

    def open_storage(self) -> Storage:
        """Where the copy goes."""
        return open_storage(self.out)

    def refuse_small_gpu(self, views: int) -> None:
        """SourceError where a GPU of this process cannot hold the recipe with so many anchors."""
        from ..augment.recipe import change_recipe, get_recipe
        from ..augment.weights import locate
        from ..augment.weights_memory import refuse_small_gpu

        recipe = change_recipe(get_recipe(self.recipe), self.settings)
        located = locate(recipe, Path(self.weights) if self.weights else None)
        refuse_small_gpu(recipe, located, self.made, views)

    def open_augmenter(self):
        """The recipe, with its weights on the device."""
        from ..augment.recipe import change_recipe, get_recipe

        recipe = change_recipe(get_recipe(self.recipe), self.settings)
        recipe = dataclasses.replace(recipe, wrist_size=self.made)
        if recipe.generator == "constant":  # torch takes seconds to load, and this needs none
            from ..augment.constant import ConstantAugmenter

            return ConstantAugmenter(recipe)
        from ..augment.pipeline import make_augmenter

        weights = Path(self.weights) if self.weights else None
        mount = None if self.mount is None else np.array(self.mount)
        return make_augmenter(recipe, device=self.device, weights=weights, mount=mount)

    def read_episode(self, dataset, raw) -> Episode:
        """The episode of one record, with all that the recipe may want of it.

        Raises:
            SourceError: the record cannot be read.
        """
        from ..augment.choices import split_geometry
        from ..augment.recipe import get_recipe

        depth = split_geometry(self.geometry)[0] != "predicted"
        recipe = get_recipe(self.recipe)
        if not recipe.guided:
            return dataset.episode(raw, depth=depth)
        return begun(dataset.episode(raw, wrist=recorded_wrist(dataset, recipe), depth=depth))

    def make_stream(self, dataset, augmenter, raw, episode: Episode | None = None) -> WristStream:
        """The wrist stream of one record, at the size that is written.

        Args:
            episode: of the record, if it has been read already.

        Raises:
            SourceError: the record cannot be read, or cannot be made.
        """
        from ..augment.seeds import record_seed

        episode = episode or self.read_episode(dataset, raw)
        seed = record_seed(self.seed, raw.record)
        stream = augmenter(episode, seed=seed, pose=self.pose, geometry=self.geometry)
        if self.made != self.size:
            from ..augment.assess import resize_frames

            stream.frames = resize_frames(stream.frames, self.size)
        if self.min_ssim is not None and stream.confidence is not None:
            from ..augment.confidence import apply_threshold

            apply_threshold(stream, self.min_ssim)
        return stream


def recorded_wrist(dataset, recipe) -> str:
    """The key of the recorded wrist view that a recipe continues; SourceError for none."""
    wrist = dataset.profile.wrist
    if wrist is None or wrist.key not in [stream.key for stream in dataset.streams()]:
        raise SourceError(
            f"recipe {recipe.name!r} continues the first recorded wrist frame, and this dataset "
            "has no recorded wrist view",
            file=dataset.folder,
            key="--recipe",
            todo="use nano, paper or official; to compare, `wristaugment evaluate` takes it",
        )
    return wrist.key


@contextlib.contextmanager
def staging_folder(store: Storage, staged: str) -> Iterator[Path]:
    """The empty folder of this machine in which an attempt's files are made.

    In OUT itself where that is a folder; else one in scratch space that is gone afterwards.
    """
    if isinstance(store, FolderStorage):
        path = store.path(staged)
        path.mkdir()
        yield path
        return
    from .mirror import scratch_folder

    scratch = scratch_folder()
    for path in scratch.glob("shard-*"):  # of processes that were killed
        with contextlib.suppress(OSError), _held(path):
            shutil.rmtree(path, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="shard-", dir=scratch) as folder, _held(Path(folder)):
        yield Path(folder)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a folder of scratch space for as long as this process lives; OSError if another does."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@dataclasses.dataclass
class Made:
    """What came of one record: a stream and what is said of it, or why there is none.

    Attributes:
        kept: whether it is from an earlier attempt. taken: whether that is the published shard.
    """

    stream: WristStream | SourceError
    quality: dict | None = None
    kept: bool = False
    taken: bool = False


class RecordMaker:
    """Makes one record after another with one augmenter.

    Reading (`read`) and making (`make`) may be called from a thread each.

    Args:
        work: the job.
        dataset: of its own, since what readers keep at hand is not made for several threads.
    """

    def __init__(self, work: Work, dataset):
        self.work, self.dataset = work, dataset
        self.augmenter: Any = None
        self.batch: int | None = None  # where memory forced a smaller one
        self.reading = threading.Lock()  # held while anything is read from `dataset`

    def load(self) -> None:
        """Load the recipe's networks, if they are not loaded."""
        if self.augmenter is not None:
            return
        before_loading(self.work.device)
        if self.work.device == "cuda":
            self.work.refuse_small_gpu(len(self.dataset.profile.anchors))
        self.augmenter = self.work.open_augmenter()
        after_loading(self.work.device)

    def unload(self) -> None:
        """Give the networks' memory back, for a process beside this one."""
        self.augmenter = None
        if torch := sys.modules.get("torch"):
            import gc

            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def read(self, raw) -> Episode | Exception:
        """The episode of a record, its pictures decoded unless they are very many; or the error."""
        try:
            with self.reading:
                episode = self.work.read_episode(self.dataset, raw)
                views = [view for view in episode.anchors if isinstance(view.frames, Frames)]
                total = sum(int(np.prod(view.frames.shape)) for view in views)
                for view in views:
                    frames = view.frames
                    view.frames = np.asarray(frames) if total <= _EARLY else self._shared(frames)
            return episode
        except Exception as error:
            return error

    def _shared(self, frames: Any) -> Frames:
        """The same frames, read only while nobody else reads from the dataset."""

        def read(steps: np.ndarray) -> np.ndarray:
            with self.reading:
                return frames[steps]

        return Frames(frames.shape, read, frames.dtype)

    def make(self, raw, episode: Episode | Exception | None = None) -> Made:
        """The wrist stream of one record.

        Args:
            episode: what `read` gave of it.

        Raises:
            Exception: what is the machine's fault, or memory's, and not the record's.
        """
        wrong: Exception | None = None
        for turn in range(2):  # the second time for what was the moment's fault
            try:
                if isinstance(episode, Exception):
                    raise episode
                stream = self.work.make_stream(self.dataset, self.augmenter, raw, episode)
                return Made(stream, quality(raw.record, stream))
            except SourceError as error:
                return Made(error)
            except Exception as error:
                if is_disk(error):
                    raise
                if is_out_of_memory(error):
                    if self._smaller_batch():
                        return self.make(raw, episode)
                    raise  # the machine's fault; a mark would make the bytes depend on it
                wrong = error
            if turn == 0:
                episode = self.read(raw)
        # Addresses of objects differ from run to run, and this text goes into the ledger.
        text = re.sub(r"0x[0-9a-fA-F]+", "0x...", f"{type(wrong).__name__}: {wrong}")
        return Made(
            SourceError(
                f"the recipe failed with {text}",
                file=self.dataset.file_of(raw.record),
                record=raw.record.index,
                todo="report it, with this record, as a fault of the recipe",
            )
        )

    def _smaller_batch(self) -> bool:
        """Halve the timesteps that go through the network at once; False where it is one."""
        batch = getattr(self.augmenter, "batch", 1)
        if batch <= 1:
            return False
        self.augmenter.batch = self.batch = batch // 2
        if torch := sys.modules.get("torch"):
            torch.cuda.empty_cache()
        return True


# Of what `quality` says, what the stream that was written tells again.
TOLD = ("record", "frames", "valid", "below", "unmade", "confidence")


def quality(record, stream: WristStream) -> dict:
    """What the manifest says of one episode; rounded, since it is for people and comparisons.

    "confidence" is the mean of the frames that have one, None where none has; "below" counts the
    frames that are not valid for what is expected of them, "unmade" those that could not be made
    (of which nothing is expected, where anything is of any).
    """
    frames = len(stream.valid)
    flags = flags_of(stream)
    known = np.isfinite(flags[CONFIDENCE])
    mean = float(flags[CONFIDENCE][known].mean(dtype=np.float64)) if known.any() else None
    return {
        "record": str(record),
        "frames": frames,
        "valid": round(float(stream.valid.mean()), 4) if frames else 0.0,
        "below": int((known & ~flags[VALID]).sum()),
        "unmade": int((~(flags[CONFIDENCE] > 0) & ~flags[VALID]).sum()),
        "confidence": None if mean is None else round(mean, 4),
        "coverage": round(float(stream.coverage.mean()), 4) if frames else 0.0,
        "notes": {key: str(value) for key, value in stream.notes.items()},
    }


def before_loading(device: str) -> None:
    """Fix what would let the machine decide the bytes and is read when libraries load.

    The number of threads changes the order of float sums, and so the last bits of every picture;
    one thread an actor is the same on every machine, and actors fill the cores.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def after_loading(device: str) -> None:
    """The same for what is set once the libraries are there."""
    torch = sys.modules.get("torch")  # not every recipe needs it
    if torch is None:
        return
    from ..models.allocator import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    if device == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
