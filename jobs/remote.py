"""One URL as fsspec sees it: what lies there, whole files and parts of them, and errors in words.

Passing faults are tried again by the stores' own libraries. Endpoints and credentials are theirs,
too: AWS_ENDPOINT_URL, AWS_PROFILE, AWS_ACCESS_KEY_ID and the other AWS_* variables and files of
s3://, GOOGLE_APPLICATION_CREDENTIALS and STORAGE_EMULATOR_HOST of gs://; and fsspec's own, as in
FSSPEC_S3_ANON=true for public buckets and FSSPEC_S3_ENDPOINT_URL.
"""

from __future__ import annotations

import datetime
import errno
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

from ..readers.errors import RemoteError, SourceError

INSTALL = "pip install 'wristaugment[remote]'"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_USER = re.compile(r"(?<=://)[^/@]*@")  # a name and a password
_QUERY = re.compile(r"\?[^\s\"']*")  # a signature
# What tells an object's content from another, as the libraries of the stores spell it.
_TAGS = ("ETag", "etag", "md5Hash", "crc32c", "generation")
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")
# What an fsspec file system raises for the disk that it writes to, and not for the store.
_LOCAL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS))
_CREDENTIALS = (
    "check your credentials: AWS_PROFILE or AWS_ACCESS_KEY_ID for s3:// (FSSPEC_S3_ANON=true for "
    "a public bucket), `gcloud auth application-default login` for gs://"
)
_T = TypeVar("_T")


def is_url(text: object) -> bool:
    """Whether a text names something elsewhere, as in s3://bucket/folder."""
    found = _URL.match(text) if isinstance(text, str) else None
    return found is not None and found[0] not in ("file://", "local://")


def clean(url: str) -> str:
    """A URL without what may be secret in it, or stand behind it."""
    url = _USER.sub("", url)
    url = _QUERY.sub("", url) if url.startswith("http") else url  # elsewhere it is part of a name
    return url if url.endswith("://") else url.rstrip("/")


class Remote:
    """A URL and the file system that it lies in.

    Attributes:
        url: without secrets. parts: of its path, the bucket first.
        prefix: the scheme, as in "s3://".

    Raises:
        SourceError: it is no usable URL.
    """

    def __init__(self, url: str):
        self._given, self.url = url, clean(url)
        if _USER.search(url):
            raise SourceError(
                "has a name or a password in it, which would be seen",
                file=self.url,
                todo=_CREDENTIALS,
            )
        self.prefix, _, path = self.url.partition("://")
        self.prefix += "://"
        self.parts = [part for part in path.split("/") if part]
        if not self.parts or not {".", ".."}.isdisjoint(self.parts):
            raise SourceError(
                "is no URL of a folder or file",
                file=self.url,
                todo="give one as in s3://bucket/folder",
            )
        self._systems: dict[int, tuple[Any, str]] = {}

    @property
    def fs(self) -> Any:
        """The fsspec file system, one for each process: its threads survive no fork."""
        return self._system[0]

    @property
    def _system(self) -> tuple[Any, str]:
        if os.getpid() not in self._systems:
            self._systems = {os.getpid(): self._opened()}
        return self._systems[os.getpid()]

    def _opened(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs

            fs, path = url_to_fs(self._given, use_listings_cache=False)
        except ImportError as error:
            scheme = self.prefix.removesuffix("://")
            package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(
                scheme, error.name or scheme
            )
            raise SourceError(
                f"reading it needs the package {package}", file=self.url, todo=INSTALL
            ) from None
        except ValueError as error:
            raise SourceError(
                f"is no URL that fsspec knows ({_short(error)})",
                file=self.url,
                todo="give one as in s3://bucket/folder or gs://bucket/folder",
            ) from None
        return fs, path.rstrip("/")

    def path_of(self, name: str) -> str:
        """The path in the file system of a name below the URL; of the URL itself for ""."""
        return f"{self._system[1]}/{name}" if name else self._system[1]

    def listing(self) -> list[tuple[str, int, str, int]]:
        """(name below the URL, bytes, tag, time of change in ns) of every object, sorted by name.

        The name of a single object's own URL is "". An object that stands for a folder is none.

        Raises:
            SourceError: there is nothing, or it may not or cannot be listed.
        """
        fs, base = self._system

        def find() -> dict[str, dict]:
            return fs.find(base, detail=True, withdirs=False)

        try:
            found = _tried(find, self.url)
        except RemoteError as error:
            # Nothing is under way: whatever it is, the user can mend it.
            raise SourceError(str(error).removeprefix(f"{self.url}: "), file=self.url) from None
        out = []
        while found:
            path, info = found.popitem()  # of a million of them, a second copy would be a gigabyte
            if not (path == base or path.startswith(f"{base}/")):
                continue
            if info.get("type") != "directory" and not path.endswith("/"):
                tag = next((str(info[key]) for key in _TAGS if info.get(key)), "")
                time = _nanoseconds(next((info[key] for key in _TIMES if info.get(key)), 0))
                name = path[len(base) :].removeprefix("/")
                out.append((name, int(info.get("size") or 0), tag or str(time), time))
        if not out:
            raise SourceError(
                "there is nothing at this URL", file=self.url, todo="check it, and the bucket"
            )
        return sorted(out)

    def get(self, name: str, path: str, url: str) -> None:
        """Download one object to a file.

        Raises:
            SourceError: it is not there any more.
            RemoteError: it may not be read, or the store cannot be reached.
            OSError: there is no room on this machine.
        """
        _tried(lambda: self.fs.get_file(self.path_of(name), path), url)

    def error(self, error: Exception, what: str) -> OSError:
        """What is raised for an error of the store's libraries, in words.

        Args:
            what: was tried, as in "read".
        """
        return _in_words(error, self.url, what)

    def read_range(self, name: str, start: int, end: int, url: str) -> bytes:
        """Bytes [start, end) of an object; raises as `get`."""
        return _tried(lambda: self.fs.cat_file(self.path_of(name), start=start, end=end), url)


def _tried(call: Callable[[], _T], url: str) -> _T:
    """What `call` gives; what the libraries raise as one of our errors."""
    try:
        return call()
    except FileNotFoundError as error:
        raise SourceError(
            f"is not there ({_short(error)})", file=url, todo="check the bucket and the path"
        ) from None
    except Exception as error:
        raise _in_words(error, url, "read") from error


def _in_words(error: Exception, url: str, what: str) -> OSError:
    """What is raised for a store's error: the machine's fault, never the source's or a record's.

    Rights that have run out are none of theirs: a job that runs for days would give up every record
    from then on.
    """
    if isinstance(error, OSError) and error.errno in _LOCAL:
        return error
    return RemoteError(f"{url}: {'; '.join(_reason(error, what))}")


def _reason(error: Exception, what: str) -> tuple[str, str]:
    """(what is wrong, what to do) in words; `what` was tried: "read", "used"."""
    name = type(error).__name__
    if isinstance(error, PermissionError) or "Credential" in name or "RefreshError" in name:
        return f"may not be {what} ({_short(error)})", _CREDENTIALS
    todo = "check the URL, the network and the endpoint (AWS_ENDPOINT_URL), then try again"
    return f"cannot be {what} ({name}: {_short(error)})", todo


def _nanoseconds(value: object) -> int:
    """A time of change as a file system tells it, in whichever form; 0 where it does not."""
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            return 0
    if isinstance(value, datetime.datetime):
        value = value.timestamp()
    return int(float(value) * 1e9) if isinstance(value, int | float) else 0


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return _QUERY.sub("", _USER.sub("", text))[:160]
