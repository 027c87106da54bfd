"""`wristaugment weights RECIPE`: what it needs, what is there and whether it is right; fetch it."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..readers.errors import SourceError
from .output import COMPLETE, REFUSED, speaker, write_json

_EPILOG = """\
examples:
  what the recipe needs, what is there, what is missing, and under which licences:
    wristaugment weights official
  fetch what is missing from the hub; killed or cut off, the same command goes on:
    wristaugment weights official --download --weights /data/weights
  take files that are here already (linked where possible, else copied); folders are searched by
  the repositories' layout and by file names, the hub's own cache too:
    wristaugment weights paper --from ~/Downloads --from ~/.cache/huggingface/hub
  the weights that you trained, beside the public ones:
    wristaugment weights paper --weights /data/weights --from runs/paper

Public files lie at OWNER/REPOSITORY/PATH below the folder, your own directly in it. Searched are
--weights, $WRISTAUGMENT_WEIGHTS and ~/.cache/wristaugment/weights; new files go to the first.
weights.json there records what every fetched file was; a job refuses files that have changed.
HF_ENDPOINT names a mirror of the hub, HF_TOKEN your account.

exit codes: 0 all there and right; 2 something is missing or wrong, or could not be fetched;
4 no space or no permission; 75 interrupted, the same command goes on
"""


def add_parser(subparsers) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "weights",
        help="show, fetch and check the weights of a recipe",
        description="Show which weights a recipe needs, their sizes and licences, what is there "
        "and whether it is right; fetch what is missing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="nano, projection, paper, official, ...")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="folder to search and to fill")
    parser.add_argument(
        "--download", action="store_true", help="fetch what is missing or wrong from the hub"
    )
    parser.add_argument(
        "--from",
        dest="sources",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="take files from this folder; may be given more than once",
    )
    parser.add_argument("--json", metavar="FILE", help="write it all as JSON (- = stdout)")


def run(args: argparse.Namespace) -> int:
    """Show, fetch where asked to, and show what came of it; returns the exit code.

    Raises:
        SourceError: an unknown recipe, nothing to fetch for it, or the network.
        OSError: the disk.
    """
    from ..augment.recipe import get_recipe
    from ..augment.weights import is_packaged, look, requirements, roots

    say = speaker(args.json)
    recipe = get_recipe(args.recipe)
    weights = args.weights.expanduser().absolute() if args.weights else None
    if not requirements(recipe):
        if weights is not None or args.download or args.sources:
            raise SourceError(
                f"recipe {recipe.name!r} uses no weights", key="RECIPE", todo="just run it"
            )
        say(f"recipe {recipe.name} uses no weights")
    fetching = args.download or args.sources
    if fetching and is_packaged(recipe):
        raise SourceError(
            f"the weights of recipe {recipe.name!r} come with the package, or from your training",
            key="--download" if args.download else "--from",
            todo="leave it out; --weights names the folder that `wristaugment train` wrote",
        )
    for source in args.sources:
        if not source.expanduser().exists():
            raise SourceError("is not here", file=source, key="--from", todo="name what is")
    if fetching:
        for line in _licences(recipe):
            say(line)
    statuses = look(recipe, weights)
    notes: dict[str, str] = {}
    if args.sources:
        notes = _take(recipe, statuses, args, roots(recipe, weights)[0], say)
        statuses = look(recipe, weights)
    if args.download:
        from .fetch import download

        needs = [s.need for s in statuses if s.state in ("missing", "wrong") and s.need.repository]
        if needs:
            download(needs, roots(recipe, weights)[0], say)
            statuses = look(recipe, weights)
    write_json(args.json, _facts(recipe, weights, statuses, notes))
    for line in _lines(recipe, weights, statuses, notes):
        say(line)
    return REFUSED if any(s.state in ("missing", "wrong") for s in statuses) else COMPLETE


def _take(recipe, statuses, args, root: Path, say) -> dict[str, str]:
    """Take from --from what is missing or wrong; {part: why not} for what could not be taken."""
    from .fetch import take

    sources = [source.expanduser().absolute() for source in args.sources]
    parts = {s.need.part: s.part for s in statuses if s.state == "ready"}
    notes = {}
    for status in statuses:
        need = status.need
        if status.state == "ready" or (need.optional and args.weights is None):
            continue  # what takes the released weights' place is only looked for in --weights
        wrong = take(recipe, need, sources, root, parts)
        if wrong is None:
            say(f"taken: {need.place(need.main)}")
            from ..augment.weights import find_below

            part, _ = find_below(root, need)
            if part is not None:
                parts[need.part] = part
        elif wrong:
            notes[need.part] = wrong
    return notes


def _licences(recipe) -> list[str]:
    from ..augment.weights import notices

    return [f"licence: {text}" for text in notices(recipe)]


def _place(need) -> str:
    return need.place(need.main)


def _facts(recipe, weights, statuses, notes) -> dict:
    """All of it as plain values."""
    from ..augment.weights import notices, roots

    return {
        "recipe": recipe.name,
        "roots": [str(root) for root in roots(recipe, weights)],
        "ready": all(s.state in ("ready", "unused") for s in statuses),
        "bytes_to_fetch": _to_fetch(statuses),
        "notices": notices(recipe),
        "parts": [
            {
                "part": s.need.part,
                "repository": s.need.repository or None,
                "file": _place(s.need),
                "bytes": _bytes(s),
                "licence": s.need.licence,
                "why": s.need.why,
                "optional": s.need.optional,
                "state": s.state,
                "files": {k: str(v) for k, v in s.part.files.items()} if s.part else {},
                "text": s.text or notes.get(s.need.part, ""),
            }
            for s in statuses
        ],
    }


def _bytes(status) -> int:
    """Of what is there, else about how many are to come."""
    if status.part is None:
        return status.need.bytes
    return sum(path.stat().st_size for path in status.part.files.values() if path.is_file())


def _to_fetch(statuses) -> int:
    return sum(
        s.need.bytes for s in statuses if s.need.repository and s.state in ("missing", "wrong")
    )


def _lines(recipe, weights, statuses, notes) -> list[str]:
    from ..augment.weights import roots
    from .progress import size

    if not statuses:
        return []
    rows = [
        (s.state, size(_bytes(s)), s.need.licence, _place(s.need), s.need.why) for s in statuses
    ]
    wide = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [f"weights of recipe {recipe.name}, searched in:"]
    lines += [f"  {root}" for root in roots(recipe, weights)]
    lines += [
        f"{state:{wide[0]}}  {much:>{wide[1]}}  {licence:{wide[2]}}  {place:{wide[3]}}  {why}"
        for state, much, licence, place, why in rows
    ]
    for s in statuses:
        if s.state == "wrong":
            lines.append(f"wrong: {s.text}")
        if s.state in ("missing", "unused") and s.need.part in notes:
            lines.append(f"not taken: {notes[s.need.part]}")
    lines += _licences(recipe)
    if _to_fetch(statuses):
        lines.append(
            f"to fetch: about {size(_to_fetch(statuses))}: "
            f"wristaugment weights {recipe.name} --download, or --from DIR"
        )
    stages = [s.need.part for s in statuses if not s.need.repository and s.state == "missing"]
    if recipe.weights is None:
        lines += [
            f"to train: wristaugment train {stage} --recipe {recipe.name} --dataset ... --out DIR"
            for stage in stages
        ]
    if all(s.state in ("ready", "unused") for s in statuses):
        lines.append("all there")
    return lines
