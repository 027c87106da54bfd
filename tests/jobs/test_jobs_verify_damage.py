"""`verify` finds any damage to any file of a copy, of every format, with and without the source.

WRISTAUGMENT_DAMAGES sets how often each copy is damaged (without it, a few times).
"""

import json
import os
import random

import pytest
from damage import survey
from format_kinds import KINDS, SIZE
from in_process import made
from wristaugment.jobs import cli, run

TIMES = int(os.environ.get("WRISTAUGMENT_DAMAGES", "25"))


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def copy(request, tmp_path_factory):
    """(out, source) of a finished copy of each kind; tests leave it whole."""
    root = tmp_path_factory.mktemp(request.param.name)
    source = request.param.create(root / "source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_made", made)
        words = ["--data-dir", source, "--out", root / "out", "--recipe", "constant"]
        words += ["--wrist-size", f"{SIZE[0]}x{SIZE[1]}", "--json", root / "said.json"]
        assert cli.main(["run", *map(str, words)]) == 0
    return root / "out", source


def test_every_damage_is_found_without_the_source(copy):
    out, _ = copy
    assert cli.main(["verify", str(out)]) == 0
    found, missed = survey(random.Random(11), out, TIMES)
    assert not missed and found == TIMES, "\n".join(missed)
    assert cli.main(["verify", str(out)]) == 0


def test_damage_is_found_with_the_source_too(copy):
    out, source = copy
    _, missed = survey(random.Random(12), out, max(3, TIMES // 8), source)
    assert not missed, "\n".join(missed)


def test_every_file_of_the_ledger_is_covered_at_its_first_and_last_byte(copy):
    out, _ = copy
    for path in sorted((out / ".wristaugment").rglob("*.*")):
        data = path.read_bytes()
        for place in (0, len(data) // 2, len(data) - 1):
            changed = bytearray(data)
            changed[place] ^= 1
            path.write_bytes(changed)
            code = cli.main(["verify", str(out), "--json", str(out.parent / "report.json")])
            path.write_bytes(data)
            report = json.loads((out.parent / "report.json").read_text())
            assert code == 3 and str(path) in {item["file"] for item in report["problems"]}
