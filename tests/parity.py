"""Compare the models with figures of the public implementations.

    python tests/parity.py FIXTURE.npz [--json]

Builds what the fixture's meta asks for, fills the weights by the rule of `weights_rule.py`, runs
it and prints the relative error of every output (norm of the difference over norm), for a condition
map the share of pixels that differ. Exit status: 0 if all are within their bounds, 1 if one is
above, 2 for a file that cannot be read as a fixture. Each kind of fixture is a module
`parity_<kind>.py` with `reads`, `bound` and `errors`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from zipfile import BadZipFile

import numpy as np


class FixtureError(ValueError):
    """A file that is no fixture; the text says what was found and what to do."""


def kinds() -> list[ModuleType]:
    """The modules beside this one that compare a kind of fixture."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("parity_*.py"))
    return [importlib.import_module(name) for name in names]


def read_fixture(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The meta and the arrays of a fixture; FixtureError where it has none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop("meta")))
    except (OSError, ValueError, BadZipFile, KeyError, AttributeError, TypeError) as error:
        found = f"{type(error).__name__}: {error}".splitlines()[0]
        raise FixtureError(
            f"{path}: not a parity fixture ({found}); give an .npz with `meta` and outputs"
        ) from None
    return meta, arrays


def measure(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    """({output: error}, {output: bound}) of a fixture; FixtureError where no module reads it."""
    meta, arrays = read_fixture(path)
    for kind in kinds():
        if kind.reads(meta, arrays):
            errors = kind.errors(meta, arrays)
            return errors, {name: kind.bound(name) for name in errors}
    raise FixtureError(
        f"{path}: no parity_*.py reads a fixture with the meta keys {', '.join(meta)}; add one"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("fixture", type=Path, metavar="FIXTURE.npz")
    parser.add_argument("--json", action="store_true", help="print {output: error} as JSON")
    options = parser.parse_args(arguments)
    try:
        errors, bounds = measure(options.fixture)
    except FixtureError as error:
        print(f"parity: error: {error}", file=sys.stderr)
        return 2
    within = {name: error <= bounds[name] for name, error in errors.items()}  # NaN is not within
    if options.json:
        print(json.dumps(errors, indent=2))
    else:
        for name, error in errors.items():
            print(f"{name:20} {error:.3e}  {'ok' if within[name] else f'ABOVE {bounds[name]:g}'}")
    return 0 if all(within.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
