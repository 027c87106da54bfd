"""features.json: which keys an RLDS dataset has, and where a new one goes.

Two spellings are in use, and tensorflow-datasets still reads both: `pythonClassName` with one field
per kind of feature, and the legacy `type` / `content` (whose content may itself be a proto, as an
object or as a string of JSON). Feature names may contain `/`, so nothing here is found by splitting
the flat keys of a record; the tree is walked and the keys are built.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import SourceError
from .example import Packing
from .files import read_text

STEPS = "steps"
_OBSERVATION = "observation/"
_CLASS = "tensorflow_datasets.core.features."
_DICT, _SEQUENCES = "FeaturesDict", ("Sequence", "Dataset")
_SINGLE = ("Image", "LabeledImage", "Text", "ClassLabel")  # one stored value each
_NUMBERS = ("Scalar", "Tensor")
_NESTED_FIELDS = {"featuresDict": _DICT, "sequence": "Sequence"}
_STYLES = [
    {"indent": indent, "ensure_ascii": ascii_only, "separators": separators}
    for indent in (4, 2, None, 1, "\t")
    for ascii_only in (True, False)
    for separators in (None, (",", ":"), (", ", ": "))
]


@dataclass(frozen=True)
class Leaf:
    """One feature at the end of a branch.

    Attributes:
        path: the names on the way to it, as in ("steps", "observation", "image_0").
        kind: the feature's class name, as in "Image", "Tensor", "Scalar", "Text".
        shape: its declared shape; None for a free dimension.
        dtype: its declared dtype, "" where the class implies it.
        encoding: an image's declared encoding ("jpeg", "png"), "" where undeclared; of a tensor
            "bytes" or "zlib" where its numbers are packed into one byte string per value.
        per_step: True if it lies in `steps`.
        nested: how many further sequences it lies in (0: one value per step or episode).
    """

    path: tuple[str, ...]
    kind: str
    shape: tuple[int | None, ...] = ()
    dtype: str = ""
    encoding: str = ""
    per_step: bool = False
    nested: int = 0

    @property
    def flat(self) -> str:
        """Its key in a record: the names joined with `/`."""
        return "/".join(self.path)

    @property
    def key(self) -> str:
        """Its key as people and profiles say it: without the leading `steps/`."""
        return "/".join(self.path[1:]) if self.per_step else self.flat

    @property
    def packing(self) -> Packing | None:
        """How its numbers are packed into byte strings; None where they are stored as numbers."""
        if self.kind == "Image" or self.encoding not in ("bytes", "zlib"):
            return None
        return Packing(self.dtype, self.size, self.encoding == "zlib")

    @property
    def size(self) -> int | None:
        """How many numbers a value has; None where a dimension is free."""
        known = [size for size in self.shape if size is not None]
        return math.prod(known) if len(known) == len(self.shape) else None

    @property
    def shape_is_stored(self) -> bool:
        """True for packed tensors of several free sizes: `<key>/value` and `<key>/shape`."""
        return self.packing is not None and self.shape.count(None) > 1

    @property
    def is_single(self) -> bool:
        """True if a record holds exactly one stored value of it per step."""
        if not self.per_step or self.nested or self.shape_is_stored:
            return False
        plain = self.kind in _NUMBERS and self.shape == ()
        return self.kind in _SINGLE or plain or self.packing is not None

    @property
    def is_picture(self) -> bool:
        """True for a stream of colour pictures: one RGB uint8 image per step."""
        three = len(self.shape) == 3 and self.shape[2] == 3
        return self.per_step and not self.nested and self.is_image and three

    @property
    def is_image(self) -> bool:
        """True for uint8 or 16-bit images, whatever their channels."""
        return self.kind == "Image" and self.dtype in ("", "uint8", "uint16")


class Features:
    """The feature tree of one dataset.

    Args:
        path: the features.json file.

    Raises:
        SourceError: the file is missing, is no JSON, or holds no `steps`.
    """

    def __init__(self, path: Path):
        self.path = path
        self.text = read_text(path)
        try:
            self.tree = json.loads(self.text)
        except (ValueError, RecursionError) as error:
            raise SourceError(
                f"is not JSON ({error})", file=path, todo="restore it from the source"
            ) from None
        self.leaves: dict[str, Leaf] = {}
        try:
            self._walk(self.tree, (), False, 0)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise SourceError(
                f"is not a feature tree of tensorflow-datasets ({type(error).__name__}: {error})",
                file=path,
                todo="restore it from the source",
            ) from None
        if not any(leaf.per_step for leaf in self.leaves.values()):
            raise SourceError(
                "has no `steps`, so this is no RLDS dataset of episodes",
                file=path,
                todo="give a dataset whose features hold `steps`",
            )

    def find(self, name: str) -> Leaf | None:
        """The feature that a user means by `name`, or None.

        "observation/image_0", "steps/observation/image_0" and "image_0" all mean the same.
        """
        for prefix in ("", f"{STEPS}/", f"{STEPS}/observation/"):
            if leaf := self.leaves.get(prefix + name):
                return leaf
        return None

    def pictures(self) -> list[Leaf]:
        """The streams of colour pictures, in the order of features.json."""
        return [leaf for leaf in self.leaves.values() if leaf.is_picture]

    def length_key(self) -> str:
        """The flat key whose count is the number of steps, the cheapest there is.

        Raises:
            SourceError: no feature has exactly one value per step.
        """
        for name in ("is_first", "is_last", "is_terminal"):
            if f"{STEPS}/{name}" in self.leaves:
                return f"{STEPS}/{name}"
        # Pictures last: counting them means to walk over megabytes.
        for leaf in sorted(self.leaves.values(), key=lambda leaf: leaf.kind not in _NUMBERS):
            if leaf.is_single:
                return leaf.flat
        raise SourceError(
            "no feature tells the number of steps", file=self.path, todo="check features.json"
        )

    @property
    def home(self) -> str:
        """Where a new camera goes, without `steps/`: "observation/", or "" where there is none.

        A dataset whose pictures lie directly under `steps` has no dictionary of observations.
        """
        return _OBSERVATION if self._home()[1:] else ""

    def patched(self, additions: dict[str, dict], *, replace: bool = False) -> str:
        """The text of features.json with features added under `steps/observation` (see `home`).

        Everything else keeps its order, its content and the file's own indentation.

        Args:
            additions: name -> {"kind": "Image" or "Scalar", "shape", "dtype", "description"}.
            replace: allow names that exist; they are replaced where they stand.

        Raises:
            SourceError: a name exists (without `replace`), or `steps` is no dictionary.
        """
        tree = copy.deepcopy(self.tree)
        change = lambda node: self._add(node, additions, replace)
        _edit(tree, self._home(), change, self.path)
        return dump_like(self.text, self.tree, tree)

    def without(self, names: Collection[str]) -> dict:
        """The tree without some features of `home` (to compare two trees by)."""
        tree = copy.deepcopy(self.tree)

        def remove(node: dict) -> None:
            for name in names:
                _children(node).pop(name, None)

        _edit(tree, self._home(), remove, self.path)
        return tree

    def _home(self) -> tuple[str, ...]:
        inside = any(leaf.path[:2] == (STEPS, "observation") for leaf in self.leaves.values())
        bare = f"{STEPS}/observation" in self.leaves  # one feature of that name, no dictionary
        return (STEPS, "observation") if inside and not bare else (STEPS,)

    def _add(self, node: dict, additions: dict[str, dict], replace: bool) -> None:
        children = _children(node)
        legacy = _is_legacy(node) and not node.get("proto_cls")
        for name, spec in additions.items():
            if name in children and not replace:
                raise SourceError(
                    "the dataset already has this feature",
                    file=self.path,
                    key=self.home + name,
                    todo="choose another --wrist-key, or say --replace to overwrite it",
                )
            children[name] = _node(spec, legacy)

    def _walk(self, node: dict, path: tuple[str, ...], per_step: bool, nested: int) -> None:
        kind, body = _open(node)
        if kind == _DICT:
            for name, child in _children(node).items():
                self._walk(child, (*path, name), per_step, nested)
        elif kind in _SEQUENCES and "feature" in body:
            is_steps = path == (STEPS,)
            self._walk(body["feature"], path, per_step or is_steps, nested + (not is_steps))
        else:
            shape = _shape(body.get("shape"))
            encoding = body.get("encodingFormat") or body.get("encoding_format")
            if kind != "Image":
                encoding = encoding or body.get("encoding")
            leaf = Leaf(
                path,
                kind,
                shape or ((None, None, 3) if kind == "Image" else ()),
                str(body.get("dtype") or ("uint8" if kind == "Image" else "")),
                "" if encoding in (None, "none", "NONE") else str(encoding).lower(),
                per_step,
                nested,
            )
            self.leaves[leaf.flat] = leaf


def dump_like(text: str, tree: object, changed: object) -> str:
    """`changed` as JSON in the style (indentation, escapes, end) in which `text` spells `tree`."""
    tail = text[len(text.rstrip()) :]
    for style in _STYLES:
        if json.dumps(tree, **style) + tail == text:
            return json.dumps(changed, **style) + tail
    return json.dumps(changed, indent=4) + tail


def _is_legacy(node: dict) -> bool:
    return "type" in node


def _content(node: dict) -> dict:
    """The content of a legacy node; a string of JSON is read."""
    content = node["content"]
    return json.loads(content) if isinstance(content, str) else content


def _open(node: dict) -> tuple[str, dict]:
    """(class name, the body that holds shape, dtype and children) of either spelling."""
    if _is_legacy(node):
        return node["type"].rsplit(".", 1)[-1], _content(node) or {}
    kind = node["pythonClassName"].rsplit(".", 1)[-1]
    for field, value in node.items():
        if field in _NESTED_FIELDS and kind not in (_DICT, *_SEQUENCES):
            return _NESTED_FIELDS[field], value  # a subclass of FeaturesDict or Sequence
        if field not in ("pythonClassName", "description", "valueRange") and value is not None:
            return kind, value
    return kind, {}


def _children(node: dict) -> dict:
    """The named children of a FeaturesDict node, to read or to add to."""
    if not _is_legacy(node):
        return node["featuresDict"]["features"]
    content = _content(node)
    return content["features"] if node.get("proto_cls") else content


def _shape(value: Any) -> tuple[int | None, ...]:
    """A shape of either spelling: {"dimensions": ["64", "-1"]} or [64, null]."""
    sizes = value.get("dimensions", []) if isinstance(value, dict) else (value or [])
    return tuple(None if size is None or int(size) < 0 else int(size) for size in sizes)


def _edit(node: dict, path: tuple[str, ...], change: Callable, file: Path) -> None:
    """Call `change` on the FeaturesDict at `path` below `node`, in place."""
    if _is_legacy(node) and isinstance(node["content"], str):
        # The string of JSON is opened for the change and closed again in its own style.
        text, content = node["content"], _content(node)
        node["content"] = copy.deepcopy(content)
        _edit(node, path, change, file)
        node["content"] = dump_like(text, content, node["content"])
        return
    kind, body = _open(node)
    if kind in _SEQUENCES:
        _edit(body["feature"], path, change, file)
    elif kind != _DICT:
        raise SourceError(
            "`steps/observation` is no dictionary of features",
            file=file,
            todo="give an RLDS dataset with cameras under `steps/observation`",
        )
    elif path:
        if path[0] not in _children(node):
            raise SourceError(
                f"there is no {path[0]!r} to add a camera to",
                file=file,
                todo="give an RLDS dataset with `steps/observation`",
            )
        _edit(_children(node)[path[0]], path[1:], change, file)
    else:
        change(node)


def _node(spec: dict, legacy: bool) -> dict:
    """A new feature node in the spelling of its parent."""
    kind, shape, dtype = spec["kind"], list(spec["shape"]), spec["dtype"]
    is_image = kind == "Image"
    name = _CLASS + ("image_feature.Image" if is_image else "scalar.Scalar")
    proto: dict = {"shape": {"dimensions": [str(size) for size in shape]} if shape else {}}
    proto |= {"dtype": dtype}
    proto |= {"encodingFormat": "jpeg"} if is_image else {"encoding": "none"}
    if not legacy:
        field = "image" if is_image else "tensor"
        return {"pythonClassName": name, field: proto, "description": spec["description"]}
    proto_class = "ImageFeature" if is_image else "TensorFeature"
    return {
        "type": name,
        "content": proto,
        "proto_cls": f"tensorflow_datasets.{proto_class}",
        "description": spec["description"],
    }
