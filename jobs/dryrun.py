"""`wristaugment run --dry-run`: what would be done and what it would cost. Writes nothing.

The recipe is timed on one real episode, so the figures are this machine's; only the number of
frames is a guess, from the first episodes of the first shard.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import islice

from ..readers.errors import SourceError
from .output import COMPLETE, write_json
from .progress import duration, size

_SAMPLE = 8  # episodes whose length is looked at


def estimate(job, args, say) -> int:
    """Print (and write as --json) the estimate; returns the exit code.

    Raises:
        SourceError: none of the first episodes can be augmented.
    """
    names = {task: job.ledger.shard_name(task.split, task.index) for task in job.tasks}
    done = job.ledger.done(names.values(), job.plan["place"])
    pending = [task for task in job.tasks if names[task] not in done]
    episodes = sum(task.episodes for task in pending)
    facts = {
        "dataset": job.plan["dataset"],
        "version": job.plan["version"],
        "out": job.work.out,
        "folder": job.folder,
        "splits": job.plan["splits"],
        "shards": len(job.tasks),
        "shards_pending": len(pending),
        "episodes": sum(task.episodes for task in job.tasks),
        "episodes_pending": episodes,
        "anchors": [camera.key for camera in job.dataset.profile.anchors],
        "recipe": job.recipe.name,
        "device": job.work.device,
        "wrist_key": job.plan["wrist_key"],
        "stream": job.copy.stream_key,
        "wrist_size": list(job.work.size),
        "resumes": job.ledger.plan() is not None,
    }
    if pending:
        facts |= _cost(job, args, pending, episodes)
    write_json(args.json, facts)
    for line in _lines(facts):
        say(line)
    return COMPLETE


def _cost(job, args, pending, episodes: int) -> dict:
    """Frames, time and size of the pending work, from one timed episode."""
    shard = job.shards[pending[0].split, pending[0].index]
    raws, lengths, wrong = [], [], None
    for raw in islice(job.dataset.records(shard), _SAMPLE):
        try:
            lengths.append(job.dataset.steps(raw))
        except SourceError as error:
            wrong = error
            continue
        raws.append(raw) if not raws else None  # one payload is enough to hold
    if not raws:
        raise wrong or SourceError("has no record", file=shard.path, todo="check the source")
    frames = round(episodes * sum(lengths) / len(lengths))
    os.environ["OMP_NUM_THREADS"] = "1"  # as an actor has it; read when torch is loaded
    if torch := sys.modules.get("torch"):  # the weights have been checked with it
        torch.set_num_threads(1)
    began = time.perf_counter()
    augmenter = job.work.open_augmenter()
    loading = time.perf_counter() - began
    began = time.perf_counter()
    stream = job.work.make_stream(job.dataset, augmenter, raws[0])
    per_frame = (time.perf_counter() - began) / len(stream.frames)
    jpeg = _jpeg_bytes(stream.frames)
    room = len(os.sched_getaffinity(0))
    if job.work.device == "cuda":
        from .cluster import local_gpus

        room = local_gpus()
    actors = max(1, min(args.num_actors or room, len(pending)))
    shards = (job.shards[task.split, task.index] for task in pending)
    files = {path for shard in shards for path in job.dataset.shard_files(shard)}
    source = sum(path.stat().st_size for path in files | set(job.dataset.other_files()))
    return {
        "frames_pending": frames,
        "pose": stream.notes.get("pose", ""),
        "notes": {key: str(value) for key, value in stream.notes.items()},
        "seconds_per_frame": round(per_frame, 4),
        "loading_seconds": round(loading, 1),
        "actors": actors,
        "seconds": round(loading + frames * per_frame / actors, 1),
        "bytes": round(source + frames * jpeg),
    }


def _jpeg_bytes(frames) -> float:
    """Bytes that a new frame takes, the mean over a few."""
    from ..writers.splice import encode_jpeg

    some = frames[:: max(1, len(frames) // 8)]
    return sum(len(encode_jpeg(frame, 95)) for frame in some) / len(some)


def _lines(facts: dict) -> list[str]:
    height, width = facts["wrist_size"]
    lines = [
        f"dataset: {facts['dataset']} {facts['version']}, splits {', '.join(facts['splits'])}: "
        f"{facts['episodes']} episodes in {facts['shards']} shards",
        f"anchors: {', '.join(facts['anchors'])}",
        f"new stream: {facts['stream']}, {height}x{width}, "
        f"recipe {facts['recipe']} on {facts['device']}",
        f"copy: {facts['folder']}",
    ]
    if not facts["shards_pending"]:
        return [*lines, "nothing is left to do", "dry run: nothing was written"]
    if facts["shards_pending"] < facts["shards"]:
        lines.append(f"left to do: {facts['shards_pending']} shards")
    return [
        *lines,
        f"made as the first episode would be: "
        f"{', '.join(f'{key} {value}' for key, value in facts['notes'].items())}",
        f"cost: about {facts['frames_pending']} frames at {facts['seconds_per_frame']:.3g} s; "
        f"{duration(facts['seconds'])} with {facts['actors']} at a time",
        f"disk: about {size(facts['bytes'])}",
        "dry run: nothing was written",
    ]
