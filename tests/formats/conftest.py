"""Datasets of every kind, and the job on them in this process."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from format_kinds import KINDS, Kind
from in_process import made
from wristaugment.jobs import cli, run


@dataclass(frozen=True)
class Made:
    """A dataset that was made: its kind, the folder it lies in, and its --data-dir."""

    kind: Kind
    root: Path
    path: Path

    def copy(self, root: Path) -> Made:
        """A private copy of it below `root`."""
        shutil.copytree(self.root, root, symlinks=True)
        return Made(self.kind, root, root / self.path.relative_to(self.root))


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """(name of a kind) -> its dataset, made once. Do not write to it."""
    made: dict[str, Made] = {}

    def get(kind: Kind) -> Made:
        if kind.name not in made:
            root = tmp_path_factory.mktemp(kind.name)
            made[kind.name] = Made(kind, root, kind.create(root))
        return made[kind.name]

    return get


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def dataset(request, datasets) -> Made:
    """Each kind in turn. Do not write to it."""
    return datasets(request.param)


@pytest.fixture
def own(dataset, tmp_path) -> Made:
    """Each kind in turn, to be damaged."""
    return dataset.copy(tmp_path / "source")


_PROCESS = """
import sys
sys.path[:0] = [sys.argv.pop(1), sys.argv.pop(1)]
import in_process
from wristaugment.jobs import cli, run
run._made = in_process.made
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def job(monkeypatch, capsys):
    """(words of the command line, crash=point) -> (exit code, what was said)."""

    def call(*words, crash: str | None = None) -> tuple[int, str]:
        given = [str(word) for word in words]
        if crash:
            here = Path(__file__).parent
            command = [sys.executable, "-c", _PROCESS, str(here), str(here.parent), *given]
            env = {**os.environ, "WRISTAUGMENT_CRASH_AT": crash}
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
            return done.returncode, done.stdout + done.stderr
        monkeypatch.setattr(run, "_made", made)
        code = cli.main(given)
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


@pytest.fixture(scope="session")
def tree():
    """folder -> {relative path: SHA-256} of all its files."""

    def hashes(folder: Path) -> dict[str, str]:
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return hashes
