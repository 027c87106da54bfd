"""The store of latents: what is in it, that records are absent or whole, and what is refused."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_weights
import torch
import zarr
from wristaugment.augment import assess
from wristaugment.augment import latents as module
from wristaugment.augment.cache import Encoders, check_sizes, encode, fill
from wristaugment.augment.latents import (
    LatentStore,
    check_origin,
    prompt_name,
    record_name,
    store_identity,
)
from wristaugment.augment.recipe import get_recipe
from wristaugment.models.encoders import ImageEncoder, PromptEncoder, VideoAutoencoder
from wristaugment.readers.episode import Episode, Record, View
from wristaugment.readers.errors import SourceError

CLIP, SIZE = 5, (32, 48)
RECIPE = replace(get_recipe("paper"), clip=CLIP, wrist_size=SIZE)
IDENTITY = store_identity(RECIPE, {"vae": "a" * 64}, {"name": "made", "version": "1.0.0"})


def frames(seed: int, length: int, size: tuple[int, int] = (36, 64)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.repeat(rng.integers(0, 256, (length, 1, size[1], 3), np.uint8), size[0], axis=1)


def episode(index: int, length: int, language: str = "lift it", views: int = 2) -> Episode:
    anchors = [View(f"view_{v}", frames(10 * index + v, length)) for v in range(views)]
    wrist = View("wrist", frames(10 * index + 9, length, (24, 40)))
    return Episode(Record("train", 0, index), anchors, language, wrist=wrist)


def conditions(given: Episode) -> np.ndarray:
    """In place of stage 1: the first anchor, dark."""
    return assess.resize_frames(given.anchors[0].frames, SIZE) // 2


def listed(*episodes: Episode):
    return [(e.record, lambda e=e: e) for e in episodes]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> Encoders:
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    small_weights.make_autoencoder(root / "vae")
    small_weights.make_text_encoder(root)
    small_weights.make_clip("paper", root / "clip")
    return Encoders(
        VideoAutoencoder.open(root / "vae"),
        PromptEncoder.open(root),
        ImageEncoder.open("paper", root / "clip"),
        conditions,
    )


@pytest.fixture
def store(tmp_path) -> LatentStore:
    return LatentStore.create(tmp_path / "store", IDENTITY)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal but for float16's rounding."""
    return torch.allclose(found, wanted.to(found), rtol=2e-3, atol=2e-3)


def test_a_record_holds_what_the_encoders_make_of_it(store, encoders):
    one = episode(3, 9)
    filled = fill(store, listed(one), encoders, RECIPE)
    assert (filled.made, filled.found, filled.left_out) == (1, 0, {})
    name = record_name(one.record)
    assert store.records() == [name] == ["train-00000-000003"]
    assert store.views(name) == ["view_0", "view_1"]
    assert store.starts(name) == 2
    assert one.wrist is not None
    for start in (0, 1):
        window = store.window(name, start)
        for kind, pixels in (
            ("wrist", assess.resize_frames(one.wrist.frames, SIZE)),
            ("condition", conditions(one)),
        ):
            video = torch.as_tensor(pixels).permute(3, 0, 1, 2)[None] / 127.5 - 1
            whole = encoders.autoencoder.encode(video)[0]
            found = getattr(window, kind)
            assert found.shape == (16, 2, 4, 6)
            assert close(found, whole[:, start : start + 2])
        steps = slice(4 * start, 4 * start + CLIP)
        wanted = torch.stack([encoders.images(v.frames[steps]) for v in one.anchors])
        assert window.features.shape == (2, CLIP, small_weights.EXT["paper"])
        assert close(window.features, wanted)
        assert torch.equal(window.text, encoders.prompts(["lift it"])[0])
    assert not torch.equal(store.window(name, 0).features, store.window(name, 1).features)


@pytest.mark.parametrize(("length", "starts", "start"), [(1, 1, 0), (3, 1, 0), (6, 2, 1)])
def test_a_record_that_is_no_whole_clip_repeats_its_last_frame(
    store, encoders, length, starts, start
):
    fill(store, listed(episode(0, length)), encoders, RECIPE)
    name = "train-00000-000000"
    assert store.starts(name) == starts
    window = store.window(name, start)
    assert window.wrist.shape == (16, 2, 4, 6)
    assert window.features.shape[1] == CLIP
    last = length - 1 - 4 * start
    assert all(
        torch.equal(window.features[:, t], window.features[:, last]) for t in range(last, CLIP)
    )
    if last:
        assert not torch.equal(window.features[:, 0], window.features[:, last])


def test_prompts_are_kept_once_and_the_negative_one_too(store, encoders):
    before = encoders.prompts.encoded
    given = [episode(0, 2, "open it"), episode(1, 2, "close it"), episode(2, 2, "open it")]
    fill(store, listed(*given), encoders, RECIPE)
    assert encoders.prompts.encoded - before <= 3
    assert len(list((store.path / "prompts").glob("[0-9a-f]*"))) == 3
    again = LatentStore.open(store.path)
    for prompt in ("open it", "close it", RECIPE.negative):
        assert torch.equal(again.text(prompt), encoders.prompts([prompt])[0])
    with pytest.raises(SourceError, match="lacks the prompt"):
        again.text("throw it")
    fixed = replace(RECIPE, prompt="a scene")
    assert encode(given[0], encoders, fixed).prompt == "a scene"


def test_a_killed_run_goes_on_and_the_store_is_the_same(tmp_path, encoders, monkeypatch):
    given = [episode(i, 5 + i, f"lift {i}") for i in range(3)]
    whole = LatentStore.create(tmp_path / "whole", IDENTITY)
    fill(whole, listed(*given), encoders, RECIPE)
    killed = LatentStore.create(tmp_path / "killed", IDENTITY)
    calls = 0
    real = module.fsync

    def dies(path):
        nonlocal calls
        calls += "/records/.train-00000-000001" in str(path)
        if calls == 2:  # all of the second record is written, and its name is still to come
            raise KeyboardInterrupt
        real(path)

    monkeypatch.setattr(module, "fsync", dies)
    with pytest.raises(KeyboardInterrupt):
        fill(killed, listed(*given), encoders, RECIPE)
    monkeypatch.setattr(module, "fsync", real)
    assert [p.name[0] for p in (killed.path / "records").iterdir() if p.is_dir()].count(".") == 1
    again = LatentStore.create(tmp_path / "killed", IDENTITY)
    assert again.records() == ["train-00000-000000"]
    filled = fill(again, listed(*given), encoders, RECIPE)
    assert (filled.made, filled.found) == (2, 1)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    untouched = {p: p.stat().st_mtime_ns for p in again.path.rglob("*")}
    assert fill(again, listed(*given), encoders, RECIPE).found == 3
    assert {p: p.stat().st_mtime_ns for p in again.path.rglob("*")} == untouched


def test_a_record_is_there_only_when_it_says_so(store, encoders):
    one = episode(0, 5)
    fill(store, listed(one), encoders, RECIPE)
    about = store.path / "records" / record_name(one.record) / "zarr.json"
    text = about.read_text()
    for damaged in (text.replace("true", "false"), text[:20], ""):
        about.write_text(damaged)
        assert store.records() == []
        assert not store.has(one.record)
    assert fill(store, listed(one), encoders, RECIPE).made == 1
    assert store.records() == ["train-00000-000000"]


def test_any_zarr_3_reader_reads_it(store, encoders):
    fill(store, listed(episode(0, 9)), encoders, RECIPE)
    group = zarr.open_group(store.path, mode="r")
    assert group.attrs["identity"] == IDENTITY
    wrist = group["records/train-00000-000000/wrist"]
    assert wrist.metadata.zarr_format == 3
    assert (wrist.shape, wrist.dtype) == ((16, 3, 4, 6), np.float16)
    files = list((store.path / "records/train-00000-000000/wrist").rglob("*"))
    assert sum(p.is_file() for p in files) == 2  # its shape and its values


def test_what_cannot_be_made_is_left_out_and_said(store, encoders):
    blind, dark, torn = episode(1, 5), episode(2, 5), episode(4, 5)
    blind.anchors, dark.wrist = [], None

    def broken() -> Episode:
        raise SourceError("is torn", file="shard", record=4)

    given = [*listed(episode(0, 5), blind, dark), (torn.record, broken), *listed(episode(5, 5))]
    seen = []
    filled = fill(store, given, encoders, RECIPE, progress=lambda f: seen.append(f.made))
    assert filled.made == 2
    assert store.records() == ["train-00000-000000", "train-00000-000005"]
    assert list(filled.left_out) == ["train/0/1", "train/0/2", "train/0/4"]
    assert "has no anchor view" in filled.left_out["train/0/1"]
    assert "has no recorded wrist view" in filled.left_out["train/0/2"]
    assert "is torn" in filled.left_out["train/0/4"]
    assert seen == [1, 1, 1, 1, 2]


def test_numbers_that_are_none_are_not_kept(store, encoders):
    bad = replace(encoders, images=lambda f: torch.full((len(f), 24), float("nan")))
    filled = fill(store, listed(episode(0, 5)), bad, RECIPE)
    assert "features came out as no finite numbers" in filled.left_out["train/0/0"]
    assert store.records() == []
    wrong = replace(encoders, conditions=lambda e: conditions(e)[:-1])
    filled = fill(store, listed(episode(0, 5)), wrong, RECIPE)
    assert "condition map is [4, 32, 48, 3] instead of [5, 32, 48, 3]" in str(filled.left_out)


@pytest.mark.parametrize(
    ("recipe", "weights", "source", "found"),
    [
        (
            replace(RECIPE, wrist_size=(32, 64)),
            {},
            {},
            r"wrist_size \[32, 48\] instead of \[32, 64\]",
        ),
        (RECIPE, {"vae": "b" * 64}, {}, r"weights\.vae aaaaaaaaaaaa instead of bbbbbbbbbbbb"),
        (RECIPE, {}, {"version": "2.0.0"}, r"source\.version 1\.0\.0 instead of 2\.0\.0"),
        (get_recipe("official"), {}, {}, r"recipe\.clip 5 instead of 81.* and \d+ more"),
    ],
)
def test_a_store_of_other_settings_is_refused(store, recipe, weights, source, found):
    other = store_identity(
        recipe,
        {"vae": "a" * 64} | weights,
        {"name": "made", "version": "1.0.0"} | source,
    )
    with pytest.raises(SourceError, match=found) as caught:
        LatentStore.create(store.path, other)
    assert "\n" not in str(caught.value)
    assert "give another --out" in str(caught.value)


def test_what_only_sampling_depends_on_makes_no_difference(store):
    sampled = replace(RECIPE, steps=7, guidance=1.0, min_coverage=0.5)
    same = store_identity(sampled, IDENTITY["weights"], IDENTITY["source"])
    assert LatentStore.create(store.path, same).records() == []


def test_a_store_is_checked_against_what_is_known_of_a_training(store):
    check_origin(store, RECIPE, {}, {})
    check_origin(store, RECIPE, {"vae": "a" * 64}, {"name": "made"})
    for recipe, weights, source, found in (
        (get_recipe("official"), {}, {}, "form paper instead of official"),
        (RECIPE, {"vae": "b" * 64}, {}, r"weights\.vae aaaaaaaaaaaa instead of bbbbbbbbbbbb"),
        (RECIPE, {"image": "b" * 64}, {}, r"weights\.image None instead of bbbbbbbbbbbb"),
        (RECIPE, {}, {"name": "droid"}, r"source\.name made instead of droid"),
    ):
        with pytest.raises(SourceError, match=found):
            check_origin(store, recipe, weights, source)


def test_what_is_no_store_is_refused(tmp_path, store):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(SourceError, match="something else than a cache is here"):
        LatentStore.create(tmp_path / "other", IDENTITY)
    assert os.listdir(tmp_path / "other") == ["notes.txt"]
    for path in (tmp_path / "none", tmp_path / "other"):
        with pytest.raises(SourceError, match=r"is no cache .* `wristaugment cache`"):
            LatentStore.open(path)
    plain = zarr.open_group(tmp_path / "plain", mode="w")
    with pytest.raises(SourceError, match="is no cache"):
        LatentStore.open(tmp_path / "plain")
    plain.attrs["identity"] = IDENTITY | {"format": 9}
    with pytest.raises(SourceError, match="of format 9; this version reads 1"):
        LatentStore.open(tmp_path / "plain")
    shutil.rmtree(store.path)


def test_sizes_that_would_be_cropped_are_refused_up_front():
    check_sizes(RECIPE)
    for change, found in (
        ({"clip": 8}, "found 8"),
        ({"wrist_size": (40, 48)}, "height of 40 pixels; it must be a multiple of 16"),
    ):
        with pytest.raises(SourceError, match=found):
            check_sizes(replace(RECIPE, **change))


def test_names_sort_as_records_do_and_prompts_by_content():
    records = [Record("train", s, i) for s in (0, 2, 10) for i in (0, 9, 10, 100)]
    names = [record_name(r) for r in records]
    assert names == sorted(names)
    assert prompt_name("a") != prompt_name("b")
    assert json.loads(json.dumps(IDENTITY)) == IDENTITY
