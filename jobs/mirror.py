"""Datasets at s3://, gs:// and wherever else fsspec reaches, read through a folder of this machine.

A mirror is a folder below the scratch folder that has every file of a URL as a stub: of its name
and size, and empty. When a reader opens a file (readers.files.present) it is downloaded, whole, and
when its shard is done it may be released, which makes it a stub again. So every format is read
remotely as it is read locally, and nothing is fetched that no one opens:

- RLDS: the two JSON files to open a dataset, a shard's file when its first record is read;
- CALVIN: the ranges, the configuration and one frame; a record's frames together;
- raw DROID: metadata of an episode, and one video of each camera's serial number;
- zarr: metadata and `episode_ends`; the chunks that are read. A zip is fetched when it is opened;
- LeRobot: `meta/`; tables and videos of the episodes that are read;
- HDF5 (robomimic, LIBERO, ALOHA): a few blocks of every file, since only a file itself tells how
  many episodes it holds, and the whole of the first; another when its first episode is read.

Processes of one machine share a mirror, and one that uses a file holds a lock on it, so that none
releases what another reads. Locks are bytes of one lock file: whatever dies leaves none behind. The
name of a mirror has a hash of its URL and of all names, sizes and ETags, so that a source that was
changed is another mirror; and this machine's boot, since what was written before a power cut is not
trusted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..readers.errors import RemoteError, SourceError
from ..readers.files import provider_of, read_at, register
from .mirror_locks import Locks
from .remote import Remote, clean, is_url

SCRATCH = "WRISTAUGMENT_SCRATCH"
_TREE, _PARTS, _LOCKS = "tree", "parts", "locks"
_STUB, _FULL = 0, 0o644  # the modes of files: 0 is the mark of a stub
_AT_ONCE = 16  # files fetched at a time
_ODD = re.compile(r"(^|/)\.{0,2}(/|$)|\0")  # empty parts, "." and ".."
_mirrors: dict[Path, Mirror] = {}  # by the folder that holds the mirror


class Mirror:
    """A URL as a folder (or one file) of this machine; see above. It is a readers.files.Provider.

    Args:
        url: of a folder or of one object.
        scratch: the folder that holds mirrors; see `scratch_folder`.
        key: of the mirror that another process has made of it. Where that is on this machine
            nothing is listed; elsewhere what is listed must be the same.

    Attributes:
        url: without what may be secret in it.
        key: tells it from others, on every machine.
        root: the folder, or the file, that has the URL's content.
        top, prefix: paths below `top` stand for URLs that begin with `prefix`.

    Raises:
        SourceError: there is nothing, it may not be read, a package is missing, a name cannot be a
            file's, or it is not what `key` stands for.
        OSError: there is no room.
    """

    def __init__(self, url: str, scratch: Path, key: str | None = None):
        self.url = clean(url)
        self._remote = Remote(url)
        self.prefix = self._remote.prefix
        self._scratch = scratch
        listing = None
        if key is None or not self._home(key).is_dir():
            listing = self._remote.listing()
            found = _key(self.url, listing)
            if key not in (None, found):
                raise SourceError(
                    "is not what it was when the job began",
                    file=self.url,
                    todo="leave the source as it is while a job runs; run the command again",
                )
            key = found
        self.key, home = key, self._home(key)
        self.top = home / _TREE
        self.root = self.top.joinpath(*self._remote.parts)
        if listing is not None:
            self._make(home, listing)
        self._start, self._parts = len(str(self.top)) + 1, home / _PARTS
        self._locks = Locks.of(home / _LOCKS)

    # ---- what readers.files asks for

    def fetch(self, path: str) -> None:
        """Have a file's content be there until this process releases it, or ends."""
        name = path[self._start :]
        if name in self._locks.held:
            return
        with self._locks.threads(name):
            if name in self._locks.held:
                return
            try:
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    return
            except FileNotFoundError:
                return
            with self._locks.holding(name):
                if _is_stub(os.lstat(path)):
                    with self._locks.alone(name):
                        if _is_stub(found := os.lstat(path)):
                            self._download(path, name, found)

    def fetch_all(self, paths: Sequence[str]) -> None:
        """As `fetch`, several at a time; the first failure is raised when all have ended."""
        wanted = [path for path in paths if path[self._start :] not in self._locks.held]
        if len(wanted) < 2:
            for path in wanted:
                self.fetch(path)
            return
        with ThreadPoolExecutor(min(_AT_ONCE, len(wanted))) as pool:
            for _ in pool.map(self.fetch, wanted):
                pass

    def is_away(self, path: str) -> bool:
        """Whether a file is a stub; nothing is locked."""
        try:
            return path[self._start :] not in self._locks.held and _is_stub(os.lstat(path))
        except FileNotFoundError:
            return False

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """Bytes [start, start + length) of a file; of a stub they are read from the URL."""
        with contextlib.suppress(PermissionError):  # a stub, to whoever is not root
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if not _is_stub(os.fstat(handle)):
                    return read_at(handle, start, length)
            finally:
                os.close(handle)
        size = os.stat(path).st_size
        end = min(start + length, size)
        if start >= end:
            return b""
        url = self.url_of(path)
        data = self._remote.read_range(self._name(path), start, end, url)
        if len(data) != end - start:
            raise _changed(url, f"gives {len(data)} bytes, where {end - start} are due")
        return data

    # ---- what jobs ask for

    def release(self, paths: Iterable[Path | str]) -> int:
        """Make files stubs again, so that they take no room.

        A file that another process of this machine uses stays, until that one releases it.

        Args:
            paths: at or below `root`, of files that were fetched or not.

        Returns:
            How many bytes were freed.
        """
        freed = 0
        for path in [str(path) for path in paths]:
            name = path[self._start :]
            with self._locks.threads(name):
                try:
                    found = os.lstat(path)
                except FileNotFoundError:
                    continue
                if not stat.S_ISREG(found.st_mode):
                    continue
                if self._locks.last(name):
                    try:
                        if not _is_stub(found):
                            self._unload(path, name, found)
                            freed += found.st_size
                    finally:
                        self._locks.drop(name)
        return freed

    def held(self) -> list[str]:
        """The paths of the files that this process has had fetched and has not released.

        Of thousands, those that were asked for last; others are free to be released.
        """
        return [f"{self.top}/{name}" for name in list(self._locks.held)]

    def remote(self, path: Path | str) -> tuple[object, str]:
        """(the fsspec file system, the path there) of a file or folder of the mirror."""
        return self._remote.fs, self._remote.path_of(self._name(os.fspath(path)))

    def url_of(self, path: Path | str) -> str:
        """The URL of a file or folder of the mirror."""
        return f"{self.prefix}{os.fspath(path)[self._start :]}"

    # ---- inside

    def _home(self, key: str) -> Path:
        return self._scratch / f"{key}-{_boot()}"

    def _name(self, path: str) -> str:
        """A path's name below the URL; "" is the URL itself."""
        return path[len(str(self.root)) + 1 :]

    def _make(self, home: Path, listing: list[tuple[str, int, str, int]]) -> None:
        """Make all stubs, unless that was done; a mirror that has its name is whole."""
        with _alone(home.with_name(f"{home.name}.lock")):
            if home.is_dir():
                return
            making = home.with_name(f"{home.name}.making")
            shutil.rmtree(making, ignore_errors=True)
            (making / _PARTS).mkdir(parents=True)
            root = making.joinpath(_TREE, *self._remote.parts)
            last = ""
            for name, size, _, time in listing:
                if name and _ODD.search(name):
                    raise self._odd(name, "has a part that cannot be a file's name")
                path = f"{root}/{name}" if name else str(root)
                folder = path.rpartition("/")[0]
                try:
                    if folder != last:
                        os.makedirs(folder, exist_ok=True)
                        last = folder
                    _write_stub(path, size, time)
                except (FileExistsError, NotADirectoryError, IsADirectoryError):
                    raise self._odd(name, "is the name of an object and of a folder") from None
                except OSError as error:
                    if error.errno != errno.ENAMETOOLONG:
                        raise
                    raise self._odd(name, "is too long for a file's name") from None
            os.rename(making, home)

    def _odd(self, name: str, found: str) -> SourceError:
        return SourceError(found, file=f"{self.url}/{name}", todo="rename it in the store")

    def _download(self, path: str, name: str, stub: os.stat_result) -> None:
        """Bring a file here. The caller alone does so, on this machine."""
        part = f"{self._parts}/{self._locks.code(name)}"
        url, size = self.url_of(path), 0
        try:
            for _ in range(2):  # the second time for a connection that ended early
                self._remote.get(self._name(path), part, url)
                size = os.stat(part).st_size
                if size == stub.st_size:
                    break
            else:
                raise _changed(url, f"is {size} bytes long, where {stub.st_size} were listed")
            os.chmod(part, _FULL)
            os.utime(part, ns=(stub.st_mtime_ns, stub.st_mtime_ns))
            os.replace(part, path)
        except OSError as error:
            if isinstance(error, RemoteError):
                raise
            raise RemoteError(
                f"{self._scratch}: cannot hold {url} ({error.strerror}); make room, or name "
                f"another folder with ${SCRATCH}",
                error.errno or errno.EIO,
            ) from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)

    def _unload(self, path: str, name: str, full: os.stat_result) -> None:
        """Put a stub in a file's place. The caller alone uses it, on this machine."""
        part = f"{self._parts}/{self._locks.code(name)}.stub"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        _write_stub(part, full.st_size, full.st_mtime_ns)
        os.replace(part, path)


def localise(text: Path | str, *, key: str | None = None) -> Path:
    """What a user gave for a dataset, as a path to read from: that of its mirror for a URL.

    Args:
        key: `Mirror.key` of what another process of the job read.

    Raises:
        SourceError, OSError: as Mirror.
    """
    if not (isinstance(text, str) and is_url(text)):
        return Path(re.sub("^(file|local)://", "", str(text))).expanduser()
    mirror = Mirror(text, scratch_folder(), key)
    register(mirror.root, mirror)
    _mirrors[mirror.root] = mirror
    return mirror.root


def pinned(text: Path | str) -> tuple[str, str | None]:
    """What `localise` is to be given elsewhere, or later, to read what is there now.

    Returns:
        (the URL, the key of its mirror), or (an absolute path, None).

    Raises:
        SourceError, OSError: as Mirror.
    """
    path = localise(text)
    found = mirror_of(path)
    return (str(text), found.key) if found else (str(path.absolute()), None)


def mirror_of(path: Path | str) -> Mirror | None:
    """The mirror that a path lies in."""
    found = provider_of(path)
    return found if isinstance(found, Mirror) else None


def mirrors() -> list[Mirror]:
    """All mirrors that this process reads."""
    return list(_mirrors.values())


def release_all(keep: Iterable[Path] = (), below: Path | None = None) -> None:
    """Release what this process has had fetched, of every mirror.

    Args:
        keep: files that stay. below: a folder whose files stay.
    """
    if _mirrors:
        kept = {str(path) for path in keep}
        start = f"{below}{os.sep}" if below else "\0"
        for mirror in mirrors():
            mirror.release(
                path for path in mirror.held() if path not in kept and not path.startswith(start)
            )


def shown(text: str) -> str:
    """A text for people: paths in mirrors as the URLs that they stand for."""
    for mirror in _mirrors.values():
        text = text.replace(f"{mirror.top}{os.sep}", mirror.prefix)
    return text


def scratch_folder() -> Path:
    """The folder that holds this user's mirrors, made if it is not there.

    Raises:
        SourceError: what lies there in the temporary folder is another user's.
    """
    given = os.environ.get(SCRATCH)
    folder = Path(given or f"{tempfile.gettempdir()}/wristaugment-{os.getuid()}").expanduser()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = os.lstat(folder)
    # Anyone may have made a folder of this name there, to have us read what is theirs.
    if not given and (found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode)):
        raise SourceError(
            "is not this user's folder", file=folder, todo=f"name another with ${SCRATCH}"
        )
    return folder.resolve()


def _key(url: str, listing: list[tuple[str, int, str, int]]) -> str:
    digest = hashlib.sha256(f"{url}\0".encode())
    for name, size, tag, _ in listing:
        digest.update(f"{name}\0{size}\0{tag}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:24]


def _boot() -> str:
    """What tells this machine, since it was started, from others that see the same folder."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        boot = os.uname().nodename
    return hashlib.sha256(boot.encode()).hexdigest()[:8]


def _is_stub(found: os.stat_result) -> bool:
    return stat.S_IMODE(found.st_mode) == _STUB


def _write_stub(path: str, size: int, time: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _STUB)
    try:
        os.ftruncate(handle, size)
        os.utime(handle, ns=(time, time))
    finally:
        os.close(handle)


def _changed(url: str, found: str) -> SourceError:
    todo = "the source was changed while it was read; run the command again to read it anew"
    return SourceError(found, file=url, todo=todo)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
