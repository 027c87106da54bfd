"""`wristaugment weights`: fetched from a hub, taken from folders, listed; and jobs that refuse."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import full_size_weights as made
import hub as hubs
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from wristaugment.augment.recipe import WEIGHTS
from wristaugment.augment.weights import Need, requirements
from wristaugment.augment.weights_hashes import write_record
from wristaugment.jobs import board, fetch, job
from wristaugment.jobs import work as works
from wristaugment.jobs.actor import ShardActor
from wristaugment.jobs.cli import main
from wristaugment.jobs.storage import FolderStorage
from wristaugment.readers.errors import SourceError
from wristaugment.readers.files import file_sha256


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("WRISTAUGMENT_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """All public files of both recipes at reduced width, as the hub has them."""
    root = tmp_path_factory.mktemp("published")
    for form in ("paper", "official"):
        made.write_vggt(root, form)
        made.write_dit(root, form)
        made.write_image(root, form)
    made.write_shared(root)
    return root


@pytest.fixture
def hub(published, monkeypatch):
    with hubs.Hub(published) as server:
        point_to(server.url, monkeypatch)
        yield server


def point_to(url: str, monkeypatch) -> None:
    """What HF_ENDPOINT does when the hub's client is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def run(capsys, *args) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def error_line(err: str) -> str:
    """The last line, which is the error's; progress comes before it."""
    line = err.strip().splitlines()[-1]
    assert "wristaugment: error: " in line
    return line


def facts(capsys, *args) -> tuple[int, dict]:
    code, out, _ = run(capsys, "weights", *args, "--json", "-")
    return code, json.loads(out)


def test_the_packaged_weights_are_shown_as_ready(capsys):
    for recipe, parts in (("nano", 2), ("projection", 1), ("constant", 0)):
        code, found = facts(capsys, recipe)
        assert code == 0 and found["ready"]
        assert [part["state"] for part in found["parts"]] == ["ready"] * parts
    code, out, _ = run(capsys, "weights", "nano")
    assert "all there" in out and "Apache-2.0" in out


def test_what_is_missing_is_shown_with_size_and_licence(capsys, tmp_path):
    code, out, _ = run(capsys, "weights", "paper", "--weights", tmp_path)
    assert code == 2
    assert "CC BY-NC 4.0 (non-commercial)  facebook/VGGT-1B/model.safetensors" in out
    assert "licence: facebook/VGGT-1B is licensed CC BY-NC 4.0" in out
    assert "wristaugment weights paper --download" in out
    assert "wristaugment train generation --recipe paper" in out
    assert not any(tmp_path.iterdir())
    code, found = facts(capsys, "official", "--weights", tmp_path)
    assert code == 2 and not found["ready"]
    assert 30e9 < found["bytes_to_fetch"] < 45e9
    states = {part["part"]: part["state"] for part in found["parts"]}
    assert states["vggt"] == "missing" and states["generation"] == "unused"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["mega"], "unknown recipe 'mega'"),
        (["nano", "--download"], "come with the package"),
        (["nano", "--from", "."], "come with the package"),
        (["constant", "--download"], "uses no weights"),
        (["paper", "--from", "/no/such/place"], "is not here"),
    ],
)
def test_what_makes_no_sense_is_one_line(capsys, args, said):
    code, _, err = run(capsys, "weights", *args)
    assert code == 2 and said in error_line(err) and err.count("\n") == 1


def test_all_that_is_public_is_fetched_recorded_and_right(capsys, hub, published, tmp_path):
    root = tmp_path / "weights"
    code, out, err = run(capsys, "weights", "official", "--weights", root, "--download")
    assert code == 0, err
    assert "names no licence" in out.splitlines()[0]
    records = json.loads((root / "weights.json").read_text())
    files = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path.name != "weights.json"
    )
    assert sorted(records) == files
    for place in files:
        assert (root / place).read_bytes() == (published / place).read_bytes()
        assert records[place]["sha256"] == file_sha256(root / place)
        assert records[place]["revision"] == hubs.REVISION
        assert place.startswith(records[place]["source"])
    code, found = facts(capsys, "official", "--weights", root)
    assert code == 0 and found["bytes_to_fetch"] == 0
    # Nothing is fetched again; what is damaged is.
    hub.asked.clear()
    assert run(capsys, "weights", "official", "--weights", root, "--download")[0] == 0
    assert not hub.asked
    path = made.main_file(root, "official", "dit")
    place = path.relative_to(root).as_posix()
    path.write_bytes(path.read_bytes()[:-10])
    assert facts(capsys, "official", "--weights", root)[0] == 2
    assert run(capsys, "weights", "official", "--weights", root, "--download")[0] == 0
    assert [place for method, place, _ in hub.asked if method == "GET"] == [place]
    assert file_sha256(path) == records[place]["sha256"]


def test_paper_is_fetched_but_for_what_must_be_trained(capsys, hub, tmp_path):
    code, _, _ = run(capsys, "weights", "paper", "--weights", tmp_path, "--download")
    assert code == 2
    _, found = facts(capsys, "paper", "--weights", tmp_path)
    states = {part["part"]: part["state"] for part in found["parts"]}
    assert {part for part, state in states.items() if state == "missing"} == {
        "reconstruction",
        "generation",
    }
    own = tmp_path / "runs"
    made.write_reconstruction(own)
    made.write_generation(own)
    code, _, err = run(capsys, "weights", "paper", "--weights", tmp_path, "--from", own)
    assert code == 0, err


def test_a_connection_that_is_cut_goes_on_where_it_was(capsys, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    path = made.main_file(tmp_path, "official", "dit")
    place = path.relative_to(tmp_path).as_posix()
    hub.faults.cut[place] = [20_000]
    assert run(capsys, "weights", "official", "--weights", tmp_path, "--download")[0] == 0
    spans = [span for method, at, span in hub.asked if (method, at) == ("GET", place)]
    assert spans[0] is None and len(spans) == 2
    assert 0 < int(spans[1].removeprefix("bytes=").rstrip("-")) <= 20_000


def test_a_fetch_that_failed_goes_on_the_next_time(capsys, hub, published, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    path = made.main_file(tmp_path, "official", "dit")
    place = path.relative_to(tmp_path).as_posix()
    hub.faults.cut[place] = [20_000] + [0] * 20
    code, _, err = run(capsys, "weights", "official", "--weights", tmp_path, "--download")
    assert code == 2 and "run the same command to go on" in error_line(err)
    assert not path.exists()
    (part,) = path.parent.glob(".*.part")
    kept = part.stat().st_size
    assert 10_000 < kept <= 20_000
    hub.faults.cut.clear()
    hub.asked.clear()
    assert run(capsys, "weights", "official", "--weights", tmp_path, "--download")[0] == 0
    spans = [span for method, at, span in hub.asked if (method, at) == ("GET", place)]
    assert spans == [f"bytes={kept}-"]
    assert path.read_bytes() == (published / place).read_bytes()
    assert not list(tmp_path.rglob("*.part"))


FETCH = """
import sys
from pathlib import Path
from wristaugment.augment.weights import Need
from wristaugment.jobs.fetch import download
need = Need("big", "someone/big", "big.bin", 1, "MIT", "to be cut")
download([need], Path(sys.argv[1]), print)
"""


def test_a_killed_process_keeps_what_it_has_and_leaves_no_half_file(tmp_path):
    source, root = tmp_path / "hub", tmp_path / "weights"
    file = source / "someone/big/big.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(np.random.default_rng(0).bytes(24_000_000))
    with hubs.Hub(source) as server:
        server.faults.stall["someone/big/big.bin"] = 15_000_000
        env = os.environ | {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_secret"}
        line = [sys.executable, "-c", FETCH, str(root)]
        final = root / "someone/big/big.bin"
        process = subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        held = lambda: sum(part.stat().st_size for part in root.rglob("*.part"))
        while held() < 10_000_000 and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = held()
        assert kept >= 10_000_000 and not final.exists()
        server.faults.stall.clear()
        server.asked.clear()
        done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert ("GET", "someone/big/big.bin", f"bytes={kept}-") in server.asked
        assert server.tokens == {"Bearer hf_secret"} and server.storage_tokens == {None}
    assert final.read_bytes() == file.read_bytes()


def test_a_file_with_another_hash_is_refused_and_not_kept(capsys, hub, tmp_path):
    path = made.main_file(tmp_path, "official", "vggt")
    hub.faults.change.add(path.relative_to(tmp_path).as_posix())
    code, _, err = run(capsys, "weights", "official", "--weights", tmp_path, "--download")
    assert code == 2
    assert "is not what XuWuLingYu/WristWorld says (another hash)" in error_line(err)
    assert not path.exists() and not list(tmp_path.rglob("*.part"))
    hub.faults.change.clear()
    config = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae/config.json"
    hub.faults.change.add(config)  # a small file, which git's own hash tells
    code, _, err = run(capsys, "weights", "official", "--weights", tmp_path, "--download")
    assert code == 2 and "vae/config.json" in error_line(err)
    assert not (tmp_path / config).exists()


def test_gated_absent_and_unreachable_are_one_line_each(capsys, hub, tmp_path, monkeypatch):
    def line() -> str:
        code, _, err = run(capsys, "weights", "paper", "--weights", tmp_path, "--download")
        assert code == 2 and "Traceback" not in err
        return error_line(err)

    hub.faults.gated.add("facebook/VGGT-1B")
    assert "facebook/VGGT-1B is gated; accept its terms" in line()
    hub.faults.gated.clear()
    monkeypatch.setattr(hub, "root", tmp_path / "empty")
    assert "has no facebook/VGGT-1B, or not for you; set HF_TOKEN" in line()
    (tmp_path / "empty/facebook/VGGT-1B").mkdir(parents=True)
    assert "facebook/VGGT-1B has no model.safetensors; give files" in line().replace("or ", "")
    point_to("http://127.0.0.1:9", monkeypatch)
    assert "cannot fetch facebook/VGGT-1B from http://127.0.0.1:9: " in line()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_too_little_room_is_told_before_anything_is_fetched(capsys, hub, tmp_path, monkeypatch):
    root = tmp_path / "weights"
    usage = SimpleNamespace(total=1, used=1, free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    code, _, err = run(capsys, "weights", "official", "--weights", root, "--download")
    assert code == 4 and "make room" in error_line(err)
    assert not made.main_file(root, "official", "vggt").exists()
    assert not any(method == "GET" and place.endswith(".pt") for method, place, _ in hub.asked)


def flat(published: Path, folder: Path) -> Path:
    """Files as people keep them: by their names alone, in folders of their own making."""
    shutil.copytree(published / "XuWuLingYu/WristWorld/VGGT", folder / "a/wristworld")
    shutil.copytree(published / "XuWuLingYu/WristWorld/VideoModel", folder / "b")
    wan = published / "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    shutil.copytree(wan / "vae", folder / "c/some vae")
    shutil.copytree(wan / "text_encoder", folder / "umt5")
    shutil.copytree(wan / "tokenizer", folder / "tok")
    shutil.copytree(published / "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers/image_encoder", folder / "d")
    # Of the same names, and not what is asked for.
    shutil.copytree(published / "Wan-AI/Wan2.1-T2V-1.3B", folder / "aa dit")
    shutil.copytree(published / "facebook/VGGT-1B", folder / "aa vggt")
    return folder


def test_files_are_taken_by_name_and_by_what_they_hold(capsys, published, tmp_path):
    source, root = flat(published, tmp_path / "mine"), tmp_path / "weights"
    code, out, err = run(capsys, "weights", "official", "--weights", root, "--from", source)
    assert code == 0, out + err
    for need in requirements("official"):
        if not need.optional and need.part != "prompt":
            place = need.place(need.main)
            assert file_sha256(root / place) == file_sha256(published / place)
    linked = root / "XuWuLingYu/WristWorld/VGGT/checkpoint.pt"
    assert linked.samefile(source / "a/wristworld/checkpoint.pt")
    records = json.loads((root / "weights.json").read_text())
    assert records["XuWuLingYu/WristWorld/VGGT/checkpoint.pt"]["source"] == (
        "checkpoint.pt of the user's"
    )
    assert str(tmp_path) not in (root / "weights.json").read_text()
    # A file that the user then changes in place is no longer what was taken.
    with open(source / "a/wristworld/checkpoint.pt", "r+b") as file:
        file.seek(-1000, 2)
        file.write(b"changed")
    assert facts(capsys, "official", "--weights", root)[0] == 2


def test_the_hubs_own_cache_is_taken_from_by_the_links_in_it(capsys, published, tmp_path):
    cache, root = tmp_path / "cache/models--facebook--VGGT-1B", tmp_path / "weights"
    snapshot = cache / "snapshots" / hubs.REVISION
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(published / "facebook/VGGT-1B" / name, cache / "blobs" / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    run(capsys, "weights", "paper", "--weights", root, "--from", tmp_path / "cache")
    taken = root / "facebook/VGGT-1B/model.safetensors"
    assert taken.is_file() and not taken.is_symlink()


def test_without_links_files_are_copied(capsys, published, tmp_path, monkeypatch):
    def no_link(*args):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    run(capsys, "weights", "official", "--weights", tmp_path, "--from", published)
    path = made.main_file(tmp_path, "official", "vggt")
    there = made.main_file(published, "official", "vggt")
    assert path.read_bytes() == there.read_bytes() and not path.samefile(there)
    assert not list(tmp_path.rglob("*.staged"))


def test_what_does_not_fit_is_not_taken_and_said_why(capsys, published, tmp_path):
    source, root = tmp_path / "mine", tmp_path / "weights"
    source.mkdir()
    wan = made.main_file(published, "paper", "dit")
    shutil.copy(wan, source / "video_dit_lora.safetensors")
    shutil.copy(made.main_file(published, "official", "image"), source)
    code, out, _ = run(capsys, "weights", "official", "--weights", root, "--from", source)
    assert code == 2
    assert "not taken: " in out and "Wan 2.1's video DiT, of recipe paper" in out
    assert "model.safetensors: lacks config.json beside it" in out
    assert not list(root.rglob("*.safetensors"))


def refused(capsys, args, out) -> str:
    """The one line that a refused job gets; nothing was written."""
    assert main([str(arg) for arg in args]) == 2
    err = capsys.readouterr().err
    assert err.startswith("wristaugment: error: ") and err.count("\n") == 1
    assert not out.exists()
    return err


def asked(small, out, recipe: str, *more) -> list[str]:
    args = small.args(out, *map(str, more))
    args[args.index("--recipe") + 1] = recipe
    return args


def test_a_job_refuses_nanos_files_when_they_are_wrong(small, tmp_path, capsys):
    out, root = tmp_path / "out", tmp_path / "nano"
    shutil.copytree(WEIGHTS / "nano", root)
    args = asked(small, out, "nano", "--weights", root)
    a, b = root / "reconstruction.safetensors", root / "generation.safetensors"
    a.rename(root / "x")
    b.rename(a)
    (root / "x").rename(b)
    assert f"{a}: has fields that VGGTConfig does not know" in refused(capsys, args, out)
    shutil.copytree(WEIGHTS / "nano", root, dirs_exist_ok=True)
    b.write_bytes(b.read_bytes()[:-1000])
    assert f"{b}: not a readable safetensors file" in refused(capsys, args, out)
    b.unlink()
    assert "these weights of recipe 'nano' are not here" in refused(capsys, args, out)


def test_a_job_refuses_a_file_that_is_not_as_it_was_recorded(small, tmp_path, capsys):
    out, root = tmp_path / "out", tmp_path / "nano"
    shutil.copytree(WEIGHTS / "nano", root)
    path = root / "generation.safetensors"
    record = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    write_record(root, path.name, record)
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))  # a bit of a weight: names and shapes stay right
    line = refused(capsys, asked(small, out, "nano", "--weights", root), out)
    assert f"{path}: has changed since it was fetched" in line


@pytest.fixture(scope="module")
def ready(published, tmp_path_factory) -> Path:
    """A root with all that `paper` and `official` need; not to be changed."""
    root = tmp_path_factory.mktemp("ready")
    for source in published.iterdir():
        shutil.copytree(source, root / source.name, copy_function=os.link)
    made.write_reconstruction(root)
    made.write_generation(root)
    return root


def test_a_job_refuses_full_size_weights_that_are_missing_or_anothers(
    small, published, ready, tmp_path, capsys
):
    out = tmp_path / "out"
    line = refused(capsys, asked(small, out, "official"), out)
    assert "wristaugment weights official --download" in line
    # paper's own generator in the folder that official is given.
    line = refused(capsys, asked(small, out, "official", "--weights", ready), out)
    assert "not trained for recipe official" in line


@pytest.mark.parametrize(
    ("size", "said"),
    [("480x650", "a width of 650 pixels; it must be a multiple of 16: resize to 640 or 656"),
     ("100x640", "a height of 100 pixels")],
)  # fmt: skip
def test_sizes_that_would_be_cropped_are_refused(small, ready, tmp_path, capsys, size, said):
    out = tmp_path / "out"
    args = asked(small, out, "paper", "--weights", ready, "--wrist-size", size)
    line = refused(capsys, args, out)
    assert said in line and "--wrist-size" in line


def test_more_anchors_than_the_generator_knows_are_refused(small, published, tmp_path, capsys):
    out, root = tmp_path / "out", tmp_path / "weights"
    for source in published.iterdir():
        shutil.copytree(source, root / source.name, copy_function=os.link)
    made.write_reconstruction(root)
    made.write_generation(root, views=1)
    line = refused(capsys, asked(small, out, "paper", "--weights", root), out)
    assert "2 anchor views; the generator of these weights knows 1" in line
    assert "--anchor-keys" in line


@pytest.fixture
def small_card(monkeypatch):
    """A machine whose one GPU has 1 GiB."""
    card = SimpleNamespace(name="Small Card", total_memory=2**30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(job, "local_gpus", lambda: 1)
    return card


@pytest.mark.parametrize("recipe", ["nano", "paper"])
def test_a_gpu_that_is_too_small_is_refused_before_anything_is_written(
    small, ready, tmp_path, capsys, small_card, recipe
):
    out = tmp_path / "out"
    more = ["--weights", ready] if recipe == "paper" else []
    line = refused(capsys, asked(small, out, recipe, *more, "--device", "cuda"), out)
    assert "GiB of GPU memory; Small Card has 1.0 GiB" in line


def test_an_actor_refuses_a_gpu_that_is_too_small_before_it_loads(
    small, tmp_path, small_card, monkeypatch
):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    work = works.Work(
        data_dir=str(small.root), dataset="droid", anchor_keys=None, out=str(tmp_path / "out"),
        splits=None, limit=None, recipe="nano", settings=(), weights=None, device="cuda",
        wrist_key="wrist_rgb", size=(96, 176), made=(96, 176), pose="auto", geometry="auto",
        seed=0, replace=False, description="synthetic",
    )  # fmt: skip
    monkeypatch.setattr(works.Work, "open_augmenter", lambda self: pytest.fail("loaded"))
    staged = tmp_path / "staged"
    board.grant(FolderStorage(staged.parent), staged.name)
    outcome = ShardActor(work).make_shard("train", 0, str(staged))
    assert outcome.kind == "refused" and "Small Card has 1.0 GiB" in outcome.text
    assert not staged.exists()


def test_the_licence_is_told_before_a_run(small, ready, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("wristaugment.jobs.dryrun.estimate", lambda job, args, say: 0)
    args = asked(small, tmp_path / "out", "paper", "--weights", ready, "--dry-run")
    assert main(args) == 0
    assert "licence: facebook/VGGT-1B is licensed CC BY-NC 4.0" in capsys.readouterr().out


def test_a_plan_names_every_file_by_place_and_hash(small, ready, tmp_path, monkeypatch):
    plans = []
    monkeypatch.setattr(
        "wristaugment.jobs.dryrun.estimate", lambda job, args, say: plans.append(job.plan) or 0
    )
    args = asked(small, tmp_path / "out", "paper", "--weights", ready, "--dry-run")
    assert main(args) == 0
    weights = plans[0]["weights"]
    assert weights["generation.safetensors"] == file_sha256(ready / "generation.safetensors")
    assert "facebook/VGGT-1B/model.safetensors" in weights
    assert str(tmp_path) not in json.dumps(plans[0]) and str(ready) not in json.dumps(plans[0])


def test_two_processes_do_not_fetch_one_file_together(hub, published, tmp_path):
    need = next(n for n in requirements("official") if n.part == "dit")
    remote = fetch.Hub().ask(need, need.main)
    part = fetch.partial_name(tmp_path / remote.place, remote.etag)
    part.parent.mkdir(parents=True)
    with open(part, "wb") as file:
        fetch._alone(file, part)
        with pytest.raises(SourceError, match="another process is fetching"):
            fetch.Hub().get(remote, tmp_path)
    fetch.Hub().get(remote, tmp_path)
    assert isinstance(need, Need) and (tmp_path / remote.place).is_file()
