"""Pickles of plain data and numpy arrays, read so that none of them can do anything.

A pickle is a program that may call what it can name. Here it can name only what numpy's own arrays
are made of, and what stands behind these names are the small classes below, which check a size
before they make anything of it. Its opcodes are looked through first, since some of them alone
(a memo of a billion entries) would fill the memory.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

_ARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
# The others have opcodes of their own, and bytes(10**12) would be called as one asks for it.
_BUILTINS = {"complex": complex, "frozenset": frozenset, "set": set}
# Opcodes that name something outside of the pickle in ways that plain data never needs.
_EXTENSIONS = ("EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER")
_REFUSED = frozenset((*_EXTENSIONS, "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"))
_MEMO = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_KINDS = "biufcSUO"


class Refused(ValueError):
    """A pickle that is not of plain data and arrays, or is damaged."""


def load_npy_object(data: bytes) -> Any:
    """What is in the .npy file of one Python object, as `numpy.save(path, {...})` writes it.

    Returns:
        The object: dicts, lists, tuples, numbers and strings as they are; an array in it is an
        `Array`, to be asked for its `value()`.

    Raises:
        Refused: it is no such file, is damaged, or would need what plain data does not.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(version)
        _, _, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise Refused("is no .npy file of a pickled object") from None
    if not dtype.hasobject:
        raise Refused("is no .npy file of a pickled object")
    found = loads(data[file.tell() :])
    value = found.value() if isinstance(found, Array) else found
    if isinstance(value, np.ndarray) and value.shape == ():
        return value.item()
    raise Refused("is no .npy file of one pickled object")


def loads(data: bytes) -> Any:
    """The object in a pickle of plain data; an array in it is an `Array`.

    Raises:
        Refused: it is damaged, or names anything but numpy's arrays and plain types.
    """
    try:
        _look_through(data)
        return _Unpickler(io.BytesIO(data)).load()
    except Refused:
        raise
    except Exception as error:  # damaged bytes raise nearly anything
        raise Refused(f"is a damaged pickle ({type(error).__name__})") from None


class Array:
    """An array as a pickle describes it, made only when it is asked for."""

    def __init__(self) -> None:
        self._state: tuple | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("holds an array that is not numpy's")
        self._state = state

    def value(self) -> np.ndarray:
        """The array; one of objects may hold further `Array`s.

        Raises:
            Refused: its declared size is not that of its bytes.
        """
        if self._state is None:
            raise Refused("holds an array without contents")
        _, shape, dtype, fortran, raw = self._state
        return _array(raw, dtype, shape, "F" if fortran else "C")


class _Dtype:
    """numpy.dtype, as far as plain arrays need it: a name of two or three letters, an order."""

    def __init__(self, name: Any = None, *_: Any):
        if not isinstance(name, str) or not 2 <= len(name) <= 8:
            raise Refused("holds an array of an unknown kind")
        if name[0] not in _KINDS or not name[1:].isdigit():
            raise Refused("holds an array of an unknown kind")
        self.name, self._order = name, "="

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "=", "|"):
            raise Refused("holds an array of an unknown kind")
        self._order = order

    @property
    def dtype(self) -> np.dtype:
        dtype = np.dtype(self.name)
        return np.dtype(f"{self._order}{self.name}") if self._order in "<>" else dtype


class _Call:
    """A function that a pickle may call, but not change (as BUILD would do to a plain one)."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Refused("is a pickle that would change a function")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        found = None
        if module_name == "builtins" or module_name == "__builtin__":
            found = _BUILTINS.get(global_name)
        elif module_name == "numpy":
            found = {"ndarray": Array, "dtype": _Dtype}.get(global_name)
        elif module_name in _ARRAYS:
            calls = {"_reconstruct": _reconstruct, "scalar": _scalar}
            found = _Call(calls[global_name]) if global_name in calls else None
        elif module_name in _NUMERIC:
            found = _Call(_array) if global_name == "_frombuffer" else None
        if found is None:
            raise Refused(
                f"is a pickle that asks for {module_name}.{global_name}, which no plain data needs"
            )
        return found


def _look_through(data: bytes) -> None:
    """Refuse opcodes that plain data has no use for, and a memo that would fill the memory."""
    for number, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        if opcode.name in _REFUSED:
            raise Refused(f"is a pickle with a {opcode.name} at byte {position}, which is refused")
        if opcode.name in _MEMO and int(argument or 0) > number:
            raise Refused(f"is a pickle with a memo of {argument} entries, which is refused")


def _reconstruct(kind: Any, *_: Any) -> Array:
    """numpy's first step to an array; what it holds comes with BUILD."""
    if kind is not Array:
        raise Refused("holds an array that is not numpy's")
    return Array()


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    """A number that numpy pickled."""
    if not isinstance(dtype, _Dtype) or dtype.dtype.hasobject or not isinstance(raw, bytes):
        raise Refused("holds a number that is not numpy's")
    return _array(raw, dtype, (), "C").item()


def _array(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or order not in ("C", "F"):
        raise Refused("holds an array that is not numpy's")
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise Refused("holds an array that is not numpy's")
    kind, count = dtype.dtype, math.prod(shape)
    objects = kind.hasobject
    if not isinstance(raw, list if objects else bytes | bytearray):
        raise Refused("holds an array that is not numpy's")
    if (count if objects else count * kind.itemsize) != len(raw):
        raise Refused(f"declares an array of {shape} and holds another")
    if not objects:
        return np.frombuffer(bytes(raw), kind).reshape(shape, order=order)
    out = np.empty(count, object)
    for index, item in enumerate(raw):
        out[index] = item
    return out.reshape(shape, order=order)
