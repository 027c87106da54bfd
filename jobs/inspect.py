"""`wristaugment inspect DIR`: what a dataset holds, and what a run would make of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .output import COMPLETE, speaker, write_json

_LOOK = 3  # records looked into
_FRAMES = 5  # frames of each camera looked at in each of them


def add_parser(subparsers) -> None:
    """Add the `inspect` command."""
    parser = subparsers.add_parser(
        "inspect",
        help="say what a dataset holds: cameras, wrist, calibration, counts",
        description="Looks at the metadata and into the first few records; writes nothing.",
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="a TFDS root, dataset or version")
    parser.add_argument("--dataset", metavar="NAME", help="which one, where a root holds several")
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
    from .plan import split_values

    report = inspect(args.dir, args.dataset, split_values(args.anchor_keys))
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
        {"folder", "name", "version", "profile" (None where none knows it), "splits": {name:
        {"shards", "episodes", "missing_shards"}}, "looked_into" (records), "steps" (their number
        of steps), "cameras": [{"key", "height", "width", "channels", "encoding", "picture"
        (False: black or one colour), "reason", "role"}], "language", "proprioception": {"eef",
        "gripper"}, "calibration": {camera key: {"extrinsics", "intrinsics"}}, "damage": [str],
        "anchors": [key], "wrist", "pose" ("measured" or "head"), "missing": [str], "ready"}

    Raises:
        SourceError: there is no dataset, or its metadata is damaged.
    """
    from ..readers.profiles import find_profile, resolve
    from ..readers.rlds import open_plain, open_rlds
    from ..readers.tfds_folder import find_folder

    profile = find_profile(dataset) if dataset else None
    names = dict.fromkeys(filter(None, (dataset, *(profile.names if profile else ()))))
    folder = find_folder(Path(data_dir), tuple(names))
    if dataset and (profile or anchor_keys):
        opened = open_rlds(folder, dataset, anchor_keys=anchor_keys)
    else:
        opened = open_plain(folder)
        if found := find_profile(opened.name) or find_profile(opened.place.parts[0]):
            profile = found
        if profile or anchor_keys:
            name = profile.name if profile else opened.name
            known = resolve(name, opened.features, anchor_keys, folder)
            opened = _with_profile(opened, known)
    look = _look(opened)
    report = {
        "folder": str(opened.folder),
        "name": opened.name,
        "version": opened.version,
        "profile": profile.name if profile else None,
        "splits": {
            split.name: {
                "shards": len(split.shards),
                "episodes": split.records,
                "missing_shards": [s.path.name for s in split.shards if not s.path.is_file()],
            }
            for split in opened.splits
        },
        **look,
    }
    report.update(_outlook(opened, report, anchor_keys))
    return report


def lines(report: dict) -> list[str]:
    """The findings for people."""
    out = [f"{report['name']} {report['version']}  ({report['folder']})"]
    for name, split in report["splits"].items():
        text = f"  split {name}: {split['episodes']} episodes, {split['shards']} shard files"
        if split["missing_shards"]:
            missing = split["missing_shards"]
            text += f", {len(missing)} of them missing ({missing[0]} ...)"
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
    out += [f"  missing: {text}" for text in report["missing"]]
    out.append(f"a run {report['run']}")
    return out


def _with_profile(dataset, profile):
    import dataclasses

    return dataclasses.replace(dataset, profile=profile)


def _look(dataset) -> dict:
    """What the first few readable records show."""
    cameras = {leaf.flat: _camera(dataset, leaf) for leaf in _images(dataset)}
    profile = dataset.profile
    calibration = {
        camera.key: {"extrinsics": False, "intrinsics": False} for camera in profile.cameras()
    }
    steps: list[int] = []
    damage: list[str] = []
    for raw in _first(dataset, damage):
        try:
            index = dataset.index(raw)
            steps.append(dataset.steps(raw, index))
        except ValueError as error:
            damage.append(str(error))
            continue
        for leaf in _images(dataset):
            _glance(dataset, raw, index, leaf, cameras[leaf.flat], damage)
        for camera in profile.cameras():
            for name in ("extrinsics", "intrinsics"):
                if _known(dataset, index, getattr(camera, name)):
                    calibration[camera.key][name] = True
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
        "damage": damage,
    }


def _first(dataset, damage: list[str]):
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


def _images(dataset) -> list:
    return [leaf for leaf in dataset.features.leaves.values() if leaf.is_image and leaf.per_step]


def _camera(dataset, leaf) -> dict:
    shape = (*leaf.shape, None, None, None)[:3]
    profile = dataset.profile
    if leaf.key in [camera.key for camera in profile.anchors]:
        role = "anchor"
    elif profile.wrist and leaf.key == profile.wrist.key:
        role = "wrist"
    elif not leaf.is_picture:
        role = "depth" if leaf.dtype == "uint16" else "not a camera"
    else:
        role = "unused" if profile.anchors else "candidate"
    return {
        "key": leaf.key,
        "height": shape[0],
        "width": shape[1],
        "channels": shape[2],
        "encoding": leaf.encoding,
        "picture": False,
        "reason": None,
        "role": role,
    }


def _glance(dataset, raw, index, leaf, camera: dict, damage: list[str]) -> None:
    """Look at a few frames of one camera in one record."""
    from ..readers.errors import SourceError
    from ..readers.pictures import decode_stream, no_picture

    where = {"file": dataset.file_of(raw.record), "record": raw.record.index, "key": leaf.key}
    try:
        if leaf.flat not in index:
            raise SourceError("the record lacks this key", **where, todo="check the source")
        blobs = index.blobs(leaf.flat)
        if not any(blobs):
            camera["reason"] = camera["reason"] or "empty from start to end"
            return
        every = max(1, (len(blobs) - 1) // (_FRAMES - 1))
        frames = decode_stream(blobs[::every], leaf.shape, **where)
    except ValueError as error:
        damage.append(str(error))
        return
    camera["height"], camera["width"] = frames.shape[1:3]
    camera["encoding"] = "png" if blobs[0].startswith(b"\x89PNG") else "jpeg"
    if frames.ndim == 4:
        reason = no_picture(frames)
    else:
        reason = None if frames.any() else "zero from start to end"
    if reason is None:
        camera["picture"] = True
    else:
        camera["reason"] = camera["reason"] or reason


def _known(dataset, index, key: str | None) -> bool:
    """True if a calibration key holds finite numbers that are not all zero."""
    import numpy as np

    leaf = dataset.features.find(key) if key else None
    if leaf is None or leaf.flat not in index:
        return False
    values = index.numbers(leaf.flat)
    return bool(np.isfinite(values).all() and values.any())


def _outlook(dataset, report: dict, anchor_keys) -> dict:
    """What a run would do, and what is missing for it."""
    pictures = {camera["key"] for camera in report["cameras"] if camera["picture"]}
    profile = dataset.profile
    anchors = [camera.key for camera in profile.anchors if camera.key in pictures]
    wrist = profile.wrist.key if profile.wrist and profile.wrist.key in pictures else None
    calibration = report["calibration"]
    mount = bool(profile.wrist and calibration[profile.wrist.key]["extrinsics"])
    # As `run` decides it: without every anchor's whole calibration the wrist head gives the pose.
    whole = all(
        calibration[key]["extrinsics"] and calibration[key]["intrinsics"] for key in anchors
    )
    measured = bool(anchors and profile.eef and mount and whole)
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
            missing.append(f"{len(split['missing_shards'])} shards of {name}")
    ready = bool(anchors) and not missing
    if not ready:
        words = "cannot be made yet"
    else:
        pose = "measured (calibrated)" if measured else "predicted by the wrist head"
        words = f"would make wrist_rgb from {', '.join(anchors)}; wrist pose: {pose}"
        if wrist:
            words += f"; the recorded {wrist} stays, and `evaluate --against {wrist}` can score it"
        if dataset.features.find("observation/wrist_rgb"):
            words += "; wrist_rgb is there already: choose another --wrist-key or say --replace"
    return {
        "anchors": anchors,
        "wrist": wrist,
        "pose": "measured" if measured else "head",
        "missing": missing,
        "ready": ready,
        "run": words,
    }
