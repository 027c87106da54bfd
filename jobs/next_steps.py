"""What to do next: the last lines of a job, with whole commands that can be pasted into a shell."""

from __future__ import annotations

import argparse
from shlex import join, quote

from .output import bad_lines

KINDS = ("complete", "quarantined", "interrupted", "disk", "internal")


def lines(kind: str, args: argparse.Namespace, facts: dict) -> list[str]:
    """What a job that ended leaves to do.

    Args:
        kind: "complete"; "quarantined" (complete, but for some records); "interrupted" (facts:
            signal); "disk" and "internal" (facts: reason).
        args: the command line of `run` or `retry`.
        facts: of these, all that is known: "reason", "signal", "shards" and "shards_done", "bad"
            (as in the summary), "events" (the log's path, or None), "format" and "folder" (of the
            copy).

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
    if kind == "complete":
        return _complete(args, facts)
    if kind == "quarantined":
        return _quarantined(args, facts) + _complete(args, facts)
    done = ""
    if facts.get("shards") is not None:
        done = f"{facts.get('shards_done', 0)} of {facts['shards']} shards are done and kept"
    if kind == "interrupted":
        said = [f"interrupted ({facts['signal']})" if facts.get("signal") else "interrupted", done]
        return ["; ".join(filter(None, said)), *_again(args, "go on")]
    if kind == "disk":
        out = [f"stopped by the disk: {facts.get('reason', 'no space, or no permission')}"]
        out += [done] if done else []
        if "://" not in args.out:
            out.append(f"room there: df -h {quote(args.out)}; df -i {quote(args.out)}")
        return out + _again(args, "with room and rights, go on")
    out = [f"stopped: {facts['reason']}"] if facts.get("reason") else []
    out += [done] if done else []
    out += _again(args, "go on from here")
    if facts.get("events"):
        out.append(f"what happened: {quote(str(facts['events']))}")
    return [*out, "if it stops there again, report it with the lines above"]


def command(args: argparse.Namespace, name: str | None = None) -> str:
    """The command line that `args` came from, quoted for a shell; defaults are left out.

    Args:
        name: "run" or "retry" in place of its own.
    """
    name = name or ("retry" if getattr(args, "retry", False) else "run")
    words = ["wristaugment", name]
    for action in _actions(name):
        value = getattr(args, action.dest, action.default)
        if not action.option_strings or value in (action.default, None, argparse.SUPPRESS):
            continue
        option = action.option_strings[-1]
        if action.nargs == 0:  # a flag
            words.append(option)
        elif isinstance(value, (list, tuple)):
            words += [option, *map(str, value)]
        elif str(value).startswith("-") and len(str(value)) > 1:
            words.append(f"{option}={value}")  # or it would be taken for an option
        else:
            words += [option, str(value)]
    return join(words)


def _actions(name: str) -> list[argparse.Action]:
    """The options of a command. argparse has no public way to list them."""
    from .cli import parser

    [commands] = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return commands.choices[name]._actions


def _again(args: argparse.Namespace, what: str) -> list[str]:
    text = f"{what}: {command(args)}"
    return [text, f"how far it is: wristaugment status {quote(args.out)}"]


def _complete(args: argparse.Namespace, facts: dict) -> list[str]:
    place = f"{args.out.rstrip('/')}/.wristaugment"
    out = [
        f"card and settings for training: {place}/README.md",
        f"check it: wristaugment verify {quote(args.out)} --source {quote(args.data_dir)}",
    ]
    if facts.get("format") == "rlds" and facts.get("folder"):
        folder = str(facts["folder"])
        out.append(f"read it: tfds.builder_from_directory({folder!r}).as_dataset()")
    return out


def _quarantined(args: argparse.Namespace, facts: dict) -> list[str]:
    bad = facts.get("bad") or []
    count = f"{len(bad)} record{'s' if len(bad) != 1 else ''}"
    retry = argparse.Namespace(**vars(args))
    out = [f"{count} could not be made; the rest is complete:", *bad_lines(bad, limit=20)]
    out.append(f"all of them: wristaugment status {quote(args.out)} --json -")
    if any("longer than" in item["found"] for item in bad) and hasattr(args, "record_timeout"):
        retry.record_timeout = 4 * args.record_timeout
        out.append("some took too long; the next command gives them four times as long")
    return [*out, f"try them again, once repaired: {command(retry, 'retry')}"]
