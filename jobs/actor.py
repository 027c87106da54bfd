"""What runs in a Ray actor: it opens the source itself, holds one augmenter, makes whole shards.

Only names go in and small results come out; pixels stay in the process. Nothing in this module
needs Ray, so an actor is an ordinary object in tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from ..readers.errors import SourceError
from .streams import StreamStore

# What another attempt or another record cannot help with: the disk or the rights.
DISK_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO}
)


@dataclasses.dataclass(frozen=True)
class Work:
    """What an actor must know of the job. All of it is small and picklable.

    Attributes:
        size: (height, width) of the new stream. made: at which the recipe makes it; frames are
            resized where the two differ.
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

    def open_source(self):
        """The dataset, opened by path."""
        from ..readers import open_dataset

        return open_dataset(Path(self.data_dir), self.dataset, anchor_keys=self.anchor_keys)

    def open_copy(self, dataset):
        """The writer of the copy; opening it writes nothing."""
        from ..writers.formats import open_copy

        return open_copy(
            dataset,
            Path(self.out),
            wrist_key=self.wrist_key,
            size=self.size,
            description=self.description,
            replace=self.replace,
            splits=self.splits,
            limit=self.limit,
        )

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
        return make_augmenter(recipe, device=self.device, weights=weights)

    def make_stream(self, dataset, augmenter, raw):
        """The wrist stream of one record, at the size that is written.

        Raises:
            SourceError: the record cannot be read, or cannot be made.
        """
        from ..augment.seeds import record_seed

        episode = dataset.episode(raw, depth=self.geometry != "predicted")
        seed = record_seed(self.seed, raw.record)
        stream = augmenter(episode, seed=seed, pose=self.pose, geometry=self.geometry)
        if self.made != self.size:
            from ..augment.assess import resize_frames

            stream.frames = resize_frames(stream.frames, self.size)
        return stream


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one shard.

    Attributes:
        kind: "done"; "disk" (no space, no rights); "refused" (the shard as a whole cannot be made,
            and trying again is of no use); "failed" (anything else; may be tried again).
        entry: for "done", what the ledger records: {"result": ..., "quality": [...]}.
        text: else, what happened; trace: the traceback of "failed".
        facts: on the process, as of `ShardActor.about`.
    """

    kind: str
    entry: dict | None = None
    text: str = ""
    trace: str = ""
    facts: dict = dataclasses.field(default_factory=dict)


class ShardActor:
    """Makes shards one after the other with one augmenter."""

    def __init__(self, work: Work):
        self.work = work
        self.augmenter: Any = None

    def about(self) -> dict:
        """Facts on the process: its id, and which heavy libraries it has loaded."""
        return {
            "pid": os.getpid(),
            "tensorflow": "tensorflow" in sys.modules,
            "torch": "torch" in sys.modules,
        }

    def _open(self) -> None:
        """Load all that is needed, once; here and not in __init__, where an error says less."""
        if self.augmenter is not None:
            return
        _before_loading(self.work.device)
        self.dataset = self.work.open_source()
        self.copy = self.work.open_copy(self.dataset)
        self.shards = {
            (split.name, shard.index): shard for split in self.copy.splits for shard in split.shards
        }
        if self.work.device == "cuda":
            self.work.refuse_small_gpu(len(self.dataset.profile.anchors))
        self.augmenter = self.work.open_augmenter()
        _after_loading(self.work.device)

    def make_shard(
        self,
        split: str,
        index: int,
        staged: str,
        counter: str,
        streams: str | None = None,
        given_up: dict[int, str] | None = None,
    ) -> Outcome:
        """Make one shard in a new folder `staged`, fsynced; publishing it is the driver's part.

        Args:
            counter: a file that grows by a byte with each episode, for the progress display; the
                record that is being made stands in the file of that name with `.at` behind it.
            streams: folder where finished episodes are kept until the shard is (see StreamStore).
            given_up: records not to be tried any more, and why.
        """
        quality: list[dict] = []
        try:
            try:
                self._open()
            except ValueError as error:  # SourceError, and weights that do not fit
                return Outcome("refused", text=str(error))
            # What costs nothing to make is not worth keeping.
            keeps = streams and getattr(self.augmenter.recipe, "generator", "") != "constant"
            store = StreamStore(Path(streams)) if streams and keeps else None
            with open(counter, "ab", buffering=0) as count, open(f"{counter}.at", "wb") as at:

                def make(raw):
                    os.pwrite(at.fileno(), b"%-12d" % raw.record.index, 0)
                    stream = self._made(raw, quality, store, given_up or {})
                    os.pwrite(at.fileno(), b"%-12d" % -1, 0)
                    # Progress is not worth a shard.
                    with contextlib.suppress(OSError):
                        count.write(b".")
                    return stream

                os.mkdir(staged)
                result = self.copy.write_shard(self.shards[split, index], Path(staged), make)
            entry = {"result": dataclasses.asdict(result), "quality": quality}
            return Outcome("done", entry=self._without_paths(entry), facts=self.about())
        except SourceError as error:
            return Outcome("refused", text=str(error))
        except OSError as error:
            kind = "disk" if error.errno in DISK_ERRNOS else "failed"
            return Outcome(kind, text=f"{split} shard {index}: {error}", trace=_trace())
        except Exception as error:
            text = f"{split} shard {index}: {type(error).__name__}: {error}"
            return Outcome("failed", text=text, trace=_trace())
        finally:
            for name in (counter, f"{counter}.at"):
                with contextlib.suppress(OSError):
                    os.unlink(name)

    def _made(self, raw, quality: list[dict], store: StreamStore | None, given_up: dict[int, str]):
        """The stream of one record: given up, kept from an earlier attempt, or made now."""
        index = raw.record.index
        if index in given_up:
            return SourceError(
                given_up[index],
                file=self.dataset.file_of(raw.record),
                record=index,
                todo="look at this record; `wristaugment retry` tries it again",
            )
        if store is not None and (kept := store.load(index)) is not None:
            quality.append(kept[1])
            return kept[0]
        stream = self._make(raw, quality)
        if store is not None and not isinstance(stream, SourceError):
            store.keep(index, stream, quality[-1])
        return stream

    def _make(self, raw, quality: list[dict]):
        """The wrist stream of one record, or the SourceError that says why there is none."""
        work, wrong = self.work, None
        for _ in range(2):  # the second time for what was the moment's fault and not the record's
            try:
                stream = work.make_stream(self.dataset, self.augmenter, raw)
                quality.append(_quality(raw.record, stream))
                return stream
            except SourceError as error:
                return error
            except Exception as error:
                if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
                    raise
                if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
                    if self._smaller_batch():
                        return self._make(raw, quality)
                    raise  # the machine's fault; a mark would make the bytes depend on it
                wrong = error
        # Addresses of objects differ from run to run, and this text goes into the ledger.
        text = re.sub(r"0x[0-9a-fA-F]+", "0x...", f"{type(wrong).__name__}: {wrong}")
        return SourceError(
            f"the recipe failed with {text}",
            file=self.shards[raw.record.split, raw.record.shard].path,
            record=raw.record.index,
            todo="report it, with this record, as a fault of the recipe",
        )

    def _smaller_batch(self) -> bool:
        """Halve the timesteps that go through the network at once; False where it is one."""
        batch = getattr(self.augmenter, "batch", 1)
        if batch <= 1:
            return False
        self.augmenter.batch = batch // 2
        if torch := sys.modules.get("torch"):
            torch.cuda.empty_cache()
        return True

    def _without_paths(self, value: Any) -> Any:
        """`value` without the source's folder in its texts: the copy must not name places."""
        if isinstance(value, dict):
            return {key: self._without_paths(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._without_paths(item) for item in value]
        if isinstance(value, Path):
            return value.name
        if isinstance(value, str):
            return value.replace(f"{self.dataset.root}{os.sep}", "")
        return value


def _quality(record, stream) -> dict:
    """What the manifest says of one episode; rounded, since it is for people and comparisons."""
    frames = len(stream.valid)
    return {
        "record": str(record),
        "frames": frames,
        "valid": round(float(stream.valid.mean()), 4) if frames else 0.0,
        "coverage": round(float(stream.coverage.mean()), 4) if frames else 0.0,
        "notes": {key: str(value) for key, value in stream.notes.items()},
    }


def _before_loading(device: str) -> None:
    """Fix what would let the machine decide the bytes and is read when libraries load.

    The number of threads changes the order of float sums, and so the last bits of every picture;
    one thread an actor is the same on every machine, and actors fill the cores.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _after_loading(device: str) -> None:
    torch = sys.modules.get("torch")  # not every recipe needs it
    if torch is None:
        return
    from ..models.allocator import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    if device == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


def _trace() -> str:
    return traceback.format_exc(limit=20)
