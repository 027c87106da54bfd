"""Weights into a root: from the hub, or from files that are here already. Whole files or none.

The hub's client fetches and, within a process, resumes; across processes it no longer keeps what it
has, so the partial file is kept here, beside its place and under the name of what it will be.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..augment.recipe import Recipe
from ..augment.weights import INDEX, Located, Need, Part, find_below, shards
from ..augment.weights_hashes import remember, remembered_sha256, write_record
from ..models.errors import WeightsError
from ..readers.errors import SourceError
from ..readers.files import file_sha256
from ..writers.atomic import copy_atomic, fsync_dir, publish, staged_name
from .output import DiskError

Say = Callable[[str], None]

_ANOTHER_WAY = "or give files that you have with --from DIR"


@dataclass(frozen=True)
class Remote:
    """A file on the hub: its place below a root, and what the hub says of it."""

    repository: str
    name: str
    place: str
    size: int
    etag: str
    revision: str


class Hub:
    """The hub as the environment names it (HF_ENDPOINT, HF_TOKEN).

    Args:
        endpoint: another than the environment's.
    """

    def __init__(self, endpoint: str | None = None):
        from huggingface_hub import constants

        self.endpoint = endpoint or constants.ENDPOINT
        self.revisions: dict[str, str] = {}

    def ask(self, need: Need, name: str) -> Remote | None:
        """What the hub says of a file; None where the repository has no such file.

        Raises:
            SourceError: no network, no access, no such repository.
        """
        from huggingface_hub import get_hf_file_metadata
        from huggingface_hub.errors import EntryNotFoundError

        try:
            found = get_hf_file_metadata(self._url(need.repository, name), endpoint=self.endpoint)
        except EntryNotFoundError:
            return None
        except Exception as error:
            raise self._said(error, need.repository) from error
        if not found.etag or found.size is None or not found.commit_hash:
            raise SourceError(
                f"{self.endpoint} does not answer as the hub does",
                key="HF_ENDPOINT",
                todo=f"name the hub or a mirror of it, {_ANOTHER_WAY}",
            )
        # All of a repository is of one revision, whatever is pushed meanwhile.
        self.revisions.setdefault(need.repository, found.commit_hash)
        place = need.place(name)
        return Remote(need.repository, name, place, found.size, found.etag, found.commit_hash)

    def _url(self, repository: str, name: str) -> str:
        from huggingface_hub import hf_hub_url

        revision = self.revisions.get(repository, "main")
        return hf_hub_url(repository, name, revision=revision, endpoint=self.endpoint)

    def get(self, remote: Remote, root: Path) -> None:
        """Fetch a file to its place and record it; goes on where it was cut off.

        Raises:
            SourceError: the network, or a file that is not what the hub said.
            OSError: the disk.
        """
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        final = root / remote.place
        final.parent.mkdir(parents=True, exist_ok=True)
        staged = partial_name(final, remote.etag)
        with open(staged, "ab") as file:
            _alone(file, final)
            have = file.tell()
            if have > remote.size:
                have = file.truncate(0)
            try:
                if have < remote.size:
                    http_get(
                        self._url(remote.repository, remote.name),
                        file,  # type: ignore[arg-type]
                        resume_size=have,
                        headers=build_hf_headers(),
                        expected_size=remote.size,
                        displayed_filename=remote.name,
                    )
            except Exception as error:
                raise self._said(error, remote.repository) from error
            file.flush()
            os.fsync(file.fileno())
        digest = file_sha256(staged)
        if not _is(staged, remote, digest):
            staged.unlink()
            raise SourceError(
                f"what came of {remote.name} is not what {remote.repository} says (another hash)",
                file=final,
                todo="run the same command again; if it stays so, the network changes files",
            )
        publish(staged, final)
        remember(final, digest)
        write_record(root, remote.place, _record(digest, remote.size, remote))

    def _said(self, error: Exception, repository: str) -> Exception:
        """What went wrong in one line; errors of the disk stay what they are."""
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )

        key, again = "--download", "what was fetched is kept: run the same command to go on"
        if isinstance(error, GatedRepoError):
            return SourceError(
                f"{repository} is gated",
                key=key,
                todo=f"accept its terms at {self.endpoint}/{repository} and set HF_TOKEN",
            )
        if isinstance(error, RepositoryNotFoundError):
            return SourceError(
                f"{self.endpoint} has no {repository}, or not for you",
                key=key,
                todo=f"set HF_TOKEN if it is private, {_ANOTHER_WAY}",
            )
        if isinstance(error, OfflineModeIsEnabled):
            return SourceError(
                "the hub is switched off", key="HF_HUB_OFFLINE", todo=f"unset it, {_ANOTHER_WAY}"
            )
        if isinstance(error, HfHubHTTPError):
            return SourceError(
                f"{self.endpoint} answered {error.response.status_code} for {repository}",
                key=key,
                todo=f"{again}, {_ANOTHER_WAY}",
            )
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            return error
        if isinstance(error, OSError) and type(error) is OSError and error.errno is not None:
            return error  # a write that failed names no file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return SourceError(
            f"cannot fetch {repository} from {self.endpoint}: {reason}",
            key=key,
            todo=f"check the network (HF_ENDPOINT names a mirror), {_ANOTHER_WAY}; {again}",
        )


def partial_name(final: Path, etag: str) -> Path:
    """Where a file is fetched to; another version of it would go elsewhere."""
    return final.with_name(f".{final.name}.{etag[:16]}.part")


def _alone(file: Any, final: Path) -> None:
    """Refuse to fetch what another process is fetching."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SourceError(
            "another process is fetching this file", file=final, todo="wait for it"
        ) from None
    except OSError:
        pass  # a file system without locks; a mixed file has another hash


def _is(path: Path, remote: Remote, digest: str) -> bool:
    """Whether a file is the one on the hub: large ones go by SHA-256, small ones by git's hash."""
    if path.stat().st_size != remote.size:
        return False
    if len(remote.etag) == 64:
        return digest == remote.etag
    if len(remote.etag) == 40:
        data = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == remote.etag
    return True  # a mirror with tags of its own; names and shapes are checked all the same


def _record(digest: str, size: int, remote: Remote | None, source: str = "") -> dict[str, Any]:
    return {
        "sha256": digest,
        "bytes": size,
        "source": remote.repository if remote else source,
        "revision": remote.revision if remote else None,
    }


def download(needs: Sequence[Need], root: Path, say: Say, hub: Hub | None = None) -> None:
    """Fetch the files of some needs into a root; those that are there and the hub's own stay.

    Raises:
        SourceError: network, access, or a file that came out wrong.
        DiskError: too little room for all of it; nothing was fetched then.
        OSError: the disk.
    """
    hub = hub or Hub()
    wanted = [remote for need in needs for remote in _remotes(hub, need, root)]
    pending = []
    for remote in wanted:
        final = root / remote.place
        if final.is_file() and final.stat().st_size == remote.size:
            digest = remembered_sha256(final)
            if _is(final, remote, digest):
                write_record(root, remote.place, _record(digest, remote.size, remote))
                continue
        pending.append(remote)
    missing = sum(remote.size for remote in pending) - sum(
        staged.stat().st_size
        for remote in pending
        if (staged := partial_name(root / remote.place, remote.etag)).is_file()
    )
    _room(root, missing)
    for number, remote in enumerate(pending, 1):
        say(f"{number}/{len(pending)} {remote.place}, {remote.size / 1e9:.3f} GB")
        hub.get(remote, root)


def _remotes(hub: Hub, need: Need, root: Path) -> Iterator[Remote]:
    """The files of a need on the hub; an index of shards is fetched to learn their names."""
    main = hub.ask(need, need.main)
    if main is None:
        index = hub.ask(need, need.main + INDEX)
        if index is None:
            raise SourceError(
                f"{need.repository} has no {need.main}", key="--download", todo=_ANOTHER_WAY[3:]
            )
        hub.get(index, root)
        yield index
        folder = Path(need.main).parent
        names = [(folder / name).as_posix() for name in shards(root / index.place)]
    else:
        yield main
        names = []
    for name in (*names, *need.beside, *need.extras):
        found = hub.ask(need, name)
        if found is not None:
            yield found
        elif name not in need.extras:
            raise SourceError(
                f"{need.repository} has no {name}", key="--download", todo=_ANOTHER_WAY[3:]
            )


def _room(root: Path, needed: int) -> None:
    """DiskError where a root's disk has less room than is needed."""
    there = root
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise DiskError(f"{root}: {needed / 1e9:.1f} GB are to come and {free / 1e9:.1f} are free")


def take(
    recipe: Recipe, need: Need, sources: Sequence[Path], root: Path, others: dict[str, Part]
) -> str | None:
    """Take the files of a need from folders of the user's, by layout or by their names.

    Names and shapes are checked first. Files are linked where that is possible, else copied.

    Args:
        sources: folders (or files). root: where they go.
        others: the parts that are there, by name; some can only be judged beside another.

    Returns:
        None, or why nothing was taken ("" where nothing of that name was found).

    Raises:
        OSError: the disk.
    """
    from ..augment.weights_shapes import check_part

    wrong = ""
    for part, missing in _candidates(need, sources):
        if missing:
            wrong = wrong or f"{part.path}: lacks {', '.join(missing)} beside it"
            continue
        try:
            check_part(Located(recipe, {**others, need.part: part}), part)
        except WeightsError as error:
            wrong = wrong or str(error)
            continue
        # The weights come last, so that what is there is complete.
        for name, path in reversed(part.files.items()):
            place = need.place((Path(need.main).parent / name).as_posix())
            digest = _bring(path, root / place)
            source = f"{path.name} of the user's"
            write_record(root, place, _record(digest, path.stat().st_size, None, source))
        return None
    return wrong


def _candidates(need: Need, sources: Sequence[Path]) -> Iterator[tuple[Part, list[str]]]:
    """Folders that hold a file of the need's name: what is there, and what is missing beside it."""
    names = [Path(name).name for name in (need.main, *need.other_names)]
    flat = replace(
        need,
        repository="",
        main=names[0],
        other_names=tuple(names[1:]),
        beside=tuple(Path(name).name for name in need.beside),
        extras=tuple(Path(name).name for name in need.extras),
    )
    wanted = {name + end for name in names for end in ("", INDEX)}
    inside = Path(need.main).parent
    repository = Path(need.repository)
    seen = set()
    for source in sources:
        if source.is_file():
            folders = [source.parent] if source.name in wanted else []
        else:
            likely = [source / repository / inside, source / repository.name / inside]
            likely += [source / inside, source]
            folders = [*likely, *(path.parent for path in _walk(source, wanted))]
        for folder in folders:
            if folder in seen:
                continue
            seen.add(folder)
            part, missing = find_below(folder, flat)
            if part is not None:
                yield part, missing


def _walk(folder: Path, names: set[str]) -> Iterator[Path]:
    """Files of some names below a folder, in the order of their paths."""
    for base, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(base) / name for name in sorted(names.intersection(files)))


def _bring(source: Path, final: Path) -> str:
    """Link or copy a file to its place, whole or not at all; returns its SHA-256."""
    source = source.resolve()  # the hub's cache holds links to its files
    if not (final.exists() and final.samefile(source)):
        final.parent.mkdir(parents=True, exist_ok=True)
        staged = staged_name(final)
        with contextlib.suppress(FileNotFoundError):
            staged.unlink()
        try:
            os.link(source, staged)
        except OSError:  # another disk, a file system without links, another's file
            copy_atomic(source, final)
        else:
            with open(staged, "rb") as file:
                os.fsync(file.fileno())
            publish(staged, final)
            fsync_dir(final.parent)
    return remembered_sha256(final)
