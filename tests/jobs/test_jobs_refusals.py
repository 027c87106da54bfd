"""What the command line refuses, and that it does so before it writes; disks that are full."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from wristaugment.jobs import cli
from wristaugment.jobs.plan import differences, split_values


def refused(args, capsys) -> str:
    """The one line that a refused command line gets."""
    assert cli.main([str(arg) for arg in args]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("wristaugment: error: ") and captured.err.count("\n") == 1
    return captured.err


def replaced(args: list[str], option: str, value: str) -> list[str]:
    at = args.index(option)
    return [*args[: at + 1], value, *args[at + 2 :]]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--anchor-keys", "image_left"], "'image_left'"),
        (["--anchor-keys", "exterior_image_1_left,nothing"], "'nothing'"),
        (["--split", "holdout"], "holdout"),
        (["--episodes", "0"], "--episodes"),
        (["--num-actors", "0"], "--num-actors"),
        (["--wrist-size", "big"], "--wrist-size"),
        (["--wrist-key", "exterior_image_1_left"], "--replace"),
        (["--weights", "/nowhere"], "uses no weights"),
        (["--pose", "measured"], "--pose auto"),
        (["--address", "127.0.0.1:9"], "cannot reach a Ray cluster at 127.0.0.1:9"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(small, tmp_path, capsys, more, said):
    out = tmp_path / "out"
    assert said in refused(small.args(out, *more), capsys)
    assert not out.exists()


def test_an_unknown_dataset_or_recipe_or_folder_is_one_line_and_nothing_is_written(
    small, tmp_path, capsys
):
    out = tmp_path / "out"
    args = small.args(out)
    assert "my_robots" in refused(replaced(args, "--dataset", "my_robots"), capsys)
    assert "unknown recipe 'mega'" in refused(replaced(args, "--recipe", "mega"), capsys)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in refused(replaced(args, "--data-dir", str(empty)), capsys)
    assert not out.exists()


def test_weights_that_are_not_there_are_refused(small, tmp_path, capsys):
    out = tmp_path / "out"
    args = replaced(small.args(out), "--recipe", "nano")
    assert "these weights of recipe 'nano' are not here" in refused(
        [*args, "--weights", tmp_path], capsys
    )
    assert not out.exists()


def test_a_missing_shard_is_refused_by_name(lab, tmp_path, capsys):
    source = lab.make_source(tmp_path / "data", shards=2, episodes=1)
    gone = source.shard(1)
    gone.unlink()
    out = tmp_path / "out"
    assert gone.name in refused(source.args(out), capsys)
    assert not out.exists()
    # It is not needed for the first episode alone.
    assert lab.without_ray(source.args(out, "--episodes", "1")).returncode == 0


def test_an_out_in_the_source_or_around_it_is_refused(lab, small, capsys):
    before = lab.tree(small.root)
    for out in (small.folder, small.folder / "out", small.root, small.root.parent):
        assert "overlaps the source" in refused(small.args(out), capsys)
    assert lab.tree(small.root) == before


def test_a_disk_without_room_ends_with_4_and_can_be_resumed(lab, small, whole, tmp_path):
    out = tmp_path / "out"
    full = lab.without_ray(small.args(out), file_limit=20_000)
    assert full.returncode == 4
    assert full.stderr.count("\n") == 1 and "make room" in full.stderr
    assert not list(out.rglob("*tfrecord*"))
    assert lab.without_ray(small.args(out)).returncode == 0
    assert lab.tree(out) == whole


def test_a_place_that_may_not_be_written_ends_with_4(small, capsys):
    assert cli.main(small.args("/sys/wristaugment-test")) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "/sys/wristaugment-test" in error


def test_damaged_records_are_listed_and_the_healthy_rest_is_complete(lab, tmp_path):
    source = lab.make_source(tmp_path / "data", shards=3, episodes=3)
    flipped, cut = source.shard(0), source.shard(2)
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 0xFF  # in the second record
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-1000])  # the third record
    out = tmp_path / "out"
    done = lab.without_ray(source.args(out, "--json", str(tmp_path / "summary.json")))
    assert done.returncode == 3, done.stderr
    assert f"{flipped.name}, record 1" in done.stdout
    assert f"{cut.name}, record 2" in done.stdout
    assert "fetch this shard again" in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["episodes"], summary["lost_episodes"]) == (7, 2)
    manifest = json.loads((out / ".wristaugment" / "manifest.json").read_text())
    assert [bad["record"] for bad in manifest["bad"]] == [1, 2]
    assert len(manifest["records"]) == 7
    # Finished is finished: the same again says the same, and does nothing.
    again = lab.without_ray(source.args(out))
    assert again.returncode == 3 and "0 made now" in again.stdout


def test_the_dry_run_writes_nothing_and_counts_what_is_left(lab, small, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(small.args(out, "--dry-run", "--json", "-")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert not out.exists()
    assert (facts["episodes_pending"], facts["frames_pending"]) == (8, 8 * lab.steps)
    assert facts["anchors"] == [
        "observation/exterior_image_1_left",
        "observation/exterior_image_2_left",
    ]
    lab.without_ray(small.args(out), crash="recorded")
    before = lab.tree(out)
    assert cli.main(small.args(out, "--dry-run", "--json", "-")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["episodes_pending"] == 6 and facts["resumes"]
    assert lab.tree(out) == before


def test_the_estimate_of_the_size_is_close(lab, small, whole, tmp_path, capsys):
    cli.main(small.args(tmp_path / "out", "--dry-run", "--json", "-"))
    guess = json.loads(capsys.readouterr().out)["bytes"]
    done = lab.without_ray(small.args(tmp_path / "out", "--json", "-"))
    assert guess == pytest.approx(json.loads(done.stdout)["bytes"], rel=0.05)


def test_help_loads_no_heavy_library():
    heavy = {"torch", "ray", "tensorflow", "numpy", "scipy", "PIL", "tensorflow_datasets"}
    program = (
        "import sys; from wristaugment.jobs import cli; cli.parser().format_help(); "
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_explains_itself(capsys, name):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: wristaugment {name}" in capsys.readouterr().out


def test_differences_name_each_field_with_both_values():
    there = {"a": 1, "b": {"c": [1, 2]}, "same": "x"}
    here = {"a": 1, "b": {"c": [1, 3]}, "same": "x", "new": True}
    assert differences(there, here) == [
        "b.c is [1, 2] there and [1, 3] here",
        "new is none there and True here",
    ]
    assert differences(there, there) == []


def test_keys_come_with_commas_or_spaces():
    assert split_values(["a,b", "c", " d ,"]) == ["a", "b", "c", "d"]
    assert split_values([]) is None and split_values(None) is None
