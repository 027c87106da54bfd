"""The end of a job: metadata, card, checksums and manifest of a copy whose shards are all there."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..readers.files import file_sha256
from ..writers.copy import LEFT_OUT, PLACEHOLDER, ShardResult
from .checksums import NAME, collect, known
from .expected import Expected
from .ledger import Ledger, crash_point, record_of, to_json
from .storage import FOLDER, ObjectStorage

_AT_ONCE = 8  # files sent to an object store at a time
_RECORDS = '"records": []'


def finish(job, entries: list[dict]) -> dict:
    """Write what a copy has beside its shards, the manifest last; returns the summary.

    Everything is written again when a finished job is run again: it is cheap, gives the same bytes,
    and repairs what was lost. What is said of each episode is read a shard at a time, since there
    may be a million.

    Args:
        job: the Job. entries: what the ledger has of every shard, in the order of the source.
    """
    from .snippets import card

    ledger, place = job.ledger, job.plan["place"]
    # What is made now and what the ledger has must not differ, not even in the order of keys.
    entries = [json.loads(to_json(record_of(entry))) for entry in entries]
    names = [ledger.shard_name(e["result"]["split"], e["result"]["shard"]) for e in entries]
    crash_point("finishing")
    results = [ShardResult(**entry["result"]) for entry in entries]
    before = known(ledger.store, place)
    if isinstance(ledger.store, ObjectStorage):
        copied = _send_rest(job, ledger.store, results, before)
    else:
        copied = job.copy.finish(results, before)
    crash_point("finished")
    hashes: dict[str, str] = {}
    totals = _totals(ledger, names, entries, hashes, job.plan.get("min_ssim"))
    text = card(
        job.plan, {**totals, "bad": len(totals["bad"])}, job.copy.stream_key, job.copy.replaces
    )
    ledger.write(f"{FOLDER}/README.md", text)
    facts = {key: value for key, value in job.plan.items() if key != "source"}
    checks = {entry_name(entry): _check(entry["result"]) for entry in entries}
    facts = {**facts, "synthetic": True, **totals, "checks": checks}
    manifest = ledger.stage("manifest.json")
    hashes["manifest.json"] = ledger.write_pieces(manifest, _manifest(ledger, names, facts))
    hashes["README.md"] = hashlib.sha256(text.encode()).hexdigest()
    hashes["plan.json"] = hashlib.sha256(to_json(job.plan).encode()).hexdigest()
    ledger.write(NAME, collect(place, copied, hashes))
    ledger.finish(manifest)
    return totals


def _totals(
    ledger: Ledger,
    names: list[str],
    entries: list[dict],
    hashes: dict[str, str],
    least: float | None,
) -> dict:
    """The summary's figures; the hashes of the ledger's own files on the way.

    Args:
        least: the job's --min-ssim.
    """
    frames, valid, coverage = 0, 0.0, 0.0
    expected = Expected(least)
    for name, entry in zip(names, entries, strict=True):
        told = ledger.quality(name)
        expected.add(told)
        frames += sum(item["frames"] for item in told)
        valid += sum(item["valid"] * item["frames"] for item in told)
        coverage += sum(item["coverage"] * item["frames"] for item in told)
        for folder, value in (("shards", entry), ("quality", told)):
            text = to_json(value)
            hashes[f"{folder}/{name}.json"] = hashlib.sha256(text.encode()).hexdigest()
    bad = [item for entry in entries for item in entry["result"]["bad"]]
    return {
        "episodes": sum(entry["result"]["records"] for entry in entries),
        "lost_episodes": sum(item["count"] for item in bad if item["what"] == LEFT_OUT),
        "blank_episodes": sum(item["count"] for item in bad if item["what"] == PLACEHOLDER),
        "shards": len(entries),
        "frames": frames,
        "valid_frames": round(valid),
        "coverage": round(coverage / frames, 4) if frames else 0.0,
        **expected.facts(),
        "bytes": sum(size for e in entries for size, _ in e["result"]["files"].values()),
        "bad": bad,
    }


def _manifest(ledger: Ledger, names: list[str], facts: dict) -> Iterator[str]:
    """The text of the manifest in pieces: `facts`, and under "records" what is said of episodes."""
    head, _, tail = to_json({**facts, "records": []}).partition(_RECORDS)
    yield head + _RECORDS[:-1]
    first = True
    for name in names:
        for item in ledger.quality(name):
            # As `to_json` would indent it there.
            text = textwrap.indent(to_json(item).rstrip("\n"), "  ")
            yield ("\n" if first else ",\n") + text
            first = False
    yield ("]" if first else "\n ]") + tail


def _send_rest(
    job, store: ObjectStorage, results: list[ShardResult], before: dict[str, str]
) -> dict[str, str]:
    """What DatasetCopy.finish does, into an object store; returns {path: SHA-256} likewise."""
    from ..readers.files import present
    from .mirror import mirror_of

    place = job.plan["place"]
    below = "" if place == "." else f"{place}/"
    plain, patched = job.copy.rest(results)
    there = store.files("" if place == "." else place)
    mirror = mirror_of(job.dataset.folder)

    def send(item: tuple[str, Path]) -> tuple[str, str]:
        name, path = item
        if name in before and there.get(name) == path.stat().st_size:
            return name, before[name]  # sent, and checked, by an earlier run
        sha256 = file_sha256(present(path))
        store.put(path, f"{below}{name}")
        if mirror is not None and path.stat().st_size > 1 << 20:
            mirror.release([path])
        return name, sha256

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        hashes = dict(pool.map(send, plain.items()))
    for name, data in patched.items():
        store.note(f"{below}{name}", data)
        hashes[name] = hashlib.sha256(data).hexdigest()
    return hashes


def _check(result: dict) -> str:
    """What tells one shard's new bytes from others: the format's own hash, or one of its files'."""
    own = result["facts"].get("added_sha256")
    return own or hashlib.sha256(json.dumps(result["files"], sort_keys=True).encode()).hexdigest()


def entry_name(entry: dict) -> str:
    """The shard that a ledger entry is of, as in "train/3"."""
    return f"{entry['result']['split']}/{entry['result']['shard']}"
