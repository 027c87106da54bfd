"""What recipes need of weights: where it is looked for, and what is refused, by whom and how."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import full_size_weights as made
import pytest
import torch
from safetensors.torch import load_file, save_file
from wristaugment.augment import weights_hashes
from wristaugment.augment.recipe import RECIPES, WEIGHTS, get_recipe
from wristaugment.augment.weights import (
    check,
    fingerprint,
    locate,
    look,
    notices,
    requirements,
    roots,
)
from wristaugment.augment.weights_hashes import remembered_sha256, write_record
from wristaugment.augment.weights_memory import GIB, memory_needed, refuse_small_gpu
from wristaugment.models.errors import WeightsError
from wristaugment.readers.errors import SourceError
from wristaugment.readers.files import file_sha256


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("WRISTAUGMENT_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    """Roots with all of `paper` and of `official`; not to be changed."""
    return {
        form: made.write_all(tmp_path_factory.mktemp(form), form) for form in ("paper", "official")
    }


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of such a root that may be changed; its files are its own."""
    return lambda form: Path(shutil.copytree(whole[form], tmp_path / f"own-{form}"))


def refused(recipe: str, root: Path | None) -> str:
    """The one line that a recipe's weights get."""
    with pytest.raises((SourceError, WeightsError)) as caught:
        check(recipe, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_recipe_says_what_it_needs_with_size_and_licence():
    assert {name for name in RECIPES if not requirements(name)} == {"constant"}
    for name in RECIPES:
        for need in requirements(name):
            assert need.bytes > 0 and need.licence and need.why
    assert "CC BY-NC 4.0" in notices("paper")[0] and "not for commercial use" in notices("paper")[0]
    assert "names no licence" in notices("official")[0]
    assert notices("nano") == []


def test_packaged_sizes_are_the_files_own():
    for need in requirements("nano"):
        assert (WEIGHTS / "nano" / need.main).stat().st_size == need.bytes


@pytest.mark.parametrize("form", ["paper", "official"])
def test_whole_weights_are_right_and_have_a_fingerprint_without_paths(whole, form):
    located = check(form, whole[form])
    assert {"vggt", "dit", "vae", "prompt", "tokenizer", "image"} <= set(located)
    assert ("generation" in located) == (form == "paper")
    found = fingerprint(form, whole[form])
    assert found == fingerprint(form, located=located)
    for place, digest in found.items():
        assert file_sha256(whole[form] / place) == digest
    shards = [place for place in found if "text_encoder/model-0" in place]
    assert len(shards) > 1
    assert all(status.state in ("ready", "unused") for status in look(form, whole[form]))


def test_roots_are_searched_in_order_and_a_part_comes_from_one_of_them(
    whole, copied, tmp_path, monkeypatch
):
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv("WRISTAUGMENT_WEIGHTS", str(whole["paper"]))
    assert roots(get_recipe("paper"), own) == [
        own,
        whole["paper"],
        tmp_path / "cache" / "wristaugment" / "weights",
    ]
    assert locate("paper", own)["vggt"].root == whole["paper"]
    made.write_vggt(own, "paper")
    assert locate("paper", own)["vggt"].root == own
    # Half a part in the first root does not hide the whole one behind it.
    (own / "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae").mkdir(parents=True)
    name = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae/diffusion_pytorch_model.safetensors"
    shutil.copy(whole["paper"] / name, own / name)
    assert locate("paper", own)["vae"].root == whole["paper"]
    monkeypatch.delenv("WRISTAUGMENT_WEIGHTS")
    assert "vae/config.json" in refused("paper", own)


def test_ones_own_weights_take_the_released_ones_place_where_weights_names_them(
    whole, copied, monkeypatch
):
    root = copied("official")
    made.write_reconstruction(root, "official")
    made.write_generation(root, "official")
    assert {"reconstruction", "generation"} <= set(check("official", root))
    monkeypatch.setenv("WRISTAUGMENT_WEIGHTS", str(root))
    assert "reconstruction" not in locate("official")


def test_what_is_missing_is_named_with_what_to_do(whole, copied, tmp_path):
    said = refused("paper", tmp_path / "nothing")
    assert "facebook/VGGT-1B/model.safetensors" in said
    assert "wristaugment weights paper --download" in said
    assert "wristaugment train reconstruction and generation --recipe paper" in said
    root = copied("paper")
    (root / "generation.safetensors").unlink()
    said = refused("paper", root)
    assert "--download" not in said and "wristaugment train generation --recipe paper" in said
    shard = sorted((root / "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/text_encoder").glob("model-*"))[1]
    shard.unlink()
    assert shard.name in refused("paper", root)
    assert "uses no weights" in refused("constant", root)


def test_training_can_ask_for_the_public_parts_alone(whole, copied):
    root = copied("paper")
    (root / "generation.safetensors").unlink()
    (root / "reconstruction.safetensors").unlink()
    assert set(check("paper", root, parts=("vggt",))) == {"vggt"}


def rewrite(path: Path, change) -> None:
    if path.suffix == ".pt":
        state = torch.load(path, weights_only=True)["model"]
        change(state)
        torch.save({"model": state}, path)
    else:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        state = load_file(path)
        change(state)
        save_file(state, path, metadata=metadata)


@pytest.mark.parametrize(
    ("recipe", "part"),
    [
        ("paper", "vggt"),
        ("paper", "dit"),
        ("paper", "vae"),
        ("paper", "image"),
        ("paper", "reconstruction"),
        ("paper", "generation"),
        ("official", "vggt"),
        ("official", "dit"),
        ("official", "image"),
    ],
)
def test_keys_that_do_not_fit_are_listed_for_every_part(copied, recipe, part):
    root = copied(recipe)
    path = made.main_file(root, recipe, part)
    original = path.read_bytes()
    first = []

    def drop(state):
        # Not one of LoRA's factors, which come in pairs and are judged as such.
        name = sorted(name for name in state if "lora" not in name and name != "sign")[0]
        first.append(name)
        del state[name]

    def add(state):
        state["something.else"] = torch.zeros(3)

    def reshape(state):
        state[first[0]] = torch.zeros(3, 5, 7)

    for change, said in ((drop, "1 missing"), (add, "something.else"), (reshape, "[3, 5, 7]")):
        path.write_bytes(original)
        rewrite(path, change)
        line = refused(recipe, root)
        assert said in line and str(path) in line
        states = {s.need.part: s.state for s in look(recipe, root)}
        assert states.pop(part) == "wrong" and "wrong" not in states.values()
    path.write_bytes(original[:-50])
    assert str(path) in refused(recipe, root)


def test_a_shard_must_hold_what_the_index_says(copied):
    root = copied("paper")
    folder = root / "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/text_encoder"
    shard = sorted(folder.glob("model-*"))[0]
    rewrite(shard, lambda state: state.pop(sorted(state)[0]))
    assert f"{shard}: does not hold what model.safetensors.index.json says" in refused(
        "paper", root
    )
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}')
    assert "lists no files, or some elsewhere" in refused("paper", root)


@pytest.mark.parametrize(
    ("recipe", "part", "other", "part_there", "said"),
    [
        ("paper", "vggt", "official", "vggt", "the released VGGT of recipe official"),
        ("paper", "dit", "official", "dit", "the released video DiT of recipe official"),
        ("official", "dit", "paper", "dit", "Wan 2.1's video DiT, of recipe paper"),
        ("paper", "dit", "official", "vae", "not the weights of this part"),
    ],
)
def test_the_weights_of_another_recipe_are_recognised(
    copied, whole, recipe, part, other, part_there, said
):
    root = copied(recipe)
    path = made.main_file(root, recipe, part)
    there = made.main_file(whole[other], other, part_there)
    if path.suffix == there.suffix:
        shutil.copy(there, path)
    else:
        save_file(torch.load(there, weights_only=True)["model"], path)
    line = refused(recipe, root)
    assert said in line and "choose the recipe that this one belongs to" in line


def test_ones_own_weights_of_another_recipe_are_recognised(copied):
    root = copied("official")
    made.write_generation(root, "paper")
    line = refused("official", root)
    assert "not trained for recipe official" in line and "--recipe paper" in line
    root = copied("paper")
    made.write_reconstruction(root, "official")
    assert "use --recipe official" in refused("paper", root)
    for name in ("reconstruction", "generation"):
        made.write_reconstruction(root)
        shutil.copy(WEIGHTS / "nano" / f"{name}.safetensors", root)
        assert "use --recipe nano" in refused("paper", root)


def test_a_tuned_generator_fits_its_base(copied):
    root = copied("paper")
    made.write_generation(root, whole=True)
    assert "generation" in check("paper", root)
    made.write_generation(root, layers=3)
    assert "was trained on a video DiT with layers 3; the one here has 2" in refused("paper", root)
    made.write_generation(root)
    name = "dit.blocks.0.attn1.to_q.lora_A.weight"
    rewrite(root / "generation.safetensors", lambda s: s.update({name: torch.zeros(4, 7)}))
    assert f"1 of another shape: {name} [4, 7] instead of [4, 48]" in refused("paper", root)
    made.write_generation(root)
    rewrite(root / "generation.safetensors", lambda s: s.pop("tokens.view_embed.weight"))
    assert "1 missing: tokens.view_embed.weight" in refused("paper", root)


def test_nanos_files_are_judged_by_what_they_hold(tmp_path):
    root = tmp_path / "nano"
    shutil.copytree(WEIGHTS / "nano", root)
    assert set(check("nano", root)) == {"reconstruction", "generation"}
    a, b = root / "reconstruction.safetensors", root / "generation.safetensors"
    whole = b.read_bytes()
    shutil.copy(a, b)
    assert f"{b}: has fields that GeneratorConfig does not know" in refused("nano", root)
    assert set(check("projection", root)) == {"reconstruction"}
    b.write_bytes(whole[:-100])
    assert f"{b}: not a readable safetensors file" in refused("nano", root)
    b.unlink()
    line = refused("nano", root)
    assert "these weights of recipe 'nano' are not here" in line and str(b) in line


def test_a_changed_file_is_refused_and_its_record_is_what_tells(copied):
    root = copied("paper")
    path = made.main_file(root, "paper", "vggt")
    place = path.relative_to(root).as_posix()
    record = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    write_record(root, place, {**record, "source": "facebook/VGGT-1B", "revision": "0" * 40})
    check("paper", root)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # a bit of a weight: names and shapes stay right
    path.write_bytes(data)
    assert "has changed since it was fetched (another SHA-256)" in refused("paper", root)
    assert check("paper", root, hashes=False)
    write_record(root, place, {**record, "bytes": 7})
    assert f"has {len(data)} bytes where 7 were fetched" in refused("paper", root)
    (root / "weights.json").write_text("[]")
    assert "not a record of weights" in refused("paper", root)


def test_a_large_file_is_hashed_once_until_it_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_hashes, "WORTH_REMEMBERING", 10)
    path = tmp_path / "large.safetensors"
    path.write_bytes(b"a" * 100)
    counted = []

    def count(path):
        counted.append(path)
        return file_sha256(path)

    monkeypatch.setattr(weights_hashes, "file_sha256", count)
    first = remembered_sha256(path)
    assert remembered_sha256(path) == first == file_sha256(path)
    assert len(counted) == 1
    # Another file with the same size and time in its place is another file.
    stat = path.stat()
    other = tmp_path / "other"
    other.write_bytes(b"b" * 100)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(other, path)
    assert remembered_sha256(path) != first
    assert len(counted) == 2
    memory = tmp_path / "cache" / "wristaugment" / "hashes.json"
    assert list(json.loads(memory.read_text())) == [str(path)]
    for spoiled in ("{", "[1]", json.dumps({str(path): 3})):
        memory.write_text(spoiled)
        assert remembered_sha256(path) == file_sha256(path)


def test_a_cache_that_cannot_be_written_is_no_hindrance(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_hashes, "WORTH_REMEMBERING", 10)
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    path = tmp_path / "large.safetensors"
    path.write_bytes(b"a" * 100)
    assert remembered_sha256(path) == file_sha256(path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert weights_hashes.cache_folder() == Path.home() / ".cache" / "wristaugment"


def card(total: float):
    """A GPU with so many bytes, as torch describes it."""
    return SimpleNamespace(name="Small Card", total_memory=total)


def test_a_gpu_that_is_too_small_is_refused_with_what_is_needed(whole, monkeypatch):
    recipe = get_recipe("official")
    located = locate(recipe, whole["official"])
    needed = memory_needed(recipe, located, (480, 832))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cards = [card(needed + 1), card(needed)]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
    refuse_small_gpu(recipe, located, (480, 832))
    cards[1] = card(needed - 1)
    refuse_small_gpu(recipe, located, (480, 832), device=0)
    with pytest.raises(SourceError) as caught:
        refuse_small_gpu(recipe, located, (480, 832))
    line = str(caught.value)
    assert f"about {needed / GIB:.1f} GiB" in line and "Small Card" in line and "\n" not in line
    assert "--wrist-size" in line
    # Half the pixels take less, and fit.
    refuse_small_gpu(recipe, located, (240, 832))


def test_the_estimate_counts_weights_at_their_precision_and_what_a_clip_adds(whole):
    recipe = get_recipe("official")
    located = locate(recipe, whole["official"])
    half = memory_needed(recipe, located, (480, 832))
    double = replace(recipe, precision="float32")
    full = memory_needed(double, replace(located, recipe=double), (480, 832))
    assert half < full < 2 * half
    assert memory_needed(recipe, located, (960, 832)) > half
    assert memory_needed(get_recipe("constant"), locate("constant"), (480, 832)) == 0
    small = get_recipe("nano")
    numbers = sum(n.bytes for n in requirements("nano")) / 2  # nano's files hold halves
    found = memory_needed(small, locate("nano"), small.wrist_size)
    assert GIB + 4 * 0.95 * numbers < found < 4 * GIB
