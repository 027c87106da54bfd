"""`wristaugment inspect DIR`: what a dataset holds, and what a run would make of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from .output import COMPLETE, speaker, write_json

_LOOK = 3  # records looked into
_FRAMES = 5  # frames of each camera looked at in each of them


def add_parser(subparsers) -> None:
    """Add the `inspect` command."""
    parser = subparsers.add_parser(
        "inspect",
        help="say what a dataset holds: format, cameras, wrist, calibration, counts",
        description="Recognises the format, looks at the metadata and into the first few records; "
        "writes nothing. Of a URL, as in s3://bucket/droid/1.0.1, what is looked at is fetched to "
        "$WRISTAUGMENT_SCRATCH; the endpoint and the credentials are those of the store's own "
        "variables (AWS_ENDPOINT_URL, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, ...).",
    )
    parser.add_argument("dir", metavar="DIR", help="the dataset: a folder, a file, or a URL of one")
    parser.add_argument("--dataset", metavar="NAME", help="its profile, or one of several in DIR")
    parser.add_argument(
        "--anchor-keys",
        nargs="+",
        metavar="KEY",
        help="the third-person cameras, as a run would be told (commas or spaces between them)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the findings as JSON (- = stdout)")


def run(args: argparse.Namespace) -> int:
    """Print the findings and return the exit code.

    Raises:
        SourceError: there is no dataset, or its metadata is damaged.
    """
    from .mirror import localise
    from .plan import split_values

    report = inspect(localise(args.dir), args.dataset, split_values(args.anchor_keys))
    say = speaker(args.json)
    for line in lines(report):
        say(line)
    write_json(args.json, report)
    return COMPLETE


def inspect(
    data_dir: Path, dataset: str | None = None, anchor_keys: Sequence[str] | None = None
) -> dict:
    """What a dataset holds.

    Returns:
        {"format", "folder", "name", "version", "profile" (None where none knows it), "splits":
        {name: {"shards", "episodes", "missing_shards"}}, "looked_into" (records), "steps" (their
        number of steps), "cameras": [{"key", "height", "width", "channels", "encoding", "picture"
        (False: black or one colour), "reason", "role" ("anchor", "wrist", "placeholder", "depth",
        "unused", "candidate")}], "language", "proprioception": {"eef", "gripper"}, "calibration":
        {camera key: {"extrinsics", "intrinsics"}}, "damage": [str], "notes": [str] (what is done
        without), "anchors": [key], "wrist",
        "stream" (the key that would be made), "pose" ("measured" or "head"), "geometry" ("recorded"
        or "predicted"), "why": {"pose", "geometry"} (in words), "better": [str] (how to get better
        ones), "missing": [str], "ready", "run" (what a run would do, in words)}

    Raises:
        SourceError: there is no dataset, or its metadata is damaged.
    """
    from ..readers import open_dataset
    from ..readers.errors import SourceError

    unknown = None
    try:
        opened = open_dataset(data_dir, dataset, anchor_keys=anchor_keys)
    except SourceError as error:
        opened = open_dataset(data_dir, dataset, plain=True)  # raises for all but its cameras
        if anchor_keys:
            raise
        unknown = error
    report = {
        "format": opened.format,
        "folder": str(opened.folder),
        "name": opened.name,
        "version": opened.version,
        "profile": None if unknown else _profile(opened),
        "splits": {
            split.name: {
                "shards": len(split.shards),
                "episodes": split.records,
                "missing_shards": _missing(opened, split),
            }
            for split in opened.splits
        },
        **_look(opened),
        "notes": opened.notes(),
    }
    report.update(_outlook(opened, report))
    return report


def lines(report: dict) -> list[str]:
    """The findings for people."""
    title = f"{report['name']} {report['version']}".strip()
    out = [f"{title}  ({report['format']}, {report['folder']})"]
    for name, split in report["splits"].items():
        text = f"  split {name}: {split['episodes']} episodes in {split['shards']} shards"
        if split["missing_shards"]:
            missing = split["missing_shards"]
            text += f", {len(missing)} files missing ({missing[0]} ...)"
        out.append(text)
    steps = report["steps"]
    if steps:
        out.append(f"  steps: {min(steps)} to {max(steps)} in the first {len(steps)} episodes")
    out.append("  cameras:")
    for camera in report["cameras"]:
        size = f"{camera['height'] or '?'}x{camera['width'] or '?'}x{camera['channels'] or '?'}"
        state = "a picture" if camera["picture"] else camera["reason"] or "not looked at"
        out.append(
            f"    {camera['key']}  {size} {camera['encoding'] or '?'}  {state}  ({camera['role']})"
        )
    has = report["proprioception"]
    out.append(
        f"  proprioception: end effector {has['eef'] or 'unknown'}, "
        f"gripper {has['gripper'] or 'unknown'}"
    )
    for key, known in report["calibration"].items():
        words = [name for name in ("extrinsics", "intrinsics") if known[name]]
        out.append(f"  calibration of {key}: {', '.join(words) or 'none'}")
    out.append(f"  language: {', '.join(report['language']) or 'none'}")
    out += [f"  damaged: {text}" for text in report["damage"]]
    out += [f"  done without: {text}" for text in report["notes"]]
    out += [f"  missing: {text}" for text in report["missing"]]
    if report["anchors"]:
        out += [f"  {what} {report[what]}: {report['why'][what]}" for what in ("pose", "geometry")]
        out += [f"  better: {text}" for text in report["better"]]
    out.append(f"a run {report['run']}")
    return out


def _profile(dataset) -> str | None:
    """The profile's name, unless it was made up from --anchor-keys."""
    from ..readers.profiles import find_profile

    if dataset.format != "rlds":
        return dataset.profile.name
    found = find_profile(dataset.profile.name)
    return found.name if found else None


def _missing(dataset, split) -> list[str]:
    """Files of a split's shards that are not there."""
    paths = (path for shard in split.shards for path in dataset.shard_files(shard))
    return [path.name for path in paths if not path.is_file()]


def _look(dataset) -> dict:
    """What the first few readable records show."""
    profile = dataset.profile
    cameras = {stream.key: _camera(profile, stream) for stream in dataset.streams()}
    calibration = {
        camera.key: {"extrinsics": False, "intrinsics": False} for camera in profile.cameras()
    }
    steps: list[int] = []
    damage: list[str] = []
    known = {"eef": False, "mount": False}
    for raw in _first(dataset, damage):
        try:
            steps.append(dataset.steps(raw))
        except ValueError as error:
            damage.append(str(error))
            continue
        for key, camera in cameras.items():
            _glance(dataset, raw, key, camera, damage)
        if profile.anchors:
            _calibrated(dataset, raw, calibration, known, damage)
    for camera in cameras.values():
        if camera["role"] == "anchor" and camera["reason"] and not camera["picture"]:
            camera["role"] = "placeholder"
    return {
        "looked_into": len(steps),
        "steps": steps,
        "cameras": list(cameras.values()),
        "language": list(profile.language),
        "proprioception": {
            "eef": profile.eef.key if profile.eef else None,
            "gripper": profile.gripper.key if profile.gripper else None,
        },
        "calibration": calibration,
        "known": known,
        "damage": damage,
    }


def _first(dataset, damage: list[str]) -> Iterator:
    """The first readable records; damage met on the way is noted."""
    left = _LOOK
    for split in dataset.splits:
        for shard in split.shards:
            for raw in dataset.records(shard):
                if raw.error is not None:
                    damage.append(str(raw.error))
                    if len(damage) >= _LOOK:
                        return
                    continue
                yield raw
                left -= 1
                if not left:
                    return


def _camera(profile, stream) -> dict:
    if stream.key in [camera.key for camera in profile.anchors]:
        role = "anchor"
    elif profile.wrist and stream.key == profile.wrist.key:
        role = "wrist"
    elif stream.depth:
        role = "depth"
    else:
        role = "unused" if profile.anchors else "candidate"
    height, width, channels = stream.shape
    return {
        "key": stream.key,
        "height": height,
        "width": width,
        "channels": channels,
        "encoding": stream.encoding,
        "picture": False,
        "reason": None,
        "role": role,
    }


def _glance(dataset, raw, key: str, camera: dict, damage: list[str]) -> None:
    """Look at a few frames of one camera in one record."""
    import numpy as np

    from ..readers.pictures import no_picture

    try:
        frames = dataset.frames(raw, key)
        every = max(1, (len(frames) - 1) // (_FRAMES - 1))
        some = np.asarray(frames[::every])
    except ValueError as error:
        if "empty from start to end" in str(error):
            camera["reason"] = camera["reason"] or "empty from start to end"
        else:
            damage.append(str(error))
        return
    camera["height"], camera["width"] = some.shape[1:3]
    if some.ndim == 4 and some.dtype == np.uint8:
        reason = no_picture(some)
    else:
        reason = None if some.any() else "zero from start to end"
    if reason is None:
        camera["picture"] = True
    else:
        camera["reason"] = camera["reason"] or reason


def _calibrated(dataset, raw, calibration: dict, known: dict, damage: list[str]) -> None:
    """Note which cameras' calibration a record has."""
    try:
        episode = dataset.episode(raw)
    except ValueError as error:
        damage.append(str(error))
        return
    for view in episode.anchors:
        found = calibration.setdefault(view.key, {"extrinsics": False, "intrinsics": False})
        found["extrinsics"] |= view.pose is not None
        found["intrinsics"] |= view.K is not None
    known["eef"] |= episode.eef_pose is not None
    known["mount"] |= episode.measured_wrist_pose() is not None
    if wrist := dataset.profile.wrist:
        found = calibration[wrist.key]
        found["extrinsics"] |= episode.wrist_mount is not None
        found["intrinsics"] |= episode.wrist_K is not None


def _outlook(dataset, report: dict) -> dict:
    """What a run would do, and what is missing for it."""
    from ..augment.choices import Known, choose_depth, choose_pose

    pictures = {camera["key"] for camera in report["cameras"] if camera["picture"]}
    profile = dataset.profile
    anchors = [camera.key for camera in profile.anchors if camera.key in pictures]
    wrist = profile.wrist.key if profile.wrist and profile.wrist.key in pictures else None
    calibration = report["calibration"]
    # As `run` decides it: without every anchor's whole calibration the wrist head gives the pose.
    whole = all(
        calibration[key]["extrinsics"] and calibration[key]["intrinsics"] for key in anchors
    )
    has = report.pop("known")
    depths = {camera.key for camera in profile.anchors if camera.depth}
    known = Known(
        bool(anchors) and whole,
        has["eef"],
        has["mount"],
        depth=bool(anchors) and depths >= set(anchors),
    )
    pose, geometry = choose_pose(known), choose_depth(known)
    missing = []
    if not profile.anchors:
        keys = ", ".join(c["key"] for c in report["cameras"] if c["role"] == "candidate")
        missing.append(
            f"--anchor-keys: no profile knows this dataset; it has {keys or 'no images'}"
        )
    elif not anchors and report["looked_into"]:
        missing.append("an anchor that carries a picture")
    if not report["looked_into"]:
        missing.append("a readable record")
    for name, split in report["splits"].items():
        if split["missing_shards"]:
            missing.append(f"{len(split['missing_shards'])} files of {name}")
    ready = bool(anchors) and not missing
    stream, taken = _stream(dataset)
    if not ready:
        words = "cannot be made yet"
    else:
        said = "measured (calibrated)" if pose.name == "measured" else "predicted by the wrist head"
        words = f"would make {stream} from {', '.join(anchors)}; wrist pose: {said}"
        dark = [c["key"] for c in report["cameras"] if c["role"] == "placeholder"]
        if dark:
            words += f"; {', '.join(dark)} carries no picture and is left out"
        if wrist:
            words += f"; the recorded {wrist} stays, and `evaluate --against {wrist}` can score it"
        if taken:
            words += f"; {stream} is there already: choose another --wrist-key or say --replace"
    return {
        "anchors": anchors,
        "wrist": wrist,
        "stream": stream,
        "pose": pose.name,
        "geometry": geometry.name,
        "why": {"pose": pose.why, "geometry": geometry.why},
        "better": [choice.better for choice in (pose, geometry) if choice.better],
        "missing": missing,
        "ready": ready,
        "run": words,
    }


def _stream(dataset) -> tuple[str, bool]:
    """(the key of the stream that a run would add, whether there is one of that name)."""
    import tempfile

    from ..readers.errors import SourceError
    from ..writers.formats import open_copy

    out = Path(tempfile.gettempdir()) / "wristaugment-inspect"  # named only; nothing is written
    options = {"size": (128, 128), "description": ""}
    try:
        return open_copy(dataset, out, **options).stream_key, False
    except SourceError:
        return open_copy(dataset, out, replace=True, **options).stream_key, True
