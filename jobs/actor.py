"""What runs in a Ray actor: it opens the source itself, holds one augmenter, makes whole shards.

Only names go in and small results come out; pixels stay in the process. Nothing in this module
needs Ray, so an actor is an ordinary object in tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..readers.dataset import Shard
from ..readers.errors import SourceError
from ..readers.files import present_all
from .ahead import Ahead
from .board import MAKING, READING, WRITING, Board, Lost
from .checksums import staged_sha256
from .failures import is_disk
from .mirror import release_all
from .storage import FolderStorage, ObjectStorage
from .streams import StreamStore
from .trial import try_alone
from .work import Made, RecordMaker, Work, staging_folder

if TYPE_CHECKING:
    from .takeover import Takeover


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one shard, or of one record that was tried alone.

    Attributes:
        kind: "done"; "tried" (a record alone, which did no harm); "harm" (it ended its process);
            "disk" (no space, no rights); "refused" (the shard as a whole cannot be made, and
            trying again is of no use); "lost" (the attempt was taken away meanwhile); "failed"
            (anything else; may be tried again).
        entry: for "done", what the ledger records:
            {"result": ..., "sha256": {file: hash}, "quality": [...]}.
        text: else, what happened; trace: the traceback of "failed".
        facts: on the process, as of `ShardActor.about`; "batch" where memory made it smaller;
            "takeover", for people, of a shard that was published before.
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
        self.store = work.open_storage()
        self.maker: RecordMaker | None = None

    def about(self) -> dict:
        """Facts on the process: its id, and which heavy libraries it has loaded."""
        facts: dict[str, Any] = {
            "pid": os.getpid(),
            "tensorflow": "tensorflow" in sys.modules,
            "torch": "torch" in sys.modules,
        }
        if self.maker is not None and self.maker.batch is not None:
            facts["batch"] = self.maker.batch
        return facts

    def _open(self) -> RecordMaker:
        """Open all that is needed, once; here and not in __init__, where an error says less."""
        if self.maker is None:
            self.dataset = self.work.open_source()
            self.copy = self.work.open_copy(self.dataset)
            self.shards = {
                (split.name, shard.index): shard
                for split in self.copy.splits
                for shard in split.shards
            }
            self.maker = RecordMaker(self.work, self.work.open_source())
        return self.maker

    def make_shard(
        self,
        split: str,
        index: int,
        staged: str,
        streams: str | None = None,
        given_up: dict[int, str] | None = None,
        again: bool = False,
    ) -> Outcome:
        """Make one shard in a new folder `staged`, fsynced; publishing it is the driver's part.

        Args:
            staged: below OUT, granted by the driver (see `board`).
            streams: below OUT, where finished episodes are kept until the shard is.
            given_up: records not to be tried any more, and why.
            again: the shard may have been published before; what is good of it is taken over.
        """
        with self._outcomes(split, index, staged) as said, Board(self.store, staged) as board:
            try:
                maker = self._open()
                maker.load()
            except ValueError as error:  # SourceError, and weights that do not fit
                said.append(Outcome("refused", text=str(error)))
                return said[0]
            shard = self.shards[split, index]
            present_all(self.dataset.shard_files(shard))
            taken = self._takeover(shard) if again else None
            attempt = _Attempt(self, board, self._kept(streams, board), given_up or {}, taken)
            with staging_folder(self.store, staged) as folder, self._faults(staged):
                with Ahead(attempt.read, attempt.make, lambda raw: _wanted(raw, shard)) as ahead:
                    self.copy.ahead = ahead.records
                    attempt.ahead = ahead
                    result = ahead.run(lambda: self.copy.write_shard(shard, folder, attempt))
                board.at(WRITING, None)
                sums = staged_sha256(folder, result.files)
                if isinstance(self.store, ObjectStorage):
                    self._send(self.store, board, folder, staged)
            release_all(below=self.dataset.folder / "meta")  # LeRobot's tables are read every time
            entry = {"result": dataclasses.asdict(result), "quality": attempt.quality}
            entry = self._without_paths(entry) | {"sha256": sums}
            facts = self.about() | attempt.told()
            said.append(Outcome("done", entry=entry, facts=facts))
        return said[0]

    def try_record(self, split: str, index: int, record: int, staged: str, streams: str) -> Outcome:
        """Make one record in a child process and keep it; see `failures` for why."""
        with self._outcomes(split, index, staged) as said, Board(self.store, staged) as board:
            if self.maker is not None:
                self.maker.unload()
            begun = lambda: board.at(MAKING, record)
            found = try_alone(self.work, split, index, record, streams, begun, board.look)
            if found.harm:
                said.append(Outcome("harm", text=found.harm))
            elif found.error is not None:
                raise found.error
            else:
                board.made()
                said.append(Outcome("tried", facts=self.about()))
        return said[0]

    @contextlib.contextmanager
    def _outcomes(self, split: str, index: int, staged: str) -> Iterator[list[Outcome]]:
        """Turn what is raised into an Outcome, left in the list that this yields."""
        said: list[Outcome] = []
        try:
            yield said
        except Lost:
            if isinstance(self.store, ObjectStorage):
                with contextlib.suppress(OSError):
                    self.store.remove_folder(staged)
            said[:] = [Outcome("lost")]
        except SourceError as error:
            said[:] = [Outcome("refused", text=str(error))]
        except OSError as error:
            text = f"{split} shard {index}: {error}"
            said[:] = [Outcome("disk" if is_disk(error) else "failed", text=text, trace=_trace())]
        except Exception as error:
            text = f"{split} shard {index}: {type(error).__name__}: {error}"
            said[:] = [Outcome("failed", text=text, trace=_trace())]

    def _kept(self, streams: str | None, board: Board) -> StreamStore | None:
        if not streams:
            return None

        def granted() -> bool:
            with contextlib.suppress(Lost):
                board.look()
            return not board.lost

        return StreamStore(self.store, streams, granted)

    def _takeover(self, shard: Shard) -> Takeover:
        from .takeover import Takeover

        assert self.maker is not None
        return Takeover(self.work, self.copy, self.maker, shard)

    @property
    def keeps(self) -> bool:
        """Whether finished episodes are kept: what costs nothing to make is not worth it."""
        assert self.maker is not None
        return getattr(self.maker.augmenter.recipe, "generator", "") != "constant"

    @staticmethod
    def _send(store: ObjectStorage, board: Board, folder: Path, staged: str) -> None:
        board.look()
        store.put_folder(folder, staged)
        board.look()  # what was sent after the grant was gone is removed again: see `_outcomes`

    @contextlib.contextmanager
    def _faults(self, staged: str) -> Iterator[None]:
        """Have a crash of this process leave its trace where the driver finds it."""
        if not isinstance(self.store, FolderStorage):
            yield
            return
        path = self.store.path(f"{staged}.fault")
        before = faulthandler.is_enabled()
        with open(path, "wb") as file:
            faulthandler.enable(file, all_threads=False)
            try:
                yield
            finally:
                faulthandler.disable()
                if before and sys.__stderr__ is not None:
                    # Not to a stderr that was replaced and is no file.
                    with contextlib.suppress(OSError, ValueError):
                        faulthandler.enable(sys.__stderr__, all_threads=False)
                path.unlink(missing_ok=True)

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


class _Attempt:
    """What a writer asks for the streams of a shard; see DatasetCopy.write_shard."""

    ahead: Ahead

    def __init__(
        self,
        actor: ShardActor,
        board: Board,
        store: StreamStore | None,
        given_up: dict[int, str],
        takeover: Takeover | None = None,
    ):
        self.actor, self.board, self.store, self.given_up = actor, board, store, given_up
        self.takeover, self.asked, self.taken = takeover, 0, 0
        self.quality: list[dict] = []
        assert actor.maker is not None
        self.maker = actor.maker

    def __call__(self, raw):
        self.board.at(WRITING, None)
        made: Made = self.ahead.result(raw)
        if made.quality is not None:
            self.quality.append(made.quality)
        self.asked, self.taken = self.asked + 1, self.taken + made.taken
        self.board.made(kept=made.kept)
        self.board.at(WRITING, raw.record.index)
        return made.stream

    def read(self, raw):
        """Decode a record, unless it will not be needed; or take its stream over instead."""
        index = raw.record.index
        if index in self.given_up or (self.store is not None and self.store.has(index)):
            return None
        self.board.at(READING, index)
        try:
            if self.takeover is not None and (taken := self.takeover.load(raw)) is not None:
                return taken
            return self.maker.read(raw)
        finally:
            self.board.at(READING, None)

    def make(self, raw, episode) -> Made:
        """One record: given up, taken over, kept from an earlier attempt, or made now."""
        index = raw.record.index
        if isinstance(episode, Made):
            return episode
        if index in self.given_up:
            return Made(
                SourceError(
                    self.given_up[index],
                    file=self.actor.dataset.file_of(raw.record),
                    record=index,
                    todo="look at this record; `wristaugment retry` tries it again",
                )
            )
        if self.store is not None and self.store.has(index):
            kept = self.store.load(index)
            if kept is not None:
                return Made(*kept, kept=True)
            episode = self.maker.read(raw)
        self.board.at(MAKING, index)
        made = self.maker.make(raw, episode)
        if self.store is not None and self.actor.keeps and made.quality is not None:
            assert not isinstance(made.stream, SourceError)
            self.store.keep(index, made.stream, made.quality)
        self.board.at(MAKING, None)
        return made

    def told(self) -> dict[str, str]:
        """What the driver is to say of a takeover."""
        if self.takeover is None or not self.takeover.published:
            return {}
        if self.takeover.refused:
            return {"takeover": f"makes every episode again: {self.takeover.refused}"}
        count = f"{self.taken} episode{'s' if self.taken != 1 else ''}"
        return {"takeover": f"takes over {count}, makes {self.asked - self.taken}"}


def _wanted(raw, shard) -> bool:
    """Whether a record's stream will be asked for: it can be read, and is not beyond the limit."""
    return raw.error is None and raw.record.index < shard.records


def _trace() -> str:
    return traceback.format_exc(limit=20)
