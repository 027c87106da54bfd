"""The comparison of an RLDS copy with its source, record by record.

A record of the copy begins with the source's own bytes, so that damage is told from the crc of
every record, and what was added is decoded apart from the rest.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from ..readers.files import present
from .findings import BLACK, NOT_BLACK, Findings, unmade, wrong_confidence
from .mirror import release_all


class Comparison(Findings):
    """An RLDS copy beside its source; works without a ledger too, if the copy is complete.

    Args:
        out: the root of the copy, or its dataset or version folder.
        source: a TFDS root, a dataset folder or a version folder.
        bar: show a progress bar on stderr.
        damaged: files of the ledger that are not as they were written (see Checksums), and are
            not believed.

    Raises:
        SourceError: they cannot be compared at all.
    """

    def __init__(self, out: Path, source: Path, bar: bool, damaged: Collection[str] = ()):
        from ..readers.errors import SourceError
        from ..readers.rlds import open_plain
        from ..readers.tfds_folder import find_folder, read_info
        from ..writers.copy import chosen_splits
        from .ledger import Ledger

        super().__init__(bar, damaged)
        self.ledger = Ledger(out)
        plan = self.ledger.plan()
        self.plan = plan or {}
        self.folder = out / plan["place"] if plan else find_folder(out, ())
        names = (self.plan.get("place", "").split("/")[0], self.plan.get("dataset", ""))
        if not plan:
            # A copy without its ledger: all must be there, since nothing says otherwise.
            names = (self.folder.parent.name, read_info(self.folder).name)
        self.source = open_plain(find_folder(source, tuple(dict.fromkeys(filter(None, names)))))
        if plan and (self.source.name, self.source.version) != (plan["dataset"], plan["version"]):
            raise SourceError(
                f"holds {self.source.name} {self.source.version}, but the copy was made of "
                f"{plan['dataset']} {plan['version']}",
                file=self.source.folder,
                key="--source",
                todo="give the --data-dir that the copy was made of",
            )
        self.splits = chosen_splits(self.source, self.plan.get("splits"), self.plan.get("episodes"))
        if plan and not self.ledger.complete():
            self.problem(
                self.ledger.manifest_path, "the job is not complete", todo="run it again to go on"
            )
        self.names: tuple[str, ...] | None = None
        try:
            self.copy = open_plain(self.folder)
        except SourceError as error:
            # An unfinished copy: its other files are still looked at.
            self.problem(error.file or self.folder, error.found, todo="run the job again to go on")
            return
        if self.copy.name != self.source.name:
            raise SourceError(
                f"is a copy of {self.copy.name}, not of {self.source.name}",
                file=self.folder,
                todo="give --source the dataset that it was made of",
            )

    def report(self) -> dict:
        """Compare; returns what verify.verify returns."""
        if hasattr(self, "copy"):
            self.names = self._features()
            self._info()
            if self.names is not None:
                self._shards(self.names)
        self._others()
        return {
            "copy": str(self.folder),
            "source": str(self.source.folder),
            "wrist_key": self.names[0] if self.names else None,
            **self.counts,
            "problems": self.problems,
        }

    def _features(self) -> tuple[str, ...] | None:
        """Compare the feature trees; returns the names of the new features, the picture first."""
        from ..writers.copy import FLAGS

        old, new = self.source.features, self.copy.features
        name = self.plan.get("wrist_key") or self._new_picture()
        if name is None:
            self.problem(new.path, "has no new camera")
            return None
        name = name.removeprefix("steps/").removeprefix("observation/")
        names = (name, *FLAGS)
        for key in names:
            kind = "Image" if key == name else "Scalar"
            leaf = new.leaves.get(self._flat(key))
            if leaf is None or leaf.kind != kind:
                self.problem(new.path, "is not declared as it must be", key=self._flat(key))
                return None
        for flat in old.leaves.keys() | new.leaves.keys():
            own = flat in map(self._flat, names)
            if not own and old.leaves.get(flat) != new.leaves.get(flat):
                state = "missing" if flat not in new.leaves else "not as in the source"
                self.problem(new.path, f"this feature is {state}", key=flat)
                return names
        trees = [json.dumps(features.without(names)) for features in (old, new)]
        if trees[0] != trees[1]:
            self.problem(new.path, "differs from the source's apart from the new features")
        return names

    def _flat(self, name: str) -> str:
        """The key in a record of a feature beside the cameras."""
        return f"steps/{self.source.features.home}{name}"

    def _new_picture(self) -> str | None:
        """The one camera that the copy has and the source has not."""
        old = self.source.features.leaves
        new = [leaf for leaf in self.copy.features.pictures() if leaf.flat not in old]
        return new[0].key if len(new) == 1 else None

    def _info(self) -> None:
        """Compare dataset_info.json apart from lengths and sizes, which follow from the shards."""
        names = {split.name for split in self.splits}
        trees = []
        for info, wanted in ((self.source.info, names), (self.copy.info, None)):
            tree = json.loads(info.text)
            rows = [row for row in tree["splits"] if wanted is None or row["name"] in wanted]
            tree["splits"] = [
                {key: row[key] for key in row if key not in ("shardLengths", "numBytes")}
                for row in rows
            ]
            trees.append(json.dumps(tree))
        if trees[0] != trees[1]:
            found = "differs from the source's apart from lengths and sizes"
            missing = names - {split.name for split in self.copy.splits}
            if missing:
                found = f"lacks the splits {', '.join(sorted(missing))}"
            self.problem(self.copy.info.path, found)

    def _shards(self, names: tuple[str, ...]) -> None:
        from tqdm import tqdm

        have = {split.name: split for split in self.copy.splits}
        total = sum(split.records for split in self.splits)
        with tqdm(total=total, unit="record", disable=not self.bar, dynamic_ncols=True) as bar:
            for split in self.splits:
                if split.name not in have:
                    continue
                found = have[split.name].shards
                if len(found) != len(split.shards):
                    self.problem(
                        self.copy.info.path,
                        f"declares {len(found)} shards of {split.name}, not {len(split.shards)}",
                    )
                    continue
                sizes = []
                for old, new in zip(split.shards, found, strict=True):
                    sizes.append(self._shard(old, new, names, bar))
                    release_all(below=self.ledger.folder)
                rows = json.loads(self.copy.info.text)["splits"]
                declared = next(row for row in rows if row["name"] == split.name)
                whole = [size for size in sizes if size is not None]
                # A damaged shard has been named already, and its size says nothing.
                if len(whole) == len(sizes) and int(declared.get("numBytes", -1)) != sum(whole):
                    self.problem(
                        self.copy.info.path,
                        f"declares {declared.get('numBytes')} bytes of {split.name}, "
                        f"the shards hold {sum(whole)}",
                        key="numBytes",
                    )

    def _shard(self, old, new, names, bar) -> int | None:
        """Compare one shard; returns the sum of the copy's payloads, or None where it is damaged.

        Args:
            old: the source's Shard with `records` cut to what was to be copied.
            new: the copy's.
            names: of the two new features.
        """
        from ..readers.errors import SourceError
        from ..readers.tfrecord import footer, header

        before = len(self.problems)
        entry = self._entry(old, new)
        bad = {item["record"]: item for item in (entry or {}).get("bad", [])}
        digest, size, count = hashlib.sha256(), 0, 0
        try:
            frames = self.copy.info.read_frames(new.path)
            full = next(s for s in self._source_split(old.split) if s.index == old.index)
            for raw in self.source.records(full):
                index = raw.record.index
                if index >= old.records:
                    break
                bar.update(1)
                try:
                    steps = self.source.steps(raw)
                except SourceError as error:
                    steps, reason = None, error
                if self._is_left_out(old, entry, bad, index, steps):
                    missing = min(max(raw.missing, 1), old.records - index)
                    self.counts["left_out"] += missing
                    bar.update(missing - 1)
                    continue
                frame = next(frames, None)
                if frame is None or frame.last:
                    error = frame.error if frame else None
                    what = error.found if error else "the file ends early"
                    self.problem(
                        new.path, f"{what}: record {index} of the source is missing", record=count
                    )
                    return None
                count += 1
                if frame.payload is None:
                    found = frame.error.found if frame.error else "cannot be read"
                    self.problem(new.path, found, record=frame.index)
                    continue
                size += len(frame.payload)
                if steps is None:
                    self.problem(old.path, reason.found, record=index, todo="restore the source")
                    continue
                added = self._record(new.path, frame, raw, names, steps, bad.get(index))
                digest.update(header(len(frame.payload)) + added + footer(frame.crc))
            if next(frames, None) is not None:
                self.problem(new.path, "holds more than the source's records", record=count)
        except SourceError as error:  # the copy's file cannot be opened
            self.problem(new.path, error.found)
            return None
        if new.records != count:
            self.problem(
                self.copy.info.path,
                f"declares {new.records} records of {new.path.name}, which holds {count}",
                key="shardLengths",
            )
        clean = len(self.problems) == before
        if clean and entry is not None and digest.hexdigest() != entry["facts"]["added_sha256"]:
            self.problem(new.path, "is not what the ledger recorded (the SHA-256 of the new bytes)")
        return size if clean else None

    def _source_split(self, name: str):
        return next(split.shards for split in self.source.splits if split.name == name)

    def _entry(self, old, new) -> dict | None:
        """What the ledger recorded of a shard; None where there is no ledger at all."""
        if not self.plan:
            return None
        entry = self.recorded(self.ledger, old.split, old.index)
        if entry is None:
            self.problem(
                new.path, "the ledger has no record of this shard", todo="run the job again"
            )
            return None
        return entry["result"]

    def _is_left_out(self, old, entry, bad: dict, index: int, steps: int | None) -> bool:
        """Whether record `index` is not in the copy, as the ledger says."""
        from ..writers.copy import LEFT_OUT

        if entry is None:
            return steps is None
        listed = any(
            item["what"] == LEFT_OUT and item["record"] <= index < item["record"] + item["count"]
            for item in bad.values()
        )
        if listed and steps is not None:
            self.problem(old.path, "was left out of the copy, but can be read now", record=index)
        return listed

    def _record(
        self, file: Path, frame, raw, names: tuple[str, ...], steps: int, bad: dict | None
    ) -> bytes:
        """Compare one record of the copy (`frame`) with the source's (`raw`).

        Returns:
            The bytes that were added to it; none where the old ones are not intact.
        """
        from ..writers.splice import without

        self.counts["records"] += 1
        flat = [self._flat(name) for name in names]
        kept = raw.payload
        if any(key in self.source.features.leaves for key in flat):  # replaced in the copy
            kept = without(self.source.index(raw), flat)
        if not frame.payload.startswith(kept):
            key = _changed_key(kept, frame.payload)
            self.problem(file, "is not as in the source", record=frame.index, key=key)
            return b""
        added = frame.payload[len(kept) :]
        self._new_frames(file, frame, added, names, steps, bad)
        return added

    def _new_frames(
        self, file: Path, frame, added: bytes, names: tuple[str, ...], steps: int, bad: dict | None
    ) -> None:
        """Decode what was added to one record."""
        from ..readers.errors import SourceError
        from ..readers.example import ExampleIndex
        from ..readers.pictures import decode_stream

        flat = [self._flat(name) for name in names]
        try:
            extra = ExampleIndex(added)
            if sorted(extra) != sorted(flat):
                found = f"adds the keys {sorted(extra)}, not {sorted(flat)}"
                self.problem(file, found, record=frame.index)
                return
            blobs, valid = extra.blobs(flat[0]), extra.numbers(flat[1])
            confidence = extra.numbers(flat[2])
        except ValueError as error:
            self.problem(file, str(error), record=frame.index)
            return
        for key, found in zip(flat, (len(blobs), len(valid), len(confidence)), strict=True):
            if found != steps:
                self.problem(file, f"{found} for {steps} steps", record=frame.index, key=key)
                return
        if found := wrong_confidence(confidence, valid):
            self.problem(file, found, record=frame.index, key=flat[2])
            return
        leaf = self.copy.features.leaves[flat[0]]
        try:
            where = {"file": file, "record": frame.index, "key": flat[0]}
            frames = decode_stream(blobs, leaf.shape, **where)
        except SourceError as error:
            self.problem(file, error.found, record=frame.index, key=flat[0])
            return
        self.counts["frames"] += steps
        self.counts["valid_frames"] += int(valid.sum())
        if bad is not None:
            self.counts["placeholders"] += 1
            if valid.any():
                self.problem(
                    file, "is listed as not made, but is marked as valid", record=frame.index
                )
        dark = unmade(valid, confidence)
        for step in range(steps):
            if dark[step] and frames[step].max(initial=0) > BLACK:
                self.problem(
                    file,
                    f"step {step}: {NOT_BLACK}",
                    record=frame.index,
                    key=flat[0],
                )
                return

    def _others(self) -> None:
        """Every other file of the version folder, both ways."""
        from ..readers.tfds_folder import FEATURES, INFO

        expected = {self.folder / FEATURES, self.folder / INFO}
        patched = {self.source.folder / FEATURES, self.source.folder / INFO}
        for path in self.source.other_files():
            if path in patched:
                continue
            target = self.folder / path.relative_to(self.source.folder)
            expected.add(target)
            if not target.is_file():
                self.problem(target, "is missing", todo="run the job again to go on")
            elif not filecmp.cmp(present(path), present(target), shallow=False):
                self.problem(target, "is not as in the source")
        for split in self.splits:
            count = len(split.shards)
            for shard in split.shards:
                name = self.source.info.shard_name(split.name, shard.index, count)
                expected.add(self.folder / name)
                if not (self.folder / name).is_file():
                    self.problem(
                        self.folder / name, "is missing", todo="run the job again to go on"
                    )
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path not in expected:
                self.problem(path, "does not belong to the copy", todo="remove it")


def _changed_key(old: bytes, new: bytes) -> str | None:
    """The first key whose value is not the same in two serialized Examples, or None."""
    from ..readers.example import ExampleIndex

    try:
        before, after = ExampleIndex(old), ExampleIndex(new)
        for key in before:
            if key not in after or before.value(key) != after.value(key):
                return key
    except ValueError:
        pass
    return None
