"""Training of the video DiT on kept latents: what it minimises, resumes, refuses and writes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_weights
import torch
from safetensors.torch import load_file
from wristaugment.augment import train_video as module
from wristaugment.augment.latents import Entry, LatentStore, store_identity
from wristaugment.augment.recipe import GENERATION, get_recipe
from wristaugment.augment.train_video import flow_loss, make_clips, shifted, train_video
from wristaugment.augment.training import Schedule
from wristaugment.models.flow import make_schedule, sample_latents
from wristaugment.models.lora import load_generation, read_generation
from wristaugment.models.video_dit import VideoDiT, to_precision
from wristaugment.readers.episode import Record
from wristaugment.readers.errors import SourceError

CLIP, LENGTH = 5, 8
SMALL = {"context_tokens": 512, "frames": 9}
QUICK = Schedule(steps=4, batch=2, rate=1e-2, warmup=1, average=0.0, save=2, bf16=False, log=1)


def small(form: str = "paper", **changes) -> VideoDiT:
    torch.manual_seed(0)
    return VideoDiT(small_weights.dit_config(form, **(SMALL | changes))).eval()


def make_store(
    path: Path, form: str = "paper", records: int = 3, views: int = 2, **changes
) -> LatentStore:
    """Smooth latents, such that the wrist's follow from the condition's, features and words."""
    recipe = replace(get_recipe(form), clip=CLIP, wrist_size=(32, 32), **changes)
    store = LatentStore.create(path, store_identity(recipe, {}, {"name": "made"}))
    rng = np.random.default_rng(0)
    for prompt in (recipe.negative, "lift it", "drop it"):
        store.write_prompt(prompt, torch.tensor(rng.normal(size=(6, small_weights.TEXT))).float())
    for index in range(records):
        split = "val" if index == records - 1 else "train"
        condition = np.repeat(rng.normal(size=(16, 3, 2, 2)), 2, axis=2).repeat(2, axis=3)
        features = rng.normal(size=(views, LENGTH, small_weights.EXT[form]))
        entry = Entry(
            wrist=(0.8 * condition[::-1]).astype(np.float16),
            condition=condition.astype(np.float16),
            features=features.astype(np.float16),
            prompt=("lift it", "drop it")[index % 2],
            views=[f"view_{v}" for v in range(views)],
        )
        store.write(Record(split, 0, index), entry)
    return store


@pytest.fixture(scope="module", params=["paper", "official"])
def store(request, tmp_path_factory) -> LatentStore:
    return make_store(tmp_path_factory.mktemp("store"), request.param)


@pytest.fixture
def paper(tmp_path) -> LatentStore:
    return make_store(tmp_path / "store")


def form(store: LatentStore) -> str:
    return store.identity["recipe"]["form"]


def logged(folder: Path, key: str = "loss") -> list[float]:
    lines = map(json.loads, (folder / "generation" / "log.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


def test_a_network_that_knows_the_answer_has_no_loss(paper):
    windows = [paper.window("train-00000-000000", s) for s in (0, 1)]
    negative = paper.text(paper.identity["recipe"]["negative"])
    clips = make_clips(small(), windows, [True, False], negative, "cpu")
    noise = torch.randn(clips.clean.shape, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([0.25, 1.0])
    seen = {}

    def oracle(noisy, timestep, condition, context):
        seen.update(noisy=noisy, timestep=timestep, condition=condition, context=context)
        return noise - clips.clean

    assert torch.equal(flow_loss(oracle, clips, noise, level), torch.zeros(2))
    wrong = flow_loss(lambda *given: oracle(*given) + 2, clips, noise, level)
    assert torch.allclose(wrong, torch.full((2,), 4.0))
    assert torch.allclose(seen["noisy"][0], 0.75 * clips.clean[0] + 0.25 * noise[0])
    assert torch.allclose(seen["noisy"][1], noise[1])
    assert seen["timestep"].tolist() == [250.0, 1000.0]
    assert torch.equal(seen["condition"][1], windows[1].condition)


def test_levels_are_shifted_as_the_sampler_s(paper):
    even = torch.linspace(1, 0, 6)
    assert torch.allclose(shifted(even, 5.0), make_schedule(5, 5.0).sigmas, atol=1e-6)


def test_a_dropped_clip_gets_the_sampler_s_negative_branch(store):
    network = small(form(store), dropout=0.0)
    window = store.window("train-00000-000000", 1)
    negative = store.text(store.identity["recipe"]["negative"])
    clips = make_clips(network, [window, window], [True, False], negative, "cpu")
    assert torch.equal(clips.context[1], network.encode_context(negative[None])[0])
    wanted = network.encode_context(window.text[None], window.features[None])
    assert torch.equal(clips.context[0], wanted[0])
    assert torch.equal(clips.condition[0], clips.condition[1])


@pytest.mark.parametrize(("kind", "mode"), [("paper", "lora"), ("official", "full")])
def test_a_clip_is_learnt_by_heart_and_the_file_makes_it_again(kind, mode, tmp_path):
    sizes = {"layers": 1, "head_dim": 64, "ffn_dim": 128}
    store = make_store(tmp_path / "store", kind)
    schedule = replace(QUICK, steps=60, rate=1e-2 if mode == "full" else 2e-2, warmup=5, log=10)
    only = {"splits": ["val"], "validation": ["val"], "drop": 0.0}
    path = train_video(store, small(kind, **sizes), schedule, tmp_path, mode=mode, rank=16, **only)
    losses = logged(tmp_path)
    assert losses[-1] < (0.4 if mode == "full" else 0.65) * losses[0]
    network = small(kind, **sizes)
    said = load_generation(path, network, merge=True)
    assert said == read_generation(path)
    assert said.mode == mode
    window = store.window("val-00000-000002")
    context = network.encode_context(window.text[None], window.features[None])
    noise = torch.randn(1, *window.wrist.shape, generator=torch.Generator().manual_seed(3))
    made = sample_latents(network, noise, window.condition[None], context, None, steps=8)
    error = (made[0] - window.wrist).square().mean() / window.wrist.square().mean()
    assert error < (0.75 if mode == "full" else 0.98)  # of what a black latent would have


def test_a_killed_run_goes_on_to_the_same_numbers(store, tmp_path, monkeypatch):
    schedule = replace(QUICK, steps=6, validate_every=3, checkpointing=True)
    settings = {"validation": ["val"], "drop": 0.3}
    whole = train_video(store, small(form(store)), schedule, tmp_path / "whole", **settings)
    calls = 0
    real = module.flow_loss

    def dies(*given):
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(module, "flow_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        train_video(store, small(form(store)), schedule, tmp_path / "killed", **settings)
    assert not (tmp_path / "killed" / GENERATION).exists()
    monkeypatch.setattr(module, "flow_loss", real)
    again = train_video(store, small(form(store)), schedule, tmp_path / "killed", **settings)
    assert again.read_bytes() == whole.read_bytes()
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
    assert logged(tmp_path / "killed", "validation") == logged(tmp_path / "whole", "validation")
    other = train_video(
        store, small(form(store)), replace(schedule, seed=1), tmp_path / "other", **settings
    )
    assert other.read_bytes() != whole.read_bytes()


def test_what_is_frozen_may_be_kept_in_half_precision(paper, tmp_path):
    schedule = replace(QUICK, bf16=True, checkpointing=True, validate_every=4)
    half = small()
    settings = {"validation": ["val"], "frozen": torch.bfloat16}
    path = train_video(paper, half, schedule, tmp_path / "half", **settings)
    kinds = {k: v.dtype for k, v in half.named_parameters()}
    assert kinds["dit.blocks.0.attn1.to_q.base_layer.weight"] == torch.bfloat16
    # As of diffusers: what Wan keeps in float32.
    assert kinds["dit.scale_shift_table"] == kinds["dit.blocks.0.norm2.weight"] == torch.float32
    assert {kinds[k] for k, v in half.named_parameters() if v.requires_grad} == {torch.float32}
    full = train_video(paper, small(), schedule, tmp_path / "full", validation=["val"])
    one, other = load_file(path), load_file(full)
    assert {v.dtype for v in one.values()} == {torch.float32}
    name = "dit.patch_embedding.weight"
    assert (one[name] - other[name]).abs().mean() < 1e-3
    exact = replace(schedule, bf16=False)
    base = to_precision(small(), torch.bfloat16)
    train_video(paper, base, exact, tmp_path / "exact")
    assert {v.dtype for v in base.parameters()} == {torch.float32}


def test_checkpoints_hold_what_is_trained_alone(paper, tmp_path):
    base = small()
    train_video(paper, base, QUICK, tmp_path)
    saved = torch.load(tmp_path / "generation" / "checkpoint.pt", weights_only=True)["network"]
    assert {k for k, v in base.named_parameters() if v.requires_grad} == set(saved)
    assert not [k for k in saved if "base_layer" in k]


def test_validation_reports_the_held_out_split_with_the_same_noise(paper, tmp_path):
    # A rate of nothing: the same network is measured twice.
    schedule = replace(QUICK, rate=0.0, validate_every=2)
    train_video(paper, small(), schedule, tmp_path, validation=["val"])
    first, second = logged(tmp_path, "validation")
    assert first == second
    assert set(first) == {"loss", "loss at 0.2", "loss at 0.5", "loss at 0.8", "loss at 0.95"}
    drawn = []
    real = LatentStore.window

    def spy(self, name, start=0):
        drawn.append(name)
        return real(self, name, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatentStore, "window", spy)
        train_video(paper, small(), replace(QUICK, steps=12), tmp_path / "b", validation=["val"])
        assert set(drawn) == {"train-00000-000000", "train-00000-000001"}
        drawn.clear()
        train_video(paper, small(), QUICK, tmp_path / "c", validation=["val"], limit=1)
        assert set(drawn) == {"train-00000-000000"}


def test_the_network_ends_with_what_the_file_says(paper, tmp_path):
    network = small()
    schedule = replace(QUICK, average=0.9)
    path = train_video(paper, network, schedule, tmp_path)
    again = small()
    load_generation(path, again)
    own, other = dict(network.named_parameters()), dict(again.named_parameters())
    assert all(torch.equal(own[k], other[k]) for k in own)
    last = torch.load(tmp_path / "generation" / "checkpoint.pt", weights_only=True)["network"]
    name = "dit.patch_embedding.weight"
    assert not torch.equal(last[name], own[name])


def test_pictures_show_condition_result_and_truth(paper, tmp_path):
    seen = []

    def decode(latents: torch.Tensor) -> torch.Tensor:
        seen.append(latents)
        return latents[:, :3, :1].repeat(1, 1, CLIP, 8, 8).clamp(-1, 1)

    schedule = replace(QUICK, validate_every=4)
    train_video(paper, small(), schedule, tmp_path, validation=["val"], decode=decode)
    window = paper.window("val-00000-000002")
    assert torch.equal(seen[0][0], window.condition)
    assert torch.equal(seen[2][0], window.wrist)
    assert seen[1].isfinite().all()
    assert list((tmp_path / "generation" / "tensorboard").iterdir())


def test_two_views_become_three_and_only_their_embeddings_start_anew(paper, tmp_path):
    first = train_video(paper, small(), QUICK, tmp_path / "two", fingerprint={"wan": "a"})
    three = make_store(tmp_path / "three-store", views=3)
    with pytest.raises(SourceError, match="up to 3 anchor views; the generator is trained for 2"):
        train_video(three, small(), QUICK, tmp_path / "no", views=2)
    still = replace(QUICK, rate=0.0, decay=0.0, steps=1)
    again = {"initial": first, "fingerprint": {"wan": "a"}}
    path = train_video(three, small(), still, tmp_path / "three", **again)
    old, new = load_file(first), load_file(path)
    assert [k for k in old if not torch.equal(old[k], new[k])] == ["tokens.view_embed.weight"]
    assert len(new["tokens.view_embed.weight"]) == 3
    assert read_generation(path).base == {"wan": "a"}
    moved = train_video(three, small(), QUICK, tmp_path / "moved", **again)
    assert not torch.equal(load_file(moved)["tokens.view_embed.weight"][2],
                           new["tokens.view_embed.weight"][2])  # fmt: skip
    fresh = train_video(three, small(), QUICK, tmp_path / "fresh")
    assert read_generation(fresh).sizes.views == 3
    wide = train_video(paper, small(), QUICK, tmp_path / "wide", views=4)
    assert read_generation(wide).sizes.views == 4


@pytest.mark.parametrize(
    ("network", "found"),
    [
        ({"form": "official"}, "its form is paper; the generator's is official"),
        ({"ext_dim": 7}, "width of image features is 24; the generator's is 7"),
        ({"text_dim": 8}, "width of prompts is 20; the generator's is 8"),
        ({"context_tokens": 100}, "512 tokens; the generator's context holds 100"),
        ({"frames": 4}, "clips of 5 frames and 2 views; the generator has embeddings for 4 frames"),
    ],
)
def test_a_store_that_does_not_fit_is_refused(paper, tmp_path, network, found):
    with pytest.raises(SourceError, match=found):
        train_video(paper, small(**network), QUICK, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_that_make_no_sense_are_refused(paper, tmp_path):
    for settings, found in (
        ({"mode": "half"}, "choose from lora, full"),
        ({"drop": 1.0}, "give 0 to below 1"),
        ({"splits": ["test"]}, "no record of the split"),
    ):
        with pytest.raises(SourceError, match=found):
            train_video(paper, small(), QUICK, tmp_path / "out", **settings)
    whole = train_video(paper, small(), QUICK, tmp_path / "whole", mode="full")
    with pytest.raises(SourceError, match=r"holds whole weights.*--full"):
        train_video(paper, small(), QUICK, tmp_path / "out", initial=whole)
    train_video(paper, small(), QUICK, tmp_path / "out")
    with pytest.raises(SourceError, match="trained with other settings"):
        train_video(paper, small(), replace(QUICK, rate=2e-2), tmp_path / "out")
