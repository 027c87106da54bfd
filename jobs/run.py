"""`wristaugment run`: the main job. A dataset in, the same dataset with a wrist view out."""

from __future__ import annotations

import argparse
import contextlib

from .. import __version__
from ..augment.choices import GEOMETRIES, POSES
from ..readers.errors import SourceError
from .failures import is_disk
from .interrupt import EXIT_CODE, Interrupted, arm, armed, check
from .output import COMPLETE, QUARANTINED, DiskError, JobError, bad_lines, speaker, write_json

_GRACE = 25.0  # seconds from a signal to the end
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
        description="Takes the options of the `run` that it continues. Records "
        "which could not be made are tried again, the others are kept: after the source was "
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
        choices=POSES,
        default="auto",
        help="wrist pose from calibration and kinematics, from the wrist head, or the first where "
        "the dataset has it; rigid: kinematics and a mount, the robot's place by the anchors' "
        "calibration or the head's poses (default: %(default)s)",
    )
    how.add_argument(
        "--mount",
        metavar="FILE",
        help="the hand camera's mount, as `wristaugment mount` writes it, for --pose rigid "
        "(default: the dataset's own) and for auto where it has none and calibrated anchors",
    )
    how.add_argument(
        "--geometry",
        choices=GEOMETRIES,
        default="auto",
        help="depth that the dataset has, stage 1's, or the first where every anchor has depth and "
        "calibration; fused, fused-recorded, fused-predicted: the same averaged over the episode "
        "where nothing moves, with what moving things hid (default: %(default)s)",
    )
    how.add_argument(
        "--min-ssim",
        metavar="S",
        help="the quality wanted: frames of which a lower SSIM is expected (their "
        "wrist_confidence) are marked not valid, and keep their pixels; a number from 0 to 1, or "
        "none (default: what the weights' confidence.json says)",
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
        "--lease",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="an actor that shows no life for so long (a machine that is gone or stands still) is "
        "killed, and another makes its shard (default: %(default)g)",
    )
    how.add_argument(
        "--gpus-per-actor",
        type=float,
        default=1.0,
        metavar="G",
        help="GPUs that an actor takes: 0.5 puts two actors on each (default: %(default)g)",
    )
    how.add_argument(
        "--events",
        metavar="FILE",
        help="log of what happened, a line of JSON an event (default: OUT.events.jsonl beside a "
        "local --out, <its name>.events.jsonl in the current folder for a URL; none: no log)",
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
    from .events import EventLog, events_path, plan_id
    from .job import prepare

    say = speaker(args.json)
    with contextlib.ExitStack() as stack:
        job = prepare(args, stack)
        log = events_path(args.events, args.out, parse_part(args.shard), job.dataset.folder)
        for line in notices(job.recipe):
            say(f"licence: {line}")
        for line in job.dataset.notes():
            say(f"done without: {line}")
        say(f"confidence: {job.confidence}")
        if job.work.min_ssim is not None:
            say(
                f"frames of which an SSIM below {job.work.min_ssim:g} is expected will be marked "
                "not valid (--min-ssim)"
            )
        if args.dry_run:
            from .dryrun import estimate

            return estimate(job, args, say)
        stack.enter_context(armed(_GRACE))
        job.events = stack.enter_context(EventLog.open(log, job=plan_id(job.plan)))
        if job.events.problem:
            say(job.events.problem)
        return _told(job, args, say, log)


def _told(job, args, say, log) -> int:
    """Run the job, and say how it ended and what to do next, whichever way that was."""
    from .next_steps import lines

    facts: dict = {"shards": len(job.tasks), "events": log}
    events = job.events
    try:
        code = _execute(job, args, say, facts)
    except Interrupted as error:
        events.write("interrupted", signal=str(error))
        for line in lines("interrupted", args, {**facts, "signal": str(error)}):
            say(line)
        code = EXIT_CODE
    except JobError as error:
        events.write("failed", reason=str(error))
        for line in lines("internal", args, facts):
            say(line)
        raise
    except OSError as error:
        if isinstance(error, DiskError) or is_disk(error):
            events.write("disk", reason=str(error))
            for line in lines("disk", args, {**facts, "reason": str(error)}):
                say(line)
        raise
    events.write("finished", exit_code=code, **facts.get("summary", {}))
    return code


def _execute(job, args, say, facts: dict | None = None) -> int:
    """Make what is missing, publish it, finish the dataset, and say what came of it.

    Args:
        facts: gets "shards_done" as they are done, and in the end the "summary".
    """
    from .finish import finish

    facts = {} if facts is None else facts
    ledger, place = job.ledger, job.plan["place"]
    part = parse_part(args.shard)
    names = {task: ledger.shard_name(task.split, task.index) for task in job.tasks}
    with ledger.opened(job.plan, part):
        entries = {
            name: entry
            for name, entry in ledger.done(names.values(), place).items()
            if not (args.retry and entry["result"]["bad"])
        }
        resumed = sum(task.episodes for task in job.tasks if names[task] in entries)
        kept = sum(entry["result"]["records"] for entry in entries.values())
        facts["shards_done"] = len(entries)
        own = job.tasks if part is None else job.tasks[part[0] :: part[1]]
        pending = [task for task in own if names[task] not in entries]
        job.events.write(
            "started",
            version=__version__,
            episodes=sum(task.episodes for task in job.tasks),
            shards=len(job.tasks),
            done=len(entries),
            device=job.work.device,
        )
        if pending:
            ledger.reopen()
            with contextlib.closing(_made(job, args, pending, resumed, say)) as made:
                for task, entry in made:
                    entries[names[task]] = entry
                    facts["shards_done"] = len(entries)
        if part is not None:
            entries = ledger.done(names.values(), place)
            if len(entries) < len(job.tasks):
                return _part_done(job, part, [names[task] for task in own], entries, args, say)
            with ledger.finishing():
                summary = finish(job, [entries[name] for name in names.values()])
        else:
            summary = finish(job, [entries[name] for name in names.values()])
    facts["summary"] = {key: value for key, value in summary.items() if key != "bad"}
    summary |= {"resumed_episodes": kept, "made_episodes": summary["episodes"] - kept}
    summary |= {"out": str(ledger.out), "folder": job.folder}
    write_json(args.json, summary)
    for line in _closing(job, args, summary):
        say(line)
    return QUARANTINED if summary["bad"] else COMPLETE


def _part_done(job, part: tuple[int, int], own: list[str], entries: dict, args, say) -> int:
    """Say that a part of an array is made, and that others are not."""
    missing = len(job.tasks) - len(entries)
    say(
        f"part {part[0]} of {part[1]} is made; {missing} of {len(job.tasks)} shards are left to "
        "other parts, and the last of them finishes the dataset"
    )
    bad = [item for name in own if name in entries for item in entries[name]["result"]["bad"]]
    write_json(args.json, {"part": list(part), "shards_missing": missing, "bad": bad})
    for line in bad_lines(bad):
        say(line)
    return QUARANTINED if bad else COMPLETE


def parse_part(text: str | None) -> tuple[int, int] | None:
    """(i, n) of --shard I/N, parts counted from 0; None where it is not given.

    Raises:
        SourceError: it is of another form, or there is no such part.
    """
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
        count = job.actors(cluster, args.num_actors, len(pending), args.gpus_per_actor)
        total = sum(task.episodes for task in job.tasks)
        say(
            f"{total} episodes in {len(job.tasks)} shards, {resumed} of them done; "
            f"{count} actor{'s' if count != 1 else ''} on {job.work.device}"
        )

        def room() -> int:
            with contextlib.suppress(SourceError):  # its nodes are gone for now
                return job.actors(cluster, args.num_actors, len(pending), args.gpus_per_actor)
            return 1

        progress = Progress(total, resumed, workers=count, events=job.events)
        published = resumed
        pool = ActorPool(
            cluster,
            job.work,
            count,
            job.ledger,
            progress.say,
            patience=args.record_timeout,
            lease=args.lease,
            share=args.gpus_per_actor,
            again=args.retry,
            room=room,
            events=job.events,
        )

        def tick() -> None:
            check()
            progress.update(published + pool.made, pool.kept)

        try:
            for task, outcome, staged in pool.run(pending, tick):
                if outcome.kind == "disk":
                    raise DiskError(outcome.text)
                if outcome.kind == "refused":
                    raise JobError(f"{outcome.text}; what is done is kept")
                check()
                entry = outcome.entry
                assert entry is not None
                result = entry["result"]
                job.ledger.publish(task.split, task.index, staged, job.plan["place"], entry)
                job.events.write(
                    "shard_published",
                    shard=job.ledger.shard_name(task.split, task.index),
                    records=result["records"],
                    bad=len(result["bad"]),
                    bytes=sum(size for size, _ in result["files"].values()),
                )
                published += task.episodes
                progress.update(published + pool.made, pool.kept)
                # Not what is said of its episodes: that lies on the disk, and a million are many.
                yield task, {"result": result, "sha256": entry["sha256"]}
        finally:
            progress.close()


def _closing(job, args, summary: dict) -> list[str]:
    from .next_steps import lines
    from .progress import size

    facts = {"bad": summary["bad"], "format": job.dataset.format, "folder": job.folder}
    return [
        f"done: {summary['episodes']} episodes ({summary['made_episodes']} made now, "
        f"{summary['resumed_episodes']} before), {summary['frames']} frames, "
        f"{summary['valid_frames']} of them valid; {size(summary['bytes'])}",
        *(f"quality: {line}" for line in summary["expected"]),
        f"dataset: {job.folder}",
        *lines("quarantined" if summary["bad"] else "complete", args, facts),
    ]
