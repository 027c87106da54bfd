"""The one error that bad input raises: where it is, what was found, and what to do about it."""

from __future__ import annotations

import errno


class SourceError(ValueError):
    """Something in a dataset (or in what the user said about it) is not as it must be.

    Args:
        found: what is wrong, in a few words.
        file: the file or folder it is in.
        record: the record (episode) inside the file, as users count: from 0.
        key: the feature, array or option.
        todo: what the user can do about it.
    """

    def __init__(
        self,
        found: str,
        *,
        file: object | None = None,
        record: int | None = None,
        key: str | None = None,
        todo: str | None = None,
    ):
        self.found, self.todo = found, todo
        self.file = None if file is None else str(file)
        self.record, self.key = record, key
        super().__init__(found)

    def __str__(self) -> str:
        where = [str(self.file)] if self.file is not None else []
        if self.record is not None:
            where.append(f"record {self.record}")
        if self.key is not None:
            where.append(f"key {self.key!r}")
        text = f"{', '.join(where)}: {self.found}" if where else self.found
        return f"{text}; {self.todo}" if self.todo else text

    def __reduce__(self):
        # Keyword-only fields do not survive the default pickling, and these cross process borders.
        fields = {"file": self.file, "record": self.record, "key": self.key, "todo": self.todo}
        return (_rebuild, (type(self), self.found, fields))


class RemoteError(OSError):
    """A file that lies elsewhere could not be brought here: the network's fault, or this disk's.

    Readers let it pass, since a record is not damaged because a server does not answer.
    """

    def __init__(self, found: str, code: int = errno.EIO):
        super().__init__(code, found)

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self):
        return type(self), (self.strerror, self.errno)


def _rebuild(kind: type[SourceError], found: str, fields: dict) -> SourceError:
    return kind(found, **fields)
