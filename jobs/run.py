"""`wristaugment run`: the main job. A dataset in, the same dataset with a wrist view out."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
from shlex import quote

from .interrupt import EXIT_CODE, Interrupted, arm, armed, check
from .output import COMPLETE, QUARANTINED, DiskError, JobError, bad_lines, speaker, write_json

_EPILOG = """\
examples:
  what would be done, what it costs; writes nothing:
    wristaugment run --dataset droid --data-dir /data --out /data/droid-wrist --dry-run
  the first 20 episodes of the training split, on two actors:
    wristaugment run --dataset droid --data-dir /data --out out --split train --episodes 20 \\
        --num-actors 2
  an Open-X set that has no profile of its own; its cameras are named:
    wristaugment run --dataset my_set --data-dir /data/my_set/0.1.0 --out out \\
        --anchor-keys image_0,image_1
  on a Ray cluster that is up already (--data-dir and --out on a file system all machines see):
    wristaugment run --dataset droid --data-dir /nfs/data --out /nfs/out --address auto

Killed, crashed, interrupted? Run the same command again: finished shards are kept, and the dataset
comes out byte for byte as if nothing had happened. `wristaugment status OUT` says how far it is.

exit codes: 0 complete; 1 internal fault; 2 refused (nothing was written); 3 complete, with records
that could not be made (listed); 4 no space or no permission; 75 interrupted, run it again
"""


def add_parser(subparsers) -> None:
    """Register the command lines of `run` and `retry`."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser(
        "run",
        help="add a synthetic wrist view to a dataset",
        description="Copy a dataset and add a synthetic wrist view to every episode of the copy. "
        "Every original byte is kept.",
        epilog=_EPILOG,
        formatter_class=plain,
    )
    _add_arguments(parser)
    parser.set_defaults(retry=False)
    parser = subparsers.add_parser(
        "retry",
        help="try again what `run` could not make",
        description="Takes the options of the `run` that it continues. Shards that hold records "
        "which could not be made are made again, the others are kept: after the source was "
        "repaired, on other machines, or with more time (--record-timeout).",
        formatter_class=plain,
    )
    _add_arguments(parser)
    parser.set_defaults(retry=True)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group("source")
    source.add_argument(
        "--dataset",
        help="profile or name, where it is not told by what is there: droid, bridge_dataset, "
        "calvin, robomimic, or any name with --anchor-keys",
    )
    source.add_argument(
        "--data-dir",
        required=True,
        metavar="DIR",
        help="the dataset: a folder (RLDS: a TFDS root will do) or a file; its format is told by "
        "what is there",
    )
    source.add_argument(
        "--anchor-keys",
        nargs="+",
        metavar="KEY",
        help="third-person cameras, as in image_0 or observation/image_0 (default: the profile's)",
    )
    source.add_argument("--split", nargs="+", metavar="S", help="only these splits (default: all)")
    source.add_argument(
        "--episodes", type=int, metavar="N", help="only the first N episodes (default: all)"
    )
    result = parser.add_argument_group("result")
    result.add_argument("--out", required=True, metavar="OUT", help="folder for the copy")
    result.add_argument(
        "--wrist-key",
        default="wrist_rgb",
        metavar="K",
        help="name of the new stream beside the other cameras (default: %(default)s)",
    )
    result.add_argument(
        "--wrist-size",
        metavar="HxW",
        help="its size in pixels (default: what the format's readers expect, else the recipe's "
        "own)",
    )
    result.add_argument(
        "--replace", action="store_true", help="allow --wrist-key to name a stream that exists"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--recipe", default="nano", help="default: %(default)s")
    how.add_argument(
        "--set",
        nargs="+",
        metavar="NAME=VALUE",
        help="settings of the recipe, as in steps=30 guidance=4 or static=false, which estimates "
        "the anchors' cameras frame by frame (default: the recipe's own)",
    )
    how.add_argument(
        "--weights",
        metavar="DIR",
        help="folder of weights; `wristaugment weights RECIPE` lists and fetches them",
    )
    how.add_argument(
        "--pose",
        choices=("auto", "measured", "head"),
        default="auto",
        help="wrist pose from calibration and kinematics, from the wrist head, or the first where "
        "the dataset has it (default: %(default)s)",
    )
    how.add_argument(
        "--geometry",
        choices=("auto", "recorded", "predicted"),
        default="auto",
        help="depth that the dataset has, stage 1's, or the first where every anchor has depth and "
        "calibration (default: %(default)s)",
    )
    how.add_argument("--seed", type=int, default=0, metavar="S", help="default: %(default)s")
    how.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="default: GPUs where there are any. It is part of the job: they round differently",
    )
    how.add_argument(
        "--num-actors",
        type=int,
        metavar="N",
        help="work on N shards at a time (default: one per GPU, else per core); "
        "has no influence on the bytes",
    )
    how.add_argument(
        "--address", metavar="ADDR", help="Ray cluster to use (default: one on this machine)"
    )
    how.add_argument(
        "--record-timeout",
        type=float,
        default=2 * 3600.0,
        metavar="SECONDS",
        help="an actor that is longer at one record is killed; the third time the record is given "
        "up (default: %(default)g)",
    )
    how.add_argument(
        "--shard",
        metavar="I/N",
        help="work on part I (from 0) of N alone, as one task of a SLURM array with no cluster: "
        "give every task the same command, each its I; the last one finishes the dataset",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done and what it costs"
    )
    parser.add_argument("--json", metavar="FILE", help="write the summary as JSON (- = stdout)")


def run(args: argparse.Namespace) -> int:
    """Run the job; returns the exit code.

    Raises:
        SourceError: refused; nothing was written.
    """
    from ..augment.weights import notices
    from .job import prepare

    say = speaker(args.json)
    with contextlib.ExitStack() as stack:
        job = prepare(args, stack)
        for line in notices(job.recipe):
            say(f"licence: {line}")
        for line in job.dataset.notes():
            say(f"done without: {line}")
        if args.dry_run:
            from .dryrun import estimate

            return estimate(job, args, say)
        stack.enter_context(armed())
        return _execute(job, args, say)


def _execute(job, args, say) -> int:
    """Make what is missing, publish it, finish the dataset, and say what came of it."""
    ledger, done, resumed = job.ledger, 0, 0
    part = parse_part(args.shard)
    try:
        with ledger.opened(job.plan, part):
            entries = {
                task: entry
                for task in job.tasks
                if (entry := ledger.done(task.split, task.index, job.copy.folder))
                and not (args.retry and entry["result"]["bad"])
            }
            resumed = sum(task.episodes for task in entries)
            kept = sum(entry["result"]["records"] for entry in entries.values())
            done = len(entries)
            pending = [task for task in job.tasks if task not in entries]
            if part is not None:
                own = set(job.tasks[part[0] :: part[1]])
                pending = [task for task in pending if task in own]
            if pending:
                ledger.reopen()
                with contextlib.closing(_made(job, args, pending, resumed, say)) as made:
                    for task, entry in made:
                        entries[task] = entry
                        done = len(entries)
            if part is not None:
                entries = {
                    task: entry
                    for task in job.tasks
                    if (entry := ledger.done(task.split, task.index, job.copy.folder))
                }
                if len(entries) < len(job.tasks):
                    return _part_done(job, args, part, entries, say)
                with ledger.finishing():
                    summary = _finish(job, [entries[task] for task in job.tasks])
            else:
                summary = _finish(job, [entries[task] for task in job.tasks])
    except Interrupted as error:
        say(
            f"interrupted ({error}); {done} of {len(job.tasks)} shards are done; "
            "run the same command to go on"
        )
        return EXIT_CODE
    summary |= {"resumed_episodes": kept, "made_episodes": summary["episodes"] - kept}
    summary |= {"out": str(ledger.out), "folder": str(job.copy.folder)}
    write_json(args.json, summary)
    for line in _closing(job, args, summary):
        say(line)
    return QUARANTINED if summary["bad"] else COMPLETE


def _part_done(job, args, part: tuple[int, int], entries: dict, say) -> int:
    """Say that a part of an array is made, and that others are not."""
    missing = len(job.tasks) - len(entries)
    say(
        f"part {part[0]} of {part[1]} is made; {missing} of {len(job.tasks)} shards are left to "
        "other parts, and the last of them finishes the dataset"
    )
    own = [entries[task] for task in job.tasks[part[0] :: part[1]] if task in entries]
    bad = [item for entry in own for item in entry["result"]["bad"]]
    write_json(args.json, {"part": list(part), "shards_missing": missing, "bad": bad})
    for line in bad_lines(bad):
        say(line)
    return QUARANTINED if bad else COMPLETE


def parse_part(text: str | None) -> tuple[int, int] | None:
    """(i, n) of --shard I/N, parts counted from 0; None where it is not given.

    Raises:
        SourceError: it is of another form, or there is no such part.
    """
    from ..readers.errors import SourceError

    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise SourceError(
            f"{text!r} is no part of an array", key="--shard", todo="give it as in 0/8 to 7/8"
        )
    return int(index), int(count)


def _made(job, args, pending, resumed, say):
    """Make the pending tasks in actors; yields (task, ledger entry), each published."""
    from .pool import ActorPool
    from .progress import Progress

    check()  # starting takes seconds
    with job.start_cluster(args.num_actors, len(pending)) as cluster:
        arm()  # ray.init has put its own handler in place
        check()
        count = job.actors(cluster, args.num_actors, len(pending))
        total = sum(task.episodes for task in job.tasks)
        say(
            f"{total} episodes in {len(job.tasks)} shards, {resumed} of them done; "
            f"{count} actor{'s' if count != 1 else ''} on {job.work.device}"
        )
        progress = Progress(total, resumed)
        published = resumed
        pool = ActorPool(cluster, job.work, count, job.ledger, progress.say, args.record_timeout)

        def tick() -> None:
            check()
            progress.update(published + job.ledger.episodes_under_way())

        try:
            for task, outcome, staged in pool.run(pending, tick):
                if outcome.kind == "disk":
                    raise DiskError(outcome.text)
                if outcome.kind == "refused":
                    raise JobError(f"{outcome.text}; what is done is kept")
                check()
                job.ledger.publish(task.split, task.index, staged, job.copy.folder, outcome.entry)
                published += task.episodes
                progress.update(published + job.ledger.episodes_under_way())
                yield task, outcome.entry
        finally:
            progress.close()


def _finish(job, entries: list[dict]) -> dict:
    """Metadata, card and manifest of a job whose shards are all there; returns the summary.

    Everything is written again when a finished job is run again: it is cheap, gives the same bytes,
    and repairs what was lost.
    """
    from ..writers.copy import LEFT_OUT, PLACEHOLDER, ShardResult
    from .checksums import collect, known
    from .ledger import crash_point, to_json
    from .snippets import card

    # What is made now and what the ledger has must not differ, not even in the order of keys.
    entries = json.loads(to_json(entries))
    crash_point("finishing")
    place = job.plan["place"]
    results = [ShardResult(**entry["result"]) for entry in entries]
    copied = job.copy.finish(results, known(job.ledger.out, place))
    crash_point("finished")
    quality = [item for entry in entries for item in entry["quality"]]
    bad = [item for entry in entries for item in entry["result"]["bad"]]
    frames = sum(item["frames"] for item in quality)
    weigh = lambda key: sum(item[key] * item["frames"] for item in quality)
    totals = {
        "episodes": sum(entry["result"]["records"] for entry in entries),
        "lost_episodes": sum(item["count"] for item in bad if item["what"] == LEFT_OUT),
        "blank_episodes": sum(item["count"] for item in bad if item["what"] == PLACEHOLDER),
        "shards": len(entries),
        "frames": frames,
        "valid_frames": round(weigh("valid")),
        "coverage": round(weigh("coverage") / frames, 4) if frames else 0.0,
        "bytes": sum(size for e in entries for size, _ in e["result"]["files"].values()),
        "bad": bad,
    }
    ledger = job.ledger
    text = card(job.plan, {**totals, "bad": len(bad)}, job.copy.stream_key, job.copy.replaces)
    ledger.write(ledger.folder / "README.md", text)
    facts = {key: value for key, value in job.plan.items() if key != "source"}
    checks = {entry_name(entry): _check(entry["result"]) for entry in entries}
    manifest = to_json({**facts, "synthetic": True, **totals, "checks": checks, "records": quality})
    texts = {"plan.json": to_json(job.plan), "README.md": text, "manifest.json": manifest}
    named = (
        (ledger.shard_name(result.split, result.shard), entry)
        for result, entry in zip(results, entries, strict=True)
    )
    ledger.write(ledger.folder / "checksums.json", collect(place, copied, named, texts))
    ledger.finish(manifest)
    return totals


def _check(result: dict) -> str:
    """What tells one shard's new bytes from others: the format's own hash, or one of its files'."""
    own = result["facts"].get("added_sha256")
    return own or hashlib.sha256(json.dumps(result["files"], sort_keys=True).encode()).hexdigest()


def entry_name(entry: dict) -> str:
    """The shard that a ledger entry is of, as in "train/3"."""
    return f"{entry['result']['split']}/{entry['result']['shard']}"


def _closing(job, args, summary: dict) -> list[str]:
    from .progress import size

    bad = summary["bad"]
    lines = [
        f"done: {summary['episodes']} episodes ({summary['made_episodes']} made now, "
        f"{summary['resumed_episodes']} before), {summary['frames']} frames, "
        f"{summary['valid_frames']} of them valid; {size(summary['bytes'])}",
        f"dataset: {job.copy.folder}",
    ]
    if bad:
        lines.append(f"{len(bad)} records could not be made; the rest is complete:")
        lines += bad_lines(bad, limit=20)
    lines += [
        f"card and settings for training: {job.ledger.folder / 'README.md'}",
        f"check it: wristaugment verify {quote(args.out)} --source {quote(args.data_dir)}",
    ]
    if job.dataset.format == "rlds":
        folder = str(job.copy.folder)
        lines.append(f"read it: tfds.builder_from_directory({folder!r}).as_dataset()")
    return lines
